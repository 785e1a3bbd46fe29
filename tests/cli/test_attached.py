"""The command's end of an attached dyno, against a server that this test plays."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, RejectData, TextMessage

from cli.apps import attached
from cli.client import Client
from foundation.errors import DavitError

Play = Callable[[socket.socket, WSConnection], None]


@pytest.fixture
def server() -> Iterator[Callable[[Play], Client]]:
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def start(play: Play) -> Client:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                protocol = WSConnection(ConnectionType.SERVER)
                protocol.receive_data(connection.recv(65536))
                list(protocol.events())
                play(connection, protocol)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "token")

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


@pytest.fixture
def _no_input(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


def test_what_comes_in_one_piece_with_the_handshake_is_not_kept_waiting(
    server: Callable[[Play], Client], capfd: pytest.CaptureFixture[str], _no_input: None
) -> None:
    seen, in_time = threading.Event(), []

    def play(connection: socket.socket, protocol: WSConnection) -> None:
        connection.sendall(protocol.send(AcceptConnection()) + protocol.send(BytesMessage(b"\x01here\n")))
        in_time.append(seen.wait(5))
        end = protocol.send(TextMessage(json.dumps({"exit": 5}))) + protocol.send(CloseConnection(code=1000))
        connection.sendall(end)

    real = attached._write

    def write(fd: int, data: bytes) -> None:
        real(fd, data)
        seen.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attached, "_write", write)
        assert attached.attach(server(play), "/attach", False) == 5
    assert in_time == [True]
    assert capfd.readouterr().out == "here\n"


def test_a_refusal_is_told_in_its_own_words(server: Callable[[Play], Client]) -> None:
    def play(connection: socket.socket, protocol: WSConnection) -> None:
        connection.sendall(protocol.send(RejectConnection(status_code=404, headers=[(b"content-length", b"21")], has_body=True)))
        connection.sendall(protocol.send(RejectData(data=b'{"message":"Not so."}', body_finished=True)))

    with pytest.raises(DavitError, match="Not so"):
        attached.attach(server(play), "/attach", False)


def test_a_connection_that_breaks_is_an_error_and_no_exit_status(server: Callable[[Play], Client], _no_input: None) -> None:
    def play(connection: socket.socket, protocol: WSConnection) -> None:
        connection.sendall(protocol.send(AcceptConnection()))

    with pytest.raises(attached.Lost):
        attached.attach(server(play), "/attach", False)
