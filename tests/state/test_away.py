"""A PostgreSQL that is not there, or goes in the middle of something: a sentence and 503, and all is well when it is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session

from foundation.errors import Unavailable
from state import accounts, db, vault
from state.models import Account
from tests.conftest import PostgresCluster
from tests.e2e.errors_page import assert_says
from tests.state.conftest import forget_caches

WAYS: list[Callable[[], AbstractContextManager[Session]]] = [db.transaction, db.snapshot, db.alone]


@pytest.fixture
def cluster(
    postgres_that_goes: PostgresCluster, davit_home: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgresCluster]:
    """A cluster that holds this Davit's database."""
    for name, value in {"DATABASE_URL": postgres_that_goes.migrated(), "DAVIT_HOME": str(davit_home), "REDIS_URL": redis_server}.items():
        monkeypatch.setenv(name, value)
    forget_caches()
    vault.ensure_keys()
    yield postgres_that_goes
    forget_caches()


def _count() -> int | None:
    with db.snapshot() as session:
        return session.scalar(select(func.count()).select_from(Account))


@pytest.mark.row("database-away")
def test_a_database_that_is_not_there_is_told_in_a_sentence(cluster: PostgresCluster) -> None:
    assert _count() == 0
    cluster.stop()
    for way in WAYS:
        for _ in range(2):  # with a connection from before, and with none
            with pytest.raises(Unavailable) as told, way() as session:
                session.scalar(select(func.count()).select_from(Account))
            assert_says("database-away", told.value.message)
            assert told.value.status == 503
    cluster.start()
    with db.transaction() as session:
        accounts.create(session, None, "ann@example.com")
    assert _count() == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_database_that_goes_in_the_middle_changes_nothing(
    cluster: PostgresCluster, way: Callable[[], AbstractContextManager[Session]]
) -> None:
    other = create_engine(db.engine().url)
    with pytest.raises(Unavailable), way() as session:
        accounts.create(session, None, "ann@example.com")
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with other.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        session.execute(text("SELECT 1"))
    other.dispose()
    assert _count() == 0


def test_a_mistake_of_our_own_stays_one(cluster: PostgresCluster) -> None:
    with pytest.raises(Exception) as told, db.transaction() as session:
        session.execute(text("SELECT nothing FROM nowhere"))
    assert not isinstance(told.value, Unavailable)
