"""The isolations side by side: ``python -m bench.vms [--runs 3] [--seconds 5]``.

The same server from the same stack image as a container, as a microVM and, where there is a kernel of it, as an OSv unikernel:
from the request to start it to the first 200, its end, the memory that it takes beyond the server's own, requests a second
through HAProxy, how many fit into this host's memory; of microVMs also the pause of a move, how long new limits and a new
beginning from a file take. Which acceleration was in use stands on top: without KVM a processor is emulated, and figures of
virtual machines are several times worse.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import tempfile
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.dyno_start import until_200
from bench.router import free_port, haproxy
from bench.tables import Figure, ms, report
from foundation.errors import DavitError
from foundation.settings import from_environment, settings
from runtime import mounts, stacks
from runtime.driver import Driver, DynoSpec, Limits, RunningDyno
from runtime.drivers import Drivers
from runtime.host import Host
from runtime.instance import Instance

PORT = 8000
MIB = 1 << 20
LIMITS = Limits(memory=256 * MIB, memory_max=512 * MIB, cpu_shares=1024, cpu_quota=2.0)
GROWN = replace(LIMITS, memory=512 * MIB, memory_max=1024 * MIB, cpu_shares=2048)
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/app", "PYTHONDONTWRITEBYTECODE": "1", "PORT": str(PORT)}
COMMAND = ("/usr/bin/python3", "-m", "http.server", str(PORT))
BOOT_SECONDS = 300.0
PROXY = """
global
    maxconn 2000
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend web
    bind 127.0.0.1:{port}
    default_backend app
backend app
    server one {address}:{target}
