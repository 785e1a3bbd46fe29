"""A microVM moves: to another QEMU on this host while it runs, into a file, and out of one.

With KVM a machine runs on while its memory goes, and stands still for the rest of it. An emulated processor (TCG) stands still
for all of it: QEMU loses writes of its own translated code now and then while it watches memory for changes (seen with 7.2 on
busy hosts: one move in three ended in a guest that had lost its mind).

The memory goes through a descriptor that this process made, because QEMU may open nothing by itself. The writable layer is a
nameless file that both machines hold; only one of them runs at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from foundation.errors import DavitError
from foundation.memory import meminfo
from foundation.programs import run
from runtime import cgroups
from runtime.apart import apart
from runtime.children import Process, start_time
from runtime.driver import DynoSpec, Hold, Limits, Unsupported
from runtime.dynodir import DynoDirectory, Record
from runtime.microvm import machine, protocol, pump
from runtime.microvm.agent import Agent
from runtime.microvm.dyno import ANSWER_SECONDS, DISK_FULL, FOR_GOOD, SILENCE, MicroVm
from runtime.microvm.machine import Machine
from runtime.microvm.protocol import Order
from runtime.qmp import Monitor, MonitorFailed, figure

if TYPE_CHECKING:
    from runtime.microvm.driver import Launch, MicroVmDriver

log = logging.getLogger("runtime")

SECONDS = 120.0
"""For the memory to get across while nobody waits for it."""
STILL_SECONDS = 20.0
"""For which a machine may stand still while it moves, and its requests be held. Who was asked just before has thirty seconds to
begin an answer, and the router holds whoever came since for no more than seventy-five, of which its own ways take some."""
RUN_ON_SECONDS = 30.0
"""For QEMU to let a machine run on, here or there, while requests are held."""
WAKE_SECONDS = 25.0
"""For a guest that wakes, once all its memory is there, to answer and take in where it is. One that does not is started anew,
while the router still holds who woke it."""
DOWNTIME_MS = 100
"""QEMU stops the machine when it can send the rest within this."""
LITTLE_MS = 1
"""The same while requests are not held yet. With 0 it would stop it without having looked what has changed since it was sent."""
RESERVE_MEMORY = 256 << 20
"""Bytes that a host must have left beside the second copy of a machine that moves."""
RESERVE_DISK = 1 << 30
"""Bytes that must stay free for Davit itself, its database and builds, where a machine is written down."""
BESIDE_MEMORY = 256 << 20
"""Bytes that may come beside a machine's memory: its devices, its firmware, and a few for each page."""
_META, _MEMORY, _SCRATCH = "machine.json", "memory", "scratch"


class MoveFailed(DavitError):
    """A microVM could not be moved, put aside or woken."""

    id, status = "vm_move_failed", 500


# -- to another QEMU -----------------------------------------------------------------------------------------------------


async def move(driver: MicroVmDriver, dyno: MicroVm, hold: Hold) -> float:
    """Move a running microVM to another QEMU on this host.

    Its memory goes, then it stands still, then it runs at the other end: from the moment on in which it is told to run there it
    lives there and nowhere else, whatever comes, because it has the disk from then on.

    Args:
        hold: keeps requests from it while it stands still.

    Returns:
        seconds for which it stood still.

    Raises:
        Unsupported: this host's QEMU is another one by now, or Davit composes another machine; it runs on where it was.
        MoveFailed: it could not be moved and runs on where it was; or it ran at the other end, and does not answer there: then
            it has ended.
    """
    await _refuse_another_machine(driver, dyno)
    await driver.host.in_thread(_promise_memory, driver, dyno)
    try:
        if dyno.monitor is not None and await dyno.monitor.status() == DISK_FULL:
            raise Unsupported(
                f"The dyno {dyno.record.name} cannot be moved now. It stands still because the disk with its writable layer is "
                "full; make room there, and it goes on by itself."
            )
        return await _move(driver, dyno, hold)
    finally:
        driver.memory.take_back(dyno)


