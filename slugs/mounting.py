"""Mounting a sealed image in the current mount namespace, and telling its format. Standard library only (see probe.py)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from slugs import kernel

FLAGS = kernel.MS_RDONLY | kernel.MS_NODEV | kernel.MS_NOSUID
_NO_FILE_MOUNT = {errno.ENOTBLK, errno.EINVAL, errno.ENODEV}
_only_by_loop: set[int] = set()
"""Devices whose files the kernel has refused to mount as they are: it tells its log every time that it is asked."""


def format_of(image: Path) -> str | None:
    """The image's format by its magic number ("erofs", "squashfs"), None for anything else."""
    with image.open("rb") as file:
        if file.read(4) == b"hsqs":
            return "squashfs"
        file.seek(1024)
        return "erofs" if file.read(4) == b"\xe2\xe1\xf5\xe0" else None


def mount(image: Path, target: Path) -> None:
    """Mount ``image`` read-only, without devices and set-uid programs, at the directory ``target``.

    erofs comes straight from the file where the kernel can (6.12), else through a loop device that goes away with the
    mount. Every call makes a file system, and a page cache, of its own: mount an image once, and show that mount to many
    dynos by bind or idmapped clones.

    Raises:
        OSError: the kernel refused.
    """
    kind = format_of(image)
    if kind is None:
        raise OSError(errno.EINVAL, "neither an erofs nor a squashfs image", str(image))
    if kind == "erofs" and (device := image.stat().st_dev) not in _only_by_loop:
        try:
            return kernel.mount(str(image), target, kind, FLAGS)
        except OSError as refused:
            if refused.errno not in _NO_FILE_MOUNT:
                raise
            if refused.errno == errno.ENOTBLK:
                _only_by_loop.add(device)
    _mount_by_loop(image, target, kind)


def _mount_by_loop(image: Path, target: Path, kind: str) -> None:
    file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, path = kernel.attach_loop(file)
        try:
            kernel.mount(path, target, kind, FLAGS)
        finally:
            os.close(device)  # the mount keeps it from here on; without one, it frees itself
    finally:
        os.close(file)
