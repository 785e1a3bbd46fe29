"""The process that unpacks a slug's tarball, which is a stranger's: into a tree that is all it sees, with bounds on everything.

Run by :mod:`slugs.upload` in a bare interpreter (``python -I -S -X utf8``), the tarball being its standard input, with the
arguments ``TREE UID BYTES``: as root it makes TREE its root directory and becomes UID. It ends with :data:`REFUSED` and a
sentence for the user, or with :data:`FULL`.

Nothing is ever written through a link: every directory on the way to a member is looked at, and only this process is there.
"""

from __future__ import annotations

import errno
import gzip
import os
import resource
import stat
import sys
import tarfile
import zlib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120

from slugs import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

REFUSED, FULL = 65, 74
"""Exit statuses (EX_DATAERR and EX_IOERR of sysexits(3))."""
MEMORY = 512 << 20
"""Bytes of address space: a header that claims to be larger than that is none."""
SECONDS = 300
"""Of CPU time."""
MOST = 300_000
"""Files, links and directories."""
DEEPEST = 200
"""Directories within each other: whatever walks the tree later recurses."""
PIECE = 1 << 18
_EARLIEST = 315_532_800.0
"""1980: of directories that the tarball does not name, so that one tarball is always one slug."""
_LATEST = 4_102_444_799  # 2099: what image formats keep
_MAKE = "make it with `tar czf slug.tgz ./app`"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Refused(Exception):
    """The tarball cannot become a slug; a sentence says why."""


class Unpacker:
    """Unpacks into the present directory.

    Args:
        limit: bytes that the files may hold together.
    """

    def __init__(self, limit: int) -> None:
        self._left, self._limit, self._count = limit, limit, 0
        self._times: list[tuple[str, float]] = [(".", _EARLIEST)]
        self._known = ""

    def unpack(self, stream: BinaryIO) -> None:
        """Unpack a tar stream.

        Raises:
            Refused: something in it may not be in a slug.
        """
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
                self._count_one(member)
                self._place(tar, member)
        for path, time in self._times:
            os.utime(path, (time, time))

    def _count_one(self, member: tarfile.TarInfo) -> None:
        self._count, self._left = self._count + 1, self._left - max(0, member.size)
        if self._count > MOST:
            raise Refused(f"The tarball holds more than {MOST:,} files.")
        if self._left < 0:
            raise Refused(f"The tarball unpacks to more than {self._limit >> 20} MiB, the most that this Davit takes.")

    def _place(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        shown = member.name[:100].encode(errors="replace").decode()
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise Refused(f"“{shown}” in the tarball leads out of it.")
        if len(parts) > DEEPEST:
            raise Refused(f"“{shown}…” in the tarball lies more than {DEEPEST} directories deep.")
        if not parts and member.isdir():
            return
        if not parts or parts[0] != "app":
            raise Refused(f"The tarball must hold ./app and nothing beside it, and has “{shown}”: {_MAKE}.")
        path, time = "/".join(parts), float(min(max(member.mtime, 0), _LATEST))
        self._make_way(parts[:-1])
        if member.isdir():
            self._directory(path, member.mode, time)
        elif member.issym():
            self._clear(path)
            os.symlink(member.linkname, path)  # noqa: PTH211 - it means something in the dyno alone
            os.utime(path, (time, time), follow_symlinks=False)
        elif member.islnk():
            self._link(path, member.linkname, shown)
        elif member.isreg() and not member.issparse():
            self._file(tar, member, path, time)
        else:
            raise Refused(f"“{shown}” in the tarball is neither a file, a directory nor a link.")

    def _make_way(self, parts: list[str]) -> None:
        """Every directory on the way is there, and is one: what is a directory once stays one."""
        way = "/".join(parts)
        if way == self._known:
            return
        for end in range(1, len(parts) + 1):
            self._directory("/".join(parts[:end]))
        self._known = way

    def _directory(self, path: str, mode: int | None = None, time: float | None = None) -> None:
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            os.mkdir(path, 0o755)  # noqa: PTH102
            time = _EARLIEST if time is None else time
        else:
            if not stat.S_ISDIR(there.st_mode):
                raise Refused(f"“{path[:100]}” in the tarball is a directory and something else, too.")
        if mode is not None:
            os.chmod(path, mode & 0o777 | 0o700)
        if time is not None:
            self._times.append((path, time))

    def _clear(self, path: str) -> None:
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                raise Refused(f"“{path[:100]}” in the tarball is a directory and something else, too.")
            os.unlink(path)  # noqa: PTH108 - as tar does: the later one counts
        except FileNotFoundError:
            pass

    def _link(self, path: str, target: str, shown: str) -> None:
        parts = [part for part in target.split("/") if part not in ("", ".")]
        if target.startswith("/") or ".." in parts:
            raise Refused(f"“{shown}” in the tarball is a link that leads out of it.")
        for end in range(1, len(parts) + 1):
            try:
                there = os.lstat("/".join(parts[:end])).st_mode
            except FileNotFoundError:
                raise Refused(f"“{shown}” in the tarball is a link to a file that is not there.") from None
            if not (stat.S_ISREG(there) if end == len(parts) else stat.S_ISDIR(there)):
                raise Refused(f"“{shown}” in the tarball is a hard link to what is no file.")
        if "/".join(parts) == path:
            return
        self._clear(path)
        os.link("/".join(parts), path, follow_symlinks=False)

    def _file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, time: float) -> None:
        self._clear(path)
        source, left = tar.extractfile(member), member.size
        assert source is not None
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb", buffering=0) as target:
            while left and (piece := source.read(min(PIECE, left))):
                target.write(piece)
                left -= len(piece)
            os.fchmod(file, member.mode & 0o777 | 0o400)
            os.utime(file, (time, time))
        if left:
            raise Refused("The tarball ends in the middle of a file; upload it again.")


def confine(tree: str, uid: int, limit: int) -> None:
    """See nothing but the tree, be nobody who may anything, take no more than so much."""
    os.chdir(tree)
    if os.geteuid() == 0:
        os.chroot(".")
        os.chdir("/")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    kernel.no_new_privileges()
    os.umask(0o022)
    for what, most in (
        (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, limit), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, SECONDS),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))


def main(tree: str, uid: int, limit: int) -> None:
    """Unpack standard input; ends the process with a sentence when that cannot be."""
    stream: BinaryIO = sys.stdin.buffer
    confine(tree, uid, limit)
    try:
        packed = stream.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
        Unpacker(limit).unpack(gzip.GzipFile(fileobj=stream) if packed else stream)  # type: ignore[arg-type]
    except Refused as refused:
        _end(REFUSED, str(refused))
    except (tarfile.TarError, zlib.error, EOFError, MemoryError, ValueError, OverflowError, RecursionError):
        _end(REFUSED, f"What was uploaded is no tarball, or a damaged one: {_MAKE} and upload it again.")
    except OSError as error:
        if error.errno in _NO_ROOM:
            _end(FULL, "There is no room.")
        words = "is a damaged gzip file" if error.errno is None else f"cannot be unpacked: {error.strerror}"
        _end(REFUSED, f"The tarball {words}.")


def _end(status: int, words: str) -> None:
    sys.stderr.write(words.encode(errors="replace").decode() + "\n")
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
