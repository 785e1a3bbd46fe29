"""Reads what an app's dynos use, for its figures."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from metrics.dynos import Sample
from state import sizes

if TYPE_CHECKING:
    from runtime.formation import AppManager


class Meter:
    """Samples apps; remembers each dyno's CPU time between samples."""

    def __init__(self) -> None:
        self._cpu: dict[str, dict[str, float]] = {}

    def sample(self, manager: AppManager) -> dict[str, Sample]:
        """Process type → what its dynos use now; empty when nothing runs and nothing ended."""
        found: dict[str, Sample] = {}
        before, now = self._cpu.get(manager.app_id, {}), dict[str, float]()
        for life in list(manager.lives.values()):
            if life.running is None or life.exit is not None:
                continue
            with contextlib.suppress(OSError):
                stats = life.running.stats()
                sample = found.setdefault(life.row.type, Sample())
                sample.dynos += 1
                sample.memory += stats.memory
                sample.quota += sizes.find(life.row.size).memory * sizes.MIB
                sample.cpu += max(0.0, stats.cpu - before.get(life.id, stats.cpu if before else 0.0))
                now[life.id] = stats.cpu
        self._remember(manager.app_id, now)
        for type, ended in manager.crashes.ended.items():
            found.setdefault(type, Sample()).restarts += ended
        manager.crashes.ended.clear()
        return found

    def _remember(self, app_id: str, cpu: dict[str, float]) -> None:
        if cpu:
            self._cpu[app_id] = cpu
        else:
            self._cpu.pop(app_id, None)
