"""Control groups, versions 1 and 2 (and the hybrid of both): where they are, what they say, live limits, removal.

The OCI runtime makes a dyno's cgroup and puts it in; everything else is reading and writing small files, which is
25 times cheaper than asking the OCI runtime to do it.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from runtime.driver import Limits

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000


@dataclass(frozen=True)
class Layout:
    """Where the hierarchies are mounted.

    Attributes:
        unified: version 2's mount point when it holds the controllers; None on version 1 and hybrid hosts.
        controllers: version 1: controller or named hierarchy → mount point.
        shadow: hybrid hosts: where version 2 may be mounted. Once that mount is taken away, crun leaves plain directories there.
    """

    unified: Path | None
    controllers: Mapping[str, Path]
    shadow: Path | None = None

    def directories(self, path: str) -> list[Path]:
        """Every directory that the cgroup ``path`` (absolute) has."""
        if self.unified is not None:
            return [self.unified / path.lstrip("/")]
        return sorted({mount / path.lstrip("/") for mount in self.controllers.values()})


_V1 = frozenset("cpu cpuacct cpuset memory devices freezer blkio pids net_cls net_prio perf_event hugetlb rdma misc".split())

_JOINED = frozenset("cpu cpuacct memory freezer pids".split())


def parse_layout(mountinfo: str) -> Layout:
    """Find the hierarchies in the text of /proc/self/mountinfo."""
    unified: Path | None = None
    controllers: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point, kind = Path(left.split()[4]), right.split()[0]
        if kind == "cgroup2" and unified is None:
            unified = point
        elif kind == "cgroup":
            names = right.split()[2].split(",")
            controllers.update({n: point for n in names if n in _V1})
            for name in names:  # named hierarchies (systemd's) hold dynos as well, and must be cleaned up as well
                if name.startswith("name="):
                    controllers[name] = point
    if "memory" in controllers or "pids" in controllers:
        unified = None
    return Layout(unified, controllers)


@lru_cache(maxsize=1)
def layout() -> Layout:
    """This host's layout."""
    found = parse_layout(Path("/proc/self/mountinfo").read_text())
    shadow = _ROOT / "unified"
    return replace(found, shadow=shadow) if found.unified is None and shadow.is_dir() else found


def prepare(path: str, where: Layout | None = None) -> None:
    """Make the parent cgroup ``path`` and, on version 2, pass the controllers down to it.

    In a container with a cgroup namespace its root holds processes, and version 2 then refuses to pass controllers down
    ("no internal processes"); they are moved into a leaf first, as dockerd's own start script does.
    """
    where = where or layout()
    for directory in where.directories(path):
        directory.mkdir(parents=True, exist_ok=True)
    if where.unified is None:
        return
    try:
        _delegate(where.unified)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        leaf = where.unified / "init"
        leaf.mkdir(exist_ok=True)
        for pid in _pids(where.unified):
            _try_write(leaf / "cgroup.procs", str(pid))
        _delegate(where.unified)
    _delegate(where.unified / path.lstrip("/"))


def hasten() -> None:
    """Begin the wait that the next process to join a cgroup would have, so that it is over by then.

    Who moves a process waits for readers of a lock, an RCU grace period of about 10 ms, unless somebody else did a moment
    ago (cgroup_threadgroup_rwsem in kernel/cgroup/cgroup.c, kernel/rcu/sync.c). A process that is "moved" to where it is
    takes the lock all the same, and nothing changes. Blocks meanwhile; a host where it cannot be done is only slower.
    """
    file = _own_processes()
    if file is not None:
        _try_write(file, str(os.getpid()))


def _own_processes() -> Path | None:
    """The file that lists the processes of this one's cgroup, in any hierarchy; None where it cannot be seen.

    Looked up each time: whoever moves this process (an administrator, systemd) is not to be undone.
    """
    where = layout()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        mount = where.controllers.get(names.split(",")[0]) if names else where.unified
        file = mount / path.lstrip("/") / "cgroup.procs" if mount else None
        if file is not None and str(os.getpid()) in _read(file).split():
            return file
    return None


