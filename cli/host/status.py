"""What ``davit status`` shows: Davit's processes, since when they run, what they take."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.host import keeper, processes, record
from foundation.settings import Settings


@dataclass(frozen=True)
class Row:
    """One process of Davit's with everything that belongs to it.

    Attributes:
        process: its name in Procfile, or ``supervisor`` or ``haproxy``.
        state: running, waiting (for its next start), stopped. Where another than ``davit up`` keeps it, running means that it
            answers, and silent that its process is there and does not: it is still starting, or hangs.
        pids: its own pid first, then its children's (dynos are not among them).
        since: seconds since the epoch.
        restarts: how often it was started again; None where nobody counts.
        memory: proportional set size of all of them, bytes.
    """

    process: str
    state: str
    pids: list[int]
    since: float | None
    restarts: int | None
    memory: int

    @property
    def pid(self) -> int | None:
        """Its own pid."""
        return self.pids[0] if self.pids else None

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {**asdict(self), "pid": self.pid}


def survey(settings: Settings, kept_by: keeper.Keeper | None) -> list[Row]:
    """All rows, the supervisor's first; what Davit is not running at all has no row.

    Args:
        kept_by: who keeps the processes, if it is not ``davit up``.
    """
    proxies = processes.haproxies(settings.home)
    rows = _supervised(settings.run, proxies) if kept_by is None else _kept(settings, kept_by, proxies)
    restarts = 0 if kept_by is None else None
    if proxies:
        rows.append(_row("haproxy", "running", proxies, None, restarts))
    elif kept_by is None and any(row.process == "router" and row.state == "running" for row in rows):
        # its keeper lives, and says in its log why it does not; where a keeper answers for itself, HAProxy is in the answer
        rows.append(_row("haproxy", "stopped", [], None, restarts))
    return rows


def redis_words(settings: Settings) -> str | None:
    """A line that says how full Redis is; None when it does not answer."""
    import redis

    from state import health

    try:
        with redis.Redis.from_url(settings.effective_redis_url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.ping()
            return f"Redis: {health.redis_memory(client)[1]}."
    except (redis.RedisError, ValueError):
        return None


def _supervised(run: Path, proxies: list[int]) -> list[Row]:
    """As the supervisor wrote it down."""
    kept = record.read(run)
    if not (kept.living() or proxies or record.running_supervisor(run)):
        return []
    rows = []
    if kept.supervisor and kept.supervisor.lives():
        rows.append(_row("supervisor", "running", [kept.supervisor.pid], None, 0))
    for entry in kept.entries:
        alive = entry.process if entry.process and entry.process.lives() else None
        state = entry.state if alive or (entry.state == "waiting" and rows) else "stopped"
        rows.append(_row(entry.name, state, _whole(alive.pid, proxies) if alive else [], entry.since, entry.restarts))
    return rows


def _kept(settings: Settings, kept_by: keeper.Keeper, proxies: list[int]) -> list[Row]:
    """As the processes themselves answer."""
    rows = []
    for process in keeper.survey(settings, kept_by):
        pids = _whole(process.pid, proxies) if process.pid else []
        begun = processes.since(process.pid) if process.pid else None
        state = "running" if process.works else "silent" if process.pid else "stopped"
        rows.append(_row(process.name, state, pids, begun, process.restarts))
    return rows


def whole(rows: list[Row], kept_by: keeper.Keeper | None) -> bool:
    """Whether all that is wanted runs, and somebody starts again what dies."""
    kept = kept_by is not None or (bool(rows) and rows[0].process == "supervisor")
    return kept and all(row.state == "running" for row in rows)


def _whole(pid: int, proxies: list[int]) -> list[int]:
    """A process and what of Davit's it started, but for HAProxy, which has a row of its own."""
    return [pid, *sorted(_own(pid) - set(proxies))]


def _own(pid: int) -> set[int]:
    """A process's descendants that are Davit's: a dyno or build is not, which has a pid namespace of its own, or (as a virtual
    machine has) a network namespace."""
    here = processes.namespaces("self")
    return {child for child in processes.descendants([pid]) if processes.namespaces(child) == here}


def _row(name: str, state: str, pids: list[int], since: float | None, restarts: int | None) -> Row:
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
