"""Figures for the pages. Where they come from is a :class:`Source`; until there is one, pages say that there are none yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from markupsafe import Markup

from dashboard import charts


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
        memory: bytes of all its dynos together; ``quota`` is what they may use.
        cpu: cores in use.
        restarts: dynos that were started again, in each step.
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


class Source(Protocol):
    """Where figures come from."""

    def figures(self, app_id: str, type: str, seconds: int) -> Figures | None:
        """Of one process type, over the last ``seconds``; None when there are none."""

    def requests(self, app_ids: Sequence[str]) -> Mapping[str, tuple[Sequence[float | None], float | None]]:
        """For lists: requests per second of late (about twenty values), and the share of errors (5xx) now."""


class _Nothing:
    def figures(self, app_id: str, type: str, seconds: int) -> Figures | None:
        return None

    def requests(self, app_ids: Sequence[str]) -> Mapping[str, tuple[Sequence[float | None], float | None]]:
        return {}


@dataclass
class _Held:
    source: Source = field(default_factory=_Nothing)


held = _Held()


def sparks(app_ids: Sequence[str]) -> dict[str, Markup]:
    """A small chart of requests for each app that has figures."""
    return {id: charts.spark(values, errors) for id, (values, errors) in held.source.requests(app_ids).items()}
