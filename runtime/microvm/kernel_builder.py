"""How the kernel of microVMs is made: Debian's cloud kernel, fetched and verified by apt, with the few modules that a dyno
needs and Davit's guest agent, which the stack's own compiler builds, in an initramfs of two megabytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from foundation import disk
from foundation.errors import DavitError
from foundation.programs import run
from runtime import stack_builder, stacks
from runtime.microvm.kernel import KernelMissing

PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_blk", "virtio_net", "virtio_balloon", "virtio_mem", "virtio_rng", "erofs", "squashfs", "overlay")
"""Beside those that the kernel has built in; what they need in turn comes by itself."""
BUILT_IN_OR_MODULE = ("virtio_pci", "virtio_console", "ext4")
"""Built in since Debian 13's kernel; taken as modules where they are not."""
GUEST = Path(__file__).parents[1] / "guest"
COMPILE = ("gcc", "-static", "-Os", "-Wall", "-std=gnu11", "-s", "-pipe")
_ZSTD, _XZ, _GZIP = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x1f\x8b"

# In namespaces of its own that end with it: the build stack, with a /tmp of its own to work in.
_IN_STACK = """
image=$1 shared=$2
shift 2
mount -o loop,ro "$image" "$shared/stack"
mount -t tmpfs tmpfs "$shared/stack/tmp"
mount --bind "$shared/work" "$shared/stack/tmp"
exec chroot "$shared/stack" "$@"
"""


