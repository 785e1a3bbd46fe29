"""Davit is killed, whole or in part, at each step of a push: it finds what is true again, and nothing is lost or left.

A cut is SIGKILL for every process at once: Davit's own, HAProxy, Redis, and all that runs in dynos and build sandboxes.
The steps are reached by what the apps do (a buildpack, a release command or a web process that takes its time) and by
stopping (SIGSTOP) the process of Davit's that would do the next step.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.children import state
from tests.conftest import PATIENCE
from tests.e2e.conftest import running
from tests.e2e.errors_page import assert_says, says
from tests.e2e.residue import assert_nothing_left, instance, residue, rows_unfinished
from tests.e2e.visitor import Visitor
from tests.e2e.world import TINY, App, Davit, eventually, tiny

pytestmark = pytest.mark.timeout(900)

SLOW = {
    **TINY,
    "app.py": TINY["app.py"].replace('print("listening"', 'import time\ntime.sleep(float(os.environ.get("SLOW", "0")))\nprint("listening"'),
}
"""TINY that takes as long to start as SLOW says."""


def slow(version: str) -> dict[str, str]:
    """SLOW that answers with ``version``."""
    return {**SLOW, "app.py": SLOW["app.py"].replace('"first"', repr(version))}


@pytest.fixture(scope="module")
def world() -> Iterator[Davit]:
    """A Davit of this module's own, which is going to be killed; it builds many apps at once."""
    home = Path(tempfile.mkdtemp(prefix="dvc", dir="/tmp"))
    with running(Davit(home, extra={"DAVIT_BUILD_SLOTS": "6", "DAVIT_BOOT_TIMEOUT": "120"})) as davit:
        yield davit


@pytest.fixture(autouse=True)
def again_after_a_failure(world: Davit) -> None:
    """A test that failed between a cut and ``up`` must not make the others fail."""
    if not world.pids():
        world.cli("up", "--detach")


# --- killing


def cut(davit: Davit) -> None:
    """The power goes."""
    own = [pid for pids in davit.pids().values() for pid in pids]
    number = instance(davit)
    kill(own)
    for _ in range(400):  # what forks while it is killed is killed in the next round
        left = _processes_in(f"davit{number}") + _processes_of(davit.home)
        if not left:
            return
        kill(left)
        time.sleep(0.05)
    raise AssertionError(f"still there: {[_told(pid) for pid in left]}")


def _told(pid: int) -> str:
    """What this process is, for whoever reads why the test failed."""
    with contextlib.suppress(OSError):
        process = Path(f"/proc/{pid}")
        return f"{pid} {state(pid)} {(process / 'cmdline').read_bytes().replace(bytes(1), b' ')!r} {(process / 'cgroup').read_text()!r}"
    return str(pid)


def kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Signal those that are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _processes_in(group: str) -> list[int]:
    found: set[int] = set()
    for pattern in (f"{group}/**/cgroup.procs", f"*/{group}/**/cgroup.procs"):
        for file in glob.glob(f"/sys/fs/cgroup/{pattern}", recursive=True):  # Path.glob fails at what vanishes
            with contextlib.suppress(OSError):
                found |= {int(line) for line in Path(file).read_text().split()}
    return sorted(pid for pid in found if state(pid) not in ("", "Z"))  # the dead whom nobody has buried do no harm


