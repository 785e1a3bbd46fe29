"""Reads what dynos print from their FIFOs and hands it to Redis: one loop, one epoll, one pass at a time.

What a noisy dyno meets, in this order:

1. **It is read from as fast as a pass allows**: one read of at most 64 KiB from every FIFO that has something, a pass
   every 10 ms. So no FIFO gets more than 6 MiB/s, everybody has their turn in every pass, and a writer that is faster waits in
   its own ``write`` (the FIFO holds 1 MiB). It waits, it never stops: reading goes on whatever happens.
2. **Its lines are kept up to a budget** (a burst, then lines and bytes per second); what is beyond is read, counted and
   forgotten, and the app's log says so (L10).
3. **All dynos together** get a quarter of one CPU (a third with the sender at work): after a pass the loop rests three
   times as long as it took, whatever kept it busy. Many noisy dynos share one budget of kept lines.

Nothing is waited for that an app could hold up, and nothing an app prints can fill memory: a FIFO has one unfinished
line (10,000 bytes) here, and what waits for Redis is bounded in :mod:`logs.sender`.

A dyno's directory holds ``meta.json`` and the FIFOs ``stdout`` and ``stderr``. When ``ended`` appears beside them they
are read to the end and removed. Bytes stay in a FIFO as long as somebody has it open: the dyno, this process, and (so
that last words survive a restart of this process) the runtime until the FIFOs are gone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation import fifo
from logs import inotify, stream
from logs.budget import Budget
from logs.control import Control
from logs.drains import Drains
from logs.lines import Splitter
from logs.room import HIGH
from logs.sender import Redis

log = logging.getLogger("logs")

READ, READ_IN_ALL = 65536, 512 << 10
"""Bytes read in one pass: from one FIFO, and from all of them together (shared evenly, when many are ready)."""
PASS = 0.01
"""Seconds between two passes at the least."""
REST = 3.0
"""Rest after a pass, in units of the CPU time that it took: 3 means a quarter of one CPU."""
LINES_PER_SECOND, LINES_AT_ONCE = 2_000, 10_000
BYTES_PER_SECOND, BYTES_AT_ONCE = 2 << 20, 8 << 20
ALL_LINES_PER_SECOND = 20_000
"""What all dynos that exceed their budget share."""
PARTIAL = 1.0
"""Seconds after which the beginning of a line is shown although its end has not come."""
REPORT = 2.0
"""Seconds between two reports of loss for one dyno."""
RESCAN = 10.0
LAST_WORDS = 4 << 20
"""Bytes that are read at the most from the FIFO of a dyno that has ended."""

_NEWS = inotify.CREATE | inotify.MOVED_TO | inotify.CLOSE_WRITE | inotify.ATTRIB  # root makes it, then lets us in
_GONE = inotify.DELETE | inotify.MOVED_FROM


@dataclass
class Loss:
    """Lines that were dropped and not yet reported: how many, since when (seconds since the epoch)."""

    count: int = 0
    since: float = 0.0
    report_at: float = 0.0


@dataclass(eq=False)
class Source:
    """One open FIFO."""

    fd: int
    dyno: Dyno
    splitter: Splitter = field(default_factory=Splitter)
    partial_since: float = 0.0


@dataclass(eq=False)
class Dyno:
    """A dyno whose output is read."""

    directory: Path
    app_id: str
    process: str
    lines: Budget
    bytes: Budget
    sources: dict[str, Source] = field(default_factory=dict)
    loss: Loss = field(default_factory=Loss)


class Collector:
    """The process ``logs``.

    Args:
        dynos: the directory of the dynos' directories; made when missing.
        redis: where lines go.
        socket: where to answer calls (``ping``, ``watch``, ``drains``, ``drains.behind``).
        drains: who is told of changes of drains.
    """

    def __init__(self, dynos: Path, redis: Redis, socket: Path, drains: Drains | None = None) -> None:
        dynos.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._root = dynos
        self._sender = stream.sender(redis, HIGH)
        self._dynos: dict[str, Dyno] = {}
        self._sources: dict[int, Source] = {}
        self._partial: set[Source] = set()
        self._losing: set[Dyno] = set()
        self._stopping = False
        self._epoll = select.epoll()
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._drains = drains
        calls = {"watch": self._watch_call, "drains": self._drains_call, "drains.behind": self._behind_call}
        self._control = Control(socket, {"ping": lambda params: {}, **calls})
        self._epoll.register(self._control.listener.fileno(), select.EPOLLIN)
        self._watches: dict[int, str] = {}
        self._watched: dict[str, int] = {}
        self._news = self._open_inotify()
        self._rescan_at = 0.0
        self._spent = time.process_time()

    def run(self) -> None:
        """Collect until :meth:`stop`; then hand over what was read and return."""
        while not self._stopping:
            self._look_around()
            events = self._epoll.poll(self._timeout())
            busy = [self._sources[fd] for fd, _ in events if fd in self._sources]
            for source in busy:
                self._read(source, max(4096, min(READ, READ_IN_ALL // len(busy))))
            self._show_partial_lines()
            self._report_losses()
            self._attend([fd for fd, _ in events if fd not in self._sources])
            if events:
                self._rest()
        for source in list(self._sources.values()):
            self._flush(source)
        for dyno in list(self._losing):
            self._report_loss(dyno)
        self._sender.flush(2.0)

    def stop(self) -> None:
        """End :meth:`run` after its present pass; may be called from a signal handler."""
        self._stopping = True
        try:
            os.write(self._woken, b"x")
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Let go of everything that is open; FIFOs keep what was not read."""
        for source in self._sources.values():
            os.close(source.fd)
        self._control.close()
        if self._news:
            self._news.close()
        self._epoll.close()
        os.close(self._wake)
        os.close(self._woken)

    # Finding dynos

    def _open_inotify(self) -> inotify.Inotify | None:
        try:
            news = inotify.Inotify()
            self._watches[news.watch(self._root, _NEWS | _GONE)] = ""
        except OSError as error:
            log.warning("inotify is not available; dynos are looked for every second", extra={"reason": str(error)})
            return None
        self._epoll.register(news.fd, select.EPOLLIN)
        return news

    def _look_around(self) -> None:
        """The slow rescan: what inotify did not tell (it may overflow, or not be there)."""
        now = time.monotonic()
        if now < self._rescan_at:
            return
        self._rescan_at = now + (RESCAN if self._news else 1.0)
        try:
            names = {path.name for path in self._root.iterdir()}
        except OSError:
            names = set()
        for name in sorted(names):
            self._look_at(name)
        for name in [name for name in self._dynos.keys() | self._watched.keys() if name not in names]:
            self._gone(name)

    def _look_at(self, name: str) -> None:
        """Open what there is to open in one directory, and finish when the dyno has ended."""
        if not name or "/" in name or name.startswith("."):
            return
        directory = self._root / name
        if self._news and name not in self._watched:
            try:
                self._watched[name] = watch = self._news.watch(directory, _NEWS)
                self._watches[watch] = name
            except OSError:
                if not directory.is_dir():
                    return  # a file, or gone again; else the limit of watches is reached and rescans must do
        dyno = self._dynos.get(name) or self._introduce(directory)
        if dyno is None:
            return
        self._dynos[name] = dyno
        ended = os.path.lexists(directory / "ended")
        for stem in ("stdout", "stderr"):
            if stem not in dyno.sources:
                self._open(dyno, stem)
        if ended:
            self._finish(name, dyno)

    def _introduce(self, directory: Path) -> Dyno | None:
        try:
            meta = json.loads((directory / "meta.json").read_bytes())
            app_id, process = meta["app_id"], meta["process"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not a dyno's, or not written yet: closing it is news
        if not isinstance(app_id, str) or not isinstance(process, str) or not app_id or " " in process:
            return None
        now = time.monotonic()
        return Dyno(
            directory, app_id, process, Budget(LINES_PER_SECOND, LINES_AT_ONCE, now), Budget(BYTES_PER_SECOND, BYTES_AT_ONCE, now)
        )

    def _open(self, dyno: Dyno, stem: str) -> None:
        path = dyno.directory / stem
        try:
            # read-write: a FIFO without writers would be readable for ever, and its bytes would go with the last opener
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                log.warning("a dyno's output cannot be opened", extra={"path": path, "reason": error.strerror})
            return  # not there yet, or not ours yet; both changes are news
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            return
        fifo.enlarge(fd)
        dyno.sources[stem] = self._sources[fd] = Source(fd, dyno)
        self._epoll.register(fd, select.EPOLLIN)

    def _finish(self, name: str, dyno: Dyno) -> None:
        """The dyno has ended and its last line is written: read on to the end, then take the FIFOs away."""
        for source in dyno.sources.values():
            budget = LAST_WORDS
            while budget > 0 and (size := self._read(source)):
                budget -= size
        self._forget(name)
        for stem in ("stdout", "stderr"):
            try:
                (dyno.directory / stem).unlink(missing_ok=True)
            except OSError as error:
                log.warning("a dyno's FIFO cannot be removed", extra={"path": dyno.directory / stem, "reason": error.strerror})

    def _gone(self, name: str) -> None:
        """The directory is gone: what was read is still shown."""
        self._forget(name)
        watch = self._watched.pop(name, None)
        if watch is not None and self._watches.pop(watch, None) is not None and self._news:
            self._news.forget(watch)

    def _forget(self, name: str) -> None:
        dyno = self._dynos.pop(name, None)
        if dyno is None:
            return
        for source in dyno.sources.values():
            self._flush(source)
            self._epoll.unregister(source.fd)
            os.close(source.fd)
            del self._sources[source.fd]
        self._report_loss(dyno)

    def _watch_call(self, params: dict[str, Any]) -> dict[str, Any]:
        """``watch {directory}``: look at a dyno's directory now."""
        self._look_at(Path(str(params.get("directory", ""))).name)
        return {}

    def _drains_call(self, params: dict[str, Any]) -> dict[str, Any]:
        """``drains``: some were added or removed."""
        if self._drains:
            self._drains.look()
        return {}

    def _behind_call(self, params: dict[str, Any]) -> dict[str, Any]:
        """``drains.behind {seconds}``: see :meth:`logs.drains.Drains.behind`."""
        return self._drains.behind(float(params.get("seconds", 0))) if self._drains else {"all": 0, "late": 0, "worst": []}

    # Reading

    def _read(self, source: Source, size: int = READ) -> int:
        """One read; the number of bytes, 0 when there is nothing at the moment."""
        try:
            data = os.read(source.fd, size)
        except BlockingIOError:
            return 0
        now = time.monotonic()
        dyno = source.dyno
        lines, dropped = source.splitter.feed(data, self._room(dyno, now))
        if lines:
            self._keep(dyno, lines)
        if dropped:
            self._lose(dyno, dropped, now)
        if not source.splitter.partial:
            self._partial.discard(source)
        elif lines or source not in self._partial:
            source.partial_since = now
            self._partial.add(source)
        return len(data)

    def _room(self, dyno: Dyno, now: float) -> int:
        """Lines of the dyno that may be kept now."""
        share = min(1.0, ALL_LINES_PER_SECOND / LINES_PER_SECOND / max(1, len(self._losing)))
        lines = dyno.lines.left(now, share)
        return lines if dyno.bytes.left(now, share) > 0 else 0

    def _keep(self, dyno: Dyno, lines: list[bytes]) -> None:
        at = time.time_ns() // 1000
        packed = [stream.pack(at, "app", dyno.process, line) for line in lines]
        dyno.lines.take(len(lines))
        dyno.bytes.take(sum(map(len, lines)))
        self._sender.put(dyno.app_id, packed)

    def _show_partial_lines(self) -> None:
        now = time.monotonic()
        for source in [source for source in self._partial if now - source.partial_since >= PARTIAL]:
            self._flush(source)

    def _flush(self, source: Source) -> None:
        self._partial.discard(source)
        line = source.splitter.flush()
        if line is not None:
            self._keep(source.dyno, [line])

    # Loss

    def _lose(self, dyno: Dyno, count: int, now: float) -> None:
        if not dyno.loss.count:
            dyno.loss = Loss(0, time.time(), now + REPORT)
            self._losing.add(dyno)
        dyno.loss.count += count

    def _report_losses(self) -> None:
        now = time.monotonic()
        for dyno in [dyno for dyno in self._losing if now >= dyno.loss.report_at]:
            self._report_loss(dyno)

    def _report_loss(self, dyno: Dyno) -> None:
        self._losing.discard(dyno)
        loss, dyno.loss = dyno.loss, Loss()
        if loss.count:
            text = (
                f"Error L10 (output buffer overflow): {loss.count} messages dropped since {stream.iso(loss.since)}"
                f" ({dyno.process} prints more than {LINES_PER_SECOND} lines or {BYTES_PER_SECOND >> 20} MiB per second)"
            )
            self._sender.put(dyno.app_id, [stream.pack(time.time_ns() // 1000, "heroku", "logplex", text.encode())])

    # The loop

    def _timeout(self) -> float:
        """Seconds until something is due without anybody writing."""
        now = time.monotonic()
        due = self._rescan_at
        for source in self._partial:
            due = min(due, source.partial_since + PARTIAL)
        for dyno in self._losing:
            due = min(due, dyno.loss.report_at)
        return max(0.0, due - now)

    def _rest(self) -> None:
        """Let lines gather, and let the rest of the machine have its part; the sender's thread counts too."""
        spent = time.process_time()
        time.sleep(max(PASS, REST * (spent - self._spent)))
        self._spent = spent

    def _attend(self, fds: list[int]) -> None:
        """Everything but dyno output: news of directories, calls, the end."""
        for fd in fds:
            if self._news and fd == self._news.fd:
                self._hear(self._news)
            elif fd == self._control.listener.fileno():
                client = self._control.accept()
                if client is not None:
                    self._epoll.register(client, select.EPOLLIN)
            elif fd in self._control.clients and not self._control.serve(fd):
                continue  # closed, which also takes it out of the epoll set

    def _hear(self, news: inotify.Inotify) -> None:
        for event in news.read():
            if event.mask & inotify.OVERFLOW:
                self._rescan_at = 0.0
            elif event.mask & inotify.IGNORED:
                name = self._watches.pop(event.watch, "")
                if self._watched.get(name) == event.watch:
                    del self._watched[name]
            elif self._watches.get(event.watch) == "":
                if event.mask & _GONE:
                    self._gone(event.name)
                else:
                    self._look_at(event.name)
            elif event.name in ("meta.json", "stdout", "stderr", "ended"):
                self._look_at(self._watches.get(event.watch, ""))
