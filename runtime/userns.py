"""User namespaces as descriptors: a dyno's own, and what an idmapped mount needs to know which uid range to show.

What the kernel counts for each user (instances of inotify, pending signals, messages in queues) it counts for those in a
namespace, and once more for the namespace's owner: were that root for all dynos, one could use up what all others and the host's
root may have. So each dyno's belongs to a user that nobody else is.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.mounts import MountFailed

RANGE = 65536
_CLONE_NEWUSER = 0x10000000
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 3, 4, 27, 28, 1 << 2
_SYS_SETRESUID = {"x86_64": 117, "aarch64": 147, "riscv64": 147}
LIFE_SECONDS = 5
"""For so long a namespace's first process lives when nobody ends it; opening the namespace takes milliseconds."""
_UNCHANGED = ctypes.c_long(-1)
_changing = threading.Lock()
"""One at a time: whether its memory may be looked at is the whole process's."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


def create(base: int, size: int = RANGE) -> int:
    """A user namespace that maps uids and gids 0..size-1 to base..base+size-1 and belongs to base; see :func:`mapped`."""
    return mapped(f"0 {base} {size}", f"0 {base} {size}", base)


def mapped(uids: str, gids: str, owner: int = 0) -> int:
    """A user namespace of the user ``owner`` with the given maps (user_namespaces(7): inside, outside, count).

    The namespace is born with a process that runs nothing but libc's ``sleep`` (forking Python, with its threads, would be
    neither safe nor quick) and that is ended as soon as the descriptor is open. When this process is killed before that, it ends
    by itself, for it holds copies of all descriptors: the lock on the instance among them.

    Returns:
        a descriptor of the namespace; the caller closes it.

    Raises:
        MountFailed: the kernel refuses user namespaces (user.max_user_namespaces).
    """
    stack = ctypes.create_string_buffer(64 * 1024)
    top = (ctypes.addressof(stack) + len(stack)) & ~0xF
    sleep = ctypes.cast(_libc.sleep, ctypes.c_void_p)
    with _as(owner):
        pid: int = _libc.clone(sleep, top, _CLONE_NEWUSER | signal.SIGCHLD, LIFE_SECONDS)
        reason = os.strerror(ctypes.get_errno())
    if pid < 0:
        raise MountFailed(f"The kernel refused a user namespace: {reason}. See the sysctl user.max_user_namespaces.")
    try:
        for kind, text in (("uid_map", uids), ("gid_map", gids)):
            with open(f"/proc/{pid}/{kind}", "wb", buffering=0) as mapping:
                mapping.write(text.encode())
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def _as(user: int) -> Iterator[None]:
    """What this thread makes is ``user``'s, and it may do what it may do as root; the other threads stay who they are, which the
    C library's own functions would not leave them (nptl(7)). Where it could not keep that (root without CAP_SETPCAP) it stays
    root: all dynos have one count then, and run."""
    number = _SYS_SETRESUID.get(platform.machine())
    if not user or number is None:
        yield
        return
    with _changing:
        yield from _changed(number, user)


def _changed(number: int, user: int) -> Iterator[None]:
    bits, dumpable = _libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0), _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    if _libc.prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP, 0, 0, 0) < 0:
        yield
        return
    root = os.geteuid()
    try:
        if _libc.syscall(number, _UNCHANGED, user, _UNCHANGED) < 0:
            raise MountFailed(f"The kernel refused to act as user {user}: {os.strerror(ctypes.get_errno())}.")
        _libc.prctl(_PR_SET_DUMPABLE, dumpable, 0, 0, 0)  # the change took it from the whole process
        yield
    finally:
        if _libc.syscall(number, _UNCHANGED, root, _UNCHANGED) < 0:
            os._exit(70)  # a thread that stays somebody else must not go on
        _libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0)
        _libc.prctl(_PR_SET_DUMPABLE, dumpable, 0, 0, 0)