def _processes_of(home: Path) -> list[int]:
    """Davit's processes, by their environment; the pusher's git is none of them."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (directory / "environ").read_bytes().split(b"\0")
            ours = f"DAVIT_HOME={home}".encode() in environment and f"HOME={home}/person".encode() not in environment
            command = (directory / "cmdline").read_bytes()
            haproxy = command.startswith(b"haproxy") or b"/haproxy\0" in command[:40]
            if state(int(directory.name)) != "Z" and (ours or (haproxy and f"{home}/".encode() in command)):
                found.append(int(directory.name))
    return [pid for pid in found if pid != os.getpid()]


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """These processes do nothing; they go on (if they are there) at the end."""
    kill(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        kill(pids, signal.SIGCONT)


# --- a push that goes on in the background


@dataclass
class Pushing:
    """A push under way."""

    app: App
    process: subprocess.Popen[bytes]
    path: Path

    @property
    def output(self) -> str:
        return self.path.read_text(errors="replace")

    def says(self, text: str, seconds: float = 30) -> None:
        """Wait until the pusher has seen ``text``."""
        try:
            eventually(lambda: text in self.output or self.process.poll() is not None, text, seconds)
        finally:
            assert text in self.output, self.output + self.app.davit.logs()

    def ends(self) -> str:
        """Wait for the client to end; what it printed."""
        self.process.wait(300)
        return self.output


def pushing(app: App) -> Pushing:
    """``git push davit main`` of what is committed, in the background."""
    path = app.davit.home / "person" / f"push-{app.name}"
    with path.open("wb") as file:
        process = subprocess.Popen(
            ["git", "push", "davit", "main"], cwd=app.checkout, env=app.davit.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )  # fmt: skip
    return Pushing(app, process, path)


def half_a_pack(app: App) -> socket.socket:
    """A push whose connection stands still in the middle of the pack."""
    commit = app.git("rev-parse", "HEAD").stdout.strip()
    old = app.git("rev-parse", "HEAD~1").stdout.strip()
    packed = subprocess.run(
        ["git", "pack-objects", "--stdout", "--revs", "--quiet"], cwd=app.checkout, input=f"{commit}\n^{old}\n".encode(), capture_output=True
    ).stdout
    line = f"{old} {commit} refs/heads/main\0report-status side-band-64k\n".encode()
    body = b"%04x" % (len(line) + 4) + line + b"0000" + packed
    secret = b64encode(f"davit:{app.davit.token}".encode()).decode()
    connection = socket.create_connection(("127.0.0.1", app.davit.api))
    connection.sendall(
        f"POST /{app.name}.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {secret}\r\n"
        f"Content-Type: application/x-git-receive-pack-request\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body[: -len(packed) // 2]
    )
    eventually(lambda: list((app.davit.home / "repos/incoming").glob("*")), "half of a pack is there")
    return connection


# --- what the database says


def ask(davit: Davit, query: str, *values: str) -> list[tuple[Any, ...]]:
    """Read the database."""
    with closing(sqlite3.connect(f"file:{davit.home}/davit.db?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(query, values).fetchall()


def newest(app: App) -> tuple[str, str, str, str]:
    """Phase of the app's newest build; phase and status of its newest release; its status."""
    builds = ask(
        app.davit,
        "SELECT builds.phase, builds.status FROM builds JOIN apps ON apps.id = builds.app_id WHERE apps.name = ? ORDER BY builds.created_at DESC",
        app.name,
    )
    releases = ask(
        app.davit,
        "SELECT releases.phase, releases.status FROM releases JOIN apps ON apps.id = releases.app_id WHERE apps.name = ? ORDER BY version DESC",
        app.name,
    )
    return builds[0][0], builds[0][1], releases[0][0], releases[0][1]


def reaches(app: App, build: str, release: str = "") -> None:
    """Wait until the app's newest build (and release) are in this phase."""
    eventually(lambda: newest(app)[0] == build and release in ("", newest(app)[2]), f"{build} {release}: {newest(app)}", 30)


def assert_sound(app: App, *versions: str) -> None:
    """Nothing is under way, ref and current release are one, and it serves one of ``versions``."""
    davit = app.davit
    try:
        eventually(lambda: not list(rows_unfinished(davit)), "nothing is pending", 60)
    except AssertionError:
        raise AssertionError(f"{list(rows_unfinished(davit))}\n{davit.logs()}") from None
    ((commit,),) = ask(
        davit,
        "SELECT slugs.'commit' FROM releases JOIN slugs ON slugs.id = releases.slug_id JOIN apps ON apps.id = releases.app_id"
        " WHERE apps.name = ? AND releases.current",
        app.name,
    )
    assert app.git("ls-remote", "davit", "main").stdout.split()[:1] == [commit], davit.logs()
    source = app.git("show", f"{commit}:app.py").stdout
    served = next(version for version in ("third", "second", "first") if f"'{version}'" in source or f'"{version}"' in source)
    assert served in versions, f"{served} serves instead of {versions}\n{davit.logs()}"
    eventually(lambda: app.get().text.startswith(served), f"{served} is served", 60)


def assert_next_push_works(app: App) -> None:
    """And it is as if nothing had been."""
    app.cli("buildpacks:clear")
    app.deploy({**tiny("third"), "Procfile": TINY["Procfile"]})
    app.assert_serves("third")


def serving_first(davit: Davit, **config: str) -> App:
    """A fresh app that serves “first”."""
    app = davit.create()
    app.deploy(slow("first"))
    if config:
        app.cli("config:set", *(f"{name}={value}" for name, value in config.items()))
        eventually(lambda: newest(app)[3] == "succeeded", "the config var is in force", 30)
    return app


