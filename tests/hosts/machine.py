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
    "linux-image-cloud-amd64,systemd-sysv,udev,dbus,cloud-init,cloud-guest-utils,openssh-server,sudo,libpam-systemd,polkitd,"
    "systemd-resolved,libnss-resolve,libnss-myhostname,netplan.io,systemd-timesyncd,unattended-upgrades,apparmor,zstd,apt-utils,"
    "iptables,iputils-ping,netbase,whiptail,ca-certificates,curl,ethtool,uuid-runtime,xz-utils"
)
"""What Debian puts into its genericcloud images (the lists SYSTEM_BOOT, CLOUD and EXTRAS that those are built from), without what
is for people at a terminal: editors, manuals, network tools."""
MAC = "52:54:00:da:71:01"
NETWORK = f"version: 2\nethernets:\n  wan:\n    match: {{macaddress: '{MAC}'}}\n    dhcp4: true\n"
TELLING = re.compile(r"davit|-----> |Cloud-init v|Kernel panic|emergency|login:")
PROCESSOR = "qemu64"
"""A plain one: programs choose vector instructions where there are some, and emulated ones are three to four times slower (measured:
starting programs, SHA-256) than what they would use otherwise."""
KERNEL = "root=/dev/vda rw console=ttyS0 systemd.show_status=no loglevel=4 mitigations=off tsc=reliable"
"""No mitigations: an emulated processor does not speculate. A clock that needs no watching."""
QUIET = 60.0
"""Seconds without news after which it is told that there is none."""


def blank_debian() -> Path:
    """The root directory of a Debian 13 cloud image, made once by mmdebstrap."""
    tree = CACHE / f"debian-13-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if not tree.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = tree.with_name(f"{tree.name}.new")
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
        self.secrets: set[str] = set()
        """What no message may show."""
        self._told = 0

    def start(self) -> None:
        """Switch it on."""
        tree, disk = blank_debian(), self.directory / "disk.img"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, disk, "14G"], check=True, timeout=600)
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        (initrd,) = (tree / "boot").glob("initrd.img-*")
        forwards = {self.http: 80, self.api: 5000, self.ssh_port: 22}
        net = ",".join(["user,id=wan,ipv6=off", *(f"hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in forwards.items())])
        self.console.touch()
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2", "-m", "3072",
                "-kernel", kernel, "-initrd", initrd, "-append", KERNEL,
                "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe", "-drive", f"file={self.seed},if=virtio,format=raw",
                "-device", "virtio-rng-pci", "-netdev", net, "-device", f"virtio-net-pci,netdev=wan,mac={MAC}", "-display", "none", "-no-reboot",
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
        """Wait until the console shows ``text``; tells what it shows on the way, and that it is silent.

        Args:
            deadline: of the monotonic clock.
        """
        begun = heard = time.monotonic()
        while True:
            said = self.console.read_text(errors="replace")
            for line in said[self._told : said.rfind("\n") + 1].splitlines():
                if TELLING.search(line):
                    heard = time.monotonic()
                    say(line.strip()[:160])
            self._told = max(self._told, said.rfind("\n") + 1)
            if text in said:
                return
            assert self.process.poll() is None, f"the machine went off:\n{self.told()}"
            assert "Kernel panic" not in said, self.told()
            assert time.monotonic() < deadline, f"“{text}” was not said in time:\n{self.told()}"
            if time.monotonic() - heard > QUIET:
                heard = time.monotonic()
                say(f"… {(heard - begun) / 60:.0f} min; on its console: {(said.split(chr(10))[-2:] or [''])[0].strip()[:110]}")
            time.sleep(1)

    def told(self) -> str:
        """What the console showed last and what cloud-init and the set-up wrote, without secrets: for whoever looks for a fault."""
        parts = [f"--- console\n{self.console.read_text(errors='replace')[-3000:]}"]
        for log in ("/var/log/cloud-init-output.log", "/var/log/cloud-init.log", "/var/cache/davit/setup.log"):
            try:
                parts.append(f"--- {log}\n{self.ssh(f'sudo tail -n 30 {log}', timeout=60, check=False)}")
            except subprocess.TimeoutExpired:
                parts.append(f"--- {log}\nthe machine does not answer by SSH")
                break
        text = re.sub(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END|\Z)", "(a key)", "\n".join(parts), flags=re.DOTALL)
        for secret in self.secrets:
            text = text.replace(secret, "(a secret)")
        return text

    def ssh(self, command: str, timeout: float = 300, check: bool = True) -> str:
        """Run a command as its admin, from outside."""
        words: Sequence[str] = [
            "ssh", "-i", str(self.key), "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.directory / 'known'}", "-o", "ConnectTimeout=60", "admin@127.0.0.1", command,
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{command} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout
