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

from builder import git
from builder.quarantine import ZERO, Move
from builder.repositories import LOOSE_REFS, Repositories
from foundation.authority import Authority
from foundation.disk import sync
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


def made(image: Path) -> Path:
    """An empty file system."""
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    return image


@pytest.fixture
def scratch() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="dvl", dir="/tmp"))
    yield place
    shutil.rmtree(place)


@pytest.mark.root
def test_what_was_told_as_done_outlives_a_power_cut(scratch: Path) -> None:
    image, copies, work = made(scratch / "disk.img"), [scratch / "at-once.img", scratch / "later.img"], scratch / "work"
    work.mkdir()
    with mounted(image, scratch / "disk", f"commit={JOURNAL_SECONDS}") as disk, davit(disk / "home", work) as told:
        for copy in copies:  # the first is made before the file system has written anything by itself
            subprocess.run(["cp", "--sparse=always", image, copy], check=True)
            time.sleep(2 * JOURNAL_SECONDS if copy is copies[0] else 0)
    for number, copy in enumerate(copies):
        with mounted(copy, scratch / str(number), "rw") as disk:
            look(disk / "home", told)


OLD = """#!/bin/sh
[ "$1" = version ] && exec echo git version 2.34.1
exec {git} -c core.fsync=-reference "$@"
"""


@pytest.fixture
def old_git(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In place of a git of before 2.36, as Ubuntu 22.04 has it: one that says so, and syncs no more than that."""
    (scratch / "bin").mkdir()
    (scratch / "bin" / "git").write_text(OLD.format(git=shutil.which("git")))
    (scratch / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{scratch / 'bin'}:{os.environ['PATH']}")
    git.syncs_refs.cache_clear()
    yield
    git.syncs_refs.cache_clear()


def a_commit(repositories: Repositories, app_id: str) -> bytes:
    """In an app's new repository; no ref leads to it."""
    repositories.incoming.mkdir(parents=True)
    identity = {f"GIT_{who}_{what}": "me" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = git.environment(repositories.ensure(app_id)) | identity
    tree = git.run(env, "mktree").stdout.decode().strip()
    return git.run(env, "commit-tree", tree, "-m", "x").stdout.strip()


@pytest.mark.root
def test_refs_outlive_a_power_cut_where_git_does_not_sync_them(scratch: Path, old_git: None) -> None:
    image, copy, app_id = made(scratch / "disk.img"), scratch / "copy.img", "0f0f0f0f-app"
    with mounted(image, scratch / "disk", f"commit={JOURNAL_SECONDS}") as disk:
        repositories = Repositories(disk / "repos")
        commit = a_commit(repositories, app_id)
        tags = [b"refs/tags/%d" % number for number in range(LOOSE_REFS + 1)]
        with repositories.receiving(app_id) as quarantine:
            assert all(repositories.store(app_id, quarantine, [Move(tag, ZERO, commit) for tag in tags], atomic=False).values())
        repositories.tidy(app_id)
        repositories.move_ref(app_id, "refs/heads/main", ZERO.decode(), commit.decode())
        sync(disk)  # the names of all that is there, as the file system does it by itself
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    with mounted(copy, scratch / "after", "rw") as disk:
        found = {ref: (disk / "repos" / f"{app_id}.git" / os.fsdecode(ref)).read_bytes().strip() for ref in (*tags, b"refs/heads/main")}
    assert set(found.values()) == {commit}, found


def test_a_branch_takes_the_place_of_those_below_it_where_git_does_not_sync_them(scratch: Path, old_git: None) -> None:
    repositories, app_id = Repositories(scratch / "repos"), "0f0f0f0f-app"
    commit, above, below = a_commit(repositories, app_id), b"refs/heads/feature", b"refs/heads/feature/x"
    for moves in ([Move(below, ZERO, commit)], [Move(below, commit, ZERO), Move(above, ZERO, commit)]):
        with repositories.receiving(app_id) as quarantine:
            assert all(repositories.store(app_id, quarantine, moves, atomic=False).values())
    assert repositories.refs(app_id) == {above: commit}


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
