"""A Davit that answers, for all tests of a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import db
from tests.api.conftest import _forget, use_home
from tests.cli.living import Davit, serving


@pytest.fixture(scope="module")
def davit(request: pytest.FixtureRequest, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Davit]:
    """One Davit for the tests of a file; each test uses apps of its own. What the file's ``further_settings`` gives is set."""
    further: dict[str, str] = getattr(request.module, "further_settings", dict)()
    home = Path(tempfile.mkdtemp(prefix="dv", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        use_home(home, patch, REDIS_URL=redis_server)
        db.upgrade()
        with serving(home, tmp_path_factory.mktemp("work"), redis_server, **further) as living:
            yield living
        _forget()
    shutil.rmtree(home)


@pytest.fixture
def _own_directory(davit: Davit, tmp_path: Path) -> None:
    davit.work, davit.env["HOME"] = tmp_path, str(tmp_path)
