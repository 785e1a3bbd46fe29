"""Where slugs are kept: files named by the SHA-256 of what they hold.

What keeps them sound:

* A slug's name says its content, so two builds of one tree share a file and a damaged file cannot pass for a slug.
* A file gets its name only after its bytes are on the disk (fsync), and :meth:`Store.put` returns only after the name is
  too. A release that names a slug is written later still, so neither kill -9 nor a power cut leaves one that names a
  slug which is missing or half written.
* Collecting holds a lock that putting shares, and leaves alone what was put (again) a short while ago: a build that has
  stored its slug and not yet written it down loses nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from fcntl import LOCK_EX, LOCK_SH, flock
from pathlib import Path
from typing import BinaryIO

from foundation import disk
from foundation.clock import now
from foundation.errors import DavitError, NotFound
from slugs.image import FORMATS, LARGEST, SealFailed, SlugTooLarge, format_of, too_large
from slugs.tarball import write_tarball

WARN_FROM = 300 << 20
"""Bytes from which a pusher is told that the slug is large."""
GRACE = timedelta(hours=2)
"""How long after it was put a slug that nothing names is kept: longer than any build lasts after sealing."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_DRAFTS = (".put-*", ".export-*")


class SlugMissing(NotFound):
    """No slug of this digest is in the store."""


class SlugDamaged(DavitError):
    """A slug's file is no longer what was stored."""

    id, status = "slug_damaged", 500


@dataclass(frozen=True)
class StoredSlug:
    """A slug in the store: ``digest`` is ``sha256:<hex>``, ``size`` the bytes of its image."""

    digest: str
    size: int


def size_warning(size: int, warn_from: int = WARN_FROM) -> str | None:
    """What to tell the pusher about a slug of ``size`` bytes; None when it is of usual size, less than ``warn_from``."""
    if size < warn_from:
        return None
    return (
        f"The slug is {size / (1 << 20):.0f} MB, which makes deploys and starts slow;"
        " .slugignore leaves out files that the app does not need when it runs."
    )


class Store:
    """A directory of slugs.

    Args:
        root: the directory; made when it is not there.
        largest: bytes that a slug put here may have.
    """

    def __init__(self, root: Path, largest: int = LARGEST) -> None:
        self.root, self.largest = root, largest
        root.mkdir(mode=0o755, parents=True, exist_ok=True)

    def put(self, image: Path) -> StoredSlug:
        """Keep a sealed image; ``image`` itself stays where it is, and must not be changed afterwards.

        Returns:
            Its digest and size, once it is on the disk for good. Putting the same content again costs only the reading.

        Raises:
            SlugTooLarge: it is larger than a slug may be.
            SealFailed: it is no slug image.
        """
        size = image.stat().st_size
        if size > self.largest:
            raise SlugTooLarge(too_large(self.largest))
        form = format_of(image)
        if form is None:
            raise SealFailed("What is to be stored is not a sealed image.")
        digest = _sha256(image)
        with self._locked(LOCK_SH):
            place = self.root / f"{digest}.{form}"
            if _size(place) == size:
                os.utime(place)  # starts the grace period anew
            else:
                self._place(image, place)
        return StoredSlug(f"sha256:{digest}", size)

    def path(self, digest: str) -> Path:
        """The image file of a slug, to be mounted or read.

        Raises:
            SlugMissing: there is none.
        """
        name = _DIGEST.fullmatch(digest)
        for form in FORMATS if name else ():
            assert name is not None
            if (place := self.root / f"{name[1]}.{form}").exists():
                return place
        raise SlugMissing(f"The slug {digest[:80]} is not in the store; build the app again.")

    def verify(self, digest: str) -> None:
        """Read a slug whole and compare.

        Raises:
            SlugMissing: it is not there. SlugDamaged: its content changed.
        """
        place = self.path(digest)
        if f"sha256:{_sha256(place)}" != digest:
            raise SlugDamaged(f"The slug {digest} is damaged on disk ({place}); build the app again or restore it from a backup.")

    def export_tarball(self, digest: str, stream: BinaryIO) -> None:
        """Write a slug as Heroku's slug tarball: gzip, entries ``./app/…``.

        Neither memory nor waiting for the first byte grows with the slug where the image can be mounted; elsewhere it is
        unpacked beside the store first.

        Args:
            stream: written to in pieces; what it raises (the reader has gone) ends the export.

        Raises:
            SlugMissing: it is not there. DavitError: it could not be read; the stream then holds an incomplete gzip.
        """
        image = self.path(digest)
        # A process that may only read the store unpacks in the system's temporary directory.
        scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=self.root if os.access(self.root, os.W_OK) else None))
        try:
            write_tarball(image, scratch, stream)
        finally:
            shutil.rmtree(scratch, onerror=_open_and_retry)

    def stored(self) -> list[StoredSlug]:
        """All slugs in the store."""
        return [StoredSlug(f"sha256:{path.stem}", path.stat().st_size) for path in self._slugs()]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Nothing is collected meanwhile; putting goes on."""
        with self._locked(LOCK_SH):
            yield

    def collect(self, keep: Callable[[set[str]], set[str]], grace: timedelta = GRACE) -> list[str]:
        """Remove the slugs that nothing needs any more.

        Args:
            keep: the digests that must stay, when it is called with those that are younger than ``grace``
                (see :func:`slugs.collect.keep`). Nothing is put meanwhile, and nothing is removed before it has answered.
            grace: slugs younger than this stay too.

        Returns:
            The digests that were removed.
        """
        oldest = now().timestamp() - grace.total_seconds()
        removed = []
        with self._locked(LOCK_EX):
            slugs = {f"sha256:{path.stem}": path for path in self._slugs()}
            young = {digest for digest, path in slugs.items() if path.stat().st_mtime >= oldest}
            stays = young | keep(young)
            for digest, path in slugs.items():
                if digest not in stays:
                    path.unlink()
                    removed.append(digest)
            for pattern in _DRAFTS:
                for leftover in self.root.glob(pattern):
                    if leftover.lstat().st_mtime < oldest:
                        shutil.rmtree(leftover, onerror=_open_and_retry) if leftover.is_dir() else leftover.unlink()
        return removed

    def _place(self, image: Path, place: Path) -> None:
        draft = self.root / f".put-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            try:
                os.link(image, draft)
            except OSError:  # another file system, or one without links
                shutil.copyfile(image, draft)
            draft.chmod(0o444)
            os.utime(draft)
            disk.give_name(draft, place)
        finally:
            with suppress(FileNotFoundError):
                draft.unlink()

    def _slugs(self) -> list[Path]:
        named = (path for path in self.root.iterdir() if path.suffix[1:] in FORMATS)
        return sorted(path for path in named if _DIGEST.fullmatch(f"sha256:{path.stem}"))

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        lock = os.open(self.root / ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            flock(lock, how)
            yield
        finally:
            os.close(lock)


def _sha256(path: Path) -> str:
    sum = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            sum.update(block)
    return sum.hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _open_and_retry(remove: object, path: str, _: object) -> None:
    """rmtree met a directory that its owner may not change (an app's own modes): open it up and go on."""
    with suppress(OSError):
        Path(path).parent.chmod(0o700)
        Path(path).chmod(0o700)
        if callable(remove):
            remove(path)
