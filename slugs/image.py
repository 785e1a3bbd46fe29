"""The slug format: a directory tree, sealed into one read-only file that the kernel mounts without unpacking it.

erofs where the kernel mounts it with mapped owners (5.19 and newer), squashfs elsewhere; which of the two an image is
stands in the image itself, so both always work where the kernel knows them. Sealing is deterministic: the same tree
(names, contents, modes, modification times) gives the same bytes. Modification times are kept, because compiled Python
and incremental builds compare them. Extended attributes are not: overlayfs would obey some of them.
"""

from __future__ import annotations

import json
import logging
import marshal
import os
import re
import stat
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from shutil import which

from foundation.errors import DavitError, DiskFull, is_full
from foundation.programs import ProgramFailed, run
from slugs import kernel, mounting
from slugs.mounting import format_of
from slugs.sealer import TREE_TOO_LARGE

__all__ = [
    "FORMATS",
    "LARGEST",
    "LARGEST_TREE",
    "SealFailed",
    "SlugTooLarge",
    "choose_formats",
    "format_of",
    "mount",
    "preferred_format",
    "seal",
    "seal_command",
    "seal_system",
    "too_large",
    "unmount",
    "usable_formats",
]

log = logging.getLogger("slugs")

FORMATS = ("erofs", "squashfs")
LARGEST = 1 << 30
"""Bytes of a slug image at the most."""
LARGEST_TREE = 16 << 30
"""Bytes that the files in a slug may claim to hold: a sparse file of a terabyte takes no disk space, but time to read."""
OWNER = 1000
"""uid and gid of everything in a slug: the dyno's user."""
SECONDS = 300
"""How long sealing may take."""
TOPS = frozenset({"app", "cache"})

# Any fixed value: the same for all images, so that it says nothing and changes nothing.
_UUID = "da717000-0000-4000-8000-000000000000"
# mkfs.erofs keeps a file's time unless it is later than this (2100-01-01), and stamps the image with it.
_EPOCH = "4102444800"
_NO_ROOM = re.compile(r"No space left|Disk quota exceeded")
_PROBED = Path("/run/davit/image-formats.json")


class NotMounted(DavitError):
    """An image cannot be mounted: the kernel refuses, or it is none. ``image`` is its file."""

    def __init__(self, image: Path, reason: str) -> None:
        super().__init__(f"The image {image} could not be mounted: {reason}.")
        self.image = image


class SealFailed(DavitError):
    """A tree could not be sealed into an image."""

    id, status = "slug_not_sealed", 422


class SlugTooLarge(SealFailed):
    """The image would be larger than a slug may be."""

    id, status = "slug_too_large", 422


def seal(tree: Path, image: Path, *, user: int | None = None, form: str | None = None, limit: int = LARGEST) -> None:
    """Seal a directory tree into a slug or build-cache image.

    The tree is hostile: it is read by a process of its own without privileges and network, to which the rest of the
    host's file system is not there. Everything in the image belongs to uid and gid 1000; devices, FIFOs and sockets stay
    in it as the inert names that a mount without devices makes of them; symlinks stay what they are.

    Args:
        tree: the directory; its top holds ``app`` or ``cache``, a real directory, and nothing else. ``/proc/self/fd/N``
            names a directory that is already open, so that nothing on the way to it can be a trap.
        image: where to write; replaced when it is there. It is whole only when this returns.
        user: the uid to read the tree as; files of that user which it may not read are made readable to it.
        form: "erofs" or "squashfs"; by default the preferred one, and where its program cannot cope with the tree
            (mkfs.erofs 1.5 refuses names of 255 bytes) the other, if this host works with both alike.
        limit: bytes of the image at the most.

    Raises:
        SealFailed: the tree cannot be sealed. SlugTooLarge: it is more than ``limit``. The image file is removed.
    """
    directory = _open_tree(tree)
    try:
        _check_top(directory)
        *first, last = (form,) if form else usable_formats()
        for attempt in first:
            try:
                return _seal(directory, image, owner=OWNER, user=user, form=attempt, limit=limit)
            except SlugTooLarge:
                raise
            except SealFailed as failed:
                log.warning("a tree could not be sealed as %s: %s", attempt, failed.message)
        _seal(directory, image, owner=OWNER, user=user, form=last, limit=limit)
    finally:
        os.close(directory)


def seal_system(tree: Path, image: Path, *, form: str | None = None) -> None:
    """Seal a root file system (a stack): owners stay as they are.

    Raises:
        SealFailed: it cannot be sealed.
    """
    directory = _open_tree(tree)
    try:
        _seal(directory, image, owner=None, user=None, form=form or preferred_format(), limit=16 << 30)
    finally:
        os.close(directory)


