"""What an admin looks after, all of it Davit's own: health, hosts, the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import request

from api import ranges, serialize, shapes
from api.routing import Call, Reply, Resource
from foundation import clock
from foundation.errors import InvalidParams
from state import activity, audit_log, health
from state.models import AuditEvent

resource = Resource("davit")

ORDER = ranges.NEWEST_FIRST
_POINT = shapes.thing(name=shapes.TEXT, level=shapes.TEXT, words=shapes.TEXT)
_HEALTH = shapes.plain(
    shapes.thing(
        level=shapes.TEXT, counts=shapes.by_name(shapes.WHOLE),
        groups=shapes.things(shapes.thing(name=shapes.TEXT, points=shapes.things(_POINT))),
    )
)  # fmt: skip
_HOST = shapes.plain(
    shapes.thing(
        name=shapes.TEXT, cores=shapes.WHOLE, load=shapes.things(shapes.NUMBER), dynos=shapes.WHOLE, up_seconds=shapes.NUMBER,
        memory=shapes.thing(total=shapes.WHOLE, available=shapes.WHOLE), disk=shapes.thing(total=shapes.WHOLE, free=shapes.WHOLE),
    )
)  # fmt: skip
_EVENT = shapes.plain(
    shapes.thing(
        id=shapes.ID, created_at=shapes.AT, actor=shapes.maybe(shapes.TEXT), action=shapes.TEXT,
        app=shapes.maybe(shapes.thing(id=shapes.ID, name=shapes.maybe(shapes.TEXT))), details={"type": ["object"]},
        description=shapes.TEXT,
    )
)  # fmt: skip
HOST_ORDER = ranges.Order({"name": lambda row: row.name}, {})


@resource.on("GET", "/davit/health", needs="admin", ours=True, gives=_HEALTH)
def show_health(call: Call) -> Any:
    """Whether each of Davit's processes answers, what waits, the database, disk, stacks, certificates: ok, warn or bad."""
    groups = health.groups(call.session)
    return {
        "level": health.worst(groups),
        "counts": health.counts(call.session),
        "groups": [
            {"name": title, "points": [{"name": one.name, "level": one.level, "words": one.words} for one in points]}
            for title, points in groups
        ],
    }


@resource.on("GET", "/davit/hosts", needs="admin", ours=True, gives=shapes.many(_HOST))
def hosts(call: Call) -> Reply:
    """The machines that run dynos and their load; bytes and seconds."""
    return call.short_listing([health.host(call.session)], HOST_ORDER, _render_host)


def _render_host(row: health.Host) -> dict[str, Any]:
    return {
        "name": row.name, "cores": row.cores, "load": list(row.load), "dynos": row.dynos, "up_seconds": row.up_seconds,
        "memory": {"total": row.memory_total, "available": row.memory_available},
        "disk": {"total": row.disk_total, "free": row.disk_free},
    }  # fmt: skip


@resource.on("GET", "/davit/audit", needs="admin", ours=True, gives=shapes.many(_EVENT))
def audit(call: Call) -> Reply:
    """Who changed what and when, newest first; ?actor= (a part), action= (its beginning), app= (name or id), since=, until=."""
    sent = request.args
    wanted = audit_log.Filter(
        sent.get("actor", "")[:254], sent.get("action", "")[:60], sent.get("app", "")[:36], _moment("since"), _moment("until")
    )
    window = call.window(ORDER)
    return call.listing(audit_log.part(call.session, wanted, window), ORDER, window, _render_event)


def _moment(name: str) -> datetime | None:
    text = request.args.get(name, "")
    if not text:
        return None
    try:
        return clock.read(text)
    except ValueError:
        raise InvalidParams(f"Parameter {name} is no time; write it like 2026-11-28 or 2026-11-28T18:00:00Z.") from None


def _render_event(row: AuditEvent) -> dict[str, Any]:
    return {
        "id": row.id, "created_at": serialize.moment(row.created_at), "actor": row.actor, "action": row.action,
        "app": {"id": row.app_id, "name": row.app_name} if row.app_id else None, "details": row.details,
        "description": activity.told(row),
    }  # fmt: skip
