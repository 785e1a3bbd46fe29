"""One Davit for all end-to-end tests of a worker process; every test has apps of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import residue
from tests.e2e.world import App, Davit
from tests.leftovers import leftovers_of


@pytest.fixture(scope="session")
def davit() -> Iterator[Davit]:
    """A running Davit; after the last test nothing of it may be left."""
    home = Path(tempfile.mkdtemp(prefix="dve", dir="/tmp"))
    with running(Davit(home)) as world:
        yield world


STRICT = {
    "DAVIT_BUILD_TIMEOUT": "30",
    "DAVIT_BUILD_DISK": "300",
    "DAVIT_BUILD_MEMORY": "1024",
    "DAVIT_BOOT_TIMEOUT": "8",
    "DAVIT_PUSH_LIMIT": "20",
    "DAVIT_REPOSITORY_LIMIT": "30",
    "DAVIT_REPOSITORY_REFS": "40",
}


@pytest.fixture(scope="session")
def strict() -> Iterator[Davit]:
    """A running Davit with small limits, on a disk of its own that can be filled, and as an ordinary user where root is not needed."""
    with small_disk(3 << 30) as home:
        account = pwd.getpwnam("daemon")
        os.chown(home, account.pw_uid, account.pw_gid)
        with running(Davit(home, extra=STRICT)) as world:
            yield world


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """An ext4 file system of its own, mounted at a directory with a short name."""
    place = Path(tempfile.mkdtemp(prefix="dvs", dir="/tmp"))
    image = place.with_suffix(".img")
    try:
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)  # refuses when anything of it is still in use
    finally:
        image.unlink(missing_ok=True)
        place.rmdir()


@contextlib.contextmanager
def running(world: Davit) -> Iterator[Davit]:
    """``davit up``, and ``davit down`` at the end, after which nothing may be left."""
    home = world.home
    try:
        world.start()
        yield world
    finally:
        number = residue.instance(world)
        world.stop()
        left = leftovers_of(home, f"davit{number}" if number is not None else None, patience=60)
        shutil.rmtree(home, ignore_errors=True)
        assert not left, "left behind: " + "; ".join(left)


@pytest.fixture
def app(davit: Davit) -> Iterator[App]:
    """A fresh app."""
    made = davit.create()
    yield made
    made.cli("apps:destroy", "--confirm", made.name, check=False)
