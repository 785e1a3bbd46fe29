"""A writable ZFS image, made as OSv makes it: its builder kernel is booted with an empty disk, makes the file system, and
receives the files by TCP (see :mod:`slugs.cpio`).

The builder is a program of the user's that runs for a moment: its QEMU is confined as a dyno's is (:mod:`runtime.confine`). The
port on which it takes the files is one of its own empty network namespace, so that nobody else of this host can be sent them.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pyroute2 import IPRoute

from foundation.errors import DavitError
from runtime import cgroups, confine, qemu
from runtime.driver import Limits
from slugs import cpio, kernel, osvimage
from slugs.elf import read_elf
from slugs.rofs import Disk, File, Folder

QEMU = qemu.Need("ZFS images", (6, 0))
MEMORY = 512
WAITING = b"Waiting for connection from host"
LINE = (
    "--console=serial --norandom --nomount --noinit --preload-zfs-library /tools/mkfs.so; /tools/cpiod.so --prefix /zfs/;"
    " /zfs.so set compression=off osv; /tools/umount.so /zfs/zfs; /tools/umount.so /zfs; /zpool.so export osv"
)
BOOT_SECONDS, END_SECONDS = 180.0, 300.0
LEAST_SIZE = 1 << 30
"""Bytes of an image at the least; it is sparse, and what the files leave is room for the app to write."""
GROUPS = "davit-builder-"
_UIDS = 0x6F00_0000  # with the exporting process's id added: a uid that nobody else has meanwhile, above every instance's
_ENTRY = 4096  # what a file takes beside its content, at the most
_TAIL = 20_000


class BuilderFailed(DavitError):
    """The ZFS builder did not make the image."""

    id, status = "osv_builder_failed", 500


def command(program: str, disk: int) -> list[str]:
    """QEMU's command line: the kernel is /data/kernel, the disk a descriptor; nothing secret is on it, and the guest reaches
    nothing (pure). ``lo`` is down when QEMU begins to listen, so it cannot name its address."""
    return [
        program, "-M", f"pc,usb=off,{qemu.PRIVATE}", "-accel", "tcg", "-m", str(MEMORY), "-nodefaults", "-no-user-config",
        "-no-reboot", "-display", "none", "-sandbox", confine.SANDBOX, "-serial", "stdio",
        "-kernel", "/data/kernel", "-append", LINE,
        *qemu.file_disk("disk", disk, ""),
        "-device", "virtio-blk-pci,drive=disk,werror=report",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp::{cpio.PORT}-:{cpio.PORT}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


def build(builder: Path, tree: Folder | Disk, image: Path) -> int:
    """Make ``image``, a sparse file, with what is in ``tree``; returns how many entries. Nothing is left when it fails.

    Raises:
        Unsupported: QEMU is missing or too old.
        BuilderFailed: the builder is no kernel, does not come to listen, or does not end; or there is no room for the image.
        UploadFailed: the files did not arrive.
    """
    program, _ = qemu.find(QEMU)
    size = _size(tree, image.parent)
    try:
        return _made(program, builder, tree, image, size)
    except BaseException:
        image.unlink(missing_ok=True)
        raise


def _made(program: str, builder: Path, tree: Folder | Disk, image: Path, size: int) -> int:
    with tempfile.TemporaryDirectory(prefix="davit-zfs-") as place, image.open("w+b") as disk:
        shown = Path(place, "shown")
        _show(builder, shown)
        # the builder makes its file system in the second partition
        disk.write(osvimage.partitioned(bytes(osvimage.SECTOR), osvimage.SECTOR, size - osvimage.SECTOR))
        disk.truncate(size)
        disk.flush()
        return run(command(program, disk.fileno()), tree, shown, [disk.fileno()])


def _size(tree: Folder | Disk, where: Path) -> int:
    """How large the image is to be: twice what it holds, so that there is room to write."""
    content = sum(_ENTRY + (node.size if isinstance(node, File) else 0) for _, node in cpio.entries(tree))
    free = shutil.disk_usage(where).free
    if content > free:
        needed, there = (f"{number / 1e9:.1f} GB" for number in (content, free))
        raise BuilderFailed(f"The files of the image take {needed}, and the disk for it has {there} free.")
    return max(LEAST_SIZE, -(-2 * content // osvimage.ALIGNMENT) * osvimage.ALIGNMENT)


def _show(builder: Path, directory: Path) -> None:
    """Put the builder, if it is a kernel, where QEMU sees it and nothing else."""
    directory.mkdir()
    try:
        with builder.open("rb") as file:
            if read_elf(file.read(1 << 20)) is None:
                raise BuilderFailed(
                    f"{builder} is no kernel (64-bit ELF); OSv's ZFS builder is named zfs_builder-stripped.elf."
                )
        shutil.copyfile(builder, directory / "kernel")
    except OSError as error:
        raise BuilderFailed(f"The ZFS builder {builder} cannot be read: {error.strerror}.") from None
    (directory / "kernel").chmod(0o444)


def run(line: Sequence[str], tree: Folder | Disk, shown: Path, fds: Sequence[int] = ()) -> int:
    """Run a builder, confined, and send it the files; returns how many entries.

    Args:
        line: its command line.
        shown: what it finds at /data.
        fds: descriptors that it gets.
    """
    uid = _UIDS + os.getpid()
    # should this process be killed meanwhile, the builder ends with it
    ending = ["/usr/bin/setpriv", "--pdeathsig", "KILL", *line]
    with _group() as joined, tempfile.TemporaryDirectory(prefix="davit-zfs-") as root:
        argv = confine.argv(ending, root=Path(root), uid=uid, cgroups=joined, shown=shown)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=confine.ENVIRONMENT,
            pass_fds=fds,
        )
        assert process.stdout is not None
        words = _Words(process.stdout)
        try:
            return _serve(process, words, tree)
        finally:
            process.kill()
            process.wait()
            words.close()


@contextmanager
def _group() -> Iterator[list[Path]]:
    """A cgroup of its own, which is gone afterwards; so are those that killed ones left."""
    for top in cgroups.layout().directories("/"):
        for directory in top.glob(f"{GROUPS}*"):
            if not Path("/proc", directory.name.removeprefix(GROUPS)).exists():
                cgroups.remove_tree(f"/{directory.name}")
    own = f"/{GROUPS}{os.getpid()}"
    cgroups.prepare(own)
    group = cgroups.Cgroup(f"{own}/qemu")
    group.create()
    memory = MEMORY << 20
    group.update(Limits(memory=memory, memory_max=memory + qemu.OVERHEAD, pids=qemu.threads()))
    try:
        yield group.joined
    finally:
        group.kill()
        group.remove()
        cgroups.remove_tree(own)


def _serve(process: subprocess.Popen[bytes], words: _Words, tree: Folder | Disk) -> int:
    """Wait until it takes files, send them, wait until it has ended by itself."""
    if not words.heard(WAITING, BOOT_SECONDS):
        raise BuilderFailed(f"The ZFS builder did not come to take files: {words.last}")
    try:
        with _connection(process.pid) as connection:
            count = cpio.upload(tree, connection)
    except OSError as error:
        raise BuilderFailed(f"The ZFS builder takes no files: {error.strerror or error}.") from error
    try:
        status = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        raise BuilderFailed("The ZFS builder did not end after it had all files.") from None
    words.close()
    if status != 0 or re.search(rb"Aborted|\[backtrace\]|cannot ", words.said):
        raise BuilderFailed(f"The ZFS builder failed: {words.last}")
    return count


def _connection(pid: int) -> socket.socket:
    """A connection to the upload server, from inside the network namespace of the process ``pid``."""

    def inside() -> socket.socket:  # in a thread of its own, which never comes back
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(namespace, kernel.CLONE_NEWNET)
        finally:
            os.close(namespace)
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")
        return socket.create_connection(("127.0.0.1", cpio.PORT), BOOT_SECONDS)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(inside).result()


class _Words:
    """What a builder says, read all the time, for one whose words nobody takes stands still."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.said = b""
        self._stream = stream
        self._news = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while piece := os.read(self._stream.fileno(), 65536):
            with self._news:
                self.said = (self.said + piece)[-_TAIL:]
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def heard(self, words: bytes, seconds: float) -> bool:
        """Whether it comes to say ``words`` before it ends, within ``seconds``."""
        with self._news:
            self._news.wait_for(lambda: words in self.said or self._over, seconds)
            return words in self.said

    @property
    def last(self) -> str:
        """Its last line, for a sentence."""
        lines = self.said.decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def close(self) -> None:
        """Read what is left of a builder that has ended; idempotent."""
        self._reader.join()
        self._stream.close()
