"""How fast a client sends what is received from it: whoever holds a counted place has to use it.

A client that sends a byte a minute is never silent for long, so a time limit on silence does not end it. So of what it sends at
least so much has to come in the time for which it was waited for; what Davit does meanwhile is not its fault, and does not count.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from foundation.errors import DavitError

WINDOW_SECONDS = 600.0
"""For so long a client is waited for before it is looked at how much has come: git is silent while it compresses much."""
LEAST_RATE = 4096
"""Bytes a second that have to come over such a time."""

T = TypeVar("T", bound=bytes)


class TooSlow(DavitError):
    """A client sends so slowly that it is no longer waited for."""

    id, status = "too_slow", 408


class Pace:
    """The pace of one client.

    Args:
        window: seconds of waiting after which it is looked at how much has come.
        least: bytes a second.
    """

    def __init__(self, window: float = WINDOW_SECONDS, least: int = LEAST_RATE) -> None:
        self.window, self.least = window, least
        self.spent = False
        self._waited = 0.0
        self._come = 0

    @property
    def left(self) -> float:
        """Seconds that it may be waited for yet, if nothing comes."""
        return max(0.0, self.window - self._waited)

    def heard(self, count: int, waited: float) -> None:
        """So many bytes have come, after so many seconds of waiting.

        Raises:
            TooSlow: too few in all of the time.
        """
        self._come += count
        self._waited += waited
        if self._come >= self.least * self.window:
            self._come, self._waited = 0, 0.0
        elif self.spent or self._waited >= self.window:
            self.spent = True
            least, window = f"{self.least / 1024:g} KiB a second", f"{self.window / 60:g} minutes"
            raise TooSlow(
                f"Less than {least} has arrived for {window}, so Davit waits no longer. Send it again over a faster connection."
            )

    def timed(self, receive: Callable[[], T]) -> T:
        """What ``receive`` waits for and returns.

        Raises:
            TooSlow: too little comes.
        """
        if self.spent:
            self.heard(0, 0)
        begun = time.monotonic()
        data = receive()
        self.heard(len(data), time.monotonic() - begun)
        return data


@contextmanager
def demanded(connection: Any) -> Iterator[None]:
    """Whoever is at the other end of this connection has to keep up a pace meanwhile.

    One that did not is not read from again, also afterwards: what is left of its request is not waited for.

    Args:
        connection: a socket that knows ``pace``; nothing is demanded of another.
    """
    if not hasattr(connection, "pace"):
        yield
        return
    connection.pace = pace = Pace()
    try:
        yield
    finally:
        connection.pace = None
        if pace.spent:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RD)  # TLS, which the answer needs, is another matter
