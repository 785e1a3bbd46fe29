"""This host, as all drivers share it: the bridge and its firewall, the numbered places, cgroups, mounted images, and the
directories in which dynos are found again.

There is one :class:`Host` per instance, whatever isolations its dynos have: a slot's number decides address and uid range,
so two drivers must never give the same one away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from foundation.errors import DavitError
from foundation.settings import Settings
from runtime import cgroups, children, conntrack, firewall, mounts, passage
from runtime.driver import RunningDyno
from runtime.dynodir import DynoDirectory, Record, boot_id
from runtime.images import Images, Mounter
from runtime.instance import Instance
from runtime.network import Network
from runtime.slots import Pool

log = logging.getLogger("runtime")
_T = TypeVar("_T")
_Dyno = TypeVar("_Dyno", bound="RunningDyno")
Stdio = tuple[int, int, int]
"""What becomes standard input, output and error."""

WARM_DISK = 1 << 30
_TICK = 5.0
_PASSAGE_SECONDS = 30.0
_LOGS_PATIENCE = 600 / _TICK  # ticks that output waits for a `logs` process that is not there


class Host:
    """What drivers stand on.

    Args:
        settings: DAVIT_HOME and the router's addresses.
        instance: a claimed instance; :meth:`close` lets it go.
        mount_image: mounts a stack or slug image at a directory; :func:`slugs.image.mount` by default.
        warm: slots kept ready for the next containers.
        environ: the host's environment, for its proxies.

    Attributes:
        dynos: ``run/dynos``: one directory per dyno, see :mod:`runtime.dynodir`.
        work: this process's own tmpfs, in its private mount namespace; drivers keep what may die with the process there.
        kernels: versions of virtual machines' kernel from which this process starts machines.
        pool: the slots: :meth:`~runtime.slots.Pool.take` for one with namespaces and a writable layer,
            :meth:`~runtime.slots.Pool.reserve` for the mere number.
    """

    pool: Pool

    def __init__(
        self,
        settings: Settings,
        instance: Instance,
        *,
        mount_image: Mounter | None = None,
        warm: int = 4,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.settings, self.instance = settings, instance
        self.dynos = settings.run / "dynos"
        self.work = instance.directory / "work"
        self.network = Network(instance)
        self.images = Images(self.work / "images", mount_image, mounts.unmount)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.kernels: set[str] = set()
        self._environ = os.environ if environ is None else environ
        self._warm = warm
        self._threads = ThreadPoolExecutor(4, "driver")
        self._watched: set[int] = set()
        self._reaping = threading.Lock()
        self._orphans: set[int] = set()
        self._emptying: dict[Path, tuple[list[int], float]] = {}
        self._policy: firewall.Policy | None = None
        self._admitted: set[int] = set()
        self._ruling = threading.Lock()
        self._names = firewall.Names()
        self._passed = 0.0
        self._remembers = False
        self._surveyed: list[tuple[Record, bool]] = []
        self._claimed: set[str] = set()
        self._open = False

    # -- opening ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Prepare the host and look what earlier runtime processes left on it; idempotent.

        What belongs to no living dyno is removed: cgroups with whatever runs in them, cables.

        Raises:
            DavitError: the kernel, the network or the firewall does not allow it; the sentence says what to do.
        """
        if self._open:
            return
        mounts.isolate()
        children.become_subreaper()
        _raise_descriptor_limit()
        await self.in_thread(self._prepare)
        await self.in_thread(self._end_half_starts)
        self._surveyed, newest = await self.in_thread(self._survey)
        for slot in self._admitted - {record.slot for record, _ in self._surveyed}:
            await self._left(slot)
        await self.in_thread(self._sweep, self.alive(), {record.slot for record, alive in self._surveyed if alive})
        self.pool = Pool(self.instance, self.network, self.settings.run, self.work / "slots", self._warm, WARM_DISK, self._left)
        # those that have ended keep their number as well: it is given back when they are taken away
        await self.pool.open({record.slot for record, _ in self._surveyed}, newest)
        self.keep(self._maintain())
        self._open = True

    def _prepare(self) -> None:
        for path in (self.settings.run, self.dynos):
            path.mkdir(parents=True, exist_ok=True)
        owner = self.settings.home.stat()
        for path in (self.settings.run, self.dynos):
            os.chown(path, owner.st_uid, owner.st_gid)
        self.instance.directory.mkdir(parents=True, exist_ok=True)
        self.instance.directory.chmod(0o711)  # containers' binds are looked up by their own, unprivileged root
        for name in ("etc", "work"):
            (self.instance.directory / name).mkdir(exist_ok=True)
            (self.instance.directory / name).chmod(0o711)
        mounts.tmpfs(self.work, "mode=0711")
        for name in ("images", "slots", "dynos"):
            (self.work / name).mkdir(mode=0o711)
        (self.work / "devices").mkdir(mode=0o700)
        mounts.mount("tmpfs", self.work / "devices", "tmpfs", mounts.MS_NOSUID | mounts.MS_NOEXEC, "mode=0700")
        cgroups.prepare(self.instance.cgroup)
        self.network.open()
        self._admitted = self._slots_of_dynos()
        self._apply_policy()

    def _apply_policy(self) -> None:
        """Firewall and resolv.conf as the host's networks, resolvers and proxies are now."""
        policy = firewall.policy(self.settings, self._environ, self.network.local_networks(), self._names)
        if self._policy is None or time.monotonic() - self._passed > _PASSAGE_SECONDS:
            passage.open(self.instance)  # again and again: a reload of the host's firewall forgets it
            self._passed = time.monotonic()
        if policy == self._policy:
            return
        try:
            host = Path("/etc/resolv.conf").read_text()
        except OSError:
            host = ""
        # written in place: live dynos have this very file bound
        self.resolv_conf.write_text(firewall.resolv_conf(host, policy.resolvers))
        self.resolv_conf.chmod(0o644)
        if not policy.resolvers:
            log.warning("no name server that dynos could reach is known; see /etc/resolv.conf")
        with self._ruling:  # who finds in between that the table is to be made anew is not overruled
            firewall.apply(self.instance, policy, self._admitted)
            self._policy = policy

    @property
    def names_since(self) -> int:
        """A number that is another one when the dynos' resolv.conf has been written anew."""
        try:
            return self.resolv_conf.stat().st_mtime_ns
        except OSError:
            return 0

    def _slots_of_dynos(self) -> set[int]:
        """The slots of the apps' dynos that earlier runtime processes started: they must not be cut off for a moment."""
        boot = boot_id()
        found = (DynoDirectory(path).read() for path in self.dynos.iterdir() if not (path / "ended").exists())
        return {record.slot for record in found if record and record.allowed and record.network and record.boot == boot}

    def admit(self, record: Record) -> None:
        """Before an app's dyno starts: let it reach what DAVIT_DYNOS_ALLOW names, until its slot is given back; blocking.

        Raises:
            FirewallFailed: it cannot be let.
        """
        if not (record.allowed and record.network):
            return
        with self._ruling:
            self._admitted.add(record.slot)
            if self._policy is not None and self._policy.allowed:
                firewall.admit(self.instance, record.slot)

    async def _left(self, slot: int) -> None:
        if slot in self._admitted:
            await self.in_thread(self._expel, slot)
        await self.in_thread(self._forget_connections, conntrack.forget, self.instance.address(slot))

    def _forget_connections(self, forget: Callable[..., int], *of: Any) -> None:
        """Nothing that an address had open counts against its next dyno, or leads to it."""
        try:
            forget(*of)
        except OSError as error:
            if not self._remembers:
                log.warning("connections of dynos that have ended are remembered by the kernel until they expire: %s", error)
            self._remembers = True

    def _expel(self, slot: int) -> None:
        with self._ruling:
            self._admitted.discard(slot)
            if self._policy is None or not self._policy.allowed:
                return
            try:
                firewall.expel(self.instance, slot)
            except firewall.FirewallFailed as error:
                log.warning("maintenance failed: %s", error)
                self._policy = None  # the whole table anew, at the next look

    @property
    def resolv_conf(self) -> Path:
        """The dynos' resolv.conf, on the host's file system so that it outlives this process."""
        return self.instance.directory / "etc" / "resolv.conf"

    def _end_half_starts(self) -> None:
        """End the OCI runtime's programs that an earlier runtime process left at work: what they start, nobody would know."""
        mark = f"\0--root\0{self.instance.directory}/crun\0".encode()
        if not children.kill_all(lambda command: mark in command):
            log.warning("an OCI runtime of an earlier runtime process does not end")

    def kernels_in_use(self) -> set[str]:
        """The versions from which machines are started, and those with which machines that are there were; blocking."""
        records = (DynoDirectory(path).read() for path in self.dynos.iterdir())
        return self.kernels | {str(record.facts["kernel"]) for record in records if record and record.facts.get("kernel")}

    def _survey(self) -> tuple[list[tuple[Record, bool]], int]:
        """What earlier runtime processes left in run/dynos: records, whether the dyno lives; and the highest slot of all."""
        found, newest = [], 0
        boot = boot_id()
        for path in self.dynos.iterdir():
            directory = DynoDirectory(path)
            record = directory.read()
            newest = max(newest, record.slot if record else 0)
            if record is None or record.boot != boot or (path / "ended").exists():
                self.leave_to_logs(directory, record is not None and record.boot == boot)
                continue
            found.append((record, lives(record)))
        return found, newest

    def _sweep(self, alive: set[str], used: set[int]) -> None:
        for top in cgroups.layout().directories(self.instance.cgroup):
            for app in top.iterdir():
                for dyno in app.iterdir() if app.is_dir() else ():
                    if dyno.is_dir() and dyno.name not in alive:
                        group = cgroups.Cgroup(f"{self.instance.cgroup}/{app.name}/{dyno.name}")
                        group.kill()
                        group.remove()
        for slot in self.network.cables() - used:
            self.network.disconnect(slot)
        self.network.keep_neighbours(used)
        held = [self.instance.gateway, *map(self.instance.address, used)]
        self._forget_connections(conntrack.forget_strays, self.instance.network, held)

    # -- dynos of earlier processes ---------------------------------------------------------------------------------

    def alive(self) -> set[str]:
        """Ids of the dynos that earlier runtime processes started and that lived when this one came, taken over or not: a driver
        that is opened later than its dynos were taken over sweeps none of them away."""
        return {record.id for record, alive in self._surveyed if alive} | self._claimed

    def isolations(self) -> set[str]:
        """The isolations of the dynos that :meth:`claim` would give."""
        return {record.isolation for record, _ in self._surveyed}

    def claim(self, isolation: str) -> list[tuple[Record, bool]]:
        """The dynos of this isolation that earlier processes started, and whether each still lives; given away once."""
        mine = [found for found in self._surveyed if found[0].isolation == isolation]
        self._claimed |= {record.id for record, alive in mine if alive}
        self._surveyed = [found for found in self._surveyed if found[0].isolation != isolation]
        return mine

    async def end_unclaimed(self, isolation: str) -> None:
        """End the dynos of an isolation whose driver cannot be had any more."""

        def end(group: cgroups.Cgroup) -> None:
            group.kill()
            group.remove()

        for record, _ in self.claim(isolation):
            await self.in_thread(end, cgroups.Cgroup(record.cgroup))
            self.pool.free(record.slot)
            self.leave_to_logs(DynoDirectory(self.dynos / record.id), record.fifos)

    # -- last lines ------------------------------------------------------------------------------------------------

    def leave_to_logs(self, directory: DynoDirectory, fifos: bool, held: Sequence[int] = ()) -> None:
        """An ended dyno's directory goes, as soon as `logs` has read what waits in its FIFOs.

        The lines exist only while somebody has the FIFOs open.

        Args:
            fifos: whether it has any; without, the directory goes at once.
            held: descriptors of them, which are closed in the end.
        """
        if not fifos or directory.read_out:
            for fd in held:
                os.close(fd)
            directory.remove()
            return
        directory.end()
        self._emptying[directory.path] = (list(held) or directory.open_fifos(), 0)

    def clear_read_out(self) -> None:
        """Remove the directories whose lines have been read."""
        for path, (held, ticks) in list(self._emptying.items()):
            directory = DynoDirectory(path)
            if directory.read_out or ticks > _LOGS_PATIENCE:
                self._close_directory(path)
            else:
                self._emptying[path] = (held, ticks + 1)

    def _close_directory(self, path: Path) -> None:
        for fd in self._emptying.pop(path)[0]:
            os.close(fd)
        DynoDirectory(path).remove()

    # -- programs --------------------------------------------------------------------------------------------------

    def null(self) -> int:
        """A null device, but not the host's /dev/null: OCI runtimes give a container's standard streams to the container's
        user (crun even those that are /dev/null), who could then take the device away from everybody on the host."""
        return mounts.null_device(self.work / "devices")

    def spawn(self, argv: Sequence[str], stdio: Sequence[int], env: Mapping[str, str], program: str | None = None) -> int:
        """Start a program (see :func:`runtime.children.spawn`); no reaper comes between its start and its being watched."""
        with self._reaping:
            pid = children.spawn(argv, stdio, env, program)
            self._watched.add(pid)
        return pid

    def watch(self, pid: int) -> None:
        """``pid`` is waited for by a driver: it must not be reaped as an orphan."""
        self._watched.add(pid)

    def forget(self, pid: int) -> None:
        """``pid`` is watched no longer."""
        self._watched.discard(pid)

    def reap(self) -> None:
        """Reap what OCI runtimes leave behind."""
        with self._reaping:
            children.reap_remains(self._watched)

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                self.clear_read_out()
                self._orphans = children.reap_orphans(self._watched, self._orphans)
                self.reap()
                await self.in_thread(self._apply_policy)
            except Exception as error:  # netlink's errors, too: whatever it was, the next round comes
                log.warning("maintenance failed: %s", error, exc_info=not isinstance(error, DavitError | OSError))

    # -- closing ---------------------------------------------------------------------------------------------------

    async def close(self, remove: bool) -> None:
        """Let go of everything, after the drivers did; with ``remove`` take bridge, firewall and cgroups away, too."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._open:
            await self.pool.close()
        for path in list(self._emptying) if remove else ():
            self._close_directory(path)
        await self.in_thread(self._close, remove)
        self._threads.shutdown()
        self._open = False

    def _close(self, remove: bool) -> None:
        self.images.close()
        mounts.unmount(self.work)
        if remove:
            passage.close(self.instance)
            firewall.remove(self.instance)
            self.network.remove()
            cgroups.remove_tree(self.instance.cgroup)
            shutil.rmtree(self.instance.directory, ignore_errors=True)
        self.network.close()
        if remove:
            self.instance.release()
        else:
            self.instance.let_go()

    # -- threads and tasks -----------------------------------------------------------------------------------------

    async def in_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        """Run blocking work beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def keep(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """A task that lives until it is done or the host is closed."""
        task: asyncio.Task[_T] = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def bring_up(self, start: Callable[[Stdio | None], Coroutine[Any, Any, _Dyno]], stdio: Stdio | None) -> _Dyno:
        """Start a dyno, or a command in one. A caller that gives up must not leave half of it: the start goes on to its end,
        and then it is removed.

        Args:
            start: does it, with copies of ``stdio``: who gives up closes its own at once, and their numbers are another's then.
        """
        own: list[int] = []
        try:
            own += map(os.dup, stdio or ())
            started = self.keep(start((own[0], own[1], own[2]) if own else None))
        except BaseException:
            _close(own)
            raise
        started.add_done_callback(lambda _: _close(own))
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:
            started.add_done_callback(self._remove_unwanted)
            raise

    def _remove_unwanted(self, started: asyncio.Task[_Dyno]) -> None:
        if not started.cancelled() and started.exception() is None:
            self.keep(started.result().remove())


def lives(record: Record) -> bool:
    """Whether a dyno that an earlier runtime process wrote down lives, in whichever process."""
    group = cgroups.Cgroup(record.cgroup)
    return any(group.holds(pid) and started in (None, children.start_time(pid)) for pid, started in record.processes)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
