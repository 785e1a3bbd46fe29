"""The container driver: a dyno is an OCI container, started by crun (or runc) and from then on looked after without it.

The program that starts a container ends as soon as the container runs. What keeps the dyno is the kernel alone: its init
is watched by pidfd, limits and numbers are files of its cgroup, and its file system lives as long as its processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fcntl import ioctl
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM

from foundation.errors import DavitError
from runtime import cgroups, children, mounts, oci, reach, userns
from runtime.children import Process
from runtime.driver import Bind, Driver, DynoSpec, Exit, Limits, Listener, RunningDyno, Stats, Unsupported
from runtime.dynodir import DynoDirectory, Record, boot_id
from runtime.host import Host
from runtime.ociruntime import OciRuntime, choose
from runtime.proctcp import listeners
from runtime.slots import Slot

log = logging.getLogger("runtime")

HANGUP_SECONDS = 10
"""From SIGHUP to SIGKILL for a further command whose client has gone."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_RUNC = (
    "This host starts dynos with runc, which cannot run a further command in one; its owner has to install crun and restart "
    "Davit. A one-off dyno (`davit run`) works."
)
"""runc 1.1 joins the user namespace first, and has no right then to join a network namespace that the host made."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class StartFailed(DavitError):
    """A dyno could not be started."""

    id, status = "dyno_start_failed", 500


@dataclass
class _Prepared:
    """A dyno on its way: what has been made for it so far."""

    spec: DynoSpec
    slot: Slot
    directory: DynoDirectory
    work: Path
    record: Record
    images: list[Path] = field(default_factory=list)
    mounted: list[Path] = field(default_factory=list)
    stdio: tuple[int, int, int] | None = None
    fifos: list[int] = field(default_factory=list)
    upper_fd: int = -1
    root_fd: int = -1
    console: socket.socket | None = None


class ContainerDyno(RunningDyno):
    """A running (or just ended) container; see :class:`runtime.driver.RunningDyno`.

    Attributes:
        root: the merged file system, through a descriptor of this process; valid until :meth:`remove`.
        upper: its writable layer, likewise; of an adopted dyno None.
    """

    def __init__(self, driver: ContainerDriver, record: Record, process: Process | None) -> None:
        self._driver, self.record, self._process = driver, record, process
        self.spec_id, self.slot, self.pid = record.id, record.slot, record.pid or 0
        self.address = driver.host.instance.address(record.slot) if record.network else None
        self.terminal_fd: int | None = None
        self.cgroup = cgroups.Cgroup(record.cgroup)
        self.root_fd, self.upper_fd = -1, -1
        self.images: list[Path] = []
        self.fifos: list[int] = []
        self._oom_fd: int | None = None
        self._out_of_memory = False
        self._exit: asyncio.Task[Exit] = asyncio.get_running_loop().create_task(self._watch())
        self.tidied: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._seeing_off: asyncio.Task[None] | None = None

    @property
    def root(self) -> Path:
        """The merged file system."""
        return Path(f"/proc/{os.getpid()}/fd/{self.root_fd}") if self.root_fd >= 0 else Path(f"/proc/{self.pid}/root")

    @property
    def upper(self) -> Path | None:
        """The writable layer."""
        return Path(f"/proc/{os.getpid()}/fd/{self.upper_fd}") if self.upper_fd >= 0 else None

    @property
    def ended(self) -> bool:
        """Whether its command has ended."""
        return self._process is None or self._process.ended

    async def _watch(self) -> Exit:
        self._watch_memory()
        status = await self._process.wait() if self._process else None
        if self._oom_fd is not None:
            asyncio.get_running_loop().remove_reader(self._oom_fd)
            os.close(self._oom_fd)
            self._oom_fd = None
        ooms = self.cgroup.ooms()
        oom = self._out_of_memory or (ooms > 0 and status in (None, 128 + SIGKILL))
        return Exit(status, oom, watched=status is None and self._process is not None)

    def _watch_memory(self) -> None:
        """A dyno whose memory ran out ends as a whole, as on Heroku: what is left of it would be a riddle, not an app."""
        if self._process is None:
            return
        self._oom_fd = self.cgroup.oom_event()
        if self._oom_fd is not None:
            asyncio.get_running_loop().add_reader(self._oom_fd, self._memory_ran_out)

    def _memory_ran_out(self) -> None:
        with suppress(OSError):
            os.read(self._oom_fd or -1, 8)
        if self._process is not None and not self.ended:
            self._out_of_memory = True
            # the kernel tells before it kills; a moment later its own victim is counted (memory.oom_control)
            asyncio.get_running_loop().call_later(0.05, self._process.send, SIGKILL)

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        return await asyncio.shield(self._exit)

    async def signal(self, number: int, everyone: bool = False) -> None:
        """Send a signal to its command through the init, or to all its processes but the init; see
        :meth:`runtime.driver.RunningDyno.signal`."""
        if self.ended or self._process is None:
            return
        if number != SIGKILL:
            await self._init_listens()
        if number == SIGTERM and everyone:
            self._ask_all_to_end(self._process)
            return
        others = self._others() if everyone and number != SIGKILL else set()
        if not others:
            self._process.send(number)  # SIGKILL to the init of a pid namespace ends everything in it
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _ask_all_to_end(self, init: Process) -> None:
        """SIGTERM to all, of whom each may take its time.

        The init ends as soon as the command has, and the kernel kills whoever is left then: the app, where the command is a
        shell above it. So the init is stopped meanwhile (only a process outside its namespace can do that), and sees how
        the command ended when it goes on. It costs a dyno nothing until then; an init that stays by itself would have to be
        built, and run in each of them.
        """
        init.send(SIGSTOP)
        told = self._others()
        for pid in told:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGTERM)
        if not told:  # the command is about to be started: the init hands it on
            init.send(SIGTERM)
        self._see_off(init, told)

    def _see_off(self, init: Process, told: set[int]) -> None:
        if self._seeing_off is None or self._seeing_off.done():
            self._seeing_off = self._driver.host.keep(self._until_nobody_is_left(init, told))

    async def _until_nobody_is_left(self, init: Process, told: set[int]) -> None:
        """Let the stopped init go on when all that it and its descendants started has ended.

        Args:
            told: who has got SIGTERM. A child of one that died of it, forked just before, is the init's by then, and is told.
        """
        pause = 0.005
        while True:
            began = time.monotonic()
            try:
                staying = await self._driver.host.in_thread(self._staying)  # there may be thousands
                if not staying:
                    break
                for pid in staying - told:
                    if children.parent(pid) == self.pid:
                        told.add(pid)
                        with suppress(ProcessLookupError):
                            os.kill(pid, SIGTERM)
                await children.until_ended(staying, seconds=1)
            except OSError as error:  # no descriptor or memory at the moment: the init must not stay as it is
                log.warning("processes that are asked to end cannot be seen: %s", error, extra={"dyno": self.spec_id})
                pause = 1
            await asyncio.sleep(began + pause - time.monotonic())  # an app that forks all the time does not keep Davit busy
            pause = min(pause * 2, 1)
        init.send(SIGCONT)

    def _others(self) -> set[int]:
        return {pid for pid in self.cgroup.pids() if pid != self.pid}

    def _staying(self) -> set[int]:
        """Who has not ended; further commands are not counted, they end with the dyno."""
        pids = self.cgroup.pids()
        further = children.members(children.sessions_from_outside(pids, self.pid), pids)
        return {pid for pid in pids if pid != self.pid and not children.has_ended(pid)} - set(further)

    def go_on_ending(self) -> None:
        """See off what an earlier runtime process asked to end, if it did."""
        if self._process is not None and children.state(self.pid) == "T":
            self._see_off(self._process, self._others())

    async def _init_listens(self) -> None:
        """The OCI runtime ends a moment before the init begins, and the kernel drops what reaches a process 1 that does
        not listen; the init listens once it blocks signals (it takes them by sigtimedwait)."""
        for _ in range(500):
            if self.ended or children.blocks_signals(self.pid):
                return
            await asyncio.sleep(0.002)

    async def resize_terminal(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        if self.terminal_fd is not None:
            _resize(self.terminal_fd, rows, columns)

    async def exec(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        terminal: tuple[int, int] | None = None,
        stdio: tuple[int, int, int] | None = None,
    ) -> ExecutedCommand:
        """Run a further command inside it; see :class:`runtime.driver.RunningDyno`.

        Raises:
            StartFailed: it has ended, or the command cannot be found in it.
            Unsupported: the OCI runtime cannot do that.
        """
        if self.ended:
            raise StartFailed(f"The dyno {self.record.name} has ended; no command can be run in it.")
        driver = self._driver
        return await driver.host.bring_up(lambda own: driver.execute(self, command, env, terminal, own), stdio)

    async def connect(self, port: int) -> socket.socket:
        """A TCP connection to one of its own ports, made in its network namespace; see :class:`runtime.driver.RunningDyno`.

        Raises:
            StartFailed: it has ended.
            Unsupported: it has no network.
            Conflict: nothing listens there.
        """
        if self.address is None:
            raise Unsupported(f"The dyno {self.record.name} has no network.")
        namespace, network = self._own_network(), self._driver.host.network
        try:
            return await reach.connect(lambda: network.line_inside(namespace), (reach.LOOPBACK, self.address), port)
        finally:
            os.close(namespace)

    def _own_network(self) -> int:
        """A descriptor of its network namespace; by its pid, which is its own as long as its pidfd says that it lives."""
        with suppress(OSError):
            namespace = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            if self._process is not None and self._process.lives():
                return namespace
            os.close(namespace)
        raise StartFailed(f"The dyno {self.record.name} has ended.")

    async def hang_up_commands(self) -> None:
        """End the further commands that an earlier runtime process ran in it: whoever was attached to them has gone."""
        sessions = children.sessions_from_outside(self.cgroup.pids(), self.pid) if not self.ended else set()
        if not sessions:
            return
        log.info("commands in a dyno have lost their clients", extra={"dyno": self.record.name, "count": len(sessions)})
        for number, seconds in ((SIGHUP, HANGUP_SECONDS), (SIGKILL, 0)):
            for pid in children.members(sessions, self.cgroup.pids()):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            await asyncio.sleep(seconds)

    async def update(self, limits: Limits) -> None:
        """Change its limits while it runs (the size of its file system stays)."""
        await self._driver.host.in_thread(self.cgroup.update, limits)

    def listeners(self) -> list[Listener]:
        """Its listening TCP sockets."""
        return listeners(self.pid)

    def stats(self) -> Stats:
        """What it uses now."""
        group = self.cgroup
        return Stats(group.memory(), self._disk(), group.cpu(), group.tasks(), group.ooms())

    def _disk(self) -> int:
        try:
            figures = os.statvfs(self.root)
        except OSError:
            return 0
        return 0 if figures.f_flag & os.ST_RDONLY else (figures.f_blocks - figures.f_bfree) * figures.f_frsize

    async def remove(self) -> None:
        """End it if it still runs, and take everything away that was made for it; idempotent."""
        if self._removing is None:
            self._removing = asyncio.get_running_loop().create_task(self._remove())
        await asyncio.shield(self._removing)

    async def _remove(self) -> None:
        if not self.ended:
            await self.signal(SIGKILL, everyone=True)
        await self.wait()
        await self._driver.take_away(self)

    def let_go(self) -> None:
        """Forget it without ending it: descriptors are closed, nothing else changes."""
        if self._process is not None:
            self._process.forget()
        self._exit.cancel()
        if self._seeing_off is not None:
            self._seeing_off.cancel()  # the next runtime process goes on with that
        if self._oom_fd is not None:
            asyncio.get_running_loop().remove_reader(self._oom_fd)
        for fd in (self.root_fd, self.upper_fd, *self.fifos, self.terminal_fd, self._oom_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.root_fd = self.upper_fd = -1
        self.fifos, self.terminal_fd, self._oom_fd = [], None, None


class ExecutedCommand(RunningDyno):
    """A further command in a dyno."""

    def __init__(self, dyno: ContainerDyno, process: Process, terminal_fd: int | None) -> None:
        self._dyno, self._process, self.terminal_fd = dyno, process, terminal_fd
        self.spec_id, self.slot, self.address, self.pid = dyno.spec_id, dyno.slot, dyno.address, process.pid

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        return Exit(await self._process.wait())

    async def signal(self, number: int, everyone: bool = False) -> None:
        """Send it a signal (``everyone``: to its process group as well)."""
        if everyone and not self._process.ended:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpgid(self.pid), number)
        self._process.send(number)

    async def resize_terminal(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        if self.terminal_fd is not None:
            _resize(self.terminal_fd, rows, columns)

    async def exec(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        terminal: tuple[int, int] | None = None,
        stdio: tuple[int, int, int] | None = None,
    ) -> ExecutedCommand:
        """Run yet another command in the dyno."""
        return await self._dyno.exec(command, env, terminal=terminal, stdio=stdio)

    async def update(self, limits: Limits) -> None:
        """The dyno's limits."""
        await self._dyno.update(limits)

    def listeners(self) -> list[Listener]:
        """The dyno's."""
        return self._dyno.listeners()

    def stats(self) -> Stats:
        """The dyno's."""
        return self._dyno.stats()

    async def remove(self) -> None:
        """End it; the dyno goes on."""
        await self.signal(SIGKILL)
        await self._process.wait()
        self._dyno._driver.host.forget(self.pid)
        if self.terminal_fd is not None:
            os.close(self.terminal_fd)
            self.terminal_fd = None


