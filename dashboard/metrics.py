"""Figures for the pages: :mod:`metrics` keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dashboard import charts
from foundation.settings import settings
from metrics.store import Figures, Store


def figures(app_id: str, type: str, seconds: int) -> Figures | None:
    """Of one process type, over the last ``seconds``; None when there are none."""
    return Store(settings().home).figures(app_id, type, seconds)


def sparks(app_ids: Sequence[str]) -> dict[str, Markup]:
    """A small chart of requests for each app that has figures."""
    return {id: charts.spark(values, errors) for id, (values, errors) in Store(settings().home).requests(app_ids).items()}
