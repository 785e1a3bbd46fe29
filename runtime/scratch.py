"""The writable layer of a dyno: a sparse ext4 file system of a fixed size, so that disk has a limit of its own.

The backing file has no name (O_TMPFILE) and the loop device clears itself: when the last mount ends, also because the
runtime was killed and the dyno has gone, the kernel gives the space back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import tempfile
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from foundation import programs
from runtime import mounts

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_MAJOR = 7
_BLOCK = 4096
MARGIN = 1 << 20
"""Bytes that are free on the disk when a layer is made: a dyno's start writes into it, too."""
_lock = threading.Lock()
_libc = ctypes.CDLL(None, use_errno=True)


class ScratchFailed(mounts.MountFailed):
    """A writable layer could not be made."""

    id, status = "scratch_failed", 500


@lru_cache(maxsize=16)
def _template(size: int, directory: Path, folders: tuple[str, ...] = ()) -> tuple[tuple[int, bytes], ...]:
    """The non-zero parts of a fresh ext4 file system of ``size`` bytes: formatting once costs what copying never does."""
    path = directory / f".template-{size}-{os.getpid()}-{threading.get_ident()}"
    try:
        path.touch(mode=0o600)
        os.truncate(path, size)
        features = "^has_journal,^resize_inode,sparse_super2" if size >= 64 << 20 else "^has_journal,^resize_inode"
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", features, "-m", "0", "-b", str(_BLOCK)]
        with tempfile.TemporaryDirectory(prefix="davit-layer-") as tree:
            Path(tree).chmod(0o755)  # the root directory becomes as this one is
            for name in folders:
                (Path(tree) / name).mkdir(mode=0o755)
            programs.run([*argv, "-E", "lazy_itable_init=1,nodiscard", *(["-d", tree] if folders else []), path])
        return tuple(_extents(path))
    finally:
        path.unlink(missing_ok=True)


def _extents(path: Path) -> list[tuple[int, bytes]]:
    extents: list[tuple[int, bytes]] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        end, at = os.fstat(fd).st_size, 0
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            hole = os.lseek(fd, at, os.SEEK_HOLE)
            while at < hole:
                block = os.pread(fd, _BLOCK, at)
                if block.strip(b"\0"):
                    if extents and extents[-1][0] + len(extents[-1][1]) == at:
                        extents[-1] = (extents[-1][0], extents[-1][1] + block)
                    else:
                        extents.append((at, block))
                at += _BLOCK
    finally:
        os.close(fd)
    return extents


def image(size: int, directory: Path) -> int:
    """A fresh, nameless file system of ``size`` bytes as a descriptor; it goes with its last descriptor.

    Args:
        directory: on the disk that is to hold the data.

    Raises:
        ScratchFailed: the disk is full, or the file system refuses; nothing is left behind.
    """
    try:
        return _image(rounded(size), directory)
    except OSError as error:
        raise _failed(size, directory, error) from None


def rounded(size: int) -> int:
    """Bytes that a writable layer has for ``size`` wanted ones."""
    return max(size, 16 << 20) // _BLOCK * _BLOCK


def _failed(size: int, directory: Path, error: OSError) -> ScratchFailed:
    return ScratchFailed(f"A writable layer of {size >> 20} MiB could not be made below {directory}: {error.strerror}.")


def _image(size: int, directory: Path, folders: tuple[str, ...] = ()) -> int:
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        path = directory / f".scratch-{os.getpid()}-{threading.get_ident()}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        path.unlink()
    try:
        os.ftruncate(fd, size)
        for at, data in _template(size, directory, folders):
            if os.pwrite(fd, data, at) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        figures = os.fstatvfs(fd)
        if figures.f_bavail * figures.f_frsize < MARGIN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _loop_node(number: int) -> Path:
    """/dev/loopN, made when a container's /dev lacks it (the kernel makes it only in devtmpfs)."""
    node = Path(f"/dev/loop{number}")
    if not node.exists():
        try:
            os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
        except FileExistsError:
            pass
    return node


def _attach(image: int) -> int:
    """A loop device over ``image``, as a descriptor; it lasts while the descriptor or a mount does."""
    # struct loop_config: fd, block_size, struct loop_info64 (232 bytes; lo_flags at 52), 64 bytes reserved
    info = bytearray(232)
    struct.pack_into("=I", info, 52, _LO_FLAGS_AUTOCLEAR)
    config = struct.pack("=II", image, _BLOCK) + bytes(info) + bytes(64)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(256):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            try:
                device = os.open(_loop_node(number), os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.ENOENT, errno.EBUSY):
                    raise
                continue
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else on this host was quicker
                    raise
    finally:
        os.close(control)
    raise ScratchFailed("No loop device is free on this host; `losetup -a` shows who uses them.")


def create(size: int, directory: Path, target: Path, folders: Mapping[str, int]) -> None:
    """Make a fresh file system of ``size`` bytes and mount it at ``target`` (in the current mount namespace).

    Args:
        directory: on the disk that is to hold the data.
        folders: directories in it, each with the uid and gid that owns it.

    Raises:
        ScratchFailed: the disk is full, or the kernel refuses; nothing is left behind.
    """
    size = rounded(size)
    try:
        image = _image(size, directory, tuple(folders))
        try:
            with _lock:  # GET_FREE and CONFIGURE are two steps: without the lock our own threads race for one device
                device = _attach(image)
        finally:
            os.close(image)
        try:
            flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOATIME
            mounts.mount(str(Path(f"/proc/self/fd/{device}").readlink()), target, "ext4", flags, "noinit_itable,barrier=0")
        finally:
            os.close(device)
        try:
            _furnish(target, folders)
        except BaseException:
            mounts.unmount(target)
            raise
    except OSError as error:
        raise _failed(size, directory, error) from None


def _furnish(target: Path, folders: Mapping[str, int]) -> None:
    """The folders' owners, and all of it handed on to the disk: what finds no room there would come to light at a dyno's start.

    The folders are there already, so that nothing here takes a further block: a loop device that has room for a part of what it
    is to write tells nobody (Linux, drivers/block/loop.c: a short write is a success), and the layer fails when it is used.
    Nothing waits for the disk itself: without barriers all this ends in the host's page cache.
    """
    for name, owner in folders.items():
        os.chown(target / name, owner, owner)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            error = errno.ENOSPC if ctypes.get_errno() == errno.EIO else ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    finally:
        os.close(fd)
