"""The web process's one port speaks HTTP and HTTPS, and the rendezvous protocol of ``heroku run`` inside TLS.

The first byte decides: 0x16 begins a TLS handshake (RFC 8446, record type), anything else is HTTP in the clear. So
``HEROKU_HOST=http://127.0.0.1:5000`` and git's ``https://127.0.0.1:5000/app.git`` are one address.

A connection is received by the worker's main loop without blocking, a request's head and its body, and only then given a thread:
silent, slow and hostile clients cost a file descriptor and a few kilobytes until their time is over. What is streamed (packs
that are pushed, tarballs that are uploaded) and what is larger than any body may be has a thread from the end of its head on: the
one asks who it is, the other refuses, before the first byte is read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import TConn, ThreadWorker

from foundation.authority import Authority
from foundation.pace import Pace
from foundation.settings import Settings, settings

log = logging.getLogger("web")

HEAD_SECONDS = 20.0
"""How long a client may take over TLS and the head of a request."""
STILL_SECONDS = 600.0
"""How long a thread waits for a client that neither sends nor reads on."""
LINGER_SECONDS = 2.0
"""How long a connection that ends is read on, so that its last answer is not cut off by what the client still sends."""
BODY_SECONDS = 60.0
"""How long a client may take over a body from the end of its head on."""
HEAD_BYTES = 65536
"""Bytes of a head at the most."""
BODY_BYTES = 1 << 20
"""Bytes of a body that are received before a thread looks at them; one of JSON or a form that is longer is refused there."""
CHUNKS_BYTES = BODY_BYTES + BODY_BYTES // 4
"""Bytes of a body with what stands around its chunks; a longer one is refused."""
BODIES_BYTES = 64 << 20
"""Bytes of all bodies that are under way; beyond it who has sent the most is let go."""
GUESTS = 2048
"""Clients that have not said what they want yet; beyond it the oldest is let go."""
LONG_HEAD, LONG_BODY = 431, 413
RENDEZVOUS = b"davit-run-"
SECRET_BYTES = len(RENDEZVOUS) + 48
"""A rendezvous secret: what no HTTP request begins with, then a fixed number of letters, because not every client ends it."""
_HANDSHAKE = 0x16
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d+)[ \t]*\r?\n", re.I)
_CHUNKED = re.compile(rb"\ntransfer-encoding:[^\n]*chunked", re.I)
_EXPECTS = re.compile(rb"\nexpect:[ \t]*100-continue", re.I)
_STREAMED = re.compile(rb"[A-Z]+ [^ ?#]*(?:/git-(?:receive|upload)-pack|/streams/(?:sources|slugs)/[^/?# ]*)[? ]")
"""Requests whose body is read as it comes, by who has asked before whether it may come."""


class Plain(socket.socket):
    """A connection in the clear, after :meth:`adopt`.

    Attributes:
        taken: set by who keeps the connection for longer than its request; the server then lets go of it.
        pace: what a thread that reads from it demands of the client (:func:`foundation.pace.demanded`).
    """

    taken = False
    pace: Pace | None = None

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As a socket's; TooSlow where a pace is demanded and not kept up."""
        if self.pace is None:
            return super().recv(bufsize, flags)
        return self.pace.timed(lambda: super(Plain, self).recv(bufsize, flags))

    @classmethod
    def adopt(cls, connection: socket.socket) -> Plain:
        """The same connection, of this class."""
        return cls(connection.family, connection.type, connection.proto, fileno=connection.detach())

    def setblocking(self, flag: bool) -> None:
        """As a socket's; but “blocking” ends after :data:`STILL_SECONDS`."""
        self.settimeout(STILL_SECONDS if flag else 0.0)
        self.pace = None


