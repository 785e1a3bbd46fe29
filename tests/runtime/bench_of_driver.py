"""A driver set up for tests, and what tests say about it: start, output, leftovers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path
from typing import Any, TypeVar

from foundation.settings import Settings, from_environment
from runtime import cgroups, children
from runtime.container import ContainerDriver, ContainerDyno
from runtime.driver import DynoSpec, Exit, Limits
from runtime.host import Host
from runtime.instance import Instance, InstanceUnavailable
from tests.conftest import PATIENCE
from tests.leftovers import is_anothers, leftovers_of

_T = TypeVar("_T")
MIB = 1 << 20
ENV = {"PATH": "/usr/bin:/bin", "HOME": "/app", "PYTHONDONTWRITEBYTECODE": "1"}
LIMITS = Limits(memory=128 * MIB, memory_max=128 * MIB, cpu_quota=1.0, pids=64)


_SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"served")
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 5000), Handler).serve_forever()
"""


class Bench:
    """One open driver.

    Args:
        loop: where it lives.
        stack, slug: images.
        environ: further settings.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stack: Path, slug: Path, *, oci_runtime: str | None = None, **environ: str
    ) -> None:
        self.loop, self.stack, self.slug = loop, stack, slug
        self.home = Path(tempfile.mkdtemp(prefix="dv", dir="/tmp"))
        self.settings: Settings = from_environment({"DAVIT_HOME": str(self.home), **environ})
        self.oci_runtime = oci_runtime
        self.environ = environ
        self.warm = 0
        self._heard: dict[tuple[str, str], bytearray] = {}
        self.host: Host
        self.driver: ContainerDriver

    patience = 1.0
    """How much longer everything may take than in a container."""
    unreachable, loopback = "OSError113", "lo"
    """What a program hears at once that asks for an address which is closed to it; the loopback device's name."""
    limits = LIMITS
    """What its dynos have unless a test says otherwise."""

    def run(self, work: Awaitable[_T], timeout: float = 150) -> _T:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout * self.patience))

    def open(self, warm: int = 2) -> None:
        """Claim an instance, open the host and the driver."""
        children.reap_orphans(set(), children.reap_orphans(set(), set()))  # of runtimes that other tests killed
        self.warm = warm
        self.host = Host(self.settings, self._claim(), warm=warm, environ={})
        self.driver = ContainerDriver(self.host, oci_runtime=self.oci_runtime)
        self.run(self.host.open())
        self.run(self.driver.open())

    def _claim(self) -> Instance:
        """A runtime that was killed holds its number until the last process that it had just forked has ended, too."""
        end = time.monotonic() + 60
        while True:
            try:
                return Instance.claim(self.settings)
            except InstanceUnavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def close(self, stop_dynos: bool = True) -> None:
        """Close the driver; with ``stop_dynos`` nothing may be left."""
        self.run(self.driver.close(stop_dynos))
        self.run(self.host.close(remove=stop_dynos))

    def spec(self, *command: str, **changes: Any) -> DynoSpec:
        """A dyno that runs ``command``; one word is a bash script."""
        argv = ["/bin/bash", "-c", command[0]] if len(command) == 1 else list(command)
        base = DynoSpec(str(uuid.uuid4()), "web.1", "app", "app-id", self.stack, self.slug, argv, ENV, self.limits)
        return replace(base, **changes)

    def start(self, *command: str, **changes: Any) -> ContainerDyno:
        """Start a dyno."""
        return self.run(self.driver.start(self.spec(*command, **changes)))

    def python(self, code: str, **changes: Any) -> ContainerDyno:
        """Start a dyno that runs Python ``code``."""
        return self.start("/usr/bin/python3", "-c", code, **changes)

    # -- the contract's words: what a dyno does, said so that a guest that is only an imitation can be told it, too

    def saying(self, text: str, status: int, **changes: Any) -> ContainerDyno:
        """Start one that says ``text`` and ends with ``status``."""
        return self.python(f"import sys\nprint({text!r}, end='', flush=True)\nsys.exit({status})", **changes)

    def waiting(self, text: str, **changes: Any) -> ContainerDyno:
        """Start one that says ``text`` and stays; it has said so when this returns, and nobody has read it yet."""
        dyno = self.python(f"import time\nprint({text!r}, end='', flush=True)\nwhile True: time.sleep(0.1)", **changes)
        self.until_it_has_said(dyno, text)
        return dyno

    def deaf(self, text: str) -> ContainerDyno:
        """Start one that ignores SIGTERM; it has said ``text`` when this returns."""
        ignoring = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        dyno = self.python(f"{ignoring}print({text!r}, end='', flush=True)\nwhile True: time.sleep(0.1)")
        self.until_it_has_said(dyno, text)
        return dyno

    def crashing(self, text: str) -> ContainerDyno:
        """Start one that says ``text`` and crashes."""
        return self.python(f"import os\nprint({text!r}, end='', flush=True)\nos.abort()")

    def flooding(self, text: str) -> ContainerDyno:
        """Start one that says ``text`` for ever, more than anybody reads."""
        return self.python(f"while True: print({text!r} * 100, end='', flush=True)")

    def serving(self) -> ContainerDyno:
        """Start one that answers on port 5000."""
        return self.python(_SERVER, port=5000)

    def until_it_has_said(self, dyno: ContainerDyno, text: str) -> None:
        """Wait until ``text`` waits to be read."""

        def said() -> bool:
            fd = os.open(self.host.dynos / dyno.spec_id / "stdout", os.O_RDONLY | os.O_NONBLOCK)
            try:
                return int.from_bytes(ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder) >= len(text.encode())
            finally:
                os.close(fd)

        self.until(lambda: said() or dyno.ended, f"{dyno.spec_id} saying {text!r}")

    def kill_the_keeper(self, dyno: ContainerDyno) -> None:
        """SIGKILL to the process that is the dyno for this host: its init, or its QEMU."""
        os.kill(dyno.pid, signal.SIGKILL)

    def quota(self, dyno: ContainerDyno) -> float:
        """The processors that the kernel gives it at the most."""
        if dyno.cgroup.v2:
            quota, period = map(int, cgroups._read(dyno.cgroup._file("cpu", "cpu.max")).split())
            return quota / period
        return dyno.cgroup._number("cpu", "cpu.cfs_quota_us") / dyno.cgroup._number("cpu", "cpu.cfs_period_us")

    def restart_the_runtime(self, dyno: ContainerDyno) -> ContainerDyno:
        """The runtime lets go of everything and starts again; ``dyno`` as the new one has found it."""
        self.close(stop_dynos=False)
        self.open(self.warm)
        (found,) = [one for one in self.run(self.driver.adopt()) if one.spec_id == dyno.spec_id]
        return found

    def another(self) -> Bench:
        """A bench of the same kind in a DAVIT_HOME of its own, not open yet."""
        return type(self)(self.loop, self.stack, self.slug, oci_runtime=self.oci_runtime, **self.environ)

    def started_by_a_runtime_that_is_killed(self, text: str) -> list[tuple[str, int, int]]:
        """A runtime of its own starts a dyno that says ``text`` and stays, and is killed: the dyno's id, slot and pid."""
        kind = f"{type(self).__module__}:{type(self).__name__}"
        argv = [sys.executable, "-m", "tests.runtime.bench_process", kind, str(self.stack), str(self.slug), text]
        env = {**os.environ, **self.environ, "DAVIT_HOME": str(self.home)}
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
            assert process.stdout
            line = process.stdout.readline()
            process.kill()
        return [tuple(json.loads(line))]

    # -- what is heard of it

    def output(self, dyno: ContainerDyno, stream: str = "stdout") -> str:
        """What an ended dyno wrote, read as `logs` reads it."""
        self.run(dyno.wait())
        return self._said(dyno, stream)

    def _said(self, dyno: ContainerDyno, stream: str = "stdout") -> str:
        """All that it wrote until now."""
        text = self._heard.setdefault((dyno.spec_id, stream), bytearray())
        fd = os.open(self.host.dynos / dyno.spec_id / stream, os.O_RDONLY | os.O_NONBLOCK)
        try:
            while chunk := os.read(fd, 65536):
                text += chunk
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
        return text.decode()

    def result(self, code: str, **changes: Any) -> Any:
        """What Python ``code`` prints as JSON in a dyno."""
        dyno = self.python(code, **changes)
        text = self.output(dyno)
        assert text, f"the code printed nothing: {self.output(dyno, 'stderr')}"
        return json.loads(text)

    def until(self, condition: Callable[[], object], what: str, timeout: float = 15) -> None:
        """Let the loop run until ``condition()`` holds."""

        async def poll() -> None:
            end = time.monotonic() + PATIENCE * timeout * self.patience
            while not condition():
                assert time.monotonic() < end, f"{what} did not happen within {timeout:g} seconds"
                await asyncio.sleep(0.02)

        self.run(poll(), PATIENCE * timeout + 30)

    def up(self, dyno: ContainerDyno, timeout: float = 15) -> None:
        """Wait until the dyno has said something."""
        self.until(lambda: self._said(dyno), f"{dyno.spec_id} saying something", timeout)

    def command(self, dyno: ContainerDyno, argv: list[str], env: dict[str, str]) -> tuple[Exit, str]:
        """How a further command in a dyno ended, and what it said."""
        reader, writer = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            command = self.run(dyno.exec(argv, env, stdio=(null, writer, writer)))
            os.close(writer)
            exit = self.run(command.wait())
            self.run(command.remove())
            with os.fdopen(reader) as file:
                return exit, file.read()
        finally:
            os.close(null)

    def remove_all(self) -> None:
        """Remove every dyno, and read as `logs` does what they left."""
        for dyno in list(self.driver.running.values()):
            self.run(dyno.remove())
        for directory in self.host.dynos.iterdir():
            assert (directory / "ended").exists()
            for name in ("stdout", "stderr"):
                (directory / name).unlink()
        self.host.clear_read_out()

    def footprint(self) -> dict[str, Any]:
        """What host and driver hold while no dyno runs."""
        host, pool = self.host, self.host.pool
        self.until(
            lambda: len(pool._ready) == pool.warm and not pool._leaving and len(host.tasks) <= 1 and not self._remains(), "quiet"
        )
        mounted = [line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        groups = [
            str(path) for top in cgroups.layout().directories(host.instance.cgroup) for path in top.rglob("*") if path.is_dir()
        ]
        return {
            "mounts": sum(str(host.instance.directory) in line for line in mounted) - len(host.images._points),
            "cables": len(host.network.cables()),
            "neighbours": self._neighbours_for_good(),
            "cgroups": [group for group in groups if not group.endswith("app-id")],
            "descriptors": descriptors(),
            "dynos": [path.name for path in host.dynos.iterdir()],
            "states": [path.name for path in self.driver.oci.root.iterdir()],
            "work": [path.name for path in (host.work / "dynos").iterdir()],
            "children": sorted(filter(None, map(_name, children._children()))),
            "loops": _loops(self.home),
        }

    def _neighbours_for_good(self) -> int:
        words = ["ip", "-4", "-json", "neigh", "show", "dev", self.host.instance.bridge, "nud", "permanent"]
        return len(json.loads(subprocess.run(words, check=True, capture_output=True).stdout))

    def _remains(self) -> list[str]:
        """What OCI runtimes left behind and that has not ended yet, so that nobody could reap it."""
        self.host.reap()
        return [name for name in map(_name, children._children()) if name.startswith(("crun", "runc"))]

    def wait_for_footprint(self, before: dict[str, Any]) -> None:
        """Fail, and say what is left, unless all is as before soon."""
        end = time.monotonic() + 60  # orphans are reaped at the second look, five seconds apart on an idle machine
        while (after := self.footprint()) != before:
            assert time.monotonic() < end, {key: (before[key], after[key]) for key in after if after[key] != before[key]}
            self.run(asyncio.sleep(0.05))

    def leftovers_on_host(self) -> list[str]:
        """What a closed driver left on the host."""
        found = leftovers_of(self.home, self.host.instance.bridge, patience=5)
        if self.host.instance.directory.exists() and not is_anothers(self.host.instance.bridge, self.home):
            found.append(str(self.host.instance.directory))
        if any(str(self.home) in line or "/run/davit/" in line for line in Path("/proc/1/mountinfo").read_text().splitlines()):
            found.append("mounts that the host sees")
        shutil.rmtree(self.home, ignore_errors=True)
        return found


def _name(pid: int) -> str:
    """What a process is called; nft is not counted: the host's networks, and with them the firewall, change with what else
    runs on the machine."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
    return "" if name == "nft" else f"{name} {pid}"


def descriptors() -> int:
    """How many are open; pipes are left out: the host's maintenance runs `nft` whenever another Davit's bridge comes or goes."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += not str(link.readlink()).startswith("pipe:")
    return count


def _loops(home: Path) -> int:
    """Loop devices whose nameless backing file is on the home's disk."""
    listing = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True
    ).stdout
    return sum(f"{home}/" in line for line in listing.splitlines())


def python() -> str:
    """The interpreter, for processes that tests start."""
    return sys.executable
