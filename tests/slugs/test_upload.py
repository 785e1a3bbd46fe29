"""A tarball of somebody's own becomes a slug, or a sentence; never anything beside it."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from slugs.image import SealFailed
from slugs.store import Store, StoredSlug
from slugs.upload import seal_tarball

LIMIT = 8 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an image takes root")


def entry(name: str, text: str | None = None, kind: bytes = tarfile.REGTYPE, **more: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tarball: a file when it has a text."""
    info, data = tarfile.TarInfo(name), (text or "").encode()
    info.size, info.type, info.mtime = len(data), kind if text is None else tarfile.REGTYPE, 1_500_000_000
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def packed(*entries: tuple[tarfile.TarInfo, bytes], squeeze: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue()) if squeeze else buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "slugs")


def _seal(store: Store, data: bytes, limit: int = LIMIT) -> StoredSlug:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        try:
            return seal_tarball(file.fileno(), store, limit)
        finally:
            assert not list(store.root.glob(".put-*")), "nothing is left"


DIRECTORY = entry("./app", kind=tarfile.DIRTYPE)
FILE = entry("./app/a", "hello")


@needs_root
@pytest.mark.parametrize("squeeze", [True, False])
def test_files_directories_and_links_are_in_the_slug(
    store: Store, mounted: Callable[[Path], AbstractContextManager[Path]], squeeze: bool
) -> None:
    data = packed(
        DIRECTORY, FILE, entry("./app/bin/run", "#!/bin/sh\n", mode=0o4755), entry("./app/again", kind=tarfile.LNKTYPE, linkname="./app/a"),
        entry("./app/abs", kind=tarfile.SYMTYPE, linkname="/app/a"), entry("./app/ü/" + "n" * 150, "long"), squeeze=squeeze,
    )  # fmt: skip
    stored = _seal(store, data)
    assert stored.digest == _seal(store, data).digest, "the same tarball is the same slug"
    with mounted(store.path(stored.digest)) as top:
        assert (top / "app/a").read_text() == (top / "app/again").read_text() == "hello"
        assert (top / "app/bin/run").stat().st_mode & 0o7777 == 0o755, "no set-user-id"
        assert os.readlink(top / "app/abs") == "/app/a"
        assert (top / "app/ü" / ("n" * 150)).read_text() == "long"


HOSTILE = {
    "a path that leads out": (packed(DIRECTORY, entry("./app/../../etc/x", "x")), "leads out of it"),
    "an absolute path": (packed(DIRECTORY, entry("/app/x", "x")), "leads out of it"),
    "a path through a symlink": (
        packed(DIRECTORY, entry("./app/d", kind=tarfile.SYMTYPE, linkname="/tmp"), entry("./app/d/x", "x")), "directory and something else",
    ),
    "a file over a directory": (packed(DIRECTORY, entry("./app/d/x", "x"), entry("./app/d", "x")), "directory and something else"),
    "a hard link that leads out": (packed(DIRECTORY, entry("./app/x", kind=tarfile.LNKTYPE, linkname="/etc/passwd")), "leads out of it"),
    "a hard link through a symlink": (
        packed(DIRECTORY, entry("./app/d", kind=tarfile.SYMTYPE, linkname="/etc"), entry("./app/x", kind=tarfile.LNKTYPE, linkname="app/d/passwd")),
        "hard link to what is no file",
    ),
    "a hard link to nothing": (packed(DIRECTORY, entry("./app/x", kind=tarfile.LNKTYPE, linkname="app/y")), "not there"),
    "a device": (packed(DIRECTORY, entry("./app/sda", kind=tarfile.BLKTYPE, devmajor=8)), "neither a file"),
    "a FIFO": (packed(DIRECTORY, entry("./app/pipe", kind=tarfile.FIFOTYPE)), "neither a file"),
    "something beside app": (packed(DIRECTORY, entry("./etc/passwd", "x")), "nothing beside it"),
    "a file that is app": (packed(entry("./app", "x")), "directory app"),
    "nothing": (packed(), "directory app"),
    "a small file that unpacks to much": (packed(DIRECTORY, entry("./app/zeros", "0" * (LIMIT + 1))), "unpacks to more than"),
    "no tarball": (b"PK\x03\x04" * 1000, "no tarball"),
    "half a gzip": (packed(DIRECTORY, FILE)[:60], "no tarball"),
    "broken gzip": (b"\x1f\x8b" + b"broken" * 100, "gzip"),
    "a file that ends early": (packed(DIRECTORY, entry("./app/x", "x" * 9000), squeeze=False)[:4096], "no tarball"),
    "a name longer than any": (packed(DIRECTORY, entry("./app/" + "d/" * 3000 + "x", "x")), "directories deep"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_slug_may_hold_is_refused_with_a_sentence(store: Store, what: str) -> None:
    data, words = HOSTILE[what]
    with pytest.raises(SealFailed, match=words):
        _seal(store, data)
    assert store.stored() == []


def test_a_header_that_claims_gigabytes_takes_no_memory(store: Store) -> None:
    info, _ = entry("x")
    info.size, info.type = 3 << 30, tarfile.XHDTYPE
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)
    with pytest.raises(SealFailed):
        _seal(store, gzip.compress(data))
