"""What outlives a power cut: bytes that are on the disk before a name leads to them, and the name before anybody relies on it.

A kill leaves what was written, in the kernel's memory; a power cut does not. ext4 and XFS write the content of a new file up to
half a minute after the rename that gave it its name, so what is found then is a name without content (fsync(2), rename(2)).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

LEFT_OVER_SECONDS = 600
"""Age at which a draft has lost its process: writing one takes seconds on the slowest disk."""


def sync(*paths: Path) -> None:
    """Have files (their content) and directories (the names in them) on the disk when this returns.

    Some file systems (FUSE, VirtualBox's shared folders) cannot be asked for a directory's names: they write them as they like.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise
        finally:
            os.close(descriptor)


def give_name(draft: Path, path: Path) -> None:
    """Rename a finished draft: after a power cut there is what was there before, or all of it."""
    sync(draft)
    draft.rename(path)
    sync(path.parent)


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file whole or not at all, and keep its owner; its directory must be there.

    Args:
        mode: who may read it; nobody else can at any moment.
    """
    draft = _draft(path, data, mode)
    try:
        if os.geteuid() == 0 and path.exists():
            there = path.stat()
            os.chown(draft, there.st_uid, there.st_gid)
        draft.rename(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_first(path: Path, data: bytes, mode: int = 0o600) -> None:
    """As :func:`write`, but of several processes that do it at once the first decides, and what is there stays.

    An empty file is nothing that is there: an older Davit's power cut left it.
    """
    draft = _draft(path, data, mode)
    try:
        if is_empty(path):
            draft.rename(path)
        else:
            with suppress(FileExistsError):
                os.link(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sweep(*directories: Path) -> None:
    """Remove the drafts that killed processes left in these directories; no error where there is no such directory."""
    for directory in directories:
        for draft in directory.glob(".*.new"):
            with suppress(FileNotFoundError):
                if draft.lstat().st_mtime < time.time() - LEFT_OVER_SECONDS:
                    draft.unlink()


def is_written(path: Path) -> bool:
    """Whether there is a file with something in it."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def is_empty(path: Path) -> bool:
    """Whether there is a file, with nothing in it."""
    return path.exists() and not is_written(path)


def _draft(path: Path, data: bytes, mode: int) -> Path:
    """The bytes, on the disk, under a name of their own."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask of who started Davit is
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft
