"""What /proc says about processes (proc(5)): who lives, who descends from whom, how much memory each takes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """A process that no other is taken for: pids are used again, a pid with its start time (clock ticks since boot) and
    the boot's id is not."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a process that lives now; None when there is none (a zombie is none)."""
        fields = _stat(pid)
        return cls(pid, int(fields[19]), boot_id()) if fields and fields[0] != "Z" else None

    def lives(self) -> bool:
        """Whether it is still there."""
        return Identity.of(self.pid) == self


def boot_id() -> str:
    """A random id that the kernel chose when it booted."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; the second may hold anything, so it is cut off."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(PROC) if entry.name.isdigit()]


def descendants(roots: Iterable[int]) -> set[int]:
    """All living children of ``roots``, their children, and so on; zombies and the roots themselves left out."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    frontier = list(roots)
    while frontier:
        for child in children.get(frontier.pop(), []):
            if child not in found:
                found.add(child)
                frontier.append(child)
    return found


def session_members(leader: int) -> set[int]:
    """The living processes of a session (setsid(2)), also after its leader has ended; the leader itself left out."""
    members = set()
    for pid in _pids():
        fields = _stat(pid)
        if fields and fields[0] != "Z" and int(fields[3]) == leader and pid != leader:
            members.add(pid)
    return members


def namespaces(pid: int | str) -> tuple[str, str] | None:
    """The names of the pid and the network namespace that a process lives in; None when it is gone."""
    try:
        return str((PROC / str(pid) / "ns/pid").readlink()), str((PROC / str(pid) / "ns/net").readlink())
    except OSError:
        return None


def command_line(pid: int) -> list[str]:
    """A process's argv; empty when it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def haproxies(home: Path) -> list[int]:
    """The HAProxy processes (master and workers) of the Davit in ``home``: they name a file of it on their command line."""
    found = []
    for pid in _pids():
        try:
            if (PROC / str(pid) / "comm").read_text().strip() != "haproxy":
                continue
        except OSError:
            continue
        if any(word.startswith(f"{home}/") for word in command_line(pid)):
            found.append(pid)
    return sorted(found)


def listen(pids: Iterable[int], port: int) -> bool:
    """Whether one of these processes listens at this TCP port, of whatever address; True where this user may not see it."""
    for pid in pids:
        try:
            held = set(_descriptors(pid))
            tables = [PROC / str(pid) / "net" / name for name in ("tcp", "tcp6")]
            lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        except PermissionError:
            return True
        except OSError:
            continue  # it has just ended
        if any(f"socket:[{words[9]}]" in held for words in lines if _listening_at(words, port)):
            return True
    return False


def _descriptors(pid: int) -> Iterator[str]:
    """What its descriptors are open on."""
    for entry in os.scandir(PROC / str(pid) / "fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            yield str(Path(entry.path).readlink())


def _listening_at(words: list[str], port: int) -> bool:
    """Whether a line of /proc/net/tcp is a listener's (state 0A) at this port."""
    return words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port


def since(pid: int) -> float | None:
    """When it started, in seconds since the epoch; None when it is gone."""
    fields = _stat(pid)
    booted = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else None


def memory(pid: int) -> int:
    """Its proportional set size in bytes: shared pages count for each sharer by its part; 0 when unknown."""
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def stop(pids: Iterable[int], patience: float) -> None:
    """End processes: SIGTERM, ``patience`` seconds to go in order, then SIGKILL; returns when all are gone."""
    watched: dict[int, int] = {}
    for pid in pids:
        try:
            watched[os.pidfd_open(pid)] = pid
        except ProcessLookupError:
            continue
    try:
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            for descriptor in watched:
                try:
                    signal.pidfd_send_signal(descriptor, number)
                except ProcessLookupError:
                    continue
            if _all_gone(watched, seconds):
                return
    finally:
        for descriptor in watched:
            os.close(descriptor)


def _all_gone(descriptors: Iterable[int], seconds: float) -> bool:
    """Wait until every pidfd is readable, which is when its process has ended (pidfd_open(2))."""
    poll = select.poll()
    left = set(descriptors)
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    while left and (remaining := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(remaining * 1000):
            poll.unregister(descriptor)
            left.discard(descriptor)
    return not left
