"""A dyno that is a microVM."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGABRT, SIGKILL
from typing import TYPE_CHECKING

from foundation.errors import DavitError
from runtime import applog, cgroups, reach
from runtime.children import Process
from runtime.driver import DynoSpec, Exit, Hold, Limits, Listener, Stats, Unsupported
from runtime.dynodir import Record
from runtime.host import Stdio
from runtime.microvm import protocol
from runtime.microvm.agent import Agent, Channel, GuestFailed, Streams
from runtime.microvm.protocol import Order
from runtime.qmp import Monitor, MonitorFailed

if TYPE_CHECKING:
    from runtime.microvm.driver import MicroVmDriver

log = logging.getLogger("runtime")

PATIENCE = 3.0
"""Seconds from SIGKILL inside the guest to the end of the guest."""
ANSWER_SECONDS = 60.0
"""A guest on a busy host without acceleration may take this long to start a further command."""
WATCH_SECONDS = 5.0
"""How often one looks whether the guest still says something; it tells what it uses as often."""
TELL_SECONDS = 600.0
"""How often an emulated guest is told what time it is: how well it counts depends on what else the host does."""
CLOCK_OFF = 0.25
"""Seconds by which a guest's clock may be off before it is set: who measures time in it sees it go back."""
SILENCE = {True: 60.0, False: 180.0}
"""Seconds without a word after which a guest is asked for one: with and without acceleration."""
FOUND_SECONDS = 10.0
"""For which Davit's start waits for a guest that an earlier runtime process started."""
FOR_GOOD = ("internal-error", "guest-panicked", "shutdown")
"""What QEMU says of a machine that will not run any more."""
DISK_FULL = "io-error"
"""What it says of one that it has stopped because there was no room on the host's disk for what it wrote."""
FULL = (
    "Error R99 (Platform error) -> "
    "The host's disk is full: the dyno stands still at what it writes, loses nothing, and goes on when there is room"
)
FULL_SECONDS = 600.0
"""For which it is not said once more that the host's disk is full."""
_MOST_CPU = 1e10
"""Seconds of processor time that no dyno has ever used."""
NOTHING = Stats(0, 0, 0.0, 0, 0)


class StartFailed(DavitError):
    """A microVM could not be started, or a command in one."""

    id, status = "vm_start_failed", 500


