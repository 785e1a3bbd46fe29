"""Whether a guest of Davit's boots with KVM (see :mod:`runtime.acceleration`): its agent's answer shows it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from foundation.errors import DavitError
from runtime import acceleration, children, confine, qmp
from runtime.acceleration import Acceleration
from runtime.children import Process
from runtime.microvm import machine
from runtime.microvm.agent import Agent
from runtime.microvm.kernel import Kernel
from runtime.qmp import Monitor

SECONDS = 8.0
"""An accelerated guest answers within two seconds on a busy host."""
REMEMBERED = Path("/run/davit/acceleration.json")
_NOBODY = 0x6FFF_FFFE


async def find_out(
    qemu: str, version: str, kernel: Kernel, remembered: Path = REMEMBERED, device: Path = acceleration.DEVICE
) -> Acceleration:
    """Whether a guest boots with KVM.

    Args:
        version: QEMU's.
        remembered: where the answer is kept.
    """
    key = {"qemu": version, "kernel": kernel.version}
    return await acceleration.find_out("microVMs", remembered, key, lambda place: _try(qemu, kernel, place), device)


async def _try(qemu: str, kernel: Kernel, place: Path) -> str | None:
    """Boot once; None when it worked, else why not."""
    root = place / "root"
    root.mkdir()
    sockets = [qmp.listen(place / "agent"), qmp.listen(place / "monitor")]
    command = acceleration.ending_with_us(machine.probe(qemu), int(SECONDS * 3))
    argv = confine.argv(command, root=root, uid=_NOBODY, cgroups=[], shown=kernel.directory, kvm=True)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    process = Process(children.spawn(argv, [null, null, null, *(one.fileno() for one in sockets)], confine.ENVIRONMENT))
    os.close(null)
    for one in sockets:
        one.close()
    try:
        return await _boots(place)
    finally:
        process.send(signal.SIGTERM)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
        process.send(signal.SIGKILL)
        await process.wait()


async def _boots(directory: Path) -> str | None:
    monitor: Monitor | None = None
    booting: asyncio.Future[Agent] | None = None
    end = time.monotonic() + SECONDS
    try:
        monitor = await Monitor.connect(directory / "monitor", SECONDS)
        booting = asyncio.ensure_future(Agent.connect(directory / "agent", SECONDS))
        while time.monotonic() < end and not booting.done():
            await asyncio.wait({booting}, timeout=0.3)
            if await monitor.status() in ("internal-error", "shutdown"):
                return "a guest stops with an internal error, or gives up, under this host's KVM"
        if not booting.done():
            return f"a guest does not boot within {SECONDS:g} seconds under this host's KVM"
        booting.result()
        return None
    except DavitError as error:
        return f"a guest does not boot under this host's KVM ({error.message})"
    finally:
        if booting is not None:
            booting.cancel()
            for agent in await asyncio.gather(booting, return_exceptions=True):
                if isinstance(agent, Agent):
                    agent.close()
        if monitor is not None:
            with suppress(DavitError):
                await monitor.execute("quit", timeout=2)
            monitor.close()
