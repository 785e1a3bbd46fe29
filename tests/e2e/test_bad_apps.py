"""Apps that do not start, do not stop, crash or take too much: what the pusher, the log and the visitor are told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.e2e.errors_page import assert_says, says
from tests.e2e.residue import assert_nothing_left
from tests.e2e.together import Together
from tests.e2e.world import TINY, App, Davit, eventually, tiny

scene = Together(at_once=8)


def does_not_start(app: App, source: str) -> str:
    """Push a program that does not come up: refused, “first” serves on, the release has failed. What the pusher saw."""
    app.deploy(tiny("first"))
    app.commit({"app.py": source})
    push = app.push_refused()
    assert "main -> main (app did not start)" in push.output
    app.assert_serves("first")
    assert [release["status"] for release in app.releases()][-1] == "failed"
    assert [dyno["release"]["version"] for dyno in app.dynos()] == [2]
    return push.output


@scene
@pytest.mark.row("boot-no-port")
@pytest.mark.code("R10")
def an_app_that_binds_nothing(app: App) -> None:
    assert_says("boot-no-port", does_not_start(app, "import time\ntime.sleep(1000)\n"))
    eventually(lambda: "Error R10 (Boot timeout)" in app.log(), "R10 is in the log")


@scene
@pytest.mark.row("boot-loopback")
def an_app_that_binds_the_loopback_only(app: App) -> None:
    assert_says("boot-loopback", does_not_start(app, TINY["app.py"].replace("0.0.0.0", "127.0.0.1")))
    eventually(lambda: says("boot-loopback", app.log()), "the log says it, too")


@scene
@pytest.mark.row("boot-other-port")
def an_app_that_binds_another_port(app: App) -> None:
    assert_says("boot-other-port", does_not_start(app, TINY["app.py"].replace('int(os.environ["PORT"])', "5000")))


@scene
@pytest.mark.row("crash-at-start")
def an_app_that_crashes_at_its_start(app: App) -> None:
    assert_says("crash-at-start", does_not_start(app, "print('no database', flush=True)\nraise SystemExit(3)\n"))
    eventually(lambda: "app[web.1]: no database" in app.log(), "its last words are in the log")


@scene
@pytest.mark.row("health-check")
def an_app_that_fails_its_health_check(app: App) -> None:
    app.deploy(tiny("first"))
    check = '{"healthchecks": {"web": [{"type": "startup", "path": "/up", "attempts": 2, "wait": 1, "timeout": 2}]}}'
    source = TINY["app.py"].replace("self.send_response(200)", "self.send_response(500)")
    app.commit({"app.py": source, "app.json": check})
    push = app.push_refused()
    assert_says("health-check", push.output)
    app.assert_serves("first")


@scene
@pytest.mark.row("crash-later")
def an_app_that_crashes_again_and_again(app: App) -> None:
    """At once started again, then after ever longer pauses, until a new release."""
    app.deploy({**TINY, "app.py": TINY["app.py"].replace('if self.path == "/slow"', 'if self.path == "/die":\n            os._exit(7)\n        if self.path == "/slow"')})
    app.assert_serves("first")
    eventually(lambda: app.get("/die") and says("crash-later", app.log()), "the second crash makes a pause", 40)
    eventually(lambda: app.get().status_code == 503, "visitors are told")
    page = app.get()
    assert "H10" in page.text and [dyno["state"] for dyno in app.dynos()] == ["crashed"]
    assert "Process exited with status 7" in app.log()
    app.deploy(tiny("mended"))  # a new release starts over with the pauses
    app.assert_serves("mended")


@scene
@pytest.mark.row("ignores-sigterm")
@pytest.mark.code("R12")
def an_app_that_ignores_sigterm(app: App) -> None:
    app.deploy({**TINY, "app.py": TINY["app.py"].replace('VERSION = "first"', 'import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nVERSION = "first"')})
    app.deploy(tiny("second"))
    app.assert_serves("second")  # nobody waits for the old one
    eventually(lambda: says("ignores-sigterm", app.log()), "R12 is in the log", 60)
    eventually(lambda: "Process exited with status 137" in app.log(), "it is killed")
    app.assert_serves("second")


@scene
@pytest.mark.row("memory-quota", "memory-killed")
@pytest.mark.code("R14", "R15")
def an_app_that_leaks_memory(app: App) -> None:
    leaks = TINY["app.py"].replace('VERSION = "first"', 'VERSION = "first"\nheld = []').replace(
        "        body =", '        held.append(b"x" * (int(self.path[1:] or 0) << 20))\n        body ='
    )
    app.deploy({**TINY, "app.py": leaks})
    app.get("/700")  # more than the 512 MB of its size, less than twice as much
    eventually(lambda: says("memory-quota", app.log()), "R14 is in the log", 60)
    app.assert_serves("first")
    app.get("/700")
    eventually(lambda: says("memory-killed", app.log()), "R15 is in the log")
    eventually(lambda: app.get().status_code == 200, "it is started again", 40)


@scene
@pytest.mark.row("release-phase")
def a_release_command_that_fails(app: App) -> None:
    app.deploy(tiny("first"))
    app.commit({"Procfile": "web: python3 -u app.py\nrelease: echo migrating; exit 4\n"})
    push = app.push_refused()
    assert "(release phase failed)" in push.output and "remote: migrating" in push.output
    assert_says("release-phase", push.output)
    app.assert_serves("first")


@scene
@pytest.mark.row("config-does-not-start")
def a_config_var_with_which_the_app_does_not_start(app: App) -> None:
    stops = TINY["app.py"].replace('VERSION = "first"', "if os.environ.get('BREAK'): raise SystemExit(5)\nVERSION = 'first'")
    app.deploy({**TINY, "app.py": stops})
    told = app.cli("config:set", "BREAK=1", check=False)
    assert told.returncode == 1 and app.releases()[-1]["status"] == "failed"
    assert_says("config-does-not-start", told.stderr)
    app.assert_serves("first")
    eventually(lambda: says("config-does-not-start", app.log()), "the log says why")
    assert app.config() == {"BREAK": "1"}


@scene
@pytest.mark.row("rollback-does-not-start")
def a_rollback_with_which_the_app_does_not_start(app: App) -> None:
    """The config vars that are there stay; the next push has them."""
    stops = TINY["app.py"].replace('VERSION = "first"', "if os.environ.get('BREAK'): raise SystemExit(5)\nVERSION = 'first'")
    app.deploy({**TINY, "app.py": stops})
    app.cli("ps:scale", "web=0")
    app.cli("config:set", "BREAK=1")  # v3 comes up, because nothing is to start
    assert app.releases()[-1]["status"] == "succeeded"
    with app.davit.client() as client:
        client.patch(f"/apps/{app.name}/config-vars", json={"BREAK": None, "GREETING": "new"}).raise_for_status()
    app.cli("ps:scale", "web=1")
    eventually(lambda: app.get().status_code == 200, "v4 serves")
    told = app.cli("rollback", "v3", check=False)
    assert told.returncode == 1 and app.releases()[-1]["status"] == "failed"
    assert_says("rollback-does-not-start", told.stderr)
    app.assert_serves("first new")
    eventually(lambda: says("rollback-does-not-start", app.log()), "the log says why")
    assert app.config() == {"GREETING": "new"}
    app.deploy({"app.py": stops.replace("'first'", "'second'")})
    app.assert_serves("second new")


@pytest.fixture(scope="module")
def played(strict: Davit) -> Iterator[dict[str, Future[None]]]:
    threads, futures = scene.begin(strict)
    with threads:
        yield futures


@pytest.mark.parametrize("name", scene.parameters())
def test_an_app_that_misbehaves_is_told_and_hurts_nobody(played: dict[str, Future[None]], name: str) -> None:
    played[name].result()


def test_nothing_of_all_this_is_left(played: dict[str, Future[None]], strict: Davit) -> None:
    for future in played.values():
        future.exception()
    assert_nothing_left(strict, 60)
