"""What every build does in its process, done once before: by whoever forks the builds, or (better) forks those who do.

The memory that it takes is shared then by all processes that are forked later.
"""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import select
from sqlalchemy.orm import Session, configure_mappers

from builder import buildpacks, sandbox
from state import apps, builds, db, releases
from state.models import Account, App, Build, Release, Slug


@lru_cache(maxsize=1)
def rehearse() -> None:
    """Load, and run once, what every build needs; a second call does nothing."""
    buildpacks.bundled_archive()
    sandbox.program()
    configure_mappers()
    with db.snapshot() as session:
        for table in (Build, App, Account):
            session.get(table, "")
    _build()


def _build() -> None:
    """Do in the database what a build does, and undo it: what SQLAlchemy compiles for that, every build then has at once."""
    with Session(db.engine().execution_options(write=True), expire_on_commit=False) as session:
        owner = session.scalar(select(Account).where(Account.is_admin).limit(1))
        if owner is None:
            return
        app = apps.create(session, owner)
        build = builds.create(session, app, owner, commit="0" * 40, ref="refs/heads/main")
        builds.next_turn(session, app.id)
        session.flush()
        session.expunge(build)
        builds.begin(session, build.id)
        slug = Slug(app_id=app.id, digest="", size=0, stack=app.stack, commit="0" * 40, process_types={"web": ""})
        session.add(slug)
        session.flush()
        release = releases.create(session, app, owner, kind="deploy", description="", slug=slug)
        builds.releasing(session, build.id, slug, release)
        session.flush()
        session.expunge_all()
        session.get(Release, release.id)
        builds.succeed(session, build.id)
        session.flush()
        session.rollback()
