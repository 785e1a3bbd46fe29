"""A WebSocket (RFC 6455) after its handshake, on a socket that does not block: either side's.

Nothing is buffered without bound in either direction: who does not read is not read from.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from wsproto import WSConnection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import RemoteProtocolError

from foundation.nonblocking import receive_what_came, send_what_fits

BUFFER = 1 << 18
"""Bytes that :func:`relay` holds of each direction, and as many more as come in one piece."""
PATIENCE = 10.0
"""Seconds for the last bytes of a direction whose sender has closed already."""
END = "end"
"""The text message that says that no more bytes come from its sender."""


class Messages:
    """A connection after its handshake; never blocks.

    Args:
        sock: a TCP or TLS connection.
        protocol: that of this side, after the handshake.
    """

    def __init__(self, sock: socket.socket, protocol: WSConnection) -> None:
        self.socket, self._protocol = sock, protocol
        self.pending = bytearray()
        self.open = True

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def send(self, event: BytesMessage | TextMessage | CloseConnection) -> None:
        """Queue a message; :meth:`flush` writes it."""
        if self.open:
            self.pending += self._protocol.send(event)
            if isinstance(event, CloseConnection):
                self.open = False

    def flush(self) -> None:
        """Write what the socket takes."""
        if not send_what_fits(self.socket, self.pending):
            self._lost()

    def receive(self) -> Iterator[Event]:
        """The messages that have come; :attr:`open` is false once the client has gone."""
        data = receive_what_came(self.socket)
        if data is None:
            return
        if not data:
            self._lost()
            return
        try:
            self._protocol.receive_data(data)
        except RemoteProtocolError as error:
            self._refuse(error)
            return
        yield from self.queued()

    def queued(self) -> Iterator[Event]:
        """The messages that are here already, as those that came in one piece with the handshake."""
        try:
            events = list(self._protocol.events())
        except RemoteProtocolError as error:
            self._refuse(error)
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

    def _refuse(self, error: RemoteProtocolError) -> None:
        if self.open and error.event_hint:
            self.pending += self._protocol.send(error.event_hint)
        self.open = False

    def _lost(self) -> None:
        self.open = False
        self.pending.clear()


def relay(web: Messages, line: socket.socket, going: Callable[[], bool] = lambda: True) -> None:
    """Carry bytes between a WebSocket and a connection until both directions have ended, or one side has gone.

    Binary messages are the bytes, whatever pieces they come in; :data:`END` is the end of a direction.

    Args:
        going: asked at least every second; when it says no, all ends.
    """
    to_line = bytearray()
    from_web = from_line = True

    def heed(events: Iterable[Event]) -> None:
        nonlocal from_web, to_line
        for event in events:
            if isinstance(event, BytesMessage) and from_web:
                to_line += event.data
            elif isinstance(event, TextMessage):
                from_web = False

    line.setblocking(False)
    heed(web.queued())
    while web.open and going() and (from_web or from_line or to_line or web.pending):
        if not send_what_fits(line, to_line):
            from_web = False  # nobody takes any more there; what it has said is passed on all the same
        if not from_web and not to_line:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_WR)
        ready = _ready(
            {
                web.socket: _mask(len(to_line) < BUFFER, bool(web.pending)),
                line: _mask(from_line and len(web.pending) < BUFFER, bool(to_line)),
            }
        )
        if ready.get(web.socket, 0) & selectors.EVENT_READ:
            heed(web.receive())
        if ready.get(line, 0) & selectors.EVENT_READ and (data := receive_what_came(line)) is not None:
            web.send(BytesMessage(data) if data else TextMessage(END))
            from_line = bool(data)
        web.flush()
    web.send(CloseConnection(code=1000))
    web.flush()
    with contextlib.suppress(OSError):  # the other side was done, and closed, before this one had passed all on
        line.settimeout(PATIENCE)
        line.sendall(to_line)


def _mask(reading: bool, writing: bool) -> int:
    return (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if writing else 0)


def _ready(masks: Mapping[socket.socket, int]) -> dict[Any, int]:
    with selectors.DefaultSelector() as selector:
        for line, mask in masks.items():
            if mask:
                selector.register(line, mask)
        return {key.fileobj: events for key, events in selector.select(1.0)}
