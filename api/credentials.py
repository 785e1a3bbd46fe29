"""Who calls: ``Authorization: Bearer TOKEN``, Basic with the token as password, or (to log in) e-mail address and password."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from sqlalchemy.orm import Session

from api import limits
from foundation.errors import Unauthorized
from state import accounts, passwords
from state.models import Account, Token

MISSING = "There were no credentials in your `Authorization` header. Try `Authorization: Bearer <OAuth access token>`."


@dataclass(frozen=True)
class Identity:
    """The caller, and the token that was shown (None after a login by password)."""

    account: Account
    token: Token | None
    text: str = ""

    def within(self, session: Session) -> Identity:
        """The same caller as an object of another session, as the database has them now.

        Raises:
            Unauthorized: the account was removed meanwhile, or its token was, or renewed, or has expired.
        """
        if self.token is not None:
            account: Account | None = accounts.bearer(session, self.token.id, accounts.mark(self.token))
        else:
            account = session.get(Account, self.account.id)
        if account is None:
            raise Unauthorized(accounts.INVALID_CREDENTIALS)
        return Identity(account, session.get(Token, self.token.id) if self.token else None, self.text)


def identify(session: Session, header: str | None, *, by_password: bool) -> Identity:
    """The account that an Authorization header proves.

    Args:
        by_password: whether e-mail address and password are taken, too.

    Raises:
        Unauthorized: it proves none.
        TooManyAttempts: this account's password was wrong too often of late.
    """
    scheme, _, rest = (header or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        token = rest.strip()
    elif scheme.lower() == "basic":
        user, token = _basic(rest)
        if by_password and "@" in user:
            return Identity(_by_password(session, user, token), None)
        token = token or user
    else:
        raise Unauthorized(MISSING)
    row = accounts.find_token(session, token)
    return Identity(row.account, row, token)


def _by_password(session: Session, user: str, password: str) -> Account:
    with limits.guessing():
        account = session.get(Account, passwords.known(user, password))
    if account is None:
        raise Unauthorized(MISSING)
    return account


def _basic(encoded: str) -> tuple[str, str]:
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise Unauthorized("The `Authorization: Basic` header cannot be read.") from None
    return user.replace("\x00", ""), password.replace("\x00", "")
