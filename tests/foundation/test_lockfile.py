"""Locks that are files: one has it, and who does not get it keeps nothing open."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from foundation import lockfile


def opened() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_one_has_it_at_a_time(tmp_path: Path) -> None:
    mine = lockfile.take(tmp_path / "lock")
    assert mine is not None
    before = opened()
    assert lockfile.take(tmp_path / "lock") is None and opened() == before
    os.close(mine)
    again = lockfile.take(tmp_path / "lock")
    assert again is not None
    os.close(again)


@pytest.mark.parametrize("which", ["fcntl.flock", "os.path.samestat"])
def test_one_that_cannot_be_had_keeps_nothing_open(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = opened()
    monkeypatch.setattr(which, refused)
    with pytest.raises(OSError, match="No locks"):
        lockfile.take(tmp_path / "lock")
    assert opened() == before
