"""What a client and a dyno see of each other through the router."""

from __future__ import annotations

import re
import select
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from router.codes import CODES
from tests.router.apps import Client, TinyApp
from tests.router.conftest import IMPATIENT, Davit, until

Make = Callable[[], TinyApp]


@pytest.fixture
def served(davit: Davit, tiny: Make) -> tuple[Davit, TinyApp, str]:
    """An app with one dyno, at a name of its own."""
    app, name = tiny(), f"app-{uuid.uuid4().hex[:8]}"
    davit.app(name, app.dyno())
    return davit, app, name


def client(davit: Davit, name: str) -> Client:
    return Client(davit.port, f"{name}.localhost")


@pytest.mark.parametrize("host", ["{}.localhost", "{}.LOCALHOST", "{}.localhost.", "{}.localhost:8080", "{}.Localhost.:80"])
def test_a_host_is_found_however_it_is_written(served: tuple[Davit, TinyApp, str], host: str) -> None:
    davit, app, name = served
    assert Client(davit.port, host.format(name)).get().json["dyno"] == app.number


def test_an_unknown_host_gets_a_page_that_says_so(davit: Davit) -> None:
    answer = Client(davit.port, "nobody.example").get()
    assert answer.status == 404 and b"There is no app here" in answer.body
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("first", ["GET / HTTP/1.0", "GET / HTTP/1.1", "POST / HTTP/1.1", "GET / HTTP/1.1\r\nHost:"])
def test_a_request_that_names_no_host_is_nobodys(davit: Davit, first: str) -> None:
    asking = Client(davit.port, "")
    asking.socket.sendall(f"{first}\r\nAccept: application/json\r\n\r\n".encode())
    answer = asking.answer()
    assert answer.status == 404 and answer.json["id"] == "no_such_app" and answer.json["app"] == ""


def test_custom_domains_lead_to_the_app_and_leave_it_again(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    rows = davit.rows[f"id-{name}"]
    rows.domains = ["Shop.Example.COM"]
    davit.sync(name)
    assert Client(davit.port, "shop.example.com").get().status == 200
    rows.domains = []
    davit.sync(name)
    assert Client(davit.port, "shop.example.com").get().status == 404


def test_a_domain_moves_from_one_app_to_another(davit: Davit, tiny: Make) -> None:
    one, two = tiny(), tiny()
    davit.app("mover-a", one.dyno(), domains=["moving.example"])
    davit.app("mover-b", two.dyno(), domains=["moving.example"])
    davit.rows["id-mover-a"].domains = []
    davit.sync("mover-a")
    assert Client(davit.port, "moving.example").get().json["dyno"] == two.number
    assert client(davit, "mover-a").get().json["dyno"] == one.number


def test_the_dyno_sees_who_asked(served: tuple[Davit, TinyApp, str]) -> None:
    davit, app, name = served
    before = time.time()
    client(davit, name).get(
        "/", "X-Forwarded-Proto: https", "X-Forwarded-Port: 1", "X-Forwarded-Host: evil", "X-Request-Start: 1", "Proxy: evil"
    )
    head = app.seen[-1].lower()
    assert "x-forwarded-for: 127.0.0.1\r\n" in head
    assert re.findall(r"x-forwarded-proto: (.*)\r\n", head) == ["http"]
    assert re.findall(r"x-forwarded-port: (.*)\r\n", head) == [str(davit.port)]
    assert "evil" not in head
    assert "via: 1.1 davit\r\n" in head
    (start,) = re.findall(r"x-request-start: (\d+)\r\n", head)
    assert abs(int(start) / 1000 - before) < 60
    (request_id,) = re.findall(r"x-request-id: (\S+)\r\n", head)
    assert str(uuid.UUID(request_id)) == request_id


def test_a_forwarded_chain_is_continued(served: tuple[Davit, TinyApp, str]) -> None:
    davit, app, name = served
    client(davit, name).get("/", "X-Forwarded-For: 203.0.113.9, 10.0.0.1")
    assert re.findall(r"x-forwarded-for: (.*)\r\n", app.seen[-1].lower()) == ["203.0.113.9, 10.0.0.1, 127.0.0.1"]
    assert 'fwd="203.0.113.9, 10.0.0.1, 127.0.0.1"' in davit.log(name, "203.0.113.9")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("lines", "chain"),
    [
        (["X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 10.0.0.2"], "203.0.113.1, 10.0.0.2, 127.0.0.1"),
        (["X-Forwarded-For: 203.0.113.1,10.0.0.2", "x-forwarded-for:10.0.0.3"], "203.0.113.1,10.0.0.2, 10.0.0.3, 127.0.0.1"),
        (["X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: ", "X-Forwarded-For: 10.0.0.2"], "203.0.113.1, 10.0.0.2, 127.0.0.1"),
        (["X-Forwarded-For:"], "127.0.0.1"),
        (["X-Forwarded-For: ", "X-Forwarded-For: , "], "127.0.0.1"),
        ([f"X-Forwarded-For: 10.0.1.{n}" for n in range(60)], ", ".join([*(f"10.0.1.{n}" for n in range(60)), "127.0.0.1"])),
    ],
)
def test_a_chain_of_several_lines_is_continued_as_one(
    served: tuple[Davit, TinyApp, str], method: str, lines: list[str], chain: str
) -> None:
    davit, app, name = served
    client(davit, name).get("/", *lines, method=method)
    assert re.findall(r"x-forwarded-for: (.*)\r\n", app.seen[-1].lower()) == [chain]
    if len(chain) < 300:  # the log shows the beginning of a longer one
        assert f'fwd="{chain}"' in davit.log(name, "fwd=")


