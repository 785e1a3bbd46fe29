"""Heroku's rendezvous protocol: how the ``heroku`` command is attached to a one-off dyno.

Inside TLS the client sends the secret from ``rendezvous://HOST:PORT/SECRET``, with CRLF or without. The server answers
``rendezvous`` and CRLF; from then on the stream is the terminal's. What clients do that this goes by:

* they throw away whatever came with the first chunk, so the banner goes alone and output waits a moment;
* input that is no terminal ends with the byte 0x04; one who is not yet done sending it when the server closes crashes, so
  the end waits for it, shortly.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

from api import attach
from api.attach import EndOfInput, Input, Order
from foundation.nonblocking import notice_vanishing, receive_what_came, send_what_fits

log = logging.getLogger("web")

BANNER = b"rendezvous\r\n"
GAP_SECONDS = 0.2
"""From the banner to the first output."""
END_SECONDS = 0.25
"""A 0x04 that nothing follows for so long is the end of the input, where there is no terminal to read it so."""
IDLE_SECONDS = 3600
"""An attached dyno at which nobody types and which prints nothing for so long is let go (as Heroku's)."""
USED = b"This address has been used, or is too old. Run the command again.\r\n"
_END = 0x04


class Rendezvous:
    """The client's side of a bridge (:class:`api.attach.Peer`).

    Args:
        sock: in TLS, after the secret was read; does not block.
        early: what came after the secret.
        terminal: whether the command has a terminal, which reads 0x04 by itself.
    """

    def __init__(self, sock: socket.socket, early: bytes, *, terminal: bool) -> None:
        self.socket, self.terminal = sock, terminal
        self.open = True
        self.pending = bytearray(BANNER)
        self._early = early
        self._begun = False
        self._speak_at = time.monotonic() + GAP_SECONDS
        self._moved = time.monotonic()
        self._maybe_end: float | None = None

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    @property
    def ready(self) -> bool:
        """Whether output may come: a moment after the banner."""
        return time.monotonic() >= self._speak_at

    @property
    def lingers(self) -> bool:
        """Whether the client is still to end its input."""
        return self.open and self._maybe_end is None

    def output(self, stream: int, data: bytes) -> None:
        """Queue what the command wrote; both streams are one here."""
        self._moved = time.monotonic()
        self.pending += data

    def tick(self) -> Iterator[Order]:
        """What time brings: input that came with the secret, the end of the input, the end of an idle client."""
        now = time.monotonic()
        data, self._early = self._early, b""
        if data:
            yield from self._typed(data)
        elif self._maybe_end and now - self._maybe_end > END_SECONDS:
            self._maybe_end = 0.0
            yield EndOfInput()
        if now - self._moved > IDLE_SECONDS:
            log.info("an attached dyno was idle for too long")
            self.open = False

    def receive(self) -> Iterator[Order]:
        """What was typed."""
        data = receive_what_came(self.socket)
        if data is None:
            return
        if data:
            self._moved = time.monotonic()
            yield from self._typed(data)
        else:
            self._lose()

    def _typed(self, data: bytes) -> Iterator[Order]:
        if not self._begun:
            self._begun, data = True, data.removeprefix(b"\r\n")  # the secret's end, which may come by itself
            if not data:
                return
        if self._maybe_end:  # it was no end, more has come
            data, self._maybe_end = bytes([_END]) + data, None
        if data[-1] == _END and not self.terminal:
            data, self._maybe_end = data[:-1], time.monotonic()
        elif data[-1] == _END:
            self._maybe_end = 0.0  # the terminal gets it; known here for the end
        if data:
            yield Input(data)

    def flush(self) -> None:
        """Write what the socket takes."""
        if not send_what_fits(self.socket, self.pending):
            self._lose()

    def goodbye(self, status: int | None) -> None:
        """The status is not told in this protocol."""

    def _lose(self) -> None:
        self.open = False
        self.pending.clear()


def serve(sock: socket.socket, secret: str, early: bytes) -> None:
    """A client came with ``secret``: attach it to its dyno until one of them is done.

    Args:
        sock: in TLS; does not block. The caller closes it.
        early: what came after the secret.
    """
    notice_vanishing(sock)
    attachment = attach.waiting.take_by_secret(secret)
    if attachment is None:
        _refuse(sock)
        return
    log.info("attached", extra={"dyno": attachment.dyno_id})
    attach.carry(Rendezvous(sock, early, terminal=attachment.terminal), attachment)
    log.info("detached", extra={"dyno": attachment.dyno_id})


def _refuse(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.settimeout(5)
        sock.sendall(BANNER)
        time.sleep(GAP_SECONDS)  # else the client throws the sentence away with the banner
        sock.sendall(USED)
