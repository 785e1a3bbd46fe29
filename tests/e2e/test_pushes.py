"""Everything that ``git push`` can be, and what else starts, cancels or shapes a build."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.together import Together
from tests.e2e.world import TINY, App, Davit, eventually, tiny

scene = Together(at_once=6)


def sha(app: App, revision: str = "HEAD") -> str:
    return app.git("rev-parse", revision).stdout.strip()


def stored(app: App) -> dict[str, str]:
    """The refs that Davit keeps."""
    lines = app.git("ls-remote", "davit").stdout.splitlines()
    return {name: found for found, name in (line.split("\t") for line in lines)}


def twin(app: App) -> App:
    """A second checkout of the same app, a clone of the first."""
    place = Path(tempfile.mkdtemp(prefix="tw", dir=app.davit.home / "person"))
    app.git("clone", "-q", f"file://{app.checkout}", str(place))
    other = App(app.davit, app.name, place)
    app.davit.cli("git:remote", "-a", app.name, cwd=place)
    return other


def slowly(app: App, then: str = "") -> None:
    """From now on the app's builds print “working” and take a while."""
    app.use_buildpack(f"echo working; sleep 4; {then}")


def phases(app: App) -> list[str]:
    with app.davit.client() as client:
        builds = client.get(f"/apps/{app.name}/builds").raise_for_status().json()
    return [build["phase"] for build in sorted(builds, key=lambda build: build["created_at"])]


@scene
def both_versions_of_the_protocol(app: App) -> None:
    for number in (0, 2):
        app.commit(tiny(f"protocol {number}"))
        done = app.git("-c", f"protocol.version={number}", "push", "davit", "main", check=False)
        assert done.returncode == 0, done.stderr
        app.assert_serves(f"protocol {number}")
        fetched = app.git("-c", f"protocol.version={number}", "fetch", "davit", check=False)
        assert fetched.returncode == 0 and sha(app, "davit/main") == sha(app), fetched.stderr


@scene
def an_atomic_push_moves_all_or_nothing(app: App) -> None:
    app.deploy(tiny("first"))
    app.git("branch", "along")
    app.commit({"requirements.txt": "this-package-does-not-exist-davit==1.0\n"})
    push = app.push("--atomic", "main", "along")
    assert not push.accepted and "(build failed)" in push.output, push.output
    assert "refs/heads/along" not in stored(app)
    app.commit({**tiny("second"), "requirements.txt": None})
    push = app.push("--atomic", "main", "along")
    assert push.accepted, push.output
    assert stored(app)["refs/heads/along"] and stored(app)["refs/heads/main"] == sha(app)
    app.assert_serves("second")


@scene
def history_that_was_rewritten_takes_force(app: App) -> None:
    app.deploy(tiny("first"))
    app.write(tiny("rewritten"))
    app.git("commit", "-qa", "--amend", "-m", "another")
    push = app.push()
    assert not push.accepted and "rejected" in push.output, push.output
    app.assert_serves("first")
    push = app.push("--force", "main")
    assert push.accepted and "Released v3" in push.output, push.output
    app.assert_serves("rewritten")
    assert stored(app)["refs/heads/main"] == sha(app)


@scene
def tags_and_branches_come_and_go_without_a_deploy(app: App) -> None:
    app.deploy(tiny("first"))
    app.git("tag", "-a", "v1.0", "-m", "the first")
    app.git("branch", "feature")
    push = app.push("v1.0", "feature")
    assert push.accepted and "feature was not deployed" in push.output, push.output
    assert {"refs/tags/v1.0", "refs/heads/feature"} <= set(stored(app))
    push = app.push(":feature", ":v1.0")
    assert push.accepted, push.output
    assert set(stored(app)) == {"HEAD", "refs/heads/main"}
    push = app.push(":main")
    assert not push.accepted and "cannot be deleted" in push.output, push.output
    assert len(app.releases()) == 2
    app.assert_serves("first")


