"""What a dyno's directory ``run/dynos/ID`` holds: enough to find the dyno again after the runtime was killed, and its FIFOs.

``dyno.json`` is written before the dyno is started, so that no crash can leave a dyno that nobody knows. It is replaced by
rename but not synced: a power cut ends the dynos as well, and another boot id makes every record void.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

STREAMS = ("stdout", "stderr")


def boot_id() -> str:
    """This boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Record:
    """A dyno as it is written down. Holds no secret.

    Attributes:
        id, app_id, name: as in :class:`runtime.driver.DynoSpec`.
        slot: its place; the address follows from it.
        cgroup: absolute from the hierarchies' roots.
        boot: the boot of the kernel in which it was started.
        pid, started: its init (a virtual machine's: the process that runs it) and when that began (clock ticks since boot);
            None until it runs.
        network: whether it has an address.
        fifos: whether its output goes to the FIFOs.
        isolation: the driver that started it and can take it over.
        allowed: as in :class:`runtime.driver.DynoSpec`.
        facts: what that driver needs to find it again (socket paths, what was plugged in): JSON values only. One that moves has
            the process to which it does as ``moving_to``: pid, when that began, and whatever the driver adds.
    """

    id: str
    app_id: str
    name: str
    slot: int
    cgroup: str
    boot: str
    pid: int | None = None
    started: int | None = None
    network: bool = True
    fifos: bool = True
    isolation: str = "container"
    allowed: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> list[tuple[int, int | None]]:
        """The processes in which it may live, each with when it began: one that moves may have arrived already."""
        found = [] if self.pid is None else [(self.pid, self.started)]
        going = self.facts.get("moving_to")
        return [*found, (going[0], going[1])] if going else found

    @classmethod
    def parse(cls, text: str) -> Record | None:
        """The record in ``text``; None when it is not one (half written before a power cut)."""
        try:
            values: dict[str, Any] = json.loads(text)
            record = cls(**values)
        except (ValueError, TypeError):
            return None
        sound = isinstance(record.slot, int) and isinstance(record.id, str) and isinstance(record.cgroup, str)
        return record if sound and isinstance(record.boot, str) else None


class DynoDirectory:
    """``run/dynos/ID``.

    Args:
        path: the directory; its name is the dyno's id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def pid_file(self) -> Path:
        """Written by the OCI runtime before the dyno's command begins."""
        return self.path / "pid"

    def create(self, record: Record) -> None:
        """Make the directory, owned by the owner of DAVIT_HOME (the `logs` process reads there without being root)."""
        self.path.mkdir(mode=0o700)
        owner = self._owner()
        self.write(record)
        (self.path / "meta.json").write_text(json.dumps({"app_id": record.app_id, "process": record.name}))
        os.chown(self.path / "meta.json", owner.st_uid, owner.st_gid)
        os.chown(self.path, owner.st_uid, owner.st_gid)

    def _owner(self) -> os.stat_result:
        return self.path.parent.stat()

    def make_fifos(self, uid: int) -> tuple[int, int]:
        """Make the FIFOs and open them for the dyno.

        They are opened read-write, so that a reader's death never breaks the pipe, and belong to the dyno's uid, because
        programs open /dev/stdout again; the group lets `logs` read.

        Args:
            uid: the host's uid of the dyno's user.
        """
        fds: list[int] = []
        group = self._owner().st_gid
        for name in STREAMS:
            fifo = self.path / name
            os.mkfifo(fifo, 0o600)
            os.chown(fifo, uid, group)
            os.chmod(fifo, 0o660)
            fds.append(os.open(fifo, os.O_RDWR | os.O_CLOEXEC))
        return fds[0], fds[1]

    def open_fifos(self) -> list[int]:
        """Open the FIFOs that are still there, only to keep what is in them alive."""
        fds = []
        for name in STREAMS:
            try:
                fds.append(os.open(self.path / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
            except OSError:
                continue
        return fds

    def write(self, record: Record) -> None:
        """Replace dyno.json."""
        fresh = self.path / "dyno.json.new"
        fresh.write_text(json.dumps(asdict(record)))
        os.rename(fresh, self.path / "dyno.json")

    def read(self) -> Record | None:
        """The record, with the pid that the OCI runtime noted when the runtime was killed before it could."""
        try:
            record = Record.parse((self.path / "dyno.json").read_text())
        except OSError:
            return None
        if record is None or record.id != self.path.name:
            return None
        if record.pid is None:
            try:
                record = replace(record, pid=int(self.pid_file.read_text()))
            except (OSError, ValueError):
                pass
        return record

    def end(self) -> None:
        """Tell `logs` that the last lines are in the FIFOs."""
        try:
            (self.path / "ended").touch()
        except FileNotFoundError:
            pass

    @property
    def read_out(self) -> bool:
        """Whether `logs` has read everything (it removes the FIFOs then)."""
        return not any((self.path / name).exists() for name in STREAMS)

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
