"""Migrations: what they make, and that processes of the version before can go on at every step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from state import db
from state.models import LEAVING, Base
from tests.state.conftest import forget_caches


def test_the_migrations_make_what_the_models_say(database: str) -> None:
    with db.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        found = compare_metadata(context, Base.metadata)
    assert {(table, column.name) for kind, _, table, column in found} == LEAVING, found
    assert {kind for kind, *_ in found} <= {"remove_column"}, found


def test_upgrading_twice_changes_nothing(database: str) -> None:
    db.upgrade()


def tables() -> dict[str, dict[str, Any]]:
    """The columns of each table as they are now."""
    found = inspect(db.engine())
    return {table: {column["name"]: column for column in found.get_columns(table)} for table in found.get_table_names()}


@pytest.fixture
def empty(davit_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    forget_caches()
    yield
    forget_caches()


def test_no_migration_takes_what_processes_of_the_version_before_read_or_demands_what_they_do_not_write(empty: None) -> None:
    steps = ScriptDirectory(str(Path(db.__file__).parent / "migrations")).walk_revisions()
    before: dict[str, dict[str, Any]] = {}
    for revision in reversed([step.revision for step in steps]):
        db.upgrade(revision)
        after = tables()
        for table, columns in before.items():
            assert columns.keys() <= after.get(table, {}).keys(), f"{revision} takes columns of {table} away"
            fresh = [after[table][name] for name in after[table].keys() - columns.keys()]
            demanded = [column["name"] for column in fresh if not column["nullable"] and column["default"] is None]
            assert not demanded, f"{revision}: who does not know {table}.{demanded} adds no row any more"
        before = after
    assert len(before) > 20
