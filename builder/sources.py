"""Uploaded sources: a tarball that a client puts here and then asks to build.

A source is a file ``DAVIT_HOME/sources/ID`` for a day; its URLs are signed (:mod:`state.signatures`), and a build names it
``source:ID``. What is in it is read inside the build's sandbox only. An id begins with the account that uploads it, and what
the files of an account take together is bounded; where that is reached, what has been built makes room.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from foundation import disk
from foundation.clock import now
from foundation.errors import NO_ROOM, BadRequest, DavitError, DiskFull, InvalidParams, NotFound
from foundation.settings import settings
from state.db import ask
from state.models import new_id

KEPT_SECONDS = 24 * 3600
CHUNK = 1 << 16
PREFIX = "source:"
_DAMAGED = "The source is a damaged gzip file; upload it again."
_CHECKSUM = re.compile(r"(?i:sha256:)?([0-9a-fA-F]{64})")
_ID = re.compile(r"([0-9a-f-]{36}\.)?[0-9a-f-]{36}")
"""One without an account is from before the ids had it."""
COUNTED = 1 << 20
"""Bytes that a file counts at the least, so that their number is bounded, too."""
_USES = (
    "SELECT source_url, status FROM builds WHERE created_at > :since AND source_url LIKE :own "
    "UNION SELECT source_url, status FROM app_setups WHERE created_at > :since AND source_url LIKE :own"
)
LOOK = 16 << 20
"""Bytes after which an upload looks again whether there is room: others of the account's may be under way."""


class SourceTooLarge(DavitError):
    """An upload is larger than a push may be."""

    id, status = "push_too_large", 413


class SourceQuota(DavitError):
    """An account's uploads of a day take as much as they may."""

    id, status = "source_quota", 413


class SourceUnusable(DavitError):
    """What was uploaded is no tarball, or not what its checksum says."""

    id, status = "source_unusable", 422


def directory() -> Path:
    """Where they are."""
    return settings().home / "sources"


def new(account_id: str) -> str:
    """The id of a source that the account will upload."""
    return f"{account_id}.{new_id()}"


def path(id: str) -> Path:
    """The file of a source.

    Raises:
        NotFound: nothing was put there, or it is too old.
    """
    place = directory() / id
    if not _ID.fullmatch(id) or not place.is_file():
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
        SourceTooLarge: it is larger than DAVIT_PUSH_LIMIT. SourceQuota: it is more than the account may have here.
        DiskFull: there is no room. BadRequest: the client went away half-way. InvalidParams: it is empty.
    """
    directory().mkdir(mode=0o700, exist_ok=True)
    draft, size, limit = directory() / f"{id}.{secrets.token_hex(8)}.new", 0, settings().push_limit << 20
    _demand_room(id, whole or 0)
    looked = 0
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
            while data := read(CHUNK):
                size += len(data)
                if size > limit:
                    raise SourceTooLarge(f"The source is larger than the {limit >> 20} MiB that this Davit takes at once.")
                file.write(data)
                if size >= looked + LOOK:
                    looked = size
                    _demand_room(id)
        if whole is not None and size < whole:
            raise BadRequest("The upload ended half-way.")
        if not size:
            raise InvalidParams("The upload is empty; put a tarball there.")
        disk.give_name(draft, directory() / id)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull("your source was not taken") from None
        raise BadRequest("The upload ended half-way.") from None
    finally:
        draft.unlink(missing_ok=True)
    return size


def _demand_room(id: str, more: int = 0) -> None:
    """Refuse what takes more than the account that uploads ``id`` may have here; what has been built already goes before that.

    Args:
        more: bytes that are to come.

    Raises:
        SourceQuota: its files, half received ones too, and those bytes are more than DAVIT_SOURCE_QUOTA.
    """
    account, dot, _ = id.partition(".")
    quota = settings().source_quota << 20
    if not dot:
        return
    over = _kept_of(f"{account}.") + max(more, COUNTED) - quota
    if over <= 0:
        return
    for name, size in _built(account):
        if name != id:
            (directory() / name).unlink(missing_ok=True)
            over -= size
            if over <= 0:
                return
    raise SourceQuota(
        f"Your uploads of the last 24 hours take the {quota >> 20} MiB that this Davit keeps for one account; upload again "
        "when the oldest are a day old, push with git, or ask its owner to raise DAVIT_SOURCE_QUOTA."
    )


def _built(account: str) -> list[tuple[str, int]]:
    """What an account uploaded and no build or set-up needs any more, with the bytes that each counts; the oldest first."""
    rows = ask(_USES, since=now() - timedelta(seconds=KEPT_SECONDS), own=f"{PREFIX}{account}.%")
    done = {url for url, _ in rows} - {url for url, status in rows if status == "pending"}
    found = []
    for url in done:
        with suppress(FileNotFoundError):
            place = directory() / str(url).removeprefix(PREFIX)
            status = place.stat()
            found.append((status.st_mtime, place.name, _counted(status)))
    return [(name, size) for _, name, size in sorted(found)]


def _kept_of(beginning: str) -> int:
    total = 0
    with os.scandir(directory()) as files:
        for file in files:
            if file.name.startswith(beginning):
                with suppress(FileNotFoundError):
                    total += _counted(file.stat(follow_symlinks=False))
    return total


def _counted(status: os.stat_result) -> int:
    return max(COUNTED, status.st_size)


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
