"""``davit slugs:export``: an app's slug as a file for elsewhere.

``heroku`` is Heroku's slug tarball; the others are unikernels: Capstan's package, a disk that boots by itself (raw or qcow2), a
writable ZFS image. None holds config vars: they are secrets, and what is exported is passed on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import select

from foundation.errors import DavitError, InvalidParams, NotFound
from foundation.settings import Settings
from slugs import capstan, image, kernel, osvcommand, osvimage, osvline, rofs
from slugs.capstan import Package
from slugs.osvcommand import CommandRefused, Launch
from slugs.store import Store
from slugs.view import View
from state.db import snapshot
from state.models import App, Release, Slug

FORMATS = {"heroku": "tar.gz", "capstan": "mpm", "osv-image": "img", "qcow2": "qcow2", "zfs": "zfs.img"}
"""Format → what its file's name ends in."""
PORT = 8080
_SCRATCH, _LEFT_OVER_SECONDS = ".davit-export-", 60

Say = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """What is to be exported: a slug of an app, with the process types of its release."""

    app: str
    version: int
    digest: str
    stack_version: str
    process_types: Mapping[str, str]
    defaults: Mapping[str, str]


def find(app: str, version: int | None) -> Export:
    """The release ``version`` of ``app``, the current one by default.

    Raises:
        NotFound: there is no such app or release, or the release has no slug.
    """
    with snapshot() as session:
        row = session.scalar(select(App).where((App.name == app) | (App.id == app)))
        if row is None:
            raise NotFound(f"Couldn't find the app “{app}”.")
        wanted = Release.current.is_(True) if version is None else Release.version == version
        release = session.scalar(select(Release).where(Release.app_id == row.id, wanted))
        slug = session.get(Slug, release.slug_id) if release is not None and release.slug_id else None
        if release is None or slug is None or slug.digest is None:
            which = f"v{version} of {app}" if version is not None else app
            raise NotFound(f"There is no slug to export: {which} has none (any more).")
        types = dict(release.process_types)
        return Export(row.name, release.version, slug.digest, release.stack_version, types, dict(slug.default_config))


def export(
    settings: Settings,
    what: Export,
    form: str,
    target: Path,
    *,
    stack: Path | None = None,
    process: str = "web",
    loader: Path | None = None,
    builder: Path | None = None,
    say: Say,
) -> None:
    """Write ``target``; it is there, whole, when this returns, and not there otherwise.

    Args:
        form: a key of :data:`FORMATS`.
        stack: the sealed stack that a unikernel's runtime is taken from; the release's by default.
        process: the process type that a unikernel's image starts.
        loader: OSv's boot disk, for ``osv-image`` and ``qcow2``.
        builder: OSv's ZFS builder kernel, for ``zfs``.
        say: told what is done otherwise than on Heroku.

    Raises:
        DavitError: the sentence says what is missing.
    """
    store = Store(settings.home / "slugs")
    with _whole(target) as draft:
        if form == "heroku":
            with draft.open("wb") as stream:
                store.export_tarball(what.digest, stream)
            return
        with _opened(stack or _stack(settings, what), store.path(what.digest)) as view:
            if form == "capstan":
                with draft.open("wb") as stream:
                    _capstan(what, view, stream, say)
            elif form == "zfs":
                _zfs(what, view, draft, process, builder, say)
            else:
                _bootable(what, view, draft, process, loader, form, say)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    try:
        with scratch(target.parent) as place:
            draft = place / "draft"
            draft.touch(mode=0o644, exist_ok=False)
            yield draft
            draft.replace(target)
    except OSError as error:
        raise DavitError(f"{target} cannot be written: {error.strerror}.") from error


def _stack(settings: Settings, what: Export) -> Path:
    from runtime.library import Library

    return Library(settings).run_image(what.stack_version)


@contextmanager
def _opened(stack: Path, slug: Path) -> Iterator[View]:
    """Stack and slug mounted, in a mount namespace of this process alone."""
    if os.geteuid() != 0:
        raise DavitError("Unikernels are made of the stack's files, which only root can mount: use sudo.")
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    with scratch(Path(tempfile.gettempdir())) as place:
        stack_at, slug_at = place / "stack", place / "slug"
        for point, sealed in ((stack_at, stack), (slug_at, slug)):
            point.mkdir()
            image.mount(sealed, point)
        try:
            yield View(stack_at, slug_at / "app")
        finally:
            image.unmount(slug_at)
            image.unmount(stack_at)


def _environment(what: Export) -> dict[str, str]:
    return {"PATH": osvcommand.SYSTEM_PATH, **what.defaults, "PORT": str(PORT), "HOME": "/app"}


def _launch(what: Export, view: View, process: str, say: Say) -> Launch:
    line = what.process_types.get(process)
    if line is None:
        known = ", ".join(what.process_types) or "none"
        raise InvalidParams(f"{what.app} has no process type “{process}”; it has {known}.")
    launch = osvcommand.translate(line, _environment(what), view)
    for note in launch.notes:
        say(f"{process}: {note}")
    return launch


