"""This side of an attached one-off dyno: a WebSocket to the API, this terminal (or these pipes) at the other end.

The frames are those of :mod:`api.attach`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from cli.client import Client
from foundation.errors import DavitError

BUFFER = 1 << 18
STDIN = b"\x00"
_STREAMS = {1: 1, 2: 2}


class Lost(DavitError):
    """The connection to the dyno ended before the command did."""

    id, status = "connection_lost", 503


def attach(client: Client, url: str, terminal: bool, *, into: int | None = None) -> int:
    """Carry bytes until the command has ended; returns its exit status.

    Args:
        url: the attach_url; only its path is used, so that the token goes nowhere else.
        terminal: whether the command has a terminal, which this one then mirrors.
        into: a descriptor that gets the command's standard output; its standard input is at its end then.

    Raises:
        Lost: the connection broke.
        DavitError: the dyno cannot be attached to.
    """
    connection = client.connect()
    try:
        protocol = shake_hands(connection, client, urlsplit(url).path)
        connection.settimeout(None)
        with _raw_terminal() if terminal else contextlib.nullcontext():
            return _Session(connection, protocol, terminal, into).run()
    finally:
        connection.close()


def shake_hands(connection: socket.socket, client: Client, path: str) -> WSConnection:
    """Make a connection to the API a WebSocket.

    Raises:
        Lost: the connection broke.
        DavitError: it was refused; the API's sentence.
    """
    protocol = WSConnection(ConnectionType.CLIENT)
    credentials = (b"Authorization", f"Bearer {client.token}".encode())
    connection.sendall(protocol.send(Request(host=client.authority, target=path, extra_headers=[credentials])))
    refusal = b""
    while True:
        try:
            protocol.receive_data(connection.recv(65536) or None)
            for event in protocol.events():
                if isinstance(event, AcceptConnection):
                    return protocol
                if isinstance(event, RejectData):
                    refusal += event.data
                if (isinstance(event, RejectConnection) and not event.has_body) or (
                    isinstance(event, RejectData) and event.body_finished
                ):
                    raise DavitError(_sentence(refusal))
        except (ProtocolError, OSError):
            raise Lost("The dyno could not be attached to: the connection broke.") from None


def _sentence(refusal: bytes) -> str:
    try:
        return str(json.loads(refusal)["message"])
    except (ValueError, KeyError, TypeError):
        return "The dyno could not be attached to."


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed meanwhile stays typed
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Session:
    def __init__(self, connection: socket.socket, protocol: WSConnection, terminal: bool, into: int | None) -> None:
        self.connection, self.protocol, self.terminal = connection, protocol, terminal
        self.streams = {**_STREAMS, 1: 1 if into is None else into}
        self.pending = bytearray()
        self.reading = into is None
        self.status: int | None = None
        self.over = False
        self.stream: int | None = None
        self.order = ""
        self.interrupts = 0

    def run(self) -> int:
        self.connection.setblocking(False)
        alarms, alarm = os.pipe()
        os.set_blocking(alarm, False)
        previous = signal.set_wakeup_fd(alarm)
        handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGWINCH, signal.SIGINT)}
        try:
            if not self.reading:
                self._end_input()
            self._events()  # what came in one piece with the handshake
            while not self.over:
                self._step(alarms)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            os.close(alarms)
            os.close(alarm)
        if self.status is None:
            raise Lost("The connection to the dyno was lost; `davit ps` tells whether it still runs.")
        return self.status

    def _step(self, alarms: int) -> None:
        with selectors.PollSelector() as selector:  # epoll would refuse a plain file as standard input
            selector.register(alarms, selectors.EVENT_READ)
            writing = selectors.EVENT_WRITE if self.pending else 0
            selector.register(self.connection, selectors.EVENT_READ | writing)
            if self.reading and len(self.pending) < BUFFER:
                selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            ready = {key.fd: mask for key, mask in selector.select(30)}
        if alarms in ready:
            for number in os.read(alarms, 64):
                self._alarm(number)
        if sys.stdin.fileno() in ready:
            self._from_input()
        if ready.get(self.connection.fileno(), 0) & selectors.EVENT_READ:
            self._from_server()
        self._flush()

    def _alarm(self, number: int) -> None:
        if number == signal.SIGWINCH and self.terminal:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
            self._send(TextMessage(json.dumps({"resize": [lines, columns]})))
        elif number == signal.SIGINT:
            self.interrupts += 1
            if self.interrupts > 2:
                raise KeyboardInterrupt
            self._send(TextMessage(json.dumps({"signal": "INT"})))

    def _from_input(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), 32768)
        except OSError:
            data = b""
        if data:
            self._send(BytesMessage(STDIN + data))
        else:
            self._end_input()

    def _end_input(self) -> None:
        self.reading = False
        self._send(TextMessage(json.dumps({"eof": True})))

    def _from_server(self) -> None:
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self.protocol.receive_data(data or None)
        except ProtocolError:
            self.over = True
        self._events()
        if not data:
            self.over = True

    def _events(self) -> None:
        try:
            for event in self.protocol.events():
                self._event(event)
        except ProtocolError:
            self.over = True

    def _event(self, event: Any) -> None:
        if isinstance(event, BytesMessage):
            payload = bytes(event.data)
            if self.stream is None:
                self.stream, payload = self.streams[payload[0] if payload[:1] == b"\x02" else 1], payload[1:]
            _write(self.stream, payload)
            if event.message_finished:
                self.stream = None
        elif isinstance(event, TextMessage):
            self.order += event.data
            if event.message_finished:
                said = json.loads(self.order)
                self.order = ""
                if "exit" in said:
                    self.status = said["exit"] if isinstance(said["exit"], int) else None
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            self.over = True

    def _send(self, event: Any) -> None:
        try:
            self.pending += self.protocol.send(event)
        except ProtocolError:
            self.over = True

    def _flush(self) -> None:
        try:
            while self.pending:
                del self.pending[: self.connection.send(self.pending[:65536])]
        except BlockingIOError:
            pass
        except OSError:
            self.over = True


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            with selectors.DefaultSelector() as selector:
                selector.register(fd, selectors.EVENT_WRITE)
                selector.select()
