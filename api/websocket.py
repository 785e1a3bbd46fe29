"""The server's side of a WebSocket (RFC 6455) on the raw socket that gunicorn hands over, without a thread of its own.

Nothing is buffered without bound in either direction: who does not read is not read from.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

from flask import Response
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Request, TextMessage
from wsproto.utilities import RemoteProtocolError

from api.nonblocking import CHUNK, WAIT, send_what_fits
from foundation.errors import BadRequest


class WebSocket:
    """A connection after its handshake; never blocks.

    Args:
        environ: the WSGI environment of the GET request that asks for the upgrade.

    Raises:
        BadRequest: it asks for none, or the server does not give its socket away.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        self.socket: socket.socket | None = environ.get("gunicorn.socket")
        if self.socket is None or environ.get("HTTP_UPGRADE", "").lower() != "websocket":
            raise BadRequest("This endpoint is a WebSocket; the request does not ask for one.", status=426)
        self._protocol = WSConnection(ConnectionType.SERVER)
        try:
            self._protocol.receive_data(_as_received(environ))
            [event] = list(self._protocol.events())
        except (RemoteProtocolError, ValueError):
            raise BadRequest("The WebSocket handshake cannot be read.") from None
        if not isinstance(event, Request):
            raise BadRequest("The WebSocket handshake cannot be read.")
        self.pending = bytearray(self._protocol.send(AcceptConnection()))
        self.open = True

    def fileno(self) -> int:
        """For selectors."""
        assert self.socket is not None
        return self.socket.fileno()

    def send(self, event: BytesMessage | TextMessage | CloseConnection) -> None:
        """Queue a message; :meth:`flush` writes it."""
        if self.open:
            self.pending += self._protocol.send(event)
            if isinstance(event, CloseConnection):
                self.open = False

    def flush(self) -> None:
        """Write what the socket takes."""
        assert self.socket is not None
        if not send_what_fits(self.socket, self.pending):
            self._lost()

    def receive(self) -> Iterator[Event]:
        """The messages that have come; :attr:`open` is false once the client has gone."""
        assert self.socket is not None
        try:
            data = self.socket.recv(CHUNK)
        except WAIT:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        try:
            self._protocol.receive_data(data)
            events = list(self._protocol.events())
        except RemoteProtocolError as error:
            if self.open and error.event_hint:
                self.pending += self._protocol.send(error.event_hint)
            self.open = False
            return
        for event in events:
            if isinstance(event, Ping):
                self.pending += self._protocol.send(event.response())
            elif isinstance(event, CloseConnection):
                if self.open:
                    self.pending += self._protocol.send(event.response())
                self.open = False
            else:
                yield event

    def _lost(self) -> None:
        self.open = False
        self.pending.clear()


def _as_received(environ: dict[str, Any]) -> bytes:
    """The request as it came in, for the protocol library that wants to read it itself."""
    names = {key[5:].replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")}
    head = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in names.items())]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


class Handover(Response):
    """A response that takes the connection over; ``run`` is called when no database session is open any more."""

    def __init__(self, run: Any) -> None:
        super().__init__(status=101)
        self._run = run

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._run()
        raise StopIteration  # gunicorn's way to be told that the connection is used up
