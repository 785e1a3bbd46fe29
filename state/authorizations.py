"""API tokens as the account that owns them sees them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import NotFound
from state import audit
from state.models import Account, Token


def all_of(session: Session, account: Account) -> list[Token]:
    """The account's valid tokens, oldest first."""
    query = select(Token).where(Token.account_id == account.id, (Token.expires_at.is_(None)) | (Token.expires_at > now()))
    return list(session.scalars(query.order_by(Token.created_at, Token.id)))


def find(session: Session, account: Account, identity: str) -> Token:
    """One of the account's tokens, by id.

    Raises:
        NotFound: it has none such.
    """
    token = session.get(Token, identity)
    if token is None or token.account_id != account.id:
        raise NotFound("Couldn't find that authorization.")
    return token


def remove(session: Session, account: Account, identity: str) -> Token:
    """Take a token away; it opens nothing from now on.

    Raises:
        NotFound: the account has none such.
    """
    token = find(session, account, identity)
    session.delete(token)
    audit.record(session, account, "authorizations:destroy", description=token.description)
    return token
