"""Who keeps Davit's processes where ``davit up`` does not: systemd (``davit install``), Docker, or somebody else.

Nothing of theirs is in the supervisor's record. But whoever has processes running in a DAVIT_HOME has them listen on its sockets,
and the kernel says which process listens there (SO_PEERCRED, unix(7)).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.host import environment, processes, procfile, ready, record
from foundation.programs import run
from foundation.settings import Address, Settings, from_environment, settings

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEMD = "systemd"
SOCKETS = ("runtime", "router", "logs")
"""The processes with a socket below DAVIT_HOME."""


@dataclass(frozen=True)
class Keeper:
    """Who starts Davit's processes here, and again when they die.

    Attributes:
        name: as sentences call it.
        told: where it says more of them, a sentence or nothing.
        stop: how to stop them and the apps, a sentence.
        pids: of the processes that listen below DAVIT_HOME, by name; 0 for those of another pid namespace.
    """

    name: str
    told: str
    stop: str
    pids: Mapping[str, int]


@dataclass(frozen=True)
class Process:
    """One process of Procfile: whether it does its work, its pid where that can be seen, how often it was started again."""

    name: str
    works: bool
    pid: int | None
    restarts: int | None


def find(settings: Settings) -> Keeper | None:
    """Who keeps the processes that run now; None when that is ``davit up``, or none run."""
    if record.running_supervisor(settings.run) is not None or record.read(settings.run).living():
        return None
    pids = {name: pid for name in SOCKETS if (pid := _listener(settings.run / f"{name}.sock")) is not None}
    if not pids:
        return None
    groups = " ".join(_control_groups(pid) for pid in pids.values() if pid)
    if re.search(r"/davit-\w+\.service\b", groups):
        return Keeper(
            SYSTEMD, "`systemctl status 'davit-*'` and `journalctl -u davit-web` say more.",
            "`systemctl stop davit.target` stops its processes; apps serve on until `davit down` stops them, too.", pids,
        )  # fmt: skip
    if 0 in pids.values() or re.search(r"docker|/[0-9a-f]{64}\b", groups):
        return Keeper(
            "Docker", "`docker compose ps` and `docker compose logs` say more.",
            "`docker compose stop` stops its processes; docker-compose.yml says how to stop apps, too.", pids,
        )  # fmt: skip
    return Keeper("another program", "", "Stop its processes there; `davit down` then stops apps that still serve.", pids)


def adopt() -> Keeper | None:
    """For a command that speaks of the processes: find who keeps them, and take up the settings that they run with."""
    take_up()
    kept_by = find(settings())
    if kept_by is not None and kept_by.name == SYSTEMD:
        take_up(also_given=True)  # they run with these, whatever is typed
    return kept_by


def take_up(*, also_given: bool = False) -> Settings:
    """The settings of the Davit that a command typed on this host is meant for, whether its processes run or not.

    Where ``davit install`` wrote units, those name a file of settings, and whoever types a command has them in no variable. It is
    that Davit's command unless DAVIT_HOME names another.

    Args:
        also_given: the file's settings also where a variable says something else.

    Raises:
        DavitError: the file is there and cannot be understood.
    """
    from cli.host import install

    file = install.installed_with()
    if file is None or not os.access(file, os.R_OK):
        return settings()
    variables = install.read_environment(file)
    given = {name: value for name, value in os.environ.items() if value}
    if from_environment({**variables, **given}).home != from_environment(variables).home:
        return settings()
    os.environ.update(variables if also_given else {name: value for name, value in variables.items() if name not in given})
    settings.cache_clear()
    return settings()


def survey(settings: Settings, kept_by: Keeper) -> list[Process]:
    """Each of the processes that are wanted."""
    known = parse_units(_show("--property=Id,MainPID,NRestarts", "davit-*.service")) if kept_by.name == SYSTEMD else {}
    found = []
    for name in procfile.wanted(CHECKOUT, environment.build(settings, os.environ)):
        pid, restarts = known.get(name, (kept_by.pids.get(name, 0), None))
        found.append(Process(name, ready.answers(name, settings), pid or None, restarts))
    return found


def listens(process: Process | None, address: Address) -> bool:
    """Whether that is who listens at ``address``; where processes cannot be seen, whether one like it does."""
    if process is None or not process.works:
        return False
    return process.pid is None or processes.listen({process.pid, *processes.descendants([process.pid])}, address.port)


def _listener(path: Path) -> int | None:
    """The pid of the process that listens there; None when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:  # as foundation.wire has it
        probe.settimeout(5)
        try:
            probe.connect(str(path))
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        except OSError:
            return None
    return int(pid)


def _control_groups(pid: int) -> str:
    try:
        return (processes.PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return ""


def _show(*words: str) -> str:
    return run(["systemctl", "show", *words], timeout=20, check=False).stdout.decode(errors="replace").strip()


def parse_units(told: str) -> dict[str, tuple[int, int]]:
    """Main pid and number of restarts by the process's name, from what ``systemctl show`` prints: a block for each unit."""
    found = {}
    for block in told.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if match := re.fullmatch(r"davit-(\w+)\.service", values.get("Id", "")):
            found[match[1]] = (int(values.get("MainPID") or 0), int(values.get("NRestarts") or 0))
    return found
