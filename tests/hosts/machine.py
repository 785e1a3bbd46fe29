"""A virtual machine with a blank Debian or Ubuntu, as a cloud would give one, and what tests say to it."""

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
from dataclasses import dataclass
from pathlib import Path

from runtime.microvm.kernel_builder import apt_words
from runtime.stack_builder import OWN_KEYS, keyring, os_release, reachable, sources_for
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "host-image"
PACKAGES = (
    "systemd-sysv,udev,dbus,cloud-init,cloud-guest-utils,openssh-server,sudo,libpam-systemd,polkitd,"
    "systemd-resolved,libnss-resolve,libnss-myhostname,netplan.io,systemd-timesyncd,unattended-upgrades,apparmor,zstd,apt-utils,"
    "iptables,iputils-ping,netbase,whiptail,ca-certificates,curl,ethtool,uuid-runtime,xz-utils"
)
"""What Debian puts into its genericcloud images (the lists SYSTEM_BOOT, CLOUD and EXTRAS that those are built from), and Ubuntu into
its own, too, without what is for people at a terminal: editors, manuals, network tools."""
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


@dataclass(frozen=True)
class Distribution:
    """One whose blank cloud image becomes a host.

    Attributes:
        title: what people call it.
        packages: beside PACKAGES.
        components: of its archive.
        mirrored: whether the host is told which mirror to use; the image's own list holds otherwise.
    """

    title: str
    packages: str
    components: str
    mirrored: bool


DISTRIBUTIONS = {
    "bookworm": Distribution("Debian 12", "linux-image-cloud-amd64", "main", mirrored=True),
    "trixie": Distribution("Debian 13", "linux-image-cloud-amd64", "main", mirrored=False),
    "noble": Distribution("Ubuntu 24.04", "linux-image-virtual,initramfs-tools,needrestart", "main,universe", mirrored=True),
}
SOURCES = """\
Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: {suite} {suite}-updates {suite}-backports
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: {suite}-security
Components: main
"""
"""Where packages come from in Debian's cloud images; cloud-init writes the lists that it names."""
CLOUD = "apt:\n  generate_mirrorlists: true\n"


def blank(suite: str) -> Path:
    """The root directory of a cloud image as its distribution makes them, made once by mmdebstrap."""
    about = DISTRIBUTIONS[suite]
    packages = f"{about.packages},{PACKAGES}"
    tree = CACHE / f"{suite}-{hashlib.sha256(f'{packages} {about.components} {SOURCES} {CLOUD}'.encode()).hexdigest()[:8]}"
    if not tree.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = tree.with_name(f"{tree.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
        words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--components={about.components}"]
        say(f"making a blank {about.title}")
        subprocess.run(
            [*words, f"--keyring={keys(suite)}", f"--include={packages}", *exclude, suite, fresh],
            check=True, stdout=subprocess.DEVNULL, timeout=3600,
        )  # fmt: skip
        _finish(fresh, suite)
        fresh.rename(tree)
    return tree


def mirror(tree: Path) -> str:
    """The mirror of an image's own list, which is the one that mmdebstrap took."""
    lists = [tree / "etc/apt/mirrors/debian.list", tree / "etc/apt/sources.list"]
    (text,) = [path.read_text() for path in lists if path.exists()]
    found = re.search(r"http\S+", text)
    assert found, text
    return found[0]


def keys(suite: str) -> Path:
    """What signs its archive; Ubuntu's keys are those that Debian's package has, which Debian's own keys vouch for."""
    if suite in ("bookworm", "trixie"):
        return OWN_KEYS
    place = CACHE / "ubuntu-keyring"
    if not place.exists():
        work = CACHE / ".fetching-keys"
        shutil.rmtree(work, ignore_errors=True)
        (work / "apt").mkdir(parents=True)
        release = os_release(Path("/etc/os-release"))
        lines = sources_for(os.environ.get("DAVIT_MIRROR"), Path("/etc/apt"), release, None, reachable)
        (work / "apt/sources.list").write_text("".join(f"{line}\n" for line in lines))
        for command in (["update"], ["download", "ubuntu-keyring"]):
            words = ["apt-get", "-q", *apt_words(work / "apt", keyring()), *command]
            subprocess.run(words, cwd=work, check=True, capture_output=True, timeout=300)
        (package,) = work.glob("ubuntu-keyring_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, work / "tree"], check=True, timeout=60)
        (work / "tree/usr/share/keyrings").rename(place)
        shutil.rmtree(work)
    return place / "ubuntu-archive-keyring.gpg"


def _finish(tree: Path, suite: str) -> None:
    """What cloud images have beside their packages."""
    if suite in ("bookworm", "trixie"):
        # networkd is not enabled by the package
        subprocess.run(
            ["systemctl", f"--root={tree}", "enable", "systemd-networkd", "systemd-resolved"], check=True, capture_output=True
        )
        (tree / "etc/apt/mirrors").mkdir()
        (tree / "etc/apt/mirrors/debian.list").write_text(f"{mirror(tree)}\n")
        (tree / "etc/apt/sources.list").unlink()
        (tree / "etc/apt/sources.list.d/debian.sources").write_text(SOURCES.format(suite=suite))
        (tree / "etc/cloud/cloud.cfg.d/01_debian_cloud.cfg").write_text(CLOUD)
    (tree / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    for name in ("etc/machine-id", "etc/hostname", "etc/resolv.conf"):
        (tree / name).unlink(missing_ok=True)
    (tree / "etc/machine-id").touch()
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


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
        suite: which of DISTRIBUTIONS it has.
    """

    def __init__(self, directory: Path, seed: Path, suite: str) -> None:
        self.directory, self.seed, self.suite = directory, seed, suite
        self.http, self.api, self.ssh_port = free_port(), free_port(), free_port()
        self.console = directory / "console"
        self.key = directory / "key"
        self.secrets: set[str] = set()
        """What no message may show."""
        self._told = 0

    def start(self) -> None:
        """Switch it on."""
        tree, disk = blank(self.suite), self.directory / "disk.img"
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
                "-device", "virtio-rng-pci", "-netdev", net, "-device", f"virtio-net-pci,netdev=wan,mac={MAC}", "-display", "none",
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