class KernelBuilder:
    """Makes one version below ``folder``; the caller holds the lock on it.

    Args:
        root: where the stacks are.
    """

    def __init__(self, root: Path, folder: Path, mirror: str | None, progress: stacks.Progress) -> None:
        self.root, self.folder, self.mirror, self.progress = root, folder, mirror, progress
        self.work = folder / f".building-{os.getpid()}"

    def build(self) -> None:
        """Make the version and let ``current`` point to it.

        Raises:
            KernelMissing: why it could not be made.
        """
        try:
            self._check_host()
            package = self._fetch()
            files = self._unpack(package)
            sealed = self._assemble(files)
            self._publish(sealed, package)
        except KernelMissing:
            raise
        except (DavitError, OSError) as failed:
            raise KernelMissing(stack_builder.explain(f"The kernel for microVMs could not be made: {failed}", [])) from failed
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def _check_host(self) -> None:
        if platform.machine() != "x86_64":
            raise KernelMissing(f"microVMs run on x86-64 hosts only so far; this one is {platform.machine()}.")
        if os.geteuid() != 0:
            raise KernelMissing("Making the kernel for microVMs needs root.")
        for leftover in self.folder.glob(".building-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.stack = stacks.current(self.root)
        (self.work / "apt").mkdir(parents=True)

    # -- the package

    def _fetch(self) -> Path:
        self.progress("The microVMs' kernel: fetching Debian 13's cloud kernel (35 MB).")
        release = stack_builder.os_release(Path("/etc/os-release"))
        default = stack_builder.default_mirror(stack_builder._program_text("mmdebstrap"))
        sources = stack_builder.sources_for(self.mirror, Path("/etc/apt"), release, default, stack_builder.reachable)
        if not sources:
            raise KernelMissing("No Debian mirror is known to fetch the microVMs' kernel from; set DAVIT_MIRROR.")
        (self.work / "apt/sources.list").write_text("".join(f"{line}\n" for line in sources))
        self._apt("apt-get", "update")
        shown = self._apt("apt-cache", "show", "--no-all-versions", PACKAGE)
        depends = re.search(r"(?m)^Depends:.*\b(linux-image-\d[^\s,(]*)", shown)
        if depends is None:
            raise KernelMissing(f"The Debian mirror has no package {PACKAGE}; set DAVIT_MIRROR to another one.")
        self._apt("apt-get", "download", depends[1])
        return next(self.work.glob("linux-image-*.deb"))

    def _apt(self, program: str, *words: str) -> str:
        argv = [program, "-q", *apt_words(self.work / "apt", stack_builder.keyring()), *words]
        done = run(argv, timeout=900, cwd=self.work, env=stack_builder.environment(os.environ), check=False)
        if done.returncode != 0:
            output = (done.stdout + done.stderr).decode(errors="replace").splitlines()
            raise KernelMissing(stack_builder.explain("The kernel for microVMs could not be fetched", output))
        return done.stdout.decode(errors="replace")

    def _unpack(self, package: Path) -> dict[str, bytes]:
        """The kernel, its modules, and the list of what is built in, by file name."""
        kept: dict[str, bytes] = {}
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
            assert unpacking.stdout is not None
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if member.isfile() and re.match(r"vmlinuz-|modules\.builtin$|.*\.ko(\.xz|\.gz)?$", name):
                        data = archive.extractfile(member)
                        kept["vmlinuz" if name.startswith("vmlinuz-") else name] = data.read() if data else b""
        if unpacking.returncode != 0 or "vmlinuz" not in kept:
            raise KernelMissing("What was fetched as the microVMs' kernel is no kernel package.")
        return kept

    # -- the parts

    def _assemble(self, files: Mapping[str, bytes]) -> Path:
        sealed = self.work / "sealed"
        sealed.mkdir()
        for name in ("stack", "work"):
            (self.work / name).mkdir()
        self.progress("The microVMs' kernel: compiling the guest agent.")
        self._compile()
        (sealed / "vmlinux").write_bytes(self._vmlinux(files["vmlinuz"]))
        agent = (self.work / "work/init").read_bytes()
        (sealed / "initramfs").write_bytes(archive(modules_in_order(files), agent))
        return sealed

    def _compile(self) -> None:
        for source in sources():
            shutil.copy(source, self.work / "work" / source.name)
        names = [f"/tmp/{source.name}" for source in sources() if source.suffix == ".c"]  # noqa: S108 the stack's own /tmp
        self._in_stack([*COMPILE, "-o", "/tmp/init", *names])  # noqa: S108

    def _vmlinux(self, image: bytes) -> bytes:
        """QEMU starts the ELF file itself (PVH), which saves an emulated processor the unpacking."""
        payload = payload_of(image)
        if payload.startswith(_ZSTD):
            (self.work / "work/payload").write_bytes(payload)
            kernel = self._in_stack(["zstd", "-dc", "/tmp/payload"])  # noqa: S108
        elif payload.startswith(_XZ):
            kernel = lzma.decompress(payload)
        else:
            kernel = gzip.decompress(payload) if payload.startswith(_GZIP) else image
        if not kernel.startswith(b"\x7fELF"):
            raise KernelMissing("What was fetched as the microVMs' kernel is packed in a way that this Davit does not know.")
        return kernel

    def _in_stack(self, command: Sequence[str]) -> bytes:
        """Run a program of the build stack, with ``work`` as its /tmp, and give its output."""
        guard = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        argv = [*guard, "/bin/sh", "-euc", _IN_STACK, "davit", str(self.stack.build), str(self.work), *command]
        return run(argv, timeout=300, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}).stdout

    def _publish(self, sealed: Path, package: Path) -> None:
        debian = re.sub(r"^linux-image-[^_]*_|_amd64\.deb$", "", package.name)
        version = f"{debian}-{recipe()}".replace("%3a", ".")
        parts = {name: {"size": (sealed / name).stat().st_size, "digest": stacks.digest_of(sealed / name)} for name in PARTS}
        described = {"package": package.name, "recipe": recipe(), "files": parts}
        (sealed / "kernel.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
        for path in (*sealed.iterdir(), sealed):
            path.chmod(0o755 if path.is_dir() else 0o644)
            disk.sync(path)
        target = self.folder / version
        if target.exists():  # damaged, or nobody would make it anew
            shutil.rmtree(target)
        sealed.rename(target)
        point_to(target)


def point_to(version: Path) -> None:
    """Make a version's directory the current one; the caller holds the lock."""
    draft = version.with_name(".current")
    draft.unlink(missing_ok=True)
    draft.symlink_to(version.name)
    draft.replace(version.with_name("current"))
    disk.sync(version.parent)


PARTS = ("vmlinux", "initramfs")


def sources() -> list[Path]:
    """The guest agent's source files."""
    return sorted(path for path in GUEST.iterdir() if path.suffix in (".c", ".h"))


def recipe() -> str:
    """A short digest of everything here that decides what is in the kernel's directory, Debian's package excepted."""
    sum = hashlib.sha256(json.dumps([MODULES, BUILT_IN_OR_MODULE, COMPILE]).encode())
    for path in sources():
        sum.update(path.name.encode() + b"\0" + path.read_bytes())
    return sum.hexdigest()[:12]


def apt_words(directory: Path, keys: Path) -> list[str]:
    """apt's options for sources, lists and keys that are not the host's."""
    settings = {
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": directory / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": directory / "cache",
        "Dir::Etc::trusted": "/nonexistent" if keys.is_dir() else keys,
        "Dir::Etc::trustedparts": keys if keys.is_dir() else "/nonexistent",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    for name in ("state/lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def payload_of(image: bytes) -> bytes:
    """The packed kernel in a bzImage (Linux, Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length)."""
    if image[0x202:0x206] != b"HdrS":
        return b""
    start = (image[0x1F1] + 1) * 512 + struct.unpack_from("<I", image, 0x248)[0]
    return image[start : start + struct.unpack_from("<I", image, 0x24C)[0] - 4]  # the last 4 bytes are the unpacked size


def modules_in_order(files: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """The modules that are needed, each after those that it needs itself.

    Raises:
        KernelMissing: one is neither there nor built in.
    """
    packed = {_plain(name): name for name in files if ".ko" in name}
    builtin = {_plain(line.rsplit("/", 1)[-1]) for line in files.get("modules.builtin", b"").decode().splitlines()}
    order: dict[str, bytes] = {}

    def need(name: str) -> None:
        if name in builtin or name in order:
            return
        if name not in packed:
            raise KernelMissing(f"The kernel that was fetched for microVMs has no module {name}.")
        data = _unpacked(packed[name], files[packed[name]])
        for needed in depends(data):
            need(needed)
        order[name] = data

    for name in (*BUILT_IN_OR_MODULE, *MODULES):
        need(name)
    return list(order.items())


def _plain(name: str) -> str:
    return name.split(".ko")[0].replace("-", "_")


def _unpacked(name: str, data: bytes) -> bytes:
    return lzma.decompress(data) if name.endswith(".xz") else gzip.decompress(data) if name.endswith(".gz") else data


def depends(module: bytes) -> list[str]:
    """What a module needs, from its .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_plain(name) for name in found[1].decode().split(",") if name] if found else []


def archive(modules: Iterable[tuple[str, bytes]], agent: bytes) -> bytes:
    """The initramfs: a cpio archive in the "newc" form (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""
    entries = [_entry(1, "modules", 0o40755), _entry(2, "dev", 0o40755), _entry(3, "dev/console", 0o20600, device=(5, 1))]
    for number, (name, data) in enumerate(modules):
        entries.append(_entry(10 + number, f"modules/{number:02}-{name}.ko", 0o100644, data))
    return b"".join([*entries, _entry(4, "init", 0o100755, agent), _entry(0, "TRAILER!!!", 0)])


def _entry(inode: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
