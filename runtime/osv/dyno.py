"""A dyno that is a unikernel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, Any

from foundation.errors import DavitError
from runtime import cgroups, reach
from runtime.children import Process
from runtime.driver import Exit, Hold, Limits, Listener, Stats, Unsupported
from runtime.dynodir import Record
from runtime.osv import machine, management, memory, signals
from runtime.osv.console import Console, outcome
from runtime.qmp import Monitor

if TYPE_CHECKING:
    from runtime.osv.driver import OsvDriver

log = logging.getLogger("runtime")

POWERDOWN_SECONDS = 2.0
"""How long OSv may take to power off when its button is pressed, before it is ended."""
CRASH_SECONDS = 5.0
"""How long a guest that has crashed may take to be gone: some stand still for ever."""
EXHAUSTED = 0.95
"""The share of its memory that a guest has touched that ran out of it."""
IDLE = 0.05
"""Less than this share of a processor is used by a guest in which nothing runs."""
PROBE_SECONDS = 0.2
WATCH_SECONDS, SILENCE, MISSES = 15.0, 10.0, 4
"""The guest's kernel is asked whether it lives every so often, may be silent so long, so many times in a row."""
_PIECE = 65536
_WRITE = 4096  # PIPE_BUF: what a pipe that is said to be writable takes without blocking


