"""Addresses that users name: what is refused, at the checking and again at the connection, and requests that stay bounded."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import outbound, settings
from foundation.errors import InvalidParams
from foundation.outbound import Blocked, Unreached
from foundation.settings import SettingError, from_environment
from tests.e2e.errors_page import assert_says

BOTH = ("https", "http")


@pytest.fixture
def _loopback_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outbound, "settings", lambda: from_environment({"DAVIT_OUTBOUND_ALLOW": "127.0.0.1"}))
    yield


@pytest.mark.parametrize(
    "url",
    ["", "ftp://example.com", "https://", "https://exa mple.com", "https://[::1", "https://a:99999/", "https://a:x/", "//a", "https://é.com",
     "https://a\x00b/", "https://" + "a" * 2001, "https://-a.com", "https://a..b/"],
)  # fmt: skip
def test_what_is_no_url_is_told_with_the_fields_name(url: str) -> None:
    with pytest.raises(InvalidParams, match="Field hook"):
        outbound.parse(url, BOTH, field="hook")


@given(st.text(max_size=60))
def test_any_text_is_a_place_or_a_sentence(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.com{text}"):
        try:
            assert outbound.parse(url, BOTH).host
        except InvalidParams:
            pass


def test_a_place_keeps_its_secrets_to_itself() -> None:
    place = outbound.parse("https://me:se%40cret@logs.example.com:8443/in/put?key=1", BOTH)
    assert (place.user, place.password, place.path) == ("me", "se@cret", "/in/put?key=1")
    assert place.shown == "https://logs.example.com:8443" and "cret" not in repr(place) and "key" not in place.shown


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "0.0.0.0", "localhost", "10.1.2.3", "192.168.1.1", "172.31.0.1", "169.254.169.254", "100.64.1.1", "198.18.0.1",
     "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fe80::1%25lo]", "[2606:4700::1111%25eth0]", "[fd00::1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]",
     "[2002:7f00:1::]", "[fe80::1%lo]", "[2001:0:1::]", "2130706433", "0x7f000001", "127.1", "017700000001"],
)  # fmt: skip
def test_davit_itself_the_host_and_private_networks_are_refused(host: str) -> None:
    with pytest.raises((Blocked, InvalidParams)):
        outbound.check(outbound.parse(f"https://{host}/", BOTH))


def test_the_hosts_own_address_is_refused_whatever_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "_PRIVATE", [])
    assert outbound.refusal(ipaddress.ip_address("127.0.0.1"), 80) == "this host itself"
    assert outbound.refusal(ipaddress.ip_address("203.0.113.9"), 80) is None


def test_the_internet_is_not_refused() -> None:
    for text in ("203.0.113.9", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        assert outbound.refusal(ipaddress.ip_address(text), 443) is None


def test_what_is_allowed_is_allowed_at_its_port_only() -> None:
    allowed = from_environment({"DAVIT_OUTBOUND_ALLOW": "10.1.0.0/16, 127.0.0.1:9000,[fd00::/8]:514"}).outbound_allow
    says = [outbound.refusal(ipaddress.ip_address(a), p, allowed) is None
            for a, p in (("10.1.2.3", 1), ("127.0.0.1", 9000), ("127.0.0.1", 9001), ("fd00::1", 514), ("fd00::1", 80), ("10.2.0.1", 1))]  # fmt: skip
    assert says == [True, True, False, True, False, False]


@pytest.mark.parametrize("text", ["everything", "10.0.0.0/33", "127.0.0.1:0", "127.0.0.1:http", "[::1]x"])
def test_a_list_that_cannot_be_read_is_no_list(text: str) -> None:
    with pytest.raises(SettingError, match="DAVIT_OUTBOUND_ALLOW"):
        from_environment({"DAVIT_OUTBOUND_ALLOW": text})


@pytest.mark.parametrize(
    ("text", "says"),
    [("db.internal:5432", "must be networks"), ("[fd00::5]:5432", "IPv4 only"), ("127.0.0.1:5432", "own loopback"), ("0.0.0.0/0", "larger")],
)  # fmt: skip
def test_what_dynos_cannot_be_allowed_is_told(text: str, says: str) -> None:
    with pytest.raises(SettingError, match=f"DAVIT_DYNOS_ALLOW.*{says}"):
        from_environment({"DAVIT_DYNOS_ALLOW": text})


def test_a_name_that_turns_to_a_private_address_is_refused_at_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(address: str) -> Callable[..., Any]:
        return lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    place = outbound.parse("http://drain.example.com/", BOTH)
    monkeypatch.setattr(socket, "getaddrinfo", answers("203.0.113.9"))
    outbound.check(place)
    monkeypatch.setattr(socket, "getaddrinfo", answers("127.0.0.1"))
    with pytest.raises(Blocked, match="DAVIT_OUTBOUND_ALLOW"):
        outbound.connect(place, 5)


@pytest.mark.row("drain-refused", "webhook-refused")
def test_davits_own_names_are_refused_wherever_they_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a cloud, where the public address is on no interface of the host."""
    own = {"DAVIT_DOMAIN": "Apps.example.com", "DAVIT_NAMES": "davit.example.net", "DAVIT_API": "api.example.org:443"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 443))])
    monkeypatch.setattr(outbound, "settings", lambda: from_environment(own))
    for host in ("apps.example.com", "timely.apps.example.com", "TIMELY.apps.example.com.", "a.b.apps.example.com", "davit.example.net", "api.example.org"):
        place = outbound.parse(f"https://{host}/", BOTH)
        for call in (outbound.check, lambda place: outbound.connect(place, 5)):
            with pytest.raises(Blocked, match="this Davit itself, which Davit does not call for anybody") as refused:
                call(place)
            for row in ("drain-refused", "webhook-refused"):
                assert_says(row, refused.value.message)
    monkeypatch.setattr(outbound, "settings", lambda: from_environment({**own, "DAVIT_NAMES": "203.0.113.9"}))
    with pytest.raises(Blocked, match=r"elsewhere.example \(203.0.113.9\) is this Davit itself"):
        outbound.check(outbound.parse("https://elsewhere.example/", BOTH))
    monkeypatch.setattr(outbound, "settings", lambda: from_environment(own))
    for host in ("notapps.example.com", "example.com", "apps.example.com.evil.net", "davit.example.net.evil.net"):
        outbound.check(outbound.parse(f"https://{host}/", BOTH))
    monkeypatch.setattr(outbound, "settings", lambda: from_environment({**own, "DAVIT_OUTBOUND_ALLOW": "203.0.113.9:443"}))
    outbound.check(outbound.parse("https://timely.apps.example.com/", BOTH))


