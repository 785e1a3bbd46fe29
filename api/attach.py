"""Attached one-off dynos: what the runtime hands over (a terminal or three pipes) is bridged to the client.

The client speaks one of two protocols: a WebSocket with frames of our own (:class:`Frames`; the ``davit`` command), or
Heroku's rendezvous (:mod:`api.rendezvous`; the ``heroku`` command). Both are a :class:`Peer` here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from wsproto.events import BytesMessage, CloseConnection, TextMessage

from api import streams
from api.websocket import WebSocket
from foundation import wire
from foundation.errors import DavitError, NotFound, Unavailable
from foundation.settings import settings

log = logging.getLogger("web")

PATIENCE_SECONDS = 30
"""How long a dyno waits for its client (Heroku's R13)."""
DRAIN_SECONDS = 3
"""How long output is waited for when the command has ended but something keeps its output open."""
LINGER_SECONDS = 0.4
"""How long a client that is still to end its input is read on when its command has ended."""
BUFFER = 1 << 18
"""Bytes that wait in one direction at the most."""
LOST = b" !     Davit was restarted, so this session is over; start another.\r\n"
"""What a client is told when the runtime that had its command has ended."""
FORBIDDEN = b" !     You may not run commands in this app any more, so this session is over.\r\n"
"""What a client is told who lost the right to what it does, or whose token is not in force any more."""
LONGEST_ORDER = 1000
STDIN, STDOUT, STDERR = 0, 1, 2
_SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "QUIT": signal.SIGQUIT}


@dataclass
class Attachment:
    """A started dyno whose client is due or here.

    Attributes:
        line: the connection to the runtime that started the dyno: when it ends, the dyno gets SIGHUP.
        input: where its standard input is written; None after its end.
        outputs: descriptor → stream number.
        terminal: whether ``input`` and the one output are a terminal's master side.
        started: what the runtime said about the dyno.
        may_go_on: whether its client may still do that; asked every :data:`api.streams.RECHECK_SECONDS`.
        secret: what a rendezvous begins with; used once.
    """

    started: dict[str, Any]
    account_id: str
    line: wire.Connection
    input: int | None
    outputs: dict[int, int]
    terminal: bool
    give_back: Callable[[], None]
    may_go_on: Callable[[], bool] = lambda: True
    secret: str = field(default_factory=lambda: f"davit-run-{secrets.token_hex(24)}", repr=False)
    timer: threading.Timer | None = field(default=None, repr=False)

    @property
    def dyno_id(self) -> str:
        """The dyno's id."""
        return str(self.started["dyno_id"])

    def close(self) -> None:
        """Let go of everything; the runtime ends the dyno if it still runs."""
        self.line.close()
        for fd in {*self.outputs, *([self.input] if self.input is not None else [])}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.input, self.outputs = None, {}
        self.give_back()


Started = tuple[dict[str, Any], int, dict[int, int]]
"""What the runtime said, where input is written, descriptor → stream number."""


def start(
    account_id: str, params: dict[str, Any], size: tuple[int, int] | None, may_go_on: Callable[[], bool], *,
    call: str = "oneoff.start",
) -> Attachment:
    """Have the runtime start a one-off dyno that this process is attached to.

    Args:
        account_id: who does it.
        params: ``oneoff.start``'s; with ``by`` as None nothing goes on record.
        size: (rows, columns) of its terminal; None for three pipes.
        may_go_on: see :class:`Attachment`.
        call: what the runtime is asked for: ``oneoff.start``, or ``oneoff.inside`` for a command in a dyno that runs.

    Raises:
        DavitError: it could not be started.
    """
    give_back, params = streams.slots.take(account_id), {"by": account_id, **params}
    try:
        line = wire.Connection(settings().run / "runtime.sock", timeout=90)
        try:
            found = _start_terminal(line, call, params, size) if size else _start_pipes(line, call, params)
        except BaseException:
            line.close()
            raise
    except BaseException:
        give_back()
        raise
    started, input, outputs = found
    return Attachment(started, account_id, line, input, outputs, size is not None, give_back, may_go_on)


def _start_terminal(line: wire.Connection, call: str, params: dict[str, Any], size: tuple[int, int]) -> Started:
    reply = line.call(call, {**params, "terminal": list(size)})
    if len(reply.fds) != 1:
        raise DavitError("The runtime gave no terminal.")
    return reply.result, reply.fds[0], {reply.fds[0]: STDOUT}