@scene
def master_deploys_like_main_and_two_refs_go_at_once(app: App) -> None:
    app.commit(tiny("master"))
    app.git("branch", "-m", "master")
    push = app.push("master")
    assert push.accepted and "Released v2" in push.output, push.output
    app.assert_serves("master")
    app.commit(tiny("both"))
    app.git("branch", "feature")
    push = app.push("master", "feature")
    assert push.accepted and "feature was not deployed" in push.output and "Released v3" in push.output, push.output
    assert stored(app)["refs/heads/feature"] == stored(app)["refs/heads/master"] == sha(app)
    app.assert_serves("both")


@scene
def a_shallow_clone_can_be_pushed(app: App) -> None:
    for number in range(3):
        app.commit(tiny(f"version {number}"))
    place = Path(tempfile.mkdtemp(prefix="sh", dir=app.davit.home / "person"))
    app.git("clone", "-q", "--depth=1", f"file://{app.checkout}", str(place))
    app.davit.cli("git:remote", "-a", app.name, cwd=place)
    shallow = App(app.davit, app.name, place)
    assert shallow.git("rev-list", "--count", "HEAD").stdout.strip() == "1"
    assert shallow.push().accepted
    app.assert_serves("version 2")
    shallow.commit(tiny("version 3"))
    push = shallow.push()
    assert push.accepted, push.output
    app.assert_serves("version 3")


@scene
def a_mirror_brings_everything_and_deploys_main(app: App) -> None:
    app.commit(tiny("mirrored"))
    app.git("branch", "other")
    app.git("tag", "one")
    app.git("config", "remote.davit.mirror", "true")
    push = app.push("--mirror")
    assert push.accepted, push.output
    assert {"refs/heads/main", "refs/heads/other", "refs/tags/one"} <= set(stored(app))
    app.assert_serves("mirrored")


@scene
def a_submodule_that_cannot_be_fetched_is_named(app: App) -> None:
    app.deploy(tiny("first"))
    library = app.checkout.with_name(f"{app.checkout.name}-lib")
    library.mkdir()
    subprocess.run("git init -q && echo x > x && git add x && git commit -qm x", shell=True, cwd=library, check=True, env=app.davit.environment)
    app.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", f"file://{library}", "lib")
    app.commit()
    push = app.push_refused()
    assert "The submodule lib has the URL file://" in push.output and "only https, http, git and ssh" in push.output
    app.git("config", "-f", ".gitmodules", "submodule.lib.url", "http://127.0.0.1:9/lib.git")
    app.commit()
    push = app.push_refused()
    assert "The submodule lib could not be fetched" in push.output, push.output
    app.assert_serves("first")


@scene
def two_apps_are_built_at_the_same_time(app: App) -> None:
    other = app.davit.create()
    try:
        with ThreadPoolExecutor(2) as pool:
            pushes = []
            for one in (app, other):
                one.use_buildpack("echo working; sleep 600")
                one.commit(tiny("never"))
                pushes.append(pool.submit(one.push))
            eventually(lambda: phases(app) == phases(other) == ["building"], "both are being built", 60)
            for one in (app, other):
                one.cli("builds:cancel")
            for push in pushes:
                assert "main -> main (cancelled)" in push.result().output and "The build was cancelled" in push.result().output
    finally:
        other.cli("apps:destroy", "--confirm", other.name)
    assert len(app.releases()) == 1 and not stored(app)


@scene
def a_second_push_waits_its_turn_says_so_and_is_right(app: App) -> None:
    slowly(app)
    app.commit(tiny("first"))
    later, apart = twin(app), twin(app)
    later.commit(tiny("second"))
    apart.commit(tiny("apart"))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(app.push)
        eventually(lambda: phases(app), "the first push has a build", 60)
        second = pool.submit(later.push)
        eventually(lambda: len(phases(app)) == 2, "the second push waits", 60)
        third = pool.submit(apart.push)
        assert first.result().accepted, first.result().output
        assert "Released v2" in first.result().output
        pushed = second.result()
        assert pushed.accepted and "Released v3" in pushed.output, pushed.output
        assert "wait" in pushed.output.lower(), pushed.output
        refused = third.result()
        assert not refused.accepted and "(fetch first)" in refused.output, refused.output
    app.assert_serves("second")
    assert stored(app)["refs/heads/main"] == sha(later)


