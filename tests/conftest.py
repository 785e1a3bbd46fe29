"""Fixtures for every room: real Redis, real PostgreSQL, a DAVIT_HOME, and the check that nothing stays behind.

Servers listen on unix sockets in temporary directories, so that test runs never meet each other or the host's own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from runtime import children
from state import db
from tests.leftovers import leftovers_of

hypothesis_settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy")  # how fast examples are drawn says how busy the machine is, not whether something holds

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup(1) every program that a test starts would ignore it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell's script, likewise
    signal.signal(signal.SIGINT, signal.default_int_handler)

POSTGRES_PORT = 5432
"""Only names the socket file: the private cluster listens on no TCP address."""

SLOWNESS = int(os.environ.get("DAVIT_TEST_SLOWNESS") or 1)
"""How many times as long tests may take on the machine that they run on; one that is emulated sets it."""
PATIENCE = 5 * SLOWNESS
"""How much slower than usual the machine may be before a wait gives up: times are given as an idle machine needs them."""


def pytest_configure() -> None:
    """As with ``synchronous_commit`` below: databases in the tests' own process need not outlive a power cut, and there are many."""
    db.LASTING = db.MOMENTARY


LONG = {
    "tests/e2e/": 10, "tests/e2e/test_microvms.py": 30, "tests/e2e/test_restarts.py": 40,
    "tests/dashboard/test_looks.py": 8, "tests/dashboard/test_live.py": 3, "tests/dashboard/test_day.py": 60,
    "tests/dashboard/test_forms.py": 60, "tests/dashboard/test_restart.py": 30,
    "tests/runtime/": 2, "tests/runtime/test_microvm.py": 8, "tests/runtime/test_microvm_trouble.py": 3,
    "tests/builder/test_build_sandbox.py": 3, "tests/builder/test_power_lost.py": 10,
    "tests/cli/": 2, "tests/cli/test_host_": 5, "tests/buildpacks/": 2,
}  # fmt: skip
"""About how many seconds a test takes, by what its file's name begins with, where it is more than one; the last that fits counts."""


def longest_first(items: list[pytest.Item]) -> None:
    """Sort by files: one that is long and begun among the last keeps one process at work when the others have nothing to do."""
    seconds = Counter[str]()
    for item in items:
        seconds[_file(item)] += next((long for name, long in reversed(LONG.items()) if item.nodeid.startswith(name)), 1)
    items.sort(key=lambda item: (-seconds[_file(item)], _file(item)))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a kernel nothing of OSv can be proven: its tests are not run, which is not the same as passed."""
    if not os.environ.get("DAVIT_OSV_KERNEL"):
        without = [item for item in items if item.get_closest_marker("osv")]
        if without:
            config.hook.pytest_deselected(items=without)
            items[:] = [item for item in items if item not in without]
    if SLOWNESS != 1:
        for item in items:
            own = item.get_closest_marker("timeout")
            seconds = own.args[0] if own is not None else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(SLOWNESS * seconds), append=False)
    if hasattr(config, "workerinput"):  # alone they are run as they were asked for
        longest_first(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tried."""
    if not os.environ.get("DAVIT_OSV_KERNEL"):
        terminalreporter.write_line("The tests that need a real OSv kernel did NOT run: DAVIT_OSV_KERNEL is not set.")


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Poll until ``condition()`` is true; fail with a sentence that names ``what`` after PATIENCE times ``timeout`` seconds."""
    deadline = time.monotonic() + PATIENCE * timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {timeout:g} seconds")
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def orphans() -> Iterator[None]:
    """A module whose tests ran a runtime in this process made it the parent of everybody's orphans: nothing of that stays."""
    yield
    children.become_subreaper(False)
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile has no children
            for pid in (task / "children").read_text().split():
                if children.state(int(pid)) == "Z":
                    os.waitpid(int(pid), os.WNOHANG)


