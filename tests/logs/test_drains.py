"""Drains: what arrives at real servers on this machine, over HTTP and syslog, and what is counted when they fail."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foundation import outbound
from foundation.settings import from_environment
from logs import delivery, places, stream
from logs.drains import KEEP, Drain, Drains, read_database
from logs.frames import frame
from logs.places import Place
from logs.resp import Client
from logs.stream import Line
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

AT = datetime(2012, 11, 30, 6, 45, 29, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def _near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of these tests are on this machine, and nobody waits long."""
    monkeypatch.setattr(outbound, "settings", lambda: from_environment({"DAVIT_OUTBOUND_ALLOW": "127.0.0.1"}))
    monkeypatch.setattr(delivery, "PAUSES", (0.05, 0.2))
    monkeypatch.setattr(delivery, "TIMEOUT", 20.0)


def test_a_frame_is_as_herokus() -> None:
    line = Line(AT, "heroku", "web.3", "State changed from starting to up é")
    packed = frame(line, "host")
    count, _, message = packed.partition(b" ")
    assert int(count) == len(message) and message.endswith(b"\n")
    assert message.startswith(b"<45>1 2012-11-30T06:45:29.000000+00:00 host heroku web.3 - State changed")
    assert frame(Line(AT, "app", "web.1", "x"), "h").split(b" ")[1] == b"<190>1"
    assert frame(Line(AT, "heroku", "router", "x"), "h").split(b" ")[1] == b"<158>1"


def texts(body: bytes) -> list[str]:
    """The messages in octet-counted frames."""
    found = []
    while body:
        count, _, rest = body.partition(b" ")
        found.append(rest[: int(count)].decode().rstrip("\n").split(" - ", 1)[1])
        body = rest[int(count) :]
    return found


