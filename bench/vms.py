"""The isolations side by side: ``python -m bench.vms [--runs 3] [--seconds 5] [--most 1000] [--minutes 20]``.

The same server from the same stack image as a container, as a microVM and, where there is a kernel of it, as an OSv unikernel.
Of the drivers alone: from the request to start it to the first 200, its end, the memory that it has for itself beyond a
container's, new limits while it runs, how long its image takes for each MB of slug; of microVMs also the pause of a
move, and a new beginning from a file. Behind a whole Davit (:mod:`bench.vm_apps`): requests a second through its router, the
request that wakes an app, what visitors wait while a microVM moves, and how many dynos this host takes: until less than 1 GiB of
its memory is left, or one of the bounds (--most, --minutes) is met, which is said then, with how many there would be room for.
Which acceleration was in use stands on top, and in every figure of a virtual machine: without KVM a processor is emulated, and
figures are several times worse.

What fails is said, and takes no other figure along. An interruption (Ctrl-C, SIGTERM) ends all that was started, and what was
measured until then is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import vm_apps, vm_images
from bench.parts import Parts
from bench.tables import report
from bench.vm_figures import ISOLATIONS, Found, Measured, figures
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
    try:
        while not await asyncio.to_thread(answers, dyno.address):
            if ending.done():
                raise RuntimeError(f"the server ended: {ending.result()}")
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {BOOT_SECONDS:g} seconds")
            await asyncio.sleep(0.001)
    finally:
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
    try:
        await until_up(dyno)
        into.starts.append(time.perf_counter() - began)
        began = time.perf_counter()
        await dyno.signal(signal.SIGTERM)
        await asyncio.wait_for(dyno.wait(), 60)
        into.stops.append(time.perf_counter() - began)
    finally:
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


async def measure(driver: Driver, isolation: str, stack: Path, runs: int, into: Measured, parts: Parts) -> None:
    """All that one isolation's driver shows by itself; whatever fails, none of its dynos is there afterwards."""
    with parts.part(f"{isolation}: start and end"):
        for _ in range(runs):
            await start_and_stop(driver, isolation, stack, into)
    with parts.part(f"{isolation}: while it runs"):
        dyno = await start(driver, isolation, stack)
        try:
            await until_up(dyno)
            into.memory = taken(dyno)
            await while_it_runs(driver, dyno, isolation, stack, into, parts)
        finally:
            await dyno.remove()


async def while_it_runs(
    driver: Driver, dyno: RunningDyno, isolation: str, stack: Path, into: Measured, parts: Parts
) -> None:
    """Other limits; and of a microVM a move, and the way into a file and back."""
    with parts.part(f"{isolation}: other limits"):
        # a unikernel's memory is what it was started with; its share of the processors changes
        grown = GROWN if isolation != "osv" else replace(LIMITS, cpu_shares=GROWN.cpu_shares)
        into.grow = await timed(dyno.update(grown))
        into.shrink = await timed(dyno.update(LIMITS))
    if isolation != "microvm":
        return
    with parts.part(f"{isolation}: a move"):
        await until_up(dyno)
        pause = await dyno.migrate(nullcontext)
        await until_up(dyno)
        into.pause = pause
    with parts.part(f"{isolation}: into a file and back"):
        await sleep_and_wake(driver, dyno, stack, into)


async def sleep_and_wake(driver: Driver, dyno: RunningDyno, stack: Path, into: Measured) -> None:
    """Into a file, and from there to the first 200."""
    place = Path(tempfile.mkdtemp(prefix="dvb", dir="/var/tmp"))
    try:
        into.aside = await timed(dyno.suspend(place / "snapshot"))
        await dyno.remove()
        began = time.perf_counter()
        woken = await driver.resume(spec("microvm", stack), place / "snapshot")
        try:
            await until_up(woken)
            into.resumed = time.perf_counter() - began
        finally:
            await woken.remove()
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def timed(work: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def alone(wanted: list[str], runs: int, found: Found, parts: Parts) -> None:
    """The drivers by themselves, on a host of the bench's own."""
    mounts.isolate()
    stack = stacks.current(settings().stacks)
    with tempfile.TemporaryDirectory(prefix="dvb") as home:
        own = from_environment({**os.environ, "DAVIT_HOME": home, "DAVIT_STACKS": str(settings().stacks)})
        drivers = Drivers(Host(own, Instance.claim(own), environ={}))
        await drivers.open()
        try:
            here = await _those_here(drivers, wanted, found)
            with parts.part("the images of a slug"):
                slug = await asyncio.to_thread(vm_images.seal, drivers.host, stack, Path(home), found)
                if "osv" in here:
                    await asyncio.to_thread(vm_images.unikernels, here["osv"], stack.run, slug, " ".join(COMMAND), ENV, found)
            for isolation, driver in here.items():
                await measure(driver, isolation, stack.run, runs, found.alone[isolation], parts)
        finally:
            await drivers.close(stop_dynos=True)


async def _those_here(drivers: Drivers, wanted: list[str], found: Found) -> dict[str, Driver]:
    """The drivers of those that this host can have; the acceleration is said first of all."""
    here: dict[str, Driver] = {}
    for isolation in wanted:
        try:
            here[isolation] = driver = await drivers.of(isolation)
        except DavitError as error:
            print(f"{isolation}: not measured: {error.message}", flush=True)
            continue
        found.alone[isolation] = Measured()
        if hasattr(driver, "kvm"):
            found.acceleration[isolation] = "KVM" if driver.kvm else "TCG"
            print(f"{isolation}: {'KVM' if driver.kvm else 'emulated processor (TCG)'}", flush=True)
    return here


def main() -> int:
    """Measure and print; the exit status is 1 when a part failed, or it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of load")
    parser.add_argument("--only", choices=ISOLATIONS, action="append", help="isolations; all by default")
    parser.add_argument("--most", type=int, default=1000, help="dynos that fill the host; 0: no Davit at all")
    parser.add_argument("--minutes", type=float, default=20, help="that filling the host may take for each isolation")
    options = parser.parse_args()
    found, parts = Found(), Parts()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(alone(options.only or list(ISOLATIONS), options.runs, found, parts))
        if options.most:  # in this thread, which an interruption reaches
            vm_apps.measure(list(found.alone), options.seconds, options.most, options.minutes * 60, found.served, parts)
    except KeyboardInterrupt:
        parts.fail("interrupted: what was measured until then")
    finally:
        report(figures(found))
    return 1 if parts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