def _short_directory(prefix: str) -> Path:
    """A directory directly under /tmp: paths of unix sockets are limited to 108 bytes (unix(7))."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))


def _stop(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis of this test session: empty at first, without persistence, on a unix socket."""
    directory = _short_directory("dvr")
    path = directory / "redis.sock"
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: path.exists() or process.poll() is not None, "redis-server listening")
        assert process.poll() is None, "redis-server ended at once"
        yield f"unix://{path}"
    finally:
        _stop(process)
        shutil.rmtree(directory, ignore_errors=True)


def migrate(url: str) -> None:
    """Bring the database at ``url`` to the newest schema, whatever this process takes for its own; nobody is connected to it then."""
    engine = db.make_engine(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "engine", lambda: engine)
        db.upgrade()
    engine.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database in which all tables are, and nothing in them: to be copied, which is cheaper than to migrate."""
    path = tmp_path_factory.mktemp("migrated") / "davit.db"
    migrate(f"sqlite:///{path}")
    return path


def _postgres_programs() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not versions:
        pytest.fail("PostgreSQL is not installed; `make setup` installs what the tests need.")
    return versions[-1]


class PostgresCluster:
    """A private PostgreSQL cluster; calling it makes a fresh, empty database and returns its URL."""

    def __init__(self) -> None:
        self.programs = _postgres_programs()
        self.directory = _short_directory("dvp")
        user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(self.directory, user, user)
        self._identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
        self._environment = dict(os.environ)  # a test that starts it again has others, which would make it a leftover of that test
        self._made = 0
        self._migrated = ""
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [self.programs / "initdb", "-D", self.directory / "data", "-U", "davit", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd=self.directory, **self._identity,
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": "", "unix_socket_directories": str(self.directory), "port": str(POSTGRES_PORT), "fsync": "off",
            "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": "200",
        }  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.directory / "data", *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL, stderr=log, cwd=self.directory, env=self._environment, **self._identity,
            )  # fmt: skip
        wait_until(lambda: self._sql("SELECT 1").returncode == 0 or process.poll() is not None, "PostgreSQL answering")
        assert process.poll() is None, (self.directory / "log").read_text()

    def stop(self) -> None:
        """A fast shutdown: clients are cut off."""
        if self._process is not None:
            _stop(self._process, signal.SIGINT)
            self._process = None

    @property
    def runs(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def __call__(self, like: str = "template1") -> str:
        self._made += 1
        created = self._sql(f"CREATE DATABASE davit{self._made} TEMPLATE {like}")
        assert created.returncode == 0, created.stderr.decode()
        return f"postgresql://davit@/davit{self._made}?host={self.directory}&port={POSTGRES_PORT}"

    def migrated(self) -> str:
        """Make a database in which all tables are, and nothing in them; its URL. The first is migrated, the others are its copies."""
        if not self._migrated:
            migrate(self())
            self._migrated = f"davit{self._made}"
        return self(like=self._migrated)

    def _sql(self, statement: str) -> subprocess.CompletedProcess[bytes]:
        where = ["-h", self.directory, "-p", str(POSTGRES_PORT), "-U", "davit", "-d", "postgres"]
        return subprocess.run([self.programs / "psql", *where, "-qc", statement], capture_output=True, cwd=self.directory)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresCluster]:
    """A private PostgreSQL cluster; calling the fixture's value makes a fresh, empty database and returns its URL."""
    cluster = PostgresCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.directory, ignore_errors=True)


@pytest.fixture
def postgres_that_goes(postgres_server: PostgresCluster) -> Iterator[PostgresCluster]:
    """The same, to be stopped and started; the tests that follow find it running."""
    yield postgres_server
    if not postgres_server.runs:
        postgres_server.start()


@pytest.fixture
def davit_home() -> Iterator[Path]:
    """An empty DAVIT_HOME (0700, a short path) for one test, which fails when it leaves a process or mount behind."""
    home = _short_directory("dv")
    try:
        yield home
        left = leftovers_of(home, patience=10)
        assert not left, "left behind: " + "; ".join(left)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """``leftovers(home)``: what still exists on this machine of the Davit in ``home``, one phrase each."""
    return leftovers_of
