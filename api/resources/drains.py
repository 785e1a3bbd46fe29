"""Log drains."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes, streams
from api.fields import Fields, Text
from api.routing import Call, Reply, Resource
from foundation import outbound
from state import domains, drains
from state.db import transaction
from state.models import LogDrain

resource = Resource("log-drains")

ORDER = ranges.BY_AGE


def _render(call: Call, row: LogDrain) -> Any:
    return serialize.log_drain(call.app, row, drains.url_of(row))


@resource.on("GET", "/apps/<app>/log-drains", needs="operate", gives=shapes.many(shapes.LOG_DRAIN))
def index(call: Call) -> Reply:
    """The app's log drains; their URLs may hold passwords."""
    return call.short_listing(drains.all_of(call.session, call.app), ORDER, lambda row: _render(call, row))


@resource.on(
    "POST", "/apps/<app>/log-drains", needs="operate", writes=False,
    takes=Fields(url=Text(needed=True, most=2000)), gives=shapes.LOG_DRAIN,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Send the app's log to an https, syslog or syslog+tls URL."""
    url = call.body.need("url")
    place = drains.parse(url)
    with streams.looking_up(call.session, call.account.id):
        outbound.check(domains.marked(place))
    with transaction() as session:
        now = call.within(session)
        row = drains.add(session, now.account, now.app, url)
        return Reply(_render(call, row), 201)


@resource.on("GET", "/apps/<app>/log-drains/<path:drain>", needs="operate", gives=shapes.LOG_DRAIN)
def show(call: Call, drain: str) -> Any:
    """One log drain, by id, token or URL."""
    return _render(call, drains.find(call.session, call.app, drain))


@resource.on("DELETE", "/apps/<app>/log-drains/<path:drain>", needs="operate", gives=shapes.LOG_DRAIN)
def destroy(call: Call, drain: str) -> Any:
    """Send nothing there any more."""
    return _render(call, drains.remove(call.session, call.account, call.app, drain))
