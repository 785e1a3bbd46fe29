"""API tokens as the account that owns them sees them, and passwords (argon2id) for those who log in with one."""

from __future__ import annotations

from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import InvalidParams, NotFound, Unauthorized
from state import audit
from state.accounts import INVALID_CREDENTIALS
from state.models import Account, Token

SHORTEST_PASSWORD = 12


@lru_cache(maxsize=1)
def _hasher() -> PasswordHasher:
    return PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)  # OWASP's password storage cheat sheet: 19 MiB


@lru_cache(maxsize=1)
def _nobody() -> str:
    """A hash that is checked when there is no account, so that time does not tell who has one."""
    return _hasher().hash("nobody has this password")


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


def set_password(session: Session, by: Account, account: Account, password: object) -> None:
    """Let ``account`` log in with a password.

    Raises:
        InvalidParams: it is too short or too long.
    """
    if not isinstance(password, str) or not SHORTEST_PASSWORD <= len(password) <= 512:
        raise InvalidParams(f"A password must have {SHORTEST_PASSWORD} to 512 characters.")
    account.password_hash = _hasher().hash(password)
    audit.record(session, by, "accounts:password", email=account.email)


def authenticate_password(session: Session, email: str, password: str) -> Account:
    """The account that this address and password open.

    Raises:
        Unauthorized: none; the same sentence, and the same time, for an unknown address and a wrong password.
    """
    account = session.scalar(select(Account).where(Account.email == email.strip().lower()))
    known = account.password_hash if account else None
    try:
        _hasher().verify(known or _nobody(), password)
    except (VerificationError, InvalidHashError):
        raise Unauthorized(INVALID_CREDENTIALS) from None
    if account is None or known is None:
        raise Unauthorized(INVALID_CREDENTIALS)
    return account
