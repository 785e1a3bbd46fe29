"""ROFS, the read-only file system of OSv: a writer, and a reader of its own that trusts nothing.

The format (OSv's fs/rofs, version 1; little endian, blocks of 512 bytes): a superblock of eight numbers; the files' data, each
file beginning at a block; then one *structure area*: all directory entries (inode number, length, name), all symlinks
(length, target), all inodes (type, number, where, how much). A directory's entries stand together, and its inode says where;
the root is inode 1. There are no owners, permissions or times. The guest reads the structure area into one piece of memory
when it mounts, so that its size is what an image costs at rest.

Writing streams: contents go straight to the image, entries and symlinks to temporary files, and only four numbers an entry
stay in memory. The same tree gives the same bytes.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from foundation.errors import DavitError

BLOCK = 512
MAGIC = 0xDEADBEAD
VERSION = 1
DIRECTORY, FILE, LINK = 0x4000, 0x8000, 0xA000
LONGEST_NAME = 255
LONGEST_TARGET = 4095
"""Bytes of a symlink's target at the most: PATH_MAX without its end."""
LARGEST = 64 << 30
"""Bytes of an image at the most."""

_SUPERBLOCK = struct.Struct("<8Q")
_ENTRY = struct.Struct("<QH")
_LENGTH = struct.Struct("<H")
_INODE = struct.Struct("<4Q")
_PIECE = 1 << 20


class RofsFailed(DavitError):
    """A tree cannot be written as ROFS, or an image is not what it should be."""

    id, status = "rofs_failed", 422


class ImageFull(RofsFailed):
    """The files are more than the image may have."""


@dataclass(frozen=True)
class File:
    """A regular file: ``size`` bytes that ``open()`` gives; ``same`` is equal for names of one and the same file."""

    size: int
    open: Callable[[], BinaryIO]
    same: object = None


@dataclass(frozen=True)
class Link:
    """A symlink."""

    target: bytes


class Folder:
    """A directory made up here: what :meth:`add` puts in it."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node] = {}

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``, making the directories on the way.

        Raises:
            RofsFailed: something that is no directory made here is in the way.
        """
        *way, name = [os.fsencode(part) for part in path.strip("/").split("/")]
        folder = self
        for part in way:
            folder = folder._enter(part, path)
        if name in folder._nodes and not (isinstance(node, Folder) and isinstance(folder._nodes[name], Folder)):
            raise RofsFailed(f"There is something at {path} already.")
        folder._nodes.setdefault(name, node)

    def _enter(self, name: bytes, path: str) -> Folder:
        found = self._nodes.setdefault(name, Folder())
        if not isinstance(found, Folder):
            raise RofsFailed(f"{os.fsdecode(name)} on the way to {path} is no directory.")
        return found

    def nodes(self) -> Iterable[tuple[bytes, Node]]:
        """Names and what they name."""
        return self._nodes.items()


class Disk:
    """A directory of this host's file system. Symlinks stay what they are; devices, FIFOs and sockets are left out.

    Args:
        path: the directory.
        skip: says of a path in it, relative to its top (``lib/x``), whether to leave it out.
        file: makes the node of a regular file; None leaves it out.
        top: for what is below: the way from the top to here.
    """

    def __init__(
        self,
        path: Path,
        skip: Callable[[str], bool] | None = None,
        *,
        file: Callable[[Path, os.stat_result], File | None] | None = None,
        top: str = "",
    ) -> None:
        self._path, self._skip, self._file, self._top = path, skip, file or on_disk, top

    def nodes(self) -> Iterator[tuple[bytes, Node]]:
        """Names and what they name."""
        with os.scandir(self._path) as found:
            for entry in found:
                inner = f"{self._top}{entry.name}"
                if self._skip is not None and self._skip(inner):
                    continue
                node = self._node(entry, inner)
                if node is not None:
                    yield os.fsencode(entry.name), node

    def _node(self, entry: os.DirEntry[str], inner: str) -> Node | None:
        status = entry.stat(follow_symlinks=False)
        path = Path(entry.path)
        if stat.S_ISDIR(status.st_mode):
            return Disk(path, self._skip, file=self._file, top=f"{inner}/")
        if stat.S_ISLNK(status.st_mode):
            return Link(os.fsencode(path.readlink()))
        if stat.S_ISREG(status.st_mode):
            return self._file(path, status)
        return None


