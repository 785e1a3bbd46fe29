"""The web process's one port: HTTP, HTTPS and rendezvous, and clients that are slow, hostile or gone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import ssl
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from api import door
from cli.client import ACCEPT, Client
from tests.cli.living import Davit, owner_app
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

pytestmark = pytest.mark.usefixtures("_own_directory")


def _port(davit: Davit) -> int:
    port = urlsplit(davit.url).port
    assert port
    return port


def _owner(davit: Davit) -> Client:
    return Client(davit.url, (davit.home / "owner-token").read_text().strip())


def _trust(davit: Davit) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(davit.home / "keys" / "ca.pem"))
    return context


@contextlib.contextmanager
def _secure(davit: Davit, name: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as plain, _trust(davit).wrap_socket(plain, server_hostname=name) as line:
        yield line


def _whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return bool(end and length and len(body) >= int(length[1]))


def _ask(line: socket.socket, head: str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    line.sendall(head.encode())
    answer = b""
    while not _whole(answer):
        piece = line.recv(65536)
        assert piece, answer
        answer += piece
    return answer


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_one_port_speaks_https_with_a_certificate_of_its_own_authority(davit: Davit, name: str) -> None:
    with _secure(davit, name) as line:
        for _ in range(3):  # the connection is kept
            answer = _ask(line)
            assert answer.startswith(b"HTTP/1.1 200") and b'"davit"' in answer


def test_urls_that_are_handed_out_have_the_scheme_that_the_caller_came_by(davit: Davit) -> None:
    owner_app("scheming")
    client = _owner(davit)
    head = f"POST /apps/scheming/log-sessions HTTP/1.1\r\nHost: 127.0.0.1:{_port(davit)}\r\nAuthorization: Bearer {client.token}\r\nContent-Length: 2\r\n\r\n{{}}"
    with _secure(davit) as line:
        assert b'"logplex_url":"https://127.0.0.1' in _ask(line, head)
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line:
        assert b'"logplex_url":"http://127.0.0.1' in _ask(line, head)


def test_a_request_may_come_in_any_pieces(davit: Davit) -> None:
    with _secure(davit) as line:
        for letter in "GET / HTTP/1.1\r\nHost: x\r\n\r":
            line.sendall(letter.encode())
        assert _ask(line, "\n").startswith(b"HTTP/1.1 200")
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as plain:
        two = "GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2
        data = _ask(plain, two)
        while data.count(b"HTTP/1.1 200") < 2:
            data += plain.recv(65536)


@pytest.mark.parametrize("said", [b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x16" + os.urandom(600), b"\x00" * 100, b"SSH-2.0-x\r\n\r\n", b"davit-run-" + b"0" * 48,
                                  b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20000, b"\r\n\r\n", os.urandom(70000)])  # fmt: skip
def test_bytes_that_make_no_sense_end_their_connection_and_nothing_else(davit: Davit, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line, contextlib.suppress(OSError):
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        while line.recv(65536):
            pass
    assert _owner(davit).get("/")["name"] == "davit"


def test_what_cannot_be_read_is_logged_without_what_was_sent(davit: Davit) -> None:
    for sent in (b"GET /streams/logs/sesame two words HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nAuthorization sesame\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line:
            line.sendall(sent)
            assert line.recv(100).startswith(b"HTTP/1.1 400")
    wait_until(lambda: davit.log.read_text().count("it cannot be read as HTTP") >= 2, "both in the log")
    assert "sesame" not in davit.log.read_text()


def test_more_silent_and_half_done_clients_than_there_are_threads_keep_nobody_waiting(davit: Davit) -> None:
    with contextlib.ExitStack() as stack:
        long = b"Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n" + b"400\r\n" + b"\r\n0\r\n\r\n" * 100
        for said in (
            b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\n\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9000,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", b"POST /apps HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{",
            b"POST /dashboard/sign-in HTTP/1.1\r\nHost: x\r\ncontent-length:1000000\r\n\r\n" + b"a" * 10000,
            b"POST /apps HTTP/1.1\r\nHost: x\r\n" + long, b"POST /apps#/git-receive-pack HTTP/1.1\r\nHost: x\r\n" + long,
            b"POST /apps HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"0" * 30 + b"500\r\n\r\n{",
            b"POST /apps HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 30_000,
        ) * 14:  # the server has 16 threads  # fmt: skip
            line = stack.enter_context(socket.create_connection(("127.0.0.1", _port(davit)), 30))
            line.sendall(said)
        for _ in range(3):
            assert _owner(davit).get("/")["name"] == "davit"
            with _secure(davit) as line:
                assert _ask(line).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [3, 70_000, (1 << 20) + 1, 3 << 20])
def test_a_body_may_come_in_any_pieces_and_chunks(davit: Davit, chunked: bool, size: int) -> None:
    sent = b'{"name": "%s"}' % (b"-" * size)
    pieces = [sent[at : at + 30_000] for at in range(0, len(sent), 30_000)]
    if chunked:
        sent = b"".join(b"%x;what=ever\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Sum: 1\r\n\r\n"
    head = f"POST /apps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {_owner(davit).token}\r\nExpect: 100-continue\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n" if chunked else f"Content-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line:
        line.sendall(head.encode())
        answer = b""
        if size < 1 << 20:
            while b"100 Continue\r\n\r\n" not in answer:
                answer += line.recv(1000)
        with contextlib.suppress(OSError):  # what is too large is refused before all of it was taken
            for at in range(0, len(sent), 7_001):
                line.sendall(sent[at : at + 7_001])
        while not _whole(answer := answer.rpartition(b"100 Continue\r\n\r\n")[2]):
            piece = line.recv(65536)
            assert piece, answer[:1000]
            answer += piece
        if size > 1 << 20:
            assert answer.startswith(b"HTTP/1.1 413")
            return
        assert answer.startswith(b"HTTP/1.1 422") and b"ame" in answer
        assert _ask(line).startswith(b"HTTP/1.1 200"), "the connection is kept"


def test_who_begins_the_next_request_with_the_last_bytes_of_one_is_waited_for_by_no_thread(davit: Davit) -> None:
    two = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n"
    with _secure(davit) as secure, socket.create_connection(("127.0.0.1", _port(davit)), 30) as plain:
        for line in (secure, plain):
            line.sendall(two)
            answer = b""
            while not _whole(answer):
                answer += line.recv(65536)
            assert _ask(line, "Host: x\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 12_000, b"HTTP/1.1 431 Request Header Fields Too Large\r\n"),
        (b"POST /apps HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 250_000, b"HTTP/1.1 413 Content Too Large\r\n"),
    ],
    ids=["a head", "chunks"],
)
def test_what_has_no_end_is_refused(davit: Davit, said: bytes, answer: bytes) -> None:
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line:
        with contextlib.suppress(OSError):
            line.sendall(said)
        said = b""
        while not _whole(said) and (more := line.recv(65536)):
            said += more
        assert said.startswith(answer) and b'"id": "' in said


@pytest.mark.parametrize("said", [b"\x00\x01 nonsense\r\n\r\n", b"GET / HTTP/7.9\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"])
def test_what_is_no_http_is_told_so_in_json(davit: Davit, said: bytes) -> None:
    with _secure(davit) as secure, socket.create_connection(("127.0.0.1", _port(davit)), 30) as plain:
        for line in (secure, plain):
            line.sendall(said)
            answer = b""
            while not _whole(answer) and (more := line.recv(65536)):
                answer += more
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ") and b"Content-Type: application/json" in head, answer
            told = json.loads(body)
            assert told["id"] == "bad_request" and told["url"].endswith("/errors/bad_request") and told["message"]


def test_who_sends_the_most_is_let_go_when_there_is_too_much_of_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = object.__new__(door.Worker)
    worker.guests, worker.poller, worker.alive, worker.nr_conns = {}, selectors.DefaultSelector(), True, 2
    monkeypatch.setattr(door, "BODIES_BYTES", 200_000)
    pairs = [socket.socketpair() for _ in range(2)]
    with worker.poller:
        guests = []
        for (ours, theirs), size in zip(pairs, (90_000, 120_000), strict=True):
            theirs.setblocking(False)
            guests.append(door.Guest(None, theirs, "", ""))
            ours.sendall(b"POST /apps HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + b"x" * size)
            worker.receive(guests[-1])
        assert list(worker.guests) == guests[:1] and worker.nr_conns == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_who_was_let_go_in_the_instant_in_which_they_sent_more_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = object.__new__(door.Worker)
    worker.guests, worker.poller, worker.alive, worker.nr_conns = {}, selectors.DefaultSelector(), True, 2
    pairs = [socket.socketpair() for _ in range(2)]
    with worker.poller:
        for ours, theirs in pairs:
            theirs.setblocking(False)
            ours.sendall(b"POST /apps HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + b"x" * 90_000)
            worker.receive(door.Guest(None, theirs, "", ""))
            ours.sendall(b"x" * 20_000)
        monkeypatch.setattr(door, "BODIES_BYTES", 120_000)
        for key, _ in worker.poller.select():
            key.data(key.fileobj)
        assert len(worker.guests) == worker.nr_conns == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_the_oldest_of_too_many_silent_clients_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "GUESTS", 3)
    worker: Any = object.__new__(door.Worker)
    worker.guests, worker.poller, worker.alive, worker.nr_conns, worker.cfg = {}, selectors.DefaultSelector(), True, 0, None
    with contextlib.ExitStack() as stack:
        stack.enter_context(worker.poller)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        lines = []
        for _ in range(5):
            lines.append(stack.enter_context(socket.create_connection(listener.getsockname(), 30)))
            worker.accept(listener)
        assert worker.nr_conns == len(worker.guests) == 3
        assert [line.recv(1) for line in lines[:2]] == [b"", b""]
        for guest in list(worker.guests):
            worker.dismiss(guest)


def test_who_never_says_what_they_want_is_let_go() -> None:
    worker: Any = object.__new__(door.Worker)
    worker.guests, worker.poller, worker.alive, worker.nr_conns = {}, selectors.DefaultSelector(), True, 1
    worker.pending_conns = deque()
    ours, theirs = socket.socketpair()
    with ours, worker.poller:
        theirs.setblocking(False)
        guest = door.Guest(None, theirs, "", "")
        ours.sendall(b"GET / HT")
        worker.receive(guest)
        worker.murder_pending()
        assert worker.nr_conns == 1 and guest.early == b"GET / HT"
        guest.deadline = time.monotonic()
        worker.murder_pending()
        assert worker.nr_conns == 0 and not worker.guests and ours.recv(10) == b""


# heroku run


def _start(davit: Davit, app: str, command: str, *, tty: bool = True, **env: str) -> tuple[str, dict[str, Any]]:
    asked = {"command": command, "attach": True, "force_no_tty": not tty, "env": {"TERM": "xterm", **env}}
    dyno = _owner(davit).post(f"/apps/{app}/dynos", asked)
    url = urlsplit(dyno["attach_url"])
    assert url.scheme == "rendezvous" and url.netloc == f"127.0.0.1:{_port(davit)}"
    return url.path[1:], dyno


def _meet(line: ssl.SSLSocket, secret: str, end: str = "\r\n") -> None:
    line.sendall(secret.encode() + end.encode())
    assert line.recv(65536) == b"rendezvous\r\n"  # alone, whatever the command has printed: clients throw it away


def _read(line: ssl.SSLSocket) -> bytes:
    data = b""
    with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
        while piece := line.recv(65536):
            data += piece
    return data


@pytest.fixture
def app(davit: Davit, request: pytest.FixtureRequest) -> str:
    name = "r" + str(abs(hash(request.node.name)) % 10**12)
    owner_app(name)
    davit.has_code(name)
    return name


@pytest.mark.parametrize("end", ["\r\n", ""])
def test_a_rendezvous_is_the_commands_terminal(davit: Davit, app: str, end: str) -> None:
    secret, _ = _start(davit, app, "stty size; read word; echo got $word; exit 3", LINES="33", COLUMNS="99")
    with _secure(davit) as line:
        _meet(line, secret, end)
        line.sendall(b"this\r")
        said = _read(line)
    assert b"33 99\r\n" in said and b"got this\r\n" in said


def test_piped_input_ends_with_0x04(davit: Davit, app: str) -> None:
    for tty in (True, False):
        secret, _ = _start(davit, app, "stty -echo 2>/dev/null; cat; echo over", tty=tty)
        with _secure(davit) as line:
            _meet(line, secret)
            line.sendall(b"one\ntwo\n")
            line.sendall(b"\x04")
            said = _read(line).replace(b"\r", b"")
        assert said.endswith(b"one\ntwo\nover\n"), said


def test_0x04_within_the_input_is_data_where_there_is_no_terminal(davit: Davit, app: str) -> None:
    secret, _ = _start(davit, app, "od -An -tx1 | tr -d ' \\n'", tty=False)
    with _secure(davit) as line:
        _meet(line, secret)
        line.sendall(b"a\x04b\x04\x04")
        assert _read(line) == b"61046204"


def test_what_a_command_printed_before_its_client_came_is_not_lost(davit: Davit, app: str) -> None:
    for tty in (True, False):
        secret, dyno = _start(davit, app, "echo quick", tty=tty)
        wait_until(lambda dyno=dyno: davit.processes.running[dyno["id"]].poll() is not None, "the command's end")
        with _secure(davit) as line:
            _meet(line, secret)
            assert _read(line).strip() == b"quick"


def test_long_output_arrives_whole(davit: Davit, app: str) -> None:
    secret, _ = _start(davit, app, "seq 1 200000", tty=False)
    with _secure(davit) as line:
        _meet(line, secret)
        assert _read(line).split()[-1] == b"200000"


@pytest.mark.row("rendezvous-used")
def test_a_secret_is_good_for_once(davit: Davit, app: str) -> None:
    secret, _ = _start(davit, app, "cat", tty=False)
    with _secure(davit) as first:
        _meet(first, secret)
        with _secure(davit) as second:
            second.sendall(secret.encode() + b"\r\n")
            said = _read(second)
        assert_says("rendezvous-used", said.decode())
        first.sendall(b"still mine\n\x04")
        assert _read(first) == b"still mine\n"


@pytest.mark.row("client-gone")
def test_a_client_that_vanishes_ends_its_command(davit: Davit, app: str) -> None:
    secret, dyno = _start(davit, app, "sleep 600")
    with _secure(davit) as line:
        _meet(line, secret)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset, and not a word
    wait_until(lambda: davit.processes.running[dyno["id"]].poll() is not None, "the command's end")
    with _secure(davit) as again:
        again.sendall(secret.encode() + b"\r\n")
        assert_says("client-gone", _read(again).decode())
    dyno = _owner(davit).post(f"/apps/{app}/dynos", {"command": "true", "attach": False})
    assert dyno["attach_url"] is None


def test_the_davit_command_is_attached_over_tls_too(davit: Davit, app: str) -> None:
    secure = davit.url.replace("http://", "https://")
    env = {"DAVIT_URL": secure, "DAVIT_TOKEN": (davit.home / "owner-token").read_text().strip(), "SSL_CERT_FILE": str(davit.home / "keys" / "ca.pem")}
    assert davit("run", "-a", app, "--", "cat; echo end", input="through\n", **env).stdout == "through\nend\n"


def test_git_and_curl_take_the_certificate(davit: Davit) -> None:
    url = davit.url.replace("http://", "https://")
    done = subprocess.run(["curl", "-sS", "--cacert", davit.home / "keys" / "ca.pem", url], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "davit"


def test_the_accept_header_that_asks_for_a_websocket_gets_one(davit: Davit, app: str) -> None:
    asked = {"command": "true", "attach": True}
    dyno = _owner(davit).post(f"/apps/{app}/dynos", asked, headers={"Accept": f"{ACCEPT}; attach=websocket"})
    assert dyno["attach_url"].startswith("ws://") and time.time()


def test_a_command_is_run_in_a_dyno_that_runs(davit: Davit, app: str) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    made = _owner(davit).post(f"/apps/{app}/dynos/{running['name']}", {"command": "echo in $INSIDE", "force_no_tty": True})
    assert made["name"] == running["name"]
    with _secure(davit) as line:
        _meet(line, urlsplit(made["attach_url"]).path[1:])
        assert _read(line) == f"in {running['id']}\n".encode()
    shown = davit("ps:exec", "-a", app, "--dyno", running["name"], "--", "read word; echo got $word; exit 4", input="it\n", check=False)
    assert (shown.stdout, shown.returncode) == ("got it\n", 4)
    assert davit("run:inside", "-a", app, "web.9", "true", check=False).returncode == 2
