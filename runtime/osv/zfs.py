"""A writable ZFS image, made as OSv makes it: its builder kernel is booted with an empty disk, makes the file system, and
receives the files by TCP (see :mod:`slugs.cpio`)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from foundation.errors import DavitError
from runtime import confine
from slugs import cpio, osvimage
from slugs.elf import read_elf
from slugs.rofs import Disk, Folder

QEMU = "qemu-system-x86_64"
MEMORY = 512
WAITING = b"Waiting for connection from host"
LINE = (
    "--console=serial --norandom --nomount --noinit --preload-zfs-library /tools/mkfs.so; /tools/cpiod.so --prefix /zfs/;"
    " /zfs.so set compression=off osv; /tools/umount.so /zfs/zfs; /tools/umount.so /zfs; /zpool.so export osv"
)
BOOT_SECONDS, END_SECONDS = 180.0, 300.0
_NOBODY = 65534


class BuilderFailed(DavitError):
    """The ZFS builder did not make the image."""

    id, status = "osv_builder_failed", 500


def command(qemu: str, builder: Path, disk: Path, port: int) -> list[str]:
    """QEMU's command line: nothing secret is on it, and the guest reaches nothing (pure)."""
    forward = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{cpio.PORT}"
    return [
        qemu, "-M", "pc,usb=off", "-accel", "tcg", "-m", str(MEMORY), "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none",
        "-sandbox", confine.SANDBOX, "-serial", "stdio", "-kernel", str(builder), "-append", LINE,
        "-drive", f"file={disk},if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk",
        "-netdev", forward, "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


def build(builder: Path, tree: Folder | Disk, image: Path, size: int) -> int:
    """Make ``image``, a sparse file of ``size`` bytes, with what is in ``tree``; returns how many entries.

    Raises:
        BuilderFailed: the builder is no kernel, does not come to listen, or does not end.
        UploadFailed: the files did not arrive.
    """
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise BuilderFailed("A ZFS image is made in QEMU, which is not installed: apt-get install qemu-system-x86.")
    try:
        start = builder.open("rb").read(1 << 20)
    except OSError as error:
        raise BuilderFailed(f"The ZFS builder {builder} cannot be read: {error.strerror}.") from None
    if read_elf(start) is None:
        raise BuilderFailed(f"{builder} is no kernel (64-bit ELF); OSv's ZFS builder is named zfs_builder-stripped.elf.")
    with tempfile.TemporaryDirectory(prefix="davit-zfs-") as place:
        directory = Path(place)
        disk, kernel = directory / "disk", directory / "kernel"
        shutil.copyfile(builder, kernel)
        with disk.open("wb") as file:  # the builder makes its file system in the second partition
            file.write(osvimage.partitioned(bytes(osvimage.SECTOR), osvimage.SECTOR, size - osvimage.SECTOR))
            file.truncate(size)
        for path in (directory, disk, kernel):
            os.chown(path, _NOBODY, _NOBODY)
        count = _run(command(qemu, kernel, disk, port := _free_port()), tree, port)
        subprocess.run(["cp", "--sparse=always", disk, image], check=True)
        return count


def _run(argv: list[str], tree: Folder | Disk, port: int) -> int:
    unprivileged = [
        "setpriv",
        f"--reuid={_NOBODY}",
        f"--regid={_NOBODY}",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    ]
    process = subprocess.Popen([*unprivileged, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = b""
    try:
        os.set_blocking(process.stdout.fileno(), False)
        said = _until_it_waits(process)
        count = cpio.upload(tree, "127.0.0.1", port)
        end = time.monotonic() + END_SECONDS
        while process.poll() is None:
            if time.monotonic() > end:
                raise BuilderFailed("The ZFS builder did not end after it had all files.")
            said = (said + (process.stdout.read() or b""))[-4000:]
            time.sleep(0.05)
        if process.returncode != 0 or re.search(rb"Aborted|\[backtrace\]|cannot ", said):
            raise BuilderFailed(f"The ZFS builder failed: {_last(said)}")
        return count
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _until_it_waits(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    said = b""
    end = time.monotonic() + BOOT_SECONDS
    while WAITING not in said:
        if process.poll() is not None or time.monotonic() > end:
            with contextlib.suppress(OSError):
                said += process.stdout.read() or b""
            raise BuilderFailed(f"The ZFS builder did not come to take files: {_last(said)}")
        said = (said + (process.stdout.read() or b""))[-20_000:]
        time.sleep(0.05)
    return said


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