class Encrypted(ssl.SSLSocket):
    """A connection in TLS; attributes as :class:`Plain`'s."""

    taken = False
    pace: Pace | None = None

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As :meth:`Plain.recv`."""
        if self.pace is None:
            return super().recv(buflen, flags)
        return self.pace.timed(lambda: super(Encrypted, self).recv(buflen, flags))

    def setblocking(self, flag: bool) -> None:
        """As :meth:`Plain.setblocking`."""
        self.settimeout(STILL_SECONDS if flag else 0.0)
        self.pace = None


Line = Plain | Encrypted


class Guest(TConn):  # type: ignore[misc]
    """A connection from its arrival to its end.

    Attributes:
        early: what was received before a thread had it.
        since, deadline: from when to when it has time for what it is about (monotonic seconds).
    """

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, Plain.adopt(sock), client, server)
        self.parser: Any = None
        self.early = bytearray()
        self.begins()
        self.step: Callable[[Guest], int] = _greet

    def begins(self) -> None:
        """Nothing of a request has been looked at yet."""
        self.has(HEAD_SECONDS)
        self.head = self.whole = 0
        """Where its head ends, once that is known; and where all of it ends or, while it is chunked, its next chunk begins."""
        self.chunked = False

    def has(self, seconds: float) -> None:
        """From now on it has so long for what it is about."""
        self.since = time.monotonic()
        self.deadline = self.since + seconds

    @property
    def secure(self) -> bool:
        """Whether it is in TLS."""
        return isinstance(self.sock, Encrypted)

    @property
    def complete(self) -> bool:
        """Whether enough has come for a thread to begin."""
        if self.early.startswith(RENDEZVOUS) and self.secure:
            return len(self.early) >= SECRET_BYTES
        if not self.head and not self._head_is_there():
            return False
        if self.chunked:
            self._skip_chunks()
        return not self.chunked and len(self.early) >= self.whole

    @property
    def endless(self) -> int | None:
        """What is too long of what has come of a request that is not complete; None when nothing is."""
        if not self.head:
            return LONG_HEAD if len(self.early) > HEAD_BYTES else None
        return LONG_BODY if self.chunked and len(self.early) > self.head + CHUNKS_BYTES else None

    def _head_is_there(self) -> bool:
        while self.early.startswith(b"\r\n"):  # as RFC 9112, section 2.2, would have it
            del self.early[:2]
        end = self.early.find(b"\r\n\r\n")
        if end < 0:
            return False
        self.head = self.whole = end + 4
        head = self.early[: self.head]
        if _STREAMED.match(head):
            return True
        lengths = [int(length) for length in _LENGTH.findall(head)]
        self.chunked = _CHUNKED.search(head) is not None
        if not self.chunked and lengths and max(lengths) <= BODY_BYTES:
            self.whole += max(lengths)
        if self.chunked or self.whole > self.head:
            self.has(BODY_SECONDS)
            if _EXPECTS.search(head) and len(self.early) == self.head:
                with contextlib.suppress(OSError):
                    self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _skip_chunks(self) -> None:
        """Go on through a chunked body (RFC 9112, section 7.1); one that makes no sense is for the parser to refuse."""
        while (end := self.early.find(b"\r\n", self.whole)) >= 0:
            try:
                size = int(self.early[self.whole : end].partition(b";")[0], 16)
            except ValueError:
                size = -1
            if size > 0:
                self.whole = end + 2 + size + 2
                continue
            ends = self.early.find(b"\r\n\r\n", end) if size == 0 else end
            if ends >= 0:
                self.chunked, self.whole = False, min(len(self.early), ends + 4)
            return

    def init(self) -> None:
        """In the thread: what was received early goes to the parser."""
        if self.parser is None:
            self.initialized = True
            self.parser = http.get_parser(self.cfg, self.sock, self.client)
        if self.early:
            self.parser.unreader.unread(bytes(self.early))
            self.early.clear()

    def close(self, graceful: bool = False) -> None:
        """End the connection, unless somebody has taken it over."""
        if not self.sock.taken:
            super().close(graceful)


class Lost(Exception):
    """The client has gone or makes no sense."""


def _greet(guest: Guest) -> int:
    try:
        first = guest.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return selectors.EVENT_READ
    if not first:
        raise Lost
    if first[0] != _HANDSHAKE:
        guest.step = _read
        return _read(guest)
    context = tls()
    if context is None:
        raise Lost
    guest.sock = context.wrap_socket(guest.sock, server_side=True, do_handshake_on_connect=False)
    guest.step = _shake_hands
    return _shake_hands(guest)


def _shake_hands(guest: Guest) -> int:
    try:
        guest.sock.do_handshake()
    except ssl.SSLWantReadError:
        return selectors.EVENT_READ
    except ssl.SSLWantWriteError:
        return selectors.EVENT_WRITE
    guest.step = _read
    return _read(guest)


def _read(guest: Guest) -> int:
    while not guest.complete:
        try:
            data = guest.sock.recv(16384)
        except (BlockingIOError, ssl.SSLWantReadError):
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        if not data:
            raise Lost
        guest.early += data
        if not guest.complete and (problem := guest.endless):
            return _refuse(guest, problem)
    return 0


_UNREAD = {
    400: ("Bad Request", "bad_request", "The request cannot be read as HTTP."),
    413: ("Content Too Large", "request_entity_too_large", "The request body is larger than the API takes."),
    414: ("URI Too Long", "bad_request", "The request's address is too long."),
    431: ("Request Header Fields Too Large", "bad_request", "The request's headers are too long."),
    500: ("Internal Server Error", "internal_error", "Something went wrong inside Davit; its log has the details."),
}
"""What is said of a request that the API never sees: as 400 what the rest is."""


def refusal(status: int) -> bytes:
    """An answer in the error form, after which the connection ends."""
    reason, id, message = _UNREAD.get(status, _UNREAD[400])
    body = json.dumps({"id": id, "message": message, "url": f"{settings().api_url}/errors/{id}"}).encode()
    head = f"HTTP/1.1 {status if status in _UNREAD else 400} {reason}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class _InJson:
    """What gunicorn writes its own errors to: in its words they are pages, here they become JSON.

    Args:
        client: the connection.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def sendall(self, page: bytes) -> None:
        """Send the same status in the error form."""
        self._client.sendall(refusal(int(page.split(b" ", 2)[1])))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _refuse(guest: Guest, status: int) -> int:
    """Answer without a thread, and read on for a moment so that the client gets to read that."""
    guest.sock.send(refusal(status))
    if not guest.secure:
        guest.sock.shutdown(socket.SHUT_WR)
    guest.has(LINGER_SECONDS)
    guest.early.clear()
    guest.step = _linger
    return selectors.EVENT_READ


