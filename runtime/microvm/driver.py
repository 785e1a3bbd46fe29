"""The microVM driver: a dyno is a virtual machine that boots the distribution's kernel into Davit's guest agent.

What keeps the dyno is QEMU alone, a process of nobody's: it holds its disks, its tap and its FIFOs as descriptors, its limits
are its cgroup's, and a later runtime process finds it by its record, its pidfd and the sockets that it listens on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any, ClassVar

from foundation.errors import DavitError
from runtime import cgroups, oci, qemu, scratch
from runtime.children import Process, start_time
from runtime.driver import DynoSpec, Hold, Limits, Unsupported
from runtime.dynodir import DynoDirectory, Record, boot_id
from runtime.host import Host
from runtime.microvm import acceleration, kernel, machine, moving, resize
from runtime.microvm.agent import Agent, GuestFailed, Streams
from runtime.microvm.dyno import DISK_FULL, FOR_GOOD, SILENCE, MicroVm, StartFailed, order_of
from runtime.microvm.machine import Machine
from runtime.microvm.promises import Promises
from runtime.microvm.protocol import Order
from runtime.qmp import Monitor, MonitorFailed

log = logging.getLogger("runtime")

QEMU = qemu.Need("MicroVMs", (7, 0), "`davit stack:build --vm` as root installs it (or apt-get install qemu-system-x86)")
"""7.0 is the first that leaves the keyboard controller out (``i8042=off``)."""
BOOT_SECONDS = {True: 30.0, False: 180.0}
"""From QEMU's start to the guest agent's first word: with and without acceleration."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OVERHEAD = {True: 256 << 20, False: 512 << 20}


@dataclass
class Launch:
    """A machine on its way.

    Attributes:
        stack, slug: the images.
        generation: which QEMU of this dyno: a migration makes a further one.
        fds: what was opened for QEMU, by the numbers of :mod:`runtime.microvm.machine`; all are closed once it has them.
    """

    record: Record
    directory: DynoDirectory
    limits: Limits
    machine: Machine
    stack: Path
    slug: Path | None
    generation: int = 1
    fds: dict[int, int] = field(default_factory=dict)
    fifos: list[int] = field(default_factory=list)
    process: Process | None = None
    monitor: Monitor | None = None
    agent: Agent | None = None


