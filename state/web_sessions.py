"""Browsers that are logged in: a cookie of 256 random bits, of which the database keeps the SHA-256.

    text, row = web_sessions.start(session, account, "Firefox on Linux")   # text goes into the cookie
    row = web_sessions.find(session, text)                                 # row.account is who it is
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, not_, select
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import NotFound, Unauthorized
from state import audit
from state.models import Account, WebSession

LIFETIME = timedelta(days=30)
"""How long a browser stays logged in at the most."""
IDLE = timedelta(days=7)
"""How long it stays so without being used."""
SEEN = timedelta(minutes=10)
"""How exactly the last use is known: a page view is a write at most that often."""
LOGGED_OUT = "You are logged out; log in again."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def start(session: Session, account: Account, description: str, host: str = "") -> tuple[str, WebSession]:
    """Log a browser in; returns the cookie's text (never stored) and the row.

    Args:
        description: the browser, as its owner recognises it.
        host: the host name at which it asked.
    """
    text = secrets.token_urlsafe(32)
    _sweep(session, account)
    row = WebSession(
        account_id=account.id, sha256=_digest(text), description=description[:255], host=host[:253], expires_at=now() + LIFETIME
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    audit.record(session, account, "sessions:create", description=row.description)
    return text, row


def _sweep(session: Session, account: Account) -> None:
    """Forget the account's sessions that are over."""
    session.execute(delete(WebSession).where(WebSession.account_id == account.id, not_(in_force())))


def in_force() -> ColumnElement[bool]:
    """What a session fulfils that is neither over nor unused for too long, as a condition of queries."""
    return and_(WebSession.expires_at > now(), WebSession.last_seen_at > now() - IDLE)


def find(session: Session, text: str) -> WebSession:
    """The session that a cookie belongs to, its account loaded.

    Raises:
        Unauthorized: none, it has ended, or it was not used for too long.
    """
    row = session.scalar(select(WebSession).where(WebSession.sha256 == _digest(text), in_force()))
    if row is None:
        raise Unauthorized(LOGGED_OUT)
    return row


def needs_touch(row: WebSession) -> bool:
    """Whether :func:`touch` would write: ask in a snapshot, so that most page views write nothing."""
    return row.last_seen_at < now() - SEEN


def touch(session: Session, row: WebSession) -> None:
    """The browser was seen."""
    if needs_touch(row):
        row.last_seen_at = now()


def all_of(session: Session, account: Account) -> list[WebSession]:
    """The account's sessions that are in force, oldest first."""
    query = select(WebSession).where(WebSession.account_id == account.id, in_force())
    return list(session.scalars(query.order_by(WebSession.created_at, WebSession.id)))


def end(session: Session, account: Account, identity: str) -> WebSession:
    """Log a browser out, named by the session's id.

    Raises:
        NotFound: the account has no such session.
    """
    row = session.get(WebSession, identity)
    if row is None or row.account_id != account.id:
        raise NotFound("Couldn't find that session.", resource="session")
    session.delete(row)
    audit.record(session, account, "sessions:destroy", description=row.description)
    return row


def end_all(session: Session, account: Account, *, keep: WebSession | None = None) -> None:
    """Log all of the account's browsers out, but for ``keep``."""
    query = delete(WebSession).where(WebSession.account_id == account.id)
    session.execute(query.where(WebSession.id != keep.id) if keep else query)
