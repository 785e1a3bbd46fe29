"""The OSv driver: a dyno is one program with a kernel of its own, started from read-only images.

What keeps the dyno is QEMU alone, confined as a microVM's is: it holds its disks, its tap and its FIFOs as descriptors, and a
later runtime process finds it by its record, its pidfd and its monitor's socket. What the runtime process adds is reading: the
kernel's words are told from the app's here, on the way from the serial port to the FIFO that `logs` reads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from foundation import fifo
from foundation.errors import DavitError
from runtime import applog, cgroups, oci, qemu
from runtime.apart import apart
from runtime.children import Process, start_time
from runtime.driver import DynoSpec, Exit, Limits, Unsupported
from runtime.dynodir import DynoDirectory, Record, boot_id
from runtime.host import Host
from runtime.osv import kernel, machine, management, signals
from runtime.osv.console import MARKER
from runtime.osv.dyno import Unikernel, until
from runtime.osv.images import OsvImages, Sources
from runtime.osv.machine import Machine
from runtime.qmp import Monitor, MonitorFailed
from slugs import osvimage, osvline, rofs
from slugs.osvcommand import CommandRefused

log = logging.getLogger("runtime")

QEMU = qemu.Need("Unikernels", (6, 0))
BOOT_SECONDS = {True: 30.0, False: 120.0}
"""From QEMU's start until the kernel has read its commands: with and without acceleration. It may run others before the app."""
MONITOR_SECONDS = 60.0
"""Until QEMU itself answers, on a busy host."""
LAST_WORDS_SECONDS = 10.0
"""How long one whose QEMU does not answer any more may take to be over."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class StartFailed(DavitError):
    """A unikernel could not be started."""

    id, status = "osv_start_failed", 500


@dataclass
class _Launch:
    """A unikernel on its way."""

    spec: DynoSpec
    record: Record
    directory: DynoDirectory
    machine: Machine
    fds: dict[int, int] = field(default_factory=dict)
    fifos: list[int] = field(default_factory=list)
    console: int = -1
    target: int = -1
    line: bytes = b""
    hostname: str | None = None
    agent: Path | None = None
    dyno: Unikernel | None = None


def _takes_signals(sources: Sources) -> bool:
    """Whether Davit's modules in it take signals themselves."""
    return sources.launch.runtime in ("python", "node")


