"""A day with a microVM on real QEMU: pushed to, resized, moved, put to sleep and woken, while somebody asks all the time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.microvm import kernel
from tests.e2e.conftest import running
from tests.e2e.visitor import Visitor
from tests.e2e.world import STACKS, TINY, App, Davit, eventually

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(1800)]

COUNTING = {
    "Procfile": "web: python3 -u app.py\n",
    "app.py": TINY["app.py"]
    .replace("class Hello", "COUNT = 0\nclass Hello")
    .replace("        body = (VERSION", "        global COUNT\n        COUNT += 1\n        body = (str(COUNT) + ' ' + VERSION"),
}
"""TINY that says first how often it was asked: what is in its memory."""


def counting(version: str) -> dict[str, str]:
    """COUNTING that answers with ``version``."""
    return {**COUNTING, "app.py": COUNTING["app.py"].replace('"first"', repr(version))}


@pytest.fixture(scope="module")
def davit() -> Iterator[Davit]:
    """A Davit whose apps sleep after a few seconds when they may."""
    assert shutil.which("qemu-system-x86_64"), "QEMU is not installed; `make setup` installs it"
    kernel.ensure(STACKS)
    home = Path(tempfile.mkdtemp(prefix="dvv", dir="/tmp"))
    with running(Davit(home, extra={"DAVIT_SLEEP_AFTER": "4", "DAVIT_BOOT_TIMEOUT": "300"})) as world:
        yield world


@pytest.fixture(scope="module")
def app(davit: Davit) -> App:
    """An app that serves from a microVM."""
    app = davit.create()
    app.deploy(COUNTING)
    app.cli("ps:sleep", "off")
    app.cli("ps:isolation", "web=microvm")
    eventually(lambda: isolations(app) == {"microvm"}, "the microVM", 120)
    return app


def isolations(app: App) -> set[str]:
    return {dyno.get("isolation", "?") for dyno in app.dynos() if dyno["state"] == "up"}


def count(app: App) -> int:
    """How often this dyno was asked."""
    answer = app.get()
    assert answer.status_code == 200, answer.text
    return int(answer.text.split()[0])


def test_the_same_slug_serves_and_its_lines_arrive(app: App) -> None:
    app.assert_serves("first")
    assert "listening" in app.log()
    done = app.cli("ps:exec", "--no-tty", "--", "uname", "-a")
    assert os.uname().release not in done.stdout and "Linux" in done.stdout, "the kernel is not the guest's own"


def test_a_push_loses_no_request(app: App) -> None:
    with Visitor(app, pause=0.2) as visitor:
        app.deploy(counting("second"))
    assert visitor.bad == [] and visitor.asked > 3
    app.assert_serves("second")
    assert isolations(app) == {"microvm"}


def test_it_grows_and_moves_while_somebody_asks_and_keeps_what_is_in_its_memory(app: App) -> None:
    (before,) = app.dynos()
    asked = count(app)
    with Visitor(app, pause=0.2) as visitor:
        app.cli("ps:resize", "web=standard-2x", "--live")
        said = app.cli("ps:migrate", "web.1").stderr
    assert visitor.bad == [] and visitor.asked > 1
    assert re.search(r"it stood still for \d", said), said
    (after,) = app.dynos()
    assert (after["id"], after["size"]) == (before["id"], "Standard-2X")
    assert count(app) == asked + visitor.asked + 1


def test_a_killed_runtime_finds_it_again(app: App, davit: Davit) -> None:
    asked = count(app)
    (runtime,) = davit.pids()["runtime"]  # the virtual machine is the app's, not Davit's
    os.kill(runtime, signal.SIGKILL)
    eventually(lambda: davit.pids()["runtime"] not in ([], [runtime]), "the runtime is back", 30)
    app.cli("ps:resize", "web=standard-1x", "--live")
    assert count(app) == asked + 1


def test_it_sleeps_and_the_first_request_wakes_it_where_it_was(app: App) -> None:
    asked = count(app)
    app.cli("ps:sleep", "on")
    eventually(lambda: [dyno["state"] for dyno in app.dynos()] == ["idle"], "it sleeps", 120)
    assert count(app) == asked + 1
    assert "Unidling" in app.log()
    app.cli("ps:sleep", "off")
