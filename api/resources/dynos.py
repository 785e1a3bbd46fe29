"""Dynos: what runs, restarts, one-off dynos."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from flask import request

from api import attach, dyno_ports, links, ranges, rendezvous, serialize, shapes, streams
from api.fields import Fields, Flag, Reference, Text, Texts, Whole
from api.routing import Call, Reply, Resource
from api.websocket import Handover, WebSocket
from foundation import clock, wire
from foundation.errors import BadRequest, InvalidParams, NotFound
from foundation.settings import settings
from state import apps, audit, formation, isolations, sizes
from state.db import transaction
from state.models import Dyno

resource = Resource("dynos")

ORDER = ranges.Order({"name": lambda row: row.name, "id": lambda row: row.id}, {})
USAGE_ORDER = ranges.Order({"name": lambda row: row["name"]}, {})
LONGEST_SECONDS = 24 * 3600
MOVE_SECONDS = 600
"""More than a dyno takes to move: its twin starts, its memory goes, its guest answers again (each has a bound of its own)."""
_VARIABLE = re.compile(r"\w{1,255}", re.ASCII)
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_ENVIRONMENT_BYTES = 64 * 1024
_WRITTEN_BYTES = wire.PACKET - 10_000  # what else is told of a command takes less
COMMAND = Fields(
    command=Text(needed=True), type=Text(), env=Texts(), size=Reference(), isolation=Text(), attach=Flag(), force_no_tty=Flag(),
    time_to_live=Whole(least=1, most=LONGEST_SECONDS),
)  # fmt: skip
_USAGE = shapes.plain(shapes.thing(
    name=shapes.TEXT, memory=shapes.WHOLE, disk=shapes.WHOLE, cpu=shapes.NUMBER, processes=shapes.WHOLE,
    uptime=shapes.maybe(shapes.NUMBER),
))  # fmt: skip
_UNDER_WAY = Reply({}, 202)


def _dyno(call: Call, identity: str) -> Dyno:
    for row in formation.dynos(call.session, call.app):
        if identity in (row.name, row.id):
            return row
    raise NotFound(f"Couldn't find that process ({identity}).")


@resource.on("GET", "/apps/<app>/dynos", needs="view", scope="read", gives=shapes.many(shapes.DYNO))
def index(call: Call) -> Reply:
    """The app's dynos, by type and number, as people count."""
    rows = formation.dynos(call.session, call.app)
    return call.short_listing(rows, ORDER, lambda row: serialize.dyno(call.app, row), as_it_is=True)


@resource.on("GET", "/apps/<app>/dyno-usage", needs="view", scope="read", writes=False, ours=True, gives=shapes.many(_USAGE))
def usage(call: Call) -> Reply:
    """What each running dyno uses: bytes of memory and disk, CPU seconds, processes; its own kernel's uptime where that tells."""
    app_id = call.app.id
    call.session.rollback()  # the runtime may take its time, and nothing of the database is held meanwhile
    told = wire.call(settings().run / "runtime.sock", "stats", {"app_id": app_id}, timeout=10).result["dynos"]
    rows = [
        {"name": name, **{key: stats[key] for key in ("memory", "disk", "cpu", "uptime")}, "processes": stats["pids"]}
        for name, stats in sorted(told.items(), key=lambda pair: (pair[0].rpartition(".")[0], int(pair[0].rpartition(".")[2])))
    ]
    return call.short_listing(rows, USAGE_ORDER, lambda row: row, as_it_is=True)


@resource.on("GET", "/apps/<app>/dynos/<dyno>", needs="view", scope="read", gives=shapes.DYNO)
def show(call: Call, dyno: str) -> Any:
    """One dyno, by name or id."""
    return serialize.dyno(call.app, _dyno(call, dyno))


@resource.on("DELETE", "/apps/<app>/dynos", needs="operate", scope="write", gives=shapes.EMPTY)
def restart_all(call: Call) -> Reply:
    """Restart all dynos of the formation."""
    formation.restart(call.session, call.account, call.app)
    return _UNDER_WAY


@resource.on("DELETE", "/apps/<app>/formations/<type>", needs="operate", scope="write", gives=shapes.EMPTY)
def restart_type(call: Call, type: str) -> Reply:
    """Restart the dynos of one process type."""
    formation.restart(call.session, call.account, call.app, formation.find(call.session, call.app, type).type)
    return _UNDER_WAY


@resource.on("POST", "/apps/<app>/formations/<type>/actions/stop", needs="operate", scope="write", gives=shapes.EMPTY)
def stop_type(call: Call, type: str) -> Reply:
    """Stop the dynos of one process type; the formation starts new ones in their place."""
    return restart_type(call, type)  # type: ignore[no-any-return]


