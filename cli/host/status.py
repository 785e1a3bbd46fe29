"""What ``davit status`` shows: Davit's processes, since when they run, what they take."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.host import processes, record


@dataclass(frozen=True)
class Row:
    """One process of Davit's with everything that belongs to it.

    Attributes:
        process: its name in Procfile, or ``supervisor`` or ``haproxy``.
        state: running, waiting (for its next start), stopped.
        pids: its own pid first, then its children's (dynos are not among them).
        since: seconds since the epoch.
        memory: proportional set size of all of them, bytes.
    """

    process: str
    state: str
    pids: list[int]
    since: float | None
    restarts: int
    memory: int

    @property
    def pid(self) -> int | None:
        """Its own pid."""
        return self.pids[0] if self.pids else None

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {**asdict(self), "pid": self.pid}


def survey(home: Path) -> list[Row]:
    """All rows, the supervisor's first; what Davit is not running at all has no row."""
    kept = record.read(home / "run")
    proxies = processes.haproxies(home)
    if not (kept.living() or proxies or record.running_supervisor(home / "run")):
        return []
    rows = []
    if kept.supervisor and kept.supervisor.lives():
        rows.append(_row("supervisor", "running", [kept.supervisor.pid], None, 0))
    for entry in kept.entries:
        alive = entry.process if entry.process and entry.process.lives() else None
        state = entry.state if alive or (entry.state == "waiting" and rows) else "stopped"
        pids = [alive.pid, *sorted(_own(alive.pid) - set(proxies))] if alive else []
        rows.append(_row(entry.name, state, pids, entry.since, entry.restarts))
    if proxies:
        rows.append(_row("haproxy", "running", proxies, None, 0))
    return rows


def _own(pid: int) -> set[int]:
    """A process's descendants that are Davit's: a dyno or build is not, which has a pid namespace of its own, or (as a virtual
    machine has) a network namespace."""
    here = processes.namespaces("self")
    return {child for child in processes.descendants([pid]) if processes.namespaces(child) == here}


def _row(name: str, state: str, pids: list[int], since: float | None, restarts: int) -> Row:
    return Row(name, state, pids, since, restarts, sum(processes.memory(pid) for pid in pids))


def ago(since: float | None) -> str:
    """A duration up to now, as people say it: 12s, 3m, 5h, 2d."""
    if since is None:
        return ""
    seconds = max(0, int(time.time() - since))
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{letter}"
    return f"{seconds}s"
