"""QEMU, as both kinds of virtual machines use it: where it is, and what their command lines have in common (pure, but for the
search)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from runtime.driver import Limits, Unsupported

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
    return ["-netdev", f"tap,id=net,fd={tap},vhost=off", "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="]


def monitor(number: int) -> list[str]:
    """A monitor at the listening socket of that descriptor."""
    return ["-chardev", f"socket,id=monitor,fd={number},server=on,wait=off", "-mon", "chardev=monitor,mode=control"]


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
