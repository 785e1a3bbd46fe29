"""What the supervisor writes down about the processes it runs, so that others, and its successor, find them."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.host.processes import Identity


@dataclass
class Entry:
    """One process of Procfile.

    Attributes:
        name: its name there.
        state: ``running``, ``waiting`` (it ended; the next start is due later) or ``stopped``.
        process: which process that is; None while it does not run.
        since: when the state began, in seconds since the epoch.
        restarts: how often it was started again since Davit came up.
        fingerprint: of the command and environment it was started with.
    """

    name: str
    state: str = "stopped"
    process: Identity | None = None
    since: float = field(default_factory=time.time)
    restarts: int = 0
    fingerprint: str = ""


@dataclass
class Record:
    """All entries, and the supervisor that wrote them."""

    supervisor: Identity | None
    entries: list[Entry]

    def living(self) -> list[Entry]:
        """The entries whose process is there."""
        return [entry for entry in self.entries if entry.process and entry.process.lives()]


def _path(run: Path) -> Path:
    return run / "supervisor.json"


def read(run: Path) -> Record:
    """The record in the directory ``run``; an empty one when there is none."""
    try:
        data = json.loads(_path(run).read_text())
        entries = [Entry(**{**entry, "process": _identity(entry["process"])}) for entry in data["entries"]]
        return Record(_identity(data["supervisor"]), entries)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Record(None, [])


def _identity(data: dict[str, object] | None) -> Identity | None:
    return Identity(**data) if data else None  # type: ignore[arg-type]


def write(run: Path, record: Record) -> None:
    """Replace the record in one step; readers see the old or the new one."""
    fresh = run / "supervisor.json.new"
    fresh.write_text(json.dumps(asdict(record)))
    os.rename(fresh, _path(run))


@contextmanager
def sole(run: Path) -> Iterator[bool]:
    """Be the only supervisor of this directory: True while the lock is held, False when another one has it.

    The kernel lets go of the lock when its holder ends, however it ends (flock(2)).
    """
    descriptor = os.open(run / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def running_supervisor(run: Path) -> int | None:
    """The pid of the supervisor that works in this directory; None when there is none."""
    supervisor = read(run).supervisor
    return supervisor.pid if supervisor and supervisor.lives() else None
