"""A dyno's files over SFTP, to be read and nothing else: what ``heroku ps:copy`` asks the SSH server of :mod:`api.tunnel` for.

Each file is read by a command in the dyno (stat(1), then tail(1)), as the dyno's own user and in its own view of things: no
path that a client or an app chooses is ever opened on the host. The library's server would serve the host's files, so each of
its operations that is not written anew here is refused.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncssh
from asyncssh import constants

from api.attach import STDERR, STDOUT, Attachment
from foundation.errors import DavitError

ROOT = b"/app"
"""Where commands in a dyno begin: what a path without a slash is below."""
SECONDS = 60
"""How long the first word of a file may take."""
MOST = 1 << 18
"""Bytes of one answer at the most."""
_CHANGES = constants.FXF_WRITE | constants.FXF_APPEND | constants.FXF_CREAT | constants.FXF_TRUNC | constants.FXF_EXCL
_READ = (
    'f={path}; if [ ! -e "$f" ]; then echo "There is no such file in the dyno." >&2; exit 1; fi; '
    'if [ ! -f "$f" ]; then echo "That is no file: only files can be copied." >&2; exit 1; fi; '
    "stat -L -c '%s %f %u %g %X %Y' -- \"$f\" && exec tail -c +{place} -- \"$f\""
)
_LOOK = "stat {follow} -c '%s %f %u %g %X %Y' -- {path}"

Run = Callable[[str, bool], Awaitable[Attachment]]
"""``run(line, reads)`` runs a command in the dyno, attached by three pipes; ``reads``: what is in a file, not only what it is."""


class DynoFile:
    """A file that is being read, from its beginning on; a client that jumps has it read anew from there."""

    def __init__(self, run: Run, path: bytes) -> None:
        self._run, self._path = run, path
        self._command: _Command | None = None
        self._place = 0
        self.attributes = asyncssh.SFTPAttrs()

    async def open(self, place: int = 0) -> None:
        """Begin to read at ``place``.

        Raises:
            asyncssh.SFTPError: the file is not there, or is none that can be read.
        """
        self.close()
        command = await _Command.begin(self._run, _READ.format(path=_quoted(self._path), place=place + 1), reads=True)
        self._command, self._place = command, place
        self.attributes = await command.attributes()

    async def read(self, place: int, size: int) -> bytes:
        """The bytes there, fewer only at the end of the file."""
        if place != self._place or self._command is None:
            await self.open(place)
        assert self._command is not None
        data = await self._command.read(min(size, MOST))
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int) -> int:
        """Where data, or a hole, comes next (lseek(2)), which the library asks for clients that leave holes out: all is data.

        Raises:
            OSError: ENXIO, beyond the end.
        """
        size = self.attributes.size or 0
        if place >= size:
            raise OSError(errno.ENXIO, "beyond the end of the file")
        return size if whence == os.SEEK_HOLE else place

    def close(self) -> None:
        """End the command that reads."""
        if self._command is not None:
            self._command.close()
            self._command = None


class _Command:
    """A command whose output is read in the loop."""

    def __init__(self, attachment: Attachment, out: asyncio.StreamReader, err: asyncio.StreamReader, pipes: list[Any]) -> None:
        self._attachment, self._out, self._err, self._pipes = attachment, out, err, pipes

    @classmethod
    async def begin(cls, run: Run, line: str, *, reads: bool = False) -> _Command:
        try:
            attachment = await run(line, reads)
        except DavitError as error:
            raise asyncssh.SFTPFailure(error.message) from None
        loop, readers, pipes = asyncio.get_running_loop(), {}, []
        for fd, stream in attachment.outputs.items():
            readers[stream] = reader = asyncio.StreamReader()
            file = os.fdopen(os.dup(fd), "rb", buffering=0)
            pipe, _ = await loop.connect_read_pipe(lambda reader=reader: asyncio.StreamReaderProtocol(reader), file)  # type: ignore[misc]
            pipes.append(pipe)
        return cls(attachment, readers[STDOUT], readers[STDERR], pipes)

    async def attributes(self) -> asyncssh.SFTPAttrs:
        """What the command tells first: the size, mode, owner and times."""
        words = (await asyncio.wait_for(self._out.readline(), SECONDS)).split()
        if len(words) != 6:
            why = (await asyncio.wait_for(self._err.read(1000), SECONDS)).decode(errors="replace").strip()
            self.close()
            raise asyncssh.SFTPNoSuchFile(why or "That cannot be read.")
        size, mode, user, group, used, changed = (int(word, 16 if place == 1 else 10) for place, word in enumerate(words))
        return asyncssh.SFTPAttrs(size=size, permissions=mode, uid=user, gid=group, atime=used, mtime=changed)

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes, or all that were left."""
        try:
            return await self._out.readexactly(size)
        except asyncio.IncompleteReadError as end:
            return end.partial

    def close(self) -> None:
        """Let go of it; it is ended if it still runs."""
        for pipe in self._pipes:
            pipe.close()
        self._attachment.close()


