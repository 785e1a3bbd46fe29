"""The server's side of a WebSocket's handshake, on the raw socket that gunicorn hands over, without a thread of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from flask import Response
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.utilities import RemoteProtocolError

from foundation.errors import BadRequest
from foundation.websocket import Messages


class WebSocket(Messages):
    """The server's side of a WebSocket.

    Args:
        environ: the WSGI environment of the GET request that asks for the upgrade.

    Raises:
        BadRequest: it asks for none, or the server does not give its socket away.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        line: socket.socket | None = environ.get("gunicorn.socket")
        if line is None or environ.get("HTTP_UPGRADE", "").lower() != "websocket":
            raise BadRequest("This endpoint is a WebSocket; the request does not ask for one.", status=426)
        protocol = WSConnection(ConnectionType.SERVER)
        try:
            protocol.receive_data(_as_received(environ))
            [event] = list(protocol.events())
        except (RemoteProtocolError, ValueError):
            raise BadRequest("The WebSocket handshake cannot be read.") from None
        if not isinstance(event, Request):
            raise BadRequest("The WebSocket handshake cannot be read.")
        super().__init__(line, protocol)
        self.pending += protocol.send(AcceptConnection())


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
