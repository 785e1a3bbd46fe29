"""Uploaded sources: a tarball that a client puts here and then asks to build.

A source is a file ``DAVIT_HOME/sources/ID`` for a day; its URLs are signed (:mod:`state.signatures`), and a build names it
``source:ID``. What is in it is read inside the build's sandbox only.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.errors import NO_ROOM, BadRequest, DavitError, DiskFull, InvalidParams, NotFound
from foundation.settings import settings

KEPT_SECONDS = 24 * 3600
CHUNK = 1 << 16
PREFIX = "source:"
_DAMAGED = "The source is a damaged gzip file; upload it again."
_CHECKSUM = re.compile(r"(?i:sha256:)?([0-9a-fA-F]{64})")


class SourceTooLarge(DavitError):
    """An upload is larger than a push may be."""

    id, status = "push_too_large", 413


class SourceUnusable(DavitError):
    """What was uploaded is no tarball, or not what its checksum says."""

    id, status = "source_unusable", 422


def directory() -> Path:
    """Where they are."""
    return settings().home / "sources"


def path(id: str) -> Path:
    """The file of a source.

    Raises:
        NotFound: nothing was put there, or it is too old.
    """
    place = directory() / id
    if not re.fullmatch(r"[0-9a-f-]{36}", id) or not place.is_file():
        raise NotFound("There is no source; upload the tarball to its put_url first. Sources are kept for a day.")
    return place


def is_kept(id: str) -> bool:
    """Whether a source is there."""
    try:
        path(id)
    except NotFound:
        return False
    return True


def checksum(text: str) -> str | None:
    """The hexadecimal digest in ``SHA256:…``; None when it is none."""
    match = _CHECKSUM.fullmatch(text.strip())
    return match[1].lower() if match else None


def receive(id: str, read: Callable[[int], bytes], whole: int | None = None) -> int:
    """Keep an upload; returns its size. What is half received is nowhere to be seen, and replaces nothing.

    Args:
        read: the request's body.
        whole: how many bytes were announced, where they were: a server may tell a client that went away as the body's end.

    Raises:
        SourceTooLarge: it is larger than DAVIT_PUSH_LIMIT.
        DiskFull: there is no room. BadRequest: the client went away half-way. InvalidParams: it is empty.
    """
    directory().mkdir(mode=0o700, exist_ok=True)
    draft, size, limit = directory() / f"{id}.{secrets.token_hex(8)}.new", 0, settings().push_limit << 20
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
            while data := read(CHUNK):
                size += len(data)
                if size > limit:
                    raise SourceTooLarge(f"The source is larger than the {limit >> 20} MiB that this Davit takes at once.")
                file.write(data)
        if whole is not None and size < whole:
            raise BadRequest("The upload ended half-way.")
        if not size:
            raise InvalidParams("The upload is empty; put a tarball there.")
        draft.rename(directory() / id)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull("your source was not taken") from None
        raise BadRequest("The upload ended half-way.") from None
    finally:
        draft.unlink(missing_ok=True)
    return size


def verify(id: str, wanted: str | None) -> None:
    """Compare a source with its checksum.

    Raises:
        NotFound: it is gone. SourceUnusable: it is another.
    """
    if not wanted:
        return
    digest = hashlib.sha256()
    with path(id).open("rb", buffering=0) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if checksum(wanted) != digest.hexdigest():
        raise SourceUnusable("The source is not what its checksum says; upload it again.")


def tar(id: str) -> Iterator[bytes]:
    """A source as an uncompressed tar, in pieces of bounded size however well it was compressed.

    Raises:
        NotFound: it is gone. SourceUnusable: it is neither a tar nor a gzipped tar.
    """
    with path(id).open("rb", buffering=0) as file:
        start = file.read(512)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            yield from _unzipped(file.read)
        elif start[257:262] == b"ustar" or (len(start) == 512 and not start.strip(b"\0")):
            while part := file.read(CHUNK):
                yield part
        else:
            raise SourceUnusable("The source is no tarball: make it with `tar czf source.tgz .` (tar, gzipped or plain).")


def _unzipped(read: Callable[[int], bytes]) -> Iterator[bytes]:
    unzip, rest = zlib.decompressobj(16 + zlib.MAX_WBITS), b""
    try:
        while data := rest or read(CHUNK):
            if unzip.eof:
                if not data.strip(b"\0"):  # padding
                    rest = b""
                    continue
                unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)  # gzip files may follow each other (RFC 1952, section 2.2)
            part = unzip.decompress(data, CHUNK)
            rest = unzip.unused_data if unzip.eof else unzip.unconsumed_tail
            if part:
                yield part
        if part := unzip.flush():
            yield part
    except zlib.error:
        raise SourceUnusable(_DAMAGED) from None
    if not unzip.eof:
        raise SourceUnusable(_DAMAGED)


def sweep() -> None:
    """Remove what is older than a day."""
    limit = time.time() - KEPT_SECONDS
    for place in directory().iterdir() if directory().is_dir() else ():
        if place.stat().st_mtime < limit:
            place.unlink(missing_ok=True)
