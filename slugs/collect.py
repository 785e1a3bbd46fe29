"""Which slugs are needed still."""

from __future__ import annotations

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from foundation.settings import settings
from state.db import alone
from state.models import Build, Dyno, Release, Slug


def in_use(session: Session, releases_kept: int | None = None) -> set[str]:
    """The digests of all slugs that something needs or may yet need.

    Those of each app's newest releases (what can be rolled back to), of current releases, of releases under way, of the
    releases that dynos run, and of builds that are not finished.

    Args:
        releases_kept: newest releases per app that can be rolled back to; the setting by default.
    """
    kept = releases_kept if releases_kept is not None else settings().releases_kept
    rank = func.row_number().over(partition_by=Release.app_id, order_by=Release.version.desc()).label("rank")
    ranked = select(Release.id, rank).subquery()
    newest = select(ranked.c.id).where(ranked.c.rank <= kept)
    running = select(Dyno.release_id).where(Dyno.release_id.is_not(None))
    wanted = or_(Release.id.in_(newest), Release.current, Release.status == "pending", Release.id.in_(running))
    released = select(Release.slug_id).where(wanted, Release.slug_id.is_not(None))
    building = select(Build.slug_id).where(Build.status == "pending", Build.slug_id.is_not(None))
    digests = select(Slug.digest).where(or_(Slug.id.in_(released), Slug.id.in_(building)), Slug.digest.is_not(None))
    return {digest for digest in session.scalars(digests) if digest}


def keep(young: set[str]) -> set[str]:
    """The digests that must stay; of all other slugs the rows say from now on that they are gone, before any file is.

    Nobody writes to the database meanwhile: a release that is made of an old slug comes before, and the slug is in use; or after,
    and is refused.

    Args:
        young: digests that are kept whoever needs them.
    """
    with alone() as session:
        needed = in_use(session)
        stays = needed | young
        stored = session.execute(select(Slug.id, Slug.digest).where(Slug.digest.is_not(None))).all()
        if gone := [{"id": id, "digest": None} for id, digest in stored if digest not in stays]:
            session.execute(update(Slug), gone)
    return needed