def _start_pipes(line: wire.Connection, call: str, params: dict[str, Any]) -> Started:
    pipes = [os.pipe(), os.pipe(), os.pipe()]
    theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
    ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
    try:
        reply = line.call(call, params, theirs)
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return reply.result, ours[0], {ours[1]: STDOUT, ours[2]: STDERR}


class Waiting:
    """Dynos whose client has not come yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attachments: dict[str, Attachment] = {}

    def add(self, attachment: Attachment) -> None:
        """Wait for the client; without one the dyno ends after :data:`PATIENCE_SECONDS`."""
        attachment.timer = threading.Timer(PATIENCE_SECONDS, self._give_up, [attachment])
        attachment.timer.daemon = True
        with self._lock:
            self._attachments[attachment.dyno_id] = attachment
        attachment.timer.start()

    def take(self, dyno_id: str, account_id: str) -> Attachment:
        """The client is here.

        Raises:
            NotFound: no such dyno waits for this account.
        """
        with self._lock:
            attachment = self._attachments.get(dyno_id)
            if attachment is None or attachment.account_id != account_id:
                raise NotFound("No dyno of yours with this id waits for you; start one first.")
            del self._attachments[dyno_id]
        if attachment.timer:
            attachment.timer.cancel()
        return attachment

    def take_by_secret(self, secret: str) -> Attachment | None:
        """The client is here and knows the secret; None when no dyno waits with this one (any more)."""
        with self._lock:
            given = secret.encode(errors="replace")
            found = [one for one in self._attachments.values() if secrets.compare_digest(one.secret.encode(), given)]
        for one in found:
            with contextlib.suppress(NotFound):
                return self.take(one.dyno_id, one.account_id)
        return None

    def _give_up(self, attachment: Attachment) -> None:
        with self._lock:
            if self._attachments.pop(attachment.dyno_id, None) is None:
                return
        log.info("nobody attached in time (R13)", extra={"dyno": attachment.dyno_id})
        attachment.close()


waiting = Waiting()


@dataclass(frozen=True)
class Input:
    """Bytes for the command's standard input."""

    data: bytes


@dataclass(frozen=True)
class EndOfInput:
    """Nothing more comes for its standard input."""


