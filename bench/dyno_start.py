"""From the request to start a dyno to the first 200 of ``python3 -m http.server``, against the same process started bare.

    python -m bench.dyno_start [STACK_IMAGE] [--runs 7] [--crowd 0] [--oci crun]

Prints where the time goes, each step in ms and the whole as a ratio to the bare process (the same program from the same
image in a chroot, started by posix_spawn). ``--crowd N`` also starts N dynos at once and says what each one adds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.tables import Figure, hand_over, ms
from foundation.settings import from_environment, settings
from runtime import children, host, mounts, stacks
from runtime.container import ContainerDriver
from runtime.driver import DynoSpec, Limits
from runtime.instance import Instance
from slugs import mounting

SERVER = ["python3", "-m", "http.server", "8000"]
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/app", "PYTHONDONTWRITEBYTECODE": "1"}
STEPS = ("slot", "files and mounts", "spawn crun", "crun", "handle", "start() in all", "first 200")


def until_200(address: str, port: int = 8000) -> None:
    """Ask until the server answers; the pause between two questions is a millisecond."""
    while True:
        try:
            with socket.create_connection((address, port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(64).split()[1:2] == [b"200"]:
                    return
        except OSError:
            pass
        time.sleep(0.001)


def bare(root: Path) -> float:
    """Seconds of the bare process."""
    began = time.perf_counter()
    argv = ["/usr/sbin/chroot", "--userspec=1000:1000", str(root), *SERVER]
    null = os.open(os.devnull, os.O_RDWR)
    pid = os.posix_spawn(argv[0], argv, ENV, file_actions=[(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1, 2)])
    try:
        until_200("127.0.0.1")
        return time.perf_counter() - began
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(null)


class Clock:
    """Takes the times of a driver's steps by wrapping them."""

    def __init__(self, driver: ContainerDriver) -> None:
        self.times: dict[str, float] = {}
        driver.host.pool.take = self._timed("slot", driver.host.pool.take)  # type: ignore[method-assign]
        self._program = driver._run_program
        driver._run_program = self._timed("crun", driver._run_program)  # type: ignore[method-assign]
        prepare = driver._prepare
        driver._prepare = self._called("files and mounts", prepare)  # type: ignore[method-assign]
        driver._running = self._called("handle", driver._running)  # type: ignore[method-assign]
        children.spawn = self._called("spawn crun", children.spawn)

    def _timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return await work(*args)
            finally:
                self.times[name] = time.perf_counter() - began

        return timed

    def _called(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args)
            finally:
                self.times[name] = time.perf_counter() - began

        return timed


def spec(stack: Path) -> DynoSpec:
    limits = Limits(memory=512 << 20, memory_max=1 << 30, cpu_quota=2.0, disk=host.WARM_DISK)
    return DynoSpec(str(uuid.uuid4()), "web.1", "bench", "bench", stack, None, SERVER, ENV, limits, port=8000)


async def once(driver: ContainerDriver, clock: Clock, stack: Path) -> dict[str, float]:
    while len(driver.host.pool._ready) < driver.host.pool.warm:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    began = time.perf_counter()
    dyno = await driver.start(spec(stack))
    started = time.perf_counter() - began
    assert dyno.address
    await asyncio.to_thread(until_200, dyno.address)
    times = {**clock.times, "start() in all": started, "first 200": time.perf_counter() - began}
    await dyno.remove()
    return times


def table(rows: list[dict[str, float]], bares: list[float]) -> None:
    """The bare process, then the steps."""
    base = statistics.median(bares)
    print(f"{'':20} {'min ms':>8} {'median ms':>10} {'ratio':>7}")
    print(f"{'bare process':20} {min(bares) * 1e3:8.1f} {base * 1e3:10.1f} {1:7.2f}")
    for step in STEPS:
        values = [row[step] for row in rows]
        middle = statistics.median(values)
        print(f"{step:20} {min(values) * 1e3:8.1f} {middle * 1e3:10.1f} {middle / base:7.2f}")
    whole = statistics.median(row["first 200"] for row in rows)
    print(f"more than bare: {(min(r['first 200'] for r in rows) - min(bares)) * 1e3:.1f} ms (min), ", end="")
    print(f"{(whole - base) * 1e3:.1f} ms (median); goal 40")
    more, goal = whole - base, "≤ 40 ms more"
    what = "dyno start to its first 200"
    hand_over([Figure("dyno_start", what, ms(whole), f"bare {ms(base)}: {ms(more)} more", whole / base, goal, more <= 0.04)])


def available() -> int:
    """Bytes of memory that the host could still give, page cache and all."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(words["MemAvailable"].split()[0]) << 10


async def crowd(driver: ContainerDriver, stack: Path, number: int) -> None:
    """Start ``number`` tiny dynos at once, and say what each takes."""
    free = available()
    began = time.perf_counter()
    limits = Limits(memory=64 << 20, memory_max=64 << 20)
    wanted = [
        DynoSpec(str(uuid.uuid4()), "web.1", "b", "bench", stack, None, ["sleep", "1d"], ENV, limits) for _ in range(number)
    ]
    dynos = await asyncio.gather(*(driver.start(one) for one in wanted))
    took = time.perf_counter() - began
    await asyncio.sleep(1)
    own = statistics.median(_own(dyno.pid) for dyno in dynos)
    each = (free - available()) / number
    print(
        f"{number} dynos: {took:.2f} s, {took / number * 1e3:.0f} ms each; each takes {each / 2**20:.2f} MiB of the host, ",
        end="",
    )
    print(f"of which {own / 2**20:.2f} MiB its own process")
    began = time.perf_counter()
    await asyncio.gather(*(dyno.remove() for dyno in dynos))
    print(f"removed in {time.perf_counter() - began:.2f} s")


def _own(init: int) -> float:
    """The private memory of the command (init's only child)."""
    child = Path(f"/proc/{init}/task/{init}/children").read_text().split()[0]
    lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", type=Path, nargs="?", default=None, help="a run image; by default the built stack's")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--crowd", type=int, default=0)
    parser.add_argument("--oci")
    options = parser.parse_args()
    stack: Path = options.stack or stacks.current(settings().stacks).run
    with tempfile.TemporaryDirectory(prefix="dvb") as home:
        own = from_environment({"DAVIT_HOME": home})
        ground = host.Host(own, Instance.claim(own))
        driver = ContainerDriver(ground, oci_runtime=options.oci)
        await ground.open()
        await driver.open()
        try:
            clock = Clock(driver)
            root = Path(home) / "bare"
            root.mkdir()
            mounting.mount(stack, root)
            rows, bares = [], []
            await once(driver, clock, stack)
            bare(root)
            for _ in range(options.runs):
                bares.append(bare(root))
                rows.append(await once(driver, clock, stack))
            table(rows, bares)
            if options.crowd:
                await crowd(driver, stack, options.crowd)
            mounts.unmount(root)
        finally:
            await driver.close(stop_dynos=True)
            await ground.close(remove=True)


if __name__ == "__main__":
    asyncio.run(main())
