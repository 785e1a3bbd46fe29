"""How much of its memory a unikernel has touched, as the host's kernel counts: what is known of a guest that tells nothing.

OSv gives no page back, so it is the most that it has used so far, its kernel and what it keeps of its disks included. QEMU's
own memory is no part of it: of QEMU's mappings only the guest's is counted, which is told by its size (proc(5), smaps).
"""

from __future__ import annotations

import re
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ \S+ (\d+)")


def touched(pid: int, size: int, proc: Path = Path("/proc")) -> int | None:
    """Bytes of the guest's memory that are there; None when that cannot be told (QEMU has ended).

    Args:
        pid: QEMU's.
        size: the guest's memory in bytes.
    """
    try:
        with (proc / str(pid) / "smaps").open() as lines:
            guests = False
            for line in lines:
                if found := _MAPPING.match(line):
                    start, end, rights, inode = found.groups()
                    guests = int(end, 16) - int(start, 16) == size and rights == "rw-p" and inode == "0"
                elif guests and line.startswith("Rss:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return None
