"""The stream that keeps an open page current."""

from __future__ import annotations

from flask import Response, request

from api.websocket import Handover
from dashboard import watching
from dashboard.live import Page, Watched, live, taken
from dashboard.routing import Pages, Visit
from foundation.errors import NotFound
from state import apps
from state.models import Build

pages = Pages("events")


@pages.on("GET", "/live", needs="account")
def events(visit: Visit) -> Response:
    """What changes in ``app`` or (``apps``) any that the visitor sees; a build's output (``build``), an app's log (``log``)."""
    assert visit.signed is not None
    asked = request.args
    seen = watching.parse(request.headers.get("Last-Event-ID", "") or asked.get("cursor", ""))
    watched = Watched(visit.account.id, visit.signed.secret, every="apps" in asked, seen=seen)
    if asked.get("app"):
        watched.app = apps.find(visit.session, visit.account, asked["app"]).id
    if asked.get("log"):
        watched.log = apps.find(visit.session, visit.account, asked["log"]).id
    if asked.get("build"):
        row = visit.session.get(Build, asked["build"])
        if row is None or row.app_id != watched.app:
            raise NotFound("Couldn't find that build.")
        watched.build = row.id
    live.room_for(visit.account.id)
    environ = request.environ
    return Handover(lambda: live.add(Page(taken(environ), watched)))
