"""FIFOs that hold what is written while nobody reads."""

from __future__ import annotations

import fcntl

CAPACITIES = (1 << 20, 1 << 18)
"""Bytes; the kernel makes one of 64 KiB, and may refuse the larger without privilege."""


def enlarge(fd: int) -> None:
    """Let the FIFO of ``fd`` hold as much of :data:`CAPACITIES` as the kernel grants."""
    for capacity in CAPACITIES:
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, capacity)
            return
        except OSError:
            continue
