"""One-off dynos: a command, in a terminal in the browser; without a script it runs detached, and its log is shown."""

from __future__ import annotations

import json
import time
from typing import Any

from flask import Response, request

from api import attach
from api.body import Body
from api.credentials import Identity
from api.resources import dynos as api_dynos
from api.routing import Call
from api.websocket import Handover, WebSocket
from dashboard import frame
from dashboard.routing import Forged, Pages, Visit
from state import formation, sizes

pages = Pages("run")


@pages.on("GET", "/apps/<app>/run", does="POST /apps/<app>/dynos")
def show(visit: Visit) -> Response:
    """Ask for a command."""
    running = [row for row in formation.dynos(visit.session, visit.app) if row.one_off]
    return frame.page(visit, "Run", "run.html", sizes=sizes.SIZES.values(), default=sizes.DEFAULT, running=running)


@pages.on("POST", "/apps/<app>/run", does="POST /apps/<app>/dynos", again=show, writes=False)
def start(visit: Visit) -> Response:
    """Start a one-off dyno, exactly as the API does; with a terminal when a script asks for one."""
    attached = request.headers.get("Accept") == "application/json"
    wanted: dict[str, Any] = {"command": visit.form.get("command", ""), "size": visit.text("size") or None, "attach": attached}
    if attached:
        wanted["env"] = {"TERM": "xterm-256color", "COLUMNS": visit.text("columns", 5), "LINES": visit.text("lines", 5)}
    call = Call(visit.session, Body(wanted), Identity(visit.account, None), visit.app)
    made = api_dynos.create(call).value
    if not attached:
        return visit.done(f"/apps/{visit.app.name}/logs?dyno={made['name']}", f"{made['name']} is on its way.")
    where = f"{request.script_root}/apps/{visit.app.id}/run/{made['id']}/attach"
    return Response(json.dumps({"name": made["name"], "attach": where}), content_type="application/json")


@pages.on("GET", "/apps/<app>/run/<dyno>/attach", does="GET /apps/<app>/dynos/<dyno>/attach")
def attach_to(visit: Visit, dyno: str) -> Response:
    """The terminal's WebSocket; browsers let any site open one, so its Origin is looked at (RFC 6455, 10.2)."""
    if request.headers.get("Origin") != request.host_url.rstrip("/"):
        raise Forged("Terminals are opened from this dashboard's own pages only.")
    web = WebSocket(request.environ)
    attachment = attach.waiting.take(dyno, visit.account.id)
    started = time.monotonic()

    def run() -> None:
        attach.bridge(web, attachment)
        attach.log.info("detached", extra={"dyno": dyno, "seconds": int(time.monotonic() - started)})

    return Handover(run)


@pages.on("POST", "/apps/<app>/run/<dyno>/stop", does="POST /apps/<app>/dynos/<dyno>/actions/stop", again=show)
def stop(visit: Visit, dyno: str) -> Response:
    """End a one-off dyno."""
    api_dynos.restart(Call(visit.session, Body({}), Identity(visit.account, None), visit.app), dyno)
    return visit.done(f"/apps/{visit.app.name}/run", f"{dyno} is being stopped.")
