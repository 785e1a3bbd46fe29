"""Where dynos that were put aside lie: ``snapshots/APP_ID/PROCESS`` below DAVIT_HOME; root's alone, for they hold memory.

A directory without a dot in front is whole. What a killed runtime was still writing begins with one, and is removed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from pathlib import Path

TOGETHER = 4
"""Dynos of this host that are written down at a time, and as many that are read: the disk is one. A crowd of apps that fall
asleep together would go so slowly that each one's time is over before it is whole; one at a time would wait for its QEMU."""


class Snapshots:
    """The snapshots of all apps.

    Args:
        directory: ``DAVIT_HOME/snapshots``.

    Attributes:
        writing, reading: who has one of them may.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writing, self.reading = asyncio.Semaphore(TOGETHER), asyncio.Semaphore(TOGETHER)

    def sweep(self, asleep: Collection[tuple[str, str]]) -> None:
        """Remove what was not finished, and what nobody wakes from any more.

        Args:
            asleep: the apps and names of the dynos that sleep.
        """
        for path in self.directory.glob("*/*"):
            if (path.parent.name, path.name) not in asleep:
                shutil.rmtree(path, ignore_errors=True)

    def fresh(self, app_id: str, dyno_id: str) -> Path:
        """Where a dyno may be put aside; :meth:`keep` or :meth:`drop` it afterwards."""
        return self.directory / app_id / f".{dyno_id}"

    def keep(self, fresh: Path, name: str) -> None:
        """It is whole, and is the process ``name``'s from now on."""
        target = fresh.with_name(name)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)

    def drop(self, path: Path) -> None:
        """Remove one."""
        shutil.rmtree(path, ignore_errors=True)

    def take(self, app_id: str, name: str, dyno_id: str) -> Path | None:
        """The snapshot of a process, which is the caller's from now on; None when there is none."""
        taken = self.fresh(app_id, dyno_id)
        try:
            (self.directory / app_id / name).rename(taken)
        except OSError:
            return None
        return taken

    def forget(self, app_id: str) -> None:
        """Remove all of an app's."""
        shutil.rmtree(self.directory / app_id, ignore_errors=True)