class ContainerDriver(Driver):
    """See :class:`runtime.driver.Driver`.

    Args:
        host: where its dynos run.
        oci_runtime: the name of the OCI runtime to use; the first that works by default.
    """

    isolation = "container"

    def __init__(self, host: Host, *, oci_runtime: str | None = None) -> None:
        self.host = host
        self.running: dict[str, ContainerDyno] = {}
        self._wanted_runtime = oci_runtime
        self._open = False

    # -- opening ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Choose the OCI runtime, on an open host; idempotent. See :class:`runtime.driver.Driver`.

        Raises:
            DavitError: none works here; the sentence says what to do.
        """
        if not self._open:
            await self.host.in_thread(self._prepare_oci)
            self._open = True

    def _prepare_oci(self) -> None:
        states, trial = self.host.instance.directory / "crun", self.host.work / "probe"
        states.mkdir(mode=0o700, exist_ok=True)
        states.chmod(0o700)
        self.oci: OciRuntime = choose(states, trial, self.host.instance.cgroup, self._wanted_runtime)
        alive = self.host.alive()
        for state in self.oci.root.iterdir():
            if state.name not in alive:
                shutil.rmtree(state, ignore_errors=True)

    # -- starting --------------------------------------------------------------------------------------------------

    async def start(self, spec: DynoSpec) -> ContainerDyno:
        """Start a dyno; see :class:`runtime.driver.Driver`.

        Raises:
            StartFailed: the container could not be started; nothing is left behind.
        """
        if not _ID.fullmatch(spec.id) or not _ID.fullmatch(spec.app_id):
            raise StartFailed(f"“{spec.id}” or “{spec.app_id}” cannot be a dyno's or app's identifier.")
        return await self.host.bring_up(lambda stdio: self._start(replace(spec, stdio=stdio)), spec.stdio)

    async def _start(self, spec: DynoSpec) -> ContainerDyno:
        self.host.keep(self.host.in_thread(cgroups.hasten))
        slot = await self.host.pool.take(spec.limits.disk)
        prepared = self._plan(spec, slot)
        try:
            await self.host.in_thread(self._prepare, prepared)
            await self._run_container(prepared)
            dyno = self._running(prepared)
        except BaseException as error:
            await self._undo(prepared)
            if isinstance(error, OSError):
                raise StartFailed(f"The dyno {spec.name} could not be started: {error.strerror or error}.") from error
            raise
        dyno.tidied = self.host.keep(self.host.in_thread(self._tidy, prepared))
        return dyno

    def _plan(self, spec: DynoSpec, slot: Slot) -> _Prepared:
        cgroup = f"{self.host.instance.cgroup}/{spec.app_id}/{spec.id}"
        fifos = spec.terminal is None and spec.stdio is None
        record = Record(
            spec.id, spec.app_id, spec.name, slot.number, cgroup, boot_id(), network=spec.network, fifos=fifos,
            isolation=self.isolation, allowed=spec.allowed,
        )  # fmt: skip
        return _Prepared(spec, slot, DynoDirectory(self.host.dynos / spec.id), self.host.work / "dynos" / spec.id, record)

    def _prepare(self, plan: _Prepared) -> None:
        """Files, mounts, configuration."""
        plan.directory.create(plan.record)
        self.host.admit(plan.record)
        plan.work.mkdir(mode=0o711)
        self._mount_root(plan)
        binds = self._bind_sources(plan)
        self._open_stdio(plan)
        self._write_bundle(plan, binds)

    def _mount_root(self, plan: _Prepared) -> None:
        spec, slot = plan.spec, plan.slot
        lower = []
        for name, image in (("slug", spec.slug), ("stack", spec.stack)):
            if image is not None:
                source = self.host.images.use(image)
                plan.images.append(source)
                layer = self._point(plan, name)
                mounts.idmapped(source, layer, slot.userns)
                lower.append(layer)
        upper, work = slot.scratch / "upper", slot.scratch / "work"
        root = self._point(plan, "rootfs")
        if spec.readonly:
            if len(lower) == 1:
                mounts.idmapped(plan.images[0], root, slot.userns)
            else:
                mounts.overlay_readonly(root, lower)
            return
        if spec.slug is None:
            (upper / "app").mkdir(mode=0o755)
            os.chown(upper / "app", slot.uid_base + oci.USER, slot.uid_base + oci.USER)
        mounts.overlay(root, lower, upper, work)
        plan.upper_fd = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _point(self, plan: _Prepared, name: str) -> Path:
        point = plan.work / name
        point.mkdir(mode=0o755)
        plan.mounted.append(point)
        return point

    def _bind_sources(self, plan: _Prepared) -> list[oci.Mounted]:
        spec = plan.spec
        hosts = plan.work / "hosts"
        try:
            known = Path("/etc/hosts").read_text()
        except OSError:
            known = ""
        hosts.write_text(oci.hosts_file(known, spec.name, plan.slot.address if spec.network else None))
        hosts.chmod(0o644)
        binds = [
            oci.Mounted(str(self.oci.init), oci.INIT),
            oci.Mounted(str(self.host.resolv_conf), "/etc/resolv.conf", executable=False),
            oci.Mounted(str(hosts), "/etc/hosts", executable=False),
        ]
        if _CERTIFICATES.exists():
            binds.append(oci.Mounted(os.path.realpath(_CERTIFICATES), str(_CERTIFICATES), executable=False))
        for number, bind in enumerate(spec.binds):
            binds.append(oci.Mounted(str(self._shifted(plan, number, bind)), bind.target, bind.writable))
        return binds

    def _shifted(self, plan: _Prepared, number: int, bind: Bind) -> Path:
        """``bind``'s source with its owner shown as the dyno's user."""
        facts = bind.source.stat()
        user = plan.slot.uid_base + oci.USER
        target = plan.work / f"bind{number}"
        if bind.source.is_dir():
            target.mkdir()
        else:
            target.touch()
        plan.mounted.append(target)
        namespace = userns.mapped(f"{facts.st_uid} {user} 1", f"{facts.st_gid} {user} 1")
        try:
            mounts.idmapped(bind.source, target, namespace, readonly=not bind.writable)
        finally:
            os.close(namespace)
        return target

    def _open_stdio(self, plan: _Prepared) -> None:
        if plan.record.fifos:
            plan.fifos = list(plan.directory.make_fifos(plan.slot.uid_base + oci.USER))
            plan.stdio = (self.host.null(), plan.fifos[0], plan.fifos[1])
        elif plan.spec.stdio is not None:
            plan.stdio = plan.spec.stdio
        else:
            plan.stdio = (self.host.null(), self.host.null(), self.host.null())
            plan.console = _console(plan.work / "console")

    def _write_bundle(self, plan: _Prepared, binds: Sequence[oci.Mounted]) -> None:
        spec = plan.spec
        config = oci.compose(
            oci.Container(
                rootfs=str(plan.work / "rootfs"),
                hostname=spec.name,
                command=spec.command,
                env=spec.env,
                limits=spec.limits,
                uid_base=plan.slot.uid_base,
                cgroup=plan.record.cgroup,
                users=self.oci.users(plan.slot.userns),
                network=f"/proc/{os.getpid()}/fd/{plan.slot.netns}" if spec.network else None,
                binds=binds,
                terminal=spec.terminal,
                readonly=spec.readonly,
                features=self.oci.features,
            )
        )
        bundle = plan.work / "bundle"
        bundle.mkdir(mode=0o700)
        (bundle / "config.json").write_text(json.dumps(config))

    async def _run_container(self, plan: _Prepared) -> None:
        assert plan.stdio is not None
        work, console = plan.work, plan.work / "console" if plan.console is not None else None
        argv = self.oci.run_argv(plan.spec.id, work / "bundle", plan.directory.pid_file, console, work / "log")
        status = await self._run_program(argv, plan.stdio)
        if status != 0:
            raise StartFailed(f"The dyno {plan.spec.name} could not be started: {self.oci.reason(plan.work / 'log')}")

    async def _run_program(self, argv: Sequence[str], stdio: Sequence[int]) -> int | None:
        own: list[int] = []
        try:
            for fd in stdio:
                own.append(self.host.null() if mounts.is_null(fd) else os.dup(fd))
            pid = await self.host.in_thread(self.host.spawn, argv, own, self.oci.environment, self.oci.program)
        finally:
            for fd in own:
                os.close(fd)
        try:
            return await Process(pid).wait()
        finally:
            self.host.forget(pid)

    def _running(self, plan: _Prepared) -> ContainerDyno:
        pid = int(plan.directory.pid_file.read_text())
        self.host.watch(pid)
        plan.record = Record(**{**vars(plan.record), "pid": pid, "started": children.start_time(pid)})
        dyno = ContainerDyno(self, plan.record, Process(pid))
        if plan.console is not None:
            dyno.terminal_fd = _receive_terminal(plan.console)
            _resize(dyno.terminal_fd, *(plan.spec.terminal or (24, 80)))
        plan.root_fd = mounts.detached(plan.work / "rootfs")
        dyno.root_fd, dyno.upper_fd = plan.root_fd, plan.upper_fd
        dyno.images, dyno.fifos = plan.images, plan.fifos
        self.running[plan.spec.id] = dyno
        return dyno

    def _tidy(self, plan: _Prepared) -> None:
        """After the start, off its path: the dyno keeps what it needs, and no secret stays in a file."""
        with suppress(FileNotFoundError):
            plan.directory.write(plan.record)
        self.oci.scrub(plan.spec.id)
        self.host.reap()
        self._close_plan(plan)

    def _close_plan(self, plan: _Prepared) -> None:
        for point in reversed(plan.mounted):
            mounts.unmount(point)
        shutil.rmtree(plan.work, ignore_errors=True)
        plan.slot.close()
        if plan.console is not None:
            plan.console.close()
        if plan.stdio is not None and plan.spec.stdio is None:
            for fd in set(plan.stdio) - set(plan.fifos):
                os.close(fd)

    async def _undo(self, plan: _Prepared) -> None:
        def undo() -> None:
            group = cgroups.Cgroup(plan.record.cgroup)
            group.kill()
            for fd in (plan.root_fd, plan.upper_fd, *plan.fifos):
                if fd >= 0:
                    os.close(fd)
            self._close_plan(plan)
            group.remove()
            self.oci.forget(plan.spec.id)
            for point in plan.images:
                self.host.images.done(point)
            plan.directory.remove()

        await self.host.in_thread(undo)
        self.host.pool.free(plan.slot.number)

    async def execute(
        self,
        dyno: ContainerDyno,
        command: Sequence[str],
        env: Mapping[str, str],
        terminal: tuple[int, int] | None,
        stdio: tuple[int, int, int] | None,
    ) -> ExecutedCommand:
        """Run a further command in ``dyno``: see :meth:`ContainerDyno.exec`."""
        if dyno.tidied is not None:
            await asyncio.shield(dyno.tidied)
        rootfs = self.host.work / "dynos" / dyno.spec_id / "rootfs"
        rootfs.mkdir(parents=True, exist_ok=True)  # runc's `exec` begins there, though it has nothing to do there
        work = self.host.work / f"exec-{os.urandom(8).hex()}"
        work.mkdir(mode=0o700)
        console = _console(work / "console") if terminal is not None else None
        null = self.host.null()
        try:
            (work / "process.json").write_text(json.dumps(oci.process(command, env, terminal, self.oci.features)))
            argv = self.oci.exec_argv(dyno.spec_id, work, console is not None)
            status = await self._run_program(argv, stdio if stdio is not None and console is None else (null, null, null))
            if status != 0:
                reason = self.oci.reason(work / "log")
                if not self.oci.is_crun and "setns" in reason:
                    raise Unsupported(_RUNC)
                raise StartFailed(f"The command could not be started in {dyno.record.name}: {reason}")
            pid = int((work / "pid").read_text())
            self.host.watch(pid)
            master = _receive_terminal(console) if console is not None else None
            if master is not None and terminal is not None:
                _resize(master, *terminal)
            return ExecutedCommand(dyno, Process(pid), master)
        finally:
            os.close(null)
            if console is not None:
                console.close()
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(rootfs.parent, ignore_errors=True)

    # -- ending ----------------------------------------------------------------------------------------------------

    async def take_away(self, dyno: ContainerDyno) -> None:
        """Remove everything that was made for ``dyno``, which has ended."""

        held, dyno.root_fd, dyno.upper_fd = (dyno.root_fd, dyno.upper_fd), -1, -1  # `let_go` must not close them again

        def away() -> None:
            for fd in held:
                if fd >= 0:
                    os.close(fd)
            if not dyno.cgroup.remove():
                log.warning("a dyno's cgroup could not be removed yet", extra={"cgroup": dyno.record.cgroup})
            self.oci.forget(dyno.spec_id)
            for point in dyno.images:
                self.host.images.done(point)

        await self.host.in_thread(away)
        if dyno.terminal_fd is not None:
            os.close(dyno.terminal_fd)
            dyno.terminal_fd = None
        self.host.forget(dyno.pid)
        self.running.pop(dyno.spec_id, None)
        self.host.pool.free(dyno.slot)
        self.host.leave_to_logs(DynoDirectory(self.host.dynos / dyno.spec_id), dyno.record.fifos, dyno.fifos)
        dyno.fifos = []

    # -- finding again, closing ------------------------------------------------------------------------------------

    async def adopt(self) -> list[ContainerDyno]:
        """The dynos that an earlier runtime process started; see :class:`runtime.driver.Driver`."""
        adopted = []
        for record, alive in self.host.claim(self.isolation):
            process = None
            if alive and record.pid is not None:
                try:
                    process = Process(record.pid)
                except ProcessLookupError:
                    process = None
            dyno = ContainerDyno(self, record, process)
            if record.fifos:
                dyno.fifos = DynoDirectory(self.host.dynos / record.id).open_fifos()
            self.running[record.id] = dyno
            adopted.append(dyno)
            dyno.go_on_ending()
            self.host.keep(dyno.hang_up_commands())
        return adopted

    async def close(self, stop_dynos: bool) -> None:
        """Let go of everything; see :class:`runtime.driver.Driver`."""
        if stop_dynos:
            await self.adopt()
            await asyncio.gather(*(dyno.remove() for dyno in list(self.running.values())), return_exceptions=True)
        for dyno in self.running.values():
            dyno.let_go()
        if self._open:
            self.oci.close()
        self._open = False


def _console(path: Path) -> socket.socket:
    """Where the OCI runtime sends the terminal's descriptor before the command begins."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    listener.listen(1)
    listener.settimeout(5)
    return listener


def _receive_terminal(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    if not fds:
        raise StartFailed("The container's terminal did not arrive.")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _resize(terminal: int, rows: int, columns: int) -> None:
    with suppress(OSError):
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))
