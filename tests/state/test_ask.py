"""Questions that are put to the database without SQLAlchemy: the same answers, on both databases."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from foundation.clock import now
from foundation.errors import Unavailable
from foundation.settings import settings
from router.watch import fingerprint
from runtime import records
from state import accounts, apps, db, releases
from state.models import Account, App, Dyno, Slug
from tests.state.conftest import forget_caches
from tests.state.waiting import until_one_waits


def test_times_are_compared_as_they_are_stored(database: str) -> None:
    with db.transaction() as session:
        accounts.create(session, None, "ann@example.com")
    question = "SELECT email FROM accounts WHERE created_at >= :moment AND email <> :other"
    assert db.ask(question, moment=now() - timedelta(seconds=60), other="eve@example.com") == [("ann@example.com",)]
    assert db.ask(question, moment=now() + timedelta(seconds=60), other="eve@example.com") == []


def test_what_polls_ask_is_what_changed(database: str) -> None:
    assert (records.all_app_ids(), records.rows_of_dynos()) == ([], {})
    nothing = fingerprint()
    with db.transaction() as session:
        owner = accounts.create(session, None, "ann@example.com")
        app = apps.create(session, owner, "bright-bay")
    assert records.all_app_ids() == [app.id]
    assert fingerprint() != nothing and fingerprint() == fingerprint()
    assert records.changed_since(now() - timedelta(seconds=60)) == {app.id}
    later = now() + timedelta(seconds=60)
    assert records.changed_since(later) == set()
    with db.transaction() as session:
        slug = Slug(app_id=app.id, digest="sha256:0", size=1, stack="davit-13")
        session.add(slug)
        session.flush()
        app, owner = session.get_one(App, app.id), session.get_one(Account, owner.id)
        release = releases.create(session, app, owner, kind="deploy", description="x", slug=slug)
    assert records.changed_since(later) == {app.id}, "it has a pending release"
    with db.transaction() as session:
        releases.fail(session, session.merge(release), "boot", "it did not start")
    assert records.changed_since(later) == set()
    with db.transaction() as session:
        session.add(
            Dyno(
                app_id=app.id,
                name="web.1",
                type="web",
                size="eco",
                command="x",
                state="up",
                release_version=1,
                restart_requested=True,
            )
        )
    assert records.changed_since(later) == {app.id}, "a restart was asked for"
    assert [row.name for row in records.rows_of_dynos().values()] == ["web.1"]


def test_a_database_that_is_away_is_told_as_every_other_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/at/all.db")
    settings.cache_clear()
    with pytest.raises(Unavailable, match="The database does not answer"):
        db.ask("SELECT id FROM apps")
    settings.cache_clear()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # on PostgreSQL writers do not wait for each other as a whole
def test_a_database_that_others_keep_busy_is_told_as_such(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_SECONDS", 0)
    forget_caches()
    with sqlite3.connect(settings().home / "davit.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="The database was busy for 0 seconds; try again"), db.transaction():
            raise AssertionError("the block began")
        other.execute("ROLLBACK")
    with db.transaction() as session:
        accounts.create(session, None, "ann@example.com")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # on SQLite there is one writer at a time
def test_writers_that_wait_for_each_other_are_told_to_try_again(database: str) -> None:
    first, second = text("SELECT pg_advisory_xact_lock(1)"), text("SELECT pg_advisory_xact_lock(2)")
    has_it, may_go_on = threading.Event(), threading.Event()

    def other() -> None:
        with db.transaction() as session:
            session.execute(second)
            has_it.set()
            assert may_go_on.wait(60)
            session.execute(first)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        with pytest.raises(Unavailable, match="Others changed the same in the same moment"), db.transaction() as session:
            session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            session.execute(first)
            assert has_it.wait(60)
            may_go_on.set()
            until_one_waits("advisory")
            session.execute(second)
        done.result(60)
