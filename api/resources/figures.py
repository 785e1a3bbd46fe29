"""How a process type does over time: requests, response times, memory, CPU, restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import request

from api import shapes
from api.routing import Call, Resource
from foundation.errors import InvalidParams
from foundation.settings import settings
from metrics.store import LONGEST, Figures, Series, Store
from state import formation

resource = Resource("figures", reads="read", writes="write")

_LINES = shapes.by_name(shapes.things(shapes.maybe(shapes.NUMBER)))
_SPAN = {"type": shapes.TEXT, "start_time": shapes.AT, "step": shapes.NUMBER, "quota": shapes.maybe(shapes.NUMBER)}
_MEASURED = ("requests_per_second", "responses_per_second", "response_seconds", "memory_bytes", "cpu_cores", "restarts")
_NOTHING = {"type": shapes.TEXT, "start_time": shapes.NULL, "step": shapes.NULL, "quota": shapes.NULL}
_FIGURES = shapes.plain({"anyOf": [shapes.thing({**_SPAN, **dict.fromkeys(_MEASURED, _LINES)}), shapes.thing(_NOTHING)]})


@resource.on("GET", "/apps/<app>/formation/<type>/metrics", needs="view", ours=True, gives=_FIGURES)
def show(call: Call, type: str) -> Any:
    """What was measured of a process type over the last ``?seconds=`` (3600 by default, a week at the most)."""
    row = formation.find(call.session, call.app, type)
    figures = Store(settings().home).figures(call.app.id, row.type, _seconds())
    return {"type": row.type, **(_render(figures) if figures else {"start_time": None, "step": None, "quota": None})}


def _seconds() -> int:
    text = request.args.get("seconds", "3600")
    if not (text.isascii() and text.isdigit() and len(text) < 8 and 60 <= int(text) <= LONGEST):
        raise InvalidParams(f"The parameter seconds must be a whole number from 60 to {LONGEST}.")
    return int(text)


def _render(figures: Figures) -> dict[str, Any]:
    return {
        "start_time": figures.start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "step": figures.step,
        "quota": figures.quota,
        "requests_per_second": _lines(figures.requests),
        "responses_per_second": _lines(figures.statuses),
        "response_seconds": _lines(figures.response),
        "memory_bytes": _lines(figures.memory),
        "cpu_cores": _lines(figures.cpu),
        "restarts": _lines(figures.restarts),
    }


def _lines(series: Sequence[Series]) -> dict[str, list[float | None]]:
    return {line.name: list(line.values) for line in series}
