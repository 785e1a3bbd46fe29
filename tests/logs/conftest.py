"""Real Redis, real FIFOs, the real collector process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logs import stream
from logs.resp import Client
from logs.window import WINDOW
from tests.conftest import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(redis_server: str) -> Iterator[Client]:
    """A light client of the session's Redis."""
    client = stream.connect(redis_server)
    yield client
    client.close()


@pytest.fixture
def app_id() -> str:
    """An app of this test's own: the tests share one Redis."""
    return str(uuid.uuid4())


class OwnRedis:
    """A Redis that a test may stop, start and freeze."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it, empty; with further options of redis-server's."""
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.directory, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, "redis-server answering")

    def _answers(self) -> bool:
        try:
            return bool(stream.connect(self.url).execute_command("PING"))
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once; its socket file stays, as after a crash."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def own_redis(davit_home: Path) -> Iterator[OwnRedis]:
    """A Redis of this test alone, running."""
    redis = OwnRedis(davit_home)
    redis.start()
    yield redis
    redis.kill()


class Logs:
    """``python -m logs`` for one DAVIT_HOME, and dynos whose output it collects."""

    def __init__(self, home: Path, redis_url: str, user: str | None = None) -> None:
        self.home = home
        self.user = user
        self.environment = {**os.environ, "DAVIT_HOME": str(home), "REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
        self.client = stream.connect(redis_url)
        self.process: subprocess.Popen[bytes] | None = None
        self.dynos: list[FakeDyno] = []

    def start(self) -> None:
        """Start the process and wait until it answers."""
        identity = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        argv = [sys.executable, "-m", "logs"]
        self.process = subprocess.Popen(argv, env=self.environment, cwd=ROOT, **identity)  # type: ignore[call-overload]
        from foundation import wire
        from foundation.errors import Unavailable

        def answers() -> bool:
            with contextlib.suppress(Unavailable):
                return wire.call(self.home / "run/logs.sock", "ping").result == {}
            return False

        wait_until(answers, "logs answering ping")

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        """End everything."""
        if self.process and self.process.poll() is None:
            self.kill()
        for dyno in self.dynos:
            dyno.close()

    def dyno(self, app_id: str, process: str = "web.1") -> FakeDyno:
        """A dyno's directory as the runtime makes it."""
        dyno = FakeDyno(self.home / "run/dynos" / uuid.uuid4().hex[:12], app_id, process)
        self.dynos.append(dyno)
        return dyno

    def lines(self, app_id: str, **filters: str) -> list[str]:
        """Texts of the app's window."""
        return [line.text for _, line in stream.recent(self.client, app_id, WINDOW, **filters)]

    def wait_for(self, app_id: str, condition: Callable[[list[str]], object], what: str = "the lines") -> list[str]:
        """Wait until the app's window satisfies ``condition``; its lines."""
        wait_until(lambda: condition(self.lines(app_id)), what)
        return self.lines(app_id)


class FakeDyno:
    """A directory with FIFOs that are held open read-write, as a dyno holds them."""

    def __init__(self, directory: Path, app_id: str, process: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.fds = {}
        for name in ("stdout", "stderr"):
            os.mkfifo(directory / name)
            self.fds[name] = os.open(directory / name, os.O_RDWR)
        fresh = directory / "meta.json.new"
        fresh.write_text(json.dumps({"app_id": app_id, "process": process}))
        fresh.rename(directory / "meta.json")
        self.children: list[subprocess.Popen[bytes]] = []

    def write(self, data: bytes, name: str = "stdout") -> None:
        """Write as the dyno would: blocking."""
        while data:
            data = data[os.write(self.fds[name], data) :]

    def run(self, *argv: str) -> subprocess.Popen[bytes]:
        """A child process with the FIFOs as standard output and error."""
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.fds["stdout"], stderr=self.fds["stderr"])
        self.children.append(child)
        return child

    def end(self) -> None:
        """The dyno has ended; the FIFOs stay open here, as the runtime keeps them."""
        (self.directory / "ended").touch()

    @property
    def collected(self) -> bool:
        """Whether the FIFOs were taken away."""
        return not any((self.directory / name).exists() for name in ("stdout", "stderr"))

    def close(self) -> None:
        """Let go of everything."""
        for child in self.children:
            child.kill()
            child.wait()
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}


@pytest.fixture
def logs(davit_home: Path, redis_server: str) -> Iterator[Logs]:
    """The collector, running, with the session's Redis."""
    logs = Logs(davit_home, redis_server)
    logs.start()
    yield logs
    logs.close()


@pytest.fixture
def logs_with_own_redis(davit_home: Path, own_redis: OwnRedis) -> Iterator[Logs]:
    """The collector, running, with a Redis that may be ended."""
    logs = Logs(davit_home, own_redis.url)
    logs.start()
    yield logs
    logs.close()
