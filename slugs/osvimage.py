"""The images that a unikernel starts from: a base per runtime, the slug, and what one dyno is told.

All three are ROFS. The base is the root; its disk has a partition table, for OSv looks for its root in the second partition of
the first disk only. The slug (mounted at /app) and the configuration (at /etc/davit) are file systems without one. Nothing is
mounted or run on this host to make them, but the sealed images that they are read from.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from foundation import disk
from foundation.errors import DavitError
from slugs import osvcommand, rofs
from slugs.rofs import Disk, File, Folder, Link
from slugs.view import View

SECTOR = 512
UNWINDER = "libgcc_s.so.1"
APP, CONFIG = "/app", "/etc/davit"
SCRIPT = f"{CONFIG}/run"
ALIGNMENT = 2 << 20
"""Where the file system begins on a disk that boots by itself: the next multiple after the loader, as Capstan has it."""
COMMAND_LINE = SECTOR
"""The byte at which such a disk holds the kernel's command line, ended by NUL; the block after the boot sector is for it."""
LARGEST_SLUG = 4 << 30
"""Bytes of a slug's image at the most: its files are kept in the guest's memory when they are read."""

_SHIMS = Path(__file__).with_name("osvshims")
_MOUNTS = (("/dev", "devfs"), ("/proc", "procfs"), ("/sys", "sysfs"), ("/tmp", "ramfs"))  # noqa: S108
_FSTAB = "".join(f"none {where} {kind} defaults 0 0\n" for where, kind in _MOUNTS)
_HOSTS = "127.0.0.1 localhost\n"
_PYC = struct.Struct("<4sIII")  # PEP 552: magic, flags, and for flags 0 the source's time and size
_UNCHECKED_HASH = 1
_LARGEST_PYC = 32 << 20
_NOT_NEEDED = re.compile(
    r"(gconv|perl|perl-base|perl5|pkgconfig|cmake|tc|security|krb5|sasl2|systemd|e2fsprogs|dri|bfd-plugins)(/|$)|.*\.a$|.*\.o$"
)
_PYTHON_NOT_NEEDED = re.compile(r"(test|idlelib|lib2to3|ensurepip|turtledemo|tkinter|config-[^/]*|dist-packages)(/|$)")
_ETC = (
    "passwd",
    "group",
    "nsswitch.conf",
    "services",
    "protocols",
    "mime.types",
    "localtime",
    "timezone",
    "gai.conf",
    "host.conf",
)


class ImageFailed(DavitError):
    """An image of a unikernel cannot be made."""

    id, status = "osv_image_failed", 422


# -- trees -------------------------------------------------------------------------------------------------------------


def base(stack: Path, runtime: str, certificates: Path | None = None, omit: Collection[str] = ()) -> Folder:
    """The root file system of a runtime, of what the stack has.

    Args:
        stack: the stack's root, mounted or unpacked.
        runtime: as :attr:`slugs.osvcommand.Launch.runtime`; several with ``+`` between them.
        certificates: a file of the certificate authorities that this host trusts; the stack's own by default.
        omit: mount points that are not needed.

    Raises:
        ImageFailed: the stack has no loader, or not the runtime.
    """
    root = Folder()
    for name in ("dev", "proc", "sys", "tmp", "data", "app", "etc/davit", "run", "var/tmp"):
        if name not in omit:
            root.add(name, Folder())
    root.add("etc/fstab", rofs.text(_FSTAB))
    root.add("etc/hosts", rofs.text(_HOSTS))
    root.add("etc/mnttab", Link(b"/proc/mounts"))
    for name in _ETC:
        if node := _file_of(stack, f"etc/{name}"):
            root.add(f"etc/{name}", node)
    trusted = _plain(certificates) if certificates else _file_of(stack, "etc/ssl/certs/ca-certificates.crt")
    if trusted is not None:
        root.add("etc/ssl/certs/ca-certificates.crt", trusted)
    _add_libraries(root, stack)
    for one in runtime.split("+"):
        _add_runtime(root, stack, one)
    return root


