"""A build's slot: how many builds may work at the same time is for the sandbox, not for the release that follows.

The worker gives each build's process a descriptor and counts it until something comes through or the process ends.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

_held: int | None = None


def hold(descriptor: int) -> None:
    """In a build's process: it has a slot, and this is how it tells its parent that it needs it no more."""
    global _held
    _held = descriptor


def free() -> None:
    """Another build may begin; idempotent, and nothing in a process that was given no slot."""
    global _held
    if _held is None:
        return
    with suppress(OSError):
        os.write(_held, b".")
    os.close(_held)
    _held = None
    os.kill(os.getppid(), signal.SIGCHLD)  # it sleeps until this signal when no slot is free


def is_free(descriptor: int) -> bool:
    """In the worker: whether the build at the other end (non-blocking) has freed its slot; one that has ended is reaped."""
    try:
        return os.read(descriptor, 1) == b"."
    except BlockingIOError:
        return False
