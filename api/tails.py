"""Log tails: one thread reads every followed app's lines once and writes them to all who follow.

A tail's request is answered by a thread of the web process up to the lines that are there already; then its connection is
handed over to here (:class:`api.websocket.Handover`), and the thread is free. So tails cost a descriptor and a buffer each,
and their number is no matter of threads.

Who reads slowly holds up nobody: up to :data:`BUFFER` bytes wait for each; beyond that lines are dropped and counted, and the
count is told when there is room again (L11). Who takes nothing at all for :data:`STUCK_SECONDS` is let go.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from api import streams
from foundation.clock import now
from foundation.nonblocking import WAIT
from logs import stream
from logs.stream import Line

log = logging.getLogger("web")

MOST, EACH = 1000, 500
"""Tails that may be open at once: in all, and of one account."""
KEPT, FEW = 250, 16
"""Of all, those that nobody gets who has so many already: two accounts leave some to all others."""
BUFFER = 256 << 10
"""Bytes that wait for one client."""
STUCK_SECONDS = 60.0
"""How long a client may take nothing while something waits for it."""
QUIET_SECONDS = 10.0
"""From one heartbeat to the next."""
RECHECK_SECONDS = 60.0
"""How often a tail asks whether its reader may still see the app."""
PAUSE = 0.02
"""Seconds between two rounds at the least, so that lines gather; as long again as the round took, when that is more."""
WAIT_SECONDS = 0.1
"""How long a round waits for a line."""

class Slots(streams.Slots):
    """How many tails are open."""

    def _demand(self, who: str) -> None:
        if self._taken[who] >= FEW and self._taken.total() >= MOST - KEPT:
            raise self._full(MOST)
        super()._demand(who)


slots = Slots(lambda: MOST, EACH)


@dataclass(eq=False)
class Tail:
    """A client that follows an app's log.

    Attributes:
        sock: its connection, which does not block; after the head and the lines that were there.
        after: the id of the last line that it has.
        events: whether it reads server-sent events rather than plain text.
        may_read: whether its reader may still see the app; asks the database.
        give_back: gives its slot back.
        chunked: whether what it is sent goes in chunks, as HTTP/1.1 has them (RFC 9112, 7.1). Without them a body has no end
            but the connection's, and Python's ``requests`` hands over no line of it before 512 bytes have come.
    """

    sock: Any
    app_id: str
    after: str
    source: str | None
    dyno: str | None
    events: bool
    may_read: Callable[[], bool]
    give_back: Callable[[], None]
    chunked: bool = False
    pending: bytearray = field(default_factory=bytearray)
    lost: int = 0
    lost_since: float = 0.0
    wrote: float = field(default_factory=time.monotonic)
    checked: float = field(default_factory=time.monotonic)
    waits: bool = False

    @property
    def kind(self) -> tuple[str | None, str | None, bool]:
        """What decides which bytes it gets."""
        return self.source, self.dyno, self.events

    def framed(self, data: bytes) -> bytes:
        """Some of the body as the connection has it."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked and data else data

    @property
    def last(self) -> bytes:
        """What says on the connection that the body is whole."""
        return b"0\r\n\r\n" if self.chunked else b""


def render(id: str | None, line: Line, events: bool) -> bytes:
    """A line as a client gets it."""
    if not events:
        return f"{stream.format_line(line)}\n".encode()
    return (f"id: {id}\n" if id else "").encode() + f"data: {stream.format_line(line)}\n\n".encode()


def render_all(lines: Sequence[tuple[str, Line]], kind: tuple[str | None, str | None, bool]) -> tuple[bytes, int]:
    """Those lines that pass the filters, and their number."""
    source, dyno, events = kind
    passing = [render(id, line, events) for id, line in lines if stream.matches(line, source, dyno)]
    return b"".join(passing), len(passing)