Serve = Callable[[Callable[[socket.socket], None]], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Play a server for each connection; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(play: Callable[[socket.socket], None]) -> int:
        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        play(connection)
                    except OSError:
                        pass

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(20)


def _read_head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


@pytest.mark.usefixtures("_loopback_allowed")
def test_requests_share_a_connection_and_open_another_when_it_is_gone(serve: Serve) -> None:
    heads: list[bytes] = []
    connections: list[int] = []

    def play(connection: socket.socket) -> None:
        connections.append(1)
        for _ in range(2):
            head = _read_head(connection)
            if not head:
                return
            heads.append(head)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    place = outbound.parse(f"http://me:secret@127.0.0.1:{serve(play)}/in?x=1", BOTH)
    with outbound.Http(place, 20) as line:
        for _ in range(3):
            assert line.request("POST", body=b"", headers={"X-A": "b"}).body == b"ok"
    assert len(connections) == 2 and heads[0].startswith(b"POST /in?x=1 HTTP/1.1\r\n") and b"Basic bWU6c2VjcmV0" in heads[0]


@pytest.mark.usefixtures("_loopback_allowed")
def test_an_answer_without_end_is_cut(serve: Serve) -> None:
    stop = threading.Event()

    def endless(connection: socket.socket) -> None:
        _read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.is_set():
            connection.sendall(b"x" * 65536)

    place = outbound.parse(f"http://127.0.0.1:{serve(endless)}/", BOTH)
    assert len(outbound.exchange("GET", place, timeout=20).body) == outbound.ANSWER_LIMIT
    stop.set()


@pytest.mark.usefixtures("_loopback_allowed")
def test_an_answer_that_dribbles_is_given_up(serve: Serve) -> None:
    def dribble(connection: socket.socket) -> None:
        _read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(600):
            connection.sendall(b"X-Header: 1\r\n")
            threading.Event().wait(0.05)

    place = outbound.parse(f"http://127.0.0.1:{serve(dribble)}/", BOTH)
    with pytest.raises(Unreached, match=f"http://127.0.0.1:{place.port} did not take the request: no answer in time"):
        outbound.exchange("GET", place, timeout=0.5)


@pytest.mark.usefixtures("_loopback_allowed")
@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b"\x16\x03\x01\x00\x00"])
def test_an_answer_that_is_none_is_a_sentence(serve: Serve, said: bytes) -> None:
    def play(connection: socket.socket) -> None:
        _read_head(connection)
        connection.sendall(said)

    with pytest.raises(Unreached, match="did not take the request"):
        outbound.exchange("GET", outbound.parse(f"http://127.0.0.1:{serve(play)}/", BOTH), timeout=20)


def test_nobody_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "settings", lambda: settings.from_environment({"DAVIT_OUTBOUND_ALLOW": "127.0.0.0/8"}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        place = outbound.parse(f"http://127.0.0.1:{taken.getsockname()[1]}/", BOTH)
        with pytest.raises(Unreached, match="Connection refused"):
            outbound.exchange("GET", place)