@dataclass(frozen=True)
class Resize:
    """Its terminal has another size."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Signal:
    """Its processes get a signal."""

    number: int


Order = Input | EndOfInput | Resize | Signal


class Peer(Protocol):
    """A client of an attached dyno; nothing here blocks."""

    @property
    def open(self) -> bool:
        """False once the client has gone."""

    @property
    def pending(self) -> bytearray:
        """Bytes that wait to be written."""

    @property
    def ready(self) -> bool:
        """Whether output may be queued yet."""

    @property
    def lingers(self) -> bool:
        """Whether the client should be read on for a moment when the command has ended."""

    def fileno(self) -> int:
        """For selectors."""

    def receive(self) -> Iterator[Order]:
        """What has come."""

    def output(self, stream: int, data: bytes) -> None:
        """Queue what the command wrote to stream 1 or 2."""

    def goodbye(self, status: int | None) -> None:
        """Queue that the command has ended with ``status``."""

    def flush(self) -> None:
        """Write what the socket takes."""

    def tick(self) -> Iterator[Order]:
        """What has come by time alone."""


class Frames:
    """The ``davit`` command's protocol: WebSocket messages.

    Binary: one byte that names the stream, then its bytes: 0 standard input, 1 standard output (or the terminal), 2 standard
    error. Text, JSON: ``{"resize": [rows, columns]}``, ``{"eof": true}`` and ``{"signal": "INT"}`` from the client;
    ``{"exit": 3}`` from the server, which then closes.
    """

    ready, lingers = True, False

    def __init__(self, web: WebSocket) -> None:
        self.web = web
        self.inside_message = self.to_stdin = False
        self.order = ""

    @property
    def open(self) -> bool:
        """Whether the client is there."""
        return self.web.open

    @property
    def pending(self) -> bytearray:
        """Bytes that wait to be written."""
        return self.web.pending

    def fileno(self) -> int:
        """For selectors."""
        return self.web.fileno()

    def flush(self) -> None:
        """Write what the socket takes."""
        self.web.flush()

    def tick(self) -> Iterator[Order]:
        """Time brings nothing here."""
        yield from ()

    def output(self, stream: int, data: bytes) -> None:
        """Queue what the command wrote."""
        self.web.send(BytesMessage(bytes([stream]) + data))

    def goodbye(self, status: int | None) -> None:
        """Queue the exit status and the end."""
        if self.web.open:
            self.web.send(TextMessage(json.dumps({"exit": status})))
            self.web.send(CloseConnection(code=1000))

    def receive(self) -> Iterator[Order]:
        """What has come."""
        for event in self.web.receive():  # a message may come in pieces; only its first byte names the stream
            if isinstance(event, BytesMessage):
                data = bytes(event.data)
                if not self.inside_message:
                    self.to_stdin, data = data[:1] == bytes([STDIN]), data[1:]
                self.inside_message = not event.message_finished
                if self.to_stdin:
                    yield Input(data)
            elif isinstance(event, TextMessage):
                self.order += event.data
                if len(self.order) > LONGEST_ORDER:
                    self.web.send(CloseConnection(code=1009, reason="That order is too long."))
                elif event.message_finished:
                    yield from self._parse(self.order)
                    self.order = ""

    def _parse(self, text: str) -> Iterator[Order]:
        try:
            order = json.loads(text)
            if "resize" in order:
                rows, columns = (max(1, min(int(n), 10_000)) for n in order["resize"])
                yield Resize(rows, columns)
            elif "signal" in order and order["signal"] in _SIGNALS:
                yield Signal(int(_SIGNALS[order["signal"]]))
            elif order.get("eof"):
                yield EndOfInput()
        except (ValueError, TypeError, AttributeError, RecursionError):
            self.web.send(CloseConnection(code=1003, reason="That is no order."))


def bridge(web: WebSocket, attachment: Attachment) -> None:
    """Carry bytes both ways until the command has ended or the client has gone; then let go of everything."""
    assert web.socket is not None
    timeout = web.socket.gettimeout()
    web.socket.setblocking(False)
    try:
        carry(Frames(web), attachment)
    finally:
        with contextlib.suppress(OSError):
            web.socket.settimeout(timeout)


def carry(peer: Peer, attachment: Attachment) -> None:
    """Carry bytes between a client and its dyno until one of them is done; the attachment is closed then."""
    try:
        _Bridge(peer, attachment).run()
    finally:
        attachment.close()


class _Bridge:
    def __init__(self, peer: Peer, attachment: Attachment) -> None:
        self.peer, self.attachment = peer, attachment
        self.to_command = bytearray()
        self.ended_input = self.stopped = self.lost = self.forbidden = False
        self.asked = time.monotonic()
        self.status: int | None = None
        self.deadline: float | None = None
        self._ended, self._tell = os.pipe()

    def run(self) -> None:
        for fd in {*self.attachment.outputs, self.attachment.input}:
            if fd is not None:
                os.set_blocking(fd, False)
        threading.Thread(target=self._wait, daemon=True).start()
        try:
            while self.peer.open and not self.stopped and not self.forbidden and not self._finished():
                self._step()
            if not self.stopped:
                self._say_goodbye()
        finally:
            os.close(self._ended)

    def _wait(self) -> None:
        """In a thread: how the command ended, on a connection of its own; the dyno's end is bounded, so this is."""
        status = None
        try:
            reply = wire.call(settings().run / "runtime.sock", "oneoff.wait", {"dyno_id": self.attachment.dyno_id}, timeout=None)
            status = reply.result.get("status")
        except DavitError as error:
            log.warning("a one-off's exit status is unknown: %s", error.message)
            self.lost = isinstance(error, Unavailable)
        self.status = status
        with contextlib.suppress(OSError):
            os.close(self._tell)

    def _finished(self) -> bool:
        if self.deadline is None:
            return False
        return not self.attachment.outputs or time.monotonic() > self.deadline

    def _step(self) -> None:
        for order in self.peer.tick():
            self._obey(order)
        with selectors.DefaultSelector() as selector:
            for fd, events in self._interests():
                selector.register(fd, events)
            ready = {key.fd: events for key, events in selector.select(1.0 if self.peer.ready and not self.peer.lingers else 0.1)}
        if not streams.working():
            self.stopped = True
            return
        if time.monotonic() > self.asked + streams.RECHECK_SECONDS:
            self.asked, self.forbidden = time.monotonic(), not self.attachment.may_go_on()
            if self.forbidden:
                return
        if self._ended in ready:
            self.deadline = time.monotonic() + DRAIN_SECONDS
        if ready.get(self.peer.fileno(), 0) & selectors.EVENT_READ:
            for order in self.peer.receive():
                self._obey(order)
        for fd in [fd for fd in self.attachment.outputs if ready.get(fd, 0) & selectors.EVENT_READ]:
            self._from_command(fd)
        self._to_command()
        self.peer.flush()

    def _interests(self) -> Iterator[tuple[int, int]]:
        masks: dict[int, int] = {self.peer.fileno(): 0}
        if len(self.to_command) < BUFFER:
            masks[self.peer.fileno()] |= selectors.EVENT_READ
        if self.peer.pending:
            masks[self.peer.fileno()] |= selectors.EVENT_WRITE
        if self.peer.ready and len(self.peer.pending) < BUFFER:
            masks |= {fd: selectors.EVENT_READ for fd in self.attachment.outputs}
        if self.to_command and self.attachment.input is not None:
            masks[self.attachment.input] = masks.get(self.attachment.input, 0) | selectors.EVENT_WRITE
        if self.deadline is None:
            masks[self._ended] = selectors.EVENT_READ
        return ((fd, mask) for fd, mask in masks.items() if mask)

    def _obey(self, order: Order) -> None:
        if isinstance(order, Input):
            if not self.ended_input:
                self.to_command += order.data
        elif isinstance(order, EndOfInput):
            self.ended_input = True
        elif isinstance(order, Resize):
            self._runtime("oneoff.resize", {"rows": order.rows, "columns": order.columns})
        else:
            # one that a busy host is too slow to take would be lost without a word, and somebody waits for it
            self._runtime("oneoff.signal", {"number": order.number}, timeout=30)

    def _runtime(self, name: str, params: dict[str, int], timeout: float = 5) -> None:
        with contextlib.suppress(DavitError):  # it may have ended just now
            wire.call(settings().run / "runtime.sock", name, {"dyno_id": self.attachment.dyno_id, **params}, timeout=timeout)

    def _to_command(self) -> None:
        fd = self.attachment.input
        if fd is None:
            self.to_command.clear()
            return
        try:
            while self.to_command:
                del self.to_command[: os.write(fd, self.to_command[:65536])]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self.to_command.clear()
            self._end_input(fd)
            return
        if self.ended_input:
            self._end_input(fd)

    def _end_input(self, fd: int) -> None:
        self.ended_input, self.attachment.input = True, None
        if self.attachment.terminal:
            with contextlib.suppress(OSError):
                os.write(fd, b"\x04")  # ^D: a terminal's end of file (termios(3), VEOF)
        if fd not in self.attachment.outputs:
            os.close(fd)

    def _from_command(self, fd: int) -> None:
        try:
            data = os.read(fd, 32768)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            self.peer.output(self.attachment.outputs[fd], data)
            if self.deadline is not None and not self.lost:
                self.deadline = time.monotonic() + DRAIN_SECONDS
            return
        del self.attachment.outputs[fd]
        if fd != self.attachment.input:
            os.close(fd)

    def _say_goodbye(self) -> None:
        if self.forbidden or self.lost:
            self.peer.output(STDOUT if self.attachment.terminal else STDERR, FORBIDDEN if self.forbidden else LOST)
        self.peer.goodbye(self.status)
        now = time.monotonic()
        read_on, give_up = now + LINGER_SECONDS, now + PATIENCE_SECONDS
        while self.peer.pending or (self.peer.lingers and time.monotonic() < read_on):
            if time.monotonic() > give_up:
                return
            with selectors.DefaultSelector() as selector:
                wanted = selectors.EVENT_READ if self.peer.open else 0
                selector.register(self.peer.fileno(), wanted | (selectors.EVENT_WRITE if self.peer.pending else 0))
                ready = selector.select(0.05)
            if any(events & selectors.EVENT_READ for _, events in ready):
                list(self.peer.receive())
            list(self.peer.tick())
            self.peer.flush()
