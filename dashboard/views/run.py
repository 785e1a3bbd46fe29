"""A command, in a terminal in the browser: in a one-off dyno, or as a further process of a dyno that runs.

Without a script it runs in a one-off dyno, detached, and its log is shown.
"""

from __future__ import annotations

import json
import time
from typing import Any

from flask import Response, request

from api import attach
from api.credentials import Identity
from api.fields import NONE
from api.resources import dynos as api_dynos
from api.routing import Call
from api.websocket import Handover, WebSocket
from dashboard import frame
from dashboard.routing import Forged, Pages, Visit, is_from_here, needed_for
from foundation.errors import InvalidParams
from state import formation, sizes

pages = Pages("run")


@pages.on("GET", "/apps/<app>/run", does="POST /apps/<app>/dynos")
def show(visit: Visit) -> Response:
    """Ask for a command."""
    dynos = formation.dynos(visit.session, visit.app)
    return frame.page(
        visit, "Run", "run.html", sizes=sizes.SIZES.values(), default=sizes.DEFAULT,
        running=[row for row in dynos if row.one_off],
        places=[row for row in dynos if row.state == "up"], place=visit.text("inside", 80) or request.args.get("dyno", ""),
    )  # fmt: skip


@pages.on("POST", "/apps/<app>/run", does="POST /apps/<app>/dynos", again=show, writes=False)
def start(visit: Visit) -> Response:
    """Start a command, exactly as the API does; with a terminal when a script asks for one."""
    attached = request.headers.get("Accept") == "application/json"
    wanted: dict[str, Any] = {"command": visit.form.get("command", ""), "size": visit.text("size") or None, "attach": attached}
    if attached:
        wanted["env"] = {"TERM": "xterm-256color", "COLUMNS": visit.text("columns", 5), "LINES": visit.text("lines", 5)}
    call = Call(visit.session, api_dynos.COMMAND.read(wanted), Identity(visit.account, None), visit.app)
    if inside := visit.text("inside", 80):
        if not attached:
            raise InvalidParams(f"A command in {inside} takes a terminal, which takes JavaScript; or use davit ps:exec.")
        return _start_inside(visit, call, inside)
    made = api_dynos.create(call).value
    if not attached:
        return visit.done(f"/apps/{visit.app.name}/logs?dyno={made['name']}", f"{made['name']} is on its way.")
    return _terminal(visit, made["name"], made["id"])


def _start_inside(visit: Visit, call: Call, inside: str) -> Response:
    visit.need(needed_for("POST /apps/<app>/dynos/<dyno>"))
    dyno, attachment, command = api_dynos.begin_inside(call, inside)
    return _terminal(visit, f"{command[:40]} in {dyno.name}", attachment.dyno_id)


def _terminal(visit: Visit, name: str, id: str) -> Response:
    where = f"{request.script_root}/apps/{visit.app.id}/run/{id}/attach"
    return Response(json.dumps({"name": name, "attach": where}), content_type="application/json")


@pages.on("GET", "/apps/<app>/run/<dyno>/attach", does="GET /apps/<app>/dynos/<dyno>/attach")
def attach_to(visit: Visit, dyno: str) -> Response:
    """The terminal's WebSocket; browsers let any site open one, so its Origin is looked at (RFC 6455, 10.2)."""
    if not (origin := request.headers.get("Origin")) or not is_from_here(origin):
        raise Forged("Terminals are opened from this dashboard's own pages only.")
    web = WebSocket(request.environ)
    attachment = attach.waiting.take(dyno, visit.account.id)
    started = time.monotonic()

    def run() -> None:
        attach.bridge(web, attachment)
        attach.log.info("detached", extra={"dyno": dyno, "seconds": int(time.monotonic() - started)})

    return Handover(run)


@pages.on("POST", "/apps/<app>/run/<dyno>/stop", does="POST /apps/<app>/dynos/<dyno>/actions/stop", again=show, writes=False)
def stop(visit: Visit, dyno: str) -> Response:
    """End a one-off dyno."""
    api_dynos.restart(Call(visit.session, NONE.read({}), Identity(visit.account, None), visit.app), dyno)
    return visit.done(f"/apps/{visit.app.name}/run", f"{dyno} is being stopped.")
