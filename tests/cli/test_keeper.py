"""A Davit that `davit up` did not start: systemd, Docker or somebody else keeps its processes, and the commands say so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cli.host import doctor, home, install, keeper, processes, ready, record, slugs, status
from cli.main import cli
from foundation.settings import Settings, from_environment, settings
from runtime import stacks
from runtime.microvm import kernel as microvm_kernel
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says
from tests.ports import free_port

CHECKOUT = Path(__file__).parents[2]


class Kept:
    """Two of Davit's processes, started as another program would start them."""

    def __init__(self, home: Path) -> None:
        given = {
            "DAVIT_HOME": str(home),
            **{name: f"127.0.0.1:{free_port()}" for name in ("DAVIT_HTTP", "DAVIT_API", "DAVIT_SSH")},
        }
        self.settings: Settings = from_environment(given)
        self.environment = {**os.environ, **given}
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str) -> None:
        self.started[name] = subprocess.Popen([sys.executable, "-m", module], cwd=CHECKOUT, env=self.environment)
        wait_until(lambda: ready.answers(name, self.settings), f"{name}'s answer")

    def davit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([CHECKOUT / "bin/davit", *words], env=self.environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def kept(davit_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    made = Kept(davit_home)
    for name in ("DAVIT_HOME", "DAVIT_HTTP", "DAVIT_API", "DAVIT_SSH"):
        monkeypatch.setenv(name, made.environment[name])
    home.prepare(made.settings)
    with ExitStack() as stack:
        stack.callback(lambda: processes.stop([one.pid for one in made.started.values()], 15))
        made.start("logs", "logs")
        made.start("ssh", "builder.ssh")
        yield made


@pytest.mark.row("kept-by-another")
def test_what_another_program_keeps_is_seen_and_left_alone(kept: Kept) -> None:
    """One start of the processes for all that is asked of them."""
    found = keeper.find(kept.settings)
    assert found is not None and found.pids == {"logs": kept.started["logs"].pid}
    assert found.name in ("another program", "Docker"), "the latter where the tests run in a container of Docker's"

    rows = {row.process: row for row in status.survey(kept.settings, found)}
    assert rows["logs"].state == rows["ssh"].state == "running" and rows["logs"].pid == kept.started["logs"].pid
    assert rows["logs"].memory > 0 and rows["logs"].since and rows["logs"].restarts is None
    assert rows["web"].state == rows["runtime"].state == "stopped"
    told = kept.davit("status")
    assert told.returncode == 1, "not all of them run"
    assert f"Kept by {found.name}" in told.stdout and "not running" not in told.stdout

    for words in (["up", "--detach"], ["down"]):
        refused = kept.davit(*words)
        assert refused.returncode == 1, refused.stdout
        assert_says("kept-by-another", refused.stderr.replace("`", ""))
    assert all(process.poll() is None for process in kept.started.values())

    points = {point.name: point for point in doctor.check_ports(kept.settings)}
    assert points["DAVIT_SSH"].message == f"{kept.settings.ssh} is Davit's"
    assert points["DAVIT_API"].message == f"{kept.settings.api} is free"
    with socket.socket() as other:
        other.bind((kept.settings.api.host, kept.settings.api.port))
        other.listen()
        points = {point.name: point for point in doctor.check_ports(kept.settings)}
    assert points["DAVIT_API"].level == "fail", "what another program listens at is not Davit's"

    record.write(kept.settings.run, record.Record(processes.Identity.of(os.getpid()), []))
    assert keeper.find(kept.settings) is None, "a supervisor of `davit up` is there"


def test_an_haproxy_in_another_pid_namespace_is_its_routers_word(davit_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Docker's container of `web`: the router's answer says that HAProxy lives, and no process of it is to be seen."""
    settings = from_environment({"DAVIT_HOME": str(davit_home), "DAVIT_HTTP": f"127.0.0.1:{free_port()}"})
    docker = keeper.Keeper("Docker", "", "", {"router": 0})
    monkeypatch.setattr(keeper, "find", lambda settings: docker)
    monkeypatch.setattr(keeper, "survey", lambda settings, kept_by: [keeper.Process("router", True, None, None)])
    rows = status.survey(settings, docker)
    assert [row.process for row in rows] == ["router"] and status.whole(rows, docker)
    with socket.socket() as haproxy:
        haproxy.bind((settings.http.host, settings.http.port))
        haproxy.listen()
        point = next(point for point in doctor.check_ports(settings) if point.name == "DAVIT_HTTP")
    assert point.level == "ok", point


def test_all_that_run_and_answer_are_whole_whoever_keeps_them() -> None:
    rows = [status.Row(name, "running", [], None, None, 0) for name in ("logs", "web")]
    other = keeper.Keeper("systemd", "", "", {})
    assert status.whole(rows, other) and not status.whole(rows, None)
    assert not status.whole([*rows, status.Row("ssh", "stopped", [], None, None, 0)], other)


def test_a_process_that_is_there_and_does_not_answer_is_silent(davit_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still starting, or hangs: either way it is not stopped, and not all is well."""
    settings = from_environment({"DAVIT_HOME": str(davit_home)})
    found = [keeper.Process("router", False, os.getpid(), 1), keeper.Process("web", False, None, 0)]
    monkeypatch.setattr(keeper, "survey", lambda settings, kept_by: found)
    systemd = keeper.Keeper(keeper.SYSTEMD, "", "", {})
    rows = status.survey(settings, systemd)
    assert [(row.process, row.state) for row in rows] == [("router", "silent"), ("web", "stopped")]
    assert rows[0].pid == os.getpid() and not status.whole(rows, systemd)


def test_where_nothing_runs_there_is_no_keeper(davit_home: Path) -> None:
    assert keeper.find(from_environment({"DAVIT_HOME": str(davit_home)})) is None


def test_what_systemd_shows_is_read() -> None:
    told = "Id=davit-web.service\nMainPID=17\nNRestarts=2\n\nId=davit-prepare.service\nMainPID=0\n\nId=davit-firewall.service\nMainPID=0\n"
    assert keeper.parse_units(told) == {"web": (17, 2), "prepare": (0, 0), "firewall": (0, 0)}


def test_who_listens_at_a_port_is_seen() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        port = mine.getsockname()[1]
        assert not processes.listen([os.getpid()], port)
        mine.listen()
        assert processes.listen([os.getpid()], port) and not processes.listen([os.getppid()], port)
        assert not processes.listen([], port)


@pytest.fixture
def installed(tmp_path: Path, davit_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As ``davit install`` leaves a host from cloud-init whose administrator has no setting in a variable: the units' file."""
    file = tmp_path / "davit.env"
    file.write_text(f"DAVIT_HOME={davit_home}\nDAVIT_STACKS={tmp_path}/stacks\nDAVIT_DOMAIN=apps.example.com\n")
    variables = install.read_environment(file)
    monkeypatch.setattr(install, "UNITS", tmp_path / "units")
    install.UNITS.mkdir()
    install.write(install.compose(file, variables, from_environment(variables), "davit"), install.UNITS)
    for name in (*variables, "DAVIT_MIRROR"):
        monkeypatch.setenv(name, "")  # what is set in its place is undone in the end
        monkeypatch.delenv(name)
    settings.cache_clear()
    yield file
    settings.cache_clear()


def test_where_systemd_keeps_davit_a_command_has_its_settings(
    installed: Path, davit_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it is stopped."""
    taken = keeper.take_up()
    assert (taken.home, taken.stacks, taken.domain) == (davit_home, tmp_path / "stacks", "apps.example.com")

    monkeypatch.setenv("DAVIT_STACKS", "/srv/stacks")
    settings.cache_clear()
    assert keeper.take_up().stacks == Path("/srv/stacks"), "whoever types a variable means it"


def test_a_command_for_another_davit_has_that_ones_settings(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_HOME", "/srv/other")
    settings.cache_clear()
    assert keeper.take_up().stacks == Path("/srv/other/stacks")


def test_stacks_and_the_microvms_kernel_are_made_where_systemds_davit_looks(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes them is a stand-in: it takes minutes, and what matters is where."""
    made: list[tuple[str, Path]] = []
    monkeypatch.setattr(microvm_kernel, "install_qemu", lambda progress: None)
    monkeypatch.setattr(stacks, "ensure", lambda root, **_: made.append(("stack", root)))
    monkeypatch.setattr(microvm_kernel, "build", lambda root, *_: made.append(("kernel", root)) or SimpleNamespace(version="1"))
    done = CliRunner().invoke(cli, ["stack:build", "--vm"])
    assert done.exit_code == 0, done.output
    assert made == [("stack", tmp_path / "stacks"), ("kernel", tmp_path / "stacks")]

    export = SimpleNamespace(app="shop", version=1)
    monkeypatch.setattr(stacks, "current", lambda root: root)
    monkeypatch.setattr(stacks, "export", lambda stack, file: made.append((str(file), stack)) or "0" * 64)
    monkeypatch.setattr(slugs, "find", lambda app, version: export)
    monkeypatch.setattr(slugs, "export", lambda ours, *_, **__: made.append(("slug", ours.stacks)))
    for words in (["stack:export", "stack.tar"], ["slugs:export", "shop", "--output", str(installed)]):
        monkeypatch.delenv("DAVIT_STACKS")
        settings.cache_clear()
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
    assert made[-2:] == [("stack.tar", tmp_path / "stacks"), ("slug", tmp_path / "stacks")]
