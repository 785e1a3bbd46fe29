"""Wrong guesses are counted: who guesses passwords or one-time codes is soon no longer listened to.

The counts live in the process that answers (one: ``web``), so that a guess costs no write. They are bounded, and forgotten
when that process ends, which nobody outside can make it do.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from foundation.errors import DavitError


class TooManyAttempts(DavitError):
    """Too many wrong guesses of late."""

    id, status = "rate_limit", 429


class WrongGuesses:
    """Counts wrong guesses by what was guessed for (an address, an account).

    Args:
        what: what is guessed, for the sentence: ``password``.
        most: wrong guesses that are listened to within ``seconds``.
        seconds: how long a wrong guess counts.
        names: names that are remembered; beyond, the one that was guessed for longest ago is forgotten.
    """

    def __init__(self, what: str, most: int = 10, seconds: float = 600, names: int = 10_000) -> None:
        self.most = most
        self._what, self._seconds, self._names = what, seconds, names
        self._lock = threading.Lock()
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, name: str) -> None:
        """Raise TooManyAttempts when there were too many of late."""
        with self._lock:
            times = self._times.get(name.lower(), [])
            recent = [at for at in times if at > time.monotonic() - self._seconds]
        if len(recent) >= self.most:
            minutes = round(self._seconds / 60)
            raise TooManyAttempts(f"The {self._what} was wrong too often; try again in {minutes} minutes, or use an API token.")

    def note(self, name: str) -> None:
        """Count one."""
        with self._lock:
            times = self._times.setdefault(name.lower(), [])
            times.append(time.monotonic())
            del times[: -self.most]
            self._times.move_to_end(name.lower())
            if len(self._times) > self._names:
                self._times.popitem(last=False)

    def forget(self) -> None:
        """Start anew."""
        with self._lock:
            self._times.clear()


passwords = WrongGuesses("password")
codes = WrongGuesses("two-factor code")