@scene
def a_push_that_waits_its_turn_is_cancelled_at_once(app: App) -> None:
    app.use_buildpack("echo working; sleep 600")
    app.commit(tiny("never"))
    later = twin(app)
    later.commit(tiny("later"))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(app.push)
        eventually(lambda: phases(app) == ["building"], "the first is being built", 60)
        second = pool.submit(later.push)
        eventually(lambda: phases(app) == ["building", "waiting"], "the second waits", 60)
        app.cli("builds:cancel")  # the newest
        assert "main -> main (cancelled)" in (pushed := second.result()).output, pushed.output
        assert phases(app) == ["building", "done"]
        app.cli("builds:cancel")
        assert "main -> main (cancelled)" in first.result().output
    assert not stored(app)


@scene
def a_build_goes_on_when_its_pusher_is_gone(app: App) -> None:
    slowly(app)
    app.commit(tiny("first"))
    process = subprocess.Popen(
        ["git", "push", "davit", "main"], cwd=app.checkout, env=app.davit.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        eventually(lambda: b"working" in process.stdout.readline(), "the build works", 60)  # type: ignore[union-attr]
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: phases(app) == ["done"], "the build has ended", 60)
    app.assert_serves("first")
    assert [release["description"] for release in app.releases()][1:] == [f"Deploy {sha(app)[:8]}"]
    push = app.push()
    assert push.accepted and "Everything up-to-date" in push.output, push.output


@scene
def a_rebuild_takes_no_commit_and_an_empty_commit_is_one(app: App) -> None:
    app.deploy(tiny("first"))
    done = app.cli("builds:create")
    assert "Released v3" in done.stdout, done.stdout
    assert [release["description"] for release in app.releases()][1:] == [f"Deploy {sha(app)[:8]}"] * 2
    app.git("commit", "-q", "--allow-empty", "-m", "again")
    push = app.push()
    assert push.accepted and "Released v4" in push.output
    app.assert_serves("first")
    app.cli("config:set", "BROKEN=1")
    app.use_buildpack("echo no; exit 1")
    refused = app.cli("builds:create", check=False)
    assert refused.returncode == 1 and "Failed to compile" in refused.stdout + refused.stderr
    with app.davit.client() as client:
        info = client.get(f"/apps/{app.name}").json()
    assert info["repo_size"] > 0 and info["slug_size"] > 0


@scene
def a_tree_arrives_as_it_is_but_for_what_slugignore_names(app: App) -> None:
    app.commit(
        {
            **tiny("tree"),
            "Procfile": 'web: echo "$FROM_PROFILE" > mark; python3 -u app.py\n',
            ".profile.d/one.sh": 'export FROM_PROFILE="profile of $DYNO"\n',
            ".slugignore": "# not for the dyno\n*.psd\n/docs\nsecret/\n",
            "picture.psd": "large", "docs/a.txt": "a", "deep/docs/b.txt": "b", "secret/c.txt": "c", "deep/secret/d.txt": "d",
            "bin/tool": "#!/bin/sh\necho tool of $0\n", "Ünïcode – name.txt": "u", "white space 'quoted' $x.txt": "w",
        }
    )  # fmt: skip
    (app.checkout / "bin/tool").chmod(0o755)
    (app.checkout / "link").symlink_to("bin/tool")
    app.commit()
    push = app.push()
    assert push.accepted and "matched by .slugignore" in push.output, push.output
    listing = app.cli("run", "--", "find . -type f -o -type l | sort; ./link; echo $FROM_PROFILE; readlink link").stdout
    for name in ("./Ünïcode – name.txt", "./white space 'quoted' $x.txt", "./deep/docs/b.txt", "./link", "tool of ./link", "bin/tool"):
        assert f"{name}\n" in listing, listing
    for name in ("picture.psd", "./docs/a.txt", "secret"):
        assert name not in listing, listing
    assert "profile of run." in listing
    app.assert_serves("tree")


