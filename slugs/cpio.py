"""cpio "newc" as OSv's upload server reads it (cpio(5): magic 070701, thirteen fields of eight hexadecimal digits), streamed.

The server (``cpiod.so``) knows files, directories and symlinks; after the trailer the sender ends its half of the connection,
and the server closes the other when everything is on the disk.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator

from foundation.errors import DavitError
from slugs.rofs import Disk, File, Folder, Link, Node

PORT = 10000
MAGIC = b"070701"
TRAILER = "TRAILER!!!"
LARGEST_FILE = (1 << 32) - 1
"""Bytes that a size of eight hexadecimal digits can say."""
_PIECE = 1 << 18


class UploadFailed(DavitError):
    """Files could not be sent to a unikernel's upload server."""

    id, status = "osv_upload_failed", 502


def entries(tree: Folder | Disk, way: str = "") -> Iterator[tuple[str, Node]]:
    """Everything in a tree, sorted, a directory before what is in it: path without a leading slash, and what it is."""
    for name, node in sorted(tree.nodes(), key=lambda pair: pair[0]):
        path = f"{way}{os.fsdecode(name)}"
        yield path, node
        if isinstance(node, Folder | Disk):
            yield from entries(node, f"{path}/")


def header(path: str, mode: int, size: int, number: int) -> bytes:
    """The header of an entry, its name included, padded to four bytes."""
    name = os.fsencode(path) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name), 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4)


def write(tree: Folder | Disk, send: Callable[[bytes], object]) -> int:
    """Write a tree as cpio; returns how many entries.

    Raises:
        UploadFailed: a file is larger than the format can say, or changes while it is read.
    """
    count = 0
    for count, (path, node) in enumerate(entries(tree), 1):
        if isinstance(node, Link):
            _whole(send, header(path, stat.S_IFLNK | 0o777, len(node.target), count), node.target)
        elif isinstance(node, File):
            _file(send, path, node, count)
        else:
            send(header(path, stat.S_IFDIR | 0o755, 0, count))
    send(header(TRAILER, 0, 0, 0))
    return count


def _whole(send: Callable[[bytes], object], head: bytes, content: bytes) -> None:
    send(head + content + bytes(-len(content) % 4))


def _file(send: Callable[[bytes], object], path: str, file: File, number: int) -> None:
    if file.size > LARGEST_FILE:
        raise UploadFailed(f"{path} is larger than 4 GB, the most that can be sent.")
    send(header(path, stat.S_IFREG | 0o755, file.size, number))
    left = file.size
    with file.open() as source:
        while left and (piece := source.read(min(left, _PIECE))):
            send(piece)
            left -= len(piece)
    if left:
        raise UploadFailed(f"{path} changed while it was read.")
    send(bytes(-file.size % 4))


def upload(tree: Folder | Disk, connection: socket.socket, seconds: float = 300) -> int:
    """Send a tree to an upload server and wait until it is on the disk there; returns how many entries.

    Args:
        connection: to the server; it stays open.
        seconds: without progress, at the most.

    Raises:
        UploadFailed: the server hangs up before the end, or says something.
    """
    try:
        connection.settimeout(seconds)
        count = write(tree, connection.sendall)
        connection.shutdown(socket.SHUT_WR)
        if words := connection.recv(200):
            raise UploadFailed(f"The upload server answered what it should not: {words[:100]!r}.")
        return count
    except OSError as error:
        raise UploadFailed(f"The files could not be sent to the upload server: {error.strerror or error}.") from error
