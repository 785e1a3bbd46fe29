"""Logs and output behind secret URLs, read from the application itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import shutil
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response

from api import attach, links, streams, tails, tunnel
from api.credentials import Identity
from builder.output import Outcome, Output
from foundation import wire
from foundation.clock import now
from foundation.errors import Unauthorized
from foundation.settings import settings
from logs import stream
from logs.stream import Line
from state import accounts, apps, builds, db, releases
from state.models import App, Token
from tests.api.conftest import Api, Handler, Neighbour, _forget, _make, give_code, use_home
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says


@pytest.fixture
def api(davit_home: Path, migrated_sqlite: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch, REDIS_URL=redis_server)
    from api.resources import logs

    logs._redis.cache_clear()
    yield _make(davit_home)
    logs._redis.cache_clear()
    _forget()


def _say(api: Api, *texts: str, process: str = "web.1") -> None:
    lines = [stream.Line(datetime.now(timezone.utc), "app", process, text) for text in texts]
    stream.emit(stream.connect(settings().effective_redis_url), api.app_id, lines, wait=5)


def _url(api: Api, **asked: object) -> str:
    session = api.post("/apps/timely/log-sessions", {"lines": 100, **asked})
    assert session.status_code == 201
    return urlsplit(session.json["logplex_url"]).path


def test_a_log_session_gives_plain_lines_without_further_credentials(api: Api) -> None:
    _say(api, "one", "two")
    answer = api.get(_url(api, dyno="web"), as_=None)
    assert answer.content_type == "text/plain; charset=utf-8"
    assert [line.split(" ", 1)[1] for line in answer.text.splitlines()] == ["app[web.1]: one", "app[web.1]: two"]


def test_a_log_session_gives_server_sent_events_when_asked_to_and_goes_on_after_the_last_one_seen(api: Api) -> None:
    _say(api, "one", "two")
    events = {"Accept": "text/event-stream"}
    url = _url(api, dyno="web.1", tail=True)
    answer = api.get(url, as_=None, headers=events, buffered=False)
    assert answer.content_type.startswith("text/event-stream")
    pieces = iter(answer.response)
    first = next(pieces).decode()
    assert first.startswith("id: ") and first.endswith("app[web.1]: one\n\n")
    answer.close()
    last = first.split("\n")[0].removeprefix("id: ")
    again = api.get(url, as_=None, headers={**events, "Last-Event-ID": last}, buffered=False)
    assert next(iter(again.response)).decode().endswith("app[web.1]: two\n\n")
    again.close()


def test_a_secret_that_is_forged_expired_or_of_another_kind_opens_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    url = _url(api)
    assert api.get(url, as_=None).status_code == 200
    forged = url[:-5] + ("A" if url[-5] != "A" else "B") + url[-4:]  # the last letter alone may hold bits that say nothing
    assert api.get(forged, as_=None).status_code == 404
    assert api.get(url.replace("/logs/", "/builds/"), as_=None).status_code == 404
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + links.LOG_SECONDS + 1)
    assert api.get(url, as_=None).status_code == 404


def test_a_token_that_may_only_read_reads_the_whole_log_as_on_heroku(api: Api) -> None:
    _say(api, "Set STRIPE_KEY config vars by user owner@example.com", process="api")
    token = api.post("/oauth/authorizations", {"scope": ["read"]}).json["access_token"]["token"]
    assert api.get("/apps/timely/config-vars", as_=token).status_code == 403
    session = api.post("/apps/timely/log-sessions", {}, as_=token)
    assert "app[api]: Set STRIPE_KEY" in api.get(urlsplit(session.json["logplex_url"]).path, as_=None).text


def test_a_reader_who_may_no_longer_see_the_app_reads_nothing(api: Api) -> None:
    session = api.post("/apps/timely/log-sessions", {}, as_="viewer").json
    path = urlsplit(session["logplex_url"]).path
    assert api.get(path, as_=None).status_code == 200
    api.delete("/apps/timely/collaborators/viewer@example.com")
    assert api.get(path, as_=None).status_code == 404


def test_output_and_slugs_are_read_only_by_who_may_still_see_the_app(api: Api) -> None:
    from tests.api.conftest import give_code

    release = give_code(api.app_id, {"web": "x", "release": "migrate"})
    with db.transaction() as session:
        app = session.get(App, api.app_id)
        assert app
        build = builds.create(session, app, app.owner, commit="ab" * 20)
        releases.set_phase(session, release.id, "done")
    out = Output(build.id)
    out.finish(Outcome("failed", "build failed", "No."))
    out.close()
    urls = [
        api.get(f"/apps/timely/{path}", as_="deployer").json["output_stream_url"]
        for path in (f"builds/{build.id}", f"releases/{release.version}")
    ]
    slug = api.get(f"/apps/timely/slugs/{release.slug_id}", as_="deployer").json["blob"]["url"]
    shown = [urlsplit(url).path for url in urls]
    assert [api.get(path, as_=None).status_code for path in shown] == [200, 200]
    api.delete("/apps/timely/collaborators/deployer@example.com")
    assert [api.get(path, as_=None).status_code for path in (*shown, urlsplit(slug).path)] == [404, 404, 404]


def test_a_stream_whose_reader_was_removed_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECHECK_SECONDS", -1.0)
    allowed = iter([True, False])
    with api.flask.test_request_context("/"):
        answer = streams.respond(iter([b"a", b"b", b"c"]), "text/plain", "x", may_go_on=lambda: next(allowed))
        assert b"".join(answer.response) == b"a"


@pytest.mark.parametrize(
    ("header", "value"),
    [("DAVIT_BASE", "http://a:x"), ("DAVIT_BASE", "http://["), ("DAVIT_BASE", "http://a:70000"), ("HOST", "[::::]"), ("HOST", "a:x")],
)  # fmt: skip
def test_who_says_nonsense_of_how_they_came_here_is_still_told_where_to_attach(
    api: Api, neighbour: Callable[[Path, dict[str, Handler]], Neighbour], header: str, value: str
) -> None:
    release = give_code(api.app_id)

    def start(call: wire.Call) -> dict[str, object]:
        for fd in call.fds:
            os.close(fd)
        return {"dyno_id": "d" * 36, "name": "run.1", "size": "basic", "release_id": release.id, "release_version": release.version}

    runtime = neighbour(settings().run / "runtime.sock", {"oneoff.start": start})
    sent = {"command": "x", "attach": True, "force_no_tty": True}
    environ = EnvironBuilder("/apps/timely/dynos", method="POST", json=sent, auth=("timely", api.people.owner)).get_environ()
    answer = Response.from_app(api.flask, environ | {f"HTTP_{header}": value})
    owner = api.get("/account").json["id"]
    attach.waiting.take("d" * 36, owner).close()
    assert answer.status_code == 201, answer.data
    assert [params["by"] for name, params in runtime.calls] == [owner], "whose command it is goes on record"
    host = urlsplit(settings().api_url if header == "HOST" else "http://localhost:80").netloc
    assert json.loads(answer.data)["attach_url"].startswith(f"rendezvous://{host}/"), answer.data
    assert owner not in streams.slots._taken


@pytest.mark.row("attached-forbidden")
def test_who_lost_the_right_to_run_commands_is_let_go_of_the_one_that_runs(
    api: Api, neighbour: Callable[[Path, dict[str, Handler]], Neighbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RECHECK_SECONDS", 0.2)
    over = threading.Event()

    async def wait(call: wire.Call) -> dict[str, int]:
        await asyncio.to_thread(over.wait, 60)
        return {"status": 0}

    neighbour(api.home / "run" / "runtime.sock", {"oneoff.wait": wait})
    with db.snapshot() as session:
        token = accounts.find_token(session, api.people.operator)
        identity = Identity(token.account, token)
    may = streams.still(lambda session: apps.find(session, identity.within(session).account, api.app_id, "operate"))
    (output, command), (here, there) = os.pipe(), socket.socketpair()
    line = wire.Connection(api.home / "run" / "runtime.sock", timeout=30)
    attachment = attach.Attachment({"dyno_id": "x"}, "y", line, None, {output: attach.STDOUT}, False, lambda: None, may)
    bridge = threading.Thread(target=attach.carry, args=(tunnel.Piped(there), attachment))
    try:
        bridge.start()
        os.write(command, b"hello")
        assert here.recv(100) == b"hello" and bridge.is_alive()
        api.delete("/apps/timely/collaborators/operator@example.com")
        here.settimeout(30)
        assert_says("attached-forbidden", here.recv(200).decode())
        here.close()
        bridge.join(30)
        assert not bridge.is_alive() and attachment.outputs == {}
    finally:
        over.set()
        os.close(command)


def test_a_token_that_was_renewed_meanwhile_does_not_speak_for_its_account_any_more(api: Api) -> None:
    with db.snapshot() as session:
        token = accounts.find_token(session, api.people.owner)
        identity = Identity(token.account, token)
    with db.transaction() as session:
        assert identity.within(session).account.email == "owner@example.com"
        accounts.renew_token(session, session.get_one(Token, token.id))
        with pytest.raises(Unauthorized):
            identity.within(session)


def test_a_builds_output_url_stays_the_same_so_that_its_build_does(api: Api) -> None:
    with db.transaction() as session:
        app = session.get(App, api.app_id)
        assert app
        build = builds.create(session, app, app.owner, commit="ab" * 20)
    out = Output(build.id)
    out.heading("Building")
    out.finish(Outcome("failed", "build failed", "No."))
    out.close()
    first = api.get(f"/apps/timely/builds/{build.id}")
    assert first.json == api.get(f"/apps/timely/builds/{build.id}").json
    assert api.get(urlsplit(first.json["output_stream_url"]).path, as_=None).text == "-----> Building\n"


def test_a_release_commands_output_is_read(api: Api) -> None:
    from tests.api.conftest import give_code

    release = give_code(api.app_id, {"web": "x", "release": "migrate"})
    directory = api.home / "releases" / release.id
    directory.mkdir(parents=True)
    (directory / "output").write_text("migrating\n")
    with db.transaction() as session:
        releases.set_phase(session, release.id, "done")
    url = api.get(f"/apps/timely/releases/{release.version}").json["output_stream_url"]
    assert api.get(urlsplit(url).path, as_=None).text == "migrating\n"


def test_streams_leave_threads_for_everything_else(api: Api) -> None:
    slots = streams.Slots()
    taken = [slots.take(f"account {n}") for n in range(settings().web_threads // 2)]
    with pytest.raises(streams.TooManyStreams):
        slots.take("another")
    taken[0]()
    taken[0]()
    slots.take("another")
    with pytest.raises(streams.TooManyStreams):
        slots.take("yet another")


def test_one_account_cannot_take_all_streams(api: Api) -> None:
    slots = streams.Slots()
    for _ in range(streams.EACH):
        slots.take("greedy")
    with pytest.raises(streams.TooManyStreams, match="already"):
        slots.take("greedy")
    slots.take("modest")


def test_two_accounts_cannot_take_all_log_tails() -> None:
    slots = tails.Slots(lambda: tails.MOST, tails.EACH)
    for who in ("one", "another"):
        with pytest.raises(streams.TooManyStreams):
            for _ in range(tails.MOST):
                slots.take(who)
    assert slots._taken.total() == tails.MOST - tails.KEPT
    for n in range(tails.KEPT // tails.FEW):
        for _ in range(tails.FEW):
            slots.take(f"modest {n}")
        with pytest.raises(streams.TooManyStreams):
            slots.take(f"modest {n}")


@pytest.mark.parametrize(("chunked", "end"), [(True, b"5\r\nhello\r\n0\r\n\r\n"), (False, b"hello")])
def test_a_tail_whose_reader_was_removed_ends_as_a_whole_body(
    monkeypatch: pytest.MonkeyPatch, redis_server: str, chunked: bool, end: bytes
) -> None:
    monkeypatch.setattr(tails, "RECHECK_SECONDS", -1.0)
    here, there = socket.socketpair()
    tail = tails.Tail(here, "app", "0-0", None, None, False, lambda: False, lambda: None, chunked)
    here.sendall(tail.framed(b"hello"))
    there.settimeout(60)
    tails.Hub(lambda: stream.connect(redis_server)).add(tail)
    assert b"".join(iter(lambda: there.recv(65536), b"")) == end
    there.close()


def _followed(events: bool) -> tuple[tails.Hub, tails.Tail, socket.socket]:
    """A tail that a hub without a thread serves, and its client's end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
    there.settimeout(60)
    hub = tails.Hub(lambda: None)
    tail = tails.Tail(here, "app", "0-0", None, None, events, lambda: True, lambda: None)
    hub._epoll = select.epoll()
    hub._tails[here.fileno()] = tail
    hub._epoll.register(here.fileno(), select.EPOLLRDHUP)
    return hub, tail, there


