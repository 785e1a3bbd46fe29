"""Whether KVM works on this host: found out by booting, not by looking for /dev/kvm, and remembered until the next boot.

There are hosts whose /dev/kvm opens and whose machines then crawl or stop ("internal-error"); only the guest agent's answer
shows that it works.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from foundation.errors import DavitError
from runtime import children, confine, qmp
from runtime.children import Process
from runtime.dynodir import boot_id
from runtime.microvm import machine
from runtime.microvm.agent import Agent
from runtime.microvm.kernel import Kernel
from runtime.qmp import Monitor

log = logging.getLogger("runtime")

SECONDS = 8.0
"""An accelerated guest answers within two seconds on a busy host."""
AGAIN_SECONDS = 3600.0
"""After which a “no” is doubted when Davit starts: the host may only have been busy."""
REMEMBERED = Path("/run/davit/acceleration.json")
_DEVICE = Path("/dev/kvm")
_NOBODY = 0x6FFF_FFFE


async def kvm_works(qemu: str, version: str, kernel: Kernel, remembered: Path = REMEMBERED, device: Path = _DEVICE) -> bool:
    """Whether a guest boots with KVM; the answer holds for this boot of the host, this QEMU and this kernel, a “no” for an hour.

    Args:
        version: QEMU's.
        remembered: where the answer is kept.
    """
    key = {"boot": boot_id(), "qemu": version, "kernel": kernel.version, "device": device.exists()}
    remembered.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with remembered.with_suffix(".lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        known = _read(remembered)
        if known is not None and known.get("key") == key and (known["kvm"] or time.time() - _told(known) < AGAIN_SECONDS):
            return bool(known["kvm"])
        reason = "there is no /dev/kvm" if not device.exists() else await _try(qemu, kernel)
        draft = remembered.with_suffix(".new")
        draft.write_text(json.dumps({"key": key, "kvm": reason is None, "reason": reason, "at": time.time()}))
        draft.replace(remembered)
        if reason is None:
            log.info("virtual machines run with KVM")
        else:
            log.warning("virtual machines run emulated and slow (TCG): %s", reason)
        return reason is None


def _told(known: Mapping[str, object]) -> float:
    at = known.get("at")
    return at if isinstance(at, float) else 0.0


def _read(path: Path) -> dict[str, object] | None:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


async def _try(qemu: str, kernel: Kernel) -> str | None:
    """Boot once; None when it worked, else why not."""
    with tempfile.TemporaryDirectory(prefix="davit-probe-") as place:
        directory = Path(place)
        root = directory / "root"
        root.mkdir()
        sockets = [qmp.listen(directory / "agent"), qmp.listen(directory / "monitor")]
        # should this process be killed meanwhile, the machine ends all the same
        command = ["/usr/bin/timeout", "--signal=KILL", str(int(SECONDS * 3)), *machine.probe(qemu)]
        argv = confine.argv(command, root=root, uid=_NOBODY, cgroups=[], shown=kernel.directory, kvm=True)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        process = Process(children.spawn(argv, [null, null, null, *(one.fileno() for one in sockets)], confine.ENVIRONMENT))
        os.close(null)
        for one in sockets:
            one.close()
        try:
            return await _boots(directory)
        finally:
            process.send(signal.SIGTERM)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), 5)
            process.send(signal.SIGKILL)
            await process.wait()


async def _boots(directory: Path) -> str | None:
    monitor: Monitor | None = None
    end = time.monotonic() + SECONDS
    try:
        monitor = await Monitor.connect(directory / "monitor", SECONDS)
        booting = asyncio.ensure_future(Agent.connect(directory / "agent", SECONDS))
        while time.monotonic() < end and not booting.done():
            await asyncio.wait({booting}, timeout=0.3)
            if (await monitor.execute("query-status"))["status"] in ("internal-error", "shutdown"):
                booting.cancel()
                return "a guest stops with an internal error, or gives up, under this host's KVM"
        if not booting.done():
            booting.cancel()
            return f"a guest does not boot within {SECONDS:g} seconds under this host's KVM"
        booting.result().close()
        return None
    except DavitError as error:
        return f"a guest does not boot under this host's KVM ({error.message})"
    finally:
        if monitor is not None:
            with suppress(DavitError):
                await monitor.execute("quit", timeout=2)
            monitor.close()