def _tree(view: View, runtime: str, config: rofs.Folder) -> rofs.Folder:
    """The whole root: runtime, slug, Davit's modules."""
    assert view.app is not None
    return osvimage.whole(view.stack, runtime, view.app, config)


def _capstan(what: Export, view: View, stream: BinaryIO, say: Say) -> None:
    launches: dict[str, Launch] = {}
    for process in sorted(what.process_types, key=lambda name: (name != "web", name)):
        try:
            found = capstan.from_anywhere(_launch(what, view, process, say), lambda path: view.file(path) is not None)
            launches[process] = found
        except CommandRefused as refused:
            say(f"{process} is left out: {refused.message}")
    if not launches:
        raise CommandRefused(f"No process type of {what.app} can run in a unikernel.")
    runtime = _of_all(launches)
    name = f"davit.{what.app}"
    defaults = {variable: value for variable, value in what.defaults.items() if capstan.can_hold(value)}
    for variable in sorted(what.defaults.keys() - defaults.keys()):
        say(f"{variable} is left out: it has {capstan.CANNOT_HOLD}.")
    for process in [name for name, launch in launches.items() if capstan.needs_its_directory(launch)]:
        say(f"{process} starts in /, not in /app, unless Capstan is told: --run '--cwd=/app runscript /run/{process}'.")
    package = Package(name, f"{what.app} v{what.version}", "Davit", str(what.version), launches, defaults)
    capstan.write_package(package, _tree(view, runtime, osvimage.configuration(b"")), stream, PORT)


def _of_all(launches: Mapping[str, Launch]) -> str:
    """The runtimes that one root must have to serve all of them."""
    return "+".join(sorted({launch.runtime for launch in launches.values()} - {"native"})) or "native"


def _boot(what: Export, launch: Launch) -> osvline.Boot:
    options = [osvline.option(name, value) for name, value in (("rootfs", "rofs"), ("power-off-on-abort", None), ("cwd", "/app"))]
    environment = {**what.defaults, "PORT": str(PORT), "HOME": "/app", **launch.environment}
    return osvline.compose(options, environment, launch.argv, script=osvimage.SCRIPT, limit=osvline.LONGEST_ON_DISK)


def _bootable(what: Export, view: View, target: Path, process: str, loader: Path | None, form: str, say: Say) -> None:
    """``target`` is in a directory of this process's own."""
    if loader is None:
        raise InvalidParams(
            "A disk that boots by itself needs OSv's boot disk: --loader PATH (loader.img, or osv-loader from OSv's releases)."
        )
    if form == "qcow2" and shutil.which("qemu-img") is None:
        raise DavitError("qcow2 images are made by qemu-img, which is not installed: apt-get install qemu-utils.")
    launch = _launch(what, view, process, say)
    boot = _boot(what, launch)
    tree = _tree(view, launch.runtime, osvimage.configuration(boot.script))
    raw = _raw(loader, target.with_name("loader"))
    disk = target.with_name("disk") if form == "qcow2" else target
    osvimage.write_bootable(raw, boot.line, tree, disk)
    if form == "qcow2":
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", str(disk), str(target))


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """A directory of this process's own in ``directory``, locked for as long as it is at work: what killed exports left there,
    files as large as the slug, is removed by the next."""
    for left in directory.glob(f"{_SCRATCH}????????"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _LEFT_OVER_SECONDS:
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=directory) as place, _locked(Path(place)):
        yield Path(place)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold it, or raise BlockingIOError when somebody else does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _raw(loader: Path, scratch: Path) -> Path:
    """The boot disk as raw bytes: upstream publishes it as qcow2."""
    try:
        with loader.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InvalidParams(f"The boot disk {loader} cannot be read: {error.strerror}.") from None
    if magic == b"\x7fELF":
        raise InvalidParams(
            f"{loader} is a kernel, not a boot disk: --loader wants loader.img, or osv-loader from OSv's releases."
        )
    if magic != b"QFI\xfb":
        return loader
    _qemu_img("convert", "-f", "qcow2", "-O", "raw", str(loader), str(scratch))
    return scratch


def _qemu_img(*words: str) -> None:
    if shutil.which("qemu-img") is None:
        raise DavitError("The boot disk is a qcow2 image, which qemu-img has to unpack: apt-get install qemu-utils.")
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DavitError(f"qemu-img failed: {done.stderr.strip()[-300:]}")


def _zfs(what: Export, view: View, target: Path, process: str, builder: Path | None, say: Say) -> None:
    from runtime.osv import zfs

    if builder is None:
        raise InvalidParams("A ZFS image is made by OSv itself: --builder PATH (zfs_builder-stripped.elf, or osv-zfs-builder).")
    launch = _launch(what, view, process, say)
    boot = _boot(what, launch)
    tree = _tree(view, launch.runtime, osvimage.configuration(boot.script))
    zfs.build(builder, tree, target)
    line = boot.line.decode().replace("rootfs=rofs", "rootfs=zfs")
    say(f"Boot it with a kernel that knows ZFS, as the builder itself does, and this command line: {line}")
