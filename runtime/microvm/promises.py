"""What of the host's memory or disk is promised to machines on their way. A look at what is free does not show it yet, and of two
that looked at the same time each would be given the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable


class Promises:
    """Of one thing of which the host has so many bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[Hashable, tuple[int, Callable[[], int]]] = {}

    def give(
        self, who: Hashable, most: int, taken: Callable[[], int], refuse: Callable[[int], None] | None = None
    ) -> None:
        """Promise ``who`` what it has not taken yet, until :meth:`take_back`; blocking.

        Args:
            most: bytes that it will have taken in the end.
            taken: tells how many it has by now: those are not free any more, and are not counted a second time.
            refuse: called with what is promised to others, while nobody else is promised anything; raises when there is no room.
        """
        with self._lock:
            if refuse is not None:
                refuse(self.outstanding())
            self._of[who] = most, taken

    def outstanding(self) -> int:
        """Bytes that are promised and not taken yet."""
        return sum(max(0, most - taken()) for most, taken in list(self._of.values()))

    def take_back(self, who: Hashable) -> None:
        """It has taken what it needs, or does not need it; no error when it was promised nothing."""
        self._of.pop(who, None)
