"""Stacks: the root file systems that dynos and builds run on, as sealed images.

A stack version is a directory ``ROOT/NAME/VERSION/`` with ``run.IMG`` (what dynos run on), ``build.IMG`` (the same with
compilers and headers, what builds run on) and ``stack.json``; ``ROOT/NAME/current`` is a symlink to the newest. A version
appears whole, by one rename, and never changes. :mod:`runtime.stack_builder` makes them.

As a program: ``python -m runtime.stacks build|list|verify [--root DIR]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import IO, Any

from foundation.clock import now
from foundation.errors import DavitError
from foundation.settings import settings

NAME = "davit-13"
"""The stack that new apps get: Debian 13."""

Progress = Callable[[str], None]
"""Called with one line for a person whenever there is something to say."""


class StackError(DavitError):
    """A stack is missing, broken, or could not be built."""

    id, status = "stack_unavailable", 503


@dataclass(frozen=True)
class Stack:
    """One version of a stack.

    Attributes:
        name: ``davit-13``.
        version: names it for ever: Debian's version and the moment it was built, ``13.8-20261124034513``.
        run: the image that dynos run on.
        build: the image that builds run on.
    """

    name: str
    version: str
    run: Path
    build: Path

    @property
    def description(self) -> dict[str, Any]:
        """What stack.json says.

        ``name``, ``version``, ``debian``, ``format``, ``built_at``, ``recipe`` (see :func:`outdated`), and by variant
        ``images`` (``file``, ``size``, ``digest``) and ``packages`` (name to version).
        """
        return dict(json.loads((self.run.parent / "stack.json").read_text()))


def current(root: Path, name: str = NAME) -> Stack:
    """The newest version of a stack.

    Raises:
        StackError: there is none yet, or its images are not of the size they had when they were built.
    """
    link = root / name / "current"
    try:
        version = link.readlink().name
    except OSError:
        raise StackError(f"The stack {name} has not been built on this host yet: run `davit stack:build` as root.") from None
    return find(root, version, name)


def find(root: Path, version: str, name: str = NAME) -> Stack:
    """A given version of a stack; its images' sizes are checked, their contents are not (see :func:`verify`).

    Raises:
        StackError: this version is not here, or is damaged.
    """
    folder = root / name / version
    try:
        images = json.loads((folder / "stack.json").read_text())["images"]
        paths = {variant: folder / Path(images[variant]["file"]).name for variant in ("run", "build")}
        whole = all(path.stat().st_size == images[variant]["size"] for variant, path in paths.items())
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise StackError(f"Version {version} of the stack {name} is missing or damaged: run `davit stack:build` as root.")
    return Stack(name, version, paths["run"], paths["build"])


def versions(root: Path, name: str = NAME) -> list[Stack]:
    """The usable versions of a stack, oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for folder in sorted((root / name).iterdir(), key=lambda folder: folder.name.rpartition("-")[2]):
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
                with suppress(StackError):
                    found.append(find(root, folder.name, name))
    return found


def since_newest(root: Path, name: str = NAME) -> float:
    """Seconds since the current version became it.

    Raises:
        OSError: there is none.
    """
    return time.time() - (root / name / "current").lstat().st_mtime


