"""The isolations side by side: ``python -m bench.vms [--runs 3] [--seconds 5] [--most 1000] [--minutes 20]``.

The same server from the same stack image as a container, as a microVM and, where there is a kernel of it, as an OSv unikernel.
Of the drivers alone: from the request to start it to the first 200, its end, the memory that it has for itself beyond a
container's, new limits while it runs, how long a unikernel's images take for each MB of slug; of microVMs also the pause of a
move, and a new beginning from a file. Behind a whole Davit (:mod:`bench.vm_apps`): requests a second through its router, the
request that wakes an app, what visitors wait while a microVM moves, and how many dynos this host takes: until less than 1 GiB of
its memory is left, or one of the bounds (--most, --minutes) is met, which is said then, with how many there would be room for.
Which acceleration was in use stands on top: without KVM a processor is emulated, and figures of virtual machines are several
times worse.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import tempfile
import time
import uuid
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.tables import Figure, ms, report
from bench.vm_apps import Served
from bench.vm_apps import measure as serve
from foundation.errors import DavitError
from foundation.settings import from_environment, settings
from runtime import mounts, stacks
from runtime.driver import Driver, DynoSpec, Limits, RunningDyno
from runtime.drivers import Drivers
from runtime.host import Host
from runtime.instance import Instance

PORT = 8080
"""Not 8000, where OSv's REST server listens."""
MIB = 1 << 20
LIMITS = Limits(memory=256 * MIB, memory_max=512 * MIB, cpu_shares=1024, cpu_quota=2.0)
GROWN = replace(LIMITS, memory=512 * MIB, memory_max=1024 * MIB, cpu_shares=2048)
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/app", "PYTHONDONTWRITEBYTECODE": "1", "PORT": str(PORT)}
COMMAND = ("/usr/bin/python3", "-m", "http.server", str(PORT))
BOOT_SECONDS = 300.0
SLUG_MIB = 48
"""Of the slug whose image is timed: what a middling app with its packages has."""


@dataclass
class Measured:
    """Of one isolation: seconds, bytes, requests a second; lists have a value for each run."""

    starts: list[float] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    memory: int = 0
    pause: float | None = None
    grow: float | None = None
    shrink: float | None = None
    aside: float | None = None
    resumed: float | None = None
    root: float | None = None
    slug: float | None = None


def spec(isolation: str, stack: Path) -> DynoSpec:
    """The server as a dyno."""
    return DynoSpec(
        str(uuid.uuid4()), "web.1", "bench", "bench", stack, None, COMMAND, ENV, LIMITS, port=PORT, isolation=isolation,
        line=" ".join(COMMAND),
    )  # fmt: skip


async def until_up(dyno: RunningDyno) -> None:
    """Wait for the first 200.

    Raises:
        RuntimeError: it ended before.
        TimeoutError: there was none within :data:`BOOT_SECONDS`.
    """
    assert dyno.address is not None
    ending = asyncio.ensure_future(dyno.wait())
    end = time.monotonic() + BOOT_SECONDS
    while not await asyncio.to_thread(answers, dyno.address):
        if ending.done():
            raise RuntimeError(f"the server ended: {ending.result()}")
        if time.monotonic() > end:
            raise TimeoutError(f"no answer within {BOOT_SECONDS:g} seconds")
        await asyncio.sleep(0.001)
    ending.cancel()