Node = File | Link | Folder | Disk


def text(content: str) -> File:
    """A file of a few words."""
    return data(content.encode())


def data(content: bytes) -> File:
    """A file of a few bytes."""
    return File(len(content), lambda: io.BytesIO(content))


def on_disk(path: Path, status: os.stat_result | None = None) -> File:
    """A file of this host, opened when its turn comes and never through a symlink."""
    status = status or path.stat()

    def opened() -> BinaryIO:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0)

    return File(status.st_size, opened, (status.st_dev, status.st_ino) if status.st_nlink > 1 else None)


@dataclass(frozen=True)
class Written:
    """What was written: bytes of the image, of its structure area, files and other entries in it."""

    size: int
    structure: int
    files: int
    entries: int


def write(root: Folder | Disk, image: BinaryIO, *, start: int = 0, limit: int = LARGEST) -> Written:
    """Write a tree as ROFS.

    Args:
        root: the tree.
        image: an empty file open for writing, or a part of a disk.
        start: the byte of ``image`` at which the file system begins.
        limit: bytes of the file system at the most.

    Raises:
        RofsFailed: the tree holds what the format cannot hold, changes while it is read, or is too large. What was written
            so far is no file system: the superblock is written last.
    """
    with tempfile.TemporaryFile() as entries, tempfile.TemporaryFile() as links:
        return _Writer(image, start, limit, entries, links).write(root)


def structure_of(image: Path) -> tuple[int, int]:
    """Bytes of the structure area (whole blocks) and entries of an image that :func:`write` has written to a file."""
    with image.open("rb") as file:
        _, _, _, _, blocks, entries, _, _ = _SUPERBLOCK.unpack(file.read(_SUPERBLOCK.size))
    return blocks * BLOCK, entries