class Hub:
    """The thread that serves the tails; it lives while there are some.

    Args:
        connect: makes the Redis client that it reads with.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._redis: Any = None
        self._lock = threading.Lock()
        self._new: deque[Tail] = deque()
        self._thread: threading.Thread | None = None
        self._tails: dict[int, Tail] = {}
        self._after: dict[str, str] = {}

    def add(self, tail: Tail) -> None:
        """From now on the tail is served here, and its connection closed when it ends.

        Raises:
            RuntimeError, OSError: the system gives no further thread, or no descriptor; the tail is still its caller's.
        """
        with self._lock:
            if self._thread is None:
                self._begin()
            self._new.append(tail)

    def _begin(self) -> None:
        epoll = select.epoll()
        thread = threading.Thread(target=self._run, args=[epoll], name="tails", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            epoll.close()
            raise
        self._thread = thread

    def _run(self, epoll: select.epoll) -> None:
        with epoll as self._epoll:
            self._looked = time.monotonic()
            while True:
                try:
                    self._round()
                except Exception as error:  # Redis is away, usually: lines come when it is back
                    log.warning("log tails wait", extra={"reason": f"{type(error).__name__}: {error}"})
                    time.sleep(0.5)
                with self._lock:
                    if not self._tails and not self._new:
                        self._thread = self._redis = None
                        return

    def _round(self) -> None:
        started = time.thread_time()
        if self._redis is None:
            self._redis = self._connect()
        self._welcome()
        self._listen()
        self._look_around()
        if self._after:
            for app_id, lines in stream.follow_many(self._redis, self._after, WAIT_SECONDS).items():
                self._after[app_id] = lines[-1][0]
                self._spread(app_id, lines)
        time.sleep(max(PAUSE, time.thread_time() - started))

    def _welcome(self) -> None:
        while True:
            with self._lock:
                if not self._new:
                    return
                tail = self._new.popleft()
            self._tails[tail.sock.fileno()] = tail
            self._epoll.register(tail.sock.fileno(), select.EPOLLRDHUP)
            read = self._after.setdefault(tail.app_id, tail.after)
            if read != tail.after:  # others follow this app already: what came between is read for the newcomer alone
                found = stream.follow_many(self._redis, {tail.app_id: tail.after}, 0).get(tail.app_id, [])
                missing = [(id, line) for id, line in found if stream.order(id) <= stream.order(read)]
                self._write(tail, *render_all(missing, tail.kind))

    def _spread(self, app_id: str, lines: Sequence[tuple[str, Line]]) -> None:
        made: dict[Any, tuple[bytes, int]] = {}
        for tail in [tail for tail in self._tails.values() if tail.app_id == app_id]:
            if stream.order(tail.after) >= stream.order(lines[0][0]):  # it began after some of them
                mine = [(id, line) for id, line in lines if stream.order(id) > stream.order(tail.after)]
                self._write(tail, *render_all(mine, tail.kind))
                continue
            if tail.kind not in made:
                made[tail.kind] = render_all(lines, tail.kind)
            self._write(tail, *made[tail.kind])

    def _write(self, tail: Tail, data: bytes, count: int) -> None:
        """Send lines, as many at a time as there is room for; those that find none are lost."""
        if tail.pending:
            self._flush(tail)
        end = b"\n\n" if tail.events else b"\n"
        while data and tail.sock.fileno() in self._tails:
            part = self._fitting(tail, data, end)
            if not part:
                tail.lost, tail.lost_since = tail.lost + count, tail.lost_since or time.time()
                return
            if tail.lost:
                text = f"Error L11 (tail buffer overflow): {tail.lost} messages dropped since {stream.iso(tail.lost_since)}."
                tail.pending += tail.framed(render(None, Line(now(), "heroku", "logplex", text), tail.events))
                tail.lost, tail.lost_since = 0, 0.0
            if not tail.pending:
                tail.wrote = time.monotonic()
            tail.pending += tail.framed(part)
            data, count = data[len(part) :], count - part.count(end)
            self._flush(tail)

    def _fitting(self, tail: Tail, data: bytes, end: bytes) -> bytes:
        """The whole lines that there is room for; none while some are lost already and less than half of the room is free."""
        room = BUFFER - len(tail.pending)
        if tail.lost and room < BUFFER // 2:
            return b""
        return data if len(data) <= room else data[: data.rfind(end, 0, room) + len(end)] if end in data[:room] else b""

    def _flush(self, tail: Tail) -> None:
        try:
            while tail.pending:
                del tail.pending[: tail.sock.send(tail.pending)]
                tail.wrote = time.monotonic()
        except WAIT:
            pass
        except OSError:
            self._end(tail)
            return
        if tail.waits != bool(tail.pending):
            tail.waits = bool(tail.pending)
            self._epoll.modify(tail.sock.fileno(), select.EPOLLRDHUP | (select.EPOLLOUT if tail.waits else 0))

    def _listen(self) -> None:
        for fd, events in self._epoll.poll(0):
            tail = self._tails.get(fd)
            if tail is None:
                continue
            if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                self._end(tail)
            else:
                self._flush(tail)

    def _look_around(self) -> None:
        """Once a second: heartbeats, clients that take nothing, readers who may no longer read, the end of this process."""
        present = time.monotonic()
        if present < self._looked + 1:
            return
        self._looked = present
        for tail in list(self._tails.values()):
            if not streams.working() or (tail.pending and present > tail.wrote + STUCK_SECONDS):
                self._finish(tail)
            elif present > tail.checked + RECHECK_SECONDS:
                tail.checked = present
                if not tail.may_read():
                    self._finish(tail)
            elif tail.events and not tail.pending and present > tail.wrote + QUIET_SECONDS:
                self._write(tail, b": still here\n\n", 0)

    def _finish(self, tail: Tail) -> None:
        """End it from this side: as a whole body, unless its reader has not taken all before."""
        with contextlib.suppress(OSError):
            if not tail.pending:
                tail.sock.send(tail.last)
        self._end(tail)

    def _end(self, tail: Tail) -> None:
        fd = tail.sock.fileno()
        if self._tails.pop(fd, None) is None:
            return
        self._epoll.unregister(fd)
        with contextlib.suppress(OSError, ValueError):
            tail.sock.shutdown(socket.SHUT_RDWR)
        tail.sock.close()
        tail.give_back()
        if not any(other.app_id == tail.app_id for other in self._tails.values()):
            self._after.pop(tail.app_id, None)


def begin(tail: Tail, hub: Hub, head: bytes, backlog: bytes) -> None:
    """In the request's thread: send what is there, and hand the connection over."""
    tail.sock.taken = True
    try:
        tail.sock.settimeout(30)
        tail.sock.sendall(head + tail.framed(backlog))
        tail.sock.setblocking(False)
        hub.add(tail)
    except (OSError, RuntimeError):
        tail.sock.close()
        tail.give_back()