def again(davit: Davit, apps: dict[App, tuple[str, ...]]) -> None:
    """Power is back: ``davit up``; every app is sound and takes the next push; then all go, and nothing is left."""
    davit.cli("up", "--detach")
    for app, versions in apps.items():
        assert_sound(app, *versions)
    for app in apps:
        assert_next_push_works(app)
        app.cli("apps:destroy", "--confirm", app.name)
    assert_nothing_left(davit)


# --- the cuts


@pytest.mark.row("power-cut")
def test_power_goes_while_packs_arrive_builds_run_release_commands_run_and_dynos_boot(world: Davit) -> None:
    arriving, building, releasing, booting, waiting = (serving_first(world) for _ in range(5))
    for app in (releasing, booting, waiting):
        app.cli("config:set", "SLOW=0.01")
        eventually(lambda app=app: newest(app)[3] == "succeeded", "the config var is in force", 30)

    arriving.commit(slow("second"))
    building.use_buildpack("echo it builds; sleep 600")
    building.commit(slow("second"))
    releasing.commit({**slow("second"), "Procfile": TINY["Procfile"] + "release: echo it migrates; sleep 600\n"})
    booting.commit({"app.py": slow("second")["app.py"].replace('os.environ.get("SLOW", "0")', '"8"')})
    waiting.use_buildpack("echo it is nearly built; sleep 2")
    waiting.commit(slow("second"))

    pushes = [pushing(building), pushing(releasing), pushing(booting)]
    pushes[0].says("it builds")
    reaches(releasing, "releasing", "release")
    pushes[1].says("it migrates")
    reaches(booting, "releasing", "boot")
    pushes.append(pushing(waiting))
    pushes[-1].says("it is nearly built")
    with world.client() as client:  # a release before it, which takes its time, makes the next one wait
        client.patch(f"/apps/{waiting.name}/config-vars", json={"SLOW": "10"}).raise_for_status()
    reaches(waiting, "releasing", "queued")
    half = half_a_pack(arriving)
    cut(world)
    half.close()
    for push in pushes:
        push.ends()
    building.use_buildpack("echo it builds again")

    again(
        world,
        {arriving: ("first",), building: ("second",), releasing: ("first",), booting: ("second",), waiting: ("second",)},
    )


def printed(app: App) -> str:
    """What the app's newest build printed, before and after the cut."""
    ((build,),) = ask(
        app.davit,
        "SELECT builds.id FROM builds JOIN apps ON apps.id = builds.app_id WHERE apps.name = ? ORDER BY builds.created_at DESC LIMIT 1",
        app.name,
    )
    return (app.davit.home / "builds" / build / "output").read_text()