def _add_libraries(root: Folder, stack: Path) -> None:
    libraries = stack / osvcommand.LIBRARIES.lstrip("/")
    if not libraries.is_dir() or libraries.is_symlink():
        raise ImageFailed(f"The stack has no {osvcommand.LIBRARIES}; a unikernel needs its loader and libraries.")
    view = View(stack)
    loader = view.file(osvcommand.LOADER)
    if loader is None and view.file(inner := f"{osvcommand.LIBRARIES}/{osvcommand.LOADER.rpartition('/')[2]}"):
        loader = inner
    if loader is None:
        raise ImageFailed(f"The stack has no {osvcommand.LOADER}; a unikernel needs it to start programs.")
    root.add(osvcommand.LIBRARIES, Disk(libraries, lambda path: bool(_NOT_NEEDED.match(path))))
    within = loader.startswith(f"{osvcommand.LIBRARIES}/")
    root.add(osvcommand.LOADER, Link(loader.encode()) if within else rofs.on_disk(view.host(loader)))
    root.add("lib", Link(b"/usr/lib"))
    if (libraries / UNWINDER).is_file():  # OSv's own modules open it, and OSv's loader does not look among the stack's libraries
        root.add(f"usr/lib/{UNWINDER}", Link(f"{osvcommand.LIBRARIES}/{UNWINDER}".encode()))
    if _real_directory(stack, "usr/share/zoneinfo"):
        root.add("usr/share/zoneinfo", Disk(stack / "usr/share/zoneinfo"))


def _add_runtime(root: Folder, stack: Path, runtime: str) -> None:
    if runtime == "python":
        found = [path for path in sorted((stack / "usr/lib").glob("python3.*")) if path.is_dir() and not path.is_symlink()]
        if not found:
            raise ImageFailed("The stack has no Python.")
        for library in found:
            root.add(f"usr/lib/{library.name}", Disk(library, lambda path: bool(_PYTHON_NOT_NEEDED.match(path)), file=compiled))
            if node := _file_of(stack, f"usr/bin/{library.name}"):
                root.add(f"usr/bin/{library.name}", node)
    elif runtime == "node":
        if node := _file_of(stack, "usr/bin/node"):
            root.add("usr/bin/node", node)
    elif runtime == "java" and _real_directory(stack, "usr/lib/jvm"):
        root.add("usr/lib/jvm", Disk(stack / "usr/lib/jvm"))
        for settings in sorted((stack / "etc").glob("java-*")):  # Debian's Java has its files by symlinks to here
            if _real_directory(stack, f"etc/{settings.name}"):
                root.add(f"etc/{settings.name}", Disk(settings))
        if node := _file_of(stack, "etc/ssl/certs/java/cacerts"):
            root.add("etc/ssl/certs/java/cacerts", node)


def slug(app: Path) -> Disk:
    """A slug's /app, as it is but for compiled Python: the image has no times by which Python could know that it is fresh, so
    what is fresh now is marked as such for good."""
    return Disk(app, file=compiled)


def whole(stack: Path, runtime: str, app: Path, config: Folder) -> Folder:
    """One root with everything in it, for images that are passed on: runtime, slug and configuration."""
    root = base(stack, runtime, omit=("app", "etc/davit"))
    root.add(APP, slug(app))
    root.add(CONFIG, config)
    return root


def configuration(script: bytes, files: Mapping[str, bytes] | None = None) -> Folder:
    """What one dyno is told: the runscript, Davit's modules for Python and Node.js, and further files (path → content)."""
    folder = Folder()
    folder.add("run", rofs.data(script))
    for path in sorted(_SHIMS.glob("*.py")):
        folder.add(f"python/{path.name}", rofs.data(path.read_bytes()))
    for path in sorted(_SHIMS.glob("*.cjs")):
        folder.add(f"node/{path.name}", rofs.data(path.read_bytes()))
    for name, content in (files or {}).items():
        folder.add(f"files/{name.lstrip('/')}", rofs.data(content))
    return folder


def compiled(path: Path, status: os.stat_result) -> File | None:
    """The file at ``path`` for an image without times. A compiled Python module whose source is as it was compiled gets the
    header that says "never mind the source" (PEP 552, unchecked hash); a stale one is left out, as Python would not use it."""
    if path.suffix != ".pyc" or path.parent.name != "__pycache__" or not _PYC.size <= status.st_size <= _LARGEST_PYC:
        return rofs.on_disk(path, status)
    with rofs.on_disk(path, status).open() as reader:
        magic, flags, time, size = _PYC.unpack(reader.read(_PYC.size))
    if flags != 0:
        return rofs.on_disk(path, status)
    source = path.parent.parent / f"{path.name.split('.')[0]}.py"
    try:
        written = os.lstat(source)
    except OSError:
        return None
    if not stat.S_ISREG(written.st_mode) or (int(written.st_mtime) & 0xFFFFFFFF, written.st_size & 0xFFFFFFFF) != (time, size):
        return None

    def marked() -> BinaryIO:
        with rofs.on_disk(path, status).open() as reader:
            content = reader.read(_LARGEST_PYC)
        return io.BytesIO(_PYC.pack(magic, _UNCHECKED_HASH, time, size) + content[_PYC.size :])

    return File(status.st_size, marked)


