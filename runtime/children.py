"""Processes that the runtime started, adopted, or inherited as their subreaper.

Waiting goes by pidfd: nothing polls, and nobody's child is reaped but one's own. ``waitpid(-1)`` is never called, because
it would steal the exit status from asyncio's and subprocess's children; :func:`reap_remains` and :func:`reap_orphans` say
which may be taken.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_CATCHABLE = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}

_libc = ctypes.CDLL(None, use_errno=True)
_OCI_RUNTIMES = ("crun", "runc")


def become_subreaper(wanted: bool = True) -> None:
    """Let containers, whose parent (the OCI runtime's program) ends at once, become this process's children; or no longer."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")


def status_of(wait_status: int) -> int:
    """A wait status as a shell shows it: 128 + signal for a signal."""
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def start_time(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot: with the pid it names a process for ever. None when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None


def blocks_signals(pid: int) -> bool:
    """Whether ``pid`` blocks SIGTERM now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")), 0)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


class Process:
    """A process known by its pidfd; :meth:`wait` gives its status.

    Args:
        pid: a child of this process, or (adopted) of another.

    Raises:
        ProcessLookupError: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._attempts = 0
        self._loop.add_reader(self._pidfd, self._readable)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.done()

    async def wait(self) -> int | None:
        """Its status as a shell gives it; None when the kernel does not tell (another's child, before Linux 6.15)."""
        return await asyncio.shield(self._ended)

    def send(self, number: int) -> None:
        """Send it a signal; nothing happens when it has ended."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def lives(self) -> bool:
        """Whether its pid is still its own: it has not been reaped, as the kernel knows at this moment."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        return True

    def forget(self) -> None:
        """Stop watching it; it goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _readable(self) -> None:
        known, status = self._collect()
        if not known:
            # it has ended but its parent has not reaped it yet: the kernel tells us after that
            self._loop.remove_reader(self._pidfd)
            self._attempts += 1
            self._loop.call_later(0.01, self._again)
            return
        self.forget()
        if not self._ended.done():
            self._ended.set_result(status)

    def _again(self) -> None:
        if self._pidfd >= 0:
            self._readable()

    def _collect(self) -> tuple[bool, int | None]:
        try:
            pid, wait_status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            status = exit_information(self._pidfd)
            if status is None and parent(self.pid) in _children():
                # the OCI runtime's own process between it and us: it has its end before it, and leaves us its child then
                return False, None
            return status is not None or self._attempts >= 50 or not _has_exit_information(), status
        return pid != 0, status_of(wait_status) if pid else None


def has_ended(pid: int) -> bool:
    """Whether a process of anybody's has ended with all its threads, though nobody has buried it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        looking = select.poll()
        looking.register(pidfd, select.POLLIN)
        return bool(looking.poll(0))
    finally:
        os.close(pidfd)


async def until_ended(pids: Iterable[int], seconds: float) -> None:
    """Return when all these processes, which may be anybody's, have ended, or after so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), max(0, end - loop.time()))
        except (asyncio.TimeoutError, TimeoutError):
            return
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)


def exit_information(pidfd: int) -> int | None:
    """The status of a reaped process, from its pidfd (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15)."""
    info = bytearray(struct.pack("=Q56x", _PIDFD_INFO_EXIT))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", info)
    (code,) = struct.unpack_from("=i", info, 60)
    return status_of(code) if mask & _PIDFD_INFO_EXIT else None


def _has_exit_information() -> bool:
    release = os.uname().release.split("-")[0].split(".")
    return tuple(int(part) if part.isdigit() else 0 for part in release[:2]) >= (6, 15)


def sessions_from_outside(pids: Iterable[int], init: int) -> set[int | None]:
    """The sessions of a container's processes that were not started by its ``init`` or one of its descendants.

    Args:
        pids: all of the container's processes.
        init: its process 1.
    """
    own = set(pids)
    return {_session(pid) for pid in own if pid != init and parent(pid) not in own} - {_session(init), None}


def members(sessions: set[int | None], pids: Iterable[int]) -> list[int]:
    """Those of ``pids`` that belong to one of the ``sessions``."""
    return [pid for pid in pids if _session(pid) in sessions]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def spawn(argv: Sequence[str], stdio: Sequence[int], env: Mapping[str, str], program: str | None = None) -> int:
    """Start a program in a session of its own, by vfork as posix_spawn does it; no descriptor but ``stdio`` reaches it.

    Args:
        argv: the program's path and arguments.
        stdio: what becomes descriptors 0, 1, 2 and so on.
        program: the file to execute, where it is another than the path says.

    Returns:
        its pid.
    """
    # clear of those numbers, so that no dup2 overwrites another's source
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(10, len(stdio))) for fd in stdio]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        # Python ignores SIGPIPE, and an ignored signal stays ignored across exec: an app would inherit that
        pid = os.posix_spawn(
            program or argv[0], list(argv), env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_CATCHABLE
        )
    finally:
        for fd in high:
            os.close(fd)
    return pid


def kill_all(whose: Callable[[bytes], bool], seconds: float = 5.0) -> bool:
    """SIGKILL to every process whose command line (words parted by NUL) is ``whose``; returns whether all of them ended.

    Args:
        seconds: how long their end is waited for.
    """
    end = time.monotonic() + seconds
    while found := [pid for pid in _everybody() if whose(_command(pid)) and state(pid) not in ("", "Z")]:
        if time.monotonic() > end:
            return False
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return True


def _everybody() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def state(pid: int) -> str:
    """The state of a process, as proc(5) names it (``Z``: it has ended and nobody has buried it); empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def reap_remains(known: set[int]) -> None:
    """Reap what the OCI runtime's programs left behind: crun always leaves one, the process between it and the container.

    Containers' processes are not touched.

    Args:
        known: pids that are watched elsewhere.
    """
    for pid in _children() - known:
        if _name(pid).startswith(_OCI_RUNTIMES) and not _nested(pid):
            _reap(pid)


def reap_orphans(known: set[int], earlier: set[int]) -> set[int]:
    """Reap container processes that nobody waits for, inherited as subreaper from an OCI runtime that was killed.

    A process in a nested pid namespace cannot have been started by asyncio or subprocess here; all others belong to
    whoever started them.

    Args:
        known: pids that are watched elsewhere.
        earlier: what the last call returned: only what has been nobody's for a while is reaped, because a container that
            starts just now will be watched in a moment.

    Returns:
        the unknown ones.
    """
    unknown = {pid for pid in _children() - known if _nested(pid)}
    for pid in unknown & earlier:
        _reap(pid)
    return unknown


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(word) for word in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def parent(pid: int) -> int | None:
    """The process that waits for ``pid``; None when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _nested(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        own = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    return _levels(lines) > _levels(own)


def _levels(status: list[str]) -> int:
    return next((len(line.split()) - 1 for line in status if line.startswith("NSpid:")), 1)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
