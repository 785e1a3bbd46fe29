"""The images that unikernels start from, made when they are first needed and kept under DAVIT_HOME/osv."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from foundation import disk
from runtime.images import Images
from slugs import osvcommand, osvimage, rofs
from slugs.elf import bound_at_once
from slugs.osvcommand import Launch
from slugs.rofs import Disk, File, Folder, ImageFull, Node, RofsFailed
from slugs.view import View

VERSION = "3"
"""Changes when the same sources give other images: none is used that another version has made."""
KEPT_BASES = 4
TOGETHER = 4
"""So many images are made at once; who has theirs waits for none."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_SLUG = re.compile(r"[0-9a-f]{64}")
_LARGEST_MODULE = 64 << 20
"""Bytes; a larger file is laid into the root as it is."""


class TooLargeForMemory(osvimage.ImageFailed):
    """The slug does not fit into the guest's memory."""

    id, status = "osv_slug_too_large", 422


@dataclass(frozen=True)
class Sources:
    """What a dyno is made of, on disk: ``slug`` is None for an empty /app."""

    root: Path
    slug: Path | None
    launch: Launch


@dataclass
class _Turn:
    """An image on its way, and how many want it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    wanted: int = 0


class OsvImages:
    """The cache.

    Args:
        directory: ``DAVIT_HOME/osv``.
        mounted: mounts sealed images.
        slugs: where sealed slugs are kept: an image whose slug is gone goes, too.
        modules: a directory of OSv's own modules, whose files are laid into every root.
    """

    def __init__(self, directory: Path, mounted: Images, slugs: Path, modules: Path | None = None) -> None:
        self.directory, self._mounted, self._slugs, self._modules = directory, mounted, slugs, modules
        self._lock = threading.Lock()
        self._making: dict[Path, _Turn] = {}
        self._makers = threading.Semaphore(TOGETHER)

    def prepare(self) -> None:
        """Make the directories, and remove what nobody needs any more."""
        for name in ("base", "slugs", "kernels"):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forget_older()
        self.tidy()

    def _forget_older(self) -> None:
        """A slug's image has the slug's name, so whose it is is written down beside: once no other version's is left."""
        written, images = self.directory / "version", self.directory / "slugs"
        with suppress(OSError):
            if written.read_text() == VERSION:
                return
        for path in images.iterdir():
            path.unlink(missing_ok=True)
        disk.sync(images)
        with suppress(OSError):  # a full disk: they are made once more
            disk.write(written, VERSION.encode())

    def tidy(self) -> None:
        """Images of slugs that are gone, drafts of processes that were killed, roots of older stacks."""
        present = {path.stem for path in self._slugs.iterdir()} if self._slugs.is_dir() else set()
        for path in (self.directory / "slugs").iterdir():
            if path.name.startswith(".") or (_SLUG.fullmatch(path.stem) and path.stem not in present):
                path.unlink(missing_ok=True)
        bases = sorted((self.directory / "base").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in [path for path in bases if path.name.startswith(".")] + bases[KEPT_BASES * 4 :]:
            path.unlink(missing_ok=True)

    def sources(self, stack: Path, slug: Path | None, line: str, environment: Mapping[str, str], memory: int) -> Sources:
        """Translate the command and have its images; blocking, and long when one has to be made.

        Args:
            stack, slug: sealed images.
            memory: bytes that the guest has.

        Raises:
            CommandRefused: the line cannot run in a unikernel.
            ImageFailed, RofsFailed: an image cannot be made.
            TooLargeForMemory: the guest could not hold the slug.
        """
        used = [stack_at := self._mounted.use(stack)]
        try:
            if slug is not None:
                used.append(self._mounted.use(slug))
            app = used[1] / "app" if slug is not None else None
            launch = osvcommand.translate(line, environment, View(stack_at, app))
            made = self._slug(slug, app, memory) if slug is not None and app is not None else None
            return Sources(self._root(stack, stack_at, launch.runtime), made, launch)
        finally:
            for point in used:
                self._mounted.done(point)

    def _root(self, stack: Path, mounted: Path, runtime: str) -> Path:
        certificates = _CERTIFICATES if _CERTIFICATES.exists() else None
        parts = [VERSION, runtime, _identity(stack), _content(certificates), *self._module_identities()]
        path = self.directory / "base" / f"{runtime}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}.img"

        def make() -> None:
            root = osvimage.base(mounted, runtime, certificates)
            self._add_modules(root)
            osvimage.write_root(root, path)

        self._once(path, make)
        os.utime(path)
        return path

    def _slug(self, slug: Path, app: Path, memory: int) -> Path:
        own = _SLUG.fullmatch(slug.stem) is not None and slug.parent == self._slugs
        name = slug.stem if own else hashlib.sha256(_identity(slug).encode()).hexdigest()[:32]
        path = self.directory / "slugs" / f"{name}.rofs"

        def make() -> None:
            try:
                written = osvimage.write_plain(osvimage.slug(app), path, limit=min(memory, osvimage.LARGEST_SLUG))
            except ImageFull:
                raise _too_large("more", memory) from None
            if written.structure > memory // 4:
                path.unlink()
                raise _too_many(written.entries, written.structure, memory)

        self._once(path, make)
        size = path.stat().st_size
        if size > memory:  # it was made for a larger dyno
            raise _too_large(f"{size >> 20} MB of files, more", memory)
        structure, entries = rofs.structure_of(path)
        if structure > memory // 4 + rofs.BLOCK:
            raise _too_many(entries, structure, memory)
        return path

    def _once(self, path: Path, make: Callable[[], None]) -> None:
        """Make ``path`` unless it is there; who wants the same meanwhile waits, others do not."""
        with self._lock:
            turn = self._making.setdefault(path, _Turn())
            turn.wanted += 1
        try:
            with turn.lock:
                if not path.exists():
                    with self._makers:
                        make()
        finally:
            with self._lock:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._making[path]

    # -- OSv's own modules

    def has_module(self, name: str) -> bool:
        """Whether the user's modules bring the file ``/name``."""
        return self._modules is not None and (self._modules / name).is_file()

    def _module_identities(self) -> list[str]:
        if self._modules is None or not self._modules.is_dir():
            return []
        found = sorted(path for path in self._modules.rglob("*") if path.is_file() and not path.is_symlink())
        return [f"{path.relative_to(self._modules)}:{_identity(path)}" for path in found]

    def _add_modules(self, root: Folder) -> None:
        if self._modules is None or not self._modules.is_dir():
            return
        _merge(root, Disk(self._modules, skip=lambda path: path == "meta" or path.startswith("meta/"), file=_module), "")


def _too_large(holds: str, memory: int) -> TooLargeForMemory:
    return TooLargeForMemory(
        f"The slug holds {holds} than the dyno's {memory >> 20} MB of memory, where a unikernel keeps what it has read. Choose a"
        " larger size, or run this process type as microvm."
    )


def _too_many(entries: int, structure: int, memory: int) -> TooLargeForMemory:
    return TooLargeForMemory(
        f"The slug has {entries} files; their names alone would take {structure >> 20} MB of the dyno's {memory >> 20} MB."
        " Choose a larger size, or leave out what the app does not need (.slugignore)."
    )


def forget(home: Path, digests: Iterable[str]) -> None:
    """Remove the images of slugs that were collected.

    Args:
        home: DAVIT_HOME.
        digests: the slugs' SHA-256.
    """
    for digest in digests:
        (home / "osv" / "slugs" / f"{digest.removeprefix('sha256:')}.rofs").unlink(missing_ok=True)


def _module(path: Path, status: os.stat_result) -> File:
    """A file of the user's modules. OSv looks a symbol up in all that is loaded, and divides by zero in a glibc loader that has
    already relocated itself: so nothing may be left to look up when the app's loader begins."""
    found = rofs.on_disk(path, status)
    if ".so" not in path.name or status.st_size > _LARGEST_MODULE:
        return found
    with found.open() as file:
        content = file.read(status.st_size)
    bound = bound_at_once(content)
    return found if bound is content else rofs.data(bound)


def _merge(root: Folder, tree: Disk, way: str) -> None:
    """Lay files over the root; what is there already stays."""
    nodes: list[tuple[bytes, Node]] = list(tree.nodes())
    for name, node in nodes:
        path = f"{way}/{os.fsdecode(name)}"
        if isinstance(node, Disk):
            _merge(root, node, path)
        elif isinstance(node, File):
            with suppress(RofsFailed):
                root.add(path, node)


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _content(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else ""
