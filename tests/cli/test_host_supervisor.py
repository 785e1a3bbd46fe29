"""The supervisor with real processes: it keeps them running, is the only one, stops in order, and may be killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.host import record, supervisor
from cli.host.processes import Identity, command_line
from cli.host.start import Plan, Starter
from runtime import mounts
from tests.conftest import wait_until

RUNNER = """
import json, os, sys
from pathlib import Path
from cli.host import record
from cli.host.start import Become, Plan, Starter, become
from cli.host.supervisor import Supervisor
home, commands = Path(os.environ["DAVIT_HOME"]), json.loads(sys.argv[1])
plans = [Plan(name, argv, dict(os.environ), home, home / "log" / f"{name}.log") for name, argv in commands.items()]
try:
    with record.sole(home / "run") as alone:
        if not alone:
            sys.exit("already")
        Supervisor(home / "run", plans, Starter()).run()
except Become as forked:
    become(forked.plan, forked.gate)
"""


class Supervised:
    """A supervisor process of its own with a table of commands."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **commands: list[str]) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", RUNNER, json.dumps(commands)]
        environment = {**os.environ, "DAVIT_HOME": str(self.home)}
        process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def entry(self, name: str) -> record.Entry:
        found = [entry for entry in record.read(self.home / "run").entries if entry.name == name]
        return found[0] if found else record.Entry(name)

    def pid(self, name: str) -> int:
        """The pid of a running process; waits for it, and until it is past the gate, where it would end with its supervisor."""
        wait_until(lambda: self._living(name) and self._is_program(name), f"{name} running")
        process = self.entry(name).process
        assert process is not None
        return process.pid

    def _is_program(self, name: str) -> bool:
        process = self.entry(name).process
        try:
            return process is not None and b"cli.host.supervisor" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _living(self, name: str) -> bool:
        process = self.entry(name).process
        return process is not None and process.lives()

    def log(self, name: str) -> str:
        path = self.home / "log" / f"{name}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def supervised(davit_home: Path) -> Iterator[Supervised]:
    for name in ("run", "log"):
        (davit_home / name).mkdir()
    under_test = Supervised(davit_home)
    yield under_test
    for process in under_test.processes:
        process.kill()
        process.wait()
    supervisor.end(record.read(davit_home / "run").living())


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_a_process_that_dies_is_started_again(supervised: Supervised) -> None:
    supervised.start(web=["sleep", "60"])
    first = supervised.pid("web")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervised.entry("web").restarts == 1, "a restart")
    assert supervised.pid("web") != first


@pytest.mark.root
def test_a_full_disk_ends_no_supervision(supervised: Supervised) -> None:
    """Neither the record nor a line fits any more; who dies is started all the same, and on record when there is room."""
    run = supervised.home / "run"
    mounts.mount("tmpfs", run, "tmpfs", 0, "size=16k")
    try:
        process = supervised.start(web=["sleep", "4711"])
        first = supervised.pid("web")
        filler = run / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: _children_of(process.pid, b"4711") - {first}, "a successor")
        assert process.poll() is None and supervised.entry("web").restarts == 0
        filler.unlink()
        os.kill(_children_of(process.pid, b"4711").pop(), signal.SIGKILL)
        wait_until(lambda: supervised.entry("web").restarts == 2, "the record")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        mounts.unmount(run)


def _children_of(pid: int, word: bytes) -> set[int]:
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return {child for child in children if word in Path(f"/proc/{child}/cmdline").read_bytes()}


