"""A database of each kind, empty and migrated, with the process's settings pointing at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from foundation.settings import settings
from state import accounts, db, notify, vault
from state.models import Account
from tests.conftest import PostgresCluster


def forget_caches() -> None:
    """What a process remembers of its environment."""
    if db.engine.cache_info().currsize:
        db.engine().dispose()
    for cached in (settings, db.engine, notify.redis_client):
        cached.cache_clear()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, davit_home: Path, migrated_sqlite: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A fresh, migrated database; every test runs on SQLite and on PostgreSQL."""
    if request.param == "postgresql":  # before DAVIT_HOME is set: the cluster outlives this test and is no leftover of it
        cluster: PostgresCluster = request.getfixturevalue("postgres_server")
        monkeypatch.setenv("DATABASE_URL", cluster.migrated())
    else:
        shutil.copy(migrated_sqlite, davit_home / "davit.db")
        monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.setenv("REDIS_URL", redis_server)
    forget_caches()
    vault.ensure_keys()
    yield request.param
    forget_caches()


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    """One write transaction for the whole test."""
    with db.transaction() as session:
        yield session


@pytest.fixture
def owner(session: Session) -> Account:
    return accounts.create(session, None, "ann@example.com")


@pytest.fixture
def stranger(session: Session) -> Account:
    return accounts.create(session, None, "eve@example.com")