async def _move(driver: MicroVmDriver, dyno: MicroVm, hold: Hold) -> float:
    source = dyno.monitor
    assert source is not None
    ours, theirs = socket.socketpair()
    target: Launch | None = None
    pause: float | None = None
    source.forget_events()
    try:
        async with AsyncExitStack() as held:

            async def hold_back() -> None:
                if why := await held.enter_async_context(hold()):
                    raise MoveFailed(why)

            try:
                target = await driver.host.in_thread(_twin, driver, dyno, os.dup(theirs.fileno()))
                await driver.launch(target)
                theirs.close()  # it has its own: when it ends, who sends to it is told at once
                assert target.monitor is not None and target.process is not None
                _note(driver, dyno, moving_to=[target.process.pid, start_time(target.process.pid), target.generation])
                await _hand_over(dyno.record.facts["kvm"], source, target.monitor, ours.fileno(), hold_back)
                if dyno.ended:
                    raise MoveFailed("it has ended meanwhile")
            except BaseException as error:
                words = await driver.last_words(target) if target is not None else ""
                await _stay(driver, dyno, target)
                if not isinstance(error, DavitError | OSError | AssertionError):
                    raise
                reason = error.message if isinstance(error, DavitError) else str(error)
                where = "has ended" if dyno.ended else "runs on where it was"
                raise MoveFailed(f"The dyno {dyno.record.name} could not be moved and {where}: {reason}{words}") from None
            pause = await _run_there(driver, dyno, target, source)
    except Exception:
        if pause is None:
            raise
        log.exception("a microVM has moved, and its requests were not let go as they should", extra={"dyno": dyno.spec_id})
    finally:
        ours.close()
        theirs.close()
    await _reach(driver, dyno)
    return pause


async def _refuse_another_machine(driver: MicroVmDriver, dyno: MicroVm) -> None:
    """The machine that a QEMU emulates changes with its version, and with what Davit composes."""
    if dyno.record.facts.get("form") != machine.FORM:
        raise Unsupported(
            f"The dyno {dyno.record.name} runs as another version of Davit composed it, which is another machine; "
            "`davit ps:restart` starts it anew."
        )
    await driver.open()
    now, then = await driver.current_qemu(), tuple(dyno.record.facts["qemu"])
    if now != then:
        theirs, ours = (".".join(map(str, version)) for version in (then, now))
        raise Unsupported(
            f"The dyno {dyno.record.name} runs in QEMU {theirs}, and this host has {ours} by now, which is another machine; "
            "`davit ps:restart` starts it anew."
        )


def _promise_memory(driver: MicroVmDriver, dyno: MicroVm) -> None:
    """Room for a second copy of it, which others on their way do not take; blocking."""
    uses = dyno.cgroup.memory()
    driver.memory.give(
        dyno, 2 * uses, dyno.cgroup.memory,
        lambda promised: refuse_without_memory(dyno.record.name, uses, available_memory() - promised),
    )  # fmt: skip


def refuse_without_memory(name: str, uses: int, available: int) -> None:
    """See that there is room for a second copy of a machine: else the kernel ends somebody else's dyno.

    Args:
        uses, available: bytes that it takes now, and that the host has for it beside those that are on their way.

    Raises:
        Unsupported: there is none; it runs on where it was.
    """
    if uses + RESERVE_MEMORY > available:
        raise Unsupported(
            f"The dyno {name} cannot be moved now and runs on: its {uses >> 20} MB of memory are there twice while it moves, and "
            f"this host has {max(0, available) >> 20} MB left, of which it keeps {RESERVE_MEMORY >> 20}. End something, or "
            "`davit ps:restart` it."
        )