def _quoted(path: bytes) -> str:
    if b"\0" in path:
        raise asyncssh.SFTPNoSuchFile("There is no file with a NUL character in its name.")
    try:
        return shlex.quote(posixpath.join(ROOT, path).decode())
    except UnicodeDecodeError:
        raise asyncssh.SFTPNoSuchFile("That file's name is not UTF-8; a command in the dyno can read it.") from None


class DynoFiles(asyncssh.SFTPServer):
    """The server's side of one SFTP session.

    Args:
        run: see :data:`Run`.
    """

    def __init__(self, chan: asyncssh.SSHServerChannel[bytes], run: Run) -> None:
        super().__init__(chan)
        self._run = run
        self._files: set[DynoFile] = set()

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file to read it."""
        if pflags & _CHANGES:
            raise asyncssh.SFTPPermissionDenied("A dyno's files can only be read here.")
        file = DynoFile(self._run, path)
        await file.open()
        self._files.add(file)
        return file

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        """Some bytes of an open file."""
        assert isinstance(file_obj, DynoFile)
        return await file_obj.read(offset, size)

    def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        """What an open file is."""
        assert isinstance(file_obj, DynoFile)
        return file_obj.attributes

    def close(self, file_obj: object) -> None:
        """Close a file."""
        assert isinstance(file_obj, DynoFile)
        file_obj.close()
        self._files.discard(file_obj)

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """What is at a path, or where its link leads."""
        return await self._look(path, "-L")

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """What is at a path."""
        return await self._look(path, "")

    async def _look(self, path: bytes, follow: str) -> asyncssh.SFTPAttrs:
        command = await _Command.begin(self._run, _LOOK.format(follow=follow, path=_quoted(path)))
        try:
            return await command.attributes()
        finally:
            command.close()

    def realpath(self, path: bytes) -> bytes:
        """A path as it is when read from the root."""
        return posixpath.normpath(posixpath.join(ROOT, path))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """Directories are not listed."""
        await _refuse(self)
        yield asyncssh.SFTPName(b"")

    def exit(self) -> None:
        """The session is over."""
        for file in self._files:
            file.close()
        self._files.clear()


async def _refuse(self: DynoFiles, *_: object) -> Any:
    raise asyncssh.SFTPOpUnsupported("A dyno's files can only be read here.")


_LIBRARYS_OWN = frozenset((
    "channel", "connection", "convert_attrs", "env", "format_group", "format_longname", "format_user", "logger", "map_path",
    "reverse_map_path",
))  # fmt: skip
"""What touches no file."""
for _name in dir(asyncssh.SFTPServer):
    if not _name.startswith("_") and _name not in _LIBRARYS_OWN and _name not in vars(DynoFiles):
        setattr(DynoFiles, _name, _refuse)
