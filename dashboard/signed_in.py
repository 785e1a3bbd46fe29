"""Who looks: the browser's session, by its cookie."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Request
from sqlalchemy.orm import Session

from dashboard import cookies
from foundation.errors import Unauthorized
from state import web_sessions
from state.db import transaction
from state.models import Account, WebSession


@dataclass(frozen=True)
class SignedIn:
    """A browser that is signed in; ``secret`` is its cookie."""

    row: WebSession
    secret: str

    @property
    def account(self) -> Account:
        """Whose session it is."""
        return self.row.account

    def within(self, session: Session) -> SignedIn:
        """The same as an object of another database session, as the database has it now.

        Raises:
            Unauthorized: it was ended meanwhile.
        """
        return SignedIn(web_sessions.find(session, self.secret), self.secret)


def recognize(session: Session, request: Request) -> SignedIn | None:
    """Whose browser this is; None when nobody is signed in on it."""
    secret = cookies.get(cookies.SESSION)
    if not secret:
        return None
    try:
        row = web_sessions.find(session, secret)
    except Unauthorized:
        return None
    if web_sessions.needs_touch(row):
        session.rollback()  # a snapshot must not be held while we wait for our turn to write
        with transaction(momentary=True) as writing:
            web_sessions.touch(writing, web_sessions.find(writing, secret))
        row = web_sessions.find(session, secret)
    return SignedIn(row, secret)