def refuse_without_disk(name: str, memory: int, layer: int, free: int) -> None:
    """See that a machine can be written down and leaves Davit room on the disk.

    Args:
        memory, layer: bytes that these will take: of its writable layer only what has to be copied.

    Raises:
        MoveFailed: it cannot; it runs on.
    """
    if memory + layer + RESERVE_DISK > free:
        copied = f" and {layer >> 20} MB of writable layer" if layer else ""
        raise MoveFailed(
            f"The dyno {name} could not be put aside and runs on: its {memory >> 20} MB of memory{copied} do not fit on the "
            f"disk, which has {max(0, free) >> 20} MB free, of which {RESERVE_DISK >> 20} are Davit's own."
        )


def available_memory() -> int:
    """Bytes of memory that processes of this host could get now."""
    return meminfo().get("MemAvailable", 0)


async def _hand_over(
    kvm: bool, source: Monitor, target: Monitor, descriptor: int, hold: Callable[[], Awaitable[None]]
) -> None:
    """The memory goes to the target; both stand still when this returns.

    Raises:
        MonitorFailed: it does not get there, or would have to stand still for longer than requests can be held.
    """
    told: dict[str, Any] = {}
    if kvm:  # it runs, and QEMU may not stop it before requests are held, unless hardly anything is left to be sent
        await _begin(source, descriptor, LITTLE_MS, pausing=True)
        told = await _until(source, lambda told: told.get("status") in _AT_REST or _nearly(told))
    await hold()
    try:
        await asyncio.wait_for(_rest(kvm, source, target, descriptor, told), STILL_SECONDS)
    except asyncio.TimeoutError:
        raise MonitorFailed(
            f"its memory was not at the other end within the {STILL_SECONDS:g} seconds for which it may stand still"
        ) from None


async def _rest(kvm: bool, source: Monitor, target: Monitor, descriptor: int, told: dict[str, Any]) -> None:
    """Requests are held: what is still to be sent is."""
    if kvm:
        await source.execute("migrate-set-parameters", {"downtime-limit": DOWNTIME_MS})
    else:
        await source.execute("stop")
        await _begin(source, descriptor, DOWNTIME_MS, pausing=True)
    if told.get("status") not in _AT_REST:
        told = await _until(source, lambda told: told.get("status") in _AT_REST)
    if told.get("status") != "completed":
        await source.execute("migrate-continue", {"state": "pre-switchover"})
        await _until(source, _completed)
    await _until_read(target)


async def _run_there(driver: MicroVmDriver, dyno: MicroVm, target: Launch, source: Monitor) -> float:
    """It runs at the other end, or nowhere; gives the seconds for which it stood still."""
    assert target.monitor is not None and target.process is not None
    pid, left, left_agent = dyno.pid, dyno.process, dyno.agent
    dyno.record = replace(target.record, facts={**target.record.facts, "moving_to": None})
    dyno.lives_in(target.process, target.monitor)
    if left_agent is not None:
        left_agent.lost = lambda: None
    pause = 0.0
    try:
        await target.monitor.execute("cont", timeout=RUN_ON_SECONDS)
        with suppress(MonitorFailed):  # it runs, and that is what counts
            stopped: float = (await source.event("STOP", timeout=1))[1]["at"]
            pause = max(0.0, (await target.monitor.event("RESUME", timeout=1))[1]["at"] - stopped)
        with suppress(OSError):  # a full disk: what was written before it left names the other machine, too
            await driver.host.in_thread(DynoDirectory(driver.host.dynos / dyno.spec_id).write, dyno.record)
    except DavitError as error:  # whether it ran nobody knows: it must not go on in two places
        dyno.give_up(f"It was moved, and did not run at the other end: {error.message}")
        raise MoveFailed(f"The dyno {dyno.record.name} was moved, and did not run there: {error.message} It is ended.") from None
    finally:
        source.close()
        if left_agent is not None:
            left_agent.close()
        if left is not None:
            left.send(SIGKILL)
            await left.wait()
            driver.host.forget(pid)
        await _limit_one(driver, dyno)
    return pause


