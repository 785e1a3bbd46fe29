"""The kernel's news about directories (inotify(7)), by ctypes: a descriptor to poll and the names it tells.

pyroute2 has the same behind its asyncio core, which costs ten times the memory of the rest of this process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple

ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
OVERFLOW = 0x4000
IGNORED = 0x8000
_ONLYDIR = 0x01000000

_HEAD = struct.Struct("iIII")


class Event(NamedTuple):
    """``watch`` as :meth:`Inotify.watch` returned it, ``mask`` of the constants above, ``name`` within the directory."""

    watch: int
    mask: int
    name: str


class Inotify:
    """Watches directories; :attr:`fd` is readable when there is news.

    Raises:
        OSError: the user's limit of inotify instances is reached.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._call(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def watch(self, directory: Path, mask: int) -> int:
        """Watch a directory and return the number that its events carry; the same number when it is watched already.

        Raises:
            OSError: it is gone, or the limit of watches is reached.
        """
        return self._call(self._libc.inotify_add_watch(self.fd, os.fsencode(directory), mask | _ONLYDIR))

    def forget(self, watch: int) -> None:
        """Watch no longer; no error when the directory is gone."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Event]:
        """What happened since; empty when nothing did."""
        try:
            raw = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(raw):
            watch, mask, _, size = _HEAD.unpack_from(raw, at)
            name = raw[at + _HEAD.size : at + _HEAD.size + size].rstrip(b"\0")
            events.append(Event(watch, mask, os.fsdecode(name)))
            at += _HEAD.size + size
        return events

    def close(self) -> None:
        """End all watches."""
        os.close(self.fd)

    @staticmethod
    def _call(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, os.strerror(number))
        return result
