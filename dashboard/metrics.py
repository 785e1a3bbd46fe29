"""Figures for the pages: :mod:`metrics` keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dashboard import charts, shown
from foundation.settings import settings
from metrics.store import Figures, Store

WORTH_TELLING = 0.0005
"""The share of errors from which on it is shown."""


def figures(app_id: str, type: str, seconds: int) -> Figures | None:
    """Of one process type, over the last ``seconds``; None when there are none."""
    return Store(settings().home).figures(app_id, type, seconds)


def sparks(app_ids: Sequence[str]) -> dict[str, Markup]:
    """A small chart of requests for each app that has figures, with the share of errors where there were any."""
    return {id: _spark(values, errors or 0.0) for id, (values, errors) in Store(settings().home).requests(app_ids).items()}


def _spark(values: Sequence[float | None], errors: float) -> Markup:
    share = f"{errors:.1%} errors" if errors >= WORTH_TELLING else ""
    rate = shown.number(charts.last(values) or 0.0)
    words = f"{rate} requests a second" + (f", {share}" if share else "")
    told = f'<span class="errors">{share}</span>' if share else ""
    spark = charts.spark(values, words)
    return Markup(f'<span class="sparks">{spark}<span class="rate" aria-hidden="true">{rate}/s</span>{told}</span>')  # noqa: S704 - numbers of ours
