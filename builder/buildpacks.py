"""Which buildpacks there are, in which order they are asked, and what of them the host sends into a sandbox.

Fetching from git and the web happens inside the sandbox (:mod:`builder.inside`); only the bundled ones and the host's own
directories (``file://``, an administrator's choice) come from here.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dulwich.errors import ChecksumMismatch, FileFormatException, NotGitRepository, WrongObjectException

from builder import inside
from builder.sandbox import parts
from foundation.errors import DavitError, InvalidParams

DIRECTORY = Path(__file__).resolve().parent.parent / "buildpacks"

BUNDLED: dict[str, str] = {
    "nodejs": "package.json",
    "python": "requirements.txt, pyproject.toml, uv.lock, poetry.lock, Pipfile, setup.py, manage.py, app.py, main.py",
    "static": "static.json, Staticfile, .static, index.html, public/index.html or dist/index.html",
    "procfile": "Procfile",
}
"""The bundled buildpacks in the order in which detection asks them, each with what it looks for. It is
Heroku's order, so an app with both a package.json and a requirements.txt is built the same here."""

STACK_ALIASES: dict[str, str] = {"davit-13": "heroku-24"}
"""What STACK holds for buildpacks that do not name our stack in their buildpack.toml: public buildpacks refuse names that
they do not know, and pick binaries by it. Debian 13 runs what was built on Ubuntu 24.04 (glibc 2.39; OpenSSL 3)."""


class BuildpackError(DavitError):
    """A buildpack cannot be had; the sentence names it."""

    id, status = "invalid_buildpack", 422


def check(text: str, *, admin: bool) -> str:
    """Whether ``text`` may be set as an app's buildpack; returns it as it is to be kept.

    Args:
        admin: whether whoever sets it may name directories of the host.

    Raises:
        InvalidParams: it is no buildpack reference.
    """
    text = text.strip()
    if "\n" in text or len(text) > 2000:
        raise InvalidParams("A buildpack is one line: a name or a URL.")
    try:
        if text.startswith("file://") and admin:
            _local_path(text)
        else:
            inside.parse_reference(text, list(BUNDLED), {})
    except (inside.Failed, BuildpackError) as error:
        raise InvalidParams(str(error)) from None
    return text


@lru_cache(maxsize=1)
def bundled_archive() -> bytes:
    """The bundled buildpacks as one tar, the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in BUNDLED:
            for path in sorted((DIRECTORY / name).rglob("*")):
                if "__pycache__" in path.parts or not path.is_file():
                    continue
                info = tarfile.TarInfo(str(path.relative_to(DIRECTORY)))
                info.size, info.mode = path.stat().st_size, 0o755 if path.parent.name == "bin" else 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)
    return buffer.getvalue()


def local(texts: Sequence[str], *, admin: bool) -> dict[str, str]:
    """The ``file://`` references among ``texts``, each with the name of the stream that will hold it.

    Raises:
        BuildpackError: whoever asked for the build is no administrator, or there is no such directory.
    """
    found: dict[str, str] = {}
    for text in texts:
        if not text.startswith("file://"):
            continue
        if not admin:
            raise BuildpackError(
                f"The buildpack {text} is a directory of the host: only an administrator may choose it, as the app's buildpack, "
                "and only builds that an administrator asks for may use it."
            )
        _local_path(text)
        found[text] = f"file_{len(found)}"
    return found


def _local_path(text: str) -> tuple[Path, str]:
    url, _, ref = text.partition("#")
    try:
        path = Path(unquote(urlsplit(url).path))
    except ValueError:
        raise BuildpackError(f"The buildpack {text} is a URL that cannot be read; file:// and an absolute path is one.") from None
    if not path.is_absolute() or not path.is_dir():
        raise BuildpackError(f"The buildpack {text} is not there: {path} is no directory of this host.")
    if ref.startswith("-"):
        raise BuildpackError(f"The buildpack {text} has a ref that begins with “-”.")
    return path, ref


@contextmanager
def local_archive(text: str) -> Iterator[Iterator[bytes]]:
    """A ``file://`` buildpack as a tar, in parts: a directory, or a git repository (at ``#ref``).

    Raises:
        BuildpackError: it cannot be read as either.
    """
    path, ref = _local_path(text)
    if ref or (path / "HEAD").is_file():
        yield _commit_archive(text, path, ref or "HEAD")
        return
    argv = ["tar", "--create", "--file=-", "--exclude=./.git", f"--directory={path}", "."]
    with tempfile.TemporaryFile() as complaints:  # a pipe that nobody reads would stop it
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        assert process.stdout is not None
        try:
            yield parts(process.stdout)
            if process.wait() != 0:
                complaints.seek(0)
                said = complaints.read(10_000).decode(errors="replace").split("\n")
                why = next(filter(None, said), "no reason given")
                raise BuildpackError(f"The buildpack {text} could not be read: {why}.")
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


_UNREADABLE = (NotGitRepository, FileFormatException, ChecksumMismatch, WrongObjectException)


class _Pieces(io.RawIOBase):
    """What a tar writes, until it is sent."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: Any) -> int:
        self.pieces.append(bytes(piece))
        return len(piece)

    def taken(self) -> bytes:
        whole = b"".join(self.pieces)
        self.pieces.clear()
        return whole


def _commit_archive(text: str, path: Path, ref: str) -> Iterator[bytes]:
    """A commit's files as a tar.

    Its objects are read and nothing of the repository's is run: git itself obeys the configuration of the repository it works
    in (filters, fsmonitor, hooks), which is its owner's and not this host's.
    """
    from dulwich.objectspec import parse_commit
    from dulwich.repo import Repo

    sink = _Pieces()
    try:
        with Repo(str(path)) as repository, tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            tree = parse_commit(repository, ref.encode()).tree
            for entry in repository.object_store.iter_tree_contents(tree):
                if stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode):  # the others are submodules
                    _add(tar, os.fsdecode(entry.path), entry.mode, repository.object_store[entry.sha].as_raw_string())
                yield sink.taken()
        yield sink.taken()
    except (*_UNREADABLE, KeyError, ValueError, OSError, zlib.error) as error:
        why = f"{path} is no git repository" if isinstance(error, NotGitRepository) else f"it has no “{ref}”, or is damaged"
        raise BuildpackError(f"The buildpack {text} could not be read: {why}.") from None


def _add(tar: tarfile.TarFile, name: str, mode: int, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    if stat.S_ISLNK(mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(content)
        tar.addfile(member)
        return
    member.mode, member.size = 0o755 if mode & 0o100 else 0o644, len(content)
    tar.addfile(member, io.BytesIO(content))
