"""Carries access lines from HAProxy to the apps' logs.

HAProxy writes them to a FIFO that it holds open for reading too, so that they wait while nobody reads. Lines go on in
batches. What cannot go on is counted, and the count goes into the logs concerned (Heroku's L10).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from foundation.clock import now
from router.accesslog import Access, read

log = logging.getLogger("router")

Deliver = Callable[[Mapping[str, Sequence[Access]]], Awaitable[None]]
"""Takes lines by app, in order; raises when it could not take them (they are tried again)."""

WAKE = b"wake "
"""How a line of hold.lua's begins; an access line begins with a route."""

_CAPACITY = (16 << 20, 4 << 20, 1 << 20)
"""Bytes that the FIFO may hold, as much as the kernel grants (the first needs CAP_SYS_RESOURCE)."""


def open_fifo(path: Path) -> int:
    """Make the FIFO where there is none, and open it for reading and writing: the descriptor that HAProxy inherits."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    for capacity in _CAPACITY:
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, capacity)
            break
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise
    return fd


class Collector:
    """Reads the FIFO and delivers.

    Args:
        fifo: its path.
        deliver: where lines go.
        interval: seconds between deliveries.
        backlog: lines that wait for delivery at the most; later ones are counted and dropped.
        wake: called with an app's id when a request waits for it to wake.
        count: called with each request that ended, for figures.

    Attributes:
        read: access lines read so far.
        dropped: lines lost here so far.
        seen: app → when the last request for it ended (seconds of the monotonic clock).
    """

    def __init__(
        self,
        fifo: Path,
        deliver: Deliver,
        interval: float = 0.1,
        backlog: int = 100_000,
        wake: Callable[[str], None] | None = None,
        count: Callable[[Access], None] = lambda access: None,
    ) -> None:
        self.read = 0
        self.dropped = 0
        self.seen: dict[str, float] = {}
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._deliver, self._wake, self._figure = deliver, wake, count
        self._interval = interval
        self._backlog = backlog
        self._rest = b""
        self._waiting: dict[str, list[Access]] = {}
        self._count = 0
        self._lost: dict[str, int] = {}
        self._lost_elsewhere = 0

    async def run(self) -> None:
        """Collect until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._interval)
                try:
                    self.take()
                    await self.flush()
                except Exception:  # no memory or thread at the moment: what is in the FIFO waits there
                    log.exception("access lines could not be taken")
        finally:
            os.close(self._fd)

    def take(self, limit: int = 8 << 20) -> None:
        """Read what is there, at most ``limit`` bytes."""
        while limit > 0:
            try:
                data = os.read(self._fd, 1 << 20)
            except BlockingIOError:
                return
            limit -= len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._add(line)

    def lost(self, number: int) -> None:
        """Note lines that HAProxy itself had to drop; they may be any app's that is busy."""
        self._lost_elsewhere += number

    async def flush(self) -> None:
        """Deliver what waits; on failure it waits on."""
        self._confess()
        if not self._waiting:
            return
        batch, self._waiting, count, self._count = self._waiting, {}, self._count, 0
        try:
            await self._deliver(batch)
        except Exception as error:
            log.warning("access lines wait: the log store takes none", extra={"lines": count, "reason": type(error).__name__})
            for app_id, lines in self._waiting.items():
                batch.setdefault(app_id, []).extend(lines)
            self._waiting, self._count = batch, self._count + count

    def _add(self, line: bytes) -> None:
        if line.startswith(WAKE):
            return self._hear(line)
        access = read(line.decode("ascii", errors="replace"))
        if access is None:
            return
        self.read += 1
        self.seen[access.app_id] = time.monotonic()
        self._figure(access)
        if self._count >= self._backlog:
            self.dropped += 1
            self._lost[access.app_id] = self._lost.get(access.app_id, 0) + 1
            return
        self._count += 1
        self._waiting.setdefault(access.app_id, []).append(access)

    def _hear(self, line: bytes) -> None:
        """``wake`` and a route as hosts.map has it: hold.lua says so, for a request to an app that sleeps."""
        parts = line[len(WAKE) :].decode("ascii", errors="replace").split("/")
        if self._wake and len(parts) == 4 and parts[1]:
            self._wake(parts[1])

    def _confess(self) -> None:
        """Put the counts of lost lines into the logs, once there is room."""
        if self._count >= self._backlog or not (self._lost or self._lost_elsewhere):
            return
        elsewhere, self._lost_elsewhere = self._lost_elsewhere, 0
        lost, self._lost = self._lost, {}
        for app_id in {*lost, *(self._waiting if elsewhere else ())}:
            parts = [f"{lost[app_id]} messages dropped"] if app_id in lost else []
            parts += [f"{elsewhere} router messages of all apps dropped"] if elsewhere else []
            line = Access(app_id, now(), f"Error L10 (output buffer overflow): {', '.join(parts)}.")
            self._waiting.setdefault(app_id, []).append(line)
