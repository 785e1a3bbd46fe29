"""What one-off dynos, further commands, and the commands of releases and setups see of a process of Davit's that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundation import wire
from foundation.errors import Unavailable
from tests.e2e.errors_page import assert_says, says
from tests.e2e.residue import home_database, rows_unfinished
from tests.e2e.test_power_cut import pushing
from tests.e2e.test_tarballs import _tarball
from tests.e2e.world import DAVIT, TINY, App, Davit, eventually, tiny

WAITS = "while true; do sleep 0.1; done"


def test_detached_one_offs_go_on_when_the_runtime_is_killed_and_attached_ones_are_asked_to_end(app: App) -> None:
    app.deploy(tiny("first"))
    app.cli("run:detached", "--type", "job", "--", f"trap 'echo asked to stop; exit 0' TERM; echo waits; {WAITS}")
    with app.davit.client() as client:
        limited = {"command": WAITS, "type": "limited", "time_to_live": 20}
        client.post(f"/apps/{app.name}/dynos", json=limited).raise_for_status()
    attached = subprocess.Popen(
        [DAVIT, "run", "-a", app.name, "--", f"echo started; {WAITS}"], env=app.davit.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=app.checkout,
    )  # fmt: skip
    assert attached.stdout is not None
    with attached.stdout:
        assert attached.stdout.readline() == b"started\n"
        kill_the_runtime(app)
        eventually(lambda: not of(app, "run"), "the attached one is gone")
    assert attached.wait(120) != 0
    assert re.search(r"heroku\[run\.\d+\]: Stopping all processes with SIGHUP and SIGTERM: Davit was restarted", app.log())
    eventually(lambda: not of(app, "limited"), "the other's time is over")
    assert re.search(r"heroku\[limited\.\d+\]: Stopping process with SIGKILL: it ran for \d+ seconds", app.log())
    (name,) = of(app, "job")
    assert f"app[{name}]: asked to stop" not in app.log()
    app.cli("ps:stop", name)
    eventually(lambda: not of(app, "job"), "it ends when it is asked to")
    eventually(lambda: f"app[{name}]: asked to stop" in app.log(), "its output still goes to the log")
    assert app.get().status_code == 200


@pytest.mark.row("power-cut")
def test_what_runs_when_the_runtime_is_killed_ends_with_a_sentence(app: App) -> None:
    """A release command, a postdeploy command, and commands in a dyno that runs, one that prints and one that does not."""
    app.deploy(tiny("first"))
    inside = [
        subprocess.Popen(
            [DAVIT, "run:inside", "-a", app.name, "web.1", "--", f"echo started; trap '' HUP; : {app.name}; {loop}"], cwd=app.checkout,
            env=app.davit.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for loop in (WAITS, "while true; do echo x; sleep 0.1; done")
    ]  # fmt: skip
    for session in inside:
        assert session.stdout is not None and session.stdout.readline() == "started\n"
    setup = set_up(app.davit, f"echo it fills; {WAITS}")
    eventually(lambda: states(setup, "postdeploy") == ["up"], "the postdeploy command runs", 60)
    app.commit({**tiny("second"), "Procfile": f"web: python3 -u app.py\nrelease: echo it migrates; {WAITS}\n"})
    push = pushing(app)
    push.says("it migrates")

    kill_the_runtime(app)
    for session in inside:
        said, complained = session.communicate(timeout=300)
        assert session.returncode != 0 and "Davit was restarted, so this session is over" in complained, (said[-300:], complained)
    assert "(release phase failed)" in push.ends() and push.process.returncode != 0
    assert_says("power-cut", push.output)
    with app.davit.client() as client:
        done = eventually_set_up(client, setup)
        assert done["status"] == "failed" and "Davit was restarted while the postdeploy command ran" in done["failure_message"], done
        assert done["postdeploy"]["exit_code"] is None
    eventually(lambda: not list(rows_unfinished(app.davit)), "nothing is pending", 60)
    eventually(lambda: not commands_with(app.name), "the commands in the dyno are gone", 60)
    app.assert_serves("first")
    assert [dyno["type"] for dyno in app.dynos()] == ["web"]
    app.deploy({**tiny("third"), "Procfile": "web: python3 -u app.py\nrelease: echo it migrates\n"})
    app.assert_serves("third")
    setup.cli("apps:destroy", "--confirm", setup.name)


def test_commands_of_a_release_and_of_a_setup_when_the_worker_is_killed(app: App) -> None:
    """The release's goes on, and its push is accepted; the setup's is ended, because nobody would learn how it ended."""
    app.commit({**tiny("first"), "Procfile": "web: python3 -u app.py\nrelease: echo it migrates; sleep 3; echo it has migrated\n"})
    setup = set_up(app.davit, f"echo it fills; {WAITS}")
    eventually(lambda: states(setup, "postdeploy") == ["up"], "the postdeploy command runs", 60)
    push = pushing(app)
    push.says("it migrates")
    kill_all_of(app.davit, "worker")
    assert push.ends() and push.process.returncode == 0, push.output + app.davit.logs()
    assert push.output.count("it has migrated") == 1
    app.assert_serves("first")
    with app.davit.client() as client:
        done = eventually_set_up(client, setup)
    assert done["status"] == "failed" and "Davit was restarted while the postdeploy command ran" in done["failure_message"], done
    eventually(lambda: not of(setup, "postdeploy"), "the postdeploy command is gone", 60)
    setup.cli("apps:destroy", "--confirm", setup.name)


def test_a_dyno_that_crashes_after_an_hour_is_started_again_at_once(app: App) -> None:
    """The hour is written into its row, from which the next runtime process has it."""
    dies = TINY["app.py"].replace("        if self.path ==", '        if self.path == "/die":\n            os._exit(7)\n        if self.path ==')
    app.deploy({**TINY, "app.py": dies})
    with contextlib.closing(sqlite3.connect(home_database(app.davit), timeout=60)) as connection, connection:
        (dyno,) = app.dynos()
        an_hour_ago = (datetime.now(timezone.utc) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
        changed = connection.execute("UPDATE dynos SET started_at = ? WHERE id = ?", (an_hour_ago, dyno["id"]))
        assert changed.rowcount == 1
    kill_the_runtime(app)
    eventually(lambda: _runtime_answers(app), "it has taken the dynos over")
    assert app.get("/die").status_code == 503
    eventually(lambda: app.get().status_code == 200, "it is started again")
    log = app.log()
    assert "heroku[web.1]: State changed from up to crashed" in log and "times in a row" not in log
    assert app.dynos()[0]["id"] != dyno["id"]
    app.get("/die")  # this one was young, but the first of its kind
    eventually(lambda: app.get().status_code == 200, "it is started again")
    app.get("/die")
    eventually(lambda: says("crash-later", app.log()), "the second in a row makes a pause")


def _runtime_answers(app: App) -> bool:
    with contextlib.suppress(Unavailable):
        return bool(wire.call(app.davit.home / "run" / "runtime.sock", "ping").result)
    return False


def set_up(davit: Davit, postdeploy: str) -> App:
    """An app that is being set up from an app.json with this postdeploy command."""
    files = {**tiny("first"), "app.json": json.dumps({"scripts": {"postdeploy": postdeploy}})}
    with davit.client() as client:
        blob = client.post("/sources", json={}).json()["source_blob"]
        assert httpx.put(blob["put_url"], content=_tarball(files), timeout=60, trust_env=False).status_code == 200
        made = client.post("/app-setups", json={"source_blob": {"url": blob["get_url"]}})
        assert made.status_code == 202, made.text
    app = App(davit, made.json()["app"]["name"], davit.home)
    app.setup_id = made.json()["id"]  # type: ignore[attr-defined]
    return app


def states(app: App, type: str) -> list[str]:
    return [dyno["state"] for dyno in app.dynos() if dyno["type"] == type]


def eventually_set_up(client: httpx.Client, app: App) -> dict[str, Any]:
    """The setup when it has ended."""
    path = f"/app-setups/{app.setup_id}"  # type: ignore[attr-defined]
    eventually(lambda: client.get(path).json()["status"] != "pending", "the setup has ended", 90)
    found: dict[str, Any] = client.get(path).json()
    return found


def commands_with(word: str) -> list[str]:
    """Command lines of shells in dynos that have this word in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode(errors="replace")
            if f": {word};" in line and "run:inside" not in line:
                found.append(line)
    return found


def kill_all_of(davit: Davit, process: str) -> None:
    """SIGKILL, and another one runs."""
    before = davit.pids()[process]
    for pid in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: (now := davit.pids()[process]) and not set(now) & set(before), f"another {process} runs")


def of(app: App, type: str) -> list[str]:
    return [dyno["name"] for dyno in app.dynos() if dyno["type"] == type]


def kill_the_runtime(app: App) -> None:
    kill_all_of(app.davit, "runtime")
