"""Log sessions and the streams behind secret URLs: logs, build output, release output."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from flask import Response, request

from api import links, serialize, shapes, streams, tails
from api.fields import Fields, Flag, Text, Whole
from api.routing import Call, Reply, Resource
from api.websocket import Handover
from builder import output
from foundation.clock import now
from foundation.errors import InvalidParams, NotFound
from foundation.settings import settings
from logs import stream
from logs.window import WINDOW
from state.db import snapshot
from state.models import Build, Release, new_id

resource = Resource("log-sessions")

_SESSION = Fields(
    lines=Whole(most=10**9), source=Text(), dyno=Text(), dyno_name=Text(), type=Text(), tail=Flag()
)  # fmt: skip
_DYNO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}")


@lru_cache(maxsize=1)
def _redis() -> Any:
    return stream.connect(settings().effective_redis_url)


@resource.on(
    "POST", "/apps/<app>/log-sessions", needs="view", writes=False, scope="read",
    takes=_SESSION, gives=shapes.LOG_SESSION,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Make a URL that gives the app's last lines and, with tail, every new one."""
    lines = call.body.whole("lines")
    source = call.body.text("source")
    if source not in (None, "app", "heroku"):
        raise InvalidParams("Field source must be app or heroku.")
    dyno = call.body.text("dyno") or call.body.text("dyno_name") or call.body.text("type")
    if dyno and not _DYNO.fullmatch(dyno):
        raise InvalidParams("Field dyno must be the name of a dyno (web.1) or a process type (web).")
    what = {
        "app": call.app.id, "account": call.account.id, "lines": WINDOW if lines is None else min(lines, WINDOW),
        "tail": call.body.flag("tail") or False, "source": source, "dyno": dyno,
    }  # fmt: skip
    url = f"{links.base_url()}/streams/logs/{links.sign('log', what, links.LOG_SECONDS)}"
    return Reply(serialize.log_session(new_id(), now(), url), 201)


hub = tails.Hub(lambda: stream.connect(settings().effective_redis_url))


@resource.on("GET", "/streams/logs/<secret>", needs="nothing", ours=True, gives=shapes.LINES)
def read(call: Call, secret: str) -> Response:
    """The lines of a log session: server-sent events when asked for, plain text otherwise."""
    what = links.read("log", secret)
    if not _may_read(what):
        raise NotFound("There is no such stream.")
    events = "text/event-stream" in request.headers.get("Accept", "")
    kind = f"{'text/event-stream' if events else 'text/plain'}; charset=utf-8"
    after = request.headers.get("Last-Event-ID")
    line = request.environ.get("gunicorn.socket")
    if what["tail"] and hasattr(line, "taken") and request.method != "HEAD":
        return _hand_over(line, what, events, kind, after)
    heartbeat = b": still here\n\n" if events else b""
    lines = _lines(what, after, events)
    return streams.respond(lines, kind, what["account"], heartbeat=heartbeat, may_go_on=lambda: _may_read(what))


def _hand_over(line: Any, what: dict[str, Any], events: bool, kind: str, after: str | None) -> Response:
    """Answer with the lines that are there, and let the hub do the rest on this connection."""
    seen, backlog = stream.since(_redis(), what["app"], what["lines"], what["source"], what["dyno"], after_id=after)
    give_back = tails.slots.take(what["account"])
    chunked = request.environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    tail = tails.Tail(line, what["app"], seen, what["source"], what["dyno"], events, lambda: _may_read(what), give_back, chunked)
    lines = [f"Content-Type: {kind}", "Cache-Control: no-store", "X-Accel-Buffering: no", "Connection: close"]
    lines += ["Transfer-Encoding: chunked"] if chunked else []
    head = "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()
    body = b"".join(tails.render(id, one, events) for id, one in backlog)
    return Handover(lambda: tails.begin(tail, hub, head, body))


def _may_read(what: dict[str, Any]) -> bool:
    return links.may(what["account"], what["app"])


def _lines(what: dict[str, Any], after: str | None, events: bool) -> Iterator[bytes | None]:
    source, dyno = what["source"], what["dyno"]
    if not what["tail"]:
        for id, line in stream.recent(_redis(), what["app"], what["lines"], source, dyno):
            yield tails.render(id, line, events)
        return
    for found in stream.follow(_redis(), what["app"], what["lines"], source, dyno, after_id=after, quiet=tails.QUIET_SECONDS):
        yield tails.render(*found, events) if found else None


@resource.on("GET", "/streams/builds/<secret>", needs="nothing", ours=True, gives=shapes.LINES)
def read_build(call: Call, secret: str) -> Response:
    """What a build prints, as it happens, until it has ended."""
    what = links.read("build", secret)
    build_id = what["build"]
    with snapshot() as session:
        build = session.get(Build, build_id)
    return _for_reader(what["reader"], build, output.follow(build_id))


def _for_reader(reader: str, row: Build | Release | None, pieces: Iterator[bytes | None]) -> Response:
    """Output for who may see the app that it is of, and while they may."""
    app_id = row.app_id if row else None
    if not links.may(reader, app_id):
        raise NotFound("There is no such stream.")
    return streams.respond(pieces, "text/plain; charset=utf-8", reader, may_go_on=lambda: links.may(reader, app_id))


@resource.on("GET", "/streams/releases/<secret>", needs="nothing", ours=True, gives=shapes.LINES)
def read_release(call: Call, secret: str) -> Response:
    """What a release's command prints, as it happens, until the release has come up or failed."""
    what = links.read("release", secret)
    with snapshot() as session:
        release = session.get(Release, what["release"])
    return _for_reader(what["reader"], release, _release_output(what["release"]))


def _release_output(release_id: str) -> Iterator[bytes | None]:
    path = settings().home / "releases" / release_id / "output"
    offset, asked, over = 0, 0.0, False
    while True:
        if time.monotonic() > asked + 1:
            asked = time.monotonic()
            with snapshot() as session:
                release = session.get(Release, release_id)
            over = release is None or release.phase in ("boot", "done")
        data = _chunk(path, offset)
        offset += len(data)
        if data:
            yield data
        elif over:
            return
        else:
            yield None
            time.sleep(0.1)


def _chunk(path: Any, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return bytes(file.read(65536))
    except FileNotFoundError:
        return b""