async def _reach(driver: MicroVmDriver, dyno: MicroVm) -> None:
    """It runs at the other end; one that does not answer there has crashed."""
    assert dyno.process is not None
    try:
        async with dyno.kept_writing():
            dyno.talk_to(await dyno.find_guest(ANSWER_SECONDS))
            dyno.stood_still()
            await dyno.tell()
    except (DavitError, OSError):
        dyno.give_up("Its guest does not answer any more since it was moved")
        raise MoveFailed(f"The dyno {dyno.record.name} was moved, and does not answer any more; it is ended.") from None


def _twin(driver: MicroVmDriver, dyno: MicroVm, incoming: int) -> Launch:
    """A machine like ``dyno``'s that waits for its memory; it gets the very disks, tap and FIFOs."""
    from runtime.microvm.driver import Launch

    facts = dyno.record.facts
    twin = Launch(
        dyno.record, DynoDirectory(driver.host.dynos / dyno.spec_id), Limits(**facts["limits"]),
        described(driver, dyno.record, incoming=True), Path(), None, generation=facts["generation"] + 1,
    )  # fmt: skip
    twin.fds[machine.INCOMING] = incoming
    try:
        _share(driver, dyno, twin)
        memory = facts["memory"] + facts["plugged_memory"]
        driver.limit(dyno.cgroup, twin.limits, memory, kvm=facts["kvm"], machines=2)
    except BaseException:  # nobody else knows of it
        for fd in twin.fds.values():
            os.close(fd)
        raise
    return twin


def _share(driver: MicroVmDriver, dyno: MicroVm, twin: Launch) -> None:
    """Open for ``twin`` what the dyno's machine holds."""
    facts, held = dyno.record.facts, Path(f"/proc/{dyno.pid}/fd")
    for number, kept, wanted, flags in (
        (machine.STACK, machine.KEPT_STACK, True, os.O_RDONLY),
        (machine.SLUG, machine.KEPT_SLUG, facts["slug"], os.O_RDONLY),
        (machine.SCRATCH, machine.KEPT_SCRATCH, facts["scratch"], os.O_RDWR),
    ):
        if wanted:
            driver.open_disk(twin, number, kept, os.open(held / str(kept), flags | os.O_CLOEXEC))
    driver.open_fifos(twin)
    if dyno.record.network:
        twin.fds[machine.TAP] = take_descriptor(dyno.pid, machine.TAP)


def described(driver: MicroVmDriver, record: Record, *, incoming: bool) -> Machine:
    """The machine that a record describes."""
    facts = record.facts
    return Machine(
        name=f"{facts['app']}/{record.name}", memory=facts["memory"], pluggable=facts["pluggable"],
        processors=facts["processors"], most_processors=facts["most_processors"], kvm=facts["kvm"],
        mac=driver.host.instance.mac(record.slot) if record.network else None, slug=facts["slug"], scratch=facts["scratch"],
        fifos=record.fifos, incoming=incoming,
    )  # fmt: skip