@pytest.mark.parametrize("mark", ["_", ".", "~"])
def test_no_header_passes_for_ours_where_names_become_variables(served: tuple[Davit, TinyApp, str], mark: str) -> None:
    """As CGI's do: HTTP_X_FORWARDED_FOR is all that is left of X-Forwarded-For and of X_Forwarded-For."""
    davit, app, name = served
    ours = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Host", "X-Request-ID", "X-Request-Start"]
    for alike in (
        alike for one in ours for alike in {one.replace("-", mark), one.replace("-", mark, 1), mark.join(one.rsplit("-", 1))}
    ):
        for lines in ([f"{alike}: evil"], [f"{alike.upper()}: evil", "X-Forwarded-For: 203.0.113.1", f"{alike}: evil"]):
            for method in ("GET", "POST"):
                client(davit, name).get("/", *lines, method=method)
                head = app.seen[-1].lower()
                assert "evil" not in head
                assert re.findall(r"x-forwarded-for: (.*)\r\n", head)[0].endswith("127.0.0.1")
                assert re.findall(r"x-forwarded-proto: (.*)\r\n", head) == ["http"] and len(_ids([head])) == 1
    client(davit, name).get("/", f"X{mark}Requested-With: kept", f"X{mark}Requests: kept")
    assert app.seen[-1].count(": kept") == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_only_a_proxy_may_say_never_reaches_an_app(served: tuple[Davit, TinyApp, str], method: str) -> None:
    """By each of these some framework believes who asks, from where, by TLS or not, or what: alone, twice, and all together."""
    davit, app, name = served
    taken = [
        "Forwarded", "X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-Protocol", "X-Forwarded-Prefix", "X-Forwarded-Server",
        "X-Forwarded-User", "Front-End-Https", "X-Real-IP", "X-Scheme", "X-SSL", "X-Url-Scheme", "X-Original-URL", "X-Rewrite-URL",
        "SCRIPT_NAME", "PATH_INFO", "X_Forwarded_Ssl", "X_Real_IP", "Front_End_Https",
    ]  # fmt: skip
    for lines in [*([one] for one in taken), *([one, one.lower()] for one in taken), taken]:
        answer = client(davit, name).get("/", *(f"{one}: evil" for one in lines), "X-Forwarded-For: 203.0.113.1", method=method)
        head = app.seen[-1].lower()
        assert answer.status == 200 and "evil" not in head, head
        assert sorted(re.findall(r"x.forwarded.(\w+): ", head)) == ["for", "port", "proto"]
        assert re.findall(r"x-forwarded-for: (.*)\r\n", head) == ["203.0.113.1, 127.0.0.1"]
        assert re.findall(r"x-forwarded-proto: (.*)\r\n", head) == ["http"] and len(_ids([head])) == 1
    kept = ["X-Requested-With", "X-Real-Name", "X-Schemes", "X-Original-Title", "Max-Forwards", "True-Client-IP", "X-HTTP-Method-Override"]
    client(davit, name).get("/", *(f"{one}: kept" for one in kept), method=method)
    assert app.seen[-1].count(": kept") == len(kept)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a" * 20, True),
        ("A-1" * 60, True),
        ("short", False),
        ("b" * 201, False),
        ("c" * 30 + '"', False),
        ("d" * 20 + " e", False),
    ],
)
def test_a_valid_request_id_is_kept(served: tuple[Davit, TinyApp, str], sent: str, kept: bool) -> None:
    davit, app, name = served
    client(davit, name).get("/", f"X-Request-ID: {sent}")
    (request_id,) = re.findall(r"x-request-id: (.*)\r\n", app.seen[-1], re.IGNORECASE)
    assert (request_id == sent) is kept


def test_every_request_of_a_connection_has_an_id_of_its_own(served: tuple[Davit, TinyApp, str]) -> None:
    davit, app, name = served
    one, two = client(davit, name), client(davit, name)
    for _ in range(20):
        one.get(), two.get()
    (own,) = {id for id in _ids([one.get("/", "X-Request-ID: " + "own-" * 6) and app.seen[-1]])}
    ids = _ids(app.seen)
    assert own == "own-" * 6 and len(set(ids)) == len(ids) == 41
    assert all(str(uuid.UUID(id)) == id for id in ids if id != own)


def _ids(heads: list[str]) -> list[str]:
    return [id for head in heads for id in re.findall(r"x-request-id: (.*)\r\n", head, re.IGNORECASE)]


