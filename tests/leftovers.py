"""What a Davit left on the machine: processes, mounts, network namespaces, bridges, firewall tables, cgroups."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from runtime import children

INSTANCES = Path("/run/davit/instances")


def leftovers_of(home: Path, instance: str | None = None, patience: float = 0) -> list[str]:
    """Everything that still exists of the Davit in ``home``.

    Args:
        home: its DAVIT_HOME.
        instance: the name that its bridge, network namespaces, firewall table and cgroups begin with.
        patience: seconds to wait for what is on its way out.

    Returns:
        One phrase each; empty when nothing is left.
    """
    deadline = time.monotonic() + patience
    while True:
        found = [*_processes(home), *_mounts(home)]
        if instance and not is_anothers(instance, home):
            found += _named(instance)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def is_anothers(instance: str, home: Path) -> bool:
    """Whether a Davit that was started beside this test has been given the number that ``home``'s has freed."""
    try:
        return (INSTANCES / instance.removeprefix("davit")).read_text() not in ("", str(home))
    except OSError:
        return False


def _processes(home: Path) -> Iterator[str]:
    wanted = f"DAVIT_HOME={home}".encode()
    inside = f"{home}/".encode()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if children.state(int(directory.name)) in ("", "Z"):
            continue
        if wanted in environment or inside in command:
            yield f"process {directory.name} ({command.replace(bytes(1), b' ').decode(errors='replace')[:80].strip()})"


def _mounts(home: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if target.startswith(f"{home}/"):
            yield f"mount {target}"
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True)
    for line in loops.stdout.splitlines():
        if f" {home}/" in line:
            yield f"loop device {' '.join(line.split())}"


def _named(instance: str) -> Iterator[str]:
    for link in Path("/sys/class/net").iterdir():
        if _belongs(link.name, instance):
            yield f"network interface {link.name}"
    for folder in (Path("/run/netns"), Path("/run/davit/netns")):
        for namespace in folder.iterdir() if folder.is_dir() else ():
            if _belongs(namespace.name, instance):
                yield f"network namespace {namespace.name}"
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    for line in tables.splitlines():
        if _belongs(line.split()[-1], instance):
            yield f"firewall {line}"
    for folder in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")):
        for group in folder.glob(f"{instance}*"):
            if group.is_dir() and _belongs(group.name, instance):
                yield f"cgroup {group}"


def _belongs(name: str, instance: str) -> bool:
    """Whether ``name`` is the instance's own or one of its parts; ``davit1`` does not own ``davit10``."""
    return name.startswith(instance) and not name[len(instance) : len(instance) + 1].isdigit()
