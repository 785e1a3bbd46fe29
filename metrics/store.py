"""Reads figures: as series for charts, as numbers for the API."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from metrics import dynos, histogram, requests, ring

LONGEST = 7 * 86400
"""Seconds that figures are kept."""
_POINTS = 360
"""Values that a series has at the most; longer spans are condensed."""
_SPARK_MINUTES = 20
_SETTLES = 60
"""Seconds from which on a step that has not ended says something: router and runtime write what they counted every few
seconds, so that a younger one would show next to nothing, or all of it in one second."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: ``p95``, ``2xx``, ``memory``.
        values: one a step, oldest first; None where nothing was measured.
    """

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Figures:
    """What was measured of one process type of an app.

    Attributes:
        start: the moment of the first value.
        step: seconds from one value to the next.
        requests: per second, as one series (web only; empty otherwise).
        response: seconds: p50, p95, p99.
        statuses: per second: 2xx, 3xx, 4xx, 5xx.
        memory: bytes of all its dynos together: the mean and the most of each step.
        cpu: cores in use.
        restarts: dynos that ended by themselves, in each step.
        quota: bytes that its dynos may use together, as last measured.
    """

    start: datetime
    step: float
    requests: Sequence[Series] = ()
    response: Sequence[Series] = ()
    statuses: Sequence[Series] = ()
    memory: Sequence[Series] = ()
    cpu: Sequence[Series] = ()
    restarts: Sequence[Series] = ()
    quota: float | None = None


_Rows = list[tuple[int, ring.Numbers | None]]


class Store:
    """The figures under a DAVIT_HOME."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def figures(self, app_id: str, type: str, seconds: int, now: float | None = None) -> Figures | None:
        """Of one process type, over the last ``seconds`` (a week at the most); None when nothing was measured."""
        until = time.time() if now is None else now
        since = until - min(seconds, LONGEST)
        step, of_dynos = ring.read(dynos.path(self._home, app_id, type), dynos.SHAPE, since, until)
        _, of_requests = ring.read(requests.path(self._home, app_id), requests.SHAPE, since, until) if type == "web" else (0, [])
        if not _measured(of_dynos, of_requests):
            return None
        of_dynos, of_requests = _settled(of_dynos, until), _settled(of_requests, until)
        start = datetime.fromtimestamp(of_dynos[0][0], timezone.utc)
        factor = -(-len(of_dynos) // _POINTS)
        of_dynos, of_requests = _condense(of_dynos, factor, dynos.merge), _condense(of_requests, factor, requests.merge)
        step *= factor
        parts = {**_of_requests(of_requests, step, until), **_of_dynos(of_dynos, step, until)}
        quota = next((row[3] / row[0] for _, row in reversed(of_dynos) if row), None)
        return Figures(start, float(step), quota=quota, **parts)

    def requests(
        self, app_ids: Sequence[str], now: float | None = None
    ) -> Mapping[str, tuple[Sequence[float | None], float | None]]:
        """For lists: requests per second in each of the last minutes, and the share of answers in them that were errors of
        the app's (5xx); apps without requests are left out."""
        until = time.time() if now is None else now
        found = {}
        for app_id in app_ids:
            step, rows = ring.read(requests.path(self._home, app_id), requests.SHAPE, until - _SPARK_MINUTES * 60, until)
            rows = _settled(rows, until)
            answered = [_answers(row) for _, row in rows]
            total = sum(answered)
            if total:
                failed = sum(row[3] for _, row in rows if row)
                rates = [count / length for count, length in zip(answered, _lengths(rows, step, until), strict=True)]
                found[app_id] = (rates, failed / total)
        return found


def _measured(*kinds: _Rows) -> bool:
    return any(numbers for rows in kinds for _, numbers in rows)


def _settled(rows: _Rows, until: float) -> _Rows:
    """Without the step that has only begun, unless there is nothing before it."""
    return rows[:-1] if _measured(rows[:-1]) and until - rows[-1][0] < _SETTLES else rows


def _condense(rows: _Rows, factor: int, merge: ring.Merge) -> _Rows:
    """``factor`` records each made one."""
    if factor <= 1:
        return rows
    condensed: _Rows = []
    for first in range(0, len(rows), factor):
        whole: ring.Numbers | None = None
        for _, row in rows[first : first + factor]:
            if row is not None:
                whole = row if whole is None else tuple(merge(whole, row))
        condensed.append((rows[first][0], whole))
    return condensed


def _answers(row: ring.Numbers | None) -> float:
    return sum(row[: len(requests.CLASSES)]) if row else 0.0


def _lengths(rows: _Rows, step: int, until: float) -> Iterable[float]:
    """Seconds that each step lasted: the last one has not ended."""
    return [max(1.0, min(step, until - start)) for start, _ in rows]


def _of_requests(rows: _Rows, step: int, until: float) -> dict[str, Sequence[Series]]:
    """A step without a record is one without requests; times it has none."""
    if not any(row for _, row in rows):
        return {}
    lengths = list(_lengths(rows, step, until))
    classes = len(requests.CLASSES)
    return {
        "requests": [Series("requests", [_answers(row) / length for (_, row), length in zip(rows, lengths, strict=True)])],
        "statuses": [
            Series(name, [(row[number] if row else 0.0) / length for (_, row), length in zip(rows, lengths, strict=True)])
            for number, name in enumerate(requests.CLASSES)
        ],
        "response": [
            Series(name, [histogram.percentile(row[classes:], share) if row else None for _, row in rows])
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        ],
    }


def _of_dynos(rows: _Rows, step: int, until: float) -> dict[str, Sequence[Series]]:
    if not any(row for _, row in rows):
        return {}
    lengths = list(_lengths(rows, step, until))
    return {
        "memory": [
            Series("mean", [row[2] / row[0] if row else None for _, row in rows]),
            Series("most", [row[4] if row else None for _, row in rows]),
        ],
        "cpu": [Series("cores", [row[5] / length if row else None for (_, row), length in zip(rows, lengths, strict=True)])],
        "restarts": [Series("restarts", [row[6] if row else None for _, row in rows])],
    }