class _Writer:
    def __init__(self, image: BinaryIO, start: int, limit: int, entries: BinaryIO, links: BinaryIO) -> None:
        self._image, self._start, self._limit = image, start, limit
        self._entries, self._links = entries, links
        self._entry_count = self._link_count = self._file_count = 0
        self._inodes = array("Q")  # type, number, where, how much: one after the other
        self._waiting: deque[tuple[int, Folder | Disk]] = deque()
        self._block = 1  # the superblock is block 0
        self._known: dict[object, int] = {}

    def write(self, root: Folder | Disk) -> Written:
        """Contents first, then the structure area, then the superblock that makes it a file system."""
        self._image.seek(self._start + BLOCK)
        self._add_directory(root)
        while self._waiting:
            number, directory = self._waiting.popleft()
            self._write_directory(number, directory)
        structure = self._write_structure()
        blocks = -(-structure // BLOCK)
        self._image.seek(self._start)
        counts = (self._entry_count, self._link_count, len(self._inodes) // 4)
        self._image.write(_SUPERBLOCK.pack(MAGIC, VERSION, BLOCK, self._block, blocks, *counts).ljust(BLOCK, b"\0"))
        return Written((self._block + blocks) * BLOCK, structure, self._file_count, self._entry_count)

    def _write_directory(self, number: int, directory: Folder | Disk) -> None:
        self._set(number, self._entry_count)
        nodes = sorted(directory.nodes(), key=lambda pair: pair[0])
        self._inodes[(number - 1) * 4 + 3] = len(nodes)
        for name, node in nodes:
            _check_name(name)
            self._entries.write(_ENTRY.pack(self._add(name, node), len(name)) + name)
        self._entry_count += len(nodes)

    def _set(self, number: int, where: int) -> None:
        self._inodes[(number - 1) * 4 + 2] = where

    def _add(self, name: bytes, node: Node) -> int:
        if isinstance(node, File):
            return self._add_file(name, node)
        if isinstance(node, Link):
            return self._add_link(name, node)
        return self._add_directory(node)

    def _inode(self, mode: int, where: int, count: int) -> int:
        number = len(self._inodes) // 4 + 1
        self._inodes.extend((mode, number, where, count))
        return number

    def _add_directory(self, directory: Folder | Disk) -> int:
        number = self._inode(DIRECTORY, 0, 0)
        self._waiting.append((number, directory))
        return number

    def _add_link(self, name: bytes, link: Link) -> int:
        if not 0 < len(link.target) <= LONGEST_TARGET:
            raise RofsFailed(f"The symlink {_shown(name)} has a target of {len(link.target)} bytes; 1 to {LONGEST_TARGET} fit.")
        self._links.write(_LENGTH.pack(len(link.target)) + link.target)
        self._link_count += 1
        return self._inode(LINK, self._link_count - 1, 1)

    def _add_file(self, name: bytes, file: File) -> int:
        self._file_count += 1
        if file.same is not None and file.same in self._known:
            return self._inode(FILE, self._known[file.same], file.size)
        first = self._block
        blocks = -(-file.size // BLOCK)
        if (first + blocks) * BLOCK > self._limit:
            raise ImageFull(f"The files are more than the {self._limit >> 20} MB that this image may have.")
        self._copy(name, file)
        self._block += blocks
        if file.same is not None:
            self._known[file.same] = first
        return self._inode(FILE, first, file.size)

    def _copy(self, name: bytes, file: File) -> None:
        left = file.size
        try:
            with file.open() as source:
                while left and (piece := source.read(min(left, _PIECE))):
                    self._image.write(piece)
                    left -= len(piece)
                grown = bool(source.read(1))
        except OSError as error:
            raise RofsFailed(f"The file {_shown(name)} cannot be read: {error.strerror}.") from error
        if left or grown:
            raise RofsFailed(f"The file {_shown(name)} changed while it was read.")
        self._image.write(bytes(-file.size % BLOCK))

    def _write_structure(self) -> int:
        size = 0
        for spool in (self._entries, self._links):
            spool.seek(0)
            while piece := spool.read(_PIECE):
                self._image.write(piece)
                size += len(piece)
        for first in range(0, len(self._inodes), 1 << 16):
            part = self._inodes[first : first + (1 << 16)]
            self._image.write(struct.pack(f"<{len(part)}Q", *part))
        size += len(self._inodes) * 8
        self._image.write(bytes(-size % BLOCK))
        return size


def _check_name(name: bytes) -> None:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > LONGEST_NAME:
        raise RofsFailed(f"“{_shown(name)}” cannot be a file's name.")


def _shown(name: bytes) -> str:
    return name[:100].decode(errors="backslashreplace")


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inode:
    """As it stands in the image: ``where`` is a block (file), the index of an entry (directory) or of a symlink; ``count``
    bytes, entries, or 1."""

    mode: int
    where: int
    count: int


class Image:
    """A ROFS image, read and checked whole: every structure lies where it may, every inode is named, no directory twice.

    Args:
        file: open for reading.
        start: the byte at which the file system begins.

    Raises:
        RofsFailed: it is no sound ROFS; the sentence says where.
    """

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        self._file, self._start = file, start
        self.size = file.seek(0, os.SEEK_END) - start
        self._read_superblock()
        structure = io.BytesIO(self._at(self.first * BLOCK, self.blocks * BLOCK))
        self._entries = [self._read_entry(structure) for _ in range(self.entry_count)]
        self._links = [self._piece(structure, _LENGTH.unpack(self._piece(structure, 2))[0]) for _ in range(self.link_count)]
        self._inodes = [self._read_inode(structure, number) for number in range(1, self.inode_count + 1)]
        self.structure = structure.tell()
        if structure.read().strip(b"\0"):
            raise RofsFailed("Behind the inodes stands something that belongs to nothing.")
        if self.structure <= (self.blocks - 1) * BLOCK:
            raise RofsFailed("The structure area has blocks that it does not need.")
        self._tree = self._check_tree()

    def _at(self, where: int, size: int) -> bytes:
        self._file.seek(self._start + where)
        found = self._file.read(size)
        if len(found) != size:
            raise RofsFailed(f"The image ends before byte {where + size}.")
        return found

    @staticmethod
    def _piece(structure: io.BytesIO, size: int) -> bytes:
        piece = structure.read(size)
        if len(piece) != size:
            raise RofsFailed("The structure area ends within an entry.")
        return piece

    def _read_superblock(self) -> None:
        block = self._at(0, BLOCK)
        magic, version, size, self.first, self.blocks, *counts = _SUPERBLOCK.unpack_from(block)
        self.entry_count, self.link_count, self.inode_count = counts
        if (magic, version, size) != (MAGIC, VERSION, BLOCK):
            raise RofsFailed("This is no ROFS of version 1 with blocks of 512 bytes.")
        if self.first < 1 or self.blocks < 1 or (self.first + self.blocks) * BLOCK > self.size:
            raise RofsFailed("The structure area lies outside the image.")
        if self.entry_count * 11 + self.link_count * 3 + self.inode_count * 32 > self.blocks * BLOCK:
            raise RofsFailed("The superblock counts more than the structure area can hold.")
        if block[_SUPERBLOCK.size :].strip(b"\0"):
            raise RofsFailed("Behind the superblock stands something that belongs to nothing.")

    def _read_entry(self, structure: io.BytesIO) -> tuple[int, bytes]:
        number, length = _ENTRY.unpack(self._piece(structure, _ENTRY.size))
        name = self._piece(structure, length)
        _check_name(name)
        if not 1 < number <= self.inode_count:
            raise RofsFailed(f"The name “{_shown(name)}” belongs to inode {number}, which cannot be.")
        return number, name

    def _read_inode(self, structure: io.BytesIO, expected: int) -> Inode:
        mode, number, where, count = _INODE.unpack(self._piece(structure, _INODE.size))
        inode = Inode(mode, where, count)
        if number != expected:
            raise RofsFailed(f"Inode {expected} says that it is {number}.")
        sound = {
            FILE: 1 <= where <= self.first and where * BLOCK + count <= self.first * BLOCK,
            DIRECTORY: where + count <= self.entry_count,
            LINK: where < self.link_count and count == 1,
        }
        if not sound.get(mode, False):
            raise RofsFailed(f"Inode {number} is unsound: {inode}.")
        return inode

    def _check_tree(self) -> dict[bytes, int]:
        """Path → inode number, of everything."""
        if not self._inodes or self._inodes[0].mode != DIRECTORY:
            raise RofsFailed("The root is no directory.")
        tree: dict[bytes, int] = {}
        seen = {1}
        used_entries = 0
        waiting: deque[tuple[bytes, int]] = deque([(b"", 1)])
        while waiting:
            path, number = waiting.popleft()
            inode = self._inodes[number - 1]
            tree[path or b"/"] = number
            if inode.mode != DIRECTORY:
                continue
            names = [name for _, name in self._entries[inode.where : inode.where + inode.count]]
            if len(set(names)) != len(names):
                raise RofsFailed(f"The directory {_shown(path)}/ has a name twice.")
            used_entries += inode.count
            for child, name in self._entries[inode.where : inode.where + inode.count]:
                if child in seen:
                    raise RofsFailed(f"Inode {child} has two names.")
                seen.add(child)
                waiting.append((path + b"/" + name, child))
        if len(seen) != self.inode_count or used_entries != self.entry_count:
            raise RofsFailed("Some inodes or names are in no directory.")
        return tree

    def paths(self) -> list[bytes]:
        """Every path, ``/`` first, directories before what is in them."""
        return list(self._tree)

    def kind(self, path: bytes) -> int:
        """DIRECTORY, FILE or LINK."""
        return self._of(path).mode

    def _of(self, path: bytes) -> Inode:
        return self._inodes[self._tree[path] - 1]

    def target(self, path: bytes) -> bytes:
        """A symlink's target."""
        return self._links[self._of(path).where]

    def size_of(self, path: bytes) -> int:
        """Bytes of a file."""
        return self._of(path).count

    def read(self, path: bytes, size: int = -1) -> bytes:
        """A file's content, or its first ``size`` bytes."""
        inode = self._of(path)
        return self._at(inode.where * BLOCK, inode.count if size < 0 else min(size, inode.count))

    def padding(self) -> bytes:
        """All bytes between the files' ends and their blocks' ends: zeros, in an image that says nothing of its maker."""
        found = b""
        for path in self._tree:
            inode = self._of(path)
            if inode.mode == FILE and inode.count % BLOCK:
                found += self._at(inode.where * BLOCK + inode.count, -inode.count % BLOCK)
        return found
