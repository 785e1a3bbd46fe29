"""Writable layers on a disk that is full: none that later fails is ever handed out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import mounts, scratch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

STORY = """
import os, sys
from pathlib import Path
from runtime import mounts, scratch
from tests.runtime.test_scratch import every_amount_of_room
every_amount_of_room(Path(sys.argv[1]))
"""


def test_a_layer_made_on_a_full_disk_is_refused_or_sound(tmp_path: Path) -> None:
    """In a mount namespace of its own, so that nothing stays mounted however it ends."""
    words = ["unshare", "--mount", "--propagation=private", sys.executable, "-c", STORY, tmp_path]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    refused, sound = map(int, done.stdout.split())
    assert refused > 3 and sound > 3, done.stdout


def every_amount_of_room(place: Path) -> None:
    """From no room at all to enough, by pages: each layer that is had must work when there is room again."""
    disk, target = place / "disk", place / "layer"
    disk.mkdir()
    target.mkdir()
    mounts.mount("tmpfs", disk, "tmpfs", 0, "size=4m")
    scratch._template(scratch.rounded(64 << 20), disk, ("upper", "work"))
    scratch.MARGIN = 0
    refused = sound = 0
    for pages in range(0, 64):
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, _free(disk) - pages * 4096)
        try:
            scratch.create(64 << 20, disk, target, {"upper": 1000, "work": 1000})
        except scratch.ScratchFailed:
            refused += 1
            assert not target.is_mount()
            (disk / "filler").unlink()
            continue
        (disk / "filler").unlink()
        _must_work(target, pages)
        mounts.unmount(target)
        sound += 1
    scratch.MARGIN = 1 << 20
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, _free(disk) - scratch.MARGIN)
    with pytest.raises(scratch.ScratchFailed, match="No space left"):
        scratch.create(64 << 20, disk, target, {})
    print(refused, sound)


def _free(disk: Path) -> int:
    figures = os.statvfs(disk)
    return figures.f_bavail * figures.f_frsize


def _must_work(layer: Path, pages: int) -> None:
    number = os.stat(layer).st_dev & 0xFF
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert os.stat(layer / "upper").st_uid == 1000, f"{pages} pages of room"
    (layer / "upper" / "file").write_bytes(b"x" * 100_000)
    os.sync()
    errors = Path(f"/sys/fs/ext4/loop{number}/errors_count").read_text().strip()
    assert errors == "0" and os.listdir(layer / "upper") == ["file"], f"{pages} pages of room: {errors} errors"


def test_without_any_room_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scratch, "_image", full)
    with pytest.raises(scratch.ScratchFailed, match="No space left"):
        scratch.create(64 << 20, tmp_path, tmp_path, {})
