"""The kernel of microVMs and the file system it starts in: where they are, and whether they are whole.

A version is a directory ``STACKS/microvm-kernel/VERSION/`` with ``vmlinux``, ``initramfs`` and ``kernel.json``, beside the
stacks but independent of them; ``current`` is a symlink to the newest. :mod:`runtime.microvm.kernel_builder` makes them.

As a program: ``python -m runtime.microvm.kernel build|list [--root DIR]``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import DavitError
from foundation.programs import ProgramFailed, run
from foundation.settings import settings
from runtime.stacks import Progress, collect_from, digest_of, locked

NAME = "microvm-kernel"
_PARTS = ("vmlinux", "initramfs")


class KernelMissing(DavitError):
    """The kernel for microVMs is missing, broken, or could not be made."""

    id, status = "vm_kernel_unavailable", 503


@dataclass(frozen=True)
class Kernel:
    """One version.

    Attributes:
        version: Debian's version and what Davit put beside it.
        directory: holds ``vmlinux`` and ``initramfs``.
    """

    version: str
    directory: Path

    @property
    def description(self) -> dict[str, Any]:
        """What kernel.json says: ``package``, ``recipe``, and by part ``files`` (``size``, ``digest``)."""
        return dict(json.loads((self.directory / "kernel.json").read_text()))


def current(root: Path) -> Kernel:
    """The newest version.

    Args:
        root: where stacks are kept (DAVIT_STACKS).

    Raises:
        KernelMissing: there is none, or it is damaged.
    """
    try:
        version = (root / NAME / "current").readlink().name
    except OSError:
        raise KernelMissing(
            "This host has no kernel for microVMs yet: run `davit stack:build --vm` as root; it takes a minute."
        ) from None
    return find(root, version)


def find(root: Path, version: str) -> Kernel:
    """A given version, each byte of it compared with what was made.

    Raises:
        KernelMissing: it is not here, is damaged, or is no kernel.
    """
    kernel = Kernel(version, root / NAME / Path(version).name)
    try:
        files = kernel.description["files"]
        whole = all(_whole(kernel.directory / part, files[part]) for part in _PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise KernelMissing(
            f"The kernel {version} for microVMs is damaged or no kernel: run `davit stack:build --vm` as root to make it anew."
        )
    return kernel


def _whole(path: Path, described: dict[str, Any]) -> bool:
    return bool(path.stat().st_size == described["size"]) and bool(digest_of(path) == described["digest"])


def outdated(kernel: Kernel) -> bool:
    """Whether this version of Davit would make it otherwise (another guest agent, other modules)."""
    from runtime.microvm.kernel_builder import recipe

    return kernel.description.get("recipe") != recipe()


def build(root: Path, mirror: str | None = None, progress: Progress = print) -> Kernel:
    """Make a new version and let it be the current one. Needs root, and the stack (its compiler builds the guest agent).

    Raises:
        KernelMissing: it could not be made; the sentence says why. The current version stays what it was.
    """
    from runtime.microvm.kernel_builder import KernelBuilder

    folder = root / NAME
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, lambda: progress("Another process makes the kernel for microVMs; waiting for it.")) as (_, waited):
        if waited and (found := _usable(root)) is not None:
            return found
        KernelBuilder(root, folder, mirror, progress).build()
    return current(root)


def collect(root: Path, in_use: Callable[[], set[str]], steady_seconds: float = 0) -> list[str]:
    """Remove old versions; none while somebody makes one.

    Args:
        in_use: the versions from which machines are started, or were, when it is called; the current one is always kept.
        steady_seconds: for how long the current version has to have been it.

    Returns:
        the versions that were removed.
    """
    folder = root / NAME

    def there() -> list[str]:
        return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir() and not path.is_symlink())

    return collect_from(folder, there, in_use, steady_seconds)


def ensure(root: Path, mirror: str | None = None, progress: Progress = print) -> Kernel:
    """The current version when this Davit would make it so; otherwise one that was so made before, or is made now."""
    return _usable(root) or _again(root) or build(root, mirror, progress)


def install_qemu(progress: Progress = print) -> None:
    """Install QEMU by the host's apt when it is not there.

    Raises:
        KernelMissing: apt cannot.
    """
    if shutil.which("qemu-system-x86_64") is not None:
        return
    progress("Installing QEMU (qemu-system-x86).")
    options = ["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", "--no-install-recommends"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    try:
        run(["apt-get", "-q", "-y", *options, "install", "qemu-system-x86"], timeout=1800, env=environment)
    except ProgramFailed as failed:
        raise KernelMissing(f"QEMU could not be installed: {failed.message} Try: apt-get install qemu-system-x86.") from None


def _usable(root: Path) -> Kernel | None:
    try:
        kernel = current(root)
    except KernelMissing:
        return None
    return None if outdated(kernel) else kernel


def _again(root: Path) -> Kernel | None:
    """Make a version that this Davit (of several checkouts on this host, or after going back) has made before the current one."""
    from runtime.microvm.kernel_builder import point_to, recipe

    folder = root / NAME
    made = sorted(folder.glob(f"*-{recipe()}/kernel.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for description in made:
        with suppress(KernelMissing), locked(folder, lambda: None):
            kernel = find(root, description.parent.name)
            point_to(kernel.directory)
            return kernel
    return None


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime.microvm.kernel", description="Makes the kernel of microVMs.")
    parser.add_argument("action", choices=("build", "ensure"))
    parser.add_argument("--root", type=Path, default=None, help="where stacks are kept (DAVIT_STACKS)")
    chosen = parser.parse_args(arguments)
    make = build if chosen.action == "build" else ensure
    try:
        kernel = make((chosen.root or settings().stacks).absolute(), settings().mirror, lambda line: print(line, flush=True))
    except DavitError as failed:
        print(failed.message, file=sys.stderr)
        return 1
    print(f"The kernel {kernel.version} for microVMs is there.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
