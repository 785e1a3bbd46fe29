"""The proof: a blank Debian or Ubuntu in a virtual machine, its seed disk, and half an hour later at most an app that was pushed to it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.host import machines  # noqa: F401 - the command under test, imported early so that a typing error fails at once
from hosts import cloudconfig
from tests.e2e.world import DAVIT, STACKS, TINY
from tests.hosts.machine import DISTRIBUTIONS, NETWORK, ROOT, Machine, blank, mirror, say, served, sha256
from tests.hosts.test_user_data import unknown

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(5400)]
BOUND = 1800.0
"""Seconds from power-on until an app that was pushed answers."""
DYNOS = "pgrep -f '[p]ython3 -u app.py' | sort"


def davit(*words: str | Path) -> str:
    done = subprocess.run(
        [DAVIT, *words], capture_output=True, text=True, env={**os.environ, "DAVIT_STACKS": str(STACKS)}, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def company_certificates(directory: Path) -> list[str]:
    """Options for the authorities that this machine trusts beyond Debian's: a new machine needs them to reach anything."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt").read_text()
    usual = "".join(path.read_text() for path in Path("/usr/share/ca-certificates/mozilla").glob("*.crt"))
    own = [text + "-----END CERTIFICATE-----\n" for text in bundle.split("-----END CERTIFICATE-----\n")]
    words = []
    for number, text in enumerate(text for text in own if "BEGIN" in text and text.strip() not in usual):
        (directory / f"ca{number}.pem").write_text(text.strip() + "\n")
        words += ["--ca", str(directory / f"ca{number}.pem")]
    return words


@pytest.fixture
def machine(suite: str, tmp_path: Path) -> Iterator[Machine]:
    """A machine whose seed disk is made by the commands that a person types."""
    source = ["--mirror", mirror(blank(suite))] if DISTRIBUTIONS[suite].mirrored else []
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "admin@laptop", "-f", tmp_path / "key"], check=True)
    files = tmp_path / "files"
    files.mkdir()
    subprocess.run(["git", "-C", ROOT, "archive", "--prefix=davit/", "-o", files / "davit.tar", "HEAD"], check=True)
    davit("stack:export", files / "stack.tar")
    (tmp_path / "network").write_text(NETWORK)
    with served(files) as url:
        davit(
            "host:seed", tmp_path / "seed.iso", "--domain", "apps.test", "--admin-key", tmp_path / "key.pub", "--hostname", "davit-1",
            "--archive", f"{url}/davit.tar", "--sha256", sha256(files / "davit.tar"), "--swap", "512",
            "--stack", f"{url}/stack.tar", "--stack-sha256", sha256(files / "stack.tar"), "--network", tmp_path / "network",
            *company_certificates(tmp_path), *source,
        )  # fmt: skip
        made = Machine(tmp_path, tmp_path / "seed.iso", suite)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.mark.parametrize("suite", DISTRIBUTIONS)
def test_a_blank_image_becomes_a_davit_host_and_takes_a_push(suite: str, machine: Machine, tmp_path: Path) -> None:
    begun = time.monotonic()
    machine.until_said(cloudconfig.ENDED, begun + BOUND)
    say(f"cloud-init finished {time.monotonic() - begun:.0f} s after power-on")
    told = machine.ssh("cloud-init status --long", check=False)
    assert "status: done" in told and "degraded" not in told, f"{told}\n{machine.told()}"
    token = machine.ssh("sudo cat /var/lib/davit/owner-token").strip()
    machine.secrets.add(token)
    push(machine, token, tmp_path)
    serves(machine, "first")
    took = time.monotonic() - begun
    say(f"a pushed app answered {took:.0f} s after power-on")
    assert took < BOUND, f"it took {took:.0f} s, more than {BOUND:.0f}"
    for line in machine.ssh("cloud-init analyze blame", check=False).splitlines()[:12]:
        say(line)
    its_cloud_init_understood_all(machine)
    it_is_confined(machine)
    only_what_runs_is_there(machine)
    upgrades_come_and_disturb_nobody(machine)
    running_it_twice_changes_nothing(machine)
    a_changed_setting_is_put_in_force(machine)
    with requests_all_along(machine):
        machine.ssh("sudo systemctl restart systemd-networkd")
    killed_processes_come_back(machine)
    serves(machine, "first")
    the_commands_know_what_systemd_keeps(machine)
    it_comes_back_after_a_reboot(machine)
    say(f"all of it took {time.monotonic() - begun:.0f} s")