@pytest.mark.parametrize("events", [True, False])
def test_of_a_burst_a_tail_gets_what_there_is_room_for_and_only_the_rest_is_lost(events: bool) -> None:
    hub, tail, there = _followed(events)
    lines = [(f"1-{n}", Line(now(), "app", "web.1", f"{n:05}" + "x" * 2000)) for n in range(400)]
    hub._write(tail, *tails.render_all(lines, tail.kind))
    assert tail.lost and tails.BUFFER // 2 < len(tail.pending) <= tails.BUFFER
    got = b""
    while tail.pending:
        got += there.recv(1 << 20)
        hub._flush(tail)
    hub._write(tail, *tails.render_all([("2-0", Line(now(), "app", "web.1", "after"))], tail.kind))
    while b"after" not in got:
        got += there.recv(1 << 20)
        hub._flush(tail)
    arrived = re.findall(rb"web\.1\]: (\d{5})x{2000}\n", got)
    (told,) = re.findall(rb"L11 \(tail buffer overflow\): (\d+) messages", got)
    assert [int(number) for number in arrived] == list(range(400 - int(told)))
    hub._end(tail)
    there.close()


def test_a_thread_that_the_system_does_not_give_is_asked_for_again_with_the_next_tail(
    monkeypatch: pytest.MonkeyPatch, redis_server: str
) -> None:
    monkeypatch.setattr(tails, "RECHECK_SECONDS", -1.0)
    start, refused, given_back = threading.Thread.start, [RuntimeError("can't start new thread")], []

    def begin(thread: threading.Thread) -> None:
        if thread.name == "tails" and refused:
            raise refused.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    hub = tails.Hub(lambda: stream.connect(redis_server))
    for n in range(2):
        here, there = socket.socketpair()
        there.settimeout(60)
        line = types.SimpleNamespace(
            **{name: getattr(here, name) for name in ("fileno", "settimeout", "sendall", "setblocking", "send", "shutdown", "close")}
        )
        tail = tails.Tail(line, "app", "0-0", None, None, False, lambda: False, lambda n=n: given_back.append(n))
        tails.begin(tail, hub, b"", b"hello")
        assert b"".join(iter(lambda there=there: there.recv(65536), b"")) == b"hello"
        there.close()
    wait_until(lambda: given_back == [0, 1], "places given back")  # after the connection has ended
    assert not refused


def test_a_stream_that_has_ended_gives_its_place_back(api: Api) -> None:
    url = _url(api)
    for _ in range(streams.EACH + 1):
        answer = api.get(url, as_=None)
        assert answer.status_code == 200
        answer.close()  # as every server does (PEP 3333)


@pytest.mark.parametrize("sent", [{"lines": "many"}, {"lines": -1}, {"source": "other"}, {"dyno": "web 1"}, {"tail": 3}])
def test_a_log_session_that_cannot_be_is_refused(api: Api, sent: dict[str, object]) -> None:
    assert api.post("/apps/timely/log-sessions", sent).status_code == 422


def test_an_environment_that_is_too_large_for_the_process_that_starts_dynos_is_refused_with_a_sentence(api: Api) -> None:
    answer = api.post("/apps/timely/dynos", {"command": "x", "env": {"A": "\x01" * 60_000}})
    assert (answer.status_code, answer.json["id"]) == (422, "invalid_params")
    assert answer.json["message"].startswith("Fields command and env may have at most 190 KB together")
