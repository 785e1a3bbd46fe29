"""Fixtures for the drivers: a stack, a slug, a driver in a DAVIT_HOME of its own, and the check that a test left nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import mounts
from tests.runtime import rootfs
from tests.runtime.bench_of_driver import Bench


@pytest.fixture(scope="session")
def images() -> Iterator[tuple[Path, Path]]:
    """A stack image and a slug image."""
    directory = Path(tempfile.mkdtemp(prefix="dvi", dir="/var/tmp"))
    yield rootfs.build(directory), rootfs.app_image(directory, {"hello.txt": "Hello from the slug\n"})
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One event loop: a driver lives in it across tests."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    mounts.isolate()
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="class")
def any_bench(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]) -> Iterator[Bench]:
    """The open driver of a test class, which says which OCI runtime it is for."""
    bench = Bench(loop, *images, oci_runtime=request.cls.oci_runtime)
    bench.open()
    yield bench
    bench.close()
    assert bench.leftovers_on_host() == []


@pytest.fixture
def bench(any_bench: Bench) -> Iterator[Bench]:
    """The driver; after the test everything is as before it."""
    before = any_bench.footprint()
    yield any_bench
    any_bench.remove_all()
    any_bench.wait_for_footprint(before)
