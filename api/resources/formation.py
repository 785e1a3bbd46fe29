"""The formation: quantity, size and isolation of each process type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api import ranges, serialize, shapes
from api.body import Body
from api.fields import Count, Fields, Flag, Items, Object, Reference, Text
from api.routing import Call, Reply, Resource
from state import formation, releases, sizes
from state.models import Formation

resource = Resource("formation", reads="read", writes="write")

_CHANGE = {
    "quantity": Count(), "size": Reference(), "dyno_size": Reference(), "live": Flag(), "isolation": Text(),
}  # fmt: skip
_UPDATE = Fields(**_CHANGE)
_UPDATE_OF_TYPE = Object(fields=Fields(type=Text(needed=True, most=200), **_CHANGE))
ORDER = ranges.Order({"type": lambda row: row.type, "id": lambda row: row.id}, {})
_SIZE_IDS = {serialize.steady_id("dyno-size", size.label): size.name for size in sizes.SIZES.values()}


def _render(call: Call, rows: Sequence[Formation]) -> list[Any]:
    base = releases.current(call.session, call.app.id)
    commands = base.process_types if base else {}
    return [serialize.formation(call.app, row, commands.get(row.type, "")) for row in rows]


def _update(body: Body, type: str) -> dict[str, Any]:
    size = body.reference("dyno_size") or body.reference("size")
    return {
        "type": type,
        "quantity": body.any("quantity"),
        "size": _SIZE_IDS.get(size, size) if size else None,
        "live": body.flag("live") or False,
        "isolation": body.text("isolation"),
    }


@resource.on("GET", "/apps/<app>/formation", needs="view", gives=shapes.many(shapes.FORMATION))
def index(call: Call) -> Reply:
    """The process types, how many dynos of each, at which size."""
    rows = formation.all_of(call.session, call.app)
    rendered = dict(zip((row.id for row in rows), _render(call, rows), strict=True))
    return call.short_listing(rows, ORDER, lambda row: rendered[row.id])


@resource.on("GET", "/apps/<app>/formation/<type>", needs="view", gives=shapes.FORMATION)
def show(call: Call, type: str) -> Any:
    """One process type."""
    return _render(call, [formation.find(call.session, call.app, type)])[0]


@resource.on(
    "PATCH", "/apps/<app>/formation", needs="operate",
    takes=Fields(updates=Items(of=_UPDATE_OF_TYPE, most=200, needed=True)), gives=shapes.many(shapes.FORMATION),
)  # fmt: skip
def update_all(call: Call) -> Any:
    """Change several process types, all or none; a quantity is 2, "2", "+1" or "-1"."""
    updates = [_update(update, update.need("type")) for update in call.body.items("updates") or []]
    formation.scale(call.session, call.account, call.app, updates)
    return _render(call, formation.all_of(call.session, call.app))


@resource.on("PATCH", "/apps/<app>/formation/<type>", needs="operate", takes=_UPDATE, gives=shapes.FORMATION)
def update(call: Call, type: str) -> Any:
    """Change one process type."""
    rows = formation.scale(call.session, call.account, call.app, [_update(call.body, type)])
    return _render(call, rows)[0]