def mount(image: Path, target: Path) -> None:
    """Mount a sealed image read-only at ``target`` in the current mount namespace.

    See :func:`slugs.mounting.mount`: mount an image once and clone that mount, for every mount has its own page cache.

    Raises:
        NotMounted: the kernel refused, or the file is no image.
    """
    try:
        mounting.mount(image, target)
    except OSError as refused:
        raise NotMounted(image, refused.strerror or str(refused)) from refused


def unmount(target: Path) -> None:
    """Take away what :func:`mount` made; no error when nothing is mounted there. What still has files open keeps them."""
    with suppress(OSError):
        kernel.umount(target, kernel.MNT_DETACH)


def preferred_format() -> str:
    """ "erofs" where the host mounts it (with mapped owners, when it maps any), else "squashfs"."""
    return usable_formats()[0]


@lru_cache(maxsize=1)
def usable_formats() -> tuple[str, ...]:
    """The formats that serve on this host, the best first.

    Tried by really mounting tiny images, once per boot; a process that may not mount goes by what the runtime found.
    """
    found = _remembered()
    if found is None and os.geteuid() == 0:
        found = _probe()
        if len(found) == len(FORMATS) and all(works["mounts"] for works in found.values()):  # else more may be installed later
            _remember(found)
    return choose_formats(found) if found else ("squashfs",)


def choose_formats(found: dict[str, dict[str, bool]]) -> tuple[str, ...]:
    """Of the formats that :mod:`slugs.probe` saw work those that serve, the best first: mapped owners count most, and
    erofs (which reads two to four times faster) comes before squashfs.

    Raises:
        DavitError: none works.
    """
    for wish in ("idmaps", "mounts"):
        if serving := tuple(name for name in FORMATS if found.get(name, {}).get(wish)):
            return serving
    raise DavitError(
        "This host mounts neither erofs nor squashfs images. Slugs need one of them: install erofs-utils or squashfs-tools,"
        " and use a kernel that has the erofs or squashfs module and loop devices."
    )


def seal_command(form: str, program: str, owner: int | None, erofs_options: Sequence[str] = ()) -> list[str]:
    """The argv that seals ``{tree}`` into ``{image}``.

    Args:
        form: "erofs" or "squashfs".
        program: path of mkfs.erofs or mksquashfs.
        owner: uid and gid of everything; None keeps the owners.
        erofs_options: what this version of mkfs.erofs knows besides (see :func:`_erofs_extras`).
    """
    if form == "erofs":
        owners = [f"--force-uid={owner}", f"--force-gid={owner}"] if owner is not None else []
        return [program, "-d1", "-zlz4", "-x-1", f"-U{_UUID}", *owners, *erofs_options, "{image}", "{tree}"]
    owners = ["-force-uid", str(owner), "-force-gid", str(owner)] if owner is not None else []
    options = ["-noappend", "-quiet", "-no-progress", "-no-xattrs", "-no-exports", "-exit-on-error", "-mkfs-time", "0"]
    power = ["-comp", "zstd", "-Xcompression-level", "1", "-processors", str(os.cpu_count() or 1), "-mem", "512M"]
    return [program, "{tree}", "{image}", *options, *power, *owners]


def too_large(limit: int) -> str:
    """The sentence for a slug image of more than ``limit`` bytes."""
    return (
        f"The slug is larger than {limit >> 20} MB compressed, the most that a slug may be. Leave out what the app does not"
        " need when it runs: list it in .slugignore, or keep large files in object storage."
    )


def _seal(directory: int, image: Path, *, owner: int | None, user: int | None, form: str, limit: int) -> None:
    program = _program(form)
    command = seal_command(form, program, owner, _erofs_extras(program) if form == "erofs" else ())
    file = _create(image, user)
    order: dict[str, object] = {
        "tree": directory,
        "image": file,
        "uid": user,
        "confine": os.geteuid() == 0,
        "open_up": False,
        "limit": limit,
        "tree_limit": LARGEST_TREE,
        "seconds": SECONDS,
        "command": command,
        "env": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **({"SOURCE_DATE_EPOCH": _EPOCH} if form == "erofs" else {})},
    }
    try:
        try:
            _order(order)
        except ProgramFailed as failed:
            _explain_size(failed, file, limit)
            _order({**order, "open_up": True})  # most often: something in it that its owner may not read
        if form != (format_of(image) or ""):
            raise SealFailed(f"Sealing gave no {form} image.")
        os.fchown(file, os.geteuid(), os.getegid())
        os.fchmod(file, 0o444)
    except ProgramFailed as failed:
        full = is_full(image.parent) or _NO_ROOM.search(failed.stderr) is not None
        image.unlink(missing_ok=True)
        _explain_size(failed, file, limit)
        if full:
            raise DiskFull("the slug could not be stored") from failed
        raise SealFailed(f"The files could not be sealed into a slug: {_last_words(failed)}") from failed
    except BaseException:
        image.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def _order(order: dict[str, object]) -> None:
    sealer = Path(__file__).with_name("sealer.py")
    fds = (int(str(order["tree"])), int(str(order["image"])))
    run([sys.executable, "-I", "-S", sealer, marshal.dumps(order).hex()], timeout=SECONDS + 30, pass_fds=fds)


