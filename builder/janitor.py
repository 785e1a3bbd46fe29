"""What builds leave in DAVIT_HOME/builds goes when their app is gone."""

from __future__ import annotations

import logging
import shutil

from builder import queue
from foundation.settings import settings
from state import identity
from state.db import ask

log = logging.getLogger("builder")


def sweep() -> list[str]:
    """Remove the files of builds that have no row any more and that nobody works on; returns their ids.

    Raises:
        WrongDatabase: this home's rows are in another one.
    """
    identity.confirm()
    root = settings().home / "builds"
    there = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if not there:
        return []
    known = {build_id for (build_id,) in ask("SELECT id FROM builds")}  # after the directory: a row comes before its files
    return [build_id for build_id in sorted(there - known) if _remove(build_id)]


def _remove(build_id: str) -> bool:
    with queue.held(build_id) as free:
        if free:
            shutil.rmtree(settings().home / "builds" / build_id, ignore_errors=True)
        return free
