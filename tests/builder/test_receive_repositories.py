"""The repositories on disk: what a build reads, how refs move, and what a crash leaves."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import git, repositories
from builder.quarantine import ZERO, Move, PackRefused
from builder.receive import plan
from builder.repositories import FetchFirst, Repositories
from foundation.errors import Conflict, InvalidParams, NotFound
from tests.builder.git_doors import clean_environment
from tests.conftest import wait_until

APP = "0f0f0f0f-app"


class Copy:
    """A working copy whose commits are brought in as a push would."""

    def __init__(self, home: Path) -> None:
        self.work = home / "work"
        self.work.mkdir()
        self.repositories = Repositories(home / "repos")
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str, input: bytes | None = None) -> str:
        done = subprocess.run(["git", *words], cwd=self.work, env=clean_environment(), capture_output=True, input=input)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(errors="surrogateescape").strip()

    def commit(self, **files: str) -> str:
        for name, text in files.items():
            (self.work / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")

    def bring(self, commit: str, build_id: str, old: str = ZERO.decode(), along: list[Move] | None = None) -> None:
        """Push a commit and give it to a build."""
        with self.repositories.receiving(APP) as quarantine:
            data = subprocess.run(
                ["git", "pack-objects", "--stdout", "--revs", "-q"], cwd=self.work, env=clean_environment(),
                input=commit.encode() + b"\n", capture_output=True, check=True,
            ).stdout  # fmt: skip
            quarantine.index(io.BytesIO(data).read, 1 << 30, lambda: None, lambda _: None)
            assert quarantine.check_connected([commit.encode()])
            quarantine.keep_for(APP, build_id, Move(b"refs/heads/main", old.encode(), commit.encode()), along or [])

    def current(self, ref: bytes = b"refs/heads/main") -> str:
        return self.repositories.current(APP, ref).decode()

    def pinned(self) -> list[str]:
        return sorted(path.name for path in self.repositories.incoming.iterdir())


@pytest.fixture
def copy() -> Iterator[Copy]:
    home = Path(tempfile.mkdtemp(prefix="dvq", dir="/tmp"))
    try:
        yield Copy(home)
    finally:
        shutil.rmtree(home)


def members(copy: Copy, commit: str, build_id: str | None = None) -> dict[str, tarfile.TarInfo]:
    process = copy.repositories.archive(APP, commit, build_id)
    assert process.stdout
    data = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0
    return {member.name: member for member in tarfile.open(fileobj=io.BytesIO(data), errorlevel=2)}


def test_a_waiting_builds_commit_can_be_read_and_is_not_in_the_repository(copy: Copy) -> None:
    commit = copy.commit(file="x")
    copy.bring(commit, "build-1")
    assert "file" in members(copy, commit) and "file" in members(copy, commit, "build-1")
    with pytest.raises(NotFound):
        copy.repositories.archive(APP, commit, "build-2")
    copy.repositories.unpin("build-1")
    with pytest.raises(NotFound):
        copy.repositories.archive(APP, commit)
    with pytest.raises(NotFound):
        copy.repositories.archive(APP, "--output=/tmp/x")


def test_an_archive_is_what_a_checkout_is(copy: Copy) -> None:
    (copy.work / "run").write_text("#!/bin/sh\n")
    (copy.work / "run").chmod(0o755)
    (copy.work / "link").symlink_to("/etc/passwd")
    (copy.work / os.fsdecode(b"new\nline\xff")).write_text("x")
    commit = copy.commit(
        **{".gitattributes": "secret export-ignore\n*.txt export-subst\n"}, secret="kept", **{"a.txt": "$Format:%H$"}
    )  # fmt: skip
    copy.bring(commit, "build-1")
    found = members(copy, commit)
    assert {"secret", "a.txt", "run", "link", ".gitattributes"} < set(found)
    assert found["a.txt"].size == len("$Format:%H$")
    assert found["run"].mode == 0o755 and found["secret"].mode == 0o644 and found["link"].issym()


def test_submodules_are_those_with_a_commit_and_those_without_a_url_are_told_apart(copy: Copy) -> None:
    copy.commit()
    sha = "1" * 40
    modules = '[submodule "one"]\n\tpath = lib/one\n\turl = https://example.com/one.git\n'
    modules += '[submodule "gone"]\n\tpath=gone\n\turl=https://x\n'
    copy.git("update-index", "--add", "--cacheinfo", f"160000,{sha},lib/one", "--cacheinfo", f"160000,{sha},unmapped")
    (copy.work / ".gitmodules").write_text(modules)
    copy.git("add", ".gitmodules")
    copy.git("commit", "-q", "-m", "x")
    commit = copy.git("rev-parse", "HEAD")
    copy.bring(commit, "build-1")
    found = copy.repositories.submodules(APP, commit)
    assert [(s.path, s.url, s.sha) for s in found] == [("lib/one", "https://example.com/one.git", sha), ("unmapped", "", sha)]


def test_no_gitmodules_no_submodules(copy: Copy) -> None:
    commit = copy.commit(file="x")
    copy.bring(commit, "build-1")
    assert copy.repositories.submodules(APP, commit) == []


@pytest.mark.parametrize(
    "text",
    [f"[submodule \"a\"]\n\tpath = {p}\n\turl = {u}\n" for p, u in [
        ("../x", "https://x"), ("/x", "https://x"), ("a/.git/x", "https://x"), ("-x", "https://x"), ("a", "-upload-pack=x"),
        (".GIT", "https://x"), ('"a\\nb/../.."', "https://x"), ("a", '"http://x\\ny"')]]
    + ["[submodule", "[include]\n\tpath = /etc/passwd\n[submodule \"a\"]\n\tpath=../a\n\turl=x\n", "\0"],
)  # fmt: skip
def test_hostile_gitmodules_are_refused(copy: Copy, text: str) -> None:
    commit = copy.commit(**{".gitmodules": text})
    # As git's own checks would not let most of these in, they are put beside them.
    repository = copy.repositories.ensure(APP)
    copy.git("push", "-q", str(repository), "main")
    with pytest.raises(InvalidParams):
        copy.repositories.submodules(APP, commit)


def test_move_ref_admits_moves_and_can_be_repeated(copy: Copy) -> None:
    commit = copy.commit()
    copy.bring(commit, "build-1", along=[Move(b"refs/tags/v1", ZERO, commit.encode())])
    for _ in range(2):
        copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), commit)
    copy.repositories.unpin("build-1")
    assert copy.current() == copy.current(b"refs/tags/v1") == commit and copy.pinned() == []
    assert members(copy, commit) == {}


def test_move_ref_compares_before_it_swaps(copy: Copy) -> None:
    first, second = copy.commit(a="1"), copy.commit(a="2")
    copy.bring(first, "build-1")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), first, "build-1")
    copy.bring(second, "build-2", old=first)
    with pytest.raises(Conflict):
        copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), second, "build-2")
    with pytest.raises(Conflict):
        copy.repositories.move_ref(APP, "refs/heads/main", first, "1" * 40)
    assert copy.current() == first


def test_a_refs_turn_is_lost_only_to_what_the_push_does_not_contain(copy: Copy) -> None:
    base, first = copy.commit(a="1"), copy.commit(a="2")
    second = copy.commit(a="3")
    copy.git("checkout", "-q", base)
    other = copy.commit(a="4")
    for number, commit in enumerate((first, second, other)):
        copy.bring(commit, f"build-{number}", old=base)
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), first, "build-0")
    assert copy.repositories.check_turn(APP, "refs/heads/main", base, second) == first
    assert copy.repositories.check_turn(APP, "refs/heads/main", first, other) == first  # forced, and nothing moved
    with pytest.raises(FetchFirst):
        copy.repositories.check_turn(APP, "refs/heads/main", base, other)


def test_housekeeping_keeps_pending_finishes_succeeded_and_drops_the_rest(copy: Copy) -> None:
    commits = [copy.commit(a=str(number)) for number in range(3)]
    copy.bring(commits[0], "build-done")
    copy.bring(commits[1], "build-pending", old=commits[0])
    copy.bring(commits[2], "build-failed", old=commits[0])
    standing = {"build-done": "succeeded", "build-pending": "pending", "build-failed": "failed"}
    for _ in range(2):
        copy.repositories.housekeeping(standing.get)
        assert copy.pinned() == [f"{APP}.build-pending"]
        assert copy.current() == commits[0]
    copy.repositories.housekeeping(lambda build: None)
    assert copy.pinned() == []


def test_housekeeping_does_not_undo_what_was_released_later(copy: Copy) -> None:
    first = copy.commit(a="1")
    second = copy.commit(a="2")
    copy.bring(first, "build-1")
    copy.bring(second, "build-2")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), second, "build-2")
    copy.repositories.housekeeping(lambda build: "succeeded")
    assert copy.current() == second and copy.pinned() == []


def test_many_packs_are_put_together_and_garbage_goes_unless_somebody_is_pushing(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repositories, "PACKS", 5)
    old = ZERO.decode()
    for number in range(7):
        commit = copy.commit(a=str(number))
        copy.bring(commit, "build", old=old)
        copy.repositories.move_ref(APP, "refs/heads/main", old, commit, "build")
        copy.repositories.unpin("build")
        old = commit
    packs = copy.repositories.path(APP) / "objects" / "pack"
    (copy.repositories.path(APP) / "davit-garbage").unlink()
    copy.repositories.tidy(APP)
    assert len(list(packs.glob("*.pack"))) < 5
    assert "a" in members(copy, commit)
    stray = copy.commit(a="stray")
    copy.bring(stray, "build-2", old=old)
    copy.repositories.move_ref(APP, "refs/heads/main", old, stray, "build-2")
    copy.repositories.move_ref(APP, "refs/heads/main", stray, old)  # forced back: stray is garbage now
    copy.repositories.tidy(APP)
    assert "a" in members(copy, stray)  # a build still has it
    copy.repositories.unpin("build-2")
    copy.repositories.tidy(APP)
    with pytest.raises(NotFound):
        copy.repositories.archive(APP, stray)
    assert "a" in members(copy, commit)


def test_what_a_repository_takes_is_told_while_other_pushes_come_and_go(copy: Copy) -> None:
    repositories, over = copy.repositories, threading.Event()
    repositories.ensure("busy")

    def pushes() -> None:
        while not over.is_set():
            with repositories.receiving("busy"):
                pass

    threads = [threading.Thread(target=pushes) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert all(repositories.room("busy") > 0 for _ in range(300))
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_repositories_go_with_everything_that_was_coming_in(copy: Copy) -> None:
    copy.bring(copy.commit(), "build-1")
    assert copy.repositories.size(APP) > 0
    copy.repositories.remove(APP)
    assert copy.pinned() == [] and not copy.repositories.path(APP).exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a" * 65])
def test_ids_cannot_name_another_place(copy: Copy, name: str) -> None:
    with pytest.raises(ValueError):
        copy.repositories.path(name)
    with pytest.raises(ValueError):
        copy.repositories.unpin(name)


def test_plan_sorts_a_push() -> None:
    new = b"1" * 40
    made = plan(
        [
            Move(b"refs/heads/master", ZERO, new), Move(b"refs/heads/main", ZERO, new), Move(b"refs/heads/x", ZERO, new),
            Move(b"refs/davit/x", ZERO, new), Move(b"HEAD", ZERO, new), Move(b"refs/heads/live", new, ZERO),
        ],
        b"refs/heads/live",
    )  # fmt: skip
    assert made.deploy and made.deploy.ref == b"refs/heads/main"
    assert [move.ref for move in made.others] == [b"refs/heads/master", b"refs/heads/x"]
    assert set(made.refused) == {b"refs/davit/x", b"HEAD", b"refs/heads/live"}
    assert len(made.sentences) == 3


def test_many_refs_are_put_into_one_file(copy: Copy) -> None:
    commit = copy.commit(a="a")
    copy.bring(commit, "b1")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), commit, "b1")
    names = {b"refs/tags/%d" % number for number in range(repositories.LOOSE_REFS + 1)}
    with copy.repositories.receiving(APP) as quarantine:
        moved = copy.repositories.store(APP, quarantine, [Move(name, ZERO, commit.encode()) for name in names], atomic=False)
    assert all(moved.values())
    stale = copy.repositories.path(APP) / "packed-refs.lock"
    stale.touch()
    os.utime(stale, (0, 0))  # left by a process that was killed
    copy.repositories.tidy(APP)
    assert [file for file in (copy.repositories.path(APP) / "refs").rglob("*") if file.is_file()] == []
    assert copy.repositories.refs(APP).keys() == {*names, b"refs/heads/main"}
    assert copy.current() == commit
    with copy.repositories.receiving(APP) as quarantine:
        assert all(copy.repositories.store(APP, quarantine, [Move(b"refs/tags/0", commit.encode(), ZERO)], atomic=False).values())
    assert b"refs/tags/0" not in copy.repositories.refs(APP)


def test_a_lock_that_a_killed_git_left_holds_a_branch_up_only_for_a_moment(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = copy.commit(a="1"), copy.commit(a="2")
    copy.bring(first, "b1")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), first, "b1")
    repository = copy.repositories.path(APP)
    for name in ("HEAD.lock", "refs/heads/main.lock", "refs/heads/master.lock"):
        (repository / name).touch()
        os.utime(repository / name, (0, 0))
    copy.bring(second, "b2", old=first)
    copy.repositories.move_ref(APP, "refs/heads/main", first, second, "b2")
    assert copy.current() == second
    (repository / "HEAD.lock").touch()
    os.utime(repository / "HEAD.lock", (0, 0))
    copy.repositories.move_ref(APP, "refs/heads/master", ZERO.decode(), second)
    assert copy.repositories.deployed_branch(APP) == b"refs/heads/master"
    fresh = repository / "refs" / "heads" / "main.lock"
    fresh.touch()  # its owner may be alive
    monkeypatch.setattr(repositories, "STALE_LOCK_SECONDS", 1)
    copy.repositories.move_ref(APP, "refs/heads/main", second, first)
    assert copy.current() == first
    held = repository / "davit-refs.lock"
    assert held.exists(), "what is flocked is no lock of git's"


SLOW = """#!/bin/sh
[ "$1" = update-ref ] || exec {git} "$@"
touch -d @0 "$GIT_DIR/refs/heads/old.lock"
touch "$GIT_DIR/at-work"
for i in $(seq 1200); do [ -e "$GIT_DIR/go" ] && break; sleep 0.05; done
rm "$GIT_DIR/refs/heads/old.lock"
exec {git} "$@"
"""
"""A git whose locks are old because a disk is slow: it syncs all refs before it commits one."""


def test_no_lock_is_taken_from_a_git_that_is_still_at_work(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = copy.commit(a="1")
    copy.bring(commit, "b1")
    repository = copy.repositories.path(APP)
    (tmp_path / "git").write_text(SLOW.format(git=shutil.which("git")))
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    moving = threading.Thread(target=copy.repositories.move_ref, args=(APP, "refs/heads/main", ZERO.decode(), commit, "b1"))
    tidying = threading.Thread(target=copy.repositories.tidy, args=(APP,))
    moving.start()
    wait_until((repository / "at-work").exists, "git at work")
    tidying.start()
    tidying.join(1)
    assert (repository / "refs" / "heads" / "old.lock").exists()
    (repository / "go").touch()
    moving.join()
    tidying.join()
    assert copy.current() == commit


def test_housekeeping_removes_old_locks_and_drafts_and_leaves_new_ones(copy: Copy) -> None:
    commit = copy.commit(a="1")
    copy.bring(commit, "b1")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), commit, "b1")
    copy.repositories.unpin("b1")
    repository = copy.repositories.path(APP)
    objects = repository / "objects"
    (objects / "ab").mkdir()
    left = [objects / "pack/tmp_pack_a", objects / "pack/.tmp-1-pack-b.pack", objects / "ab/tmp_obj_c", repository / "refs/heads/x.lock"]
    under_way = [objects / "pack/tmp_pack_new", repository / "refs/heads/y.lock"]
    for file in (*left, *under_way):
        file.write_bytes(b"x")
    for file in left:
        os.utime(file, (0, 0))
    copy.repositories.housekeeping(lambda build: None)
    assert [file for file in (*left, *under_way) if file.exists()] == under_way
    assert copy.current() == commit


def test_garbage_is_remembered_until_a_repack_has_come_to_its_end(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    first, stray = copy.commit(a="1"), copy.commit(a="stray")
    for build, commit, old in (("b1", first, ZERO.decode()), ("b2", stray, first)):
        copy.bring(commit, build, old=old)
        copy.repositories.move_ref(APP, "refs/heads/main", old, commit, build)
        copy.repositories.unpin(build)
    copy.repositories.move_ref(APP, "refs/heads/main", stray, first)
    with monkeypatch.context() as small:
        small.setattr(git, "MEMORY", 1 << 20)  # git ends for want of memory
        copy.repositories.tidy(APP)
    assert (copy.repositories.path(APP) / "davit-garbage").exists()
    assert "a" in members(copy, stray)
    copy.repositories.tidy(APP)
    assert not (copy.repositories.path(APP) / "davit-garbage").exists()
    with pytest.raises(NotFound):
        copy.repositories.archive(APP, stray)


def test_a_repository_that_a_power_cut_emptied_is_completed_and_takes_pushes(copy: Copy) -> None:
    first, second = copy.commit(a="1", **{".gitattributes": "a export-ignore\n"}), copy.commit(a="2")
    copy.bring(first, "b1")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), first, "b1")
    repository = copy.repositories.path(APP)
    for name in ("HEAD", "config", "info/attributes", "refs/heads/main"):
        os.truncate(repository / name, 0)
    copy.bring(second, "b2")
    copy.repositories.move_ref(APP, "refs/heads/main", ZERO.decode(), second, "b2")
    assert copy.current() == second and copy.repositories.deployed_branch(APP) == b"refs/heads/main"
    assert "a" in members(copy, second)
    assert git.run(git.environment(repository), "config", "core.bare").stdout == b"true\n"
    os.truncate(repository / "HEAD", 0)
    copy.repositories.housekeeping(lambda build: "pending")
    copy.repositories.read_bundle("restored", None, head=b"", shallow=None)  # of a backup taken when HEAD was empty
    assert copy.repositories.deployed_branch("restored") == copy.repositories.deployed_branch(APP) == b"refs/heads/main"


def test_a_build_whose_moves_a_power_cut_took_moves_its_own_ref(copy: Copy) -> None:
    first, second = copy.commit(a="1"), copy.commit(a="2")
    for build, commit, old in (("b1", first, ZERO.decode()), ("b2", second, first)):
        copy.bring(commit, build, old=old)
        os.truncate(copy.repositories.incoming / f"{APP}.{build}" / "moves.json", 0)
        copy.repositories.move_ref(APP, "refs/heads/main", old, commit, build)
        assert copy.current() == commit
    copy.repositories.housekeeping(lambda build: "succeeded")
    assert copy.pinned() == [] and "a" in members(copy, second)


def test_the_repository_of_an_app_that_is_destroyed_meanwhile_is_not_made_anew(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for app_id in ("a", "b"):
        copy.repositories.ensure(app_id)
    real = copy.repositories._forget_empty_refs

    def destroyed(app_id: str) -> None:
        real(app_id)
        if app_id == "a":
            copy.repositories.remove("b")

    monkeypatch.setattr(copy.repositories, "_forget_empty_refs", destroyed)
    copy.repositories.housekeeping(lambda build: None)
    assert [path.name for path in copy.repositories.root.glob("*.git")] == ["a.git"]


def test_what_makes_trouble_keeps_housekeeping_from_nothing_else(copy: Copy) -> None:
    def standing(build: str) -> str | None:
        assert build != "b1", "trouble"
        return None

    commit = copy.commit(a="1")
    copy.bring(commit, "b1")
    copy.bring(commit, "b2")
    copy.repositories.housekeeping(standing)
    assert copy.pinned() == [f"{APP}.b1"]


def test_a_repository_that_is_being_removed_is_not_completed(copy: Copy) -> None:
    head = copy.repositories.ensure(APP) / "HEAD"
    head.unlink()
    copy.repositories.ensure(APP)
    assert not head.exists()


def test_a_damaged_repository_is_not_told_as_the_pushers_fault(copy: Copy) -> None:
    commit = copy.commit(a="1")
    shutil.rmtree(copy.repositories.ensure(APP) / "refs")
    with pytest.raises(PackRefused, match="damaged, which is no fault of your push's"):
        copy.bring(commit, "b1")
    assert copy.pinned() == []
