"""Bytes carried over a WebSocket, both sides real."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request

from foundation.websocket import BUFFER, Messages, relay


@contextmanager
def _sides(greeting: bytes = b"") -> Iterator[tuple[Messages, Messages]]:
    """A client's and a server's side, after the handshake; ``greeting`` comes to the client in one piece with it."""
    client, server = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.send(Request(host="davit", target="/")))
    list(server.events())
    answer = server.send(AcceptConnection()) + (server.send(BytesMessage(greeting)) if greeting else b"")
    client.receive_data(answer)
    assert isinstance(next(client.events()), AcceptConnection)
    with ExitStack() as kept:
        ends = socket.socketpair()
        for end in ends:
            kept.enter_context(end)
            end.setblocking(False)
        yield Messages(ends[0], client), Messages(ends[1], server)


@contextmanager
def _relayed(greeting: bytes = b"") -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connections that a relay leads to each other."""
    with _sides(greeting) as webs, ExitStack() as kept:
        threads, outer = [], []
        for web in webs:
            mine, theirs = socket.socketpair()
            kept.enter_context(mine)
            outer.append(mine)

            def run(web: Messages = web, line: socket.socket = theirs) -> None:
                with line:
                    relay(web, line)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
        yield outer[0], outer[1]
        for line in outer:
            line.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "the relay ended"


def _all(line: socket.socket) -> bytes:
    data = b""
    while piece := line.recv(1 << 20):
        data += piece
    return data


def test_megabytes_go_both_ways_and_each_direction_ends_by_itself() -> None:
    sent = bytes(range(256)) * (16 * BUFFER // 256)
    with _relayed() as (one, other):
        other.sendall(b"first")
        assert one.recv(5) == b"first"
        sender = threading.Thread(target=lambda: (one.sendall(sent), one.shutdown(socket.SHUT_WR)))
        sender.start()
        assert _all(other) == sent
        sender.join(60)
        other.sendall(sent[:1000])
        other.shutdown(socket.SHUT_WR)
        assert _all(one) == sent[:1000]


def test_what_comes_in_one_piece_with_the_handshake_is_passed_on() -> None:
    with _relayed(greeting=b"220 hello") as (one, _):
        assert one.recv(100) == b"220 hello"


def test_what_a_side_said_before_it_went_away_arrives_whatever_is_still_sent_to_it() -> None:
    """As a server's answer to an upload that it does not want."""
    said = bytes(range(256)) * 320
    with _sides() as (client, server):
        mine, theirs = socket.socketpair()
        with mine:
            with theirs:
                theirs.sendall(said)
            client.send(BytesMessage(b"unwanted"))
            client.flush()
            relay(server, mine)
            client.socket.settimeout(60)
            got = b""
            while client.open:
                got += b"".join(event.data for event in client.receive() if isinstance(event, BytesMessage))
            assert got == said


def test_a_side_that_goes_away_ends_the_other() -> None:
    with _relayed() as (one, other):
        one.close()
        assert _all(other) == b""


def test_who_may_not_go_on_is_let_go() -> None:
    answers = iter([True, False])
    with _sides() as (client, server):
        mine, theirs = socket.socketpair()
        with mine, theirs:
            client.socket.settimeout(60)
            theirs.sendall(b"x")
            relay(server, mine, lambda: next(answers))
            assert [event.data for event in client.receive() if isinstance(event, BytesMessage)] == [b"x"]
            assert not client.open
