"""A machine's memory between QEMU's socket and a file, as fast as the slower of the two.

That may be half a minute for each machine, and some fall asleep together: whatever lasts so long has a thread of its own. Those
of :meth:`runtime.host.Host.in_thread` are few, and every dyno's start waits for one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from runtime.qmp import MonitorFailed

_T = TypeVar("_T")
_PIECE = 1 << 20


def apart(work: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
    """Begin blocking work in a thread of its own, for which nothing waits when this process ends.

    Returns:
        its result, once it is there. To give up waiting does not end the work.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            result = work(*args)
        except BaseException as error:
            _tell(loop, done, partial(done.set_exception, error))
        else:
            _tell(loop, done, partial(done.set_result, result))

    threading.Thread(target=run, name="pump", daemon=True).start()
    return done


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], say: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(lambda: None if done.done() else say())


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
