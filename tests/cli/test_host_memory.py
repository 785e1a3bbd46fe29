"""What the supervisor's processes share stays shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_COPIED = """
import ctypes, gc, os, sys
from cli.host import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(3000) for _ in range(4000)]
for block in blocks[::2]:
    libc.free(block)                       # two thousand gaps, each on a page of its own
if sys.argv[1] == "settled":
    memory.settle()
def copied():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:"))
if os.fork() == 0:
    before = copied()
    taken = [libc.malloc(2900) for _ in range(300)]
    gc.collect()
    print(copied() - before)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


def _copied(how: str) -> int:
    """KiB that a forked process copies when it allocates and collects."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _COPIED, how], cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_forked_process_writes_to_fewer_of_the_shared_pages() -> None:
    assert _copied("settled") + 300 < _copied("as it is")
