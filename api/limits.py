"""How many calls an account may make: a bucket of tokens each, as on Heroku refilled evenly over the hour.

Who has no account yet has the bucket of his address, for what he may ask to have written.

The buckets live in the web process: a new process begins with full ones.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import request

from foundation.errors import DavitError
from foundation.places import Places
from foundation.settings import settings


class RateLimited(DavitError):
    """The account, or a stranger's address, has made too many calls."""

    id, status = "rate_limit", 429


class Buckets:
    """A bucket for each account.

    Args:
        clock: seconds, for tests.
        most: buckets that are remembered; an account that is not seen for longest has a full one again.
        whose, what: the sentence that refuses, as far as it differs.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, most: int = 10_000, whose: str = "Your account",
        what: str = "made too many API calls",
    ) -> None:  # fmt: skip
        self._clock, self._most = clock, most
        self._refusal = f"{whose} has {what}; wait a minute. It has 1 more every second or so."
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, account_id: str) -> int:
        """Use one call; returns how many are left.

        Raises:
            RateLimited: none was left.
        """
        with self._lock:
            level = self._level(account_id)
            if level < 1:
                raise RateLimited(self._refusal)
            self._levels[account_id] = (level - 1, self._clock())
            self._levels.move_to_end(account_id)
            if len(self._levels) > self._most:
                self._levels.popitem(last=False)
        return int(level - 1)

    def left(self, account_id: str) -> int:
        """How many calls the account has."""
        with self._lock:
            return int(self._level(account_id))

    def _level(self, account_id: str) -> float:
        full = float(settings().rate_limit)
        level, at = self._levels.get(account_id, (full, self._clock()))
        return min(full, level + (self._clock() - at) * full / 3600)


GUESSES_EACH = 4
"""Passwords that are looked at at once for one address."""
guesses = Places(
    lambda: max(1, settings().web_threads // 8), lambda: GUESSES_EACH,
    lambda _: RateLimited("Too many people are signing in at the moment; try again in a moment."),
    lambda each: RateLimited(f"{each} passwords from your address are being looked at already; try again in a moment."),
)  # fmt: skip
"""Threads in which a stranger's password is looked at, by the address that it comes from: it takes its time."""
buckets = Buckets()
strangers = Buckets(whose="Your address")
sign_ins = Buckets(whose="Your address", what="tried to sign in too often")


@contextmanager
def guessing() -> Iterator[None]:
    """A password or token of somebody who is not signed in is looked at meanwhile; counted by the hour and by how many at once.

    Raises:
        RateLimited: the caller's address has tried too often, or does so already.
    """
    sign_ins.take(caller())
    with guesses.taken(caller()):
        yield


def caller() -> str:
    """The address that the request comes from: the last that a proxy on this machine names, else the connection's own."""
    peer = request.remote_addr or ""
    named = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    return named[:100] if named and peer in ("127.0.0.1", "::1") else peer
