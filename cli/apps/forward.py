"""ps:forward, ps:socks: this machine's ports lead into a dyno."""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import click

from cli.output import command, warn
from cli.target import Target, on_app
from foundation.errors import DavitError

_dyno = click.option("-d", "--dyno", default="web.1", show_default=True, help="the dyno to lead to")
_VERSION, _CONNECT = 5, 1
_DONE, _FAILED, _FORBIDDEN, _UNKNOWN_COMMAND, _UNKNOWN_ADDRESS = 0, 1, 2, 7, 8
_ITSELF = ("127.0.0.1", "localhost", "0.0.0.0", "::1")
_SHAKE_SECONDS = 30
_AGAIN_SECONDS = 0.1
"""Between two attempts to take a connection while none can be."""


@command("ps:forward")
@on_app
@click.argument("ports", metavar="[LOCAL:]PORT[,...]")
@_dyno
def forward(app: Target, ports: str, dyno: str) -> None:
    """Have ports of this machine lead to a dyno's: 9000, or 8080:9000, or several with commas between them."""
    pairs = [_pair(word) for word in ports.split(",")]
    way = _Way(app, dyno)
    with contextlib.ExitStack() as open_ports:
        serving = []
        for here, there in pairs:
            listener = open_ports.enter_context(_listen(here))
            serving.append((listener, _leading(way, there)))
            click.echo(f"Listening on {here} and forwarding to {way.dyno}:{there}", err=True)
        click.echo("Use CTRL+C to stop port forwarding", err=True)
        _serve(serving)


@command("ps:socks")
@on_app
@_dyno
@click.option("-p", "--port", default=1080, show_default=True, type=click.IntRange(1, 65535), help="the port to listen on")
def socks(app: Target, dyno: str, port: int) -> None:
    """Be a SOCKS proxy on this machine that leads to a dyno's own ports, and to nothing else."""
    way = _Way(app, dyno)
    with _listen(port) as listener:
        click.echo(f"SOCKSv5 proxy server started on port {port}", err=True)
        click.echo("Use CTRL+C to stop the proxy", err=True)
        _serve([(listener, lambda line: _proxied(way, line))])


def _pair(word: str) -> tuple[int, int]:
    parts = word.strip().split(":")
    if len(parts) > 2 or not all(_is_port(part) for part in parts):
        raise DavitError(f"“{word.strip()}” is no port; give 9000, or 8080:9000 for another port of this machine's.")
    return int(parts[0]), int(parts[-1])


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536


class _Way:
    """The way to one dyno's ports.

    Raises:
        DavitError: there is no such dyno.
    """

    def __init__(self, app: Target, dyno: str) -> None:
        self._client = app.client
        found: Any = app.get(f"/dynos/{quote(dyno, safe='')}")
        self.dyno = str(found["name"])
        self._path = f"{app.path}/dynos/{quote(self.dyno, safe='')}/ports"

    def open(self, port: int) -> Callable[[socket.socket], None]:
        """Connect to a port; what is returned carries bytes between there and a connection until one of them has ended.

        Raises:
            DavitError: nobody listens there, or the caller may not.
        """
        from cli.apps import attached
        from foundation.nonblocking import notice_vanishing
        from foundation.websocket import Messages, relay

        remote = self._client.connect()
        try:
            remote.settimeout(_SHAKE_SECONDS)
            protocol = attached.shake_hands(remote, self._client, f"{self._path}/{port}")
            notice_vanishing(remote)
            remote.setblocking(False)
        except BaseException:
            remote.close()
            raise

        def carry(line: socket.socket) -> None:
            with remote:
                relay(Messages(remote, protocol), line)

        return carry


def _leading(way: _Way, port: int) -> Callable[[socket.socket], None]:
    return lambda line: way.open(port)(line)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError as error:
        raise DavitError(f"Port {port} of this machine cannot be listened on: {error.strerror}.") from None


def _serve(listeners: Sequence[tuple[socket.socket, Callable[[socket.socket], None]]]) -> None:
    """Serve whoever connects, each in a thread, until somebody presses Control-C."""
    with selectors.DefaultSelector() as selector:
        for listener, then in listeners:
            selector.register(listener, selectors.EVENT_READ, then)
        while True:
            for key, _ in selector.select():
                try:
                    line, _ = key.fileobj.accept()  # type: ignore[union-attr]
                except OSError:  # it has gone already, or this process has too many open: those that there are go on
                    time.sleep(_AGAIN_SECONDS)
                    continue
                threading.Thread(target=_served, args=(line, key.data), daemon=True).start()


def _served(line: socket.socket, then: Callable[[socket.socket], None]) -> None:
    with line:
        try:
            then(line)
        except DavitError as error:
            warn(error.message)
        except OSError:
            pass  # who connected has gone


def _proxied(way: _Way, line: socket.socket) -> None:
    """Greet, read where a client wants to, connect there (RFC 1928)."""
    line.settimeout(_SHAKE_SECONDS)
    version, count = _exactly(line, 2)
    methods = _exactly(line, count)
    if version != _VERSION or 0 not in methods:
        return line.sendall(bytes((_VERSION, 0xFF)))
    line.sendall(bytes((_VERSION, 0)))
    _, wanted, _, kind = _exactly(line, 4)
    host = _host(line, kind)
    if host is None:
        return _answer(line, _UNKNOWN_ADDRESS)
    (port,) = struct.unpack("!H", _exactly(line, 2))
    if wanted != _CONNECT:
        return _answer(line, _UNKNOWN_COMMAND)
    if host.lower() not in _ITSELF:
        return _answer(line, _FORBIDDEN)
    try:
        carry = way.open(port)
    except DavitError:
        _answer(line, _FAILED)
        raise
    _answer(line, _DONE)
    carry(line)


def _host(line: socket.socket, kind: int) -> str | None:
    if kind == 3:
        return _exactly(line, _exactly(line, 1)[0]).decode(errors="replace")
    if kind in (1, 4):
        return str(ipaddress.ip_address(_exactly(line, 4 if kind == 1 else 16)))
    return None


def _answer(line: socket.socket, status: int) -> None:
    line.sendall(bytes((_VERSION, status, 0, 1, 0, 0, 0, 0, 0, 0)))


def _exactly(line: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = line.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data