def _file_of(stack: Path, path: str) -> File | None:
    """A file of the stack, unless it is a symlink out of it."""
    place = stack / path
    return _plain(place) if place.resolve().is_relative_to(stack.resolve()) else None


def _plain(path: Path) -> File | None:
    try:
        real = path.resolve(strict=True)
        return rofs.on_disk(real) if real.is_file() else None
    except OSError:
        return None


def _real_directory(stack: Path, path: str) -> bool:
    return (stack / path).is_dir() and not (stack / path).is_symlink()


# -- files -------------------------------------------------------------------------------------------------------------


@contextmanager
def _fresh(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file that appears under its name, whole, when all went well."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(file, "r+b", buffering=1 << 18) as writer:
            yield writer
        disk.give_name(draft, path)  # it is kept for as long as its slug: an empty one would never boot
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_root(tree: Folder, path: Path) -> rofs.Written:
    """Write a base image: a disk whose second partition, right behind the table, is the file system."""
    with _fresh(path, 0o644) as disk:
        written = rofs.write(tree, disk, start=SECTOR)
        disk.seek(0)
        disk.write(partitioned(bytes(SECTOR), SECTOR, written.size))
        return written


def write_plain(tree: Folder | Disk, path: Path, *, mode: int = 0o644, limit: int = LARGEST_SLUG) -> rofs.Written:
    """Write a file system without a partition table, for ``--mount-fs``."""
    with _fresh(path, mode) as image:
        return rofs.write(tree, image, limit=limit)


def partitioned(boot_sector: bytes, start: int, size: int) -> bytes:
    """A boot sector with one more thing in it: the second entry of its partition table.

    Args:
        boot_sector: 512 bytes; what boots in it stays.
        start, size: bytes, multiples of 512.
    """
    first, count = start // SECTOR, size // SECTOR
    entry = b"\x80" + _chs(first) + b"\x83" + _chs(first + count - 1) + struct.pack("<II", first, count)
    place = 446 + 16
    return boot_sector[:place] + entry + boot_sector[place + 16 : 510] + b"\x55\xaa"


def _chs(sector: int) -> bytes:
    """Cylinder, head and sector as a partition table holds them; OSv looks only whether the last is not 0."""
    cylinder, head, place = sector // 63 // 255, sector // 63 % 255, sector % 63 + 1
    if cylinder > 1023:
        cylinder, head, place = 1023, 254, 63
    return bytes([head, place | cylinder >> 2 & 0xC0, cylinder & 0xFF])


@dataclass(frozen=True)
class Partition:
    """The second partition of a disk, in bytes."""

    start: int
    size: int


def partition_of(disk: BinaryIO) -> Partition | None:
    """What OSv would take for its root, None when there is none."""
    disk.seek(0)
    sector = disk.read(SECTOR)
    entry = sector[462:478]
    if len(sector) < SECTOR or sector[510:] != b"\x55\xaa" or entry[4] == 0 or entry[2] & 0x3F == 0:
        return None
    first, count = struct.unpack_from("<II", entry, 8)
    return Partition(first * SECTOR, count * SECTOR)


def write_bootable(loader: Path, line: bytes, tree: Folder, path: Path) -> rofs.Written:
    """Write a disk that boots by itself, in Capstan's layout: loader, command line at byte 512, file system behind.

    Args:
        loader: OSv's boot disk ``loader.img``, raw.
        line: the kernel's command line.

    Raises:
        ImageFailed: the loader is none, or the line is longer than its place.
    """
    if len(line) > 1023:
        raise ImageFailed(f"The command line has {len(line)} bytes; a disk that boots by itself holds 1023.")
    with loader.open("rb") as source, _fresh(path, 0o644) as disk:
        sector = source.read(SECTOR)
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            raise ImageFailed(f"{loader} is no boot disk: it has no boot sector. OSv's is named loader.img or osv-loader.")
        disk.write(sector)
        while piece := source.read(1 << 20):
            disk.write(piece)
        start = -(-max(disk.tell(), ALIGNMENT) // ALIGNMENT) * ALIGNMENT
        written = rofs.write(tree, disk, start=start)
        disk.seek(COMMAND_LINE)
        disk.write(line + b"\0")
        disk.seek(0)
        disk.write(partitioned(sector, start, written.size))
        return written
