"""A machine's memory between QEMU's socket and a file, as fast as the slower of the two.

That may be half a minute for each machine, and some fall asleep together: it is work for :func:`runtime.apart.apart`.
"""

from __future__ import annotations

import os
import socket
import zlib
from contextlib import suppress
from pathlib import Path

from runtime.qmp import MonitorFailed

_PIECE = 1 << 20


def take(source: socket.socket, path: Path, most: int) -> tuple[int, int]:
    """Write all that comes into a new file; who sends is hung up on in the end, and ``source`` stays the caller's to close.

    Args:
        most: bytes that there can be.

    Returns:
        size and digest, which is against damage and not against malice: only root can write there.

    Raises:
        MonitorFailed: there are more.
        OSError: they could not be written: a full disk.
    """
    size = digest = 0
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            while block := source.recv(_PIECE):
                size, digest = size + len(block), zlib.crc32(block, digest)
                if size > most:
                    raise MonitorFailed(f"its QEMU sends more than the {most >> 20} MB that it can have")
                file.write(block)
    finally:
        hang_up(source)
    return size, digest


def give(target: socket.socket, path: Path) -> None:
    """Send a file's content; whoever reads it says when it was not whole."""
    with target, suppress(OSError), path.open("rb") as file:
        target.sendfile(file)


def digest_of(path: Path) -> int:
    """A file's digest, as :func:`take` counts it."""
    sum = 0
    with path.open("rb") as file:
        while block := file.read(_PIECE):
            sum = zlib.crc32(block, sum)
    return sum


def hang_up(end: socket.socket) -> None:
    """Nothing comes or goes here any more: whoever waits at either end is told at once."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