def push(machine: Machine, token: str, directory: Path) -> None:
    """Make an app and push to it with git, from outside."""
    api = httpx.Client(
        base_url=f"http://127.0.0.1:{machine.api}", timeout=300, trust_env=False,
        headers={"Accept": "application/vnd.heroku+json; version=3", "Authorization": f"Bearer {token}"},
    )  # fmt: skip
    assert api.post("/apps", json={"name": "first-app"}).status_code == 201
    checkout = directory / "checkout"
    checkout.mkdir()
    for name, text in TINY.items():
        (checkout / name).write_text(text)
    author = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    subprocess.run(["git", "-C", checkout, "init", "-q", "-b", "main"], check=True)
    subprocess.run(["git", "-C", checkout, "add", "-A"], check=True)
    subprocess.run(["git", "-C", checkout, *author, "commit", "-q", "-m", "first"], check=True)
    # not in the URL: a command line can be read by everybody, and stands in the message of a test that fails
    basic = base64.b64encode(f"davit:{token}".encode()).decode()
    machine.secrets.add(basic)
    authorized = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }
    url = f"http://127.0.0.1:{machine.api}/first-app.git"
    with subprocess.Popen(
        ["git", "-C", checkout, "push", url, "main"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=os.environ | authorized,
    ) as pushing:  # fmt: skip
        assert pushing.stdout is not None
        said = []
        for line in pushing.stdout:
            said.append(line)
            say(line.strip()[:160])
    assert pushing.returncode == 0, f"{''.join(said)}\n{machine.told()}"


def serves(machine: Machine, text: str) -> None:
    """The app answers 200 through the machine's port 80."""
    answer = httpx.get(f"http://127.0.0.1:{machine.http}/", headers={"Host": "first-app.apps.test"}, timeout=120, trust_env=False)
    assert answer.status_code == 200 and text in answer.text, f"{answer.status_code} {answer.text[:500]}"


def its_cloud_init_understood_all(machine: Machine) -> None:
    """Of the version that the distribution has now: nothing of what we say is wrong or on its way out, and we know all its keys."""
    told = machine.ssh("sudo cloud-init schema --system 2>&1", check=False)
    assert "Valid" in told and not re.search("(?i)invalid|deprecat|error", told), told
    schema = machine.ssh("cat /usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json")
    assert unknown(json.loads(schema)) == set()


def it_is_confined(machine: Machine) -> None:
    """Only runtime is root's; the firewall is there; secrets are not in what everybody may read."""
    users = {
        line.split()[0]
        for line in machine.ssh("ps -eo user:20,args | grep '[p]ython.* -m '").splitlines()
        if "runtime" not in line
    }
    assert users == {"davit"}, users
    assert "policy drop" in machine.ssh("sudo nft list table inet davit_host")
    assert machine.ssh("sudo stat -c %a /etc/davit/davit.env").strip() == "600"


def only_what_runs_is_there(machine: Machine) -> None:
    """No package of the tests, no service of the distribution's that takes a port, and nothing left to compile."""
    here = machine.ssh("ls /opt/davit/.venv/lib/python3*/site-packages").split()
    assert "flask" in here and not {"pytest", "playwright", "mypy", "hypothesis"} & set(here)
    assert not {"redis-server.service", "haproxy.service"} & set(
        machine.ssh("systemctl list-units --state=active,failed --plain --no-legend --type=service | cut -d' ' -f1").split()
    )
    assert machine.ssh("systemctl is-enabled unattended-upgrades").strip() == "enabled"
    assert machine.ssh("sudo find /opt/davit/state /opt/davit/api -name '*.pyc' | wc -l").strip() != "0"


def upgrades_come_and_disturb_nobody(machine: Machine) -> None:
    """Security's, every day, without a reboot; and what restarts services after one restarts none."""
    settings = machine.ssh("apt-config dump")
    for line in ('Periodic::Update-Package-Lists "1"', 'Periodic::Unattended-Upgrade "1"', 'Upgrade::Automatic-Reboot "false"'):
        assert line in settings, settings
    assert machine.ssh("systemctl is-active apt-daily.timer apt-daily-upgrade.timer").split() == ["active", "active"]
    assert re.search("Upgrade::(Allowed-Origins|Origins-Pattern):: .*-security", settings), settings
    if "needrestart" in DISTRIBUTIONS[machine.suite].packages:
        told = machine.ssh("sudo env DEBIAN_FRONTEND=noninteractive needrestart -v -m u 2>&1", timeout=900)
        assert "explicit restart mode configured" in told and "Restarting services" not in told, told


def running_it_twice_changes_nothing(machine: Machine) -> None:
    """The set-up, run again: same processes, same files."""
    look = (
        "systemctl show -p Id,MainPID 'davit-*.service' | grep . | paste -d' ' - - | sort; sudo sha256sum /var/lib/dpkg/status; sudo nft list table inet davit_host; "
        "sudo find /etc /opt/davit /usr/local -newer /run/again -not -path '*/__pycache__*'"
    )
    machine.ssh("sudo touch /run/again")
    before = machine.ssh(look)
    said = machine.ssh("sudo /usr/local/sbin/davit-host-setup", timeout=900)
    assert machine.ssh(look) == before, said
    serves(machine, "first")


def a_changed_setting_is_put_in_force(machine: Machine) -> None:
    """Every process is started with it but Redis, whom it does not concern; no request fails, and HAProxy and dynos do not notice."""
    names = ("logs", "router", "runtime", "worker", "ssh", "web")
    look = "systemctl show -p MainPID --value " + " ".join(f"davit-{name}" for name in names) + " | grep ."
    stay = f"systemctl show -p MainPID --value davit-redis; pgrep -o -x haproxy; {DYNOS}"
    before, staying = machine.ssh(look).split(), machine.ssh(stay)
    machine.ssh("echo DAVIT_BOOT_TIMEOUT=777 | sudo tee -a /etc/davit/davit.env >/dev/null")
    with requests_all_along(machine):
        said = machine.ssh("sudo davit install --start", timeout=900)
    after = machine.ssh(look).split()
    assert len(after) == len(names) and not set(before) & set(after), said
    for name, pid in zip(names, after, strict=True):
        if name in ("worker", "web"):
            continue  # what gives itself a title has that where its environment was
        assert machine.ssh(f"sudo grep -c -z -x DAVIT_BOOT_TIMEOUT=777 /proc/{pid}/environ").strip() == "1", name
    assert machine.ssh(stay) == staying, said
    machine.ssh("sudo davit install --start", timeout=900)
    assert machine.ssh(look).split() == after, "nothing has changed, and processes were restarted"


@contextmanager
def requests_all_along(machine: Machine) -> Iterator[None]:
    """Somebody asks the app again and again meanwhile; each request must be answered."""
    enough, failed, answered = threading.Event(), list[str](), list[str]()

    def ask() -> None:
        while not enough.wait(0.2):
            try:
                serves(machine, "first")
                answered.append("first")
            except (AssertionError, httpx.HTTPError) as error:
                failed.append(str(error) or type(error).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        enough.set()
        asking.join()
    assert answered and not failed, f"{len(answered)} requests were answered, these were not: {failed[:3]}"


def killed_processes_come_back(machine: Machine) -> None:
    """systemd starts what dies, and dynos outlive the runtime."""
    pid = "systemctl show -p MainPID --value davit-runtime"
    old = machine.ssh(pid).strip()
    before = machine.ssh(DYNOS)
    machine.ssh("sudo systemctl kill --kill-whom=main -s KILL davit-runtime davit-router")
    deadline = time.monotonic() + 300
    while (new := machine.ssh(pid).strip()) in (old, "0"):
        assert time.monotonic() < deadline, f"the runtime is still {new}"
        time.sleep(1)
    assert machine.ssh(DYNOS) == before


def the_commands_know_what_systemd_keeps(machine: Machine) -> None:
    """`davit status` and `doctor` speak of the processes that run, and `davit down` leaves them alone."""
    deadline = time.monotonic() + 300  # what was killed starts slowly where a processor is emulated
    while "silent" in (told := machine.ssh("sudo davit status", check=False)) and time.monotonic() < deadline:
        time.sleep(5)
    told = machine.ssh("sudo davit status")
    assert "Kept by systemd" in told and "stopped" not in told, told
    looked = machine.ssh("sudo davit doctor", check=False)
    for variable, address in (("DAVIT_API", "0.0.0.0:5000"), ("DAVIT_SSH", "0.0.0.0:2222"), ("DAVIT_HTTP", "0.0.0.0:80")):
        assert re.search(rf"{variable} +{address} is Davit's", looked), looked
    assert "`systemctl stop davit.target`" in machine.ssh("sudo davit down 2>&1", check=False)
    assert "Wrote" in machine.ssh("sudo davit stack:export /var/tmp/again.tar && sudo rm /var/tmp/again.tar"), (
        "its own stack is found"
    )
    serves(machine, "first")


def it_comes_back_after_a_reboot(machine: Machine) -> None:
    """All by itself: network, firewall, Davit, the app."""
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = machine.ssh(boot)
    machine.ssh("sudo systemctl reboot", check=False)
    say("it starts again")

    def up() -> None:
        assert machine.ssh(boot) != before

    deadline = time.monotonic() + 1200
    until(up, deadline)
    until(lambda: serves(machine, "first"), deadline)
    say("the app answers again")
    assert "policy drop" in machine.ssh("sudo nft list table inet davit_host")
    assert machine.ssh("sudo journalctl -b -q --no-pager _PID=1 --grep 'ordering cycle'", check=False) == ""
    assert machine.ssh("systemctl list-units --failed --plain --no-legend") == ""


def until(holds: Callable[[], None], deadline: float) -> None:
    """Wait until it does not fail any more."""
    while True:
        try:
            return holds()
        except (AssertionError, httpx.HTTPError, subprocess.TimeoutExpired) as error:
            assert time.monotonic() < deadline, f"still {error}"
        time.sleep(2)
