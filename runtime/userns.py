"""User namespaces as descriptors: what an idmapped mount needs to know which uid range to show."""

from __future__ import annotations

import ctypes
import os
import signal

from runtime.mounts import MountFailed

RANGE = 65536
_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


def create(base: int, size: int = RANGE) -> int:
    """A user namespace that maps uids and gids 0..size-1 to base..base+size-1; see :func:`mapped`."""
    return mapped(f"0 {base} {size}", f"0 {base} {size}")


def mapped(uids: str, gids: str) -> int:
    """A user namespace with the given maps (user_namespaces(7): inside, outside, count).

    The namespace is born with a process that runs nothing but libc's ``pause`` (forking Python, with its threads, would be
    neither safe nor quick) and that is ended as soon as the descriptor is open.

    Returns:
        a descriptor of the namespace; the caller closes it.

    Raises:
        MountFailed: the kernel refuses user namespaces (user.max_user_namespaces).
    """
    stack = ctypes.create_string_buffer(64 * 1024)
    top = (ctypes.addressof(stack) + len(stack)) & ~0xF
    pause = ctypes.cast(_libc.pause, ctypes.c_void_p)
    pid: int = _libc.clone(pause, top, _CLONE_NEWUSER | signal.SIGCHLD, None)
    if pid < 0:
        reason = os.strerror(ctypes.get_errno())
        raise MountFailed(f"The kernel refused a user namespace: {reason}. See the sysctl user.max_user_namespaces.")
    try:
        for kind, text in (("uid_map", uids), ("gid_map", gids)):
            with open(f"/proc/{pid}/{kind}", "wb", buffering=0) as mapping:
                mapping.write(text.encode())
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