@pytest.mark.parametrize("cause", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_start_that_fails_is_tried_again(davit_home: Path, monkeypatch: pytest.MonkeyPatch, cause: int) -> None:
    (davit_home / "run").mkdir()
    plan = Plan("web", ["sleep", "4712"], dict(os.environ), davit_home, davit_home / "web.log")
    under_test = supervisor.Supervisor(davit_home / "run", [plan], Starter())

    def fork() -> int:
        raise OSError(cause, os.strerror(cause))

    monkeypatch.setattr("cli.host.start.os.fork", fork)
    before = len(os.listdir("/proc/self/fd"))
    under_test._start_due()
    (child,) = under_test.children
    assert child.entry.state == "waiting" and 0 < child.due - time.monotonic() <= 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_second_supervisor_of_a_home_refuses(supervised: Supervised) -> None:
    supervised.start(web=["sleep", "60"])
    supervised.pid("web")
    second = supervised.start(web=["sleep", "60"])
    assert second.wait(20) == 1
    assert second.stderr is not None and b"already" in second.stderr.read()


def test_told_to_stop_it_stops_every_process_and_redis_last(supervised: Supervised) -> None:
    asked = "trap 'echo asked $(date +%s%N); exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    process = supervised.start(redis=shell(asked), web=shell(asked))
    wait_until(lambda: "ready" in supervised.log("web") and "ready" in supervised.log("redis"), "both ready")
    process.terminate()
    assert process.wait(30) == 0
    moments = {name: int(supervised.log(name).split("asked ")[1]) for name in ("web", "redis")}
    assert moments["web"] < moments["redis"]
    assert record.read(supervised.home / "run").living() == []


def test_what_a_stopped_process_started_ends_with_it(supervised: Supervised) -> None:
    process = supervised.start(worker=shell("setsid sleep 61 & echo horse $!; wait"))
    wait_until(lambda: "horse" in supervised.log("worker"), "the horse started")
    horse = Identity.of(int(supervised.log("worker").split("horse ")[1]))
    assert horse is not None
    process.terminate()
    process.wait(30)
    assert not horse.lives()


def test_what_the_router_started_outlives_it(supervised: Supervised) -> None:
    process = supervised.start(router=shell("setsid sleep 62 & echo proxy $!; wait"))
    wait_until(lambda: "proxy" in supervised.log("router"), "the proxy started")
    proxy = Identity.of(int(supervised.log("router").split("proxy ")[1]))
    assert proxy is not None
    process.terminate()
    process.wait(30)
    assert proxy.lives()
    os.kill(proxy.pid, signal.SIGKILL)


def test_a_dead_leader_leaves_nobody_in_its_session(supervised: Supervised) -> None:
    supervised.start(web=shell("sleep 63 & echo member $!; wait"))
    wait_until(lambda: "member" in supervised.log("web"), "the member started")
    member = Identity.of(int(supervised.log("web").split()[1]))
    assert member is not None
    os.kill(supervised.pid("web"), signal.SIGKILL)
    wait_until(lambda: not member.lives(), "the member's end")


def test_after_a_kill_the_next_supervisor_adopts_the_processes(supervised: Supervised) -> None:
    first = supervised.start(web=["sleep", "60"])
    pid = supervised.pid("web")
    first.kill()
    first.wait()
    supervised.start(web=["sleep", "60"])
    wait_until(lambda: _supervisor(supervised) == supervised.processes[1].pid, "the second supervisor's record")
    assert supervised.pid("web") == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: supervised.entry("web").restarts == 1, "the adopted process's restart")


def test_a_process_started_with_another_command_is_replaced(supervised: Supervised) -> None:
    first = supervised.start(web=["sleep", "60"])
    before = Identity.of(supervised.pid("web"))
    first.kill()
    first.wait()
    supervised.start(web=["sleep", "61"])
    wait_until(lambda: _supervisor(supervised) == supervised.processes[1].pid, "the second supervisor's record")
    assert before is not None
    wait_until(lambda: not before.lives(), "the old process's end")
    now = supervised.pid("web")
    wait_until(lambda: command_line(now) == ["sleep", "61"], "the new command in place of the old")


def _supervisor(supervised: Supervised) -> int | None:
    return record.running_supervisor(supervised.home / "run")


def test_a_program_that_is_not_there_is_named_in_its_log(supervised: Supervised) -> None:
    supervised.start(web=["/nonexistent/program"])
    wait_until(lambda: supervised.log("web"), "a line in the log")
    assert "web could not be started" in supervised.log("web")


def test_one_that_keeps_dying_waits_longer_each_time() -> None:
    assert [supervisor.delay(failures) for failures in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]


def test_a_process_at_the_gate_ends_with_its_supervisor(davit_home: Path, leftovers: Callable[[Path], list[str]]) -> None:
    script = """
import os, signal
from pathlib import Path
from cli.host.start import Become, Plan, Starter, become
home = Path(os.environ["DAVIT_HOME"])
try:
    Starter().start(Plan("web", ["touch", str(home / "ran")], dict(os.environ), home, home / "web.log"))
    os.kill(os.getpid(), signal.SIGKILL)
except Become as forked:
    become(forked.plan, forked.gate)
"""
    environment = {**os.environ, "DAVIT_HOME": str(davit_home)}
    subprocess.run([sys.executable, "-c", script], env=environment)
    wait_until(lambda: leftovers(davit_home) == [], "the waiting process's end")
    assert not (davit_home / "ran").exists()
