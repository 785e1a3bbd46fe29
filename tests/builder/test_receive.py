"""What a push does, with the real git client, on both transports."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from pathlib import Path

import pytest

from tests.builder.git_doors import LIMIT, App, Door, door, doors  # noqa: F401
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

# ruff: noqa: F811


def read_until(process: subprocess.Popen[bytes], text: str) -> str:
    """Read a push's output until ``text`` has come."""
    assert process.stdout is not None
    seen = b""
    while text.encode() not in seen:
        data = os.read(process.stdout.fileno(), 4096)
        assert data, f"the push ended before {text!r}: {seen.decode()}"
        seen += data
    return seen.decode()


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    text = process.communicate(timeout=60)[0].decode()
    return process.returncode, text


def test_first_push_is_built_streamed_and_moves_the_ref(door: Door) -> None:
    app = door.app()
    app.commit("say first line\nsay second line")
    pushed = app.push()
    assert pushed
    assert "remote: -----> Building" in pushed.text and "remote: second line" in pushed.text
    assert "[new branch]" in pushed.text
    assert app.refs == {"refs/heads/main": app.head()}
    assert app.incoming() == []


def test_failed_build_refuses_the_ref_and_leaves_nothing(door: Door) -> None:
    app = door.app()
    assert app.push()
    good, before = app.head(), app.objects()
    app.commit("say oh no\nfail build failed")
    pushed = app.push()
    assert not pushed
    assert "! [remote rejected] main -> main (build failed)" in pushed.text
    assert app.refs == {"refs/heads/main": good}
    assert app.objects() == before and app.incoming() == []


@pytest.mark.row("build-out-of-sight")
def test_a_build_that_is_out_of_sight_goes_on(door: Door) -> None:
    app = door.app()
    app.commit(f"lose\nwait {app.name}.go")
    pushed = app.push()
    assert not pushed and "! [remote rejected] main -> main (lost sight of the build)" in pushed.text
    assert_says("build-out-of-sight", pushed.text)
    app.let(f"{app.name}.go")
    wait_until(lambda: app.refs == {"refs/heads/main": app.head()}, "the build's end")


@pytest.mark.parametrize("reason", ["release phase failed", "app did not start", "cancelled"])
def test_the_reason_of_the_refusal_is_the_builds_own(door: Door, reason: str) -> None:
    app = door.app()
    app.commit(f"fail {reason}")
    assert f"! [remote rejected] main -> main ({reason})" in app.push().text


def test_lines_arrive_while_the_build_goes_on(door: Door) -> None:
    app = door.app()
    app.commit(f"say early\nwait {app.name}.go\nsay late")
    push = app.pushing()
    assert "late" not in read_until(push, "remote: early")
    app.let(f"{app.name}.go")
    status, rest = end_of(push)
    assert status == 0 and "remote: late" in rest


