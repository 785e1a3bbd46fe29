"""The user's OSv kernel: is it one, and does it boot here? Davit brings none; upstream publishes them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from foundation import disk
from foundation.errors import DavitError
from runtime import acceleration, children, confine, qmp
from runtime.acceleration import Acceleration
from runtime.children import Process
from runtime.osv import machine
from runtime.osv.console import Console
from runtime.qmp import Monitor
from slugs import osvimage, rofs
from slugs.elf import X86_64, read_elf

WHERE = (
    "The OSv project publishes kernels with its releases (github.com/cloudius-systems/osv, Releases):"
    " take loader-stripped.elf (or loader.elf) and set DAVIT_OSV_KERNEL to its path"
)
KVM_SECONDS, TCG_SECONDS = 8.0, 60.0
"""From QEMU's start to the kernel's first words, with and without acceleration, on a busy host."""
REMEMBERED = Path("/run/davit/acceleration-osv.json")
_LARGEST = 512 << 20
_NOBODY = 0x6FFF_FFFD


class KernelUnusable(DavitError):
    """There is no OSv kernel, or it is none."""

    id, status = "osv_kernel_unusable", 422


@dataclass(frozen=True)
class Kernel:
    """A kernel that was looked at.

    Attributes:
        directory: holds it as ``kernel`` and nothing else: what QEMU gets to see.
        digest: its SHA-256 in hexadecimal digits.
    """

    directory: Path
    digest: str


def check(path: Path | None) -> bytes:
    """The kernel's content.

    Raises:
        KernelUnusable: none is given, it cannot be read, or it is something else; the sentence says what.
    """
    if path is None:
        raise KernelUnusable(f"OSv needs a kernel, and DAVIT_OSV_KERNEL is not set. {WHERE}.")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise KernelUnusable(f"The OSv kernel {path} cannot be read: {error.strerror}.") from None
    elf = read_elf(content[: 1 << 20])
    if elf is None:
        what = "a boot disk or compressed kernel" if content[510:512] == b"\x55\xaa" else "no 64-bit ELF file"
        raise KernelUnusable(f"DAVIT_OSV_KERNEL names {path}, which is {what}. {WHERE}.")
    if elf.machine != X86_64 or not elf.executable or elf.interpreter:
        raise KernelUnusable(f"DAVIT_OSV_KERNEL names {path}, an ELF file that is no kernel for x86-64. {WHERE}.")
    if b"OSv " not in content:
        raise KernelUnusable(f"DAVIT_OSV_KERNEL names {path}, a kernel that is not OSv's. {WHERE}.")
    return content


def keep(path: Path | None, directory: Path) -> Kernel:
    """Look at the kernel and keep a copy, so that a file that is replaced under our feet replaces nothing.

    Args:
        directory: where copies are kept; older ones are removed (who boots from one has read it).

    Raises:
        KernelUnusable: see :func:`check`.
    """
    content = check(path)
    digest = hashlib.sha256(content).hexdigest()
    place = directory / digest
    if not disk.is_written(place / "kernel"):
        shutil.rmtree(place, ignore_errors=True)
        draft = directory / f".{digest}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        disk.write(draft / "kernel", content, mode=0o444)
        draft.chmod(0o755)
        with suppress(OSError):
            draft.rename(place)
    for other in directory.iterdir():
        if other.name != digest:
            shutil.rmtree(other, ignore_errors=True)
    return Kernel(place, digest)


async def find_out(
    qemu: str, version: str, kernel: Kernel, remembered: Path = REMEMBERED, device: Path = acceleration.DEVICE
) -> Acceleration:
    """Whether the kernel boots with KVM here (see :mod:`runtime.acceleration`).

    Args:
        version: QEMU's.
        remembered: where the answer is kept.
    """

    async def attempt(place: Path) -> str | None:
        trial = await boot(qemu, kernel, kvm=True, within=place)
        said = f" ({trial.failure})" if trial.failure else ""
        return None if trial.banner else f"the kernel does not boot within {KVM_SECONDS:g} seconds under this host's KVM{said}"

    return await acceleration.find_out("unikernels", remembered, {"qemu": version, "kernel": kernel.digest}, attempt, device)


@dataclass(frozen=True)
class Trial:
    """A test boot: the kernel's banner ("" when it did not say it), what else it said of its failure, and seconds."""

    banner: str
    failure: str
    seconds: float


async def boot(qemu: str, kernel: Kernel, *, kvm: bool, within: Path | None = None) -> Trial:
    """Boot the kernel with a root file system that holds nothing, confined as a dyno is, and read its first words.

    Args:
        within: the directory for its files; where files go that nobody needs for long when None.
    """
    limit = KVM_SECONDS if kvm else TCG_SECONDS
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="davit-osv-", dir=within) as place:
        directory = Path(place)
        (directory / "root").mkdir()
        empty = rofs.Folder()
        for name in ("dev", "proc", "sys", "etc/davit"):
            empty.add(name, rofs.Folder())
        osvimage.write_root(empty, directory / "disk")
        out, into = os.pipe()
        os.set_blocking(out, False)
        monitor = qmp.listen(directory / "monitor")
        null, disk = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), os.open(directory / "disk", os.O_RDONLY | os.O_CLOEXEC)
        wanted = machine.Machine("osv-probe", 128 << 20, kvm=kvm, slug=False)
        command = acceleration.ending_with_us(machine.command(qemu, wanted), int(limit * 2))
        argv = confine.argv(command, root=directory / "root", uid=_NOBODY, cgroups=[], shown=kernel.directory, kvm=kvm)
        table = {machine.MONITOR: monitor.fileno(), machine.CONSOLE: into, machine.ROOT: disk, machine.CONFIG: disk}
        process = Process(children.spawn(argv, [table.get(n, null) for n in range(machine.DESCRIPTORS)], confine.ENVIRONMENT))
        monitor.close()
        for fd in (null, disk, into):
            os.close(fd)
        console = Console("none")
        try:
            await asyncio.wait_for(_first_words(directory / "monitor", out, console), limit)
        except (asyncio.TimeoutError, DavitError):
            pass
        finally:
            os.close(out)
            process.send(signal.SIGTERM)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), 3)
            process.send(signal.SIGKILL)
            await process.wait()
        return Trial(console.banner, console.failure, time.monotonic() - began)


async def _first_words(monitor: Path, out: int, console: Console) -> None:
    control = await Monitor.connect(monitor, TCG_SECONDS)
    try:
        await begin(control, b"--verbose --console=serial --rootfs=rofs --power-off-on-abort /nothing")
        while not console.banner:
            await asyncio.sleep(0.05)
            try:
                data = os.read(out, 65536)
            except BlockingIOError:
                if await control.status() == "internal-error":
                    return
                continue
            if not data:
                return
            console.feed(data)
    finally:
        control.close()


async def begin(monitor: Monitor, line: bytes) -> None:
    """Give a QEMU that was started with ``--preconfig`` the kernel's command line, and let it go on."""
    text = line.decode("utf-8", errors="surrogateescape")
    await monitor.execute("qom-set", {"path": "/machine", "property": "append", "value": text})
    await monitor.execute("x-exit-preconfig", timeout=60)