"""


@dataclass
class Measured:
    """Of one isolation: seconds, bytes, requests a second; lists have a value for each run."""

    starts: list[float] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    memory: int = 0
    own: int = 0
    rate: float = 0.0
    pause: float | None = None
    grow: float | None = None
    shrink: float | None = None
    aside: float | None = None
    wake: float | None = None


def spec(isolation: str, stack: Path) -> DynoSpec:
    """The server as a dyno."""
    return DynoSpec(
        str(uuid.uuid4()), "web.1", "bench", "bench", stack, None, COMMAND, ENV, LIMITS, port=PORT, isolation=isolation,
        line=" ".join(COMMAND),
    )  # fmt: skip


async def until_up(dyno: RunningDyno) -> None:
    """Wait for the first 200."""
    assert dyno.address is not None
    await asyncio.wait_for(asyncio.to_thread(until_200, dyno.address, PORT), BOOT_SECONDS)


async def start_and_stop(driver: Driver, isolation: str, stack: Path, into: Measured) -> None:
    """One run: from nothing to the first 200, and from SIGTERM to nothing."""
    began = time.perf_counter()
    dyno = await driver.start(spec(isolation, stack))
    await until_up(dyno)
    into.starts.append(time.perf_counter() - began)
    began = time.perf_counter()
    await dyno.signal(signal.SIGTERM)
    await asyncio.wait_for(dyno.wait(), 60)
    into.stops.append(time.perf_counter() - began)
    await dyno.remove()


def taken(dyno: Any) -> int:
    """Bytes of the host's memory that a dyno's processes have to themselves."""
    return sum(_private(pid) for pid in dyno.cgroup.pids())


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


async def requests_a_second(dyno: RunningDyno, seconds: int) -> float:
    """Through a HAProxy, with 8 connections."""
    assert dyno.address is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="dvb") as directory:
        config = PROXY.format(port=port, address=dyno.address, target=PORT)
        with haproxy(config, Path(directory), "vms", logged=False):
            words = ["wrk", "-t1", "-c8", f"-d{seconds}s", f"http://127.0.0.1:{port}/"]
            process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            told = (await process.communicate())[0].decode()
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    return float(found[1]) if found else 0.0


async def measure(driver: Driver, isolation: str, stack: Path, runs: int, seconds: int) -> Measured:
    """All of one isolation."""
    into = Measured()
    for _ in range(runs):
        await start_and_stop(driver, isolation, stack, into)
    dyno = await driver.start(spec(isolation, stack))
    try:
        await until_up(dyno)
        into.rate = await requests_a_second(dyno, seconds)
        into.memory = taken(dyno)
        if isolation != "osv":
            into.grow = await timed(dyno.update(GROWN))
            into.shrink = await timed(dyno.update(LIMITS))
        if isolation == "microvm":
            await until_up(dyno)
            into.pause = await dyno.migrate()
            await until_up(dyno)
            dyno = await sleep_and_wake(driver, dyno, stack, into)
    finally:
        await dyno.remove()
    return into


async def sleep_and_wake(driver: Driver, dyno: RunningDyno, stack: Path, into: Measured) -> RunningDyno:
    """Into a file, and from there to the first 200."""
    snapshot = Path(tempfile.mkdtemp(prefix="dvb", dir="/var/tmp")) / "snapshot"
    into.aside = await timed(dyno.suspend(snapshot))
    await dyno.remove()
    began = time.perf_counter()
    woken = await driver.resume(spec("microvm", stack), snapshot)
    await until_up(woken)
    into.wake = time.perf_counter() - began
    snapshot.parent.rmdir()
    return woken


async def timed(work: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def figures(found: dict[str, Measured]) -> list[Figure]:
    """What is reported: a container is what virtual machines stand beside."""
    beside = found.get("container")
    shown: list[Figure] = []
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def say(isolation: str, what: str, value: float | None, other: float | None, form: Any) -> None:
        if value is None:
            return
        compared = other is not None and isolation != "container"
        ratio = value / other if compared and other else None
        shown.append(Figure("vms", f"{isolation}: {what}", form(value), form(other) if compared else "", ratio))

    for isolation, one in found.items():
        base = beside or Measured()
        own = base.memory
        say(isolation, "start to the first 200", statistics.median(one.starts), statistics.median(base.starts or [0]), ms)
        say(isolation, "SIGTERM to gone", statistics.median(one.stops), statistics.median(base.stops or [0]), ms)
        say(isolation, "memory beyond a container's", float(one.memory - own), None, _mib)
        say(isolation, "requests a second through HAProxy", one.rate, base.rate or None, lambda value: f"{value:.0f}/s")
        say(isolation, "how many fill this host's memory", host / max(1, one.memory), host / max(1, own), lambda n: f"{n:.0f}")
        say(isolation, "twice the size, live", one.grow, base.grow, ms)
        say(isolation, "half the size, live", one.shrink, base.shrink, ms)
        say(isolation, "pause of a move to another QEMU", one.pause, None, ms)
        say(isolation, "written to a file", one.aside, None, ms)
        say(isolation, "woken from it, to the first 200", one.wake, statistics.median(one.starts), ms)
    return shown


def _mib(value: float) -> str:
    return f"{value / MIB:.1f} MiB"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of load")
    options = parser.parse_args()
    stack = stacks.current(settings().stacks).run
    mounts.isolate()
    with tempfile.TemporaryDirectory(prefix="dvb") as home:
        own = from_environment({**os.environ, "DAVIT_HOME": home, "DAVIT_STACKS": str(settings().stacks)})
        host = Host(own, Instance.claim(own), environ={})
        drivers = Drivers(host)
        await drivers.open()
        found: dict[str, Measured] = {}
        try:
            for isolation in ("container", "microvm", "osv"):
                try:
                    driver = await drivers.of(isolation)
                except DavitError as error:
                    print(f"{isolation}: not measured: {error.message}", flush=True)
                    continue
                if hasattr(driver, "kvm"):
                    print(f"{isolation}: {'KVM' if driver.kvm else 'emulated processor (TCG)'}", flush=True)
                found[isolation] = await measure(driver, isolation, stack, options.runs, options.seconds)
        finally:
            await drivers.close(stop_dynos=True)
        report(figures(found))


if __name__ == "__main__":
    asyncio.run(main())
