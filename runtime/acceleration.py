"""Whether virtual machines run with KVM on this host: found out by booting one, not by looking for /dev/kvm, and remembered.

There are hosts whose /dev/kvm opens and whose machines then crawl or stop ("internal-error"); only a guest that boots shows that
it works. What boots is the driver's own guest, for one kernel may work where another does not.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.dynodir import boot_id

log = logging.getLogger("runtime")

AGAIN_SECONDS = 3600.0
"""After which a “no” is doubted when Davit starts: the host may only have been busy."""
DEVICE = Path("/dev/kvm")


@dataclass(frozen=True)
class Acceleration:
    """What was found out: ``reason`` says why there is none."""

    kvm: bool
    reason: str = ""

    def __str__(self) -> str:
        return "with KVM" if self.kvm else f"emulated and slow (TCG): {self.reason}"


async def find_out(
    what: str, remembered: Path, key: Mapping[str, str], attempt: Callable[[Path], Awaitable[str | None]], device: Path = DEVICE
) -> Acceleration:
    """Whether KVM works; the answer holds for this boot of the host and this ``key``, a “no” for an hour.

    Args:
        what: the machines, for the log.
        remembered: where the answer is kept.
        key: what it depends on: QEMU's version, the guest's kernel.
        attempt: boots a guest with KVM, in an empty directory that goes afterwards; None when it worked, else why not.
    """
    whole = {"boot": boot_id(), **key, "device": device.exists()}
    remembered.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with remembered.with_suffix(".lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        found = _read(remembered, whole)
        if found is None:
            reason = await _tried(attempt, remembered.with_suffix(".trial")) if device.exists() else f"there is no {DEVICE}"
            found = Acceleration(reason is None, reason or "")
            draft = remembered.with_suffix(".new")
            draft.write_text(json.dumps({"key": whole, "kvm": found.kvm, "reason": found.reason, "at": time.time()}))
            draft.replace(remembered)
    log.log(logging.INFO if found.kvm else logging.WARNING, "%s run %s", what, found)
    return found


async def _tried(attempt: Callable[[Path], Awaitable[str | None]], place: Path) -> str | None:
    """Whoever has the lock is alone there; what is there already, one has left that was killed."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    try:
        return await attempt(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def ending_with_us(command: Sequence[str], seconds: int) -> list[str]:
    """The command line that runs ``command``, for so long at the most, and ends it at once when this process is killed.

    Its parent is the thread that starts it, which must not end before.
    """
    mortal = ["/usr/bin/setpriv", "--pdeathsig", "KILL"]
    return [*mortal, "/usr/bin/timeout", "--signal=KILL", str(seconds), *mortal, *command]


def _read(path: Path, key: Mapping[str, object]) -> Acceleration | None:
    """What is remembered for ``key``, unless it is to be doubted."""
    try:
        known = json.loads(path.read_text())
        if known["key"] != key or not (known["kvm"] or time.time() - known["at"] < AGAIN_SECONDS):
            return None
        return Acceleration(bool(known["kvm"]), str(known["reason"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