def _linger(guest: Guest) -> int:
    while len(guest.early) < HEAD_BYTES:
        try:
            data = guest.sock.recv(16384)
        except (BlockingIOError, ssl.SSLWantReadError):
            return selectors.EVENT_READ
        if not data:
            break
        guest.early += data
    raise Lost


def _say_closed(sock: Encrypted) -> None:
    try:
        sock.unwrap()  # sends close_notify; does not wait for the other's, as the socket does not block
    except (OSError, ValueError):
        pass


class Unquoted(logging.Filter):
    """gunicorn's own messages quote what they cannot read or serve; a request's first line or a header may hold a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every message pass, without what was sent."""
        text = str(record.msg)
        if text.startswith("Invalid request from ip="):
            record.msg, record.args = f"{text.partition(': ')[0]}: it cannot be read as HTTP", ()
        elif text.startswith("Error handling request"):
            record.msg, record.args = "Error handling a request", ()
        return True


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker with this door."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guests: dict[Guest, int] = {}
        """Those who have not said what they want yet, the oldest first, and what each is waited for."""

    def accept(self, listener: socket.socket) -> None:
        """In the main loop: a client has come."""
        try:
            sock, client = listener.accept()
            sock.setblocking(False)
        except OSError:
            return
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.nr_conns += 1
        while len(self.guests) >= GUESTS:
            self.dismiss(next(iter(self.guests)))
        self.receive(Guest(self.cfg, sock, client, listener.getsockname()))

    def receive(self, guest: Guest) -> None:
        """In the main loop: go on with a client as far as it goes without waiting."""
        before = self.guests.get(guest, 0)
        try:
            wanted = guest.step(guest)
        except (OSError, Lost, ValueError):
            self.dismiss(guest)
            return
        if wanted and wanted == before:
            if len(guest.early) > HEAD_BYTES:
                self.make_room()
            return
        if before:
            self.poller.unregister(guest.sock)
        if wanted:
            self.guests[guest] = wanted
            self.poller.register(guest.sock, wanted, partial(self.go_on, guest))
        else:
            self.guests.pop(guest, None)
            guest.data_ready = True
            self.enqueue_req(guest)
        if len(guest.early) > HEAD_BYTES:
            self.make_room()

    def go_on(self, guest: Guest, _: object) -> None:
        """In the main loop: a client can be gone on with, if it was not let go since the poller saw that."""
        if guest in self.guests:
            self.receive(guest)

    def dismiss(self, guest: Guest) -> None:
        """Forget a client that never said what it wants."""
        if self.guests.pop(guest, 0):
            try:
                self.poller.unregister(guest.sock)
            except (OSError, KeyError, ValueError):
                pass
        self.nr_conns -= 1
        guest.close()

    def murder_pending(self) -> None:
        """The main loop's round through those whose time is over; a server that ends waits for nobody's head."""
        super().murder_pending()
        now = time.monotonic()
        for guest in list(self.guests):
            if guest.deadline < now or (not self.alive and guest.since + LINGER_SECONDS < now):
                self.dismiss(guest)

    def make_room(self) -> None:
        """In the main loop: when there is too much of bodies that are not whole, let go whose is the largest."""
        while sum(len(guest.early) for guest in self.guests) > BODIES_BYTES:
            self.dismiss(max(self.guests, key=lambda guest: len(guest.early)))

    def on_client_socket_readable(self, conn: Guest, client: Any) -> None:
        """In the main loop: a kept connection has its next request."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        conn.begins()
        conn.step = _read
        self.receive(conn)

    def finish_request(self, conn: Guest, fs: Any) -> None:
        """In the main loop: a thread is done with a request."""
        if fs.cancelled() or fs.exception() is not None or fs.result() is not True:
            self.part(conn)
        elif (early := conn.parser.unreader.take_buffered()) or (conn.secure and conn.sock.pending()):
            conn.sock.setblocking(False)  # its next request, or a part of it, lies where no poll sees it
            conn.begins()
            conn.early += early
            conn.step = _read
            self.receive(conn)
        else:
            super().finish_request(conn, fs)

    def part(self, conn: Guest) -> None:
        """In the main loop: end a connection so that the client gets to read its last answer (RFC 9112, section 9.6)."""
        if conn.sock.taken:
            self.nr_conns -= 1
            return
        try:
            conn.sock.setblocking(False)
            if conn.secure:
                _say_closed(conn.sock)
            conn.sock.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):
            pass
        conn.has(LINGER_SECONDS)
        conn.early.clear()
        conn.step = _linger
        self.receive(conn)

    def handle(self, conn: Guest) -> Any:
        """In a thread: serve a request, or a rendezvous."""
        if conn.secure and conn.early.startswith(RENDEZVOUS):
            from api import rendezvous

            conn.sock.setblocking(False)
            secret = bytes(conn.early[:SECRET_BYTES]).decode("ascii", "replace")
            rendezvous.serve(conn.sock, secret, bytes(conn.early[SECRET_BYTES:]))
            return False
        return super().handle(conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """In a thread: a request could not be read, or ended in an error; its address may be a secret, so none is logged."""
        if req is not None:
            req.uri = "/…"
        super().handle_error(req, _InJson(client), addr, exc)

    def handle_request(self, req: Any, conn: Guest) -> Any:
        """In a thread: a request has been read."""
        if conn.secure:
            req.scheme = "https"
        return super().handle_request(req, conn)


_context: ssl.SSLContext | None = None
_tried = False


def tls() -> ssl.SSLContext | None:
    """The server's side of TLS; None when its certificate cannot be used (the log says why)."""
    global _context, _tried
    if not _tried:
        _tried = True
        try:
            _context = _make_context(ensure_certificate(settings()))
        except (OSError, ValueError) as error:
            log.error("this port speaks no TLS: its certificate cannot be used", extra={"reason": str(error)})
    return _context


def _make_context(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = Encrypted
    return context


def ensure_certificate(settings: Settings) -> str:
    """The PEM file of this port's certificate: one that was put at ``keys/api.pem``, else one of the own authority's."""
    keys = settings.home / "keys"
    names = ["localhost", "127.0.0.1", "::1", "127.0.0.2", settings.api.reachable.host, settings.domain, f"*.{settings.domain}"]
    Authority(keys / "ca.pem").ensure(keys / "api.pem", list(dict.fromkeys([*names, *settings.names])))
    return str(keys / "api.pem")