def _explain_size(failed: ProgramFailed, file: int, limit: int) -> None:
    # RLIMIT_FSIZE ends mkfs by SIGXFSZ (-25), or by an error that it words itself once the file cannot grow.
    if failed.returncode == -25 or os.fstat(file).st_size >= limit:
        raise SlugTooLarge(too_large(limit)) from failed
    if failed.returncode == TREE_TOO_LARGE:
        raise SlugTooLarge(
            f"The files of the slug claim to hold more than {LARGEST_TREE >> 30} GB, the most that a slug may hold uncompressed."
        ) from failed


def _last_words(failed: ProgramFailed) -> str:
    words = failed.stderr.strip().splitlines()
    return (words[-1] if words else failed.message)[:500]


def _open_tree(tree: Path) -> int:
    follow = 0 if tree.parent == Path("/proc/self/fd") else os.O_NOFOLLOW
    try:
        return os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow)
    except OSError as refused:
        raise SealFailed(f"There is no directory to seal at {tree}: {refused.strerror}.") from refused


def _check_top(directory: int) -> None:
    # Layers are merged by name: anything else at the top would cover a part of the stack.
    names = os.listdir(directory)
    status = os.stat(names[0], dir_fd=directory, follow_symlinks=False) if len(names) == 1 else None
    if status is None or names[0] not in TOPS or not stat.S_ISDIR(status.st_mode):
        raise SealFailed("A slug's tree must hold the directory app (or cache, for a build cache) and nothing beside it.")


def _create(image: Path, user: int | None) -> int:
    image.unlink(missing_ok=True)
    file = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if user is not None and os.geteuid() == 0:
        os.fchown(file, user, user)
    return file


def _program(form: str) -> str:
    name, package = {"erofs": ("mkfs.erofs", "erofs-utils"), "squashfs": ("mksquashfs", "squashfs-tools")}[form]
    # /usr, because that is what the sealing process sees; sbin is in no user's PATH.
    found = which(name, path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
    if found is None:
        raise DavitError(f"The program {name} is not installed: apt-get install {package}.")
    return found


@lru_cache(maxsize=4)
def _erofs_extras(program: str) -> tuple[str, ...]:
    told = run([program, "-V"], check=False)  # 1.5 does not know -V either, but says its name and version first
    return erofs_extras((told.stdout + told.stderr).decode(errors="replace"))


def erofs_extras(told: str) -> tuple[str, ...]:
    """The options that a mkfs.erofs knows beyond those of 1.4, by what it tells about itself (Debian 12: 1.5, 13: 1.8)."""
    version = re.search(r"mkfs\.erofs\D*(\d+)\.(\d+)", told)
    newer = version is not None and (int(version[1]), int(version[2])) >= (1, 5)
    # Packs the ends of files beside their inodes: a fifth smaller, no slower (kernel 5.17; erofs is preferred from 5.19).
    return ("-Eztailpacking",) if newer else ()


def _remembered() -> dict[str, dict[str, bool]] | None:
    try:
        kept = json.loads(_PROBED.read_text())
        return dict(kept["found"]) if kept["boot"] == _boot() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(found: dict[str, dict[str, bool]]) -> None:
    with suppress(OSError):
        _PROBED.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = _PROBED.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"boot": _boot(), "found": found}))
        draft.replace(_PROBED)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _probe() -> dict[str, dict[str, bool]]:
    with tempfile.TemporaryDirectory(prefix="davit-probe-") as name:
        folder = Path(name)
        (folder / "tree" / "app").mkdir(parents=True)
        (folder / "tree" / "app" / "file").write_bytes(bytes(10_000))  # compresses, so that the kernel must know how
        images: dict[str, str] = {}
        for form in FORMATS:
            with suppress(DavitError):
                seal(folder / "tree", folder / form, form=form)
                images[form] = str(folder / form)
        done = run([sys.executable, "-I", "-S", Path(__file__).with_name("probe.py"), json.dumps({"images": images})])
    return {form: dict(works) for form, works in json.loads(done.stdout).items()}