def _something_in(incoming: Path) -> bool:
    for path in incoming.glob("*.img"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size:
                return True
    return False


@pytest.mark.row("power-cut")
def test_power_goes_while_a_slug_is_sealed(world: Davit) -> None:
    app = serving_first(world)
    app.use_buildpack('head -c 100000000 /dev/urandom > "$1/large"')
    app.commit(slow("second"))
    sealing = world.pids()["runtime"]
    push = pushing(app)
    incoming = world.home / "slugs" / "incoming"
    deadline = time.monotonic() + PATIENCE * 30
    while not _something_in(incoming):
        assert time.monotonic() < deadline, push.output
        time.sleep(0.002)
    with stopped(sealing):  # however long the cut takes, nobody takes the image away
        cut(world)
    push.ends()
    assert list(incoming.glob("*")), "the cut came after the sealing"
    app.use_buildpack("echo nothing large")
    world.cli("up", "--detach")
    assert_sound(app, "second")
    assert_says("power-cut", printed(app))
    again(world, {app: ("second",)})


@pytest.mark.row("power-cut")
def test_power_goes_before_a_build_at_the_switch_and_before_the_ref_moves(world: Davit) -> None:
    queued, switching, moving = (serving_first(world) for _ in range(3))
    for app in (queued, switching, moving):
        app.commit(slow("second"))
    moving.commit({"app.py": slow("second")["app.py"].replace('os.environ.get("SLOW", "0")', '"4"')})
    pids = world.pids()
    pushes = []

    pushes.append(pushing(moving))
    reaches(moving, "releasing", "boot")
    job = [pid for pid in _children(pids["worker"][0])]
    assert job
    with stopped(job):
        eventually(lambda: newest(moving)[3] == "succeeded", "the release serves, and its build does not know", 30)
        assert moving.git("ls-remote", "davit", "main").stdout.split()[0] != moving.git("rev-parse", "HEAD").stdout.strip()
        with stopped(pids["router"]):
            pushes.append(pushing(switching))
            eventually(lambda: _routed_by_pending_release(switching), "the database has switched, the router has not", 30)
            with stopped([pids["worker"][0]]):
                pushes.append(pushing(queued))
                reaches(queued, "queued")
                cut(world)
    for push in pushes:
        push.ends()
    again(world, {queued: ("second",), switching: ("second",), moving: ("second",)})


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _routed_by_pending_release(app: App) -> bool:
    return bool(
        ask(
            app.davit,
            "SELECT dynos.id FROM dynos JOIN releases ON releases.id = dynos.release_id JOIN apps ON apps.id = dynos.app_id"
            " WHERE apps.name = ? AND dynos.routed AND releases.status = 'pending'",
            app.name,
        )
    )


# --- one process alone


GOES_ON = "the push goes on"
BREAKS = "the pusher's connection breaks, and what was pushed is released all the same"
REFUSED = "the push is refused"
PROMISES = {
    "ssh": GOES_ON, "logs": GOES_ON, "router": GOES_ON, "redis": GOES_ON, "supervisor": GOES_ON, "worker": GOES_ON,
    "web": BREAKS, "runtime": REFUSED,
}  # fmt: skip
"""What becomes of a push whose build is under way when one of Davit's processes is killed; apps serve in any case."""


@pytest.fixture(scope="module")
def app(world: Davit) -> Iterator[App]:
    """One app for all of the kills."""
    made = serving_first(world)
    yield made
    made.cli("apps:destroy", "--confirm", made.name, check=False)


@pytest.mark.parametrize("process", PROMISES)
def test_one_process_is_killed_during_a_push(world: Davit, app: App, process: str) -> None:
    assert_sound(app, "first", "second", "third")
    version = "second" if app.get().text.startswith("first") else "first"
    app.use_buildpack(f"echo it builds; sleep {10 if process == 'runtime' else 1.5}; echo it has built")  # with runtime it ends
    app.commit(slow(version))
    before = world.pids()
    with Visitor(app) as visitor:
        push = pushing(app)
        push.says("it builds")
        kill(before[process][:1])
        output = push.ends()
        accepted = push.process.returncode == 0
        if process == "supervisor":
            world.cli("up", "--detach")
        eventually(lambda: _all_back(world, before), f"all processes run again after {process} was killed", 40)
        eventually(lambda: not list(rows_unfinished(world)), "nothing is pending", 40)
    assert visitor.bad == [] and visitor.asked > 3
    match PROMISES[process]:
        case "the push goes on":
            assert accepted, output + world.logs()
            assert_sound(app, version)
        case "the push is refused":
            assert not accepted and "[remote rejected] main -> main (build failed)" in output, output
            assert says("power-cut", output)
            assert_sound(app, "second" if version == "first" else "first")
        case _:  # whether the pusher hears of it depends on what died: a process of the web server, or all of it
            assert_sound(app, version)


def _all_back(davit: Davit, before: dict[str, list[int]]) -> bool:
    now = davit.pids()
    return all(now.get(name) for name in before)


def test_haproxy_is_killed_and_comes_back(world: Davit, app: App) -> None:
    served = app.get().text
    kill(world.pids()["haproxy"])
    eventually(lambda: _serves(app, served), "HAProxy serves again", 15)
    app.use_buildpack("true")
    app.deploy(slow("third"))
    app.assert_serves("third")


def _serves(app: App, text: str) -> bool:
    try:
        return app.get().text == text
    except Exception:
        return False


def test_all_of_davit_but_the_apps_and_haproxy_is_killed_and_no_request_fails(world: Davit, app: App) -> None:
    pids = world.pids()
    own = [pid for name, found in pids.items() if name != "haproxy" for pid in found if pid not in pids["haproxy"]]
    with Visitor(app) as visitor:
        kill(own)
        world.cli("up", "--detach")
        eventually(lambda: _all_back(world, pids), "all processes run again", 40)
        app.use_buildpack("true")
        app.commit(slow("second"))
        push = app.push()
    assert push.accepted, push.output + world.logs()
    assert visitor.bad == [] and visitor.asked > 10
    app.assert_serves("second")


def test_nothing_of_all_this_is_left(world: Davit, app: App) -> None:
    app.cli("apps:destroy", "--confirm", app.name)
    assert_nothing_left(world)
    assert not list(residue(world))
    shutil.rmtree(app.checkout)
