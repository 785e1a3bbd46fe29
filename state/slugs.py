"""Slugs that somebody makes without a build: a row first, then the tarball that fills it, then a release of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from foundation import line
from foundation.clock import now
from foundation.errors import Conflict, InvalidParams, NotFound
from state import audit
from state.models import Account, App, Slug

MOST_EMPTY = 50
"""Slugs of one app that wait for their tarball."""
WAITS = timedelta(days=1)
"""How long a slug waits for its tarball."""
MOST_TYPES = 100
_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
_LINE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]{1,4096}")


def create(
    session: Session, account: Account, app: App, process_types: Mapping[str, str], *, stack: str, commit: str | None = None,
    commit_description: str | None = None, buildpack_provided_description: str | None = None,
) -> Slug:
    """Make a slug that waits for its tarball.

    Args:
        process_types: command lines by name, as in a Procfile.

    Raises:
        InvalidParams: a process type cannot be, commit or buildpack's description are not one line, or the app has too many slugs
            that wait.
    """
    line.demand("commit", commit)
    line.demand("buildpack_provided_description", buildpack_provided_description)
    session.execute(delete(Slug).where(Slug.app_id == app.id, Slug.size.is_(None), Slug.created_at < now() - WAITS))
    waiting = select(func.count()).select_from(Slug).where(Slug.app_id == app.id, Slug.size.is_(None))
    if (session.scalar(waiting) or 0) >= MOST_EMPTY:
        raise InvalidParams(f"{app.name} has {MOST_EMPTY} slugs that wait for their tarball; upload to one of those.")
    row = Slug(
        app_id=app.id, stack=stack, process_types=_checked(process_types), commit=commit, commit_description=commit_description,
        buildpack_provided_description=buildpack_provided_description, default_config={}, healthchecks={},
    )  # fmt: skip
    session.add(row)
    session.flush()
    audit.record(session, account, "slugs:create", app)
    return row


def _checked(process_types: Mapping[str, str]) -> dict[str, str]:
    if not 1 <= len(process_types) <= MOST_TYPES:
        raise InvalidParams(f'Field process_types must name 1 to {MOST_TYPES} types, for example {{"web": "bin/serve"}}.')
    for name, command in process_types.items():
        if not _TYPE.fullmatch(name):
            raise InvalidParams("Field process_types: a name is made of letters, digits, - and _, and of 63 at the most.")
        if not command.strip() or not _LINE.fullmatch(command):
            raise InvalidParams(f"Field process_types.{name} must be a command: one line, without control characters.")
    return dict(process_types)


def must_be_empty(row: Slug | None) -> None:
    """Whether a tarball may be put there.

    Raises:
        NotFound: there is no such slug.
        Conflict: it has one.
    """
    if row is None:
        raise NotFound("Couldn't find that slug.", resource="slug")
    if row.size is not None:
        raise Conflict("That slug has its tarball, and is never changed; make another slug.")


def fill(session: Session, slug_id: str, digest: str, size: int) -> None:
    """The slug is what was uploaded and sealed.

    Args:
        size: bytes of the sealed image.

    Raises:
        NotFound, Conflict: as :func:`must_be_empty`.
    """
    row = session.scalar(select(Slug).where(Slug.id == slug_id).with_for_update())
    must_be_empty(row)
    assert row is not None
    row.digest, row.size = digest, size
    session.flush()
