"""Who calls: ``Authorization: Bearer TOKEN``, Basic with the token as password, or (to log in) e-mail address and password."""

from __future__ import annotations

import base64
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy.orm import Session

from foundation.errors import DavitError, Unauthorized
from state import accounts, authorizations
from state.models import Account, Token

MISSING = "There were no credentials in your `Authorization` header. Try `Authorization: Bearer <OAuth access token>`."


class TooManyAttempts(DavitError):
    """Too many wrong passwords for one account."""

    id, status = "rate_limit", 429


@dataclass(frozen=True)
class Identity:
    """The caller, and the token that was shown (None after a login by password)."""

    account: Account
    token: Token | None
    text: str = ""

    def within(self, session: Session) -> Identity:
        """The same caller as an object of another session, as the database has them now.

        Raises:
            Unauthorized: the account or its token was removed meanwhile.
        """
        account = session.get(Account, self.account.id)
        token = session.get(Token, self.token.id) if self.token else None
        if account is None or (self.token is not None and token is None):
            raise Unauthorized(accounts.INVALID_CREDENTIALS)
        return Identity(account, token, self.text)


def identify(session: Session, header: str | None, *, passwords: bool) -> Identity:
    """The account that an Authorization header proves.

    Args:
        passwords: whether e-mail address and password are taken, too.

    Raises:
        Unauthorized: it proves none.
        TooManyAttempts: this account's password was wrong too often of late.
    """
    scheme, _, rest = (header or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        token = rest.strip()
    elif scheme.lower() == "basic":
        user, token = _basic(rest)
        if passwords and "@" in user:
            return Identity(_by_password(session, user, token), None)
        token = token or user
    else:
        raise Unauthorized(MISSING)
    row = accounts.find_token(session, token)
    return Identity(row.account, row, token)


def _basic(encoded: str) -> tuple[str, str]:
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise Unauthorized("The `Authorization: Basic` header cannot be read.") from None
    return user.replace("\x00", ""), password.replace("\x00", "")


_hashing = threading.BoundedSemaphore(2)  # a password check takes 19 MiB: strangers must not take them all at once


def _by_password(session: Session, email: str, password: str) -> Account:
    wrong_attempts.check(email)
    with _hashing:
        try:
            return authorizations.authenticate_password(session, email, password)
        except Unauthorized:
            wrong_attempts.note(email)
            raise


class WrongAttempts:
    """Counts wrong passwords per address; forgets them after a while, and the oldest when there are too many addresses."""

    def __init__(self, most: int = 10, seconds: float = 600, addresses: int = 10_000) -> None:
        self._most, self._seconds, self._addresses = most, seconds, addresses
        self._lock = threading.Lock()
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise TooManyAttempts when there were too many of late."""
        with self._lock:
            times = self._times.get(address.lower(), [])
            recent = [at for at in times if at > time.monotonic() - self._seconds]
        if len(recent) >= self._most:
            raise TooManyAttempts("The password was wrong too often; try again in ten minutes, or use an API token.")

    def note(self, address: str) -> None:
        """Count one."""
        with self._lock:
            times = self._times.setdefault(address.lower(), [])
            times.append(time.monotonic())
            del times[: -self._most]
            self._times.move_to_end(address.lower())
            if len(self._times) > self._addresses:
                self._times.popitem(last=False)


wrong_attempts = WrongAttempts()
