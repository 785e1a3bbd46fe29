"""The load generator is only worth something when it notices: a server that fails on purpose, and keeps its own count."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from tests.e2e import load as kinds
from tests.e2e.chaos import SUPERVISOR, Event, TookTooLong, name_of, processes, watch
from tests.e2e.load import Load, Tally

ANSWER = re.compile(rb"^version=(\w+)\n$")
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nversion=v1\n"


class Server:
    """Speaks HTTP by the book until ``misbehave`` says otherwise, and counts what it did.

    Args:
        misbehave: from the request's number (0, 1, …) to what is done: a name below; None is a good answer.
    """

    def __init__(self, misbehave: Callable[[int], str | None]) -> None:
        self._misbehave = misbehave
        self.did: Counter[str] = Counter()
        self.connections = 0
        self.number = 0
        self.body = b"version=v1\n"

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[str, int]]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        try:
            yield server.sockets[0].getsockname()[:2]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                how = self._misbehave(self.number) or "good"
                self.number += 1
                self.did[how] += 1
                if not await self._answer(how, writer) or b"Connection: close" in head:
                    return
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _answer(self, how: str, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if how in _WORDS:
            writer.write(_WORDS[how])
            await writer.drain()
            return how not in _FINAL
        if how == "reset":
            opened = writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if how == "hang":
            await asyncio.sleep(3600)
        if how == "good":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.body), self.body))
            await writer.drain()
            return True
        return False


_WORDS = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nvers\r\n7;x=y\r\nion=v2\n\r\n0\r\n\r\n",
    "until the end": b"HTTP/1.0 200 OK\r\n\r\nversion=v3\n",
    "good-bye": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\nversion=v1\n",
    "503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nH10\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "other body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nversi",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nversion=v1\n",
    "no http": b"SSH-2.0-nothing\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}
_FINAL = {"until the end", "good-bye", "half a head", "half a body", "half a chunk", "no http", "bad chunk"}


def load_on(address: tuple[str, int], **options: float) -> Load:
    return Load(address, "app.localhost", answer=ANSWER, **{"rate": 1000, "timeout": 20, **options})  # type: ignore[arg-type]


def shoot(server: Server, count: int, **options: float) -> Tally:
    async def go() -> Tally:
        async with server.listening() as address:
            return await load_on(address, **options).send(count)

    return asyncio.run(go())


def test_good_answers_are_no_failures_and_versions_are_counted() -> None:
    ways = [None, "chunked", "until the end", "good-bye"]
    server = Server(lambda n: ways[n % 4])
    tally = shoot(server, 200)
    assert tally.failed == 0
    assert tally.sent == sum(tally.answers.values()) == len(tally.seconds) == 200
    assert tally.answers == {"v1": 100, "v2": 50, "v3": 50}


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("503", "status 503"),
        ("404", "status 404"),
        ("other body", kinds.WRONG),
        ("half a head", kinds.CUT),
        ("half a body", kinds.CUT),
        ("half a chunk", kinds.CUT),
        ("no http", kinds.MALFORMED),
        ("bad chunk", kinds.MALFORMED),
    ],
)
def test_every_bad_answer_is_counted_once_under_its_kind(how: str, kind: str) -> None:
    server = Server(lambda n: how if n % 10 == 7 else None)
    tally = shoot(server, 200)
    assert server.did[how] == 20
    assert tally.failures == {kind: 20}
    assert tally.answers == {"v1": 180}
    assert tally.samples[0][1].startswith(kind)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_connection_lost_without_an_answer_counts_fresh_or_kept(how: str) -> None:
    server = Server(lambda n: how if n % 10 == 7 else None)
    tally = shoot(server, 200)
    assert server.did[how] == 20
    assert tally.failed == 20
    assert set(tally.failures) <= {kinds.RESET, kinds.REUSE}
    only_fresh = shoot(Server(lambda n: how if n % 10 == 7 else None), 200, kept=1)
    assert only_fresh.failures == {kinds.RESET: 20}


def test_no_answer_in_time_counts_and_does_not_slow_the_others_down() -> None:
    server = Server(lambda n: "hang" if n % 10 == 7 else None)
    tally = shoot(server, 100, timeout=8)  # long enough for a busy machine to answer the others
    assert tally.failures == {kinds.TIMEOUT: 10}
    assert tally.answers == {"v1": 90}


def test_nobody_listening_counts_every_request() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        tally = asyncio.run(load_on(closed.getsockname()).send(50))
    assert tally.failures == {kinds.REFUSED: 50}


def test_requests_that_cannot_be_sent_are_failures_too() -> None:
    tally = shoot(Server(lambda n: "hang"), 30, timeout=4, in_flight=10)
    assert tally.failures == {kinds.TIMEOUT: 10, kinds.BACKLOG: 20}


def test_kept_and_fresh_connections_are_mixed() -> None:
    server = Server(lambda n: None)
    shoot(server, 200, rate=400)
    assert server.number == 200
    assert 100 < server.connections < 200  # a fresh one for every other request, and a few that are kept
    server = Server(lambda n: None)
    shoot(server, 50, kept=1)
    assert server.connections == 50


def test_the_pace_is_kept() -> None:
    async def go() -> float:
        async with Server(lambda n: None).listening() as address:
            began = asyncio.get_running_loop().time()
            await load_on(address, rate=200).send(101)
            return asyncio.get_running_loop().time() - began

    assert asyncio.run(go()) >= 0.5  # never faster; a busy machine may be slower


def test_failures_count_for_the_event_during_which_they_were_sent() -> None:
    server = Server(lambda n: None)
    seen: list[str] = []

    async def change() -> None:
        server.body = b"version=v2\n"
        await asyncio.sleep(0.2)

    async def break_it() -> None:
        await asyncio.sleep(0.3)  # what was sent before this event has been answered
        server._misbehave = lambda n: "503"
        await asyncio.sleep(0.2)
        server._misbehave = lambda n: None
        await asyncio.sleep(0.3)

    async def never() -> None:
        raise TookTooLong("web.1 is starting")

    async def go() -> object:
        async with server.listening() as address:
            load = load_on(address, rate=200)
            events = [Event("deploy", change), Event("deploy", change), Event("kill", break_it), Event("scale", never)]
            return await watch(load, events, settle=0.1, progress=seen.append)

    report = asyncio.run(go())
    rows = report.rows  # type: ignore[attr-defined]
    assert rows["deploy"].tally.failed == rows["scale"].tally.failed == rows["steady"].tally.failed == 0
    assert rows["kill"].tally.failures == {"status 503": server.did["503"]}
    assert server.did["503"] > 0
    assert "v2" in rows["deploy"].tally.answers
    assert len(rows["deploy"].seconds) == 2
    assert report.failed == server.did["503"]  # type: ignore[attr-defined]
    assert report.problems == ["scale: web.1 is starting"]  # type: ignore[attr-defined]
    assert sum(row.tally.sent for row in rows.values()) == server.number
    assert seen == ["1/4 deploy", "2/4 deploy", "3/4 kill", "4/4 scale"]
    table = report.table()  # type: ignore[attr-defined]
    assert "status 503" in table and "NOT IN FORCE: scale: web.1 is starting" in table


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/srv/davit/.venv/bin/python", "-m", "router"], "router"),
        (["python3", "-m", "builder.ssh"], "builder.ssh"),
        (["/usr/bin/python3", "/x/.venv/bin/gunicorn", "app:app"], "web"),
        (["gunicorn: master [app:app]"], "web"),
        (["/usr/sbin/haproxy", "-W", "-f", "x"], "haproxy"),
        (["redis-server *:0"], "redis-server"),
        (["/usr/bin/redis-server unixsocket:/tmp/x"], "redis-server"),
        (["/x/.venv/bin/python3.11", "-m", "cli.host.supervisor"], SUPERVISOR),
        (["/x/.venv/bin/python -m cli.host.supervisor"], SUPERVISOR),
        (["davit: runtime"], "runtime"),
        (["", ""], "unknown"),
    ],
)
def test_processes_are_known_by_their_command_lines(argv: list[str], name: str) -> None:
    assert name_of(argv) == name


def test_a_process_that_is_gone_has_no_name() -> None:
    assert processes([2**22 + 1]) == {}
