"""Sessions of PostgreSQL that wait for each other."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from state import db


def until_one_waits(kind: str = "%") -> None:
    """Return when a session waits for a lock of that kind (a pattern for pg_locks.locktype), of any by default."""
    for _ in range(3000):
        with db.snapshot() as session:
            waiting = text("SELECT count(*) FROM pg_locks WHERE locktype LIKE :kind AND NOT granted")
            if session.scalar(waiting, {"kind": kind}):
                return
        time.sleep(0.01)
    pytest.fail("nobody waits")
