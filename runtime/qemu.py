"""QEMU, as both kinds of virtual machines use it: where it is, what their command lines have in common, how it is started and
what is left of it taken away."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import confine, qmp
from runtime.cgroups import Cgroup
from runtime.driver import Limits, Unsupported

if TYPE_CHECKING:
    from runtime.host import Host

log = logging.getLogger("runtime")

PROGRAM = "qemu-system-x86_64"
PLACES = "/usr/bin:/usr/local/bin:/usr/sbin"
"""Where it is looked for, whatever PATH who looks was given: it runs where there is nothing but /usr."""
OVERHEAD = 320 << 20
"""Bytes that QEMU itself takes and what it translates, where a guest's kernel is small."""
PRIVATE = "dump-guest-core=off,mem-merge=off"
"""Words of -M: a guest's memory is in no core file, and shares no page with another's by which one could tell what both have."""
_THREADS = 64
_SHARE = 1024  # Limits.cpu_shares of one standard share


@dataclass(frozen=True)
class Need:
    """Who needs QEMU.

    Attributes:
        who: the machines, at the beginning of a sentence.
        oldest: the version from which on it can be used.
        remedy: how it is installed.
    """

    who: str
    oldest: tuple[int, int]
    remedy: str = "apt-get install qemu-system-x86"


def find(need: Need, name: str = PROGRAM) -> tuple[str, tuple[int, ...]]:
    """QEMU's path and version.

    Raises:
        Unsupported: it is missing or too old; the sentence says what to do.
    """
    path = shutil.which(name, path=PLACES)
    if path is None:
        raise Unsupported(f"{need.who} need QEMU, which is not installed on this host: {need.remedy}.")
    told = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", check=False).stdout
    return path, parse_version(need, told)


def parse_version(need: Need, told: str) -> tuple[int, ...]:
    """The version that ``qemu --version`` tells.

    Raises:
        Unsupported: it is too old, or this is no QEMU.
    """
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", told)
    if found is None:
        raise Unsupported(f"The program {PROGRAM} on this host is no QEMU; apt-get install --reinstall qemu-system-x86.")
    version = tuple(int(part or 0) for part in found.groups())
    if version < need.oldest:
        raise Unsupported(f"{need.who} need QEMU {dotted(need.oldest)} or newer; this host has {dotted(version)}.")
    return version


def dotted(version: tuple[int, ...]) -> str:
    """``7.2.0``"""
    return ".".join(map(str, version))


def processors(limits: Limits, cores: int) -> int:
    """How many processors ``limits`` are worth: one for each standard share, as many as the host has at the most."""
    most = min(cores, int(limits.cpu_quota or cores) or 1)
    return max(1, min(limits.cpu_shares // _SHARE, most))


def threads() -> int:
    """How many threads QEMU may have on this host."""
    return _THREADS + 2 * (os.cpu_count() or 1)


def file_disk(name: str, number: int, mode: str) -> list[str]:
    """The descriptor ``number`` as the block device ``name``, in the words of -blockdev.

    Args:
        mode: further words, for both of its nodes; empty for one that is written.
    """
    more = f",{mode}" if mode else ""
    return [
        "-add-fd", f"fd={number},set={number}",
        "-blockdev", f"driver=file,node-name={name}-file,filename=/dev/fdset/{number},locking=off{more}",
        "-blockdev", f"driver=raw,node-name={name},file={name}-file{more}",
    ]  # fmt: skip


def network(mac: str | None, tap: int) -> list[str]:
    """A network card with the address ``mac`` at the tap of that descriptor; None for no network."""
    if mac is None:
        return []
    # A guest that has been moved is not told to announce itself: it has the address of another place as yet, and QEMU does
    # it with that of this card; and Linux's driver waits for itself for good when its card is put down just then.
    card = f"virtio-net-pci,netdev=net,mac={mac},romfile=,guest_announce=off"
    return ["-netdev", f"tap,id=net,fd={tap},vhost=off", "-device", card]


def monitor(number: int) -> list[str]:
    """A monitor at the listening socket of that descriptor."""
    return ["-chardev", f"socket,id=monitor,fd={number},server=on,wait=off", "-mon", "chardev=monitor,mode=control"]


def start(
    host: Host, command: Sequence[str], place: Path, group: Cgroup, uid: int, *, shown: Path, kvm: bool,
    sockets: Mapping[int, Path], fds: dict[int, int], most: int,
) -> int:  # fmt: skip
    """Start a QEMU in confinement; its pid, which is watched.

    Args:
        place: the directory of this machine's; QEMU's words go into the file ``messages`` there.
        group: what it runs in, which is there and has its limits.
        uid: what it runs as.
        shown: the directory that it finds at /data.
        sockets: where it is to listen, by the number of its descriptor.
        fds: what else it gets, by number; closed here and emptied, also when it cannot be started.
        most: its descriptors are numbered below this; what is none of the above is the null device.
    """
    with ExitStack() as ours:
        table = dict(fds)
        fds.clear()
        for fd in table.values():
            ours.callback(os.close, fd)
        (place / "root").mkdir(exist_ok=True)
        table[2] = os.open(place / "messages", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        ours.callback(os.close, table[2])
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        ours.callback(os.close, null)
        for number, path in sockets.items():
            table[number] = ours.enter_context(qmp.listen(path)).fileno()
        argv = confine.argv(command, root=place / "root", uid=uid, cgroups=group.joined, shown=shown, kvm=kvm)
        return host.spawn(argv, [table.get(number, null) for number in range(most)], confine.ENVIRONMENT)


def clear(place: Path, group: Cgroup) -> None:
    """Remove what is left on the host of a machine, and end what still runs of it."""
    group.kill()
    if not group.remove():
        log.warning("a dyno's cgroup could not be removed yet", extra={"cgroup": group.path})
    shutil.rmtree(place, ignore_errors=True)


def words_of(path: Path) -> list[str]:
    """The lines that QEMU wrote into ``path``; none when it has not begun."""
    try:
        return path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return []


def prepare(directory: Path, alive: set[str]) -> None:
    """Make the directory of the machines' sockets, and remove what machines that are no more have left there."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for leftover in directory.iterdir():
        if leftover.name not in alive:
            shutil.rmtree(leftover, ignore_errors=True)
