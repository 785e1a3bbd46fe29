"""API tokens as the account that owns them sees them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation import line
from foundation.clock import now
from foundation.errors import Conflict, NotFound
from state import accounts, audit
from state.models import Account, Token


def all_of(session: Session, account: Account) -> list[Token]:
    """The account's valid tokens, and what can still become one, oldest first."""
    lives = Token.expires_at.is_(None) | (Token.expires_at > now()) | Token.refresh_sha256.is_not(None)
    query = select(Token).where(Token.account_id == account.id, lives | (Token.grant_expires_at > now()))
    return list(session.scalars(query.order_by(Token.created_at, Token.id)))


def find(session: Session, account: Account, identity: str) -> Token:
    """One of the account's tokens, by id.

    ``~`` is its API key, Heroku's word for the token that more than one client relies on. Here that is what ``davit`` works with
    on this machine, and only its owner's account has one.

    Raises:
        NotFound: it has none such.
    """
    token = accounts.owner_token(session) if identity == "~" else session.get(Token, identity)
    if token is None or token.account_id != account.id:
        raise NotFound("Couldn't find that authorization.", resource="authorization")
    return token


def remove(session: Session, account: Account, identity: str) -> Token:
    """Take a token away; it opens nothing from now on.

    Raises:
        NotFound: the account has none such. Conflict: it is what ``davit`` works with on this machine.
    """
    token = find(session, account, identity)
    if token is accounts.owner_token(session):
        raise Conflict("That is the token by which davit works on this machine, so it is not taken away; rotate it instead.")
    session.delete(token)
    audit.record(session, account, "authorizations:destroy", description=token.description)
    return token


def regenerate(session: Session, account: Account, identity: str) -> tuple[str, Token]:
    """Give an authorization another token (its text is shown once), with the lifetime that it was made with.

    ``davit`` on this machine goes on with the new one where it worked with the old.

    Raises:
        NotFound: the account has none such.
    """
    token = find(session, account, identity)
    if token.expires_at is not None:
        token.expires_at = now() + (timedelta(seconds=token.lifetime) if token.lifetime else token.expires_at - token.created_at)
    is_owners = token is accounts.owner_token(session)
    text = accounts.renew_token(session, token)
    audit.record(session, account, "authorizations:rotate", description=token.description)
    if is_owners:  # before the commit: a disk that is full changes neither; where the commit fails, the next start mends it
        accounts.write_owner_token(text)
    return text, token


def describe(session: Session, account: Account, identity: str, description: str) -> Token:
    """Change what an authorization is called.

    Raises:
        NotFound: the account has none such. InvalidParams: the description is not one line.
    """
    token = find(session, account, identity)
    line.demand("description", description)
    token.description = description
    session.flush()
    audit.record(session, account, "authorizations:update", description=description)
    return token