def _delegate(directory: Path) -> None:
    available = (directory / "cgroup.controllers").read_text().split()
    wanted = [name for name in ("cpu", "memory", "pids", "io", "cpuset") if name in available]
    enabled = (directory / "cgroup.subtree_control").read_text().split()
    missing = [f"+{name}" for name in wanted if name not in enabled]
    if missing:
        (directory / "cgroup.subtree_control").write_text(" ".join(missing))


class Cgroup:
    """One dyno's cgroup.

    Args:
        path: absolute from the hierarchies' roots.
    """

    def __init__(self, path: str, where: Layout | None = None) -> None:
        self.path = path
        self.layout = where or layout()

    def _file(self, controller: str, name: str) -> Path | None:
        if self.layout.unified is not None:
            return self.layout.unified / self.path.lstrip("/") / name
        mount = self.layout.controllers.get(controller)
        return mount / self.path.lstrip("/") / name if mount else None

    def _number(self, controller: str, name: str) -> int:
        return _first_number(_read(self._file(controller, name)))

    def _table(self, controller: str, name: str) -> dict[str, int]:
        return _table(_read(self._file(controller, name)))

    @property
    def v2(self) -> bool:
        """Whether version 2 is in force."""
        return self.layout.unified is not None

    def exists(self) -> bool:
        """Whether it is there."""
        return any(directory.is_dir() for directory in self.layout.directories(self.path))

    @property
    def joined(self) -> list[Path]:
        """The directories whose cgroup.procs a process has to write its pid to that no OCI runtime puts in."""
        if self.layout.unified is not None:
            return self.layout.directories(self.path)
        # cpuset and devices want to be set up first, and nothing of them is needed
        mounts = {mount for name, mount in self.layout.controllers.items() if name in _JOINED or name.startswith("name=")}
        return sorted(mount / self.path.lstrip("/") for mount in mounts)

    def create(self) -> None:
        """Make it, for a process that no OCI runtime puts in; no error when it is there."""
        if self.layout.unified is not None:
            app = str(Path(self.path).parent)
            for directory in self.layout.directories(app):
                directory.mkdir(exist_ok=True)
            _delegate(self.layout.unified / app.lstrip("/"))
        for directory in self.joined:
            directory.mkdir(parents=True, exist_ok=True)

    def pids(self) -> list[int]:
        """The processes in it, as the host numbers them."""
        file = self._file("pids", "cgroup.procs") or self._file("memory", "cgroup.procs")
        return [int(word) for word in _read(file).split()]

    def holds(self, pid: int) -> bool:
        """Whether ``pid`` is a living process of this cgroup: the guard against a pid that was given to another."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return False
        return any(line.split(":", 2)[2] == self.path for line in lines)

    def memory(self) -> int:
        """Bytes of memory in use, page cache left out (shared memory counts: it cannot be dropped)."""
        if self.v2:
            stat = self._table("memory", "memory.stat")
            return max(0, self._number("memory", "memory.current") - stat.get("file", 0) + stat.get("shmem", 0))
        stat = self._table("memory", "memory.stat")
        used = self._number("memory", "memory.usage_in_bytes")
        return max(0, used - stat.get("total_cache", 0) + stat.get("total_shmem", 0))

    def cpu(self) -> float:
        """CPU seconds so far."""
        if self.v2:
            return self._table("cpu", "cpu.stat").get("usage_usec", 0) / 1e6
        return self._number("cpuacct", "cpuacct.usage") / 1e9

    def tasks(self) -> int:
        """Processes and threads."""
        return self._number("pids", "pids.current")

    def ooms(self) -> int:
        """How often the kernel ended something in it for want of memory."""
        if self.v2:
            return self._table("memory", "memory.events").get("oom_kill", 0)
        return self._table("memory", "memory.oom_control").get("oom_kill", 0)

    def oom_event(self) -> int | None:
        """An eventfd that becomes readable when memory runs out (version 1; version 2 ends the whole group by itself)."""
        control, subject = self._file("memory", "cgroup.event_control"), self._file("memory", "memory.oom_control")
        if self.v2 or control is None or subject is None:
            return None
        libc_eventfd = _eventfd()
        watched = os.open(subject, os.O_RDONLY | os.O_CLOEXEC)
        try:
            control.write_text(f"{libc_eventfd} {watched}")
        except OSError:
            os.close(libc_eventfd)
            return None
        finally:
            os.close(watched)
        return libc_eventfd

    def update(self, limits: Limits) -> None:
        """Put ``limits`` in force now (disk excepted: a file system keeps its size)."""
        if self.v2:
            self._write("memory", "memory.max", limits.memory_max)
            quota = "max" if limits.cpu_quota is None else str(int(limits.cpu_quota * _PERIOD))
            self._write("cpu", "cpu.max", f"{quota} {_PERIOD}")
            self._write("cpu", "cpu.weight", weight(limits.cpu_shares))
        else:
            self._set_memory_v1(limits.memory_max)
            quota = "-1" if limits.cpu_quota is None else str(int(limits.cpu_quota * _PERIOD))
            self._write("cpu", "cpu.cfs_quota_us", quota)
            self._write("cpu", "cpu.shares", limits.cpu_shares)
        self._write("pids", "pids.max", limits.pids)

    def _set_memory_v1(self, limit: int) -> None:
        # memory ≤ memory + swap must hold at every moment, so the order depends on the direction
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if limit > self._number("memory", names[0]):
            names.reverse()
        for name in names:
            self._write("memory", name, limit)

    def _write(self, controller: str, name: str, value: object) -> None:
        file = self._file(controller, name)
        if file is not None and file.exists():
            file.write_text(str(value))

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        file = self._file("pids", "cgroup.kill")
        if self.v2 and file is not None and _try_write(file, "1"):
            return
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass

    def remove(self, seconds: float = 2.0) -> bool:
        """Remove it and its parents up to the instance's own, where those are empty.

        Returns:
            whether it is gone; the kernel refuses for a moment while its last process is being buried.
        """
        end = time.monotonic() + seconds
        while not self._removed():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        app = str(Path(self.path).parent)
        if app.count("/") > 1:
            for directory in self.layout.directories(app):
                _rmdir(directory)
        return True

    def _removed(self) -> bool:
        _clear_shadow(self.layout, self.path)
        return all([_rmdir(directory) for directory in self.layout.directories(self.path)])


def populated(path: str, where: Layout | None = None) -> bool:
    """Whether a process lives in the cgroup ``path`` or below it."""
    return any(_pids(directory) for top in (where or layout()).directories(path) for directory in _tree(top))


def _clear_shadow(where: Layout, path: str) -> None:
    if where.shadow is not None and not where.shadow.is_mount():
        shutil.rmtree(where.shadow / path.lstrip("/"), ignore_errors=True)


def remove_tree(path: str, where: Layout | None = None) -> None:
    """Remove the cgroup ``path`` and everything below it that holds no process."""
    _clear_shadow(where or layout(), path)
    for top in (where or layout()).directories(path):
        for directory in _tree(top):
            _rmdir(directory)


def kill_tree(path: str, where: Layout | None = None) -> None:
    """SIGKILL to every process in ``path`` and below."""
    for top in (where or layout()).directories(path):
        for directory in _tree(top):
            for pid in _pids(directory):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass


def weight(shares: int) -> int:
    """Version 2's cpu.weight for version 1's cpu.shares (the OCI runtimes' conversion)."""
    return 1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142


def _tree(top: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(top, topdown=False):
        yield Path(directory)


def _pids(directory: Path) -> list[int]:
    return [int(word) for word in _read(directory / "cgroup.procs").split()]


def _rmdir(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read(file: Path | None) -> str:
    try:
        return file.read_text() if file is not None else ""
    except OSError:
        return ""


def _try_write(file: Path, text: str) -> bool:
    try:
        file.write_text(text)
    except OSError:
        return False
    return True


def _first_number(text: str) -> int:
    word = text.split()[0] if text.split() else "0"
    return int(word) if word.lstrip("-").isdigit() else 0


def _table(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _eventfd() -> int:
    import ctypes

    fd: int = ctypes.CDLL(None, use_errno=True).eventfd(0, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "eventfd")
    return fd
