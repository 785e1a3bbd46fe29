"""Other limits for a running microVM: memory is plugged in and pulled out, processors are woken and put to rest.

A processor at rest costs nothing, and nobody in the guest but the agent can wake it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from foundation.errors import DavitError
from runtime import qemu
from runtime.driver import Limits, Unsupported
from runtime.dynodir import DynoDirectory
from runtime.microvm import machine, protocol
from runtime.microvm.dyno import ANSWER_SECONDS, MicroVm
from runtime.microvm.machine import MIB
from runtime.qmp import MonitorFailed, figure

if TYPE_CHECKING:
    from runtime.microvm.driver import MicroVmDriver

SECONDS = 60.0
"""For the guest to take memory."""
PULL_SECONDS = 10.0
"""For the guest to give memory up; what it keeps, its dyno may not use."""


async def resize(driver: MicroVmDriver, dyno: MicroVm, limits: Limits) -> None:
    """Put ``limits`` in force in ``dyno``.

    What grows is there before the dyno may use it; what shrinks is out of use before it goes.

    Raises:
        Unsupported: it cannot be done without a restart; nothing has changed.
        MonitorFailed, GuestFailed: it was begun and could not be done; all is as it was before, but for what the guest does not
            give back.
    """
    facts = dyno.record.facts
    if dyno.ended or dyno.monitor is None or dyno.agent is None:
        raise Unsupported(f"The dyno {dyno.record.name} has ended.")
    wanted = machine.rounded(limits.memory) + machine.RESERVE
    more = _beside(facts, limits)
    processors = qemu.processors(limits, facts["most_processors"])
    if more > facts["pluggable"]:
        raise Unsupported(f"The dyno {dyno.record.name} cannot get that much memory while it runs; restart it with the new size.")
    await dyno.look()
    used = dyno.stats().memory
    if used > limits.memory:
        raise Unsupported(
            f"The dyno {dyno.record.name} uses {used // MIB} MB, more than the {limits.memory // MIB} MB of the new size."
        )
    held = Limits(**facts["limits"])
    facts["plugged_memory"] = await _plugged(dyno, facts["plugged_memory"])  # a guest may have been giving it away until now
    before = facts["memory"] + facts["plugged_memory"]
    try:
        await driver.limit_running(dyno, limits, max(before, wanted))
        if limits.memory > held.memory:
            await _memory(dyno, more)  # also when it has as much: it may still be told to give it away
            await _balloon(dyno, min(facts["memory"], wanted), grows=True)
            await _tell(dyno, limits, processors)
        else:
            await _tell(dyno, limits, processors)
            if wanted < before:
                await _memory(dyno, more)
            await _balloon(dyno, min(facts["memory"], wanted))
        if wanted < before:
            await driver.limit_running(dyno, limits, facts["memory"] + facts["plugged_memory"])
        facts["limits"] = dict(vars(limits))
        await driver.host.in_thread(_write, driver, dyno)
    except (DavitError, OSError):
        facts["limits"] = dict(vars(held))
        await _as_before(driver, dyno, held, back=limits.memory < held.memory)
        raise


def _write(driver: MicroVmDriver, dyno: MicroVm) -> None:
    """Blocking.

    Raises:
        Unsupported: the disk is full: a next runtime process would not know what is in force.
    """
    try:
        DynoDirectory(driver.host.dynos / dyno.spec_id).write(dyno.record)
    except OSError as error:
        raise Unsupported(
            f"The new limits of {dyno.record.name} could not be written down, and it has those that it had: {error.strerror}."
        ) from None


async def _as_before(driver: MicroVmDriver, dyno: MicroVm, held: Limits, *, back: bool) -> None:
    """What was begun is undone, each step whether or not another can be.

    Args:
        back: it was shrinking, so that it grows now.
    """
    facts = dyno.record.facts
    booted = min(facts["memory"], machine.rounded(held.memory) + machine.RESERVE)
    steps: list[Callable[[], Awaitable[None]]] = [
        lambda: _tell(dyno, held, qemu.processors(held, facts["most_processors"])),
        lambda: _balloon(dyno, booted, grows=back),
        lambda: _memory(dyno, _beside(facts, held)),
    ]
    for step in reversed(steps) if back else steps:
        with suppress(DavitError):
            await step()
    with suppress(OSError):
        await driver.limit_running(dyno, held, facts["memory"] + facts["plugged_memory"])


def _beside(facts: dict[str, Any], limits: Limits) -> int:
    """Bytes that a machine needs for ``limits`` beside those that it booted with."""
    return max(0, machine.rounded(limits.memory) + machine.RESERVE - int(facts["memory"]))


async def _plugged(dyno: MicroVm, most: int) -> int:
    """Bytes that are plugged in now. Whatever QEMU says, not more than ``most``: the control group's limit goes by it."""
    assert dyno.monitor is not None
    if not dyno.record.facts["pluggable"]:
        return 0
    told = int(figure(await dyno.monitor.execute("qom-get", {"path": "plugged", "property": "size"})))
    return min(max(0, told), most)


async def _tell(dyno: MicroVm, limits: Limits, processors: int) -> None:
    assert dyno.agent is not None
    await dyno.agent.ask(lambda number: protocol.limits(number, limits.memory, limits.pids, processors), ANSWER_SECONDS)


async def _memory(dyno: MicroVm, size: int) -> None:
    """Have ``size`` bytes plugged in beside those that it booted with. A guest gives memory back as far as it can; what it
    cannot move stays, and its control group keeps the dyno from using it."""
    assert dyno.monitor is not None
    if not dyno.record.facts["pluggable"]:
        return
    before = dyno.record.facts["plugged_memory"]
    await dyno.monitor.execute("qom-set", {"path": "plugged", "property": "requested-size", "value": size})
    end = time.monotonic() + SECONDS
    plugged = before
    while time.monotonic() < end:
        plugged = await _plugged(dyno, max(before, size))
        if plugged == size or (size < before and time.monotonic() > end - SECONDS + PULL_SECONDS):
            break
        await asyncio.sleep(0.05)
    dyno.record.facts["plugged_memory"] = plugged
    if plugged < size:
        raise MonitorFailed(f"The guest took only {plugged // MIB} of {size // MIB} MB more memory.")


async def _balloon(dyno: MicroVm, size: int, grows: bool = False) -> None:
    """Have the guest keep ``size`` bytes of what it booted with; the rest goes back to the host as far as the guest lets go.

    Args:
        grows: it gets some again, and has it when this returns.

    Raises:
        MonitorFailed: it does not take them.
    """
    assert dyno.monitor is not None
    await dyno.monitor.execute("balloon", {"value": size})
    end = time.monotonic() + SECONDS
    while grows and (actual := int(figure(await dyno.monitor.execute("query-balloon"), "actual"))) < size:
        if time.monotonic() > end:
            raise MonitorFailed(f"The guest took only {actual // MIB} of the {size // MIB} MB that it booted with.")
        await asyncio.sleep(0.05)
