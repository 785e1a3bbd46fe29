"""One Davit for all end-to-end tests of a worker process; every test has apps of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import App, Davit
from tests.leftovers import leftovers_of


@pytest.fixture(scope="session")
def davit() -> Iterator[Davit]:
    """A running Davit; after the last test nothing of it may be left."""
    home = Path(tempfile.mkdtemp(prefix="dve", dir="/tmp"))
    world = Davit(home)
    world.start()
    try:
        yield world
    finally:
        world.stop()
        left = leftovers_of(home, patience=15)
        shutil.rmtree(home, ignore_errors=True)
        assert not left, "left behind: " + "; ".join(left)


@pytest.fixture
def app(davit: Davit) -> Iterator[App]:
    """A fresh app."""
    made = davit.create()
    yield made
    made.cli("apps:destroy", "--confirm", made.name, check=False)