def answers(address: str) -> bool:
    """Whether the server says 200 now; each question is given a second."""
    try:
        with socket.create_connection((address, PORT), 1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(64).split()[1:2] == [b"200"]
    except OSError:
        return False


async def start(driver: Driver, isolation: str, stack: Path) -> RunningDyno:
    """Start one; a virtual machine that does not come up is said and started again, as the formation manager does it."""
    for left in (2, 1, 0):
        try:
            return await driver.start(spec(isolation, stack))
        except DavitError as error:
            print(f"{isolation}: {error.message}", flush=True)
            if not left:
                raise
    raise AssertionError


async def start_and_stop(driver: Driver, isolation: str, stack: Path, into: Measured) -> None:
    """One run: from nothing to the first 200, and from SIGTERM to nothing."""
    began = time.perf_counter()
    dyno = await start(driver, isolation, stack)
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


def images(driver: Any, stack: Path, home: Path, into: Measured) -> None:
    """What a unikernel's images take: the root of Python once per stack, and the slug's for each MB."""
    app = home / "tree" / "app"
    for number in range(SLUG_MIB * 4):
        path = app / f"package{number % 16}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(MIB // 4))
    began = time.perf_counter()
    driver.images._slug(app.parent, app, 2 * SLUG_MIB * MIB)
    into.slug = (time.perf_counter() - began) / SLUG_MIB
    shutil.rmtree(driver.images.directory / "base")
    driver.images.prepare()
    mounted = driver.host.images.use(stack)
    try:
        began = time.perf_counter()
        driver.images._root(stack, mounted, "python")
        into.root = time.perf_counter() - began
    finally:
        driver.host.images.done(mounted)


async def measure(driver: Driver, isolation: str, stack: Path, runs: int, home: Path) -> Measured:
    """All that one isolation's driver shows by itself."""
    into = Measured()
    if isolation == "osv":
        await asyncio.to_thread(images, driver, stack, home, into)
    for _ in range(runs):
        await start_and_stop(driver, isolation, stack, into)
    dyno = await start(driver, isolation, stack)
    try:
        await until_up(dyno)
        into.memory = taken(dyno)
        # a unikernel's memory is what it was started with; its share of the processors changes
        grown = GROWN if isolation != "osv" else replace(LIMITS, cpu_shares=GROWN.cpu_shares)
        into.grow = await timed(dyno.update(grown))
        into.shrink = await timed(dyno.update(LIMITS))
        if isolation == "microvm":
            await until_up(dyno)
            into.pause = await dyno.migrate(nullcontext)
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
    into.resumed = time.perf_counter() - began
    snapshot.parent.rmdir()
    return woken


async def timed(work: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def figures(found: dict[str, Measured], served: dict[str, Served]) -> list[Figure]:
    """What is reported: a container is what virtual machines stand beside."""
    shown: list[Figure] = []
    base, base_served = found.get("container", Measured()), served.get("container", Served())

    def say(isolation: str, what: str, value: float | None, other: float | None, form: Any) -> None:
        if value is None:
            return
        compared = bool(other) and isolation != "container"
        ratio = value / other if compared and other else None
        shown.append(Figure("vms", f"{isolation}: {what}", form(value), form(other) if compared else "", ratio))

    for isolation, one in found.items():
        size = "its share of the processors, live" if isolation == "osv" else "size, live"
        say(isolation, "start to the first 200", statistics.median(one.starts), statistics.median(base.starts or [0]), ms)
        say(isolation, "SIGTERM to gone", statistics.median(one.stops), statistics.median(base.stops or [0]), ms)
        if isolation == "container":
            say(isolation, "memory of its own, the server's", float(one.memory), None, _mib)
        else:
            say(isolation, "memory beyond a container's", float(one.memory - base.memory), None, _mib)
        say(isolation, f"twice {size}", one.grow, base.grow, ms)
        say(isolation, f"half {size}", one.shrink, base.shrink, ms)
        say(isolation, "image of the slug, each MB", one.slug, None, ms)
        say(isolation, "root of Python, once for each stack", one.root, None, ms)
        say(isolation, "pause of a move to another QEMU", one.pause, None, ms)
        say(isolation, "written to a file", one.aside, None, ms)
        say(isolation, "from that file to the first 200", one.resumed, statistics.median(one.starts), ms)
        if isolation not in served:
            continue
        app = served[isolation]
        say(isolation, "requests a second through the router", app.rate, base_served.rate, lambda value: f"{value:.0f}/s")
        say(isolation, "the request that wakes it, held and answered", app.wake, base_served.wake, ms)
        say(isolation, "pause of ps:migrate", app.pause, None, ms)
        say(isolation, "requests held by the router meanwhile", app.held, None, ms)
        say(isolation, "longest that a visitor waited meanwhile", app.longest, None, ms)
        say(isolation, f"dynos that run at once ({app.why})", app.dynos, None, lambda value: f"{value:.0f}")
        say(isolation, "for how many there is room, by what each takes", app.room, None, lambda value: f"{value:.0f}")
        each = app.each if app.each > 0 else None  # what else runs on the host gave back more than they took
        say(isolation, "of the host's memory, each of them", each, max(0.0, base_served.each), _mib)
    return shown


def _mib(value: float) -> str:
    return f"{value / MIB:.1f} MiB"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of load")
    parser.add_argument("--only", choices=("container", "microvm", "osv"), action="append", help="isolations; all by default")
    parser.add_argument("--most", type=int, default=1000, help="dynos that fill the host; 0: no Davit at all")
    parser.add_argument("--minutes", type=int, default=20, help="that filling the host may take for each isolation")
    options = parser.parse_args()
    stack = stacks.current(settings().stacks).run
    mounts.isolate()
    with tempfile.TemporaryDirectory(prefix="dvb") as home:
        own = from_environment({**os.environ, "DAVIT_HOME": home, "DAVIT_STACKS": str(settings().stacks)})
        host = Host(own, Instance.claim(own), environ={})
        drivers = Drivers(host)
        await drivers.open()
        found: dict[str, Measured] = {}
        drivers_here: dict[str, Driver] = {}
        try:
            for isolation in options.only or ("container", "microvm", "osv"):
                try:
                    driver = await drivers.of(isolation)
                except DavitError as error:
                    print(f"{isolation}: not measured: {error.message}", flush=True)
                    continue
                if hasattr(driver, "kvm"):
                    print(f"{isolation}: {'KVM' if driver.kvm else 'emulated processor (TCG)'}", flush=True)
                drivers_here[isolation] = driver
            for isolation, driver in drivers_here.items():
                try:
                    found[isolation] = await measure(driver, isolation, stack, options.runs, Path(home))
                except (DavitError, RuntimeError, TimeoutError, asyncio.TimeoutError) as error:
                    print(f"{isolation}: not measured: {error}", flush=True)
        finally:
            await drivers.close(stop_dynos=True)
    served = (
        await asyncio.to_thread(serve, list(found), options.seconds, options.most, options.minutes * 60) if options.most else {}
    )
    report(figures(found, served))


if __name__ == "__main__":
    asyncio.run(main())