def age(stack: Stack) -> float | None:
    """Days since a version was built, by its name; None where that does not tell."""
    try:
        built = datetime.strptime(stack.version.rpartition("-")[2], "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return (now() - built).total_seconds() / 86400


def verify(stack: Stack) -> None:
    """Compare every byte of a stack's images with what was built.

    Raises:
        StackError: an image is not what it was.
    """
    images = stack.description["images"]
    for variant, path in (("run", stack.run), ("build", stack.build)):
        if digest_of(path) != images[variant]["digest"]:
            raise StackError(
                f"The {variant} image of the stack {stack.name} {stack.version} is damaged ({path}): "
                "run `davit stack:build` as root."
            )


def outdated(stack: Stack) -> bool:
    """Whether this version of Davit would put other things into the stack (not: whether Debian has newer packages)."""
    from runtime.stack_builder import recipe

    return stack.description.get("recipe") != recipe()


def build(root: Path, name: str = NAME, mirror: str | None = None, progress: Progress = print) -> Stack:
    """Build a new version of a stack and make it the current one. Needs root; takes two to five minutes.

    When another process builds at the same moment, this one waits and takes what that one built.

    Args:
        root: where stacks are kept.
        mirror: the Debian mirror's URL; the host's own, else the distribution's default, when None.
        progress: told what happens.

    Raises:
        StackError: it could not be built; the sentence says why. The current version stays what it was.
    """
    from runtime.stack_builder import StackBuilder

    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    before = _current_version(folder)
    with locked(folder, lambda: progress(f"Another process is building the stack {name}; waiting for it.")) as (lock, waited):
        if waited and _current_version(folder) != before:
            return current(root, name)
        StackBuilder(folder, name, mirror, progress, lock.fileno()).build()
    return current(root, name)


def ensure(root: Path, name: str = NAME, mirror: str | None = None, progress: Progress = print) -> Stack:
    """The current version of a stack, built now if there is none."""
    try:
        return current(root, name)
    except StackError:
        return build(root, name, mirror, progress)


def export(stack: Stack, target: Path) -> str:
    """Write a stack as a tar archive, to be unpacked in another host's directory of stacks.

    Returns:
        its SHA-256, in hex.

    Raises:
        StackError: it cannot be written there.
    """
    verify(stack)
    fresh = target.with_name(f".{target.name}.new")
    try:
        with tarfile.open(fresh, "w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(stack.run.parent.iterdir()):
                archive.add(path, f"{stack.name}/{stack.version}/{path.name}", filter=_as_roots)
            link = tarfile.TarInfo(f"{stack.name}/current")
            link.type, link.linkname = tarfile.SYMTYPE, stack.version
            archive.addfile(link)
        fresh.rename(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StackError(f"The stack cannot be written to {target}: {error.strerror}.") from error
    return digest_of(target).removeprefix("sha256:")


def _as_roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def collect(root: Path, in_use: Callable[[], set[str]], steady_seconds: float = 0, name: str = NAME) -> list[str]:
    """Remove old versions of a stack; none while somebody builds one, for whom nobody waits.

    Args:
        in_use: the versions that a dyno or a release still uses, when it is called; the current one is always kept.
        steady_seconds: for how long the current version has to have been it.

    Returns:
        The versions that were removed.
    """
    return collect_from(root / name, lambda: [stack.version for stack in versions(root, name)], in_use, steady_seconds)


def collect_from(
    folder: Path, there: Callable[[], list[str]], in_use: Callable[[], set[str]], steady_seconds: float = 0
) -> list[str]:
    """Remove old versions below ``folder``, in which ``current`` points to the newest and ``.lock`` is who makes one's.

    Args:
        there: the versions, when it is called; the others are as for :func:`collect`.
    """
    if not folder.is_dir():
        return []
    with (folder / ".lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return []
        newest = _current_version(folder)
        if newest is None or since_newest(folder.parent, folder.name) < steady_seconds:
            return []
        kept = in_use() | {newest}
        old = [version for version in there() if version not in kept]
        for version in old:
            # Renamed first: a removal that is cut short leaves nothing that looks like a version.
            (folder / version).rename(folder / f".removing-{version}")
        for leftover in folder.glob(".removing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return old


@contextmanager
def locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[tuple[IO[str], bool]]:
    """Hold the lock on a stack's directory; gives the lock file and whether somebody else held it first."""
    with (folder / ".lock").open("w") as lock:
        waited = False
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            waited = True
            on_wait()
            flock(lock, LOCK_EX)
        yield lock, waited


def digest_of(path: Path) -> str:
    """``sha256:<hex>`` of a file."""
    sum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sum.update(block)
    return f"sha256:{sum.hexdigest()}"


def _current_version(folder: Path) -> str | None:
    with suppress(OSError):
        return (folder / "current").readlink().name
    return None


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime.stacks", description="Builds, lists and verifies stacks.")
    parser.add_argument("action", choices=("build", "list", "verify"))
    parser.add_argument("--root", type=Path, default=None, help="where stacks are kept (DAVIT_STACKS)")
    parser.add_argument("--mirror", default=None, help="the Debian mirror to build from (DAVIT_MIRROR)")
    chosen = parser.parse_args(arguments)
    try:
        root = (chosen.root or settings().stacks).absolute()
        if chosen.action == "build":
            stack = build(root, NAME, chosen.mirror or settings().mirror, lambda line: print(line, flush=True))
            print(f"The stack {stack.name} {stack.version} is built and current.")
        for stack in versions(root) if chosen.action != "build" else ():
            print(_line(stack, checked=chosen.action == "verify"))
    except DavitError as failed:
        print(failed.message, file=sys.stderr)
        return 1
    return 0


def _line(stack: Stack, checked: bool) -> str:
    if checked:
        verify(stack)
    sizes = ", ".join(f"{v} {p.stat().st_size >> 20} MB" for v, p in (("run", stack.run), ("build", stack.build)))
    mark = " (current)" if _current_version(stack.run.parent.parent) == stack.version else ""
    return f"{stack.name} {stack.version}{mark}: {sizes}{', intact' if checked else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
