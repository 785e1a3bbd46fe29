"""Places that are counted: so many may be taken at once in all, and so many by one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foundation.errors import DavitError


class Places:
    """How many are taken, and by whom.

    Args:
        most: in all.
        each: by one.
        full, enough: the refusal when all are taken, and when one has as many as it may.
    """

    def __init__(
        self, most: Callable[[], int], each: Callable[[], int],
        full: Callable[[int], DavitError], enough: Callable[[int], DavitError],
    ) -> None:  # fmt: skip
        self._most, self._each, self._full, self._enough = most, each, full, enough
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, who: str) -> Callable[[], None]:
        """Count one more; returns what gives it back (any number of times).

        Raises:
            DavitError: there are too many already.
        """
        with self._lock:
            self._demand(who)
            self._taken[who] += 1
        given_back = threading.Event()

        def give_back() -> None:
            with self._lock:
                if not given_back.is_set():
                    given_back.set()
                    self._taken[who] -= 1
                    self._taken += Counter()  # forgets who has none

        return give_back

    @contextmanager
    def taken(self, who: str) -> Iterator[None]:
        """One more is counted meanwhile.

        Raises:
            DavitError: there are too many already.
        """
        give_back = self.take(who)
        try:
            yield
        finally:
            give_back()

    def demand(self, who: str) -> None:
        """Refuse as :meth:`take` would now.

        Raises:
            DavitError: there are too many already.
        """
        with self._lock:
            self._demand(who)

    def _demand(self, who: str) -> None:
        if self._taken[who] >= self._each():
            raise self._enough(self._each())
        if self._taken.total() >= self._most():
            raise self._full(self._most())
