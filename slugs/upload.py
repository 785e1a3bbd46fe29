"""A slug from a tarball of somebody's own (Heroku's slug tarball: gzip, ``./app/…``), sealed like a build's tree.

    stored = seal_tarball(descriptor, Store(home / "slugs"), limit)

The tarball is a stranger's: a process of its own, without privileges and where possible without a file system but the tree,
unpacks it (:mod:`slugs.unpacker`), and another seals the tree (:mod:`slugs.sealer`). Neither's memory grows with the tarball.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from foundation.errors import DiskFull
from foundation.programs import ProgramFailed, run
from slugs import image, unpacker
from slugs.store import Store, StoredSlug

NOBODY = 65534
"""Whom a tarball is unpacked as when root does it."""
SECONDS = 600
"""How long unpacking may take."""


def seal_tarball(tarball: int, store: Store, limit: int) -> StoredSlug:
    """Unpack and seal a tarball, and keep it in the store.

    Args:
        tarball: a descriptor open for reading at its beginning: tar, gzipped or plain.
        limit: bytes that its files may hold together.

    Raises:
        SealFailed: it is no tarball of ``./app``, or holds what no slug may; the sentence says what.
        SlugTooLarge: the slug would be too large. DiskFull: there is no room.
    """
    work = Path(tempfile.mkdtemp(prefix=".put-", dir=store.root))  # the store sweeps it when this process is killed
    tree, sealed = work / "tree", work / "slug.img"
    user = NOBODY if os.geteuid() == 0 else None
    try:
        tree.mkdir(mode=0o700)
        if user is not None:
            os.chown(tree, user, user)
        _unpack(tarball, tree, user, limit)
        image.seal(tree, sealed, user=user, limit=store.largest)
        return store.put(sealed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(tarball: int, tree: Path, user: int | None, limit: int) -> None:
    program = Path(unpacker.__file__)
    argv: list[str | os.PathLike[str]] = [sys.executable, "-I", "-S", "-X", "utf8", program, tree, str(user or 0), str(limit)]
    try:
        run(argv, stdin=tarball, timeout=SECONDS, env={"PATH": "/usr/bin:/bin"})
    except ProgramFailed as failed:
        if failed.returncode == unpacker.FULL:
            raise DiskFull("the slug was not stored") from failed
        if failed.returncode == unpacker.REFUSED:
            raise image.SealFailed(failed.stderr.strip().splitlines()[-1]) from failed
        raise image.SealFailed("The tarball takes too long, or too much memory, to unpack.") from failed