def take_descriptor(pid: int, number: int) -> int:
    """A copy of another process's descriptor (pidfd_getfd(2)): a tap cannot be opened a second time."""
    import ctypes

    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.syscall(438, pidfd, number, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd
    finally:
        os.close(pidfd)


async def _send(monitor: Monitor, descriptor: int) -> None:
    """Send a stopped machine's memory into ``descriptor``; returns when all of it is gone.

    Raises:
        MonitorFailed: it could not be sent.
    """
    await _begin(monitor, descriptor, DOWNTIME_MS, pausing=False)
    await _until(monitor, _completed)


async def _begin(monitor: Monitor, descriptor: int, downtime: int, *, pausing: bool) -> None:
    """Begin to send a machine's memory.

    Args:
        downtime: milliseconds; QEMU stops a machine that runs when it can send the rest within this.
        pausing: whether it waits, stopped, for a word before it sends the rest.
    """
    wanted = [{"capability": "pause-before-switchover", "state": pausing}]
    await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": 16 << 30, "downtime-limit": downtime})
    await monitor.execute("getfd", {"fdname": "memory"}, fds=[descriptor])
    await monitor.execute("migrate", {"uri": "fd:memory"})


async def _until(monitor: Monitor, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What QEMU tells of the machine's memory that it sends, once that is what ``ready`` waits for.

    Raises:
        MonitorFailed: it could not be sent.
    """
    end = time.monotonic() + SECONDS
    while True:
        told = await monitor.table("query-migrate")
        if ready(told):
            return told
        status = told.get("status")
        if status in ("failed", "cancelled"):
            raise MonitorFailed(f"its memory could not be sent: {told.get('error-desc', status)}")
        if time.monotonic() > end:
            await monitor.execute("migrate_cancel")
            raise MonitorFailed(f"its memory could not be sent within {SECONDS:g} seconds; it changes too fast ({status})")
        await asyncio.sleep(0.02)


_AT_REST = ("pre-switchover", "completed")


def _completed(told: dict[str, Any]) -> bool:
    return told.get("status") == "completed"


def _nearly(told: dict[str, Any]) -> bool:
    """Whether all of it has been sent once, and what has changed since could be within DOWNTIME_MS, as QEMU tells."""
    again = figure(told, "ram", "dirty-sync-count") > 1
    return told.get("status") == "active" and again and figure(told, "expected-downtime") <= DOWNTIME_MS


async def _stay(driver: MicroVmDriver, dyno: MicroVm, target: Launch | None) -> None:
    """The move failed: the twin goes, and the dyno runs on."""
    if target is not None:
        for connection in (target.monitor, target.agent):
            if connection is not None:
                connection.close()
        if target.process is not None:
            target.process.send(SIGKILL)
            await target.process.wait()
            driver.host.forget(target.process.pid)
        for fd in target.fds.values():
            os.close(fd)
        target.fds.clear()
    with suppress(OSError):  # a full disk; the twin has gone, and its pid and start will not come again
        _note(driver, dyno, moving_to=None)
    dyno.stood_still()
    if dyno.monitor is not None:
        await run_on(dyno.monitor)
    await _limit_one(driver, dyno)


async def run_on(monitor: Monitor) -> None:
    """Have a machine that stands still run where it is. QEMU refuses that while it still finishes what it was just told to do, so
    it is told again until it runs, has stopped for good or gone, or RUN_ON_SECONDS are over. One on a full disk is
    :meth:`MicroVm.write_on`'s."""
    with suppress(DavitError, asyncio.TimeoutError):
        await asyncio.wait_for(_until_it_runs(monitor), RUN_ON_SECONDS)


async def _until_it_runs(monitor: Monitor) -> None:
    with suppress(DavitError):
        await monitor.execute("migrate_cancel")
    while await monitor.status() not in ("running", DISK_FULL, *FOR_GOOD):
        with suppress(DavitError):
            await monitor.execute("cont")
        await asyncio.sleep(0.05)


async def _limit_one(driver: MicroVmDriver, dyno: MicroVm) -> None:
    facts = dyno.record.facts
    memory = facts["memory"] + facts["plugged_memory"]
    with suppress(OSError):
        await driver.limit_running(dyno, Limits(**facts["limits"]), memory)


def _note(driver: MicroVmDriver, dyno: MicroVm, **facts: Any) -> None:
    dyno.record = replace(dyno.record, facts={**dyno.record.facts, **facts})
    DynoDirectory(driver.host.dynos / dyno.spec_id).write(dyno.record)


def somewhere(record: Record) -> Process | None:
    """A process in which a dyno that an earlier runtime process wrote down may live; of one that moved just then, where it was
    before if that is still there."""
    for pid, started in record.processes:
        if started in (None, start_time(pid)):
            with suppress(ProcessLookupError):
                return Process(pid)
    return None


async def settle(driver: MicroVmDriver, dyno: MicroVm) -> None:
    """A dyno whose runtime was killed while it moved is where it runs now, and the other machine ends."""
    record, group = dyno.record, cgroups.Cgroup(dyno.record.cgroup)
    if going := record.facts.get("moving_to"):
        pid, started, generation = going
        there = replace(record, pid=pid, started=started, facts={**record.facts, "generation": generation, "moving_to": None})
        ended = False
        if group.holds(pid) and start_time(pid) == started and await _left(driver, record):
            if dyno.pid != pid:
                driver.host.watch(pid)
                dyno.lives_in(Process(pid), None)
            dyno.record = there
        else:
            if not group.holds(pid) and record.pid is not None and await _left(driver, record):
                # the other one may have run, and written to the disk, before it ended: this one must not go on upon that
                log.warning("a microVM that was moving is ended: nobody knows whether it ran", extra={"dyno": record.id})
                ended = True
                with suppress(ProcessLookupError):
                    os.kill(record.pid, SIGKILL)
            dyno.record = replace(record, facts={**record.facts, "moving_to": None})
        if not ended:
            await _go_on(driver, dyno.record)
        with suppress(OSError):  # a full disk: the next one settles it once more
            await driver.host.in_thread(DynoDirectory(driver.host.dynos / record.id).write, dyno.record)
    for pid in group.pids():
        if pid != dyno.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)


async def _left(driver: MicroVmDriver, record: Record) -> bool:
    """Whether the machine has sent all its memory away, or ended; one that is only slow to answer has not."""
    try:
        monitor = await Monitor.connect(driver.socket(record, "monitor"))
    except DavitError:
        return record.pid is None or start_time(record.pid) != record.started
    try:
        return await monitor.status() == "postmigrate"
    except DavitError:
        return False
    finally:
        monitor.close()


async def _go_on(driver: MicroVmDriver, record: Record) -> None:
    with suppress(DavitError):
        monitor = await Monitor.connect(driver.socket(record, "monitor"))
        await run_on(monitor)
        monitor.close()


# -- into a file and out of it -------------------------------------------------------------------------------------------


async def put_aside(driver: MicroVmDriver, dyno: MicroVm, to: Path) -> None:
    """Write all that a microVM is into the new directory ``to``, and end it.

    Raises:
        Unsupported: it could not be woken in the machine that this host has by now; it runs on.
        MoveFailed: it could not be written; it runs on, and ``to`` is gone.
    """
    assert dyno.monitor is not None and dyno.process is not None
    await _refuse_another_machine(driver, dyno)
    await driver.host.in_thread(_promise_disk, driver, dyno, to)
    try:
        await dyno.monitor.execute("stop")
        size, digest = await _write_memory(dyno.monitor, to / _MEMORY, _most(dyno.record))
        await apart(_write_rest, dyno, to, size, digest)
    except (DavitError, OSError) as error:
        shutil.rmtree(to, ignore_errors=True)
        dyno.stood_still()
        await run_on(dyno.monitor)
        reason = error.message if isinstance(error, DavitError) else error.strerror
        raise MoveFailed(f"The dyno {dyno.record.name} could not be put aside and runs on: {reason}.") from None
    finally:
        driver.disk.take_back(dyno)
    dyno.put_aside = True
    dyno.process.send(SIGKILL)
    await dyno.wait()


def _promise_disk(driver: MicroVmDriver, dyno: MicroVm, to: Path) -> None:
    """Make ``to``, with the writable layer where that need not be copied, and promise it room on the disk that others which are
    just being written down do not take; blocking.

    Raises:
        MoveFailed: there is none.
        OSError: ``to`` cannot be made.
    """
    to.mkdir(mode=0o700)
    uses, copied = dyno.cgroup.memory(), 0
    if dyno.record.facts["scratch"]:
        try:
            os.link(driver.layer(dyno.spec_id), to / _SCRATCH)
        except OSError:  # it has no name, or lies on another disk
            copied = _taken_by(_held_layer(dyno))
    try:
        driver.disk.give(
            dyno, uses + copied, lambda: _taken_by(to / _MEMORY) + (_taken_by(to / _SCRATCH) if copied else 0),
            lambda promised: refuse_without_disk(dyno.record.name, uses, copied, shutil.disk_usage(to).free - promised),
        )  # fmt: skip
    except MoveFailed:
        shutil.rmtree(to, ignore_errors=True)
        raise


def name_layer(image: int, path: Path) -> None:
    """Give a nameless writable layer a name, by which it is put aside without a copy: a link by another process's descriptor
    would cross from one mount namespace into another. Where the file system cannot, it is copied then."""
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)  # with any directory, os.link follows symbolic links (before Python 3.13)
    try:
        with suppress(OSError):
            os.link(f"/proc/self/fd/{image}", path, src_dir_fd=root)
    finally:
        os.close(root)


