"""The slow proof: a Docker daemon in a network namespace of its own runs docker-compose.yml, and an app is pushed to it.

The image that the Dockerfile starts from is a Debian made by mmdebstrap, so that no image registry is needed; packages come
from the registries that this host uses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.leftovers import INSTANCES

CHECKOUT = Path(__file__).parents[2]
STACKS = Path(os.environ.get("DAVIT_STACKS") or Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "stacks")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = re.search(r"^FROM (\S+)", (CHECKOUT / "Dockerfile").read_text(), re.M)[1]  # type: ignore[index]
NETWORK = "198.19.255"
"""Where the daemon's namespace is; the last part of the benchmarking range (RFC 2544), which no dyno's network reaches."""

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(3600)]


def sh(*words: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, words))[:200]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return str(done.stdout)


class Docker:
    """A daemon in the network namespace ``dvcompose``; everything it keeps is in one directory."""

    name = "dvcompose"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.groups_before = list(Path("/sys/fs/cgroup").glob("*/docker"))
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0"}

    def inside(self, *words: str | Path) -> list[str]:
        """Words that run a command in the namespace (``ip netns exec`` would hide the cgroups behind a new /sys)."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *map(str, words)]

    def open(self) -> None:
        """Namespace, cable, NAT and daemon."""
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", "dvcompose0", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "address", "add", f"{NETWORK}.1/30", "dev", "dvcompose0")
        sh("ip", "link", "set", "dvcompose0", "up")
        sh(*self.inside("ip", "address", "add", f"{NETWORK}.2/30", "dev", "eth0"))
        for device in ("lo", "eth0"):
            sh(*self.inside("ip", "link", "set", device, "up"))
        sh(*self.inside("ip", "route", "add", "default", "via", f"{NETWORK}.1"))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        chain = "add table ip dvcompose; add chain ip dvcompose nat { type nat hook postrouting priority srcnat; }; "
        rule = f"{chain} add rule ip dvcompose nat ip saddr {NETWORK}.0/30 masquerade"
        sh("nft", rule)
        self._daemon()

    def _daemon(self) -> None:
        options = {"host": f"unix://{self.socket}", "data-root": self.directory / "data", "exec-root": self.directory / "exec"}
        words = ["dockerd", "--pidfile", self.directory / "pid", *(f"--{name}={value}" for name, value in options.items())]
        log = self.directory / "dockerd.log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(self.inside(*words), stdout=output, stderr=output)
        wait_until(lambda: self._answers() or self.process.poll() is not None, "dockerd answering", 60)
        assert self._answers(), log.read_text()[-2000:]

    def _answers(self) -> bool:
        return subprocess.run([_docker(), "info"], env=self.environment, capture_output=True).returncode == 0

    def close(self) -> None:
        """Daemon, namespace, cable and NAT away."""
        self.process.terminate()
        self.process.wait(60)
        for group in Path("/sys/fs/cgroup").glob("*/docker"):
            if not self.groups_before:
                subprocess.run(["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "delete", self.name])
        subprocess.run(["ip", "link", "delete", "dvcompose0"], stderr=subprocess.DEVNULL)
        subprocess.run(["nft", "delete", "table", "ip", "dvcompose"])
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (target := line.split()[4]).startswith(str(self.directory)):
                subprocess.run(["umount", "--lazy", target])

    def run(self, *words: str | Path, cwd: Path = CHECKOUT) -> str:
        """A docker command."""
        return sh(_docker(), *words, env=self.environment, cwd=cwd)


def _docker() -> str:
    return "/usr/bin/docker"


@pytest.fixture
def docker() -> Iterator[Docker]:
    directory = Path(tempfile.mkdtemp(prefix="dvc", dir="/var/tmp"))
    under_test = Docker(directory)
    try:
        under_test.open()
        yield under_test
    finally:
        under_test.close()
        shutil.rmtree(directory, ignore_errors=True)


class Composition:
    """docker-compose.yml, brought up; on the stack that this machine has built already."""

    def __init__(self, docker: Docker) -> None:
        self.docker = docker
        override = docker.directory / "override.yml"
        services = ("prepare", "runtime", "worker", "web")
        override.write_text("services:\n" + "".join(f"  {name}:\n    volumes: ['{STACKS}:/stacks:ro']\n" for name in services))
        files = ["-f", CHECKOUT / "docker-compose.yml", "-f", override]
        self.words: Sequence[str | Path] = ["docker-compose", "-p", "davit", "--project-directory", CHECKOUT, *files]
        self.environment = {**docker.environment, "DAVIT_STACKS": "/stacks"}

    def __call__(self, *words: str) -> str:
        return sh(*self.words, *words, env=self.environment)

    def attempt(self, *words: str) -> None:
        """A command whose failure is not the test's, its output for the reader of a failure."""
        subprocess.run([*map(str, self.words), *words], env=self.environment)

    def stop(self) -> None:
        """Stop the apps as docker-compose.yml says: they outlive the runtime's container otherwise."""
        self.attempt("stop", "--timeout", "20", "runtime")
        self.attempt("run", "--rm", "-T", "runtime", "python", "-m", "runtime", "stop")

    def davit(self, *words: str) -> str:
        return self("exec", "-T", "web", "davit", *words)


@pytest.fixture
def composition(docker: Docker) -> Iterator[Composition]:
    assert claims() == [], "a Davit in /var/lib/davit runs on this host: `davit down` first, the composed one has the same home"
    make_base(docker)
    under_test = Composition(docker)
    try:
        under_test("build")
        under_test("up", "--detach")
        yield under_test
    except BaseException:
        under_test.attempt("logs", "--tail=40")
        raise
    finally:
        under_test.stop()
        under_test("down", "--volumes", "--timeout", "20")


def claims() -> list[str]:
    """The instances that a Davit in /var/lib/davit holds on this host (a container's /run/davit is the host's)."""
    files = [path for path in INSTANCES.glob("*") if path.name.isdigit()]
    return [path.name for path in files if path.read_text() == "/var/lib/davit"]


def make_base(docker: Docker) -> None:
    """A minimal Debian under the Dockerfile's name, with this host's package sources and certificates."""
    archive = docker.directory / "base.tar"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    trust = "/usr/local/share/ca-certificates"
    copies = f'mkdir -p "$1{trust}" && cp {CERTIFICATES} "$1{trust}/host.crt" && cp {CERTIFICATES} "$1{CERTIFICATES}"'
    sh(
        "mmdebstrap", "--variant=apt", "--include=ca-certificates", "--format=tar", f"--keyring={keyring}",
        f"--customize-hook={copies}", "bookworm", archive,
    )  # fmt: skip
    docker.run("import", "--change", f"ENV SSL_CERT_FILE={CERTIFICATES} PIP_CERT={CERTIFICATES}", archive, BASE)


def test_an_app_is_pushed_to_the_composed_services(docker: Docker, composition: Composition, tmp_path: Path) -> None:
    wait_until(lambda: "(healthy)" in docker.run("ps", "--filter", "name=web", "--format", "{{.Status}}"), "healthy services", 180)
    composition.davit("apps:create", "composed")
    token = composition("exec", "-T", "web", "cat", "/var/lib/davit/owner-token").strip()
    push(docker, tmp_path, token)
    answer = sh(*docker.inside("curl", "-s", "-H", "Host: composed.localhost", "http://127.0.0.1:8080/"))
    assert answer == "Hello from Davit!\n"

    composition("restart", "--timeout", "20", "runtime", "web", "worker", "logs", "ssh")
    answer = sh(*docker.inside("curl", "-s", "-H", "Host: composed.localhost", "http://127.0.0.1:8080/"))
    assert answer == "Hello from Davit!\n", "the app serves on while Davit's processes are replaced"
    assert only_the_runtime_is_privileged(docker)

    composition.stop()
    assert claims() == [], "stopped apps leave nothing"


def push(docker: Docker, repository: Path, token: str) -> None:
    shutil.copytree(CHECKOUT / "examples/flask", repository, dirs_exist_ok=True)
    sh("git", "init", "--quiet", repository)
    git = ["git", "-C", repository, "-c", "user.name=A", "-c", "user.email=a@example.com"]
    sh(*git, "add", "--all")
    sh(*git, "commit", "--quiet", "--message", "first")
    helper = f"credential.helper=!f() {{ echo username=git; echo password={token}; }}; f"
    sh(*docker.inside(*git, "-c", helper, "push", "http://127.0.0.1:5000/composed.git", "HEAD:refs/heads/main"))


def only_the_runtime_is_privileged(docker: Docker) -> bool:
    running = docker.run("ps", "--format", "{{.Names}}").split()
    shape = "{{.HostConfig.Privileged}} {{.Config.User}} {{.HostConfig.ReadonlyRootfs}}"
    found = {name: docker.run("inspect", "--format", shape, name).split() for name in running}
    confined = [values for name, values in found.items() if "runtime" not in name]
    return len(found) == 7 and all(values == ["false", "davit", "true"] for values in confined) and len(confined) == 6