@resource.on("DELETE", "/apps/<app>/dynos/<dyno>", needs="operate", scope="write", writes=False, gives=shapes.EMPTY)
def restart(call: Call, dyno: str) -> Reply:
    """Restart one dyno; a one-off dyno ends."""
    row = _dyno(call, dyno)
    if row.one_off:
        _end(call, row)  # the runtime may take its time, and nobody may wait for the database meanwhile
        return _UNDER_WAY
    with transaction() as session:
        now = call.within(session)
        formation.restart(session, now.account, now.app, row.name)
    return _UNDER_WAY


@resource.on("POST", "/apps/<app>/dynos/<dyno>/actions/stop", needs="operate", scope="write", writes=False, gives=shapes.EMPTY)
def stop(call: Call, dyno: str) -> Reply:
    """Stop one dyno; the formation starts a new one in its place, a one-off dyno ends."""
    return restart(call, dyno)  # type: ignore[no-any-return]


@resource.on(
    "POST", "/apps/<app>/dynos/<dyno>/actions/migrate", needs="operate", scope="write", writes=False, ours=True,
    gives=shapes.plain(shapes.thing(pause=shapes.NUMBER, held=shapes.NUMBER)),
)  # fmt: skip
def migrate(call: Call, dyno: str) -> Any:
    """Move a running microVM to another process: ``pause`` and ``held`` are the seconds for which it stood still, and for which
    the router held requests from it."""
    row = _dyno(call, dyno)
    params = {"app_id": call.app.id, "name": row.name}
    with transaction() as session:
        now = call.within(session)
        audit.record(session, now.account, "ps:migrate", now.app, dyno=row.name)
    return wire.call(settings().run / "runtime.sock", "migrate", params, timeout=MOVE_SECONDS).result


def _end(call: Call, row: Dyno) -> None:
    wire.call(settings().run / "runtime.sock", "oneoff.stop", {"dyno_id": row.id, "by": call.account.id}, timeout=10)


@resource.on("POST", "/apps/<app>/dynos", needs="operate", writes=False, takes=COMMAND, gives=shapes.DYNO)
def create(call: Call) -> Reply:
    """Run a command in a one-off dyno, detached or attached (GET …/dynos/ID/attach)."""
    params = _parameters(call)
    attached = call.body.flag("attach") or False
    if not attached:
        reply = wire.call(settings().run / "runtime.sock", "oneoff.start", params, timeout=90)
        return Reply(serialize.dyno(call.app, _started(call, reply.result, params)), 201)
    size = None if call.body.flag("force_no_tty") else _terminal_size(params["env"])
    attachment = attach.start(call.account.id, params, size, _may_go_on(call))
    attach.waiting.add(attachment)
    row = _started(call, attachment.started, params)
    return Reply(serialize.dyno(call.app, row, attach_url=_attach_url(call, attachment)), 201)


@resource.on("POST", "/apps/<app>/dynos/<dyno>", needs="operate", writes=False, takes=COMMAND, gives=shapes.DYNO)
def create_inside(call: Call, dyno: str) -> Reply:
    """Run a further command in a dyno that runs, attached to it (Heroku's run:inside)."""
    row, attachment, command = begin_inside(call, dyno)
    shown = {**serialize.dyno(call.app, row), "attach_url": _attach_url(call, attachment), "command": command}
    return Reply(shown, 201)


def begin_inside(call: Call, dyno: str) -> tuple[Dyno, attach.Attachment, str]:
    """Start a command in a dyno that runs; it waits for its client. Returns the dyno, the attachment and the command."""
    row = _dyno(call, dyno)
    params = {**_parameters(call), "inside": row.id}
    size = None if call.body.flag("force_no_tty") else _terminal_size(params["env"])
    attachment = attach.start(call.account.id, params, size, _may_go_on(call), call="oneoff.inside")
    attach.waiting.add(attachment)
    return row, attachment, params["command"]


def _may_go_on(call: Call) -> Callable[[], bool]:
    """Whether who calls may still run commands in the app, with the token that they came with."""
    identity, app_id = call.identity, call.app.id
    assert identity is not None
    return streams.still(lambda session: apps.find(session, identity.within(session).account, app_id, "operate"))


