"""Memory that a process has and does not need: parts of programs and libraries (given back, they come again from the page cache
when they are needed), and what it has freed.
"""

from __future__ import annotations

import ctypes
import re

_DONTNEED = 4
"""MADV_DONTNEED of madvise(2)."""


def give_back() -> None:
    """Unmap what this process has of files: for one that has loaded much and from now on only looks after others."""
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, size in clean():
        libc.madvise(start, size, _DONTNEED)


def trim() -> None:
    """Give the kernel what was freed: for one that has just done much, and waits now (malloc_trim(3))."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def clean() -> list[tuple[int, int]]:
    """Where parts of files are that nobody can have written to, and how long they are in bytes (proc_pid_smaps(5))."""
    found = []
    with open("/proc/self/smaps", "rb") as file:
        for mapping in re.split(rb"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read())[1:]:
            head, _, figures = mapping.partition(b"\n")
            addresses, powers, _, _, inode, *_ = head.split()
            dirty = [int(size) for size in re.findall(rb"(?m)^(?:Private|Shared)_Dirty: *(\d+) kB", figures)]
            if inode != b"0" and b"w" not in powers and len(dirty) == 2 and not any(dirty):
                start, end = (int(address, 16) for address in addresses.split(b"-"))
                found.append((start, end - start))
    return found
