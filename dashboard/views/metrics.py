"""How an app does over time, for each process type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Short:
    """What one thing measured is now (``words``) and was in the last hour."""

    name: str
    picture: Markup
    words: str


@pages.on("GET", "/apps/<app>/figures", does="GET /apps/<app>/formation")
def last_hour(visit: Visit) -> Response:
    """The last hour in short; the overview loads it anew every minute."""
    return visit.page("figures.html", figures=in_short(visit))


def in_short(visit: Visit) -> list[Short]:
    """Requests and response times of the app, memory of each process type."""
    rows = [row for row in formation.all_of(visit.session, visit.app) if row.type != "release"]
    measured = {row.type: found for row in rows if (found := metrics.figures(visit.app.id, row.type, SPANS[0][2]))}
    web = measured.get("web")
    lines = _of_web(web) if web else []
    for type, found in measured.items():
        for series in found.memory[:1]:
            words = f"{shown.size(charts.last(series.values) or 0.0)}" + (f" of {shown.size(found.quota)}" if found.quota else "")
            lines.append(_line(f"Memory of all {type} dynos", series, words))
    return lines


def _of_web(web: Figures) -> list[Short]:
    lines = []
    for series in web.requests[:1]:
        words = f"{shown.number(charts.last(series.values) or 0.0)} a second"
        total = sum(value or 0.0 for value in series.values)
        failed = sum(value or 0.0 for line in web.statuses if line.name == "5xx" for value in line.values)
        if total and failed / total >= metrics.WORTH_TELLING:
            words += f", {failed / total:.1%} errors"
        lines.append(_line("Requests", series, words))
    for series in web.response:
        newest = charts.last(series.values)
        if series.name == "p95" and newest is not None:
            lines.append(_line("Response time", series, f"p95 {_milliseconds(newest)}"))
    return lines


def _line(name: str, series: Series, words: str) -> Short:
    return Short(name, charts.spark(series.values, f"{name} in the last hour, now {words}"), words)


def _deploys(visit: Visit, since: datetime) -> list[tuple[datetime, str]]:
    query = select(Release).where(
        Release.app_id == visit.app.id, Release.created_at >= since, Release.kind.in_(("deploy", "rollback", "config")),
        Release.status == "succeeded",
    )  # fmt: skip
    rows = visit.session.scalars(query.order_by(Release.version))
    return [(row.created_at, f"v{row.version}: {row.description}") for row in rows]


def _drawn(found: Figures, marks: list[tuple[datetime, str]]) -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """(title, picture, its legend) of each chart that has figures: each line's class, and its name, newest and highest value."""
    wanted = (
        ("Requests a second", found.requests, shown.number, None),
        ("Response time", found.response, _milliseconds, None),
        ("Responses a second, by status", found.statuses, shown.number, None),
        ("Memory of all dynos together", found.memory, shown.size, found.quota),
        ("CPU cores of all dynos together", found.cpu, shown.number, None),
        ("Restarts", found.restarts, shown.number, None),
    )
    drawn = []
    for title, series, write, limit in wanted:
        if series:
            top = charts.nice_size if write is shown.size else charts.nice
            picture = charts.chart(title, _pairs(series), found.start, found.step, write, marks=marks, limit=limit, top=top)
            legend = [(f"s{place}", _told(line, write)) for place, line in enumerate(series)]
            drawn.append((title, picture, [*legend, *([("quota", f"all dynos' quota {write(limit)}")] if limit else [])]))
    return drawn


def _told(line: Series, write: Callable[[float], str]) -> str:
    known = [value for value in line.values if value is not None]
    return f"{line.name} {write(known[-1])}, at most {write(max(known))}" if known else line.name


def _pairs(series: object) -> list[tuple[str, list[float | None]]]:
    assert isinstance(series, (list, tuple))
    return [(line.name, list(line.values)) for line in series if isinstance(line, Series)]


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