class Unikernel:
    """A running (or just ended) unikernel; see :class:`runtime.driver.RunningDyno`.

    Args:
        console_fd: the FIFO that QEMU writes the serial port to.
        target: what the app's output is written to.

    Attributes:
        upper: it has no writable layer.
    """

    terminal_fd: int | None = None
    upper: Path | None = None

    def __init__(self, driver: OsvDriver, record: Record, process: Process | None, console_fd: int, target: int) -> None:
        self._driver, self.record, self.process = driver, record, process
        self.spec_id, self.slot, self.pid = record.id, record.slot, record.pid or 0
        self.address = driver.host.instance.address(record.slot) if record.network else None
        self.port: int | None = record.facts.get("port")
        self.memory = int(record.facts.get("memory", 0))
        self.cgroup = cgroups.Cgroup(record.cgroup)
        self.monitor: Monitor | None = None
        self.fifos: list[int] = []
        seen = bool(record.facts.get("booted"))  # as Davit wrote it down before it had the file
        self.console = Console(record.id, booted=seen or driver.has_booted(record.id).exists())
        self.booted = asyncio.Event()
        if self.console.booted:
            self.booted.set()
        self.figures: management.Figures | None = None
        self.touched: int | None = None
        self._console_fd, self._target = console_fd, target
        self._waiting = bytearray()
        self._asked: int | None = None
        self._listening = False
        self._last_stats = Stats(0, 0, 0.0, 0, 0)
        self._helpers: set[asyncio.Task[None]] = set()
        self._crash: asyncio.Task[None] | None = None
        self._exit: asyncio.Task[Exit] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._over = False
        self._exhausted = False

    # -- looking after it ------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to read its console and to wait for its end."""
        loop = asyncio.get_running_loop()
        if self._console_fd >= 0:
            loop.add_reader(self._console_fd, self._readable)
        self._exit = loop.create_task(self._watch(), name=f"osv {self.spec_id}")
        if self.process is not None:
            self._help(self._measure())
        if self.process is not None and self.address is not None:
            self._help(self._keep_an_eye())
            if self.port is not None:
                self._help(self._until_it_answers())

    def _help(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
        return task

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process is None or self.process.ended

    async def _watch(self) -> Exit:
        status = await self.process.wait() if self.process is not None else None
        self._last_stats = replace(self._last_stats, cpu=self.cgroup.cpu(), ooms=self._ooms())
        for task in list(self._helpers):
            task.cancel()
        await self._read_the_rest()
        if self.monitor is not None:
            self.monitor.close()
        exit = outcome(self.console, status, self._asked)
        return Exit(128 + SIGKILL, oom=True) if self._ooms() and exit.status in (None, 128 + SIGKILL) else exit

    def _ooms(self) -> int:
        """How often memory ran out: the host's, for QEMU, or its own, at which a kernel stands still and is ended."""
        return self.cgroup.ooms() + self._exhausted

    def _readable(self) -> None:
        """Take what the serial port gives, unless what it gave before is still to be written: then the guest waits."""
        try:
            data = os.read(self._console_fd, _PIECE)
        except (BlockingIOError, InterruptedError):
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        self._waiting += self.console.feed(data)
        if self.console.booted and not self.booted.is_set():
            with contextlib.suppress(OSError):
                self._driver.has_booted(self.spec_id).touch()
            self.booted.set()
        if self.console.crash is not None and not self._over and (self._crash is None or self._crash.done()):
            self._crash = self._help(self._end_a_crashed())
        self._write()

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if not _takes(self._target):  # the caller's descriptor may be one that blocks
                loop.remove_reader(self._console_fd)
                loop.add_writer(self._target, self._writable)
                return
            try:
                written = os.write(self._target, self._waiting[:_WRITE])
            except BlockingIOError:
                continue
            except OSError:
                written = len(self._waiting)  # nobody reads any more
            del self._waiting[:written]

    def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._target)
        self._write()
        if not self._waiting:
            if not self._over:
                loop.add_reader(self._console_fd, self._readable)
            self._drained.set()

    async def _read_the_rest(self) -> None:
        """QEMU has gone: what it wrote is in the FIFO still."""
        self._over = True
        if self._console_fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._console_fd)
        while True:
            self._drained.clear()
            if self._waiting:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), 2)
                if self._waiting:
                    break  # nobody reads: what is beyond the FIFO's room is lost, as with a pipe whose writer has gone
            try:
                data = os.read(self._console_fd, _PIECE)
            except OSError:
                break
            if not data:
                break
            self._take(data)
        self._waiting += self.console.end()
        self._write()
        self._close_console()

    def _close_console(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._target)
        if self._console_fd >= 0:
            loop.remove_reader(self._console_fd)
            os.close(self._console_fd)
            self._console_fd = -1

    async def _end_a_crashed(self) -> None:
        """Its last words are a crash's. Only one that lives no more is ended: an app may say such words, too."""
        while self.console.crash is not None:
            before = self.cgroup.cpu()
            await asyncio.sleep(CRASH_SECONDS)
            if self.console.crash is not None and not await self._lives(self.cgroup.cpu() - before):
                return self._kill("it crashed and stands still")

    async def _lives(self, cpu: float) -> bool:
        """Whether anything in it goes on, as far as can be seen from outside.

        Args:
            cpu: seconds of the processor that it used within the last :data:`CRASH_SECONDS`.
        """
        if self.address is not None and self.port is not None and self._listening:
            return await answers_http(self.address, self.port, SILENCE)
        if self.address is not None and not await signals.answers(self.address, SILENCE):
            return False
        return cpu > IDLE * CRASH_SECONDS or not self.console.reported

    def _kill(self, why: str) -> None:
        if self.process is not None and not self.process.ended:
            log.warning("a unikernel is ended: %s", why, extra={"dyno": self.spec_id})
            self.process.send(SIGKILL)

    async def _keep_an_eye(self) -> None:
        """A guest that hangs does not end by itself: its kernel answers nobody any more, or QEMU has stopped it."""
        await self.booted.wait()
        misses = 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if await self._stopped():
                return self._kill("QEMU has stopped it with an internal error")
            assert self.address is not None
            misses = 0 if await signals.answers(self.address, SILENCE) else misses + 1
            if misses >= MISSES:
                self._exhausted = await self._has_used_up_its_memory()
                return self._kill("its kernel does not answer any more")

    async def _has_used_up_its_memory(self) -> bool:
        """A kernel without memory stands still and says nothing; one that stands still with memory left has another reason."""
        size = machine.granted(self.memory)
        touched = await self._driver.host.in_thread(memory.touched, self.pid, size)
        return touched is not None and touched > EXHAUSTED * size

    async def _measure(self) -> None:
        """Its memory: what its kernel tells, where the user's modules let it tell; otherwise what the host sees of it."""
        await self.booted.wait()
        while True:
            if self.record.facts.get("managed") and self.address is not None:
                self.figures = await management.figures(self.address) or self.figures
            if self.figures is None:
                size = machine.granted(self.memory)
                self.touched = await self._driver.host.in_thread(memory.touched, self.pid, size)
            await asyncio.sleep(WATCH_SECONDS)

    async def _stopped(self) -> bool:
        if self.monitor is None:
            return False
        try:
            return await self.monitor.status(SILENCE) == "internal-error"
        except DavitError:
            return False

    async def _until_it_answers(self) -> None:
        """It is ready when it answers a request: that a connection is taken says less."""
        await self.booted.wait()
        assert self.address is not None and self.port is not None
        while not await answers_http(self.address, self.port):
            await asyncio.sleep(PROBE_SECONDS)
        self._listening = True

    # -- what others ask of it -------------------------------------------------------------------------------------

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        return await asyncio.shield(self._exit) if self._exit is not None else Exit(None)

    async def signal(self, number: int, everyone: bool = False) -> None:
        """Raise a signal in its one process, by the agent in it; where that cannot be reached SIGTERM presses the power
        button. SIGKILL presses it, too, and ends the machine when it is not gone at once."""
        if self.ended:
            return
        if number == SIGKILL:
            self._asked = SIGKILL
            self._driver.host.keep(self._end())
            return
        if number == SIGTERM:
            self._asked = SIGTERM
        if await self._raise(number):
            return
        if number == SIGTERM:
            await self._press_button()

    async def _raise(self, number: int) -> bool:
        return bool(self.record.facts.get("agent")) and self.address is not None and await signals.send(self.address, number)

    async def _press_button(self) -> None:
        if self.monitor is not None:
            with contextlib.suppress(DavitError):
                await self.monitor.execute("system_powerdown", timeout=5)

    async def _end(self) -> None:
        assert self.process is not None
        if self.console.booted and self.console.crash is None:
            await self._press_button()
            await asyncio.wait({asyncio.ensure_future(self.process.wait())}, timeout=POWERDOWN_SECONDS)
        if not self.process.ended and self.monitor is not None:
            with contextlib.suppress(DavitError):
                await self.monitor.execute("quit", timeout=1)
            await asyncio.wait({asyncio.ensure_future(self.process.wait())}, timeout=1)
        self.process.send(SIGKILL)

    async def resize_terminal(self, rows: int, columns: int) -> None:
        """It has no terminal."""

    async def exec(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        terminal: tuple[int, int] | None = None,
        stdio: tuple[int, int, int] | None = None,
    ) -> Unikernel:
        """It has one program and no room for another.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"{self.record.name} is an OSv unikernel, in which one program runs and no other can be started.")

    async def update(self, limits: Limits) -> None:
        """Change its share of the processors; its memory is what it was started with.

        Raises:
            Unsupported: the memory would be another.
        """
        if limits.memory != self.memory:
            raise Unsupported(
                "A unikernel's memory cannot be changed while it runs; without --live it is restarted at the new size."
            )
        await self._driver.host.in_thread(self.cgroup.update, self._driver.limits(limits))

    async def connect(self, port: int) -> socket.socket:
        """A TCP connection to its address; see :class:`runtime.driver.RunningDyno`."""
        return await reach.connect(socket.socket, [self.address] if self.address else [], port)

    async def migrate(self, hold: Hold) -> float:
        """It cannot be moved.

        Raises:
            Unsupported: always.
        """
        raise Unsupported("Only microVMs can be moved while they run; `davit ps:isolation TYPE=microvm` makes it one.")

    async def suspend(self, to: Path) -> None:
        """It cannot be put aside.

        Raises:
            Unsupported: always.
        """
        raise Unsupported("Only microVMs can be put aside as they are; a unikernel is started anew.")

    def listeners(self) -> list[Listener]:
        """Its port, once it has answered a request there: nobody can look inside."""
        return [Listener(self.address, self.port)] if self._listening and self.address and self.port else []

    def stats(self) -> Stats:
        """What it uses now: memory as its kernel told within the last seconds; otherwise what it has touched of its machine's."""
        if self.ended:
            return self._last_stats
        figures = self.figures
        if figures is not None:
            used = figures.memory_total - figures.memory_free
        else:
            used = self.touched if self.touched is not None else min(self.cgroup.memory(), self.memory)
        threads, uptime = (figures.threads, figures.uptime) if figures is not None else (1, None)
        self._last_stats = Stats(used, 0, self.cgroup.cpu(), threads, self._ooms(), uptime)
        return self._last_stats

    async def remove(self) -> None:
        """End it if it still runs, and take everything away that was made for it; idempotent."""
        if self._removing is None:
            self._removing = asyncio.get_running_loop().create_task(self._remove())
        await asyncio.shield(self._removing)

    async def _remove(self) -> None:
        if self.process is not None:
            self.process.send(SIGKILL)
        await self.wait()
        await self._driver.take_away(self)

    async def discard(self) -> None:
        """End it and leave nothing, its lines included: it never came to be a dyno."""
        if self.process is not None:
            self.process.send(SIGKILL)
        await self.wait()
        await self._driver.take_away(self, keep_lines=False)

    def let_go(self) -> None:
        """Forget it without ending it."""
        for task in [*self._helpers, *([self._exit] if self._exit else [])]:
            task.cancel()
        if self.process is not None:
            self.process.forget()
        if self.monitor is not None:
            self.monitor.close()
        self._close_console()
        for fd in self.fifos:
            os.close(fd)
        self.fifos = []


def _takes(fd: int) -> bool:
    """Whether a write of up to PIPE_BUF bytes would not block (a file always takes all; a broken pipe says so at once)."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


async def answers_http(address: str, port: int, seconds: float = 5.0) -> bool:
    """Whether anything of an answer comes back within ``seconds`` to a request for nothing but the head of ``/``."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 1)
    except (OSError, asyncio.TimeoutError):
        return False
    try:
        writer.write(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nUser-Agent: davit-readiness\r\nConnection: close\r\n\r\n".encode())
        return bool(await asyncio.wait_for(reader.read(1), seconds))
    except (OSError, asyncio.TimeoutError):
        return False
    finally:
        writer.close()


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition()`` came to hold within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.05)
    return True