def test_what_a_client_claims_about_itself_is_nowhere_believed(served: tuple[Davit, TinyApp, str]) -> None:
    """Whichever of the headers comes alone, and whoever sends it twice, the app sees one of each name, and it is ours."""
    davit, app, name = served
    claims = ["X-Forwarded-Proto: https", "X-Forwarded-Port: 1", "X-Request-Start: 1", "X-Forwarded-Host: evil", "Proxy: evil"]
    claims += ["x-REQUEST-id: evil", "X-Forwarded-For: evil"]
    for lines in [*([claim] for claim in claims), *([claim, claim] for claim in claims), claims]:
        for method in ("GET", "POST"):
            client(davit, name).get("/", *lines, method=method)
            head = app.seen[-1].lower()
            assert re.findall(r"x-forwarded-proto: (.*)\r\n", head) == ["http"]
            assert re.findall(r"x-forwarded-port: (.*)\r\n", head) == [str(davit.port)]
            (start,) = re.findall(r"x-request-start: (.*)\r\n", head)
            (request_id,) = _ids([head])
            (chain,) = re.findall(r"x-forwarded-for: (.*)\r\n", head)
            assert len(start) == 13 and uuid.UUID(request_id) and chain.endswith("127.0.0.1")
            assert chain.removesuffix("127.0.0.1") in ("", "evil, ", "evil, evil, ")
            assert "evil" not in head.replace(f"x-forwarded-for: {chain}", "") and "x-forwarded-host" not in head


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_folded_line_is_no_header_of_its_own(served: tuple[Davit, TinyApp, str], method: str) -> None:
    """RFC 9112, 5.2: what follows on a line that begins with a blank belongs to the value before it; many servers differ."""
    davit, app, name = served
    for blank in (" ", "\t"):
        for line in ("X-Forwarded-Proto: https", "X-Request-ID: " + "e" * 20, f"Content-Length: {10**6}"):
            assert client(davit, name).get("/", "X-Note: one", f"{blank}{line}", method=method).status == 200
            head = app.seen[-1].lower()
            assert re.search(r"\r\nx-note: one\s+" + line.lower() + r"\r\n", head) and not re.search(r"\n[ \t]", head)
            assert re.findall(r"\nx-forwarded-proto: (.*)\r\n", head) == ["http"] and "\ncontent-length: 1000000" not in head
            assert len(re.findall(r"\nx-request-id: ", head)) == 1
    client(davit, name).get("/", "X-Forwarded-For: 203.0.113.1,", "  10.0.0.2", method=method)
    (chain,) = re.findall(r"\nx-forwarded-for: (.*)\r\n", app.seen[-1].lower())
    assert [one.strip() for one in chain.split(",")] == ["203.0.113.1", "10.0.0.2", "127.0.0.1"]


@pytest.mark.parametrize("path", ["/", "/close"])
def test_log_page_and_app_agree_on_the_clients_own_id(served: tuple[Davit, TinyApp, str], path: str) -> None:
    davit, app, name = served
    own = f"own-{uuid.uuid4()}"
    answer = client(davit, name).get(f"{path}?own", f"X-Request-ID: {own}", "X-Forwarded-For: 203.0.113.9")
    assert _ids(app.seen) == [own]
    line = davit.log(name, "?own")
    assert f"request_id={own} " in line and 'fwd="203.0.113.9, 127.0.0.1"' in line
    if path == "/close":
        assert answer.headers["x-request-id"] == own and own.encode() in answer.body


