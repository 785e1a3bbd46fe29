"""The few system calls on mounts and loop devices that Python has no names for, by ctypes.

Sources: mount(2), umount2(2), open_tree(2), move_mount(2), mount_setattr(2), loop(4), include/uapi/linux/{mount,loop}.h.
System call numbers above 423 are the same on every architecture.

Only the standard library is imported here: :mod:`slugs.sealer` and :mod:`slugs.probe` run in a bare interpreter.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat

TYPE_CHECKING = False  # as typing.TYPE_CHECKING, without loading it: the sealing process starts anew for every build
if TYPE_CHECKING:
    from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x40000000, 0x10000000
PR_SET_NO_NEW_PRIVS = 38

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _AT_RECURSIVE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0x1000, 0x8000, 4
_MOUNT_ATTR_IDMAP = 0x00100000
_LOOP_CTL_GET_FREE, _LOOP_CTL_ADD, _LOOP_CONFIGURE = 0x4C82, 0x4C80, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str | Path, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2).

    Raises:
        OSError: as the kernel says.
    """
    arguments = (source.encode(), os.fsencode(target), kind.encode() if kind else None, ctypes.c_ulong(flags))
    _checked(_libc.mount(*arguments, data.encode() if data else None), str(target))


def umount(target: str | Path, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), flags), str(target))


def syncfs(descriptor: int) -> None:
    """syncfs(2).

    Raises:
        OSError: also when something that was written earlier could not be put on the disk.
    """
    _checked(_libc.syncfs(descriptor), "syncfs")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def setns(namespace: int, kind: int) -> None:
    """setns(2): the calling thread enters the namespace of that descriptor."""
    _checked(_libc.setns(namespace, kind), "setns")


def no_new_privileges() -> None:
    """No program that this process becomes can gain privileges (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def pivot_into(root: str) -> None:
    """Make ``root`` (a mount point) the root directory and let go of the old one (pivot_root(2), the "." trick)."""
    os.chdir(root)
    _checked(_libc.pivot_root(b".", b"."), root)
    umount(".", MNT_DETACH)
    os.chdir("/")


def clone_mount(descriptor: int) -> int:
    """A detached copy of the mount, and of those below it, under the file or directory ``descriptor``; closing it ends it."""
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | _AT_RECURSIVE | os.O_CLOEXEC
    return _checked(_libc.syscall(_OPEN_TREE, descriptor, b"", ctypes.c_uint(flags)), "open_tree")


def attach_mount(descriptor: int, target: str | Path) -> None:
    """Put a mount made by :func:`clone_mount` at ``target`` in the current mount namespace."""
    arguments = (descriptor, b"", -100, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    _checked(_libc.syscall(_MOVE_MOUNT, *arguments), str(target))


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def idmap(descriptor: int, user_namespace: int) -> None:
    """Map the owners on a detached mount by a user namespace (mount_setattr(2), MOUNT_ATTR_IDMAP)."""
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
    size = ctypes.sizeof(attributes)
    _checked(_libc.syscall(_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size), "mount_setattr")


class _LoopInfo64(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("device", "inode", "rdevice", "offset", "sizelimit")),
        *((name, ctypes.c_uint32) for name in ("number", "encrypt_type", "encrypt_key_size", "flags")),
        ("file_name", ctypes.c_uint8 * 64),
        ("crypt_name", ctypes.c_uint8 * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_uint64 * 2),
    ]


class _LoopConfig(ctypes.Structure):
    _fields_ = [
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    ]


def attach_loop(image: int) -> tuple[int, str]:
    """Bind a file to a free loop device, read-only, released by itself once nothing has it open or mounted (autoclear).

    Returns:
        An open descriptor of the device, to be kept until it is mounted, and the device's path.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(64):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = _open_loop(number)
            config = _LoopConfig(fd=image)
            config.info.flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as refused:
                os.close(device)
                if refused.errno != errno.EBUSY:  # EBUSY: another process took this one in the meantime
                    raise
            else:
                return device, f"/dev/loop{number}"
        raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")
    finally:
        os.close(control)


def _open_loop(number: int) -> int:
    path = f"/dev/loop{number}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a container's /dev holds only the nodes that were there when it was made
        os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(7, number))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
