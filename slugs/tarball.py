"""A sealed image as Heroku's slug tarball.

Root mounts the image in a mount namespace of its own and lets tar read it there; anybody else, and where that fails, has
the format's own program unpack it into a scratch directory first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from foundation.errors import DavitError
from foundation.programs import ProgramFailed, run
from slugs.image import LARGEST_TREE
from slugs.mounting import format_of

SECONDS = 600
PIECE = 1 << 18


def write_tarball(image: Path, scratch: Path, stream: BinaryIO) -> None:
    """Write ``image`` as a gzipped tar of ``./app/…`` (or ``./cache/…``), owned by uid 1000, sorted by name.

    Args:
        scratch: an empty directory to mount or unpack in; the caller removes it.

    Raises:
        DavitError: the image cannot be read here.
    """
    if os.geteuid() == 0 and _mounts(image, scratch):
        _pour([*mounted_command(image, scratch), *tar_command(scratch)], stream)
    else:
        _unpack(image, scratch / "tree")
        _pour(tar_command(scratch / "tree"), stream)


def tar_command(tree: Path) -> list[str]:
    """The argv that writes the tarball of a directory to its standard output."""
    owner = ["--owner=1000", "--group=1000", "--numeric-owner", "--sort=name"]
    return ["tar", "--create", "--format=gnu", *owner, "--use-compress-program=gzip -n", f"--directory={tree}", "./app"]


def mounted_command(image: Path, directory: Path) -> list[str]:
    """What to put before an argv so that it runs with ``image`` mounted at ``directory``."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("mounted.py")), str(image), str(directory)]


def unpack_command(form: str, image: Path, tree: Path) -> list[str]:
    """The argv that unpacks an image into the directory ``tree``, which is not there yet."""
    # No single file may grow beyond what any tree may hold: the image is an app's.
    guard = ["prlimit", f"--fsize={LARGEST_TREE}"]
    if form == "erofs":
        return [*guard, "fsck.erofs", "-d1", f"--extract={tree}", "--preserve-perms", "--no-preserve-owner", str(image)]
    return [*guard, "unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", str(tree), str(image)]


def _mounts(image: Path, scratch: Path) -> bool:
    return run([*mounted_command(image, scratch), "true"], check=False).returncode == 0


def _unpack(image: Path, tree: Path) -> None:
    form = format_of(image)
    if form is None:
        raise DavitError(f"{image} is not a sealed image.")
    path = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        run(unpack_command(form, image, tree), timeout=SECONDS, env=path)
    except ProgramFailed as failed:
        package = {"erofs": "erofs-utils 1.5 or newer", "squashfs": "squashfs-tools"}[form]
        raise DavitError(f"The slug could not be unpacked (this needs {package}): {failed.message}") from failed


def _pour(command: Sequence[str], stream: BinaryIO) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    try:
        while piece := child.stdout.read(PIECE):
            stream.write(piece)
        words = child.stderr.read(10_000).decode(errors="replace").strip()
        if child.wait() != 0:
            raise DavitError(f"The slug could not be written as a tarball: {words.splitlines()[-1] if words else 'tar failed'}")
    finally:
        child.kill()
        child.stdout.close()
        child.stderr.close()
        child.wait()
