"""The OCI runtime configuration of a dyno, composed from plain values. Nothing here touches the machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime import seccomp
from runtime.driver import Limits

USER = 1000
RANGE = 65536
INIT = "/sbin/davit-init"
_CPU_PERIOD = 100_000
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/kmsg", "/proc/latency_stats", "/proc/modules", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_PTS = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "max=64")
"""Its own terminals, and not all: their number (kernel.pty.max) is one for all dynos."""
_NAMESPACES = ("pid", "ipc", "uts", "mount", "user", "cgroup", "network")


@dataclass(frozen=True)
class Mounted:
    """A host path bound inside."""

    source: str
    target: str
    writable: bool = False
    executable: bool = True


@dataclass(frozen=True)
class Features:
    """What this host offers: swap accounting, version 2 of control groups, open files per process at the most."""

    swap: bool = True
    v2: bool = False
    files: int = 65_536


@dataclass(frozen=True)
class Container:
    """All that the configuration says.

    Attributes:
        rootfs: the merged root.
        hostname: the dyno's name.
        command: argv, run by the init.
        env: the whole environment.
        limits: see :class:`runtime.driver.Limits`.
        uid_base: the host's uid that is root inside.
        cgroup: absolute from the hierarchies' roots.
        users: path of the user namespace; None for one that the OCI runtime makes.
        network: path of the network namespace; None for an empty one of its own.
        binds: further mounts, in order.
        terminal: (rows, columns) of its terminal; None without one.
        readonly: whether the root is read-only (then /tmp is in memory).
    """

    rootfs: str
    hostname: str
    command: Sequence[str]
    env: Mapping[str, str]
    limits: Limits
    uid_base: int
    cgroup: str
    users: str | None = None
    network: str | None = None
    binds: Sequence[Mounted] = field(default_factory=tuple)
    terminal: tuple[int, int] | None = None
    readonly: bool = False
    features: Features = field(default_factory=Features)


def compose(container: Container) -> dict[str, Any]:
    """The config.json of ``container``."""
    mapping = [{"containerID": 0, "hostID": container.uid_base, "size": RANGE}]
    paths = {"user": container.users, "network": container.network}
    namespaces = [{"type": name, **({"path": path} if (path := paths.get(name)) else {})} for name in _NAMESPACES]
    return {
        "ociVersion": "1.0.2",
        "hostname": container.hostname,
        "root": {"path": container.rootfs, "readonly": container.readonly},
        "process": process([INIT, "--", *container.command], container.env, container.terminal, container.features),
        "mounts": _mounts(container),
        "linux": {
            "uidMappings": mapping,
            "gidMappings": mapping,
            "namespaces": namespaces,
            "cgroupsPath": container.cgroup,
            "resources": resources(container.limits, container.features),
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
            "rootfsPropagation": "private",
            "seccomp": seccomp.profile(),
        },
    }


def process(argv: Sequence[str], env: Mapping[str, str], terminal: tuple[int, int] | None, features: Features) -> dict[str, Any]:
    """The ``process`` object: uid 1000 in /app with no capability, and none to be gained."""
    composed: dict[str, Any] = {
        "terminal": terminal is not None,
        "user": {"uid": USER, "gid": USER, "umask": 0o022},
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": "/app",
        "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
        "noNewPrivileges": True,
        # dynos go before Davit when the whole host runs out of memory; core dumps hold config vars
        "oomScoreAdj": 300,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": min(10_000, features.files), "hard": min(65_536, features.files)},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }
    if terminal is not None:
        composed["consoleSize"] = {"height": terminal[0], "width": terminal[1]}
    return composed


def resources(limits: Limits, features: Features) -> dict[str, Any]:
    """The ``linux.resources`` object. Memory has no swap beside it: a limit is a limit."""
    memory: dict[str, int] = {"limit": limits.memory_max}
    if features.swap:
        memory["swap"] = limits.memory_max
    cpu: dict[str, int] = {"shares": limits.cpu_shares}
    if limits.cpu_quota is not None:
        cpu |= {"quota": int(limits.cpu_quota * _CPU_PERIOD), "period": _CPU_PERIOD}
    devices = [{"allow": False, "access": "rwm"}]
    composed: dict[str, Any] = {"memory": memory, "cpu": cpu, "pids": {"limit": limits.pids}, "devices": devices}
    if features.v2:
        composed["unified"] = {"memory.oom.group": "1"}
    return composed


def _mounts(container: Container) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        _mount("proc", "proc", "/proc", ["nosuid", "noexec", "nodev"]),
        _mount("tmpfs", "tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=64k"]),
        _mount("devpts", "devpts", "/dev/pts", ["nosuid", "noexec", *_PTS]),
        _mount("tmpfs", "shm", "/dev/shm", ["nosuid", "noexec", "nodev", "mode=1777", f"size={_shm(container.limits)}"]),  # noqa: S108
        # a host-made network namespace would make crun bind the host's own /sys; an empty one says nothing
        _mount("tmpfs", "tmpfs", "/sys", ["nosuid", "noexec", "nodev", "ro", "mode=755", "size=4k"]),
    ]
    if container.readonly:
        mounts.append(_mount("tmpfs", "tmpfs", "/tmp", ["nosuid", "nodev", "mode=1777", "size=64m"]))  # noqa: S108
    for bind in container.binds:
        options = ["rbind", "rprivate", "nosuid", "nodev", "rw" if bind.writable else "ro"]
        mounts.append(_mount("bind", bind.source, bind.target, options if bind.executable else [*options, "noexec"]))
    return mounts


def _shm(limits: Limits) -> str:
    return f"{max(16, min(limits.memory >> 22, 1024))}m"


def _mount(kind: str, source: str, target: str, options: list[str]) -> dict[str, Any]:
    return {"type": kind, "source": source, "destination": target, "options": options}


def hosts_file(host: str, name: str, address: str | None) -> str:
    """A dyno's /etc/hosts: its own name, and what the host knows beyond itself.

    Args:
        host: the text of the host's /etc/hosts.
    """
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", f"{address or '127.0.0.1'}\t{name}"]
    for line in host.splitlines():
        words = line.split("#")[0].split()
        if len(words) < 2:
            continue
        try:
            known = ipaddress.ip_address(words[0])
        except ValueError:
            continue
        if not (known.is_loopback or known.is_multicast or known.is_link_local or known in _LOOPBACK_LIKE):
            lines.append("\t".join(words))
    return "\n".join(lines) + "\n"


_LOOPBACK_LIKE = {ipaddress.ip_address(text) for text in ("0.0.0.0", "::", "fe00::0", "ff00::0")}