def test_partial_lines_and_keepalives_go_out_at_once(door: Door, tmp_path: Path) -> None:
    app = door.app()
    app.commit(f"partial half\nwait {app.name}.go\npartial  whole\nsay !")
    trace = tmp_path / "trace"
    env = {**door.environment(), "GIT_TRACE_PACKET": str(trace)}
    push = subprocess.Popen(
        ["git", "push", "davit", "main"], cwd=app.work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip
    wait_until(lambda: trace.exists() and "\\2half" in trace.read_text(), "the half line arriving")
    wait_until(lambda: trace.read_text().count("sideband< \\1\n") >= 2, "empty packets in the silence")
    app.let(f"{app.name}.go")
    status, text = end_of(push)
    assert status == 0 and "remote: half whole!" in text


def test_binary_output_reaches_the_pusher(door: Door) -> None:
    app = door.app()
    app.commit("bytes 61006200fffe0a\nsay " + "x" * 200_000 + "\nsay end")
    pushed = app.push()
    assert pushed and "remote: ab" in pushed.text and "x" * 200_000 in pushed.text and "remote: end" in pushed.text


def test_nothing_new_is_up_to_date(door: Door) -> None:
    app = door.app()
    assert app.push()
    pushed = app.push()
    assert pushed and "Everything up-to-date" in pushed.text


def test_an_empty_commit_builds_again(door: Door) -> None:
    app = door.app()
    assert app.push()
    app.commit()
    assert "remote: -----> Building" in app.push().text
    assert app.refs["refs/heads/main"] == app.head()


def test_master_deploys_too(door: Door) -> None:
    app = door.app()
    assert "remote: -----> Building" in app.push("davit", "main:master").text


def test_another_branch_is_stored_and_said_not_to_be_deployed(door: Door) -> None:
    app = door.app()
    app.git("checkout", "-q", "-b", "feature")
    pushed = app.push("davit", "feature")
    assert pushed and "Building" not in pushed.text
    assert "feature was not deployed: only main and master are." in pushed.text
    assert app.refs == {"refs/heads/feature": app.head()}
    deployed = app.push("davit", "feature:main")  # its objects are there already: the pack is empty
    assert deployed and "Building" in deployed.text
    assert app.refs["refs/heads/main"] == app.head()


def test_main_goes_before_master_when_both_move(door: Door) -> None:
    app = door.app()
    app.git("branch", "master")
    app.commit("say this is main")
    pushed = app.push("davit", "main", "master")
    assert pushed and pushed.text.count("Building") == 1 and "this is main" in pushed.text
    assert "master was stored and not deployed" in pushed.text
    assert set(app.refs) == {"refs/heads/main", "refs/heads/master"}


def test_tags_are_stored_and_deleted(door: Door) -> None:
    app = door.app()
    app.git("tag", "light")
    app.git("tag", "-a", "-m", "annotated", "heavy")
    assert app.push("davit", "main", "--tags")
    assert {"refs/tags/light", "refs/tags/heavy"} < set(app.refs)
    assert app.push("davit", ":light", ":heavy")
    assert set(app.refs) == {"refs/heads/main"}
    told = [line.split() for line in (door.doors.home / "stored").read_text().splitlines()]
    moved = [(name, at) for who, which, name, at in told if (who, which) == ("alice", app.name)]
    assert ("refs/tags/light", app.head()) in moved
    assert {name for name, at in moved if at == "0" * 40} == {"refs/tags/light", "refs/tags/heavy"}
    assert not [name for name, _ in moved if name == "refs/heads/main"], "the build has that on record"


def test_a_branch_can_be_deleted_but_not_the_deployed_one(door: Door) -> None:
    app = door.app()
    assert app.push("davit", "main", "main:other")
    assert app.push("davit", ":other")
    pushed = app.push("davit", ":main")
    assert not pushed and "deletion of the deployed branch prohibited" in pushed.text
    assert app.push("davit", "main:master")  # now master is deployed …
    assert app.push("davit", ":main")  # … and main can go
    assert set(app.refs) == {"refs/heads/master"}


def test_force_push_replaces_the_branch(door: Door) -> None:
    app = door.app()
    assert app.push()
    app.git("commit", "-q", "--amend", "-m", "another")
    assert "non-fast-forward" in app.push().text
    assert app.push("-f", "davit", "main")
    assert app.refs["refs/heads/main"] == app.head()


def test_atomic_push_moves_all_with_the_release(door: Door) -> None:
    app = door.app()
    app.git("tag", "v1")
    assert app.push("--atomic", "davit", "main", "v1", "main:other")
    assert set(app.refs) == {"refs/heads/main", "refs/heads/other", "refs/tags/v1"}


def test_atomic_push_moves_nothing_when_the_build_fails(door: Door) -> None:
    app = door.app()
    app.commit("fail build failed")
    app.git("tag", "v1")
    pushed = app.push("--atomic", "davit", "main", "v1")
    assert not pushed and "(build failed)" in pushed.text and "atomic push failed" in pushed.text
    assert app.refs == {} and app.objects() == []


def test_atomic_push_with_a_refused_ref_is_not_built(door: Door) -> None:
    app = door.app()
    pushed = app.push("--atomic", "davit", "main", "main:refs/davit/mine")
    assert not pushed and "Building" not in pushed.text and app.refs == {}


def test_without_atomic_the_other_refs_move_whatever_the_build_does(door: Door) -> None:
    app = door.app()
    app.commit("fail build failed")
    pushed = app.push("davit", "main", "main:other")
    assert not pushed and "(build failed)" in pushed.text and "[new branch]" in pushed.text
    assert set(app.refs) == {"refs/heads/other"}


def test_mirror_push_takes_every_ref_and_deletes_the_gone(door: Door) -> None:
    app = door.app()
    app.git("tag", "v1")
    app.git("branch", "one")
    app.git("update-ref", "refs/remotes/origin/x", "HEAD")
    assert app.push("--mirror", "davit")
    assert set(app.refs) == {"refs/heads/main", "refs/heads/one", "refs/tags/v1", "refs/remotes/origin/x"}
    app.git("branch", "-D", "one")
    app.git("remote", "add", "origin2", door.url(app.name))
    assert app.push("--mirror", "davit")
    assert "refs/heads/one" not in app.refs


def test_a_shallow_clone_can_be_deployed_and_carried_on_from_a_full_one(door: Door) -> None:
    app = door.app()
    for number in range(3):
        app.commit(f"say {number}")
    shallow = app.home / "work" / f"{app.name}-shallow"
    app.git("clone", "-q", "--depth", "1", f"file://{app.work}", str(shallow))
    pushed = app.git("push", door.url(app.name), "main", cwd=shallow, check=False)
    assert pushed, pushed.text
    assert app.refs == {"refs/heads/main": app.head()}
    app.commit("say on top")
    assert "on top" in app.push().text
    assert app.refs == {"refs/heads/main": app.head()}


def shallow_clone(app: App, depth: int = 1) -> Path:
    """What a continuous integration checks out."""
    shallow = app.home / "work" / f"{app.name}-shallow"
    app.git("clone", "-q", "--no-tags", "--depth", str(depth), f"file://{app.work}", str(shallow))
    return shallow


def counted(app: App, ref: str = "main") -> int:
    words = ["git", "--git-dir", app.repositories.path(app.name), "rev-list", "--count", ref]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_a_shallow_push_leaves_the_history_that_is_there(door: Door) -> None:
    app = door.app()
    for number in range(3):
        app.commit(f"say {number}")
    assert app.push() and counted(app) == 4
    app.commit("say from elsewhere")
    shallow = shallow_clone(app)
    # forced, because git does not see there that it goes on from what was deployed
    assert app.git("push", "-f", door.url(app.name), "main", cwd=shallow, check=False)
    assert app.refs == {"refs/heads/main": app.head()}
    assert counted(app) == 5 and not (app.repositories.path(app.name) / "shallow").exists()
    app.commit("say more")
    app.git("commit", "-q", "--amend", "-m", "another")
    assert app.push("-f", "davit", "main")  # what it leaves behind is collected
    assert counted(app) == 6
    copy = app.home / "work" / f"{app.name}-copy"
    app.git("clone", "-q", door.url(app.name), str(copy))
    assert app.git("rev-list", "--count", "HEAD", cwd=copy).text.strip() == "6"


def test_a_shallow_push_whose_parents_are_not_there_begins_the_history(door: Door) -> None:
    app = door.app()
    assert app.push() and counted(app) == 1
    for number in range(3):
        app.commit(f"say {number}")
    shallow = shallow_clone(app, depth=2)
    assert app.git("push", "-f", door.url(app.name), "main", cwd=shallow, check=False)
    assert counted(app) == 2
    assert (app.repositories.path(app.name) / "shallow").read_text().split() == [app.head("HEAD~1")]
    assert app.push("davit", "main:whole") and counted(app, "whole") == 2  # the client takes the root for one, too


def test_a_root_whose_parent_is_there_without_its_own_parents_stays_one(door: Door) -> None:
    """A commit that nothing points at, left by chance: its history cannot be told."""
    app = door.app()
    for number in range(3):
        app.commit(f"say {number}")
    repository = app.repositories.ensure(app.name)
    stray = app.git("cat-file", "commit", "HEAD~1").text
    subprocess.run(
        ["git", "--git-dir", repository, "hash-object", "-t", "commit", "-w", "--stdin"], input=stray, text=True, check=True
    )
    shallow = shallow_clone(app)
    assert app.git("push", door.url(app.name), "main", cwd=shallow, check=False)
    assert counted(app) == 1 and (repository / "shallow").read_text().split() == [app.head()]


def test_push_options_are_politely_ignored(door: Door) -> None:
    app = door.app()
    assert app.push("-o", "ci.skip", "-o", "x=y", "davit", "main")


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_every_protocol_version_pushes_and_clones(door: Door, version: str) -> None:
    app = door.app()
    assert app.git("-c", f"protocol.version={version}", "push", "davit", "main")
    copy = app.home / "work" / f"{app.name}-copy"
    app.git("-c", f"protocol.version={version}", "clone", "-q", door.url(app.name), str(copy))
    assert (copy / "script").read_text() == "say hello"
    app.commit("say more")
    assert app.push()
    app.git("-c", f"protocol.version={version}", "pull", "-q", cwd=copy)
    assert (copy / "script").read_text() == "say more"


def test_an_empty_app_can_be_cloned(door: Door) -> None:
    app = door.app()
    assert app.git("clone", "-q", door.url(app.name), str(app.home / "work" / f"{app.name}-empty"))


def test_hidden_refs_are_refused(door: Door) -> None:
    app = door.app()
    pushed = app.push("davit", "main:refs/davit/builds/x")
    assert not pushed and "hidden ref" in pushed.text and app.refs == {}


def test_only_a_commit_can_be_deployed(door: Door) -> None:
    app = door.app()
    app.git("tag", "-a", "-m", "x", "v1")
    for what in ("v1", "HEAD^{tree}", "HEAD:script"):
        pushed = app.push("davit", f"{app.head(what)}:refs/heads/main")
        assert not pushed and "not a commit" in pushed.text, pushed.text
    assert app.refs == {} and app.objects() == []


def test_a_branch_below_another_is_refused_and_the_rest_stored(door: Door) -> None:
    app = door.app()
    assert app.push("davit", "main:a")
    pushed = app.push("davit", "main:refs/heads/a/b", "main:c")
    assert not pushed and "failed to update ref" in pushed.text
    assert set(app.refs) == {"refs/heads/a", "refs/heads/c"}


def test_a_push_beyond_the_limit_gets_a_sentence_and_leaves_nothing(door: Door) -> None:
    app = door.app()
    good = app.head()
    (app.work / "large").write_bytes(secrets.token_bytes(LIMIT + (4 << 20)))
    app.commit()
    pushed = app.push()
    assert not pushed and "Your push is larger than the 8 MiB" in pushed.text, pushed.text
    assert "unpacker error" in pushed.text
    assert app.refs == {} and app.objects() == [] and app.incoming() == []
    app.git("reset", "-q", "--hard", good)
    assert app.push()


def test_large_files_within_the_limit_arrive_whole(door: Door) -> None:
    app = door.app()
    data = secrets.token_bytes(6 << 20)
    (app.work / "large").write_bytes(data)
    app.commit()
    assert app.push()
    (app.work / "large").write_bytes(data + b"a little more")  # a thin pack would have a delta: both versions in memory
    app.commit()
    assert app.push()
    assert app.refs["refs/heads/main"] == app.head()
    blob = app.git("rev-parse", "HEAD:large").text.strip()
    words = ["git", "--git-dir", app.repositories.path(app.name), "cat-file", "--batch-check=%(deltabase)"]
    assert subprocess.run(words, input=blob, capture_output=True, text=True, check=True).stdout.strip() == "0" * 40


def test_unknown_foreign_and_forbidden_apps(door: Door) -> None:
    app = door.app()
    unknown, foreign, shared = (app.push(door.url(name), "main").text for name in ("nosuch-app", "bob-app", "bobs-shared-app"))
    assert "Couldn't find that app." in unknown
    assert unknown.replace("nosuch-app", "APP") == foreign.replace("bob-app", "APP")
    assert "You may not do that." in shared
    assert "Couldn't find that app." in app.git("clone", door.url("bob-app"), check=False).text


def test_the_second_push_waits_its_turn_and_says_so(door: Door) -> None:
    app = door.app()
    app.commit(f"say one\nwait {app.name}.go")
    first = app.pushing()
    read_until(first, "remote: one")
    app.commit("say two")
    second = app.pushing()
    read_until(second, "Waiting for another build")
    app.let(f"{app.name}.go")
    assert end_of(first)[0] == 0
    status, text = end_of(second)
    assert status == 0 and "remote: two" in text, text
    assert app.refs["refs/heads/main"] == app.head()


def test_a_push_that_waited_in_vain_has_to_fetch_first(door: Door) -> None:
    app = door.app()
    assert app.push()
    base = app.head()
    winner = app.commit(f"say one\nwait {app.name}.go")
    first = app.pushing()
    read_until(first, "remote: one")
    app.git("reset", "-q", "--hard", base)
    app.commit("say another way")
    second = app.pushing()
    read_until(second, "Waiting for another build")
    app.let(f"{app.name}.go")
    assert end_of(first)[0] == 0
    status, text = end_of(second)
    assert status != 0 and "(fetch first)" in text and "Fetch first, then push again." in text
    assert app.refs["refs/heads/main"] == winner


def test_the_same_commit_pushed_twice_at_once(door: Door) -> None:
    app = door.app()
    app.commit(f"say one\nwait {app.name}.go\nfail build failed")
    first = app.pushing()
    read_until(first, "remote: one")
    second = app.pushing()
    read_until(second, "Waiting for another build")
    app.let(f"{app.name}.go")
    assert "(build failed)" in end_of(first)[1] and "(build failed)" in end_of(second)[1]
    assert app.objects() == [] and app.incoming() == []


def test_many_pushes_to_one_app_at_once(door: Door) -> None:
    app = door.app()
    assert app.push()
    pushes = [app.pushing("davit", f"main:refs/heads/b{number}") for number in range(6)]
    ended = [end_of(push) for push in pushes]
    assert [status for status, _ in ended] == [0] * 6, [text for status, text in ended if status]
    assert len(app.refs) == 7


def test_a_build_goes_on_when_its_pusher_is_gone(door: Door) -> None:
    app = door.app()
    app.commit(f"say one\nwait {app.name}.go\n" + "say more\n" * 100)
    push = app.pushing()
    read_until(push, "remote: one")
    os.killpg(push.pid, signal.SIGKILL)
    push.communicate()
    app.let(f"{app.name}.go")
    wait_until(lambda: app.refs.get("refs/heads/main") == app.head(), "the release")
    wait_until(lambda: app.incoming() == [], "the quarantine's end")


def test_a_push_that_breaks_off_leaves_nothing(door: Door) -> None:
    app = door.app()
    (app.work / "large").write_bytes(secrets.token_bytes(4 << 20))
    app.commit()
    # A client that is stopped while it sends: its pack comes through a pipe that ends too early.
    broken = app.home / "work" / f"{app.name}-bin"
    broken.mkdir()
    (broken / "git-pack-objects-cut").write_text('#!/bin/sh\ngit pack-objects "$@" | head -c 1000000; kill -9 $PPID\n')
    (broken / "git-pack-objects-cut").chmod(0o755)
    push = subprocess.run(
        ["git", "-c", "alias.x=!true", "push", "davit", "main"], cwd=app.work, capture_output=True,
        env={**door.environment(), "GIT_EXEC_PATH": _exec_path_with(broken)},
    )  # fmt: skip
    assert push.returncode != 0
    wait_until(lambda: app.incoming() == [], "the quarantine's end")
    assert app.refs == {} and app.objects() == []


def _exec_path_with(directory: Path) -> str:
    """git's own programs, but for a pack-objects that is cut short."""
    original = Path(subprocess.run(["git", "--exec-path"], capture_output=True, check=True).stdout.decode().strip())
    for program in original.iterdir():
        if program.name != "git":
            (directory / program.name).symlink_to(program)
    wrapper = directory / "git"
    wrapper.write_text(
        '#!/bin/sh\nif [ "$1" = pack-objects ]; then shift; GIT_EXEC_PATH= /usr/bin/git pack-objects "$@" | head -c 1000000; '
        'kill -9 $PPID; exit 1; fi\nexec /usr/bin/git "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(directory)


def test_a_released_ref_is_moved_though_the_job_died_before(door: Door) -> None:
    app = door.app()
    (app.home / "keep").touch()
    try:
        app.commit("die")
        assert app.push()
        assert app.refs == {"refs/heads/main": app.head()}
    finally:
        (app.home / "keep").unlink()
        app.repositories.housekeeping(lambda build: None)


def test_the_deployed_branch_is_what_a_clone_checks_out(door: Door) -> None:
    app = door.app()
    assert app.push("davit", "main:master")
    copy = app.home / "work" / f"{app.name}-copy"
    app.git("clone", "-q", door.url(app.name), str(copy))
    assert app.git("branch", "--show-current", cwd=copy).text.strip() == "master"


def test_odd_file_names_and_old_slips_are_taken(door: Door) -> None:
    app = door.app()
    for name in (b"new\nline", b"caf\xe9", b"-rf", b"tab\t"):
        (Path(os.fsdecode(os.fsencode(app.work) + b"/" + name))).write_text("x")
    app.commit()
    slip = f"tree {app.head('HEAD^{tree}')}\nparent {app.head()}\nauthor A <> 1 +051800\ncommitter A<a> 1 +0000\n\nslips\n"
    made = subprocess.run(
        ["git", "hash-object", "-t", "commit", "--literally", "-w", "--stdin"],
        cwd=app.work, input=slip.encode(), capture_output=True, check=True,
    )  # fmt: skip
    app.git("reset", "-q", "--hard", made.stdout.decode().strip())
    pushed = app.push()
    assert pushed, pushed.text
