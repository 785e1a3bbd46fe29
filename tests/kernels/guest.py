"""A virtual machine with another kernel over this machine's own files: what it writes goes when it is switched off.

Its root directory is this machine's by virtiofs, read-only, under a layer of memory; ``/tmp`` is a disk, since dynos' writable
layers are files there. So what is installed here is there, and only the kernel differs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime import stack_builder
from runtime.microvm.kernel_builder import PACKAGE, apt_words
from tests.hosts.machine import PROCESSOR, say

CACHE = Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "kernels"
MODULES = ("virtio_pci", "virtiofs", "overlay", "virtio_net", "virtio_rng", "virtio_blk")
VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"), Path("/usr/lib/virtiofsd"))
COMMAND_LINE = "console=ttyS0 loglevel=1 mitigations=off tsc=reliable panic=-1"
MEMORY = "6G"
INIT = """#!/busybox sh
/busybox mkdir -p /bin /proc /sys /dev /host /layer /root
/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod /modules/$module; done </order
mount -t virtiofs -o ro root /host
mount -t tmpfs -o size=75% layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
for place in proc sys dev; do mount --move /$place /root/$place; done
mkdir -p /root/dev/pts /root/dev/shm /root/dev/net /root/lib/modules/$(uname -r)
mknod /root/dev/net/tun c 10 200
mount --bind /host@modules@ /root/lib/modules/$(uname -r)
mount -t devpts -o gid=5,mode=620 devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs -o mode=755 run /root/run
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mount -t ext4 /root/dev/vda /root/tmp
chmod 1777 /root/tmp
mkdir /root/tmp/var
mount --bind /root/tmp/var /root/var/tmp
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
rm -f /root/etc/resolv.conf
echo nameserver 10.0.2.3 >/root/etc/resolv.conf
exec switch_root /root /bin/sh -c "$(cat <<'JOB'
@job@
JOB
)"
"""
"""Loads what it needs, puts the layers together and runs the job in them."""
LAST = """
echo "davit: the job ended with $status"
sync
echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
sleep 60
"""


def kernel(suite: str) -> Path:
    """The unpacked package of the cloud kernel of a Debian release, fetched once."""
    for found in CACHE.glob(f"{suite}-*"):
        return found
    work = CACHE / f".fetching-{suite}"
    shutil.rmtree(work, ignore_errors=True)
    (work / "apt").mkdir(parents=True)
    apt, release = Path("/etc/apt"), stack_builder.os_release(Path("/etc/os-release"))
    lines = stack_builder.sources_for(os.environ.get("DAVIT_MIRROR"), apt, release, None, stack_builder.reachable)
    (work / "apt/sources.list").write_text("".join(f"{line.replace(stack_builder.SUITE, suite)}\n" for line in lines))
    words = apt_words(work / "apt", stack_builder.keyring())

    def run(program: str, *rest: str) -> str:
        return subprocess.run([program, "-q", *words, *rest], cwd=work, check=True, capture_output=True, text=True, timeout=900).stdout

    run("apt-get", "update")
    depends = re.search(r"(?m)^Depends:.*\b(linux-image-\d[^\s,(]*)", run("apt-cache", "show", "--no-all-versions", PACKAGE))
    assert depends, f"{suite} has no {PACKAGE}"
    run("apt-get", "download", depends[1])
    (package,) = work.glob("linux-image-*.deb")
    subprocess.run(["dpkg-deb", "-x", package, work / "tree"], check=True, timeout=300)
    if not (work / "tree/lib").exists():  # since Debian 13 packages say where it really is
        (work / "tree/lib").symlink_to("usr/lib")
    (modules,) = (work / "tree/lib/modules").iterdir()
    subprocess.run(["depmod", "-b", work / "tree", modules.name], check=True, timeout=300)
    return (work / "tree").rename(CACHE / f"{suite}-{modules.name}")


class Guest:
    """The machine.

    Args:
        directory: for its disk, its initramfs and its console.
        tree: its kernel's package.
        job: a shell script; what it prints is on the console.
    """

    def __init__(self, directory: Path, tree: Path, job: str) -> None:
        self.directory, self.tree, self.job = directory, tree, job
        self.console = directory / "console"

    def run(self, seconds: float) -> int:
        """Boot it and run the job; the job's exit status.

        Args:
            seconds: that it may take.
        """
        (kernel,) = self.tree.glob("boot/vmlinuz-*")
        initramfs, disk = self._initramfs(), self.directory / "disk"
        with disk.open("wb") as file:
            file.truncate(16 << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", disk], check=True, timeout=120)
        self.console.touch()
        with self._files() as files, (self.directory / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2", "-m", MEMORY,
                    "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-numa", "node,memdev=memory",
                    "-kernel", kernel, "-initrd", initramfs, "-append", COMMAND_LINE,
                    "-chardev", f"socket,id=files,path={files}", "-device", "vhost-user-fs-pci,chardev=files,tag=root",
                    "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe", "-device", "virtio-rng-pci",
                    "-netdev", "user,id=wan,ipv6=off", "-device", "virtio-net-pci,netdev=wan",
                    "-display", "none", "-no-reboot", "-serial", f"file:{self.console}", "-monitor", "none",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                return self._until_over(process, time.monotonic() + seconds)
            finally:
                process.kill()
                process.wait()

    def _until_over(self, process: subprocess.Popen[bytes], deadline: float) -> int:
        told = 0
        while True:
            ended = process.poll() is not None
            said = self.console.read_text(errors="replace")
            whole = said.rfind("\n") + 1
            for line in said[told:whole].splitlines():
                say(line[:200])
            told = max(told, whole)
            if over := re.search(r"davit: the job ended with (\d+)", said):
                return int(over[1])
            assert not ended, f"the machine went off:\n{said[-3000:]}\n{(self.directory / 'qemu.log').read_text()}"
            assert time.monotonic() < deadline, f"the job is not over in time:\n{said[-3000:]}"
            time.sleep(1)

    def _initramfs(self) -> Path:
        root = self.directory / "initramfs"
        (root / "modules").mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox, "busybox is missing; make test-kernels installs it"
        shutil.copy(busybox, root / "busybox")
        needed = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False, timeout=60).stdout
        for library in map(Path, re.findall(r"(/\S+) \(", needed)):  # none where it is linked statically
            (root / library.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library.relative_to("/"))
        (modules,) = (self.tree / "lib/modules").iterdir()
        order: dict[str, None] = {}
        for name in MODULES:
            shown = subprocess.run(
                ["modprobe", "-d", self.tree, "-S", modules.name, "--show-depends", name],
                capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
            order |= dict.fromkeys(line.split()[1] for line in shown.stdout.splitlines() if line.startswith("insmod "))
        for path in map(Path, order):
            unpack = {".xz": ["xz", "-dc"], ".zst": ["zstd", "-dc"], ".gz": ["gzip", "-dc"]}.get(path.suffix, ["cat"])
            with (root / "modules" / path.name.removesuffix(path.suffix if path.suffix != ".ko" else "")).open("wb") as file:
                subprocess.run([*unpack, path], stdout=file, check=True, timeout=60)
        names = [Path(path).name.split(".ko")[0] + ".ko\n" for path in order]
        (root / "order").write_text("".join(names))
        (root / "init").write_text(INIT.replace("@modules@", str(modules)).replace("@job@", f"{self.job}{LAST}"))
        (root / "init").chmod(0o755)
        made = self.directory / "initramfs.cpio"
        listed = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        with made.open("wb") as file:
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=listed.encode(), stdout=file, check=True, timeout=60)
        return made

    @contextmanager
    def _files(self) -> Iterator[Path]:
        """This machine's files, for the guest; the socket where they are given."""
        program = next((path for path in VIRTIOFSD if path.exists()), None)
        assert program, "virtiofsd is missing: it comes with qemu-system-common (Debian 12) or virtiofsd (Debian 13)"
        place = self.directory / "files.sock"
        words: list[str | Path] = [program, f"--socket-path={place}", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"]
        with (self.directory / "virtiofsd.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as serving:
            try:
                deadline = time.monotonic() + 30
                while not place.is_socket():
                    assert serving.poll() is None and time.monotonic() < deadline, (self.directory / "virtiofsd.log").read_text()
                    time.sleep(0.1)
                yield place
            finally:
                serving.kill()
