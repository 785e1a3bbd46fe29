"""A file of fixed size that remembers what happened: one record a step, the oldest overwritten by the newest.

There are two rings in a file, a fine and a coarse one (:data:`TIERS`); both get every record, so that reading never has to
condense more than it shows. A record is a time (which also says whether its place holds something of this round) and
numbers that add up, so that halves of a step that two processes wrote, one after the other, make a whole.

A power cut may lose the last seconds; a record that was cut in half is one that counts less than it should, never a file
that cannot be read. There is one writer at a time: the router for requests, the runtime for dynos.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TIERS = ((60, 360), (600, 1008))
"""(seconds of a step, steps): six hours by the minute, seven days by ten minutes."""
_MAGIC = b"davit-ring-1\n\0\0\0"


@dataclass(frozen=True)
class Shape:
    """What a record holds: a name for the file's kind, and its numbers as :mod:`struct` writes them (little endian)."""

    kind: str
    layout: str

    @property
    def record(self) -> struct.Struct:
        """A record: its step's start (seconds since 1970), then its numbers."""
        return struct.Struct("<I" + self.layout)

    @property
    def size(self) -> int:
        """Bytes of a whole file."""
        return len(_MAGIC) + sum(steps for _, steps in TIERS) * self.record.size


Numbers = tuple[float, ...]
Merge = Callable[[Numbers, Numbers], Sequence[float]]
"""Two records of one step → one."""


def add(path: Path, shape: Shape, at: float, numbers: Sequence[float], merge: Merge) -> None:
    """Add a record at a moment.

    Args:
        path: the file, made when its directory is there.
        at: seconds since 1970.
        merge: what becomes of a record that is there already.

    Raises:
        OSError: the directory is not there, the disk is full, …
    """
    record = shape.record
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        if os.pread(fd, len(_MAGIC), 0) != _MAGIC or os.fstat(fd).st_size != shape.size:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, shape.size)  # a hole: what was never written takes no disk
            os.pwrite(fd, _MAGIC, 0)
        for offset, seconds, steps in _tiers(shape):
            start = int(at) // seconds * seconds
            place = offset + start // seconds % steps * record.size
            there = record.unpack(os.pread(fd, record.size, place))
            whole = merge(there[1:], tuple(numbers)) if there[0] == start else numbers
            os.pwrite(fd, record.pack(start, *whole), place)
    finally:
        os.close(fd)


def read(path: Path, shape: Shape, since: float, until: float) -> tuple[int, list[tuple[int, Numbers | None]]]:
    """The records of a span.

    Args:
        since, until: seconds since 1970; a span that the fine ring holds comes from it, any other from the coarse one.

    Returns:
        The step in seconds, and (start of the step, numbers or None when nothing was recorded), oldest first. A file that is
        not there, or is no such file, has recorded nothing.
    """
    tiers = list(_tiers(shape))
    offset, seconds, steps = next((tier for tier in tiers if until - since <= tier[1] * tier[2]), tiers[-1])
    first = max(int(since), int(until) - seconds * (steps - 1)) // seconds * seconds
    starts = range(first, int(until) + 1, seconds)
    data = b""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.pread(fd, len(_MAGIC), 0) == _MAGIC and os.fstat(fd).st_size == shape.size:
                data = _read_round(fd, shape.record.size, offset, steps, first // seconds % steps, len(starts))
        finally:
            os.close(fd)
    if not data:
        return seconds, [(start, None) for start in starts]
    records = zip(starts, shape.record.iter_unpack(data), strict=True)
    return seconds, [(start, there[1:] if there[0] == start else None) for start, there in records]


def _read_round(fd: int, size: int, offset: int, steps: int, first: int, count: int) -> bytes:
    """``count`` records of a ring from its place ``first`` on, and round its end; nothing else of the file."""
    head = min(count, steps - first)
    return os.pread(fd, head * size, offset + first * size) + os.pread(fd, (count - head) * size, offset)


def _tiers(shape: Shape) -> Iterator[tuple[int, int, int]]:
    """(offset, seconds of a step, steps) of each ring."""
    offset = len(_MAGIC)
    for seconds, steps in TIERS:
        yield offset, seconds, steps
        offset += steps * shape.record.size
