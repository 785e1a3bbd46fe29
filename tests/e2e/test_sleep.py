"""Apps that sleep and wake, sizes that change while dynos run; on the real thing, with little patience."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import running
from tests.e2e.world import App, Davit, eventually, tiny


@pytest.fixture(scope="module")
def sleepy() -> Iterator[Davit]:
    """A Davit that puts apps to sleep after three seconds."""
    home = Path(tempfile.mkdtemp(prefix="dvz", dir="/tmp"))
    with running(Davit(home, extra={"DAVIT_SLEEP_AFTER": "3"})) as davit:
        yield davit


@pytest.fixture
def app(sleepy: Davit) -> App:
    """An app that serves and may sleep."""
    app = sleepy.create()
    app.deploy(tiny("first"))
    app.cli("ps:sleep", "on")
    return app


def asleep(app: App) -> bool:
    return [dyno["state"] for dyno in app.dynos()] == ["idle"] and "sleeps now" in app.cli("ps:sleep").stdout


def test_an_app_that_nobody_asks_sleeps_and_many_requests_at_once_wake_it_and_are_answered(app: App) -> None:
    eventually(lambda: asleep(app), "it sleeps", 90)
    assert "web.1 (Basic): idle" in app.cli("ps").stdout
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: app.get(), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert "Idling" in app.log() and "Unidling" in app.log()
    eventually(lambda: re.search(r"heroku\[web\.1\]: Woken in \d+ ms \(anew\)", app.log()), "the time that it took")
    assert "sleep: on: it sleeps when nobody asks it anything for 3 seconds" in app.cli("ps:sleep").stdout
    app.cli("ps:sleep", "off")
    assert "sleep: off: it stays awake" in app.cli("ps:sleep").stdout


def test_who_sleeps_is_woken_although_runtime_and_router_were_killed(app: App, sleepy: Davit) -> None:
    eventually(lambda: asleep(app), "it sleeps", 90)
    for process in ("runtime", "router"):
        for pid in sleepy.pids()[process]:
            os.kill(pid, signal.SIGKILL)
    app.assert_serves("first")
    app.cli("ps:sleep", "off")


def test_switching_sleep_off_wakes(app: App) -> None:
    eventually(lambda: asleep(app), "it sleeps", 90)
    app.cli("ps:sleep", "off")
    eventually(lambda: [dyno["state"] for dyno in app.dynos()] == ["up"], "it is up", 60)


def test_a_size_comes_live_and_what_cannot_be_is_a_sentence(app: App) -> None:
    app.cli("ps:sleep", "off")
    app.assert_serves("first")
    before = [(dyno["id"], dyno["size"]) for dyno in app.dynos()]
    assert before[0][1] == "Basic"
    app.cli("ps:resize", "web=standard-2x", "--live")
    assert [(dyno["id"], dyno["size"]) for dyno in app.dynos()] == [(before[0][0], "Standard-2X")]
    refused = app.cli("ps:migrate", "web.1", check=False)
    assert refused.returncode and "only microVMs can be moved" in refused.stderr
    refused = app.cli("ps:isolation", "web=jail", check=False)
    assert refused.returncode and "There is no isolation “jail”" in refused.stderr
    refused = app.cli("run:detached", "--isolation", "jail", "true", check=False)
    assert refused.returncode and "There is no isolation “jail”" in refused.stderr
    app.assert_serves("first")
