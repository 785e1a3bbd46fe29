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

    def begin(self, name: str) -> float:
        """Count a guess as wrong before anybody looks whether it is: those that come at once are no more than those in turn.

        Returns:
            What :meth:`was_right` takes back.

        Raises:
            TooManyAttempts: there were too many of late; this one is not looked at.
        """
        with self._lock:
            at = time.monotonic()
            times = [before for before in self._times.get(name.lower(), []) if before > at - self._seconds]
            if len(times) >= self.most:
                minutes = round(self._seconds / 60)
                raise TooManyAttempts(
                    f"The {self._what} was wrong too often; try again in {minutes} minutes, or use an API token."
                )
            self._times[name.lower()] = [*times, at]
            self._times.move_to_end(name.lower())
            if len(self._times) > self._names:
                self._times.popitem(last=False)
            return at

    def was_right(self, name: str, guess: float) -> None:
        """The guess that :meth:`begin` counted was none."""
        with self._lock:
            times = self._times.get(name.lower(), [])
            if guess in times:
                times.remove(guess)
            if not times:
                self._times.pop(name.lower(), None)

    def forget(self) -> None:
        """Start anew."""
        with self._lock:
            self._times.clear()


passwords = WrongGuesses("password")
codes = WrongGuesses("two-factor code")
