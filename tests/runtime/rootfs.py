"""A small root file system for the drivers' tests, made of this host's own programs: no download, ready in a second."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from slugs import image

PROGRAMS = (
    "bash",
    "cat",
    "env",
    "head",
    "id",
    "ls",
    "sleep",
    "stty",
    "kill",
    "grep",
    "mkdir",
    "rm",
    "df",
    "touch",
    "true",
    "false",
)
_EMPTY = ("app", "cache", "davit", "dev", "proc", "sys", "run", "etc/ssl/certs", "var/tmp", "root")
_FILES = ("usr/sbin/davit-init", "etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/ssl/certs/ca-certificates.crt")


def build(directory: Path) -> Path:
    """Make the image below ``directory`` and return its path."""
    tree = directory / "stack"
    for name in ("usr/bin", "usr/sbin", "usr/lib", *_EMPTY):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "sbin", "lib"):
        (tree / link).symlink_to(f"usr/{link}")
    for name in _FILES:
        (tree / name).touch()
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\ndyno:x:1000:1000::/app:/bin/bash\n")
    (tree / "etc/group").write_text("root:x:0:\ndyno:x:1000:\n")
    os.chown(tree / "app", 1000, 1000)
    for program in PROGRAMS:
        _install(tree, Path(shutil.which(program) or f"/bin/{program}"))
    (tree / "usr/bin/sh").symlink_to("bash")
    _python(tree)
    target = directory / "stack.img"
    _seal(tree, target)
    shutil.rmtree(tree)
    return target


def app_image(directory: Path, files: dict[str, str]) -> Path:
    """A slug image with ``files`` below app/."""
    tree = directory / "slug"
    for name, text in files.items():
        path = tree / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in (tree / "app", *(tree / "app").rglob("*")):
        os.chown(path, 1000, 1000)
    target = directory / "slug.img"
    _seal(tree, target)
    shutil.rmtree(tree)
    return target


def _seal(tree: Path, target: Path) -> None:
    if image.preferred_format() == "erofs":
        argv = ["mkfs.erofs", "-d0", str(target), str(tree)]
    else:
        argv = ["mksquashfs", str(tree), str(target), "-quiet", "-no-progress", "-noappend", "-comp", "lz4"]
    subprocess.run(argv, check=True, capture_output=True)


def _install(tree: Path, program: Path) -> None:
    target = tree / "usr/bin" / program.name
    shutil.copy(program, target)
    _libraries(tree, target)


def _libraries(tree: Path, program: Path) -> None:
    listing = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    for found in re.findall(r"(/\S+)", listing):
        library = tree / found.lstrip("/")
        library.parent.mkdir(parents=True, exist_ok=True)
        if not library.exists():
            shutil.copy(found, library)


def _python(tree: Path) -> None:
    system = Path("/usr/bin/python3").resolve()
    _install(tree, system)
    if system.name != "python3":
        (tree / "usr/bin/python3").symlink_to(system.name)
    version = system.name.removeprefix("python") or sysconfig.get_python_version()
    skipped = shutil.ignore_patterns(
        "test", "idlelib", "lib2to3", "dist-packages", "site-packages", "config-*", "ensurepip", "*.a"
    )
    library = tree / f"usr/lib/python{version}"
    shutil.copytree(f"/usr/lib/python{version}", library, ignore=skipped, ignore_dangling_symlinks=True)
    for module in library.glob("lib-dynload/_ctypes.*"):
        _libraries(tree, module)
