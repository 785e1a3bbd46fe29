"""Parts of libraries that are given back, and come again."""

from __future__ import annotations

import hashlib
import sqlite3

from foundation import mappings


def _resident() -> int:
    """KiB of files that are mapped here and nowhere else."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("Private_Clean:", "Shared_Clean:")))


def test_a_process_that_gave_its_libraries_back_works_on() -> None:
    with sqlite3.connect(":memory:") as database:
        database.execute("SELECT 1")
        before, sum = _resident(), hashlib.sha256(b"x").hexdigest()
        mappings.give_back()
        assert _resident() < before / 2
        assert database.execute("SELECT 41 + 1").fetchone() == (42,) and hashlib.sha256(b"x").hexdigest() == sum


def test_what_may_have_been_written_to_is_kept() -> None:
    with open("/proc/self/maps") as file:
        written = [int(line.split("-")[0], 16) for line in file if " rw" in line]
    assert not {start for start, _ in mappings.clean()} & set(written)
