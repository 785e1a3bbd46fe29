"""Response times as counts in buckets (pure): small, they add up, and give any percentile within a fifth of its value."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEAST = 0.001
_GROWTH = math.sqrt(2)
BUCKETS = 33
"""The first holds what took at most 1 ms, each further one up to 1.41 times the one before, the last everything over 46 s."""


def bucket(seconds: float) -> int:
    """The bucket that a time belongs to."""
    if seconds <= _LEAST:
        return 0
    return min(BUCKETS - 1, math.ceil(math.log(seconds / _LEAST, _GROWTH) - 1e-9))


def bounds(number: int) -> tuple[float, float]:
    """Seconds between which the times of a bucket are (the last one's upper bound is as if it went on)."""
    upper = _LEAST * _GROWTH**number
    return (0.0, upper) if number == 0 else (upper / _GROWTH, upper)


def percentile(counts: Sequence[float], share: float) -> float | None:
    """The time that ``share`` (0 to 1) of all took at the most, in seconds; None when there are none.

    Inside a bucket times are taken to be spread evenly.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank, before = share * total, 0.0
    for number, count in enumerate(counts):
        if count and before + count >= rank:
            lower, upper = bounds(number)
            return lower + (upper - lower) * (rank - before) / count
        before += count
    return bounds(len(counts) - 1)[1]