class Receiver:
    """An HTTP server that answers what a test tells it to."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else 204
                outer.requests.append(({**self.headers, "status": str(status), "path": self.path}, body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def taken(self) -> list[str]:
        """Messages that were answered with 2xx."""
        return [text for headers, body in list(self.requests) if headers["status"][0] == "2" for text in texts(body)]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


Run = Callable[..., Drains]


@pytest.fixture
def run(client: Client) -> Iterator[Run]:
    """Starts drains; they end with the test."""
    started: list[Drains] = []

    def start(*wanted: Drain) -> Drains:
        started.append(Drains(client, lambda: wanted))
        started[-1].start()
        wait_until(lambda: len(started[-1].deliveries) == len(wanted), "the drains' start")
        return started[-1]

    yield start
    for drains in started:
        drains.stop()


def say(client: Client, app_id: str, *texts: str) -> None:
    stream.emit(client, app_id, [Line(AT, "app", "web.1", text) for text in texts], wait=5)


def test_an_https_drain_gets_every_line_once_and_in_order(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    run(Drain(f"drain-{app_id}", app_id, "d.1", f"http://me:secret@127.0.0.1:{receiver.port}/in?k=v"))
    say(client, app_id, *map(str, range(500)))
    wait_until(lambda: len(receiver.taken()) >= 500, "the lines' arrival")
    assert receiver.taken() == list(map(str, range(500)))
    headers = receiver.requests[0][0]
    assert headers["Content-Type"] == "application/logplex-1" and headers["Logplex-Drain-Token"] == "d.1"
    assert headers["Authorization"].startswith("Basic ") and headers["path"] == "/in?k=v"
    assert sum(int(one["Logplex-Msg-Count"]) for one, _ in receiver.requests) == 500
    assert len({one["Logplex-Frame-Id"] for one, _ in receiver.requests}) == len(receiver.requests)


@pytest.mark.row("drain-unreachable")
@pytest.mark.code("L13")
def test_a_frame_that_was_not_taken_comes_again_with_the_same_id(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    receiver.statuses = [500, 429, 503]
    run(Drain(f"drain-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/"))
    say(client, app_id, "precious")
    wait_until(receiver.taken, "the line's arrival")
    attempts = [headers for headers, body in receiver.requests if b"precious" in body]
    assert [headers["status"] for headers in attempts] == ["500", "429", "503", "204"]
    assert len({headers["Logplex-Frame-Id"] for headers in attempts}) == 1 and receiver.taken().count("precious") == 1
    complaint = [line.text for _, line in stream.recent(client, app_id, 10)][1]
    assert complaint.startswith("Error L13 (local delivery error): d.1: http://127.0.0.1") and "status 500" in complaint
    assert_says("drain-unreachable", complaint)


@pytest.mark.row("drain-certificate")
@pytest.mark.code("L14")
def test_a_server_whose_certificate_nobody_vouches_for_gets_nothing_and_the_apps_log_says_so(
    run: Run, client: Client, app_id: str, receiver: Receiver, tmp_path: Path
) -> None:
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "chain.pem"]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", *files]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    run(Drain(f"drain-{app_id}", app_id, "d.1", f"https://127.0.0.1:{receiver.port}/"))
    say(client, app_id, "precious")

    def complaints() -> list[str]:
        return [line.text for _, line in stream.recent(client, app_id, 10) if "L14" in line.text]

    wait_until(complaints, "the complaint")
    assert_says("drain-certificate", complaints()[0])
    assert not receiver.requests


@pytest.mark.row("drain-overflow")
@pytest.mark.code("L10")
def test_what_is_refused_for_good_is_given_up_and_counted(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    receiver.statuses = [400]
    run(Drain(f"drain-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/"))
    say(client, app_id, "unwanted")
    wait_until(lambda: receiver.requests, "the first frame")
    say(client, app_id, "next")
    wait_until(lambda: "next" in receiver.taken(), "the next line's arrival")
    assert any(re.match(r"Error L10 \(output buffer overflow\): \d+ messages dropped since ", text) for text in receiver.taken())
    assert_says("drain-overflow", "\n".join(receiver.taken()))


def numbered(*texts: str, after: int = 0) -> list[tuple[Place, Line]]:
    return [(Place(f"1-{n}", n), Line(AT, "app", "web.1", text)) for n, text in enumerate(texts, after + 1)]


def test_lines_that_find_no_room_are_counted(client: Client, app_id: str, receiver: Receiver) -> None:
    receiver.statuses = [503] * 5
    settled: list[tuple[Place, delivery.Lost]] = []
    url = f"http://127.0.0.1:{receiver.port}/"
    one = delivery.Delivery(Drain("1", app_id, "d.1", url), lambda *told: settled.append(told), lambda text: None)
    try:
        one.put(numbered("first"))
        wait_until(lambda: receiver.requests, "the first attempt")
        one.put(numbered(*map(str, range(3000)), after=1))
        wait_until(lambda: settled and settled[-1][0].number == 3001, "the last line's arrival")
    finally:
        one.stop()
        one.join(30)
    got = receiver.taken()
    assert got[0] == "first" and lost_of(got) == 3000 - sum(text.isdigit() for text in got) == 3000 - delivery.BUFFER
    assert all(lost.count == 0 for _, lost in settled)


def test_what_a_drain_has_not_got_is_counted(app_id: str, receiver: Receiver) -> None:
    receiver.statuses = [503] * 10_000
    settled: list[Place] = []
    url = f"http://127.0.0.1:{receiver.port}/"
    one = delivery.Delivery(Drain("1", app_id, "d.1", url), lambda place, lost: settled.append(place), lambda text: None)
    try:
        assert one.lag() == (0, 0.0, 0)
        one.put(numbered("first"))
        wait_until(lambda: receiver.requests, "the first attempt")
        one.put(numbered(*map(str, range(3000)), after=1), 5)
        assert one.lag() == (1 + delivery.BUFFER, AT.timestamp(), 5 + 3000 - delivery.BUFFER)
        receiver.statuses = []
        wait_until(lambda: settled and settled[-1].number == 3001, "the last line's arrival")
        assert one.lag() == (0, 0.0, 0)
        receiver.statuses = [400]
        one.put(numbered("unwanted", after=3001))
        wait_until(lambda: len(settled) and settled[-1].number == 3002, "its being given up")
        assert one.lag() == (0, 0.0, 1)
    finally:
        one.stop()
        one.join(30)


def test_drains_that_are_behind_are_told_of_until_they_have_caught_up(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    receiver.statuses = [503] * 10_000
    drains = run(Drain(f"drain-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/"))
    assert drains.behind(60) == {"all": 1, "late": 0, "worst": []}
    say(client, app_id, "said long ago")
    wait_until(lambda: drains.behind(60)["late"], "its being behind")
    (one,) = drains.behind(60)["worst"]
    assert one["app_id"] == app_id and one["lines"] >= 1 and one["lost"] == 0 and one["seconds"] > 86400
    assert drains.behind(one["seconds"] + 3600) == {"all": 1, "late": 0, "worst": []}
    receiver.statuses = []
    wait_until(lambda: not drains.behind(60)["late"], "its catching up")
    assert "said long ago" in receiver.taken()


def lost_of(texts: list[str]) -> int:
    """How many lines the receiver was told to have lost."""
    return sum(int(match[1]) for text in texts if (match := re.search(r"L10 .*: (\d+) messages dropped", text)))


def test_lines_that_left_the_window_before_a_drain_read_them_are_counted(
    run: Run, client: Client, app_id: str, receiver: Receiver
) -> None:
    drain = Drain(f"id-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/")
    first = run(drain)
    begun = client.execute_command("GET", f"drains:{drain.id}")
    say(client, app_id, "one")
    wait_until(lambda: receiver.taken() == ["one"], "the first line's arrival")
    wait_until(lambda: client.execute_command("GET", f"drains:{drain.id}") != begun, "its being noted")
    first.stop()
    stream.emit(client, app_id, [Line(AT, "heroku", "web.1", "State changed from up to crashed")], wait=5)
    say(client, app_id, *map(str, range(5000)))
    _until_there(client, app_id, 5002)
    run(drain)
    wait_until(lambda: "4999" in receiver.taken(), "the last line's arrival")
    got = receiver.taken()
    arrived = sum(text.isdigit() for text in got)
    assert "State changed from up to crashed" not in got, "one more than has room goes first"
    assert lost_of(got) + arrived == 5001 and arrived == delivery.BUFFER


def test_what_was_put_aside_of_lines_that_left_the_window_is_read_and_only_the_rest_is_missed(client: Client, app_id: str) -> None:
    say(client, app_id, "one")
    start = _until_there(client, app_id, 1)
    stream.emit(client, app_id, [Line(AT, "heroku", "web.1", "State changed from up to crashed")], wait=5)
    say(client, app_id, *map(str, range(6000)))
    until = _until_there(client, app_id, 6002)
    missed, lines = places.read_on(client, app_id, start, until)
    assert lines[0][1].text == "State changed from up to crashed" and lines[-1][1].text == "5999"
    assert missed == 6001 - len(lines) > 0
    assert [place.number for place, _ in lines] == list(range(missed + 2, 6003))
    assert places.read_on(client, app_id, until, places.newest(client, app_id)) == (0, [])
    say(client, app_id, "after")
    again, (last,) = places.read_on(client, app_id, until, _until_there(client, app_id, 6003))
    assert again == 0 and last[0].number == 6003 and last[1].text == "after"


def _until_there(client: Client, app_id: str, count: int) -> Place:
    """The place of the newest line, once the app has had ``count``."""
    wait_until(lambda: places.newest(client, app_id).number == count, f"{count} lines in Redis")
    return places.newest(client, app_id)


def _milliseconds(client: Client) -> int:
    """Redis's clock."""
    seconds, micros = client.execute_command("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def test_a_window_that_was_made_anew_counts_from_its_own_beginning(client: Client, app_id: str) -> None:
    assert places.newest(client, app_id) == ("0-0", 0)
    say(client, app_id, "one", "two", "three")
    old = _until_there(client, app_id, 3)
    stream.forget(client, app_id)
    wait_until(lambda: _milliseconds(client) > int(old.id.partition("-")[0]), "a later millisecond: ids begin with it")
    say(client, app_id, "four")
    missed, lines = places.read_on(client, app_id, old, _until_there(client, app_id, 1))
    assert missed == 0 and [(place.number, line.text) for place, line in lines] == [(1, "four")]


def test_what_a_drain_has_not_got_when_it_never_got_anything_comes_after_a_restart(
    run: Run, client: Client, app_id: str, receiver: Receiver
) -> None:
    drain = Drain(f"id-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/")
    receiver.statuses = [503] * 10_000
    first = run(drain)
    say(client, app_id, "precious")
    wait_until(lambda: receiver.requests, "an attempt")
    first.stop()
    receiver.statuses = []
    run(drain)
    wait_until(lambda: "precious" in receiver.taken(), "the line's arrival")


def test_what_is_noted_of_a_drain_that_takes_nothing_does_not_expire(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    running = run(Drain(f"id-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/"))
    client.execute_command("EXPIRE", f"drains:id-{app_id}", 60)
    running._kept_notes -= 2 * KEEP
    running.look()
    wait_until(lambda: int(client.execute_command("TTL", f"drains:id-{app_id}")) > 86400, "its being kept on")


def test_an_error_that_nobody_foresaw_ends_no_delivery(
    app_id: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[Place] = []
    told: list[str] = []
    troubles: list[Exception] = [OSError(24, "Too many open files")]
    look = outbound.refusal

    def refusal(*words: Any) -> str | None:
        if troubles:
            raise troubles.pop()
        return look(*words)

    monkeypatch.setattr(outbound, "refusal", refusal)
    url = f"http://127.0.0.1:{receiver.port}/"
    one = delivery.Delivery(Drain("1", app_id, "d.1", url), lambda place, lost: settled.append(place), told.append)
    try:
        one.put(numbered("precious"))
        wait_until(lambda: settled, "the line's arrival")
        assert told == ["Error L13 (local delivery error): d.1: Davit could not send; its own log says why."]
    finally:
        one.stop()
        one.join(30)


def test_a_database_that_is_busy_is_not_one_without_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "davit.db"
    monkeypatch.setattr("logs.drains.settings", lambda: from_environment({"DATABASE_URL": f"sqlite:///{file}"}))
    monkeypatch.setattr("logs.drains.BUSY_SECONDS", 0.01)
    assert read_database() == [], "there is no file"
    file.touch()
    assert read_database() == [], "there is no table"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("CREATE TABLE log_drains (id, app_id, token, url)")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            read_database()


def test_what_is_lost_and_not_told_of_yet_is_told_after_a_restart(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    drain = Drain(f"id-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/")
    receiver.statuses = [400]
    first = run(drain)
    begun = client.execute_command("GET", f"drains:{drain.id}")
    say(client, app_id, "unwanted")
    wait_until(lambda: client.execute_command("GET", f"drains:{drain.id}") != begun, "its being given up")
    first.stop()
    run(drain)
    say(client, app_id, "next")
    wait_until(lambda: "next" in receiver.taken(), "the next line's arrival")
    assert "unwanted" not in receiver.taken() and lost_of(receiver.taken()) >= 1


def test_a_syslog_drain_gets_counted_frames_and_comes_again_after_a_break(run: Run, client: Client, app_id: str) -> None:
    pieces: list[bytes] = []
    breaking = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                pieces.append(data)
                if b"break" in data and not breaking.is_set():
                    self.request.shutdown(socket.SHUT_RDWR)
                    breaking.set()  # now the other side can know
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        run(Drain(f"drain-{app_id}", app_id, "d.token", f"syslog://127.0.0.1:{server.server_address[1]}"))
        say(client, app_id, "one", "break")
        assert breaking.wait(30)
        say(client, app_id, "after")
        wait_until(lambda: b"after" in b"".join(pieces), "the line after the break")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert b"<190>1 2012-11-30T06:45:29.000000+00:00 d.token app web.1 - one\n" in b"".join(pieces)


def test_drains_go_on_where_they_were(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    drain = Drain(f"id-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/")
    first = run(drain)
    begun = client.execute_command("GET", f"drains:{drain.id}")
    say(client, app_id, "one")
    wait_until(lambda: receiver.taken() == ["one"], "the first line's arrival")
    wait_until(lambda: client.execute_command("GET", f"drains:{drain.id}") != begun, "its being noted")
    first.stop()
    say(client, app_id, "while nobody looked")
    run(drain)
    wait_until(lambda: len(receiver.taken()) >= 2, "the second line's arrival")
    assert receiver.taken() == ["one", "while nobody looked"]


def test_what_an_earlier_davit_kept_of_a_drain_is_gone_on_from(run: Run, client: Client, app_id: str, receiver: Receiver) -> None:
    """A Redis that lives on over an upgrade has the id of a line without the counts."""
    say(client, app_id, "read before")
    place = _until_there(client, app_id, 1)
    drain = Drain(f"id-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/")
    client.execute_command("SET", f"drains:{drain.id}", place.id)
    say(client, app_id, "while nobody looked")
    run(drain)
    wait_until(lambda: receiver.taken() == ["while nobody looked"], "the line's arrival")
    wait_until(lambda: client.execute_command("GET", f"drains:{drain.id}").endswith(b" 2 0 0"), "its place being noted anew")


def test_a_drain_to_an_apps_own_domain_is_not_followed_there(
    run: Run, client: Client, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 443))]
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: leads)
        run(Drain(f"drain-{app_id}", app_id, "d.1", "https://www.example.com/", ours=True))
        say(client, app_id, "secret")
        wait_until(lambda: any("this Davit itself" in line.text for _, line in stream.recent(client, app_id, 10)), "the complaint")


def test_a_drain_to_this_host_is_not_followed_there(run: Run, client: Client, app_id: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "settings", lambda: from_environment({}))
    run(Drain(f"drain-{app_id}", app_id, "d.1", f"http://127.0.0.1:{receiver.port}/"))
    say(client, app_id, "secret")
    wait_until(lambda: any("which Davit does not call" in line.text for _, line in stream.recent(client, app_id, 10)), "the complaint")
    assert not receiver.requests