def _held_layer(dyno: MicroVm) -> Path:
    return Path(f"/proc/{dyno.pid}/fd/{machine.KEPT_SCRATCH}")


def _taken_by(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _most(record: Record) -> int:
    """Bytes that may come of a machine."""
    memory: int = record.facts["memory"] + record.facts["plugged_memory"]
    return memory + memory // 64 + BESIDE_MEMORY


async def _write_memory(monitor: Monitor, path: Path, most: int) -> tuple[int, int]:
    """Write the machine's memory into the new file ``path``; gives its size and digest.

    It comes through a socket: into a plain file QEMU writes no more by a descriptor (deprecated in 9.1, refused later), and by a
    name it may open none. Whatever QEMU says of its end, and does with it, this ends: an app may have broken out into it.

    Args:
        most: bytes that there can be.

    Raises:
        MonitorFailed: it could not be sent, is more than that, or does not end.
        OSError: it could not be written: a full disk.
    """
    ours, theirs = socket.socketpair()
    taking = apart(pump.take, ours, path, most)

    def over(taking: asyncio.Future[tuple[int, int]]) -> None:
        taking.exception()  # nobody may be waiting for it
        ours.close()

    taking.add_done_callback(over)
    try:
        try:
            await _send(monitor, theirs.fileno())
        finally:
            theirs.close()
        return await _taken(taking)
    except MonitorFailed:
        pump.hang_up(ours)
        await _taken(taking)  # raises why nobody took it, when that was the reason
        raise
    finally:
        pump.hang_up(ours)


async def _taken(taking: asyncio.Future[tuple[int, int]]) -> tuple[int, int]:
    """What was taken, once all of it is written."""
    await asyncio.wait({taking}, timeout=SECONDS)
    if not taking.done():
        raise MonitorFailed(f"its memory was not all there {SECONDS:g} seconds after QEMU had sent it")
    return taking.result()


def _write_rest(dyno: MicroVm, to: Path, size: int, digest: int) -> None:
    if dyno.record.facts["scratch"]:
        if not (to / _SCRATCH).exists():
            run(["cp", "--sparse=always", _held_layer(dyno), to / _SCRATCH], timeout=600)
        (to / _SCRATCH).chmod(0o600)
    meta = {"facts": dyno.record.facts, "digest": digest, "size": size}
    (to / _META).touch(mode=0o600)
    (to / _META).write_text(json.dumps(meta))


async def resume(driver: MicroVmDriver, spec: DynoSpec, snapshot: Path) -> MicroVm:
    """Start a microVM from what :func:`put_aside` wrote.

    Raises:
        MoveFailed: it is damaged or of another version; nothing runs.
    """
    facts = await apart(_read, driver, snapshot, spec, await driver.current_qemu())
    launch = driver.plan(spec, incoming=True)
    launch.record = replace(launch.record, facts={**facts, "generation": 1, "moving_to": None, "waking": True})
    launch.machine = replace(
        described(driver, launch.record, incoming=True),
        mac=driver.host.instance.mac(launch.record.slot) if spec.network else None,
    )
    try:
        await driver.host.in_thread(_open_snapshot, driver, launch, snapshot)
        ours, theirs = socket.socketpair()
        launch.fds[machine.INCOMING] = theirs.detach()
        apart(pump.give, ours, snapshot / _MEMORY)  # ends when QEMU does, too
        await driver.launch(launch)
        assert launch.monitor is not None
        await _until_read(launch.monitor)
        end = time.monotonic() + WAKE_SECONDS

        def left() -> float:
            return max(0.1, round(end - time.monotonic(), 1))

        await launch.monitor.execute("cont", timeout=WAKE_SECONDS)
        await driver.reach(launch, left())
        return await _wake(driver, launch, left())
    except BaseException as error:
        failure = await driver.failed(launch, spec.name, error)
        raise failure from error


async def _until_read(monitor: Monitor) -> None:
    """It has come in, and stands still."""
    end = time.monotonic() + SECONDS
    while await monitor.status() == "inmigrate":
        if time.monotonic() > end:
            raise MonitorFailed(f"its memory could not be read within {SECONDS:g} seconds")
        await asyncio.sleep(0.01)


def images(spec: DynoSpec) -> list[str]:
    """The disks that its guest has open: it can wake on no other."""
    return [str(spec.stack), str(spec.slug)]


def _read(driver: MicroVmDriver, snapshot: Path, spec: DynoSpec, qemu: tuple[int, ...]) -> dict[str, Any]:
    try:
        meta = json.loads((snapshot / _META).read_text())
        facts = dict(meta["facts"])
        whole = (snapshot / _MEMORY).stat().st_size == meta["size"] and pump.digest_of(snapshot / _MEMORY) == meta["digest"]
        whole = whole and (not facts["scratch"] or (snapshot / _SCRATCH).exists())
        same = tuple(facts["qemu"]) == qemu and facts["kernel"] == driver.kernel.version
        same = same and facts["kvm"] == driver.kvm and facts.get("images") == images(spec) and facts.get("form") == machine.FORM
    except (OSError, ValueError, KeyError, TypeError):
        whole, same, facts = False, False, {}
    if not whole:
        raise MoveFailed("What was written of the sleeping dyno is damaged; it is started anew.")
    if not same:
        raise MoveFailed(
            "The sleeping dyno was put aside by another version of Davit, QEMU or kernel, or on another stack; "
            "it is started anew."
        )
    return facts


def _open_snapshot(driver: MicroVmDriver, launch: Launch, snapshot: Path) -> None:
    if launch.machine.scratch:
        image = os.open(snapshot / _SCRATCH, os.O_RDWR | os.O_CLOEXEC)
        driver.open_disk(launch, machine.SCRATCH, machine.KEPT_SCRATCH, image)
    driver.prepare(launch)
    if launch.machine.scratch:
        with suppress(OSError):  # on another disk: it is copied when it sleeps again
            os.link(snapshot / _SCRATCH, driver.layer(launch.record.id))


async def _wake(driver: MicroVmDriver, launch: Launch, seconds: float) -> MicroVm:
    """The guest runs where it stopped, and learns where it is now.

    Args:
        seconds: for its answer.
    """
    assert launch.agent is not None
    if launch.agent.state.state != "running":
        raise MoveFailed("The sleeping dyno had ended when it was put aside; it is started anew.")
    names = driver.host.names_since
    await introduce(driver, launch.record, launch.agent, seconds)
    launch.record = replace(launch.record, facts={**launch.record.facts, "waking": False})
    dyno = driver.dyno(launch)
    dyno.knows(names)
    dyno.bind_main()
    dyno.watch()
    return dyno


async def introduce(driver: MicroVmDriver, record: Record, agent: Agent, seconds: float | None = None) -> None:
    """Tell a guest that wakes its new address, its new name server, and what time it is: until then it has those with which it
    fell asleep, and nobody is routed to it.

    Args:
        seconds: for its answer; as long as a guest may be silent by default.

    Raises:
        GuestFailed: it does not answer.
    """
    known = await driver.host.in_thread(driver.order, record, record.name, Limits(**record.facts["limits"]))
    order = Order(
        hosts=known.hosts, resolv=known.resolv, address=known.address, gateway=known.gateway, mac=known.mac, clock=time.time_ns()
    )
    limit = SILENCE[record.facts["kvm"]] if seconds is None else seconds
    await agent.ask(lambda number: protocol.order(protocol.APPLY, number, order), limit)
