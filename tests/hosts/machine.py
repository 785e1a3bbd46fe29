"""A virtual machine with a blank Debian, as a cloud would give one, and what tests say to it."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtime.stack_builder import OWN_KEYS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "host-image"
PACKAGES = (
    "linux-image-cloud-amd64,systemd-sysv,systemd-resolved,udev,dbus,cloud-init,openssh-server,python3,iproute2,netplan.io,sudo,"
    "ca-certificates,cloud-guest-utils"
)
"""What Debian's own cloud images have, as far as it matters here."""
MAC = "52:54:00:da:71:01"
NETWORK = f"version: 2\nethernets:\n  wan:\n    match: {{macaddress: '{MAC}'}}\n    dhcp4: true\n"
TELLING = re.compile(r"davit|cloud-init\[|Cloud-init v|Kernel panic|emergency|login:")


def blank_debian() -> Path:
    """The root directory of a Debian 13 cloud image, made once by mmdebstrap."""
    tree = CACHE / "debian-13"
    if not tree.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = CACHE / "debian-13.new"
        shutil.rmtree(fresh, ignore_errors=True)
        exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
        words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--keyring={OWN_KEYS}"]
        say("making a blank Debian 13")
        subprocess.run(
            [*words, f"--include={PACKAGES}", *exclude, "trixie", fresh], check=True, stdout=subprocess.DEVNULL, timeout=1200
        )
        # as Debian's cloud images have it (networkd is not enabled by the package)
        subprocess.run(
            ["systemctl", f"--root={fresh}", "enable", "systemd-networkd", "systemd-resolved"], check=True, capture_output=True
        )
        (fresh / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        for name in ("etc/machine-id", "etc/hostname", "etc/resolv.conf"):
            (fresh / name).unlink(missing_ok=True)
        (fresh / "etc/machine-id").touch()
        (fresh / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
        fresh.rename(tree)
    return tree


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The files of a directory over HTTP, as the machine reaches them."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://10.0.2.2:{server.server_address[1]}"
        finally:
            server.shutdown()


def sha256(path: Path) -> str:
    """A file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Machine:
    """The virtual machine.

    Args:
        directory: for its disk and logs.
        seed: its second disk.
    """

    def __init__(self, directory: Path, seed: Path) -> None:
        self.directory, self.seed = directory, seed
        self.http, self.api, self.ssh_port = free_port(), free_port(), free_port()
        self.console = directory / "console"
        self.key = directory / "key"
        self._told = 0

    def start(self) -> None:
        """Switch it on."""
        tree, disk = blank_debian(), self.directory / "disk.img"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, disk, "14G"], check=True, timeout=600)
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        (initrd,) = (tree / "boot").glob("initrd.img-*")
        forwards = {self.http: 80, self.api: 5000, self.ssh_port: 22}
        net = ",".join(["user,id=wan", *(f"hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in forwards.items())])
        self.console.touch()
        self.process = subprocess.Popen(
            [
                "nice", "-n", "5", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "3072",
                "-kernel", kernel, "-initrd", initrd, "-append", "root=/dev/vda rw console=ttyS0 systemd.show_status=no",
                "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe", "-drive", f"file={self.seed},if=virtio,format=raw",
                "-netdev", net, "-device", f"virtio-net-pci,netdev=wan,mac={MAC}", "-display", "none", "-no-reboot",
                "-serial", f"file:{self.console}", "-monitor", "none", "-sandbox", "on",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(self.directory / "qemu.log").open("wb"),
        )  # fmt: skip

    def stop(self) -> None:
        """Switch it off, hard."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def until_said(self, text: str, deadline: float) -> None:
        """Wait until the console shows ``text``; tells what it shows on the way.

        Args:
            deadline: of the monotonic clock.
        """
        while True:
            said = self.console.read_text(errors="replace")
            for line in said[self._told : said.rfind("\n") + 1].splitlines():
                if TELLING.search(line):
                    say(line.strip()[:160])
            self._told = max(self._told, said.rfind("\n") + 1)
            if text in said:
                return
            assert self.process.poll() is None, f"the machine went off:\n{said[-3000:]}"
            assert "Kernel panic" not in said, said[-3000:]
            assert time.monotonic() < deadline, f"“{text}” was not said in time:\n{said[-3000:]}"
            time.sleep(1)

    def ssh(self, command: str, timeout: float = 300, check: bool = True) -> str:
        """Run a command as its admin, from outside."""
        words: Sequence[str] = [
            "ssh", "-i", str(self.key), "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.directory / 'known'}", "-o", "ConnectTimeout=60", "admin@127.0.0.1", command,
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{command} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout
