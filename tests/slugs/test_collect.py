"""A slug that something can still run is in use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from slugs.collect import in_use
from state.models import Account, App, Base, Build, Dyno, Release, Slug


class World:
    """One account whose apps have slugs named by a word."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.account = Account(email="ada@example.com")
        session.add(self.account)
        session.flush()

    def app(self, name: str) -> App:
        return self._add(App(name=name, owner_id=self.account.id, config=b""))

    def slug(self, app: App, digest: str | None) -> Slug:
        return self._add(Slug(app_id=app.id, digest=digest, stack="davit-13"))

    def release(self, app: App, version: int, slug: Slug | None, **values: object) -> Release:
        given = {"status": "succeeded", "description": "Deploy", "config": b"", **values}
        slug_id = slug.id if slug else None
        return self._add(Release(app_id=app.id, version=version, slug_id=slug_id, account_id=self.account.id, **given))

    def build(self, app: App, slug: Slug | None, status: str) -> Build:
        slug_id = slug.id if slug else None
        return self._add(Build(app_id=app.id, account_id=self.account.id, slug_id=slug_id, status=status, stack="davit-13"))

    def dyno(self, app: App, release: Release) -> Dyno:
        return self._add(Dyno(app_id=app.id, release_id=release.id, name="web.1", type="web", size="basic", command="run"))

    def _add(self, row):  # type: ignore[no-untyped-def]
        self.session.add(row)
        self.session.flush()
        return row


@pytest.fixture
def world() -> Iterator[World]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield World(session)
    engine.dispose()


def test_nothing_is_in_use_at_first(world: World) -> None:
    assert in_use(world.session, 50) == set()


def test_the_newest_releases_of_each_app_are_kept(world: World) -> None:
    for name in ("one", "two"):
        app = world.app(name)
        for version in range(1, 7):
            world.release(app, version, world.slug(app, f"{name}-{version}"))
    assert in_use(world.session, 2) == {"one-5", "one-6", "two-5", "two-6"}


def test_releases_that_share_a_slug_count_one_by_one(world: World) -> None:
    app = world.app("one")
    old, new = world.slug(app, "old"), world.slug(app, "new")
    world.release(app, 1, old)
    for version in range(2, 6):
        world.release(app, version, new)
    assert in_use(world.session, 4) == {"new"}
    assert in_use(world.session, 5) == {"old", "new"}


def test_the_current_release_is_kept_however_old(world: World) -> None:
    app = world.app("one")
    world.release(app, 1, world.slug(app, "current"), current=True)
    for version in range(2, 9):
        world.release(app, version, world.slug(app, f"failed-{version}"), status="failed")
    assert in_use(world.session, 2) == {"current", "failed-7", "failed-8"}


def test_what_a_dyno_runs_is_kept(world: World) -> None:
    app = world.app("one")
    world.dyno(app, world.release(app, 1, world.slug(app, "running")))
    for version in range(2, 5):
        world.release(app, version, world.slug(app, f"later-{version}"))
    assert in_use(world.session, 1) == {"running", "later-4"}


def test_releases_and_builds_under_way_are_kept(world: World) -> None:
    app = world.app("one")
    world.release(app, 1, world.slug(app, "releasing"), status="pending")
    world.release(app, 2, world.slug(app, "newest"))
    world.build(app, world.slug(app, "built"), "pending")
    world.build(app, world.slug(app, "finished"), "succeeded")
    world.build(app, None, "pending")
    assert in_use(world.session, 1) == {"releasing", "newest", "built"}


def test_releases_without_a_slug_are_no_trouble(world: World) -> None:
    app = world.app("one")
    world.release(app, 1, None, kind="initial", current=True)
    world.release(app, 2, world.slug(app, None))
    assert in_use(world.session, 50) == set()