class MicroVm:
    """A running (or just ended) microVM; see :class:`runtime.driver.RunningDyno`.

    Attributes:
        monitor, agent: connections to QEMU and to the guest; None when it had ended before it was found.
        limits: those in force, as far as this process knows.
    """

    def __init__(self, driver: MicroVmDriver, record: Record, process: Process | None) -> None:
        self.driver, self.record, self.process = driver, record, process
        self.spec_id, self.slot, self.pid = record.id, record.slot, process.pid if process is not None else record.pid or 0
        self.address = driver.host.instance.address(record.slot) if record.network else None
        self.terminal_fd: int | None = None
        self.cgroup = cgroups.Cgroup(record.cgroup)
        self.fifos: list[int] = []
        self.monitor: Monitor | None = None
        self.agent: Agent | None = None
        self.main: Channel | None = None
        self.further: set[Command] = set()
        self.put_aside = False
        self.moving = asyncio.Lock()
        self._exit: asyncio.Task[Exit] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._last = NOTHING
        self._again: asyncio.Task[None] | None = None
        self._eye: asyncio.Task[None] | None = None
        self._why = ""
        self._names_told: int | None = None
        self._clock_told: tuple[float, float] | None = None
        self._disk_full, self._wrote_on, self._said_full = False, 0.0, -FULL_SECONDS
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._found = asyncio.Event()
        self._found.set()

    def watch(self) -> None:
        """Begin to wait for its end."""
        if self.agent is not None:
            self.agent.lost = self._lost
        loop = asyncio.get_running_loop()
        self._exit = loop.create_task(self._watch(), name=f"microvm {self.spec_id}")
        self._eye = loop.create_task(self._keep_an_eye(), name=f"eye on microvm {self.spec_id}")

    @property
    def ended(self) -> bool:
        """Whether its command has ended."""
        return self._exit is None or self._exit.done() or (self.main is not None and self.main.ended.done())

    async def look_for(self, find: Callable[[], Awaitable[None]]) -> None:
        """It runs, and ``find`` connects to it or ends it. One that does not answer soon holds up nobody else: who wants
        something of it waits until it is found."""
        self._found.clear()

        async def found() -> None:
            async with self.moving:
                self._arrived.clear()
                try:
                    await find()
                finally:
                    self._arrived.set()
                    self._found.set()

        self._again = asyncio.get_running_loop().create_task(found(), name=f"find microvm {self.spec_id}")
        await asyncio.wait({self._again}, timeout=FOUND_SECONDS)

    async def _watch(self) -> Exit:
        """Its command's end as the guest tells it, else its machine's, else QEMU's own."""
        exit: Exit | None = None
        while exit is None and self.process is not None:
            exit = await self._until_it_ends(self.process)
        await self._end_machine()
        return exit or Exit(None)

    async def _until_it_ends(self, process: Process) -> Exit | None:
        """None when it lives on: in another process, or only now found."""
        gone = asyncio.ensure_future(process.wait())
        still = asyncio.ensure_future(self._stands_still())
        found = asyncio.ensure_future(self._found.wait())
        waiting: set[asyncio.Future[object]] = {gone, still, *((self.main.ended,) if self.main else ())}  # type: ignore[arg-type]
        if not self._found.is_set():
            waiting.add(found)  # type: ignore[arg-type]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self.main is not None and self.main.ended.done():
                return self.main.ended.result()
            if still.done():
                return Exit(128 + SIGABRT, why=still.result())
            return self._explain(gone.result()) if gone.done() and process is self.process else None
        finally:
            found.cancel()
            gone.cancel()
            still.cancel()

    async def _stands_still(self) -> str:
        """Return when the guest's kernel gave up or powered off, with what it said last."""
        try:
            if self.monitor is None:
                raise MonitorFailed("There is none.")
            await self.monitor.event("SHUTDOWN", "GUEST_PANICKED", timeout=None)
        except MonitorFailed:
            await asyncio.Event().wait()  # its process's end says the rest
        return f"Its virtual machine gave up or powered off{await self.driver.last_line(self.spec_id, self.monitor)}"

    def _explain(self, status: int | None) -> Exit:
        """QEMU has gone without a word from the guest. It was here until a moment ago: a status that the kernel does not
        tell (to who is not its parent) is that of one who was killed."""
        if self.put_aside:
            return Exit(0)
        oom = self.cgroup.ooms() > 0
        return Exit(128 + SIGKILL, oom=True) if oom else Exit(status or 128 + SIGKILL, why=self._why)

    def give_up(self, why: str) -> None:
        """It is of no use any more: its machine ends, and ``why`` is what is told."""
        log.warning("a microVM is ended: %s", why, extra={"dyno": self.spec_id})
        self._why = self._why or why
        if self.process is not None:
            self.process.send(SIGKILL)

    async def _keep_an_eye(self) -> None:
        """A guest that hangs does not end by itself: its kernel answers nobody any more, or QEMU has stopped it."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self.moving.locked() and (trouble := await self._trouble()) and not self.moving.locked():
                return self.give_up(trouble)
            if not self.moving.locked() and not self._disk_full and self._has_news():
                async with self.moving:
                    await self.tell()

    def _has_news(self) -> bool:
        """Whether there is something to tell the guest: the host's name servers are others, or its clock may be off."""
        return self._names_told != self.driver.host.names_since or self._clock_may_be_off()

    def _clock_may_be_off(self) -> bool:
        """Nothing in a guest keeps time with anybody: when the host's clock is set, or it stood still, it does not know. An
        accelerated one counts as the host's processors do, an emulated one as well as it can."""
        if self._clock_told is None:
            return True
        when, before = self._clock_told
        return abs(beyond_ticks() - before) > CLOCK_OFF or (
            not self.record.facts["kvm"] and time.monotonic() - when > TELL_SECONDS
        )

    def knows(self, names: int) -> None:
        """Its guest has been told just now what time it is, and the name servers of ``names`` (see ``Host.names_since``)."""
        self._names_told, self._clock_told = names, (time.monotonic(), beyond_ticks())

    def stood_still(self) -> None:
        """Its clock is behind by as long as it did."""
        self._clock_told = None

    async def tell(self) -> None:
        """Tell the guest what has changed on the host while it runs: the name servers, and the time where its own may be off.
        Whoever has ``moving`` calls this; a guest that does not answer is told again."""
        if self.agent is None or self.ended:
            return
        names, clock = self.driver.host.names_since, self._clock_may_be_off()
        resolv = await self.driver.host.in_thread(self.driver.name_servers) if names != self._names_told else None
        with contextlib.suppress(DavitError):
            way = await self._way() if clock else 0.0
            if way > CLOCK_OFF and self._clock_told is not None:
                clock = False  # it would be off by more afterwards; soon again
            if clock or resolv is not None:
                told = await self._apply(resolv, way if clock else None)
                self._clock_told = told if clock else self._clock_told
            self._names_told = names

    async def _way(self) -> float:
        """Seconds that something said to the guest is under way now, about."""
        began = time.monotonic()
        await self.look()
        return (time.monotonic() - began) / 2

    async def _apply(self, resolv: str | None, way: float | None) -> tuple[float, float]:
        """Tell it, and the time as it will be in ``way`` seconds (None: no time); gives what tells later whether it is off."""
        assert self.agent is not None
        told = time.monotonic(), beyond_ticks()
        clock = time.time_ns() + int(min(way, CLOCK_OFF) * 1e9) if way is not None else 0
        order = Order(resolv=resolv, clock=clock)
        await self.agent.ask(lambda number: protocol.order(protocol.APPLY, number, order), ANSWER_SECONDS)
        return told

    async def _trouble(self) -> str:
        """Why there is nothing to be hoped for any more; empty while there is."""
        if self.agent is None:
            return "Nobody is connected to its guest" if self._found.is_set() else ""
        silent = time.monotonic() - max(self.agent.heard, self._wrote_on)
        if silent < 2 * WATCH_SECONDS and not self._disk_full:
            return ""
        status = await self._status()
        if status == DISK_FULL:
            async with self.moving:  # one that moves may not run on where it was
                await self.write_on()
            return ""
        if status == "running" and self._disk_full:
            self._disk_full = False
            self.stood_still()
        if status in FOR_GOOD:
            return f"QEMU has stopped it ({status})"
        if silent < SILENCE[self.record.facts["kvm"]]:
            return ""
        try:
            await self.look()
        except DavitError:
            return f"Its guest has not answered for {silent:.0f} seconds" if await self._status() != DISK_FULL else ""
        return ""

    async def _status(self) -> str:
        """What QEMU says that it does; ``unknown`` when it says nothing."""
        with contextlib.suppress(DavitError):
            assert self.monitor is not None
            return await self.monitor.status()
        return "unknown"

    async def write_on(self) -> None:
        """When QEMU has stopped it because the host's disk is full, have it try once more what it could not write: nothing is
        lost so, however long it takes until there is room. Whoever has ``moving`` calls this."""
        if self.monitor is None or await self._status() != DISK_FULL:
            return
        with contextlib.suppress(DavitError):
            await self.monitor.execute("cont")
        self._disk_full, self._wrote_on = True, time.monotonic()
        if self._wrote_on - self._said_full >= FULL_SECONDS:
            self._said_full = self._wrote_on
            log.warning("a microVM stands still: the disk with its writable layer is full", extra={"dyno": self.spec_id})
            await self.driver.host.in_thread(applog.say, self.record.app_id, self.record.name, FULL)

    @contextlib.asynccontextmanager
    async def kept_writing(self) -> AsyncIterator[None]:
        """:meth:`write_on` now and then meanwhile."""

        async def keep_writing() -> None:
            while True:
                await self.write_on()
                await asyncio.sleep(WATCH_SECONDS)

        writing = asyncio.ensure_future(keep_writing())
        try:
            yield
        finally:
            writing.cancel()

    async def find_guest(self, seconds: float) -> Agent:
        """Connect to the guest's agent. One that stands still on a full disk is waited for, however long that takes.

        Args:
            seconds: for its answer.

        Raises:
            GuestFailed: it does not answer.
        """
        while True:
            try:
                return await Agent.connect(self.driver.socket(self.record, "agent"), seconds)
            except DavitError:
                if await self._status() != DISK_FULL:
                    raise

    async def _end_machine(self) -> None:
        self._last = self.stats()
        for command in list(self.further):
            command.channel.end(Exit(128 + SIGKILL))
        if self.agent is not None:
            self.agent.lost = lambda: None
        if self.process is not None:
            self.process.send(SIGKILL)  # all that it has is in this process's hands or gone with it
            await self.process.wait()
        if self.main is not None:
            self.main.end(Exit(128 + SIGKILL))
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connections."""
        for task in (self._again, self._eye):
            if task is not None:
                task.cancel()
        if self.agent is not None:
            self.agent.lost = lambda: None
            self.agent.close()
        if self.monitor is not None:
            self.monitor.close()

    def _lost(self) -> None:
        if self.agent is not None and self.agent.breach:
            return self.give_up(f"Its guest agent does not keep to the protocol ({self.agent.breach})")
        if self.process is not None and not self.process.ended and not self.moving.locked():
            self._again = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        """QEMU hung up on us: mostly because it ends; when it lives on after all, the guest is found again or ended."""
        await asyncio.sleep(0.5)
        if self.ended or self.process is None or self.process.ended:
            return
        try:
            self.talk_to(await self.find_guest(ANSWER_SECONDS))
        except (DavitError, OSError):
            self.give_up("Its guest does not answer any more")

    def bind_main(self) -> None:
        """Take the channel of the dyno's command over on a fresh connection; it may be over already."""
        assert self.agent is not None
        before, state = self.main, self.agent.state
        self.main = before or self.agent.main(None)
        self.agent.adopt(self.main)
        if not self.main.started.done():
            self.main.started.set_result(None)
        if state.state != "running":
            self.main.end(Exit(state.status, state.oom))

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        return await asyncio.shield(self._exit) if self._exit is not None else Exit(None)

    async def signal(self, number: int, everyone: bool = False) -> None:
        """Send a signal to its command through the guest's init, or to all its processes but the init. One that is not found yet,
        or moves, gets it when it has arrived: nobody waits for that."""
        if number != SIGKILL and not self._arrived.is_set():
            self.driver.host.keep(self._signal_there(number, everyone))
            return
        self._signal(number, everyone)
        if number == SIGKILL and not self.ended:
            self.driver.host.keep(self._see_to_the_end())

    async def _signal_there(self, number: int, everyone: bool) -> None:
        await self._arrived.wait()  # what is said to a machine that is leaving may stay with it
        self._signal(number, everyone)

    def _signal(self, number: int, everyone: bool) -> None:
        if not self.ended and self.agent is not None:
            self.agent.send(protocol.signal(0, number, everyone))

    async def _see_to_the_end(self) -> None:
        """A guest that hangs cannot kill anything: its machine ends."""
        assert self._exit is not None
        await asyncio.wait({self._exit}, timeout=PATIENCE)
        if not self._exit.done() and self.process is not None:
            self.process.send(SIGKILL)

    async def resize_terminal(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        if self.terminal_fd is not None:
            set_size(self.terminal_fd, rows, columns)
            if self.agent is not None and not self.ended:
                self.agent.send(protocol.resize(0, rows, columns))

    async def exec(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        terminal: tuple[int, int] | None = None,
        stdio: tuple[int, int, int] | None = None,
    ) -> Command:
        """Run a further command inside it; see :class:`runtime.driver.RunningDyno`.

        Raises:
            StartFailed: it has ended, or the command cannot be found in it.
        """
        await self._arrived.wait()
        if self.ended or self.agent is None:
            raise StartFailed(f"The dyno {self.record.name} has ended; no command can be run in it.")
        return await self.driver.host.bring_up(lambda own: self._further(command, env, terminal, own), stdio)

    async def _further(
        self, command: Sequence[str], env: Mapping[str, str], terminal: tuple[int, int] | None, stdio: Stdio | None
    ) -> Command:
        assert self.agent is not None
        master: int | None = None
        if terminal is not None:
            streams, master = Streams.pty(*terminal)
        else:
            streams = Streams.copies(stdio) if stdio is not None else Streams.nothing()
        try:
            async with self.moving:
                order = Order(command, env, terminal=terminal, streams=terminal is None)
                channel = await self.agent.further(order, streams, ANSWER_SECONDS)
        except GuestFailed as failed:
            streams.close()
            if master is not None:
                os.close(master)
            raise StartFailed(f"The command could not be started in {self.record.name}: {failed.message}.") from None
        started = Command(self, channel, master)
        self.further.add(started)
        return started

    async def update(self, limits: Limits) -> None:
        """Other limits while it runs; see :class:`runtime.driver.RunningDyno`.

        Raises:
            Unsupported: it uses more memory than it is to have, or more than can be plugged in; nothing has changed.
        """
        async with self.moving:
            await self.driver.resize(self, limits)

    async def connect(self, port: int) -> socket.socket:
        """A TCP connection to its address: its loopback is the guest's own; see :class:`runtime.driver.RunningDyno`."""
        return await reach.connect(socket.socket, [self.address] if self.address else [], port)

    async def migrate(self, hold: Hold) -> float:
        """Move it to another QEMU; see :class:`runtime.driver.RunningDyno`."""
        async with self.moving:
            self._refuse_ended("moved")
            self._arrived.clear()
            try:
                return await self.driver.move(self, hold)
            finally:
                self._arrived.set()

    def lives_in(self, process: Process, monitor: Monitor | None) -> None:
        """From here on it is another process that it lives and ends with."""
        self.process, self.monitor, self.pid = process, monitor, process.pid

    def talk_to(self, agent: Agent) -> None:
        """Go on over this connection to its guest."""
        self.agent = agent
        self.bind_main()
        agent.lost = self._lost

    async def suspend(self, to: Path) -> None:
        """Write it down and end it; see :class:`runtime.driver.RunningDyno`."""
        async with self.moving:
            self._refuse_ended("put aside")
            await self.driver.put_aside(self, to)

    def _refuse_ended(self, what: str) -> None:
        if self.ended or self.monitor is None or self.agent is None:
            raise Unsupported(f"The dyno {self.record.name} has ended and cannot be {what}.")
        if self.further or not self.record.fifos:
            raise Unsupported(f"The dyno {self.record.name} cannot be {what} while a command is attached to it.")

    def listeners(self) -> list[Listener]:
        """Its listening TCP sockets, as the guest last told."""
        return list(self.agent.listeners) if self.agent is not None and not self.ended else []

    def stats(self) -> Stats:
        """What it uses, as the guest told within the last seconds."""
        told = self.agent.stats if self.agent is not None else None
        return self._possible(told) if told is not None else self._last

    def _possible(self, told: Stats) -> Stats:
        """What a guest tells, as far as it can be true."""
        facts = self.record.facts
        memory, limits = facts["memory"] + facts["plugged_memory"], facts["limits"]
        return Stats(
            min(told.memory, memory), min(told.disk, limits["disk"]), min(told.cpu, _MOST_CPU), min(told.pids, 1 << 22),
            min(told.ooms, 1 << 22),
        )  # fmt: skip

    async def look(self) -> None:
        """Let the guest tell now what it uses."""
        if self.agent is not None and not self.ended:
            await self.agent.ask(lambda number: protocol.frame(protocol.LOOK, number), ANSWER_SECONDS)

    async def remove(self) -> None:
        """End it if it still runs, and take everything away that was made for it; idempotent."""
        if self._removing is None:
            self._removing = asyncio.get_running_loop().create_task(self._remove())
        await asyncio.shield(self._removing)

    async def _remove(self) -> None:
        self._end_now()  # also so that a move that is under way ends
        async with self.moving:
            self._end_now()  # where it has moved to
            await self.wait()
            await self.driver.take_away(self)

    def _end_now(self) -> None:
        if self.process is not None and not self.process.ended and not self.ended:
            self.process.send(SIGKILL)

    def let_go(self) -> None:
        """Forget it without ending it."""
        if self._exit is not None:
            self._exit.cancel()
        if self.process is not None:
            self.process.forget()
        self.hang_up()
        for fd in (*self.fifos, self.terminal_fd):
            if fd is not None:
                os.close(fd)
        self.fifos, self.terminal_fd = [], None


class Command:
    """A further command in a microVM."""

    def __init__(self, dyno: MicroVm, channel: Channel, terminal_fd: int | None) -> None:
        self._dyno, self.channel, self.terminal_fd = dyno, channel, terminal_fd
        self.spec_id, self.slot, self.address, self.pid = dyno.spec_id, dyno.slot, dyno.address, dyno.pid
        channel.ended.add_done_callback(lambda _: dyno.further.discard(self))

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        return await asyncio.shield(self.channel.ended)

    async def signal(self, number: int, everyone: bool = False) -> None:
        """Send it a signal (``everyone``: to its process group as well)."""
        if not self.channel.ended.done() and self._dyno.agent is not None:
            self._dyno.agent.send(protocol.signal(self.channel.number, number, everyone))

    async def resize_terminal(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        if self.terminal_fd is not None and self._dyno.agent is not None:
            set_size(self.terminal_fd, rows, columns)
            self._dyno.agent.send(protocol.resize(self.channel.number, rows, columns))

    async def exec(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        terminal: tuple[int, int] | None = None,
        stdio: tuple[int, int, int] | None = None,
    ) -> Command:
        """Run yet another command in the dyno."""
        return await self._dyno.exec(command, env, terminal=terminal, stdio=stdio)

    async def update(self, limits: Limits) -> None:
        """The dyno's limits."""
        await self._dyno.update(limits)

    async def connect(self, port: int) -> socket.socket:
        """The dyno's."""
        return await self._dyno.connect(port)

    async def migrate(self, hold: Hold) -> float:
        """Not while a command is attached."""
        return await self._dyno.migrate(hold)

    async def suspend(self, to: Path) -> None:
        """Not while a command is attached."""
        await self._dyno.suspend(to)

    def listeners(self) -> list[Listener]:
        """The dyno's."""
        return self._dyno.listeners()

    def stats(self) -> Stats:
        """The dyno's."""
        return self._dyno.stats()

    async def remove(self) -> None:
        """End it; the dyno goes on."""
        await self.signal(SIGKILL, everyone=True)
        end = time.monotonic() + ANSWER_SECONDS
        while not self.channel.ended.done() and time.monotonic() < end:
            await asyncio.wait({self.channel.ended}, timeout=1)
        if self._dyno.agent is not None:
            self._dyno.agent.forget(self.channel.number)
        self.channel.abandon()
        if self.terminal_fd is not None:
            os.close(self.terminal_fd)
            self.terminal_fd = None


def beyond_ticks() -> float:
    """Seconds by which this host's time is ahead of what its processors count: others when its clock is set, or it has slept."""
    return min(_look_at_clocks() for _ in range(3))[1]


def _look_at_clocks() -> tuple[float, float]:
    """How long it took, which is how wrong it may be, and by what they differ."""
    before, now, after = time.clock_gettime(time.CLOCK_MONOTONIC_RAW), time.time(), time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    return after - before, now - (before + after) / 2


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Set a terminal's size on the host."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def order_of(spec: DynoSpec, order: Order) -> Order:
    """``order`` with what a spec says of the command."""
    return replace(
        order, argv=spec.command, env=spec.env, hostname=spec.name, readonly=spec.readonly, terminal=spec.terminal,
        streams=spec.stdio is not None and spec.terminal is None,
    )  # fmt: skip