class OsvDriver:
    """See :class:`runtime.driver.Driver`.

    Args:
        program: QEMU's name.
        kvm: whether to use hardware acceleration; found out by a test boot when None.
    """

    isolation: ClassVar[str] = "osv"

    def __init__(self, host: Host, *, program: str = qemu.PROGRAM, kvm: bool | None = None) -> None:
        self.host = host
        self.running: dict[str, Unikernel] = {}
        self._kvm, self._program = kvm, program
        self.kvm = bool(kvm)
        self.qemu = ""
        self.kernel: kernel.Kernel
        settings = host.settings
        self.images = OsvImages(settings.home / "osv", host.images, settings.home / "slugs", settings.osv_modules)
        self._agents = signals.Agents(self.images.directory)
        self._open = False

    @property
    def directory(self) -> Path:
        """Where the machines' sockets and consoles are; in memory, root's."""
        return self.host.instance.directory / "osv"

    # -- opening ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find QEMU, look at the user's kernel, and whether KVM works with it; idempotent. See
        :class:`runtime.driver.Driver`.

        Raises:
            Unsupported: QEMU is missing or too old.
            KernelUnusable: there is no kernel, or it is not OSv's.
        """
        if self._open:
            return
        self.qemu, version = await self.host.in_thread(qemu.find, QEMU, self._program)
        await self.host.in_thread(self._prepare)
        if self._kvm is None:
            self.kvm = (await kernel.find_out(self.qemu, qemu.dotted(version), self.kernel)).kvm
        self._open = True

    def _prepare(self) -> None:
        kernels = self.images.directory / "kernels"
        kernels.mkdir(parents=True, exist_ok=True)
        self.kernel = kernel.keep(self.host.settings.osv_kernel, kernels)
        self.images.prepare()
        qemu.prepare(self.directory, self.host.alive())

    # -- starting --------------------------------------------------------------------------------------------------

    async def start(self, spec: DynoSpec) -> Unikernel:
        """Start a dyno; see :class:`runtime.driver.Driver`.

        Raises:
            CommandRefused: its command cannot run in a unikernel.
            StartFailed: the kernel did not come to start it; nothing is left behind.
        """
        if not _ID.fullmatch(spec.id) or not _ID.fullmatch(spec.app_id):
            raise StartFailed(f"“{spec.id}” or “{spec.app_id}” cannot be a dyno's or app's identifier.")
        refuse(spec)
        return await self.host.bring_up(lambda stdio: self._start(replace(spec, stdio=stdio)), spec.stdio)

    async def resume(self, spec: DynoSpec, snapshot: Path) -> Unikernel:
        """Nothing of a unikernel can be put aside, so there is nothing to wake.

        Raises:
            Unsupported: always.
        """
        shutil.rmtree(snapshot, ignore_errors=True)
        raise Unsupported("Only microVMs can be woken as they were; a unikernel is started anew.")

    async def _start(self, spec: DynoSpec) -> Unikernel:
        sources = await apart(self._sources, spec)
        if sources.launch.notes:
            await self.host.in_thread(applog.say, spec.app_id, spec.name, *sources.launch.notes)
        launch = self._plan(spec)
        try:
            launch.agent = await self._agent(spec, sources)
            await self.host.in_thread(self._prepare_launch, launch, sources)
            await self.host.in_thread(self._spawn, launch)
            dyno = self._dyno(launch)
            await self._boot(launch, dyno)
        except BaseException as error:
            await self._undo(launch)
            if isinstance(error, MonitorFailed):
                raise StartFailed(f"The dyno {spec.name} could not be started: {error.message}") from error
            if isinstance(error, OSError):
                raise StartFailed(f"The dyno {spec.name} could not be started: {error.strerror or error}.") from error
            raise
        if launch.hostname and dyno.address and dyno.record.facts["managed"]:
            self.host.keep(self._name(dyno.address, launch.hostname))
        return dyno

    def _sources(self, spec: DynoSpec) -> Sources:
        assert spec.line is not None
        return self.images.sources(spec.stack, spec.slug, spec.line, spec.env, spec.limits.memory)

    def _plan(self, spec: DynoSpec) -> _Launch:
        slot = self.host.pool.reserve()
        facts = {
            "memory": spec.limits.memory, "port": spec.port, "agent": False, "managed": False,
        }  # fmt: skip
        record = Record(
            spec.id, spec.app_id, spec.name, slot, f"{self.host.instance.cgroup}/{spec.app_id}/{spec.id}", boot_id(),
            network=spec.network, fifos=spec.stdio is None, isolation=self.isolation, allowed=spec.allowed, facts=facts,
        )  # fmt: skip
        wanted = Machine(
            name=f"{spec.app}/{spec.name}",
            memory=spec.limits.memory,
            processors=qemu.processors(spec.limits, os.cpu_count() or 1),
            kvm=self.kvm,
            mac=self.host.instance.mac(slot) if spec.network else None,
            slug=spec.slug is not None,
        )
        return _Launch(spec, record, DynoDirectory(self.host.dynos / spec.id), wanted)

    def _prepare_launch(self, launch: _Launch, sources: Sources) -> None:
        """Directories, FIFOs, images, tap, cgroup."""
        spec, record = launch.spec, launch.record
        launch.directory.create(record)
        self.host.admit(record)
        place = self.directory / record.id
        place.mkdir(mode=0o700)
        self._open_streams(launch, place)
        for number, path in ((machine.ROOT, sources.root), (machine.SLUG, sources.slug)):
            if path is not None:
                launch.fds[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        own, managed, agent = _takes_signals(sources), self._is_managed(spec), launch.agent
        # without one it could not be told when the server is ready, and would be started too early
        facts = {"agent": spec.network and (own or agent is not None), "managed": managed and agent is not None}
        launch.record = record = replace(record, facts={**record.facts, **facts})
        boot = self._compose(launch, sources)
        launch.line = boot.line
        launch.fds[machine.CONFIG] = self._configuration(place / "config", launch, boot, agent)
        if spec.network:
            launch.fds[machine.TAP] = self.host.network.tap(record.slot)

    def _open_streams(self, launch: _Launch, place: Path) -> None:
        """The serial port's FIFO, and the dyno's: QEMU holds all of them open, so that nobody's death loses a line."""
        os.mkfifo(place / "console", 0o600)
        launch.console = _console(place)
        launch.fds[machine.KEPT_CONSOLE] = os.open(place / "console", os.O_RDWR | os.O_CLOEXEC)
        launch.fds[machine.CONSOLE] = os.open(place / "console", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if launch.spec.stdio is not None:
            launch.target = os.dup(launch.spec.stdio[1])
            return
        launch.fifos = list(launch.directory.make_fifos(self._uid(launch.record.slot)))
        launch.fds[machine.KEPT_OUT], launch.fds[machine.KEPT_ERR] = (os.dup(fd) for fd in launch.fifos)
        launch.target = os.open(launch.directory.path / "stdout", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _compose(self, launch: _Launch, sources: Sources) -> osvline.Boot:
        environment = {**launch.spec.env, **sources.launch.environment}
        wanted = environment.pop(management.CLOUD_INIT_VARIABLE, "")
        program, before, ports = f"{osvimage.CONFIG}/{signals.NAME}", [], []
        if launch.record.facts["agent"] and _takes_signals(sources):
            environment[osvline.SIGNALS] = str(signals.PORT)
        elif launch.agent is not None:
            before.append(osvline.Command([program, str(signals.PORT)]))
            ports.append(str(signals.PORT))
        if launch.record.facts["managed"]:
            before.append(osvline.Command([program, "begin", str(signals.BEGINS), f"/{management.SERVER}"]))
            ports += [str(signals.BEGINS), str(management.PORT)]
        if ports:  # one after the other: see agent.c
            before.append(osvline.Command([program, "wait", *ports], beside=False))
        if wanted:
            before += self._cloud_init(launch, wanted)
        return osvline.compose(
            machine.options(self._network(launch.record), launch.machine.slug),
            environment,
            sources.launch.argv,
            script=osvimage.SCRIPT,
            before=before,
            last=(MARKER, launch.record.id),
        )

    def _cloud_init(self, launch: _Launch, text: str) -> list[osvline.Command]:
        wanted = management.cloud_init(text)
        launch.hostname = wanted.hostname
        if wanted.hostname and not launch.record.facts["managed"]:
            raise Unsupported(
                f"{management.CLOUD_INIT_VARIABLE} sets a host name, which needs OSv's REST server: put {management.SERVER} into"
                " the directory of DAVIT_OSV_MODULES."
            )
        if wanted.document is None:
            return []
        program = next((name for name in management.CLOUD_INIT if self.images.has_module(name)), None)
        if program is None:
            raise Unsupported(
                f"{management.CLOUD_INIT_VARIABLE} needs OSv's cloud-init module: put {management.CLOUD_INIT[0]} into the"
                " directory of DAVIT_OSV_MODULES."
            )
        launch.record.facts["cloud_init"] = wanted.document.decode()
        return [osvline.Command([f"/{program}", "--file", f"{osvimage.CONFIG}/files/cloud-init.yaml"], beside=False)]

    def _configuration(self, path: Path, launch: _Launch, boot: osvline.Boot, agent: Path | None) -> int:
        """The configuration's image as a descriptor: it has no name any more once QEMU has it."""
        document = launch.record.facts.pop("cloud_init", None)
        files = {"cloud-init.yaml": document.encode()} if document else {}
        tree = osvimage.configuration(boot.script, files)
        if agent is not None:
            tree.add(signals.NAME, rofs.on_disk(agent))
        osvimage.write_plain(tree, path, mode=0o600)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink()
        return fd

    def _network(self, record: Record) -> machine.Network | None:
        if not record.network:
            return None
        instance = self.host.instance
        known = self.host.resolv_conf.read_text()
        servers = re.findall(r"^nameserver\s+(\d+(?:\.\d+){3})\s*$", known, re.M)
        return machine.Network(
            instance.address(record.slot), str(instance.network.netmask), instance.gateway, servers[0] if servers else None
        )

    def _is_managed(self, spec: DynoSpec) -> bool:
        return spec.network and self.images.has_module(management.SERVER)

    async def _agent(self, spec: DynoSpec, sources: Sources) -> Path | None:
        """The program that brings signals in; None where it is not needed, or cannot be had."""
        if not spec.network or (_takes_signals(sources) and not self._is_managed(spec)):
            return None
        stack = next((path for path in sorted(spec.stack.parent.glob("build.*"))), None)
        return await self._agents.program(stack) if stack is not None else None

    def _uid(self, slot: int) -> int:
        return self.host.instance.uids(slot) + oci.USER

    def limits(self, limits: Limits) -> Limits:
        """QEMU's own: the guest's memory and what emulating it takes."""
        return replace(limits, memory_max=limits.memory + qemu.OVERHEAD, pids=qemu.threads())

    def _spawn(self, launch: _Launch) -> None:
        record = launch.record
        place, group = self.directory / record.id, cgroups.Cgroup(record.cgroup)
        group.create()
        group.update(self.limits(launch.spec.limits))
        pid = qemu.start(
            self.host, machine.command(self.qemu, launch.machine), place, group, self._uid(record.slot),
            shown=self.kernel.directory, kvm=self.kvm, sockets={machine.MONITOR: place / "monitor"}, fds=launch.fds,
            most=machine.DESCRIPTORS,
        )  # fmt: skip
        launch.record = replace(record, pid=pid, started=start_time(pid))
        launch.directory.write(launch.record)

    def _dyno(self, launch: _Launch) -> Unikernel:
        dyno = Unikernel(self, launch.record, Process(launch.record.pid or 0), launch.console, launch.target)
        dyno.fifos = [*launch.fifos, launch.target]
        launch.fifos, launch.console, launch.target, launch.dyno = [], -1, -1, dyno
        self.running[dyno.spec_id] = dyno
        dyno.watch()
        return dyno

    async def _boot(self, launch: _Launch, dyno: Unikernel) -> None:
        """Hand over the kernel's command line; return when the kernel has come to start the app.

        Raises:
            StartFailed: it does not; the sentence has the kernel's words.
        """
        limit = BOOT_SECONDS[self.kvm]
        path = self.directory / launch.record.id / "monitor"
        connecting = asyncio.ensure_future(Monitor.connect(path, MONITOR_SECONDS))
        ending = asyncio.ensure_future(dyno.wait())
        try:
            await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise StartFailed(f"The dyno {launch.spec.name} could not be started: QEMU ended at once{self._words(launch)}.")
            dyno.monitor = connecting.result()
            await self._begin(dyno, launch.line, ending)
            booting = asyncio.ensure_future(dyno.booted.wait())
            await asyncio.wait({booting, ending}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            booting.cancel()
        finally:
            connecting.cancel()
            ending.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        if not dyno.booted.is_set():
            what = dyno.console.failure or (
                f"its kernel did not start it within {limit:g} seconds" if not dyno.ended else "its kernel powered off at once"
            )
            raise StartFailed(f"The dyno {launch.spec.name} could not be started: {what.rstrip('.')}{self._words(launch)}.")

    def has_booted(self, id: str) -> Path:
        """The file that is there once the dyno ``id`` has been seen to start its app: what its console said before is read and
        gone, and says it to no later runtime process. It is in memory, so no full disk keeps it from being there."""
        return self.directory / id / "booted"

    async def _begin(self, dyno: Unikernel, line: bytes, ending: asyncio.Future[Exit]) -> None:
        """Let the kernel go. A short program may be over, and QEMU with it, before QEMU's answer was heard.

        Raises:
            MonitorFailed: it does not begin.
        """
        assert dyno.monitor is not None
        try:
            await kernel.begin(dyno.monitor, line)
        except MonitorFailed:
            await asyncio.wait({ending}, timeout=LAST_WORDS_SECONDS)
            if not (ending.done() and dyno.booted.is_set()):
                raise

    def _words(self, launch: _Launch) -> str:
        """QEMU's own last words, for the sentence."""
        lines = qemu.words_of(self.directory / launch.record.id / "messages")
        return f" (QEMU says: {lines[-1][-200:]})" if lines else ""

    async def _name(self, address: str, hostname: str) -> None:
        for _ in range(20):
            if await management.set_hostname(address, hostname):
                return
            await asyncio.sleep(1)
        log.warning("a unikernel did not take its host name", extra={"address": address})

    async def _undo(self, launch: _Launch) -> None:
        if launch.dyno is not None:
            await launch.dyno.discard()
            return

        def undo() -> None:
            for fd in (*launch.fds.values(), *launch.fifos, launch.console, launch.target):
                if fd >= 0:
                    os.close(fd)
            qemu.clear(self.directory / launch.record.id, cgroups.Cgroup(launch.record.cgroup))
            launch.directory.remove()
            self.host.network.disconnect(launch.record.slot)

        if launch.record.pid is not None:
            self.host.forget(launch.record.pid)
        await self.host.in_thread(undo)
        self.host.pool.free(launch.record.slot)

    # -- ending ----------------------------------------------------------------------------------------------------

    async def take_away(self, dyno: Unikernel, keep_lines: bool = True) -> None:
        """Remove everything that was made for ``dyno``, which has ended."""

        def away() -> None:
            qemu.clear(self.directory / dyno.spec_id, dyno.cgroup)
            self.host.network.disconnect(dyno.slot)

        await self.host.in_thread(away)
        self.host.forget(dyno.pid)
        self.running.pop(dyno.spec_id, None)
        self.host.pool.free(dyno.slot)
        held, dyno.fifos = dyno.fifos, []
        directory = DynoDirectory(self.host.dynos / dyno.spec_id)
        self.host.leave_to_logs(directory, dyno.record.fifos and keep_lines, held)

    # -- finding again, closing ------------------------------------------------------------------------------------

    async def adopt(self) -> list[Unikernel]:
        """The dynos that an earlier runtime process started; see :class:`runtime.driver.Driver`."""
        found = self.host.claim(self.isolation)  # together: one that hangs takes its time
        return list(await asyncio.gather(*(self._adopt(record, alive) for record, alive in found)))

    async def _adopt(self, record: Record, alive: bool) -> Unikernel:
        process: Process | None = None
        if alive and record.pid is not None:
            with suppress(ProcessLookupError):
                process = Process(record.pid)
                self.host.watch(record.pid)
        console = target = -1
        directory = DynoDirectory(self.host.dynos / record.id)
        fifos = directory.open_fifos() if record.fifos else []
        if process is not None:
            with suppress(OSError):
                console = _console(self.directory / record.id)
        with suppress(OSError):
            target = os.open(directory.path / "stdout", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if target < 0:
            target = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        dyno = Unikernel(self, record, process, console, target)
        dyno.fifos = [*fifos, target]
        self.running[record.id] = dyno
        dyno.watch()
        if process is not None:
            try:
                dyno.monitor = await Monitor.connect(self.directory / record.id / "monitor", 10)
            except DavitError as error:
                log.warning("a unikernel's monitor does not answer: %s", error.message, extra={"dyno": record.id})
            if not dyno.console.booted and not await until(
                lambda: dyno.console.booted or dyno.ended, BOOT_SECONDS[self.kvm] / 10
            ):
                process.send(9)  # the runtime ended before it could hand over the command line: nobody has it any more
        return dyno

    async def close(self, stop_dynos: bool) -> None:
        """Let go of everything; see :class:`runtime.driver.Driver`."""
        if stop_dynos:
            await self.adopt()
            await asyncio.gather(*(dyno.remove() for dyno in list(self.running.values())), return_exceptions=True)
            shutil.rmtree(self.directory, ignore_errors=True)
        for dyno in self.running.values():
            dyno.let_go()
        self.running.clear()


def _console(place: Path) -> int:
    """The end that is read of the serial port's FIFO, in which what the app says waits while no runtime process is there."""
    fd = os.open(place / "console", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fifo.enlarge(fd)
    return fd


def refuse(spec: DynoSpec) -> None:
    """Refuse what no unikernel can have.

    Raises:
        Unsupported, CommandRefused: the sentence says what.
    """
    if spec.terminal is not None:
        raise Unsupported("A unikernel has no terminal and no shell; run the command in a container or a microVM.")
    if spec.binds:
        raise Unsupported("A unikernel cannot be shown directories of the host.")
    if spec.line is None:
        raise CommandRefused("A unikernel runs a Procfile's line, and this command comes from none.")
