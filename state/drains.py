"""Log drains: where an app's lines are sent; the ``logs`` process sends them."""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation import outbound, wire
from foundation.errors import InvalidParams, NotFound
from foundation.settings import settings
from state import audit, notify, vault
from state.db import after_commit
from state.models import Account, App, LogDrain

LIMIT = 5
"""Drains of one app (Heroku's limit)."""
SCHEMES = ("https", "http", "syslog+tls", "syslog")


def parse(url: str) -> outbound.Place:
    """A drain's URL.

    Raises:
        InvalidParams: it cannot be one.
    """
    return outbound.parse(url, SCHEMES)


def url_of(row: LogDrain) -> str:
    """The URL; it may hold a password."""
    return vault.reveal(row.url)["url"]


def all_of(session: Session, app: App) -> list[LogDrain]:
    """The app's drains, oldest first."""
    return list(session.scalars(select(LogDrain).where(LogDrain.app_id == app.id).order_by(LogDrain.created_at, LogDrain.id)))


def find(session: Session, app: App, identity: str) -> LogDrain:
    """The app's drain with this id, token or URL.

    Raises:
        NotFound: it has none.
    """
    for row in all_of(session, app):
        if identity in (row.id, row.token) or identity == url_of(row):
            return row
    raise NotFound("Couldn't find that log drain.")


def add(session: Session, account: Account, app: App, url: str) -> LogDrain:
    """Send the app's lines to ``url``, which has been checked with :func:`foundation.outbound.check`.

    Raises:
        InvalidParams: no drain can be there, it is one already, or there are too many.
    """
    place = parse(url)
    present = all_of(session, app)
    if any(url_of(row) == url for row in present):
        raise InvalidParams("Field url: the app has this log drain already.")
    if len(present) >= LIMIT:
        raise InvalidParams(f"An app has at most {LIMIT} log drains; remove one first.")
    row = LogDrain(app_id=app.id, token=f"d.{uuid.uuid4()}", url=vault.seal({"url": url}))
    session.add(row)
    session.flush()
    audit.record(session, account, "drains:add", app, to=place.shown)
    notify.announce(session, app.id, f"Add log drain {place.shown} by user {account.email}")
    _tell(session)
    return row


def remove(session: Session, account: Account, app: App, identity: str) -> LogDrain:
    """Send nothing there any more.

    Raises:
        NotFound: the app has no such drain.
    """
    row = find(session, app, identity)
    session.delete(row)
    audit.record(session, account, "drains:remove", app, to=parse(url_of(row)).shown)
    _tell(session)
    return row


def _tell(session: Session) -> None:
    after_commit(session, lambda: wire.nudge(settings().run / "logs.sock", "drains"))
