"""HAProxy and its keeper die, are replaced and come back; requests notice as little as can be."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from foundation import wire
from foundation.errors import DavitError, Unavailable
from router import generation, listeners, service
from router.collector import Collector, open_fifo
from router.config import Frame, Timeouts, compose
from router.control import Control
from router.generation import HaproxyFailed
from router.routes import AppRows
from router.service import find_program
from state import models
from tests.ports import free_port
from tests.router.apps import Client, TinyApp
from tests.router.conftest import PROGRAM, Davit, until

Make = Callable[[], TinyApp]
ROOT = Path(__file__).parents[2]


class Visitors:
    """Keep asking, on kept connections and on new ones, with a pause (seconds) between, and note what fails."""

    def __init__(self, port: int, host: str, pause: float = 0.003) -> None:
        self._pause = pause
        self.failures: list[str] = []
        self.answers = 0
        self._port, self._host, self._over = port, host, threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(keep,)) for keep in (True, True, False)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        until(lambda: self.answers > 20)
        return self

    def __exit__(self, *_: object) -> None:
        seen = self.answers
        until(lambda: self.answers > seen + 50 or self.failures, 20)
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _visit(self, keep: bool) -> None:
        client = None
        while not self._over.is_set():
            try:
                client = client or Client(self._port, self._host)
                answer = client.get()
                self.answers += 1
                if answer.status != 200:
                    self.failures.append(f"status {answer.status}")
                if not keep or answer.headers.get("connection") == "close":
                    client.close()
                    client = None
            except OSError as error:
                self.failures.append(repr(error))
                client = None
            time.sleep(self._pause)


def haproxy(davit: Davit) -> int:
    assert davit.router.current
    return davit.router.current.pid


def test_reloads_lose_no_request_and_break_no_connection(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    davit.router.timeouts = Timeouts()  # the request that waits at the gate outlasts four reloads, however slow the machine
    davit.reload()
    davit.app("app", app.dyno())
    busy = Client(davit.port, "app.localhost")
    busy.send("/gate")
    until(lambda: app.seen)
    with Visitors(davit.port, "app.localhost") as visitors:
        for _ in range(4):
            davit.reload()
    assert not visitors.failures
    assert davit.router.retiring, "the first HAProxy still has a request"
    app.gate.set()
    assert busy.answer().status == 200
    busy.close()
    until(lambda: not davit.router.retiring)


def test_a_kept_connection_follows_the_routes_of_the_successor(own_davit: Davit, tiny: Make) -> None:
    davit, old, new = own_davit, tiny(), tiny()
    rows = davit.app("app", old.dyno(1))
    kept = Client(davit.port, "app.localhost")
    assert kept.get().status == 200
    davit.reload()
    rows.dynos = [new.dyno(2)]
    davit.sync("app")
    request_id = "kept-over-a-reload-1"
    answer = kept.get("/after", f"X-Request-ID: {request_id}", "X-Forwarded-For: 203.0.113.5")
    assert answer.json["dyno"] == new.number
    assert "X-Forwarded-For: 203.0.113.5, 127.0.0.1\r\n".lower() in new.seen[-1].lower()
    assert request_id in davit.log("app", "/after")
    assert sum("/after" in one.text for one in davit.lines) == 1


def test_a_request_that_waits_in_an_old_generation_gets_its_answer(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    rows = davit.app("app", app.dyno(state="starting", routed=False))
    waiting = Client(davit.port, "app.localhost")
    waiting.send()
    time.sleep(0.1)
    davit.reload()
    rows.dynos = [app.dyno()]
    davit.sync("app")
    assert waiting.answer().status == 200


def test_the_keeper_comes_back_and_finds_everything(own_davit: Davit, tiny: Make) -> None:
    davit, one, two = own_davit, tiny(), tiny()
    rows = davit.app("app", one.dyno(1))
    davit.app("maintained", maintenance=True)
    davit.app("removed", two.dyno(2))
    before = haproxy(davit)
    with Visitors(davit.port, "app.localhost") as visitors:
        davit.do(davit.router.close())
        rows.dynos = [two.dyno(2)]
        del davit.rows["id-removed"]
        davit.router = davit._new()
        davit.start()
        assert haproxy(davit) == before, "HAProxy was not replaced"
    assert not visitors.failures
    assert Client(davit.port, "app.localhost").get().json["dyno"] == two.number
    assert Client(davit.port, "maintained.localhost").get().status == 503
    assert Client(davit.port, "removed.localhost").get().status == 404


def _kill(pid: int) -> None:
    """Kill and see it dead: until then it may still accept a connection, which dies with it."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    until(lambda: select.select([pidfd], [], [], 0)[0])
    os.close(pidfd)


