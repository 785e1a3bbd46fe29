"""What the router counts: answers by status class and their times, of each app; written every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from metrics import histogram, ring

log = logging.getLogger("router")

CLASSES = ("2xx", "3xx", "4xx", "5xx")
SHAPE = ring.Shape("requests", f"{len(CLASSES) + histogram.BUCKETS}I")
"""Answers by class, then answers by time."""
_MOST = 2**32 - 1
WRITE_SECONDS = 10


def path(home: Path, app_id: str) -> Path:
    """Where an app's are."""
    return home / "metrics" / app_id / "requests"


def merge(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Two records of one step."""
    return [min(a + b, _MOST) for a, b in zip(one, other, strict=True)]


class Requests:
    """Counts in memory, writes now and then.

    Args:
        home: DAVIT_HOME. Only apps whose directory the runtime has made are written.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._counts: dict[str, list[int]] = {}

    def count(self, app_id: str, status: int, seconds: float) -> None:
        """One answer. A switched protocol (101) is a connection, not an answer: it counts nowhere."""
        kind = status // 100 - 2
        if not 0 <= kind < len(CLASSES):
            return
        counts = self._counts.get(app_id)
        if counts is None:
            counts = self._counts[app_id] = [0] * (len(CLASSES) + histogram.BUCKETS)
        counts[kind] += 1
        counts[len(CLASSES) + histogram.bucket(seconds)] += 1

    def write(self) -> None:
        """Put what was counted into the apps' files; blocking. An app that is gone is forgotten."""
        counted, self._counts = self._counts, {}
        now = time.time()
        for app_id, numbers in counted.items():
            try:
                ring.add(path(self._home, app_id), SHAPE, now, numbers, merge)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("figures could not be written", extra={"app_id": app_id, "reason": error.strerror})
