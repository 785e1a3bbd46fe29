"""What the runtime samples: memory, CPU and restarts of each process type of an app."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from metrics import ring

SHAPE = ring.Shape("dynos", "IIQQQdI")
"""Samples; dynos, bytes of memory and of quota, each summed over the samples; the most bytes in any; CPU seconds; restarts."""
_MOST = 4
"""The number that is the most of all, not their sum."""
SAMPLE_SECONDS = 15


@dataclass
class Sample:
    """A process type at one moment: all its dynos together.

    Attributes:
        memory, quota: bytes.
        cpu: seconds of CPU since the last sample.
        restarts: dynos that ended by themselves since the last sample.
    """

    dynos: int = 0
    memory: int = 0
    quota: int = 0
    cpu: float = 0.0
    restarts: int = 0


def path(home: Path, app_id: str, type: str) -> Path:
    """Where a process type's are."""
    return home / "metrics" / app_id / f"dynos.{quote(type, safe='')}"


def merge(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Two records of one step."""
    sums = [a + b for a, b in zip(one, other, strict=True)]
    sums[_MOST] = max(one[_MOST], other[_MOST])
    return sums


def write(home: Path, app_id: str, samples: dict[str, Sample]) -> None:
    """Add a sample of each process type; makes the app's directory, which belongs to whom DAVIT_HOME belongs.

    Raises:
        OSError: it cannot be written.
    """
    for type, sample in samples.items():
        place = path(home, app_id, type)
        if not place.parent.is_dir():
            _make(home, place.parent)
        numbers = (1, sample.dynos, sample.memory, sample.quota, sample.memory, sample.cpu, sample.restarts)
        ring.add(place, SHAPE, time.time(), numbers, merge)
        _belong(home, place)


def forget(home: Path, app_id: str) -> None:
    """Remove all figures of an app."""
    shutil.rmtree(home / "metrics" / app_id, ignore_errors=True)


def _make(home: Path, directory: Path) -> None:
    for place in (directory.parent, directory):
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
            _belong(home, place)


def _belong(home: Path, place: Path) -> None:
    owner, mine = home.stat(), place.stat()
    if (owner.st_uid, owner.st_gid) != (mine.st_uid, mine.st_gid):
        os.chown(place, owner.st_uid, owner.st_gid)
