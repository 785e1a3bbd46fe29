"""Signals for a unikernel: a small program of ours in it, built once per host with the build stack's own compiler.

Without it (no build stack, a compiler that fails) a unikernel is told to end by its power button only, which no app hears of.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from foundation import disk
from foundation.errors import DavitError
from runtime.apart import apart
from slugs import mounted

log = logging.getLogger("runtime")

PORT = 65077
"""Where it listens in the guest; only this host's root reaches it (:data:`runtime.firewall.OF_ROOT`)."""
BEGINS = 65078
"""Where it listens within the guest until a program is to begin that runs beside the app."""
NAME = "agent.so"
_SOURCE = Path(__file__).with_name("agent.c")
_SECONDS = 60
AGAIN_SECONDS = 300.0
"""After which it is tried again to build it, when that failed."""


class Agents:
    """The programs for guests, one for each build stack, built when they are first needed.

    Args:
        directory: where they are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: dict[Path, Path] = {}
        self._again: dict[Path, float] = {}
        self._building: dict[Path, asyncio.Future[Path | None]] = {}

    async def program(self, stack: Path) -> Path | None:
        """See :func:`build`. It takes up to a minute: in a thread of its own, for which all wait who need the same meanwhile."""
        if stack in self._built or time.monotonic() < self._again.get(stack, 0.0):
            return self._built.get(stack)
        if stack not in self._building:
            self._building[stack] = apart(build, stack, self._directory)
            self._building[stack].add_done_callback(lambda done: self._keep(stack, done))
        return await asyncio.shield(self._building[stack])  # who gives up ends it for nobody else

    def _keep(self, stack: Path, done: asyncio.Future[Path | None]) -> None:
        del self._building[stack]
        program = None if done.cancelled() or done.exception() else done.result()
        if program is None:
            self._again[stack] = time.monotonic() + AGAIN_SECONDS
        else:
            self._built[stack] = program


def build(stack: Path, directory: Path) -> Path | None:
    """The program for guests, built with the gcc of the build stack ``stack`` unless it was already.

    Args:
        directory: where it is kept.

    Returns:
        its path; None when it cannot be built, which is logged.
    """
    key = hashlib.sha256(_SOURCE.read_bytes() + str(stack.parent.name).encode()).hexdigest()[:16]
    kept = directory / f"agent-{key}.so"
    if disk.is_written(kept):
        return kept
    try:
        program = _compile(stack, directory)
        if not program.startswith(b"\x7fELF"):
            raise DavitError("the build stack's compiler failed")
        disk.write(kept, program)
    except (OSError, subprocess.SubprocessError, DavitError) as error:
        log.warning("unikernels get no signals: %s", error)
        return None
    return kept


def _compile(stack: Path, directory: Path) -> bytes:
    """gcc in the build stack, in a mount namespace of its own that ends with it."""
    root = directory / "compiler"
    root.mkdir(exist_ok=True)
    script = (
        'mount -t tmpfs -o size=64m none "$1/tmp" && chroot "$1" /usr/bin/env -i PATH=/usr/bin:/bin TMPDIR=/tmp'
        ' gcc -O2 -shared -fPIC -Wl,-z,now -Wl,--build-id=none -x c -o /tmp/out - >&2 && cat "$1/tmp/out"'
    )
    argv = [sys.executable, "-I", "-S", mounted.__file__, str(stack), str(root), "/bin/sh", "-euc", script, "sh", str(root)]
    done = subprocess.run(argv, input=_SOURCE.read_bytes(), capture_output=True, timeout=_SECONDS, check=False)
    with suppress(OSError):
        root.rmdir()
    if done.returncode != 0:
        raise DavitError(f"the build stack's compiler failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


async def send(address: str, number: int, seconds: float = 2.0, port: int = PORT) -> bool:
    """Have signal ``number`` raised in the guest at ``address``; whether it said that it would."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), seconds)
    except (OSError, asyncio.TimeoutError):
        return False
    try:
        writer.write(f"{number}\n".encode())
        return await asyncio.wait_for(reader.read(3), seconds) == b"ok\n"
    except (OSError, asyncio.TimeoutError):
        return False
    finally:
        writer.close()


async def answers(address: str, seconds: float, port: int = PORT) -> bool:
    """Whether the guest's kernel lives: it accepts a connection or refuses it; one that hangs does neither."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), seconds)
    except ConnectionRefusedError:
        return True
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True
