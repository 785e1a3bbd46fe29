"""Log tails over real connections: many at once, slow ones, broken ones, and nothing twice or missing."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from urllib.parse import urlsplit

import pytest

from cli.client import Client
from logs import stream
from logs.stream import Line
from tests.cli.living import Davit, owner_app
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

pytestmark = pytest.mark.usefixtures("_own_directory")


class Following:
    """A connection that follows an app's log."""

    def __init__(self, url: str, *, events: bool = True, last: str | None = None, window: int | None = None) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        if window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.settimeout(60)
        self.socket.connect((parts.hostname, parts.port))
        lines = [f"GET {parts.path} HTTP/1.1", "Host: x", f"Accept: {'text/event-stream' if events else '*/*'}", *([f"Last-Event-ID: {last}"] if last else [])]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.data = b""

    def until(self, text: str) -> bytes:
        while text.encode() not in self.data:
            piece = self.socket.recv(1 << 20)
            assert piece, f"it ended before {text!r} came: {self.data[-500:]!r}"
            self.data += piece
        return self.data

    def texts(self) -> list[str]:
        return re.findall(r"app\[web\.1\]: (.*)", self.data.decode())

    def close(self) -> None:
        self.socket.close()


Follow = Callable[..., Following]


@pytest.fixture
def follow() -> Iterator[Follow]:
    made: list[Following] = []

    def start(url: str, **options: object) -> Following:
        made.append(Following(url, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def app(davit: Davit, request: pytest.FixtureRequest) -> tuple[str, str]:
    name = "t" + str(abs(hash(request.node.name)) % 10**12)
    return name, owner_app(name)


def _client(davit: Davit) -> Client:
    return Client(davit.url, (davit.home / "owner-token").read_text().strip())


def _url(davit: Davit, name: str, **asked: object) -> str:
    return str(_client(davit).post(f"/apps/{name}/log-sessions", {"lines": 100, "tail": True, **asked})["logplex_url"])


def _say(davit: Davit, app_id: str, *texts: str) -> None:
    at = datetime.now(timezone.utc)
    stream.emit(stream.connect(davit.env["REDIS_URL"]), app_id, [Line(at, "app", "web.1", text) for text in texts], wait=30)


def test_many_more_tails_than_threads_get_every_line_and_nobody_else_waits(davit: Davit, app: tuple[str, str], follow: Follow) -> None:
    name, app_id = app
    _say(davit, app_id, "before")
    url = _url(davit, name)
    tails = [follow(url, events=n % 2 == 0) for n in range(60)]  # the server has 16 threads
    for tail in tails:
        tail.until("before")
    _say(davit, app_id, *(f"line {n}" for n in range(300)))
    for tail in tails:
        tail.until("line 299\n")
        assert tail.texts() == ["before", *(f"line {n}" for n in range(300))]
    assert _client(davit).get("/")["name"] == "davit"


def test_who_asks_for_the_head_of_a_tail_gets_just_that(davit: Davit, app: tuple[str, str]) -> None:
    name, app_id = app
    _say(davit, app_id, "before")
    parts = urlsplit(_url(davit, name))
    with socket.create_connection((str(parts.hostname), parts.port or 80), 60) as line:
        line.sendall(f"HEAD {parts.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := line.recv(65536):
            data += piece
    assert data.startswith(b"HTTP/1.1 200 ") and data.endswith(b"\r\n\r\n") and b"text/plain" in data, data


def test_a_tail_goes_on_after_the_last_line_that_was_seen(davit: Davit, app: tuple[str, str], follow: Follow) -> None:
    name, app_id = app
    url = _url(davit, name)
    first = follow(url)
    _say(davit, app_id, "one", "two")
    first.until("two\n")
    first.close()
    last = re.findall(rb"id: (\S+)", first.data)[-1].decode()
    _say(davit, app_id, "while away")
    again = follow(url, last=last)
    again.until("while away")
    _say(davit, app_id, "after")
    again.until("after\n")
    assert again.texts() == ["while away", "after"]


@pytest.mark.parametrize("last", ["18446744073709551615-0", "18446744073709551615-18446744073709551615", "9" * 30 + "-1", "99999999999999"])
def test_who_says_to_have_seen_what_is_still_to_come_silences_nobody(davit: Davit, app: tuple[str, str], follow: Follow, last: str) -> None:
    name, app_id = app
    _say(davit, app_id, "before")
    url = _url(davit, name)
    forger = follow(url, last=last)
    assert forger.until("\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    other = follow(url)
    other.until("before\n")
    _say(davit, app_id, "x")
    for tail in (forger, other):
        tail.until("web.1]: x\n")


def test_filters_hold_for_new_lines_too(davit: Davit, app: tuple[str, str], follow: Follow) -> None:
    name, app_id = app
    tail = follow(_url(davit, name, source="app", dyno="web.1"))
    tail.until("\r\n\r\n")
    redis = stream.connect(davit.env["REDIS_URL"])
    at = datetime.now(timezone.utc)
    stream.emit(redis, app_id, [Line(at, "heroku", "router", "at=info"), Line(at, "app", "web.2", "other"), Line(at, "app", "web.1", "mine")], wait=30)
    tail.until("mine")
    assert b"at=info" not in tail.data and b"other" not in tail.data


@pytest.mark.row("tail-unread")
@pytest.mark.code("L11")
def test_who_does_not_read_holds_up_nobody_and_is_told_what_was_lost(davit: Davit, app: tuple[str, str], follow: Follow) -> None:
    name, app_id = app
    url = _url(davit, name)
    slow, quick = follow(url, window=4096), follow(url)
    slow.until("\r\n\r\n")
    quick.until("\r\n\r\n")
    for n in range(35):  # far more than sockets and buffers hold
        _say(davit, app_id, *(f"{n}.{m} {'x' * 900}" for m in range(200)))
        quick.until(f" app[web.1]: {n}.199 ")
    assert len(quick.texts()) == 7_000
    _say(davit, app_id, "the end")
    with contextlib.suppress(AssertionError, TimeoutError):
        while b"L11" not in slow.data:
            slow.data += slow.socket.recv(1 << 20) or b"L11"
            _say(davit, app_id, "more")
    assert re.search(rb"heroku\[logplex\]: Error L11 \(tail buffer overflow\): \d+ messages dropped since ", slow.data)
    assert_says("tail-unread", slow.data[-100_000:].decode(errors="replace"))


def test_a_client_that_hangs_up_gives_its_place_back(davit: Davit, app: tuple[str, str], follow: Follow) -> None:
    name, _ = app
    before = _descriptors(davit)
    tails = [follow(_url(davit, name)) for _ in range(10)]
    for tail in tails:
        tail.until("\r\n\r\n")
    for tail in tails:
        tail.close()
    wait_until(lambda: _descriptors(davit) <= before + 3, "the connections' end")


def _descriptors(davit: Davit) -> int:
    """Connections of the server, as it sees them."""
    port = urlsplit(davit.url).port
    with open("/proc/net/tcp") as table:
        return sum(1 for row in table if f":{port:04X} " in row.split()[1] + " " and row.split()[3] in ("01", "08"))
