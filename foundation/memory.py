"""What the kernel says of this host's memory."""

from __future__ import annotations


def meminfo() -> dict[str, int]:
    """The figures of /proc/meminfo in bytes by their names; ``MemAvailable`` is what processes could get now (proc(5))."""
    found = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    return found
