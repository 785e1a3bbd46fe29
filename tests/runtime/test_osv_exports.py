"""What ``davit slugs:export`` writes for elsewhere, booted there: the real QEMU has the disk and nothing else, as Capstan starts it.

OSv's boot disk (``loader.img``) and its ZFS builder are looked for beside the kernel, under the names that OSv gives them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from runtime import stacks
from slugs import osvimage, rofs
from slugs.store import Store
from tests.conftest import PATIENCE, wait_until
from tests.ports import free_port
from tests.runtime import rootfs
from tests.runtime.test_osv_kernel import SAY, STACKS, WEB

pytestmark = [pytest.mark.root, pytest.mark.osv, pytest.mark.timeout(900)]
_EXPORT = """
import sys
from pathlib import Path
from cli.host import slugs
from foundation.settings import settings
stack, digest, form, process, target, loader, builder = sys.argv[1:]
types = {"web": "python3 web.py", "say": "./say fail", "count": "python3 count.py"}
what = slugs.Export("shop", 3, digest, "", types, {"GREETING": "$5", "MODE": "plain"})
slugs.export(settings(), what, form, Path(target), stack=Path(stack), process=process, loader=Path(loader), builder=Path(builder), say=print)
"""
COUNT = """
from pathlib import Path
counter = Path("count")
counter.write_text(str(int(counter.read_text()) + 1 if counter.exists() else 1))
print("started", counter.read_text(), "times", flush=True)
"""


class Exports:
    """A slug, and what is made of it in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loader, self.builder = (
            Path(os.environ["DAVIT_OSV_KERNEL"]).with_name(name) for name in ("loader.img", "zfs_builder-stripped.elf")
        )
        tree = directory / "slug/app"
        tree.mkdir(parents=True)
        (directory / "say.c").write_text(SAY)
        subprocess.run(["gcc", "-O1", "-pie", "-fPIE", "-o", tree / "say", directory / "say.c"], check=True)
        slug = rootfs.app_image(directory, {"web.py": WEB, "count.py": COUNT})
        (directory / "home/slugs").mkdir(parents=True)
        self._digest = Store(directory / "home/slugs").put(slug).digest

    def make(self, form: str, process: str) -> tuple[Path, str]:
        """Export; the file, and what was said."""
        needed = self.builder if form == "zfs" else self.loader
        if not needed.exists():
            pytest.skip(f"there is no {needed}: nothing of {form} was booted")
        target = self.directory / f"{process}.{form}"
        words = [stacks.current(STACKS).run, self._digest, form, process, target, self.loader, self.builder]
        environment = {**os.environ, "DAVIT_HOME": str(self.directory / "home")}
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT, *words], env=environment, capture_output=True, text=True, timeout=PATIENCE * 200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return target, done.stdout


class Guest:
    """A QEMU that has booted a disk."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, console: Path) -> None:
        self._process, self._port, self._console = process, port, console

    @property
    def said(self) -> str:
        return self._console.read_text(errors="replace").replace("\r\n", "\n")

    def get(self) -> str:
        """What it answers, as soon as it does."""
        answer: list[str] = []

        def asked() -> bool:
            with suppress(OSError):
                answer.append(urllib.request.urlopen(f"http://127.0.0.1:{self._port}/", timeout=5).read().decode())
            return bool(answer) or self._process.poll() is not None

        wait_until(asked, "an answer", 120)
        assert answer, self.said
        return answer[0]

    def end(self) -> str:
        """Wait until it has powered off by itself; what it said."""
        assert self._process.wait(PATIENCE * 120) == 0
        return self.said


@contextmanager
def booted(disk: Path, *more: str, form: str = "raw", bus: str = "bootindex=0") -> Iterator[Guest]:
    port = free_port()
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-drive", f"file={disk},if=none,id=hd0,format={form}", "-device", f"virtio-blk-pci,id=blk0,drive=hd0,{bus}",
        "-netdev", f"user,id=un0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:8080", "-device", "virtio-net-pci,netdev=un0",
        "-device", "virtio-rng-pci", *more,
    ]  # fmt: skip
    console = disk.with_suffix(".console")
    with console.open("wb") as into, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=into) as process:
        try:
            yield Guest(process, port, console)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def test_a_disk_boots_by_itself_and_serves(exports: Exports) -> None:
    disk, _ = exports.make("osv-image", "web")
    with booted(disk) as guest:
        assert guest.get() == "Hello from Linux $5"


def test_a_native_program_of_a_qcow2_disk_says_its_words_and_ends(exports: Exports) -> None:
    disk, _ = exports.make("qcow2", "say")
    with booted(disk, form="qcow2") as guest:
        said = guest.end()
    lines = [bytes.fromhex(line[1:]).decode() for line in re.findall(r"^[AE](?:[0-9a-f]{2})+$", said, re.M)]
    assert {"fail", "PORT=8080", "MODE=plain", "GREETING=$5"} <= set(lines), said


def composed(package: Path, process: str, loader: Path, disk: Path) -> Path:
    """An imitation of ``capstan package compose``, by Capstan's source: each configuration is a runscript in /run, its variables
    as ``--env=NAME?=VALUE``; the disk's command line names the wanted one's and nothing else."""
    tree = rofs.Folder()
    with tarfile.open(package) as archive:
        configurations = yaml.safe_load(archive.extractfile("meta/run.yaml"))["config_set"]  # type: ignore[arg-type]
        for member in archive:
            content = archive.extractfile(member).read() if member.isreg() else b""  # type: ignore[union-attr]
            if member.name.startswith("meta/"):
                continue
            node = rofs.Link(member.linkname.encode()) if member.issym() else rofs.data(content)
            tree.add(member.name, rofs.Folder() if member.isdir() else node)
    for name, one in configurations.items():
        variables = "".join(f"--env={key}?={value} " for key, value in one["env"].items())
        tree.add(f"run/{name}", rofs.data(f"{variables}{one['bootcmd']}".encode()))
    osvimage.write_bootable(loader, f"runscript /run/{process};".encode(), tree, disk)
    return disk


def test_what_capstan_would_make_of_its_package_serves(exports: Exports) -> None:
    package, said = exports.make("capstan", "web")
    assert "GREETING is left out" in said and "say starts in /, not in /app" in said and "web starts" not in said
    with booted(composed(package, "web", exports.loader, package.with_suffix(".disk"))) as guest:
        assert guest.get() == "Hello from Linux "
    with booted(composed(package, "say", exports.loader, package.with_suffix(".disk"))) as guest:
        assert b"MODE=plain".hex() in guest.end()


def test_a_zfs_disk_boots_and_keeps_what_is_written(exports: Exports) -> None:
    """With the builder's own kernel: it has ZFS within."""
    disk, said = exports.make("zfs", "count")
    line = said.strip().rpartition("this command line: ")[2]
    words: Sequence[str] = ("-kernel", str(exports.builder), "-append", line)
    for times in (1, 2):
        with booted(disk, *words, bus="bootindex=1") as guest:
            assert f"started {times} times\n" in guest.end()
