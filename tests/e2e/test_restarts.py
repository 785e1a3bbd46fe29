"""What a one-off dyno sees of a runtime process that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess

from tests.e2e.world import DAVIT, App, eventually, tiny

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
    assert re.search(r"heroku\[run\.\d+\]: Stopping process with SIGTERM: Davit was restarted", app.log())
    eventually(lambda: not of(app, "limited"), "the other's time is over")
    assert re.search(r"heroku\[limited\.\d+\]: Stopping process with SIGKILL: it ran for \d+ seconds", app.log())
    (name,) = of(app, "job")
    assert f"app[{name}]: asked to stop" not in app.log()
    app.cli("ps:stop", name)
    eventually(lambda: not of(app, "job"), "it ends when it is asked to")
    eventually(lambda: f"app[{name}]: asked to stop" in app.log(), "its output still goes to the log")
    assert app.get().status_code == 200


def of(app: App, type: str) -> list[str]:
    return [dyno["name"] for dyno in app.dynos() if dyno["type"] == type]


def kill_the_runtime(app: App) -> None:
    before = app.davit.pids()["runtime"]
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: (now := app.davit.pids()["runtime"]) and not set(now) & set(before), "another runtime runs")
