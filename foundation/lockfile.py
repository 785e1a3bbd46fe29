"""Locks that are files which whoever is done removes."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


def take(path: Path) -> int | None:
    """A descriptor that holds flock(2) on the file at ``path``, which is made where there is none; None when somebody else does.

    The kernel lets go of the lock with the last descriptor; who removes the file does it while it holds the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        named = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                named = os.path.samestat(os.fstat(descriptor), path.stat())
        except BlockingIOError:
            return None
        finally:
            if not named:
                os.close(descriptor)
        if named:  # else whoever had it was done in between: the lock of a file without a name keeps nobody out
            return descriptor
