"""Looking into the tarball of a source that somebody names by its URL, for the one file that is needed before a build.

Nothing is unpacked here: the archive runs through, and app.json is taken out of the stream. The URL, and every one that it
redirects to, is checked as :mod:`foundation.outbound` does; the archive is a stranger's.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import lzma
import socket
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast
from urllib.parse import urljoin

from builder import sources
from foundation import outbound
from foundation.errors import DavitError
from foundation.settings import settings
from state import domains

SCHEMES = ("https", "http")
TIMEOUT = 30.0
"""Seconds that the other side may be silent."""
LONGEST = 300.0
"""Seconds for all of it, redirects and reading through the archive included: a setup holds a build's slot meanwhile."""
REDIRECTS = 5
FILE = "app.json"
FILE_LIMIT = 1 << 20
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class BadSource(DavitError):
    """A source cannot be fetched or read."""

    id, status = "bad_source", 422


def app_json(url: str) -> bytes | None:
    """The app.json at the root of a tarball (a single directory around everything is left out, as by builds).

    Args:
        url: where the tarball is; or ``source:ID``, which was uploaded.

    Returns:
        Its content; None when there is none.

    Raises:
        NotFound: what was uploaded is gone.
        InvalidParams: the URL leads where Davit does not go.
        BadSource: nothing can be fetched there, or it is no tar archive.
    """
    deadline = time.monotonic() + LONGEST
    if url.startswith(sources.PREFIX):
        with sources.path(url.removeprefix(sources.PREFIX)).open("rb") as file:
            return find(file, deadline)
    with _fetched(url, deadline) as stream:
        return find(stream, deadline)


class _Late(BadSource):
    def __init__(self) -> None:
        super().__init__(f"The source takes longer than {LONGEST / 60:.0f} minutes to be fetched and read, so it was given up.")


class _Response(http.client.HTTPResponse):
    """An answer that is read until a deadline, its head too."""

    def __init__(self, sock: socket.socket, *words: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *words, **more)
        self.fp.close()
        self.fp = io.BufferedReader(outbound.Bounded(sock, deadline, TIMEOUT))


@contextmanager
def _fetched(url: str, deadline: float) -> Iterator[IO[bytes]]:
    for _ in range(REDIRECTS + 1):
        place = outbound.parse(url, SCHEMES, field="source_blob.url")
        connection = http.client.HTTPConnection(place.host, place.port)
        connection.response_class = functools.partial(_Response, deadline=deadline)  # type: ignore[assignment]
        try:
            connection.sock = outbound.connect(domains.marked(place), min(TIMEOUT, max(0.1, deadline - time.monotonic())))
            connection.request("GET", place.path, headers=_headers(place))
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                url = _further(url, answer.getheader("Location") or "")
                continue
            if answer.status != 200:
                raise BadSource(f"The source cannot be fetched: {place.shown} answered with status {answer.status}.")
            yield cast(IO[bytes], answer)
            return
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise _Late from None
            raise BadSource(f"The source cannot be fetched: {place.shown} broke off ({type(error).__name__}).") from None
        finally:
            connection.close()
    raise BadSource("The source cannot be fetched: its URL redirects too often.")


def _further(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise BadSource("The source cannot be fetched: its URL redirects to one that cannot be read.") from None


def _headers(place: outbound.Place) -> dict[str, str]:
    headers = {"Host": place.authority, "User-Agent": "Davit", "Accept-Encoding": "identity"}
    if place.user or place.password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{place.user}:{place.password}".encode()).decode()
    return headers


class _Member(tarfile.TarInfo):
    """A member whose long headers, which tarfile reads into memory whole, are as long as headers are."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > FILE_LIMIT:
            raise tarfile.ReadError("a header is too long")
        return super()._proc_member(tarfile_)  # type: ignore[misc,no-any-return]


def find(stream: IO[bytes], deadline: float) -> bytes | None:
    """app.json in a tar archive (compressed or not) that is read once, from front to end.

    Args:
        deadline: of ``time.monotonic()``; members that hold nothing cost time, too.

    Raises:
        BadSource: it is none, is larger than a build may be, or takes too long.
    """
    left = settings().build_disk << 20
    directory: str | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                if time.monotonic() >= deadline:
                    raise _Late
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                left -= member.size
                if left < 0:
                    raise BadSource(f"The source is larger than {settings().build_disk} MiB, the most that a build may use.")
                words = [word for word in member.name.split("/") if word not in ("", ".")]
                if not words:
                    continue
                if len(words) == 1 and not member.isdir():
                    directory = ""  # something lies at the root: there is no directory around everything
                elif directory is None:
                    directory = words[0]
                if words == [FILE] or words == [directory, FILE]:
                    return _content(archive, member)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        if time.monotonic() >= deadline:
            raise _Late from None
        reason = str(error)[:80] or type(error).__name__
        raise BadSource(f"The source is not a tar archive that can be read ({reason}).") from None
    return None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isfile():
        raise BadSource("app.json in the source is not a file.")
    if member.size > FILE_LIMIT:
        raise BadSource(f"app.json in the source is larger than {FILE_LIMIT >> 20} MiB.")
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
