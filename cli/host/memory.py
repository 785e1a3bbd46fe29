"""The memory that the supervisor's processes share with it: how it is left before the first of them is forked.

A page is shared until somebody writes to it. A garbage collection writes to every object; gc.freeze(3) keeps it away. And
what a process allocates comes, at first, from the gaps that were left between the supervisor's own allocations: a few
bytes in thousands of pages, each of which is copied for that. So the gaps are filled before, which costs their size once
(half a megabyte) and saves some megabytes in every process. The supervisor has loaded programs' libraries only for the others:
what it needed of them for that it gives back, some megabytes again (:mod:`foundation.mappings`).
"""

from __future__ import annotations

import ctypes
import gc

from foundation import mappings

_ARENA_MAX = -8
"""M_ARENA_MAX of mallopt(3)."""
_SIZES = (65536, 16384, 4096, 1024, 512, 256, 128, 64, 32, 16)
_LARGER = 100_000
"""Bytes that fit into no gap, and for which malloc(3) does not ask the kernel for a place apart yet."""
_MOST = 100_000
"""Allocations at the most: the gaps of the reference machine take some 3,500."""


def settle() -> None:
    """Leave the heap so that processes forked from here copy as little of it as can be."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        mappings.trim()
        libc.mallopt(_ARENA_MAX, 1)  # threads take turns in Python anyway: one arena each would be memory for nothing
        _fill_gaps(libc)
    gc.freeze()
    mappings.give_back()


def _fill_gaps(libc: ctypes.CDLL) -> None:
    """Allocate, from large to small, what fits into the gaps; a size is done when it comes from the heap's end instead."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    end: int = libc.malloc(_LARGER)
    libc.free(end)
    left = _MOST
    for size in _SIZES:
        while left > 0:
            left -= 1
            block: int = libc.malloc(size)
            if block >= end:
                libc.free(block)
                break
