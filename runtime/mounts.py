"""Mounts by the kernel's own calls: no `mount` program on the start path, every mount in a private namespace.

The runtime process calls :func:`isolate` before it starts any thread. From then on nothing that it mounts can be seen by
the rest of the host, and when the process ends, however it ends, the kernel takes the mounts down with it.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from foundation.errors import DavitError

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 1, 2, 4, 8, 1024
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x20000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture since Linux 5.x
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_IDMAP = 0x1, 0x2, 0x4, 0x100000
_UNIFIED = Path("/sys/fs/cgroup/unified")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

_isolated = False


class MountFailed(DavitError):
    """The kernel refused a mount."""

    id, status = "mount_failed", 500


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: Path | str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """mount(2).

    Raises:
        MountFailed: with the kernel's reason.
    """
    data = options.encode() or None
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode() if kind else None, flags, data) < 0:
        reason = os.strerror(ctypes.get_errno())
        raise MountFailed(f"The kernel refused to mount {kind or 'a directory'} at {target}: {reason}.")


def unmount(target: Path | str, flags: int = MNT_DETACH) -> None:
    """umount2(2); by default the mount leaves the tree at once and ends when its last user does. No error when absent."""
    _libc.umount2(os.fsencode(target), flags)


def isolate() -> None:
    """Put this process into a mount namespace of its own; idempotent.

    In a hybrid cgroup layout the v2 mount is taken out of that namespace: crun refuses to work while it sees one that
    carries controllers, and the v1 controllers are the ones in force there.

    Raises:
        MountFailed: threads already run (they would stay in the host's namespace), or the kernel refuses.
    """
    global _isolated
    if _isolated:
        return
    if threading.active_count() > 1 and threading.current_thread() is not threading.main_thread():
        raise MountFailed("The runtime has to enter its mount namespace in its main thread.")
    if _libc.unshare(CLONE_NEWNS) < 0:
        reason = os.strerror(ctypes.get_errno())
        raise MountFailed(f"The runtime could not enter a mount namespace: {reason}. It has to run as root.")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    if _UNIFIED.is_mount():
        unmount(_UNIFIED)
    _isolated = True


def tmpfs(target: Path, options: str = "mode=0700") -> None:
    """A file system in memory at ``target``; without set-uid programs and device nodes."""
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, options)


_NULL = os.makedev(1, 3)


def null_device(directory: Path) -> int:
    """A null device of one's own, open for reading and writing; ``directory`` is on a file system that allows devices."""
    path = directory / f"null-{os.urandom(8).hex()}"
    os.mknod(path, stat.S_IFCHR | 0o666, _NULL)
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    finally:
        path.unlink()


def is_null(fd: int) -> bool:
    """Whether a descriptor is the null device."""
    there = os.fstat(fd)
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == _NULL


def overlay(target: Path, lower: Sequence[Path], upper: Path, work: Path) -> None:
    """Merge ``lower`` (the first one on top) and the writable ``upper`` at ``target``.

    ``volatile``: an ephemeral file system need not survive a power cut, so syncing it would only cost time (Linux 5.10).
    """
    layers = ":".join(str(path) for path in lower)
    mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, f"lowerdir={layers},upperdir={upper},workdir={work},volatile")


def overlay_readonly(target: Path, lower: Sequence[Path]) -> None:
    """Merge ``lower`` (at least two, the first one on top) at ``target``; nobody can write there."""
    layers = ":".join(str(path) for path in lower)
    mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV | MS_RDONLY, f"lowerdir={layers}")


def idmapped(source: Path, target: Path, userns: int, *, readonly: bool = True) -> None:
    """Show ``source`` at ``target`` with its owners shifted as the user namespace ``userns`` (a descriptor) maps them.

    Raises:
        MountFailed: the kernel cannot (the file system at ``source`` needs a newer one); the sentence says which it takes.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    tree = _checked(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), ctypes.c_uint(flags)), f"open_tree {source}")
    try:
        attributes = _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if readonly else 0)
        attr = _MountAttr(attributes, 0, 0, userns)
        result = _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
        if result < 0:
            raise MountFailed(
                f"This host's kernel ({os.uname().release}) cannot map the owners of the files below {source}: "
                f"{os.strerror(ctypes.get_errno())}. Davit needs Linux 5.19 or later (6.2 when its images are squashfs)."
            )
        _checked(
            _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH),
            f"move_mount {target}",
        )
    finally:
        os.close(tree)


def detached(path: Path) -> int:
    """A descriptor of the mount at ``path`` that keeps it alive outside the mount tree; ``/proc/self/fd/N`` names it.

    A mount kept so is not copied into the namespace of every container that starts later.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _checked(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)), f"open_tree {path}")


def attach(root: Path, target: Path) -> None:
    """Hang at ``target`` what :func:`detached` keeps, named by ``root``; the descriptor stays good, also when it is unmounted.

    Before Linux 6.15 only what hangs in the caller's mount tree can be mounted a second time (fs/namespace.c, check_mnt).
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        arguments = (directory, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _checked(_libc.syscall(_SYS_MOVE_MOUNT, *arguments), f"move_mount {target}")
    finally:
        os.close(directory)
