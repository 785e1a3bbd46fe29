"""How an app does over time, for each process type."""

from __future__ import annotations

from datetime import datetime, timedelta

from flask import Response, request
from markupsafe import Markup
from sqlalchemy import select

from dashboard import charts, frame, metrics, shown
from dashboard.routing import Pages, Visit
from foundation.clock import now
from metrics.store import Figures, Series
from state import formation
from state.models import Release

pages = Pages("metrics")

SPANS = (
    ("1h", "1 hour", 3600), ("6h", "6 hours", 6 * 3600), ("24h", "24 hours", 86400), ("3d", "3 days", 3 * 86400),
    ("7d", "7 days", 7 * 86400),
)  # fmt: skip


@pages.on("GET", "/apps/<app>/metrics", does="GET /apps/<app>/formation")
def show(visit: Visit) -> Response:
    """Charts; deploys are marked on the time axis."""
    types = [row.type for row in formation.all_of(visit.session, visit.app) if row.type != "release"]
    type = request.args.get("type", "")
    chosen = type if type in types else ("web" if "web" in types else (types[0] if types else ""))
    span, words, seconds = next((s for s in SPANS if s[0] == request.args.get("span")), SPANS[0])
    found = metrics.figures(visit.app.id, chosen, seconds) if chosen else None
    marks = _deploys(visit, now() - timedelta(seconds=seconds))
    return frame.page(
        visit, "Metrics", "metrics.html", types=types, type=chosen, span=span, span_words=words, spans=SPANS, found=found,
        drawn=_drawn(found, marks) if found else [], marks=marks,
    )  # fmt: skip


def _deploys(visit: Visit, since: datetime) -> list[tuple[datetime, str]]:
    query = select(Release).where(
        Release.app_id == visit.app.id, Release.created_at >= since, Release.kind.in_(("deploy", "rollback", "config"))
    )
    rows = visit.session.scalars(query.order_by(Release.version))
    return [(row.created_at, f"v{row.version}: {row.description}") for row in rows]


def _drawn(found: Figures, marks: list[tuple[datetime, str]]) -> list[tuple[str, Markup, list[str]]]:
    """(title, picture, names of the lines) of each chart that has figures."""
    wanted = (
        ("Requests a second", found.requests, _number, None),
        ("Response time", found.response, _milliseconds, None),
        ("Responses a second, by status", found.statuses, _number, None),
        ("Memory", found.memory, shown.size, found.quota),
        ("CPU cores", found.cpu, _number, None),
        ("Restarts", found.restarts, _number, None),
    )
    drawn = []
    for title, series, write, limit in wanted:
        if series:
            top = charts.nice_size if write is shown.size else charts.nice
            picture = charts.chart(title, _pairs(series), found.start, found.step, write, marks=marks, limit=limit, top=top)
            drawn.append((title, picture, [line.name for line in series]))
    return drawn


def _pairs(series: object) -> list[tuple[str, list[float | None]]]:
    assert isinstance(series, (list, tuple))
    return [(line.name, list(line.values)) for line in series if isinstance(line, Series)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