def test_answers_come_with_via(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    assert client(davit, name).get().headers["via"] == "1.1 davit"


def test_an_apps_own_error_is_left_alone(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    answer = client(davit, name).get("/502")
    assert (answer.status, answer.body) == (502, b"own")


def test_the_log_has_herokus_line(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    client(davit, name).get("/hello?x=1")
    pattern = (
        r'at=info method=GET path="/hello\?x=1" host=%s\.localhost request_id=[0-9a-f-]{36} fwd="127\.0\.0\.1" dyno=web\.1 '
        r"connect=\d+ms service=\d+ms status=200 bytes=\d+ protocol=http"
    )
    assert re.fullmatch(pattern % name, davit.log(name, "/hello"))


def test_hostile_paths_cannot_forge_a_log_line(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    client(davit, name).get("/a\"at=error\\b'%0aat=forged")
    assert 'path="/a%22at=error%5Cb\'%0aat=forged"' in davit.log(name, "/a")
    client(davit, name).get("/chain", 'X-Forwarded-For: 1.2.3.4" dyno=web.9\tx')
    assert 'fwd="1.2.3.4? dyno?web.9?x, 127.0.0.1"' in davit.log(name, "/chain")


def test_requests_take_turns(davit: Davit, tiny: Make) -> None:
    one, two = tiny(), tiny()
    davit.app("turns", one.dyno(1), two.dyno(2))
    answers = [client(davit, "turns").get().json["dyno"] for _ in range(10)]
    assert answers.count(one.number) == answers.count(two.number) == 5


def test_a_refused_connection_is_tried_at_another_dyno(davit: Davit, tiny: Make) -> None:
    alive, dead = tiny(), tiny()
    dead.close()
    davit.app("halfdead", alive.dyno(1), dead.dyno(2))
    assert {client(davit, "halfdead").get().status for _ in range(6)} == {200}
    dead.__init__()  # type: ignore[misc]  # so that the fixture can close it


def test_a_dyno_that_leaves_finishes_what_it_has_and_gets_nothing_new(davit: Davit, tiny: Make) -> None:
    old, new = tiny(), tiny()
    rows = davit.app("leaving", old.dyno(1))
    busy = client(davit, "leaving")
    busy.send("/gate")
    until(lambda: old.seen)
    rows.dynos = [new.dyno(1)]
    davit.sync("leaving")
    assert {client(davit, "leaving").get().json["dyno"] for _ in range(5)} == {new.number}
    old.gate.set()
    assert busy.answer().json["dyno"] == old.number
    assert len(old.seen) == 1
    # the connection that is kept goes on at the new dyno
    assert busy.get().json["dyno"] == new.number
    slot = davit.router.table.slot("id-leaving")
    until(lambda: slot not in davit.router.table.leaving)


def test_a_dyno_can_leave_and_come_back(davit: Davit, tiny: Make) -> None:
    one, two = tiny(), tiny()
    rows = davit.app("back", one.dyno(1), two.dyno(2))
    busy = client(davit, "back")
    while not one.seen:
        busy.get("/")
    rows.dynos = [two.dyno(2)]
    davit.sync("back")
    rows.dynos = [one.dyno(1)]
    davit.sync("back")
    assert {client(davit, "back").get().json["dyno"] for _ in range(4)} == {one.number}


def test_streams_pass_as_they_come_and_may_be_slow(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    streaming = client(davit, name)
    started = time.monotonic()
    streaming.send("/drip")
    assert streaming.answer(to_head=True).status == 200
    assert b"data" in streaming.more()
    first = time.monotonic() - started
    received = 1
    while b"0\r\n\r\n" not in (data := streaming.more()):
        received += data.count(b"data")
    assert received >= 7  # for longer than the idle time (2.5 s): each event starts it anew
    assert first < time.monotonic() - started - 1  # the first event did not wait for the last


def test_uploads_are_streamed(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    assert client(davit, name).get("/", method="POST", body=b"x" * 5_000_000).json["received"] == 5_000_000


def test_a_slow_upload_is_no_timeout(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    slow = client(davit, name)
    slow.send("/", "Content-Length: 20000", method="POST")
    for _ in range(4):  # longer than the first byte's time (1 s), each pause shorter than the idle time
        time.sleep(0.4)
        slow.socket.sendall(b"x" * 5000)
    assert slow.answer().json["received"] == 20000


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def test_web_sockets_pass(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    talk = client(davit, name)
    talk.send("/socket", *HANDSHAKE)
    assert talk.answer().status == 101
    for word in (b"hello", b"again"):
        talk.socket.sendall(word)
        assert talk.more() == word.upper()
    talk.close()
    assert "at=info" in davit.log(name, "status=101")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_connection_names_no_header_to_be_dropped(served: tuple[Davit, TinyApp, str], method: str) -> None:
    davit, app, name = served
    for value in ("X-Forwarded-For", "keep-alive, X-Forwarded-Proto", "X-Request-ID,close", "x-forwarded-for, Upgrade"):
        for lines in ([f"Connection: {value}"], ["Connection: keep-alive", f"CONNECTION: {value}"]):
            assert client(davit, name).get("/", *lines, method=method).status == 200
            head = app.seen[-1].lower()
            assert [one.lower() for one in re.findall(r"\nconnection: (.*)\r\n", head)] in ([], ["upgrade"]), head
            assert len(re.findall(r"\nx-forwarded-for: 127.0.0.1\r\n", head)) == 1 and len(_ids([head])) == 1


def test_expect_100_continue_is_answered(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    polite = client(davit, name)
    polite.send("/", "Expect: 100-continue", "Content-Length: 5", method="POST")
    head, polite._rest = polite._until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 100")
    polite.socket.sendall(b"hello")
    assert polite.answer().json["received"] == 5


def test_another_expectation_is_refused(served: tuple[Davit, TinyApp, str]) -> None:
    davit, _, name = served
    assert client(davit, name).get("/", "Expect: miracles").status == 417


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:  # RFC 9113, 4.1
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _block(*headers: tuple[str, str]) -> bytes:
    """Headers as never indexed literals with new names: RFC 7541, 6.2.3."""

    def literal(text: str) -> bytes:
        return bytes([len(text)]) + text.encode()

    return b"".join(b"\x10" + literal(name) + literal(value) for name, value in headers)


def _frames(answer: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The frames that come back, as kind and payload."""
    while head := answer.read(9):
        yield head[3], answer.read(int.from_bytes(head[:3], "big"))


def _over_http2(port: int, *headers: tuple[str, str]) -> int:
    """Send one GET by HTTP/2 with exactly these headers; the answer's status, or 0 when the stream or connection is reset."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection, connection.makefile("rb") as answer:
        connection.sendall(PREFACE + _frame(4, 0, 0, b"") + _frame(1, 5, 1, _block(*headers)))
        for kind, payload in _frames(answer):
            if kind == 1:
                return {0x88: 200, 0x8C: 400, 0x8D: 404}[payload[0]]  # RFC 7541, appendix A
            if kind in (3, 7):
                return 0
    return 0


def test_http2_leads_where_the_app_believes_to_be_asked(davit: Davit, tiny: Make) -> None:
    """The app that gets a request with two names for its host is the one that the Host that it sees names."""
    one, two = tiny(), tiny()
    davit.app("host-a", one.dyno())
    davit.app("host-b", two.dyno())
    asked = [(":method", "GET"), (":scheme", "http"), (":path", "/two")]
    a, b = "host-a.localhost", "host-b.localhost"
    assert _over_http2(davit.port, *asked, (":authority", a)) == 200
    assert _over_http2(davit.port, *asked, ("host", a)) == 200
    assert _over_http2(davit.port, *asked, (":authority", a), ("host", a)) == 200
    assert len(one.seen) == 3 and not two.seen
    for names in (((":authority", a), ("host", b)), ((":authority", a), ("host", b), ("host", a))):
        assert _over_http2(davit.port, *asked, *names) in (200, 400, 0)  # HAProxy goes by :authority; it may as well refuse
    assert all(re.findall(r"\nhost: (.*)\r\n", head.lower()) == [a] and head.startswith("GET /two ") for head in one.seen)
    assert not two.seen


def test_http2_without_tls_and_protocol_upgrade(served: tuple[Davit, TinyApp, str]) -> None:
    davit, app, name = served
    words = ["curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}", "-o", "/dev/null", "-H"]
    done = subprocess.run(
        [*words, f"Host: {name}.localhost", f"http://127.0.0.1:{davit.port}/h2"], capture_output=True, text=True
    )
    assert done.stdout == "2 200", done.stderr
    assert "via: 2.0 davit" in app.seen[-1].lower()


def test_web_sockets_pass_over_http2(served: tuple[Davit, TinyApp, str]) -> None:
    """As browsers open them once a connection speaks HTTP/2: an extended CONNECT, RFC 8441."""
    davit, app, name = served
    asked = [
        (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/socket"),
        (":authority", f"{name}.localhost"), ("sec-websocket-version", "13"), ("x-forwarded-for", "192.0.2.66"),
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", davit.port), 10) as connection, connection.makefile("rb") as answer:
        connection.sendall(PREFACE + _frame(4, 0, 0, b""))
        frames = _frames(answer)
        offered = next(payload for kind, payload in frames if kind == 4)
        assert (8).to_bytes(2, "big") + (1).to_bytes(4, "big") in offered  # SETTINGS_ENABLE_CONNECT_PROTOCOL
        connection.sendall(_frame(1, 4, 1, _block(*asked)))
        assert next(payload for kind, payload in frames if kind == 1)[0] == 0x88
        for word in (b"hello", b"again"):
            connection.sendall(_frame(0, 0, 1, word))
            assert next(payload for kind, payload in frames if kind == 0 and payload) == word.upper()
    head = app.seen[-1].lower()
    assert head.startswith("get /socket ") and re.findall(r"\nx-forwarded-for: (.*)\r\n", head)[-1].endswith("127.0.0.1")
    assert re.findall(r"\nupgrade: (.*)\r\n", head) == ["websocket"] and "sec-websocket-key: " in head
    assert "at=info" in davit.log(name, 'path="/socket" ')


# -- what is refused


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 3, 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: -3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: +3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: {h}\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: {h}\r\nNo-Colon\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: {h}\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: {h}\r\nHost: other.example\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"G\x01T / HTTP/1.1\r\nHost: {h}\r\n\r\n",
        b"\x16\x03\x01 hello tls\r\n\r\n",
    ],
)
def test_malformed_requests_never_reach_the_app(served: tuple[Davit, TinyApp, str], raw: bytes) -> None:
    davit, app, name = served
    rude = client(davit, name)
    rude.socket.sendall(raw.replace(b"{h}", f"{name}.localhost".encode()))
    answer = rude.answer(to_head=True)
    assert answer.status == 400
    assert not app.seen


def test_two_framings_are_made_one(served: tuple[Davit, TinyApp, str]) -> None:
    """RFC 9112, 6.1: chunked wins, the length is dropped, and the connection is not used again."""
    davit, app, name = served
    rude = client(davit, name)
    rude.socket.sendall(
        f"POST /one HTTP/1.1\r\nHost: {name}.localhost\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        f"GET /smuggled HTTP/1.1\r\nHost: {name}.localhost\r\n\r\n".encode()
    )
    assert rude.answer(to_head=True).status in (200, 400)
    assert all("content-length" not in head.lower() for head in app.seen)
    assert not any("/smuggled" in head.split("\r\n")[0] for head in app.seen)


def test_folded_headers_are_unfolded(served: tuple[Davit, TinyApp, str]) -> None:
    davit, app, name = served
    rude = client(davit, name)
    rude.socket.sendall(f"GET / HTTP/1.1\r\nHost: {name}.localhost\r\nX-Folded: a\r\n  Evil: b\r\n\r\n".encode())
    assert rude.answer().status in (200, 400)
    assert all("\r\n " not in head and "\r\nevil:" not in head.lower() for head in app.seen)


def test_connect_is_refused(served: tuple[Davit, TinyApp, str]) -> None:
    davit, app, name = served
    tunnel = client(davit, name)
    tunnel.socket.sendall(f"CONNECT {name}.localhost:443 HTTP/1.1\r\nHost: {name}.localhost:443\r\n\r\n".encode())
    assert tunnel.answer(to_head=True).status in (400, 405)
    assert not app.seen


# -- Heroku's codes


def page(davit: Davit, name: str, code: str, path: str = "/", method: str = "GET") -> str:
    """Ask twice, as a person and as a program; check both pages; return the log line of the first."""
    person = client(davit, name).get(f"{path}?person", method=method)
    assert person.status == CODES[code].status
    assert person.headers["content-type"].startswith("text/html")
    program = client(davit, name).get(f"{path}?program", "Accept: application/json", method=method)
    assert program.status == CODES[code].status
    assert program.headers["content-type"] == "application/json"
    assert program.json["app"] == name
    assert program.json["request_id"] == program.headers["x-request-id"]
    shown = {"H17": "H13"}.get(code, code)  # told apart in the log only
    assert program.json["code"] == shown and shown.encode() in person.body
    assert f" {name}<".encode() in person.body.replace(b"&#32;", b" ") and person.headers["x-request-id"].encode() in person.body
    line = davit.log(name, "person")
    assert f'at={CODES[code].at} code={code} desc="{CODES[code].desc}"' in line and f" status={CODES[code].status} " in line
    return line


@pytest.mark.code("H10")
def test_h10_all_web_dynos_have_crashed(davit: Davit, tiny: Make) -> None:
    davit.app("h10", tiny().dyno(state="crashed", routed=False))
    page(davit, "h10", "H10")


@pytest.fixture
def unhurried(home: Path) -> Iterator[Davit]:
    """A router whose times are far away, but for the first byte's: what ends before a client's patience does was not ended by them."""
    made = Davit(home)
    made.timeouts = replace(IMPATIENT, first_byte=0.5, idle=3600, hold=3600)
    made.router = made._new()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.code("H12")
def test_h12_no_first_byte_in_time(unhurried: Davit, tiny: Make) -> None:
    unhurried.app("h12", tiny().dyno())
    assert "dyno=web.1 " in page(unhurried, "h12", "H12", "/silent")


def test_an_upload_has_the_rolling_time_only(unhurried: Davit, tiny: Make) -> None:
    app = tiny()
    unhurried.app("h12up", app.dyno())
    large, small = client(unhurried, "h12up"), client(unhurried, "h12up")
    large.send("/gate", method="POST", body=b"x" * 20_000)
    until(lambda: app.seen)
    small.send("/gate", method="POST", body=b"x")
    assert b"H12" in small.answer().body  # it began later, so the upload's first byte is later than that, too
    app.gate.set()
    assert large.answer().json["received"] == 20_000


def test_h12_is_not_tried_again_at_another_dyno(davit: Davit, tiny: Make) -> None:
    one, two = tiny(), tiny()
    davit.app("h12once", one.dyno(1), two.dyno(2))
    client(davit, "h12once").get("/silent")
    assert len(one.seen) + len(two.seen) == 1


@pytest.mark.code("H13")
def test_h13_closed_without_an_answer(davit: Davit, tiny: Make) -> None:
    davit.app("h13", tiny().dyno())
    page(davit, "h13", "H13", "/close")


@pytest.mark.code("H13")
def test_h13_an_upload_that_the_dyno_closes_late(unhurried: Davit, tiny: Make) -> None:
    """The first byte's time is long over, but it is not what ended the request."""
    app = tiny()
    unhurried.app("h13up", app.dyno())
    large, small = client(unhurried, "h13up"), client(unhurried, "h13up")
    large.send("/gate", "X-Then: close", method="POST", body=b"x" * 20_000)
    until(lambda: app.seen)
    small.send("/gate", method="POST", body=b"x")
    assert b"H12" in small.answer().body
    app.gate.set()
    assert b"H13" in large.answer().body


@pytest.mark.code("H14")
def test_h14_no_web_dyno_is_wanted(davit: Davit) -> None:
    davit.app("h14", web_quantity=0)
    page(davit, "h14", "H14")
    davit.app("h14b", process_types={"worker": "work"})
    page(davit, "h14b", "H14")


@pytest.mark.code("H15")
def test_h15_the_answer_stalls(davit: Davit, tiny: Make) -> None:
    davit.app("h15", tiny().dyno())
    with pytest.raises(ConnectionError):
        client(davit, "h15").get("/stall")
    line = davit.log("h15", "/stall")
    # HAProxy 3 logs the end of such a request as if the client had broken off
    assert 'at=error code=H15 desc="Idle connection"' in line or (davit.router._version >= (3, 0) and "code=H27" in line)


@pytest.mark.code("H17")
def test_h17_no_http(davit: Davit, tiny: Make) -> None:
    davit.app("h17", tiny().dyno())
    page(davit, "h17", "H17", "/garbage")


@pytest.mark.code("H18")
def test_h18_the_answer_breaks_off(davit: Davit, tiny: Make) -> None:
    davit.app("h18", tiny().dyno())
    with pytest.raises(ConnectionError):
        client(davit, "h18").get("/half")
    assert davit.log("h18", "/half").startswith('sock=backend at=error code=H18 desc="Server Request Interrupted"')


@pytest.mark.code("H19")
def test_h19_no_dyno_takes_the_connection(davit: Davit, tiny: Make) -> None:
    full = _full_socket()
    app = tiny()
    davit.app("h19", app.dyno(port=full[0].getsockname()[1]))
    page(davit, "h19", "H19")
    for one in full:
        one.close()


def _full_socket():  # type: ignore[no-untyped-def]
    """A listener whose queue is full: the kernel lets further connections wait until they time out."""
    import socket

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    return [listener, *waiting]


@pytest.mark.code("H20")
def test_h20_no_dyno_becomes_ready(davit: Davit, tiny: Make) -> None:
    davit.app("h20", tiny().dyno(state="starting", routed=False))
    page(davit, "h20", "H20")


@pytest.mark.code("H21")
def test_h21_refused_everywhere(davit: Davit, tiny: Make) -> None:
    dead, other = tiny(), tiny()
    davit.app("h21", dead.dyno(1, port=1), other.dyno(2, port=2))
    page(davit, "h21", "H21")


@pytest.mark.code("H26")
@pytest.mark.parametrize("line", ["no header", "Content-Length: many", "Host: a\r\nHost: b", "Bad name: x"])
def test_h26_what_cannot_be_read(davit: Davit, line: str) -> None:
    asking = Client(davit.port, "")
    asking.socket.sendall(f"GET / HTTP/1.1\r\n{line}\r\n\r\n".encode())
    answer = asking.answer()
    assert answer.status == CODES["H26"].status  # HAProxy's parser writes a page of its own, and no setting changes it


@pytest.mark.code("H26")
@pytest.mark.parametrize(("accept", "kind"), [("text/html", "text/html; charset=utf-8"), ("application/json", "application/json")])
def test_h26_a_body_that_cannot_be_read(davit: Davit, tiny: Make, accept: str, kind: str) -> None:
    app, path = tiny(), f"/gate?{accept}"
    davit.app("h26", app.dyno())
    rude = client(davit, "h26")
    rude.send(path, "Transfer-Encoding: chunked", f"Accept: {accept}", method="POST")
    until(lambda: app.seen)  # together with its head the parser would refuse it
    rude.socket.sendall(b"zz\r\n")
    answer = rude.answer()
    assert answer.status == CODES["H26"].status and answer.headers["content-type"] == kind and b"H26" in answer.body
    line = davit.log("h26", path)
    assert line.startswith('at=error code=H26 desc="Request Error"') and " status=400 " in line


@pytest.mark.code("H27")
def test_h27_the_client_goes_away(davit: Davit, tiny: Make) -> None:
    app = tiny()
    davit.app("h27", app.dyno())
    leaving = client(davit, "h27")
    leaving.send("/drip")
    leaving.answer(to_head=True)
    leaving.close()
    line = davit.log("h27", "/drip")
    assert line.startswith('sock=client at=warning code=H27 desc="Client Request Interrupted"') and " status=499 " in line


@pytest.mark.code("H28")
def test_a_client_that_stalls_is_let_go(davit: Davit, tiny: Make) -> None:
    """Heroku's H28. In HAProxy 2 only the server's side runs out of patience, so that page and log say H12."""
    davit.app("h28", tiny().dyno())
    stalling = client(davit, "h28")
    stalling.send("/up", "Content-Length: 100000", method="POST")
    assert stalling.answer().status in (400, 503)
    line = davit.log("h28", "/up")
    assert "code=H28" in line or (davit.router._version < (3, 0) and "code=H12" in line)


@pytest.mark.code("H80")
def test_h80_maintenance(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("h80", app.dyno(), maintenance=True)
    page(davit, "h80", "H80")
    assert not app.seen
    rows.maintenance = False
    davit.sync("h80")
    assert client(davit, "h80").get().status == 200


@pytest.mark.code("H81")
def test_h81_nothing_deployed_yet(davit: Davit) -> None:
    davit.app("h81", process_types=None, web_quantity=0)
    page(davit, "h81", "H81")
    assert b"davit git:remote -a&#32;h81" in client(davit, "h81").get().body


# -- holding


def test_requests_wait_while_the_app_boots(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("boots", app.dyno(state="starting", routed=False))
    waiting = [client(davit, "boots") for _ in range(5)]
    for one in waiting:
        one.send("/", method="POST", body=b"kept")
    time.sleep(0.1)
    assert not app.seen
    rows.dynos = [app.dyno()]
    davit.sync("boots")
    assert [one.answer().json["received"] for one in waiting] == [4] * 5


def test_a_request_wakes_a_sleeping_app_and_is_answered(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("sleeps", asleep=True)
    waiting = [client(davit, "sleeps") for _ in range(20)]
    for one in waiting:
        one.send()
    until(lambda: davit.woken.count("id-sleeps"))
    rows.asleep, rows.dynos = False, [app.dyno(state="starting", routed=False)]
    davit.sync("sleeps")
    rows.dynos = [app.dyno()]
    davit.sync("sleeps")
    assert [one.answer().status for one in waiting] == [200] * 20


def test_a_sleeping_app_that_cannot_be_woken_at_once_is_woken_again_and_again_until_h20(davit: Davit, tiny: Make) -> None:
    davit.app("deep", asleep=True)
    waiting = client(davit, "deep")
    waiting.send()
    assert b"H20" in waiting.answer().body
    assert len(davit.woken) >= 2


def test_quiet_tells_since_when_nobody_asked(davit: Davit, tiny: Make) -> None:
    app = tiny()
    davit.app("quiet", app.dyno())
    before = davit.do(davit.router.quiet(["id-quiet"]))["id-quiet"]
    assert before > 0
    asked = client(davit, "quiet")
    asked.send()
    assert asked.answer().status == 200
    davit.log("quiet", "status=200")
    assert davit.do(davit.router.quiet(["id-quiet", "id-nobody"])).keys() == {"id-quiet"}
    until(lambda: "id-quiet" in davit.router.collector.seen)


def test_a_web_socket_wakes_a_sleeping_app_and_keeps_it_awake(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("dreams", asleep=True)
    talk = client(davit, "dreams")
    talk.send("/socket", *HANDSHAKE)
    until(lambda: davit.woken.count("id-dreams"))
    rows.asleep, rows.dynos = False, [app.dyno()]
    davit.sync("dreams")
    assert talk.answer().status == 101
    talk.socket.sendall(b"awake")
    assert talk.more() == b"AWAKE"
    assert davit.do(davit.router.quiet(["id-dreams"])) == {"id-dreams": 0.0}
    talk.close()
    until(lambda: davit.do(davit.router.quiet(["id-dreams"]))["id-dreams"] > 0)


def test_who_wakes_an_app_that_does_not_come_up_is_told_so(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("broken", app.dyno(state="crashed", routed=False), asleep=True)
    waiting = client(davit, "broken")
    waiting.send()
    until(lambda: davit.woken.count("id-broken"))
    rows.asleep, rows.dynos = False, [app.dyno(state="starting", routed=False)]
    davit.sync("broken")
    rows.dynos = [app.dyno(state="crashed", routed=False)]
    davit.sync("broken")
    assert b"H10" in waiting.answer().body
    assert b"H10" in client(davit, "broken").get().body


def test_held_requests_learn_that_the_app_crashed(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("fails", app.dyno(state="starting", routed=False))
    waiting = client(davit, "fails")
    waiting.send()
    rows.dynos = [app.dyno(state="crashed", routed=False)]
    davit.sync("fails")
    assert b"H10" in waiting.answer().body


@pytest.mark.code("H11")
def test_h11_the_backlog_is_bounded(davit: Davit, tiny: Make) -> None:
    app = tiny()
    rows = davit.app("full", app.dyno(state="starting", routed=False))
    waiting = [client(davit, "full") for _ in range(60)]
    for one in waiting:
        one.send()
    until(lambda: len(select.select([one.socket for one in waiting], [], [], 0)[0]) == 10)
    page(davit, "full", "H11")
    rows.dynos = [app.dyno()]
    davit.sync("full")
    assert [one.answer().status for one in waiting].count(200) == 50


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_clients_that_have_gone_take_no_place_in_the_backlog(unhurried: Davit, tiny: Make, how: str) -> None:
    davit, app, name = unhurried, tiny(), f"left-{how}"
    rows = davit.app(name, app.dyno(state="starting", routed=False))

    def crowd() -> list[Client]:
        """Sixty clients, of whom fifty wait."""
        clients = [client(davit, name) for _ in range(60)]
        for one in clients:
            one.send()
        until(lambda: len(select.select([one.socket for one in clients], [], [], 0)[0]) == 10)
        return clients

    for one in crowd():
        if how == "reset":
            one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    until(lambda: sum(one.app_id == f"id-{name}" for one in davit.lines) == 60)
    assert " status=499 " in davit.log(name, 'at=warning code=H27 desc="Client Request Interrupted"')
    others = crowd()
    rows.dynos = [app.dyno()]
    davit.sync(name)
    assert [one.answer().status for one in others].count(200) == len(app.seen) == 50


def test_an_app_that_is_gone_is_gone_at_once(davit: Davit, tiny: Make) -> None:
    davit.app("goner", tiny().dyno())
    kept = client(davit, "goner")
    assert kept.get().status == 200
    del davit.rows["id-goner"]
    davit.sync("goner")
    assert kept.get().status == 404
    next_one = tiny()
    davit.app("heir", next_one.dyno())
    assert client(davit, "heir").get().json["dyno"] == next_one.number
    assert kept.get().status == 404