class MicroVmDriver:
    """See :class:`runtime.driver.Driver`.

    Args:
        program: QEMU's name.
        kvm: whether to use hardware acceleration; found out by a test boot when None.

    Attributes:
        memory: what of the host's is promised to machines that start or move.
        disk: what of it is promised to machines that are just being written down.
    """

    isolation: ClassVar[str] = "microvm"

    def __init__(self, host: Host, *, program: str = qemu.PROGRAM, kvm: bool | None = None) -> None:
        self.host = host
        self.running: dict[str, MicroVm] = {}
        self.memory, self.disk = Promises(), Promises()
        self.kvm = bool(kvm)
        self._kvm, self._program = kvm, program
        self.qemu = ""
        self.qemu_version: tuple[int, ...] = ()
        self.kernel: kernel.Kernel
        self._open = False

    @property
    def directory(self) -> Path:
        """Where the machines' sockets are; in memory, root's."""
        return self.host.instance.directory / "vm"

    def socket(self, record: Record, name: str) -> Path:
        """The socket ``agent`` or ``monitor`` of a dyno's present QEMU."""
        return self.directory / record.id / f"{name}.{record.facts.get('generation', 1)}"

    # -- opening ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find QEMU, the kernel, and whether KVM works; idempotent. See :class:`runtime.driver.Driver`.

        Raises:
            Unsupported: QEMU is missing or too old.
            KernelMissing: there is no kernel.
        """
        if self._open:
            return
        self.qemu, self.qemu_version = await self.host.in_thread(qemu.find, QEMU, self._program)
        self.kernel = await self.host.in_thread(kernel.current, self.host.settings.stacks)
        self.host.kernels.add(self.kernel.version)
        if self._kvm is None:
            self.kvm = (await acceleration.find_out(self.qemu, qemu.dotted(self.qemu_version), self.kernel)).kvm
        await self.host.in_thread(qemu.prepare, self.directory, self.host.alive())
        self._open = True

    async def current_qemu(self) -> tuple[int, ...]:
        """The version of the QEMU that this host has now: a package may have been upgraded since it was looked for."""
        return (await self.host.in_thread(qemu.find, QEMU, self._program))[1]

    # -- starting --------------------------------------------------------------------------------------------------

    async def start(self, spec: DynoSpec) -> MicroVm:
        """Start a dyno; see :class:`runtime.driver.Driver`.

        Raises:
            StartFailed: the machine did not boot, or its command could not be started; nothing is left behind.
        """
        return await self._whole(spec, self._start)

    async def resume(self, spec: DynoSpec, snapshot: Path) -> MicroVm:
        """Go on where a dyno was put aside; see :class:`runtime.driver.Driver`."""
        try:
            return await self._whole(spec, lambda own: moving.resume(self, own, snapshot))
        finally:
            await self.host.in_thread(shutil.rmtree, snapshot, True)

    async def _whole(self, spec: DynoSpec, start: Callable[[DynoSpec], Coroutine[Any, Any, MicroVm]]) -> MicroVm:
        """Start what may be started."""
        if not _ID.fullmatch(spec.id) or not _ID.fullmatch(spec.app_id):
            raise StartFailed(f"“{spec.id}” or “{spec.app_id}” cannot be a dyno's or app's identifier.")
        if spec.binds:
            raise Unsupported("A microVM cannot be shown directories of the host; builds run in containers.")
        return await self.host.bring_up(lambda stdio: self._promised(start, replace(spec, stdio=stdio)), spec.stdio)

    async def _promised(self, start: Callable[[DynoSpec], Coroutine[Any, Any, MicroVm]], spec: DynoSpec) -> MicroVm:
        """Whoever moves meanwhile leaves it the memory that it is about to take."""
        self.memory.give(spec.id, booting(spec.limits), cgroups.Cgroup(self._cgroup(spec)).memory)
        try:
            return await start(spec)
        finally:
            self.memory.take_back(spec.id)

    def _cgroup(self, spec: DynoSpec) -> str:
        return f"{self.host.instance.cgroup}/{spec.app_id}/{spec.id}"

    async def _start(self, spec: DynoSpec) -> MicroVm:
        launch = self.plan(spec)
        streams: Streams | None = None
        master: int | None = None
        try:
            await self.host.in_thread(self.prepare, launch)
            await self.launch(launch)
            if spec.terminal is not None:
                streams, master = Streams.pty(*spec.terminal)
            elif spec.stdio is not None:
                streams = Streams.copies(spec.stdio)
            dyno = await self._begin(launch, spec, streams)
        except BaseException as error:
            if streams is not None:
                streams.close()
            if master is not None:
                os.close(master)
            raise await self.failed(launch, spec.name, error) from error
        dyno.terminal_fd = master
        return dyno

    async def _begin(self, launch: Launch, spec: DynoSpec, streams: Streams | None) -> MicroVm:
        """The guest is up: hand it its command, and look after it from now on."""
        assert launch.agent is not None
        names = self.host.names_since
        order = order_of(spec, await self.host.in_thread(self.order, launch.record, spec.name, spec.limits))
        main = await launch.agent.start(replace(order, clock=time.time_ns()), streams, BOOT_SECONDS[False])
        dyno = self.dyno(launch)
        dyno.knows(names)
        dyno.main = main
        dyno.watch()
        return dyno

    def plan(self, spec: DynoSpec, incoming: bool = False) -> Launch:
        """What is to be made for ``spec``; takes a slot."""
        slot = self.host.pool.reserve()
        fifos = spec.terminal is None and spec.stdio is None
        record = Record(
            spec.id, spec.app_id, spec.name, slot, self._cgroup(spec), boot_id(), network=spec.network, fifos=fifos,
            isolation=self.isolation, allowed=spec.allowed,
        )  # fmt: skip
        cores = min(os.cpu_count() or 1, machine.MOST_PROCESSORS)
        memory = booting(spec.limits)
        wanted = Machine(
            name=f"{spec.app}/{spec.name}",
            memory=memory,
            pluggable=pluggable(_host_memory(), memory),
            processors=qemu.processors(spec.limits, cores),
            most_processors=cores,
            kvm=self.kvm,
            mac=self.host.instance.mac(slot) if spec.network else None,
            slug=spec.slug is not None,
            scratch=not spec.readonly,
            fifos=fifos,
            incoming=incoming,
        )
        facts = {
            "form": machine.FORM, "generation": 1, "memory": memory, "plugged_memory": 0, "pluggable": wanted.pluggable,
            "processors": wanted.processors, "most_processors": cores, "kernel": self.kernel.version,
            "qemu": list(self.qemu_version), "kvm": self.kvm, "app": spec.app, "limits": dict(vars(spec.limits)),
            "slug": wanted.slug, "scratch": wanted.scratch, "images": moving.images(spec),
        }  # fmt: skip
        record = replace(record, facts=facts)
        return Launch(record, DynoDirectory(self.host.dynos / spec.id), spec.limits, wanted, spec.stack, spec.slug)

    def prepare(self, launch: Launch) -> None:
        """Directories, FIFOs, disks, tap, cgroup; what it opens is in ``launch.fds``."""
        record = launch.record
        launch.directory.create(record)
        self.host.admit(record)
        (self.directory / record.id).mkdir(mode=0o700)
        uid = self.uid(record.slot)
        if record.fifos:
            launch.fifos = list(launch.directory.make_fifos(uid))
            self.open_fifos(launch)
        self.open_disk(launch, machine.STACK, machine.KEPT_STACK, os.open(launch.stack, os.O_RDONLY | os.O_CLOEXEC))
        if launch.slug is not None:
            self.open_disk(launch, machine.SLUG, machine.KEPT_SLUG, os.open(launch.slug, os.O_RDONLY | os.O_CLOEXEC))
        if launch.machine.scratch and machine.SCRATCH not in launch.fds:
            image = scratch.image(launch.limits.disk, self.host.settings.run)
            self.open_disk(launch, machine.SCRATCH, machine.KEPT_SCRATCH, image)
            moving.name_layer(image, self.layer(record.id))
        if record.network:
            launch.fds[machine.TAP] = self.host.network.tap(record.slot)
        memory = record.facts["memory"] + record.facts["plugged_memory"]  # one that wakes has what was plugged in before it slept
        self.limit(cgroups.Cgroup(record.cgroup), launch.limits, memory, kvm=launch.machine.kvm)

    def layer(self, id: str) -> Path:
        """The name of the dyno ``id``'s writable layer, where it has one; for its directory's time only."""
        return self.host.dynos / id / "layer"

    def open_disk(self, launch: Launch, number: int, kept: int, fd: int) -> None:
        """Hand ``fd`` to QEMU as a disk, and once more for whoever looks for it later."""
        launch.fds[number] = fd
        launch.fds[kept] = os.dup(fd)

    def open_fifos(self, launch: Launch) -> None:
        """QEMU writes without blocking, and holds both ends open so that nobody's death breaks the pipe."""
        for number, kept, name in ((machine.OUT, machine.KEPT_OUT, "stdout"), (machine.ERR, machine.KEPT_ERR, "stderr")):
            path = launch.directory.path / name
            launch.fds[kept] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            launch.fds[number] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)

    def limit(self, group: cgroups.Cgroup, limits: Limits, memory: int, *, kvm: bool, machines: int = 1) -> None:
        """Put QEMU's limits in force: the guest's memory and what emulating it takes, for ``machines`` of them.

        Args:
            kvm: whether these machines are accelerated; which the host's answer of today does not tell.
        """
        group.create()
        most = machines * (memory + _OVERHEAD[kvm])
        group.update(replace(limits, memory_max=most, pids=machines * qemu.threads()))

    async def limit_running(self, dyno: MicroVm, limits: Limits, memory: int) -> None:
        """Put the limits of a machine that runs in force."""
        await self.host.in_thread(partial(self.limit, dyno.cgroup, limits, memory, kvm=dyno.record.facts["kvm"]))

    def uid(self, slot: int) -> int:
        """What QEMU runs as in ``slot``."""
        return self.host.instance.uids(slot) + oci.USER

    async def launch(self, launch: Launch) -> None:
        """Start QEMU and connect to it; the guest has booted when this returns (unless it comes in from elsewhere).

        Raises:
            GuestFailed, MonitorFailed: it did not.
        """
        await self.host.in_thread(self._spawn, launch)
        launch.process = Process(launch.record.pid or 0)
        launch.monitor = await Monitor.connect(self.socket(launch.record, "monitor"), BOOT_SECONDS[False])
        launch.record.facts["qemu"] = list(launch.monitor.version)  # its package may have been upgraded since it was looked for
        if not launch.machine.incoming:
            await self.reach(launch)

    async def reach(self, launch: Launch, seconds: float | None = None) -> None:
        """Connect to the guest agent; ends early when its machine or QEMU does.

        Args:
            seconds: for its answer; as long as a boot may take by default.

        Raises:
            GuestFailed: it does not answer.
        """
        assert launch.process is not None and launch.monitor is not None
        limit = BOOT_SECONDS[launch.machine.kvm] if seconds is None else seconds
        booting = asyncio.ensure_future(Agent.connect(self.socket(launch.record, "agent"), limit))
        gone = asyncio.ensure_future(launch.process.wait())
        stopped = asyncio.ensure_future(launch.monitor.event("SHUTDOWN", "GUEST_PANICKED", timeout=None))
        waiting: set[asyncio.Future[Any]] = {booting, gone, stopped}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not booting.done():
                raise GuestFailed("its machine ended while it booted")
            launch.agent = booting.result()
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _spawn(self, launch: Launch) -> None:
        launch.record = record = replace(launch.record, facts={**launch.record.facts, "generation": launch.generation})
        pid = qemu.start(
            self.host, machine.command(self.qemu, launch.machine), self.directory / record.id, cgroups.Cgroup(record.cgroup),
            self.uid(record.slot), shown=self.kernel.directory, kvm=launch.machine.kvm, fds=launch.fds, most=machine.DESCRIPTORS,
            sockets={machine.AGENT: self.socket(record, "agent"), machine.MONITOR: self.socket(record, "monitor")},
        )  # fmt: skip
        launch.record = replace(record, pid=pid, started=start_time(pid))
        if launch.generation == 1:
            launch.directory.write(launch.record)

    def dyno(self, launch: Launch) -> MicroVm:
        """A machine that is up as a dyno."""
        launch.directory.write(launch.record)
        dyno = MicroVm(self, launch.record, launch.process)
        dyno.monitor, dyno.agent, dyno.fifos = launch.monitor, launch.agent, launch.fifos
        self.running[dyno.spec_id] = dyno
        return dyno

    def order(self, record: Record, name: str, limits: Limits) -> Order:
        """What the guest has to know of its surroundings."""
        instance = self.host.instance
        address = instance.address(record.slot) if record.network else None
        return Order(
            hosts=oci.hosts_file(_text(Path("/etc/hosts")), name, address),
            resolv=_text(self.host.resolv_conf),
            certificates=_text(_CERTIFICATES) or None,
            address=f"{address}/{instance.network.prefixlen}" if address else None,
            gateway=instance.gateway if address else None,
            mac=self.host.instance.mac(record.slot) if address else None,
            memory=limits.memory,
            pids=limits.pids,
            shm=f"{max(16, min(limits.memory >> 22, 1024))}m",
        )

    def name_servers(self) -> str | None:
        """The dynos' resolv.conf as it is now, None while there is none; blocking."""
        return _text(self.host.resolv_conf) or None

    async def failed(self, launch: Launch, name: str, error: BaseException) -> BaseException:
        """Undo a start, and give the exception that explains it."""
        reason = await self.last_words(launch)
        await self.undo(launch)
        if isinstance(error, (GuestFailed, MonitorFailed)):
            return StartFailed(f"The dyno {name} could not be started: {error.message}{reason}.".replace("..", "."))
        if isinstance(error, OSError):
            return StartFailed(f"The dyno {name} could not be started: {error.strerror or error}.")
        return error

    async def last_words(self, launch: Launch) -> str:
        """What QEMU or the guest's kernel said last, for the sentence."""
        return await self.last_line(launch.record.id, launch.monitor)

    async def last_line(self, id: str, monitor: Monitor | None) -> str:
        """Of the dyno ``id``'s machine; in brackets, or empty."""
        messages = qemu.words_of(self.directory / id / "messages")
        own = [line for line in messages if ": warning: " not in line]  # of which it has some on every host
        guest: list[str] = []
        if monitor is not None:
            with suppress(DavitError):
                told = await monitor.execute("ringbuf-read", {"device": "serial", "size": 32768}, timeout=5)
                guest = [line for line in str(told).splitlines() if line.strip()]
        words = [line for line in guest if "panic" in line] or own or guest
        return f" ({_printable(words[-1])})" if words else ""

    async def undo(self, launch: Launch) -> None:
        """Take everything away that was made for a start that failed."""
        if launch.agent is not None:
            launch.agent.close()
        if launch.monitor is not None:
            launch.monitor.close()
        if launch.process is not None:
            launch.process.send(SIGKILL)
            await launch.process.wait()

        def away() -> None:
            for fd in (*launch.fds.values(), *launch.fifos):
                os.close(fd)
            launch.fds.clear()
            launch.fifos.clear()
            qemu.clear(self.directory / launch.record.id, cgroups.Cgroup(launch.record.cgroup))
            launch.directory.remove()

        await self.host.in_thread(away)
        if launch.record.pid is not None:
            self.host.forget(launch.record.pid)
        self.host.pool.free(launch.record.slot)

    # -- while it runs ---------------------------------------------------------------------------------------------

    async def resize(self, dyno: MicroVm, limits: Limits) -> None:
        """See :meth:`MicroVm.update`."""
        await resize.resize(self, dyno, limits)

    async def move(self, dyno: MicroVm, hold: Hold) -> float:
        """See :meth:`MicroVm.migrate`."""
        return await moving.move(self, dyno, hold)

    async def put_aside(self, dyno: MicroVm, to: Path) -> None:
        """See :meth:`MicroVm.suspend`."""
        await moving.put_aside(self, dyno, to)

    # -- ending ----------------------------------------------------------------------------------------------------

    async def take_away(self, dyno: MicroVm) -> None:
        """Remove everything that was made for ``dyno``, which has ended."""
        await self.host.in_thread(qemu.clear, self.directory / dyno.spec_id, dyno.cgroup)
        with suppress(OSError):  # its directory waits for `logs`, and this need not
            self.layer(dyno.spec_id).unlink()
        if dyno.main is not None and dyno.terminal_fd is not None:
            os.close(dyno.terminal_fd)
            dyno.terminal_fd = None
        self.host.forget(dyno.pid)
        self.running.pop(dyno.spec_id, None)
        self.host.pool.free(dyno.slot)
        held, dyno.fifos = dyno.fifos, []
        self.host.leave_to_logs(DynoDirectory(self.host.dynos / dyno.spec_id), dyno.record.fifos, held)

    # -- finding again, closing ------------------------------------------------------------------------------------

    async def adopt(self) -> Sequence[MicroVm]:
        """The dynos that an earlier runtime process started; see :class:`runtime.driver.Driver`."""
        found = self.host.claim(self.isolation)
        return list(await asyncio.gather(*(self._adopt(record, alive) for record, alive in found)))

    async def _adopt(self, record: Record, alive: bool) -> MicroVm:
        process = moving.somewhere(record) if alive else None
        dyno = MicroVm(self, record, process)
        if record.fifos:
            dyno.fifos = DynoDirectory(self.host.dynos / record.id).open_fifos()
        self.running[record.id] = dyno
        if process is not None:
            self.host.watch(process.pid)
        dyno.watch()
        if process is not None:
            await dyno.look_for(lambda: self._find_again(dyno))
        return dyno

    async def _find_again(self, dyno: MicroVm) -> None:
        """Connect to a machine that another process started; one that does not answer is ended."""
        try:
            await moving.settle(self, dyno)
            dyno.monitor = await Monitor.connect(self.socket(dyno.record, "monitor"))
            status = await dyno.monitor.status()
            if status in FOR_GOOD:
                raise GuestFailed(f"its machine gave up or powered off{await self.last_line(dyno.spec_id, dyno.monitor)}")
            if status not in ("running", DISK_FULL):
                await moving.run_on(dyno.monitor)  # its runtime was killed while it put the machine aside
            async with dyno.kept_writing():  # on a full disk it stands still again and again
                dyno.agent = await dyno.find_guest(SILENCE[dyno.record.facts["kvm"]])
                if dyno.agent.state.state == "waiting":  # its runtime was killed before it could say what is to run
                    raise GuestFailed("it was never told what to run")
                if dyno.record.facts.get("waking"):  # its runtime was killed before it could say where it is now
                    await moving.introduce(self, dyno.record, dyno.agent)
                    dyno.record.facts["waking"] = False
                    with suppress(OSError):  # a full disk: it is told once more by the next
                        await self.host.in_thread(DynoDirectory(self.host.dynos / dyno.spec_id).write, dyno.record)
            dyno.talk_to(dyno.agent)
        except Exception as error:  # whatever it was: nobody would look after it
            foreseen = isinstance(error, DavitError | OSError)
            log.warning("a microVM is ended: %s", error, exc_info=not foreseen, extra={"dyno": dyno.spec_id})
            assert dyno.process is not None
            dyno.process.send(SIGKILL)

    async def close(self, stop_dynos: bool) -> None:
        """Let go of everything; see :class:`runtime.driver.Driver`."""
        if stop_dynos:
            await self.adopt()
            await asyncio.gather(*(dyno.remove() for dyno in list(self.running.values())), return_exceptions=True)
        for dyno in self.running.values():
            dyno.let_go()
        self._open = False


def booting(limits: Limits) -> int:
    """How much memory a machine boots with."""
    return machine.rounded(limits.memory) + machine.RESERVE


def pluggable(host: int, memory: int) -> int:
    """How much memory a machine with ``memory`` may get later: what the host has, in steps that the kernel takes."""
    return max(0, min(machine.LARGEST, host - memory)) // (128 << 20) * (128 << 20)


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _printable(line: str) -> str:
    return "".join(char for char in line if char.isprintable())[:200]