@scene
def a_release_command_prints_into_the_push(app: App) -> None:
    app.deploy({**tiny("first"), "Procfile": "web: python3 -u app.py\n"})
    app.commit({"Procfile": "web: python3 -u app.py\nrelease: echo migrating for $DYNO; echo warned >&2; cat app.py | grep VERSION\n"})
    push = app.push()
    assert push.accepted, push.output
    said = push.output.replace("remote: ", "")
    assert "Running release command" in said and "migrating for release." in said and "warned" in said, push.output
    assert said.index("Running release command") < said.index("migrating") < said.index("Released v3")
    assert "migrating for release." in app.cli("releases:output").stdout
    eventually(lambda: "migrating for release." in app.log(), "the log has it, too")


def buildpack(app: App, name: str, **scripts: str) -> str:
    root = app.davit.home / "person" / f"pack-{app.name}-{name}"
    (root / "bin").mkdir(parents=True)
    for script, text in {"detect": f"echo {name}", "release": "echo '--- {}'", **scripts}.items():
        path = root / script if script == "export" else root / "bin" / script
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return f"file://{root}"


@scene
def buildpacks_work_in_their_order_and_export_to_the_next(app: App) -> None:
    first = buildpack(
        app, "First", compile='echo "-----> first"; mkdir -p $1/.tools; cp $3/ASKED $1/asked; echo made > $1/.tools/made; touch $2/kept',
        export='export TOOL="$(dirname "$BASH_SOURCE")/bin"; export GREETED="hello from first"',
    )  # fmt: skip
    second = buildpack(
        app, "Second", compile='echo "-----> second: $GREETED $(cat $1/.tools/made) $(ls $2)"; test -x $TOOL/compile; mkdir -p $1/.profile.d; '
        'echo "export GREETING=\\"$GREETED\\"" > $1/.profile.d/second.sh',
        release="echo 'config_vars: {}'; echo 'default_process_types: {extra: echo extra}'",
    )  # fmt: skip
    app.commit(TINY)
    app.cli("config:set", "ASKED=by config")
    app.cli("buildpacks:set", first)
    app.cli("buildpacks:add", second)
    push = app.push()
    assert push.accepted, push.output
    assert "second: hello from first made kept" in push.output and "Default types for buildpack -> extra" in push.output
    app.assert_serves("first hello from first")
    assert app.cli("run", "--", "cat asked").stdout == "by config"
    app.cli("buildpacks:clear")
    app.cli("buildpacks:add", "procfile")
    app.cli("buildpacks:add", "heroku/python")
    app.commit(tiny("bundled"))
    push = app.push()
    assert push.accepted and "1. procfile" in push.output and "2. heroku/python" in push.output, push.output
    app.assert_serves("bundled")


@scene
def an_app_that_is_destroyed_while_it_is_built(app: App) -> None:
    victim = app.davit.create()
    slowly(victim, "sleep 60")
    victim.commit(tiny("never"))
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(victim.push)
        eventually(lambda: phases(victim) == ["building"], "the build works", 60)
        victim.cli("apps:destroy", "--confirm", victim.name)
        push = pushing.result()
    assert not push.accepted and "remote rejected" in push.output, push.output


@pytest.fixture(scope="module")
def played(davit: Davit) -> Iterator[dict[str, Future[None]]]:
    threads, futures = scene.begin(davit)
    with threads:
        yield futures


@pytest.mark.parametrize("name", scene.parameters())
def test_a_push(played: dict[str, Future[None]], name: str) -> None:
    played[name].result()
