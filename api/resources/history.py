"""What happened to an app of late: its activity, and the crashes of its dynos."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from api import ranges, serialize, shapes
from api.routing import Call, Reply, Resource
from state import activity, crashes
from state.models import Crash

resource = Resource("history", reads="read", writes="write")

ORDER = ranges.Order(
    {"created_at": lambda item: (item.at, item.id)}, {"created_at": ranges.Tied(datetime)}, usual_descending=True
)
CRASHES = ranges.NEWEST_FIRST
MOST = 200
_ITEM = shapes.plain(
    shapes.thing(
        created_at=shapes.AT, kind=shapes.TEXT, description=shapes.TEXT, actor=shapes.TEXT, status=shapes.maybe(shapes.TEXT),
        reason=shapes.maybe(shapes.TEXT), build=shapes.maybe(shapes.thing(id=shapes.ID)),
        release=shapes.maybe(shapes.thing(version=shapes.WHOLE)), dyno=shapes.maybe(shapes.thing(name=shapes.TEXT)),
        times=shapes.WHOLE,
    )
)  # fmt: skip
_CRASH = shapes.plain(
    shapes.thing(
        id=shapes.ID, created_at=shapes.AT, dyno=shapes.thing(name=shapes.TEXT), release=shapes.thing(version=shapes.WHOLE),
        exit_status=shapes.maybe(shapes.WHOLE), description=shapes.TEXT, reason=shapes.maybe(shapes.TEXT),
    )
)  # fmt: skip


@resource.on("GET", "/apps/<app>/activity", needs="view", ours=True, scope="read-protected", gives=shapes.many(_ITEM))
def index(call: Call) -> Reply:
    """What people did and what became of it (builds, releases, changes, crashes), newest first; the newest 200."""
    return call.short_listing(activity.of(call.session, call.app, MOST), ORDER, _render_item, as_it_is=True)


def _render_item(item: activity.Item) -> dict[str, Any]:
    return {
        "created_at": serialize.moment(item.at),
        "kind": item.kind,
        "description": item.what,
        "actor": item.who,
        "status": item.outcome,
        "reason": item.why,
        "build": {"id": item.build} if item.build else None,
        "release": {"version": item.version} if item.version else None,
        "dyno": {"name": item.dyno} if item.dyno else None,
        "times": item.times,
    }


@resource.on("GET", "/apps/<app>/crashes", needs="view", ours=True, gives=shapes.many(_CRASH))
def index_of_crashes(call: Call) -> Reply:
    """The app's dynos that crashed, newest first, with how they ended; the newest 100."""
    return call.short_listing(crashes.newest(call.session, call.app.id), CRASHES, _render_crash)


def _render_crash(row: Crash) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": serialize.moment(row.created_at),
        "dyno": {"name": row.dyno},
        "release": {"version": row.release_version},
        "exit_status": row.exit_status,
        "description": activity.crashed(row),
        "reason": row.why,
    }
