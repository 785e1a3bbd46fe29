"""``davit up``, ``status`` and ``down`` as a person types them: the whole of Davit, started, hurt and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.host.processes import Identity
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says
from tests.leftovers import INSTANCES
from tests.ports import free_port

CHECKOUT = Path(__file__).parents[2]
STACKS = Path(os.environ.get("DAVIT_STACKS") or Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "stacks")
NAMES = {"redis", "logs", "router", "runtime", "worker", "ssh", "web"}

pytestmark = pytest.mark.root


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


class Host:
    """A Davit of its own, administered by its command."""

    def __init__(self, home: Path) -> None:
        self.home = home
        addresses = {name: free_address() for name in ("DAVIT_HTTP", "DAVIT_API", "DAVIT_SSH")}
        self.environment = {**os.environ, **addresses, "DAVIT_HOME": str(home), "DAVIT_STACKS": str(STACKS)}

    def davit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([CHECKOUT / "bin/davit", *words], env=self.environment, capture_output=True, text=True, timeout=180)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["process"]: row for row in json.loads(self.davit("status", "--json").stdout)}

    def whole(self) -> bool:
        rows = self.rows()
        return NAMES | {"supervisor", "haproxy"} == rows.keys() and all(row["state"] == "running" for row in rows.values())

    def identity(self, name: str) -> Identity:
        found = Identity.of(self.rows()[name]["pid"])
        assert found is not None
        return found


@pytest.fixture
def host(davit_home: Path) -> Iterator[Host]:
    assert (STACKS / "davit-13" / "current").exists(), "`make setup` builds the stack that tests need"
    under_test = Host(davit_home)
    try:
        started = under_test.davit("up", "--detach")
        assert started.returncode == 0, started.stderr
        yield under_test
    finally:
        stopped = under_test.davit("down")
        assert stopped.returncode == 0, stopped.stderr


@pytest.mark.row("running-already")
def test_up_starts_everything_and_down_leaves_nothing(host: Host, leftovers: Callable[..., list[str]]) -> None:
    assert host.whole()
    pids = [int(line) for line in host.davit("status", "--pids").stdout.split()]
    assert set(pids) == {pid for row in host.rows().values() for pid in row["pids"]}
    claims = [path for path in INSTANCES.iterdir() if path.name.isdigit()]
    numbers = [path for path in claims if path.read_text() == str(host.home)]
    assert len(numbers) == 1
    assert_says("running-already", host.davit("up", "--detach").stdout)

    assert host.davit("down").returncode == 0
    assert leftovers(host.home, f"davit{numbers[0].name}", patience=5) == []
    assert host.davit("down").returncode == 0
    assert host.davit("status").returncode == 1


def test_the_home_keeps_its_secrets(host: Host) -> None:
    assert host.home.stat().st_mode & 0o777 == 0o700
    for secret in ("owner-token", "keys/config.keys", "keys/ssh_host_ed25519"):
        assert (host.home / secret).stat().st_mode & 0o777 == 0o600, secret
    token = (host.home / "owner-token").read_bytes().strip()
    for row in host.rows().values():
        for pid in row["pids"]:
            assert token not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert token not in Path(f"/proc/{pid}/environ").read_bytes()


def test_whatever_dies_is_back(host: Host) -> None:
    before = host.rows()
    for name in sorted(NAMES):
        os.kill(before[name]["pid"], signal.SIGKILL)
    wait_until(lambda: all(host.rows()[name]["restarts"] == 1 for name in NAMES), "every process's restart")
    wait_until(host.whole, "Davit being whole again")
    assert host.identity("haproxy").pid in before["haproxy"]["pids"], "HAProxy outlives the router process"


def test_the_supervisor_may_die_and_its_successor_takes_over(host: Host) -> None:
    before = {name: host.identity(name) for name in NAMES}
    os.kill(host.rows()["supervisor"]["pid"], signal.SIGKILL)
    wait_until(lambda: "supervisor" not in host.rows(), "the supervisor's end")
    assert all(identity.lives() for identity in before.values())
    assert host.davit("up", "--detach").returncode == 0
    assert {name: host.identity(name) for name in NAMES} == before


def test_a_supervisor_that_died_does_not_keep_down_from_stopping(host: Host) -> None:
    before = {name: host.identity(name) for name in NAMES}
    os.kill(host.rows()["supervisor"]["pid"], signal.SIGKILL)
    assert host.davit("down").returncode == 0
    assert not any(identity.lives() for identity in before.values())


def test_down_keeps_apps_when_asked(host: Host) -> None:
    proxy = host.identity("haproxy")
    assert host.davit("down", "--keep-apps").returncode == 0
    assert proxy.lives()
    assert host.davit("up", "--detach").returncode == 0
    assert host.identity("haproxy") == proxy


@pytest.mark.row("address-taken")
def test_up_says_which_address_is_taken(host: Host, tmp_path: Path) -> None:
    other = {**host.environment, "DAVIT_HOME": f"{host.home}/o"}
    refused = subprocess.run([CHECKOUT / "bin/davit", "up", "--detach"], env=other, capture_output=True, text=True)
    assert refused.returncode == 1
    assert f"{host.environment['DAVIT_API']} cannot be used: address already in use." in refused.stderr
    assert_says("address-taken", refused.stderr)
    assert "DAVIT_API=HOST:PORT" in refused.stderr
    assert not Path(f"{host.home}/o").exists()


@pytest.mark.row("not-root")
def test_only_root_may_start_it() -> None:
    # In a user namespace without a mapping nobody is root, and the checkout can still be read.
    refused = subprocess.run(["unshare", "--user", CHECKOUT / "bin/davit", "up"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: `davit up` must run as root") and refused.stderr.count("\n") == 1
    assert_says("not-root", refused.stderr)