def _parameters(call: Call) -> dict[str, Any]:
    """What ``oneoff.start`` is given."""
    body = call.body
    command = body.need("command")
    if not command.strip():
        raise InvalidParams("Field command is empty.")
    type = body.text("type") or "run"
    if not _TYPE.fullmatch(type):
        raise InvalidParams("Field type must be a process type: letters, digits, dashes and underscores, starting with a letter.")
    env = body.texts("env")
    if wrong := [name for name in env if not _VARIABLE.fullmatch(name)]:
        raise InvalidParams(f"Field env: {wrong[0]!r} is not the name of an environment variable.")
    if sum(len(name.encode()) + len(value.encode()) for name, value in env.items()) > _ENVIRONMENT_BYTES:
        raise InvalidParams(f"Field env may have at most {_ENVIRONMENT_BYTES // 1024} KB.")
    if len(wire.encoded([command, env])) > _WRITTEN_BYTES:
        most = f"at most {_WRITTEN_BYTES // 1000} KB together"
        raise InvalidParams(f"Fields command and env may have {most}, written as JSON: a control character takes six bytes.")
    size = body.reference("size")
    return {
        "app_id": call.app.id,
        "by": call.account.id,
        "command": command,
        "type": type,
        "size": sizes.find(size).name if size else None,
        "isolation": isolations.find(body.text("isolation") or isolations.DEFAULT),
        "env": env,
        "time_to_live": body.whole("time_to_live") or LONGEST_SECONDS,
    }


def _terminal_size(env: dict[str, str]) -> tuple[int, int]:
    def number(name: str, usual: int) -> int:
        text = env.get(name, "")
        return max(1, min(int(text), 10_000)) if text.isascii() and text.isdigit() and len(text) < 6 else usual

    return number("LINES", 24), number("COLUMNS", 80)


def _started(call: Call, said: dict[str, Any], params: dict[str, Any]) -> Dyno:
    """The dyno as it was when it started: its row may be gone already."""
    return Dyno(
        id=said["dyno_id"], name=said["name"], type=params["type"], command=params["command"], size=said["size"], state="up",
        isolation=params["isolation"],
        release_id=said["release_id"], release_version=said["release_version"], created_at=clock.now(), updated_at=clock.now(),
    )  # fmt: skip


def _attach_url(call: Call, attachment: attach.Attachment) -> str:
    """Where the client comes to: a rendezvous, or a WebSocket for who asks for one (Accept: …; attach=websocket)."""
    if "attach=websocket" in request.headers.get("Accept", ""):
        return f"{links.base_url().replace('http', 'ws', 1)}/apps/{call.app.id}/dynos/{attachment.dyno_id}/attach"
    return f"rendezvous://{links.authority()}/{attachment.secret}"


@resource.on("GET", "/rendezvous/<secret>", needs="nothing", ours=True, gives=shapes.UPGRADE)
def meet(call: Call, secret: str) -> Handover:
    """A rendezvous by HTTP upgrade, for clients behind a forwarder or a proxy; the secret is the attach_url's."""
    line: Any = request.environ.get("gunicorn.socket")
    if line is None or request.headers.get("Upgrade", "").lower() != "rendezvous":
        raise BadRequest("This endpoint is a rendezvous; the request does not ask to upgrade to one.", status=426)

    def run() -> None:
        line.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: rendezvous\r\n\r\n")
        line.setblocking(False)
        rendezvous.serve(line, secret, b"")

    return Handover(run)


@resource.on(
    "GET", "/apps/<app>/dynos/<dyno>/attach", needs="operate", ours=True, scope="write-protected",
    gives=shapes.UPGRADE,
)  # fmt: skip
def attach_to(call: Call, dyno: str) -> Handover:
    """A WebSocket to an attached one-off dyno that the caller has just started."""
    web = WebSocket(request.environ)
    attachment = attach.waiting.take(dyno, call.account.id)
    started = time.monotonic()

    def run() -> None:
        attach.bridge(web, attachment)
        attach.log.info("detached", extra={"dyno": dyno, "seconds": int(time.monotonic() - started)})

    return Handover(run)


@resource.on(
    "GET", "/apps/<app>/dynos/<dyno>/ports/<port>", needs="operate", ours=True, scope="write-protected", gives=shapes.UPGRADE,
)  # fmt: skip
def forward(call: Call, dyno: str, port: str) -> Handover:
    """A WebSocket to a port of a dyno that runs: binary messages are the bytes, the text \"end\" says that no more come."""
    row = _dyno(call, dyno)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise NotFound("A port is a number from 1 to 65535.")
    web = WebSocket(request.environ)
    give_back = streams.slots.take(call.account.id)
    try:
        line = dyno_ports.connect(call.app.id, row.id, int(port))
    except BaseException:
        give_back()
        raise
    may_go_on = _may_go_on(call)

    def run() -> None:
        try:
            with line:
                dyno_ports.carry(web, line, may_go_on)
        finally:
            give_back()

    return Handover(run)