def test_haproxy_is_started_again_and_new_connections_wait_for_it(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    davit.app("app", app.dyno())
    before = haproxy(davit)
    _kill(before)
    answers = [Client(davit.port, "app.localhost").get().status for _ in range(5)]
    assert answers == [200] * 5
    until(lambda: haproxy(davit) != before)


def test_a_dyno_that_is_back_before_its_last_request_ended_needs_no_new_haproxy(own_davit: Davit, tiny: Make) -> None:
    """As a virtual machine is that was to be moved and stays; by its old address, or by another one."""
    davit, app = own_davit, tiny()
    rows = davit.app("app", app.dyno())
    held = Client(davit.port, "app.localhost")
    held.send("/gate")
    until(lambda: any("/gate" in head for head in app.seen))
    (dyno,), reloads = rows.dynos, davit.router.reloads
    rows.dynos = []
    davit.sync("app")
    rows.dynos = [dyno]
    davit.sync("app")
    assert Client(davit.port, "app.localhost").get().status == 200
    assert davit.router.reloads == reloads
    app.gate.set()
    assert held.answer().status == 200


def test_haproxy_is_started_again_however_the_starts_before_failed(
    own_davit: Davit, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hour in which the kernel ends HAProxy for want of memory a fork fails, too, and the database may be away."""
    davit, app = own_davit, tiny()
    davit.app("app", app.dyno())
    before, begin, left = haproxy(davit), subprocess.Popen, [OSError(errno.ENOMEM, "no memory"), RuntimeError("no thread")]

    def fails_first(*words: object, **options: object) -> subprocess.Popen[bytes]:
        if left:
            assert davit.router is not None
            with pytest.raises(HaproxyFailed, match="does not run"):
                davit.router.status()
            raise left.pop()
        return begin(*words, **options)  # type: ignore[call-overload,no-any-return]

    def away(app_ids: object) -> list[AppRows]:
        raise Unavailable("The database does not answer.")

    monkeypatch.setattr("router.generation.subprocess.Popen", fails_first)
    monkeypatch.setattr(davit.router, "_read", away)
    _kill(before)
    assert Client(davit.port, "app.localhost").get().status == 200
    until(lambda: haproxy(davit) != before)
    assert not left and davit.router.status()["apps"] == 1
    assert [path.name for path in (davit.settings.run / "haproxy").iterdir() if path.name.isdigit()] == ["2"]


def test_haproxy_that_died_while_nobody_watched_is_started_again(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    davit.app("app", app.dyno())
    before = haproxy(davit)
    davit.do(davit.router.close())
    _kill(before)
    davit.router = davit._new()
    davit.start()
    assert Client(davit.port, "app.localhost").get().status == 200


def test_a_haproxy_of_another_configuration_is_replaced(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    davit.app("app", app.dyno())
    before = haproxy(davit)
    with Visitors(davit.port, "app.localhost") as visitors:
        davit.timeouts = type(davit.timeouts)(idle=7)
        davit.restart()
        assert haproxy(davit) != before
    assert not visitors.failures


def test_more_apps_than_spare_backends(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    davit.app("app-0", app.dyno())
    with Visitors(davit.port, "app-0.localhost") as visitors:
        for number in range(1, 70):
            davit.app(f"app-{number}", app.dyno())
    assert not visitors.failures
    assert davit.router.reloads == 2
    assert {Client(davit.port, f"app-{number}.localhost").get().status for number in range(0, 70, 7)} == {200}


def test_syncs_at_once_are_done_together(own_davit: Davit, tiny: Make) -> None:
    import asyncio

    davit, app = own_davit, tiny()
    for number in range(30):
        davit.app(f"app-{number}", app.dyno(state="starting", routed=False))
        davit.rows[f"id-app-{number}"].dynos = [app.dyno()]

    async def everything() -> None:
        await asyncio.gather(*(davit.router.sync(f"id-app-{number}") for number in range(30)))

    davit.do(everything())
    assert all(one.state is None for one in davit.router.table.routes.values())


def test_a_change_that_haproxy_refuses_is_made_by_a_new_one(own_davit: Davit, tiny: Make) -> None:
    davit, one, two = own_davit, tiny(), tiny()
    rows = davit.app("app", one.dyno(1))
    rows.dynos = [two.dyno(2)]
    dyno = two.dyno(2)
    from router.routes import server_name

    # somebody meddled: the server is there already
    davit.do(davit.router.current.control.run(f"add server b0/{server_name(dyno.id, dyno.name)} 127.0.0.1:1"))  # type: ignore[union-attr]
    davit.sync("app")
    assert Client(davit.port, "app.localhost").get().json["dyno"] == two.number


def test_an_address_in_use_is_an_error_with_a_sentence(home: Path) -> None:
    from foundation.settings import Address

    taken = listeners.listen(Address("127.0.0.1", 0), "DAVIT_HTTP")
    with pytest.raises(DavitError, match=r"another program listens there already\. DAVIT_HTTP sets"):
        listeners.listen(Address("127.0.0.1", taken.getsockname()[1]), "DAVIT_HTTP")
    taken.close()


_AS_NOBODY = """
import os, sys
from pathlib import Path
from foundation.errors import DavitError
from foundation.settings import Address
from router import listeners
listeners._OPEN_PORTS.write_text(sys.argv[1])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    print(listeners.listen(Address("0.0.0.0", 80), "DAVIT_HTTP").getsockname()[1])
except DavitError as error:
    print(error.message)
"""


@pytest.mark.root
def test_a_port_is_the_routers_without_root_where_the_host_opens_it() -> None:
    def listening(lowest: int) -> str:
        words = ["unshare", "--net", sys.executable, "-c", _AS_NOBODY, str(lowest)]
        return subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60).stdout

    assert "ports below 1000 need root here (sysctl net.ipv4.ip_unprivileged_port_start). DAVIT_HTTP sets" in listening(1000)
    assert listening(80) == "80\n"


# -- access lines


def test_lines_wait_while_the_store_is_away_and_while_nobody_reads(own_davit: Davit, tiny: Make) -> None:
    davit, app = own_davit, tiny()
    davit.app("app", app.dyno())
    davit.store_is_away = True
    Client(davit.port, "app.localhost").get("/1")
    until(lambda: davit.router.collector.read == 1)
    davit.store_is_away = False
    davit.log("app", "/1")
    davit.do(davit.router.close())
    client = Client(davit.port, "app.localhost")
    for number in range(2, 300):
        client.get(f"/{number}")
    davit.router = davit._new()
    davit.start()
    davit.log("app", "/299")
    assert [one.text.split('path="/')[1].split('"')[0] for one in davit.lines] == [str(number) for number in range(1, 300)]


@pytest.mark.code("L10")
def test_what_is_lost_is_counted_in_the_log(home: Path) -> None:
    import asyncio

    got: list[str] = []

    async def deliver(batch: object) -> None:
        for lines in batch.values():  # type: ignore[attr-defined]
            got.extend(line.text for line in lines)

    fifo = open_fifo(home / "fifo")
    collector = Collector(home / "fifo", deliver, backlog=10)  # type: ignore[arg-type]
    fields = ["b0/app-id/shop/shop.localhost", *"web.1.a ---- 200 1 0 0 0 GET 1763917200123 0 rid 1.1.1.1 - - /x -".split()]
    os.write(fifo, ("\t".join(fields) + "\n").encode() * 25)
    collector.take()
    asyncio.run(collector.flush())
    assert len(got) == 10
    asyncio.run(collector.flush())
    assert "Error L10 (output buffer overflow): 15 messages dropped" in got[-1]
    collector.lost(7)
    os.write(fifo, ("\t".join(fields) + "\n").encode())
    collector.take()
    asyncio.run(collector.flush())
    assert "7 router messages of all apps dropped" in got[-1]
    assert (collector.read, collector.dropped) == (26, 15)
    os.close(fifo)


# -- the process itself


@pytest.fixture
def process(home: Path, redis_server: str, tiny: Make) -> Iterator[tuple[dict[str, str], TinyApp]]:
    """``python -m router`` with a database, an app in it, and Redis."""
    (home / "run").mkdir()
    app = tiny()
    environ = {
        **os.environ, "DAVIT_HOME": str(home), "DAVIT_HTTP": f"127.0.0.1:{free_port()}", "REDIS_URL": redis_server,
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    engine = create_engine(f"sqlite:///{home / 'davit.db'}")
    models.Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(models.Account(id="u", email="u@example.com"))
        session.add(models.App(id="the-app", name="shop", owner_id="u", config=b""))
        session.add(models.Formation(app_id="the-app", type="web", quantity=1))
        session.add(models.Slug(id="s", app_id="the-app", stack="davit-13"))
        session.flush()
        session.add(
            models.Release(
                app_id="the-app", account_id="u", config=b"", description="", version=1, current=True, slug_id="s",
                status="succeeded", process_types={"web": "x"},
            )
        )  # fmt: skip
        session.add(
            models.Dyno(
                id="d1", app_id="the-app", name="web.1", type="web", size="basic", command="x", state="up", routed=True,
                address="127.0.0.1", port=app.port,
            )
        )  # fmt: skip
        session.commit()
    engine.dispose()
    try:
        yield environ, app
    finally:
        subprocess.run([sys.executable, "-m", "router", "stop"], env=environ, cwd=ROOT, check=True)
        assert not (home / "run" / "haproxy").exists()
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(home).encode() in _read(path)]
        assert not left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def run_router(environ: dict[str, str]) -> subprocess.Popen[bytes]:
    started = subprocess.Popen([sys.executable, "-m", "router"], env=environ, cwd=ROOT)
    socket = Path(environ["DAVIT_HOME"]) / "run" / "router.sock"

    def answers() -> bool:
        assert started.poll() is None
        try:
            wire.call(socket, "ping")
        except DavitError:
            return False
        return True

    until(answers, 20)
    return started


def test_the_process_serves_is_killed_and_nothing_fails(process: tuple[dict[str, str], TinyApp], redis_server: str) -> None:
    from logs.stream import connect, recent

    environ, _ = process
    home = Path(environ["DAVIT_HOME"])
    port = int(environ["DAVIT_HTTP"].rpartition(":")[2])
    first = run_router(environ)
    pid = wire.call(home / "run/router.sock", "ping").result["haproxy"]
    # slow ones: the window of recent lines must still hold the one that is looked for
    with Visitors(port, "shop.localhost", pause=0.05) as visitors:
        first.kill()
        first.wait()
        Client(port, "shop.localhost").get("/while-it-is-dead")
        second = run_router(environ)
    assert not visitors.failures
    assert wire.call(home / "run/router.sock", "ping").result["haproxy"] == pid
    redis = connect(redis_server)
    line = until(lambda: next((line for _, line in recent(redis, "the-app", 1500) if "while-it-is-dead" in line.text), None))
    assert (line.source, line.process) == ("heroku", "router") and line.text.startswith("at=info method=GET")

    engine = create_engine(f"sqlite:///{home / 'davit.db'}")
    with Session(engine) as session:
        session.get(models.App, "the-app").maintenance = True  # type: ignore[union-attr]
        session.commit()
    wire.call(home / "run/router.sock", "sync", {"app_id": "the-app"})
    assert Client(port, "shop.localhost").get().status == 503
    with Session(engine) as session:
        session.get(models.App, "the-app").maintenance = False  # type: ignore[union-attr]
        session.commit()
    engine.dispose()
    until(lambda: Client(port, "shop.localhost").get().status == 200, 10)  # nobody told it

    second.terminate()
    assert second.wait(10) == 0
    assert Client(port, "shop.localhost").get().status == 200, "HAProxy serves on"


def test_lua_keeps_no_list_of_all_apps_for_every_thread(home: Path) -> None:
    """With 10,000 apps and four threads such lists are more than Lua may have, and HAProxy does not start."""

    async def starts() -> None:
        frame = Frame(directory=home / "1", listeners=(), threads=8, jail=home)
        files = compose(frame, 1000, ())
        files["haproxy.cfg"] = files["haproxy.cfg"].replace("tune.lua.maxmem 64", "tune.lua.maxmem 8")
        with open(os.devnull, "wb") as log:
            made = await generation.start(PROGRAM or find_program(), home, 1, files, {"version": (2, 6)}, [], log.fileno())
        made.signal(signal.SIGKILL)
        await made.ended()
        made.forget()

    asyncio.run(starts())


@pytest.mark.parametrize(("told", "good"), [("2.4.12-1", False), ("2.3.99", False), ("2.4.13", True), ("2.6.12-1+deb12u4", True), ("3.0", True)])
def test_an_haproxy_that_lacks_what_is_configured_is_refused(told: str, good: bool, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text(f"#!/bin/sh\necho 'HAProxy version {told} 2025/10/03 - https://haproxy.org/'\n")
    program.chmod(0o755)
    if good:
        assert service.program_version(program) == tuple(map(int, told.split(".")[:2]))
    else:
        with pytest.raises(generation.HaproxyFailed, match=r"needs HAProxy 2\.4\.13 or newer; this is: HAProxy version 2"):
            service.program_version(program)


def test_who_waits_for_an_old_haproxys_end_may_be_told_to_stop_when_its_descriptor_is_another_files(tmp_path: Path) -> None:
    async def story() -> None:
        here, there = socket.socketpair()
        number = os.pidfd_open(os.getpid())
        old = generation.Generation(1, tmp_path, os.getpid(), {}, Control(tmp_path / "none"), number)
        waiting = asyncio.ensure_future(old.ended())
        await asyncio.sleep(0)
        old.release()
        os.dup2(here.fileno(), number)
        _, writer = await asyncio.open_connection(sock=socket.socket(fileno=number))
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
        writer.close()
        here.close()
        there.close()

    asyncio.run(story())
