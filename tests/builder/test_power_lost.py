"""The power is lost: what was told as done is on the disk, as it is found by a machine that is switched on again.

A kill leaves the kernel's memory, in which all of it is (tests/e2e/test_power_cut.py); so Davit has an ext4 file system of
its own here, and what is looked at is a copy of what its device holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from builder.repositories import Repositories
from foundation.authority import Authority
from tests.builder.building import REPOSITORY

JOURNAL_SECONDS = 1
"""How often the file system writes its names; its files' content comes up to half a minute later."""


@contextmanager
def mounted(image: Path, place: Path, options: str) -> Iterator[Path]:
    """The file system in ``image``, at ``place``; its loop device goes with the mount."""
    place.mkdir()
    subprocess.run(["mount", "-o", f"loop,{options}", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def scratch() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="dvl", dir="/tmp"))
    yield place
    shutil.rmtree(place)


@pytest.mark.root
def test_what_was_told_as_done_outlives_a_power_cut(scratch: Path) -> None:
    image, copies, work = scratch / "disk.img", [scratch / "at-once.img", scratch / "later.img"], scratch / "work"
    work.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    with mounted(image, scratch / "disk", f"commit={JOURNAL_SECONDS}") as disk, davit(disk / "home", work) as told:
        for copy in copies:  # the first is made before the file system has written anything by itself
            subprocess.run(["cp", "--sparse=always", image, copy], check=True)
            time.sleep(2 * JOURNAL_SECONDS if copy is copies[0] else 0)
    for number, copy in enumerate(copies):
        with mounted(copy, scratch / str(number), "rw") as disk:
            look(disk / "home", told)


@contextmanager
def davit(home: Path, work: Path) -> Iterator[dict[str, str]]:
    """A process that has done a push in ``home`` and stands still; what it says that it did."""
    home.mkdir()
    environment = {**os.environ, "DAVIT_HOME": str(home), "WORK": str(work), "REDIS_URL": f"unix://{work}/none"}
    environment.pop("DATABASE_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.builder.before_a_cut"], cwd=REPOSITORY, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        told = process.stdout.readline()
        assert told, "it ended before it had done everything"
        yield json.loads(told)
    finally:
        process.kill()  # an orderly end would have SQLite put everything into its file
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe
                pipe.close()


def look(home: Path, told: dict[str, str]) -> None:
    """What was told is there, and works."""
    with closing(sqlite3.connect(home / "davit.db")) as database:
        releases = database.execute("SELECT version, status FROM releases ORDER BY version").fetchall()
        builds = database.execute("SELECT id, status FROM builds").fetchall()
        dynos = database.execute("SELECT name FROM dynos").fetchall()
    assert releases == [(1, "succeeded"), (2, "succeeded"), (3, "pending")]
    assert dict(builds) == {told["build"]: "succeeded", told["waiting"]: "pending"}
    assert dynos == [("web.1",)], "what is of the moment gets to the disk with what comes after it"
    repositories, app_id = Repositories(home / "repos"), told["app"]
    for name, beginning in (("HEAD", b"ref: "), ("config", b"[core]"), ("info/attributes", b"* -export-ignore")):
        assert (repositories.path(app_id) / name).read_bytes().startswith(beginning), name
    repositories.housekeeping(lambda build: "pending" if build == told["waiting"] else "succeeded")
    assert repositories.current(app_id, b"refs/heads/main").decode() == told["commit"]
    with repositories.receiving(app_id) as quarantine:
        assert quarantine.check_connected([told["commit"].encode()])
    (waiting,) = repositories.incoming.iterdir()
    assert json.loads((waiting / "moves.json").read_text())[0] == ["refs/heads/main", told["commit"], told["commit"]]
    assert len((home / "keys" / "url.key").read_bytes()) == 32 and (home / "keys" / "config.keys").stat().st_size > 40
    assert (home / "owner-token").stat().st_size > 20 and Authority(home / "keys" / "ca.pem").pem
