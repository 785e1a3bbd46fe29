"""Logging in: password, then (where the account has one) the second factor; and command lines that log in by the browser.

A face checks the password with nothing of the database in hand (it takes its time), then finishes in a write transaction:

    account_id = passwords.known(email, password)
    with transaction() as session:
        account = logins.finish(session, account_id, code)
        cookie, row = web_sessions.start(session, account, "Firefox on Linux")

``heroku login`` without -i asks (``POST /auth``) for two signed secrets, opens the first in a browser and waits at the
second. Nothing is stored until somebody who is logged in has answered: strangers cannot fill the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from foundation import line
from foundation.clock import now
from foundation.errors import Conflict, Unauthorized
from state import accounts, audit, signatures, two_factor
from state.models import Account, LoginApproval, Token, new_id

REQUEST_SECONDS = 600
"""How long a command line's request to be logged in can be answered."""
TOKEN_LIFETIME = timedelta(days=30)
"""How long the token of a login lasts (what Heroku's client asks for)."""


def finish(session: Session, account_id: str, code: str | None) -> Account:
    """Complete a login whose password was right.

    Args:
        code: the two-factor code, or a recovery code; None when the person gave none.

    Raises:
        TwoFactorRequired: the account has a second factor and the code is missing or wrong.
        TooManyAttempts: codes were wrong too often of late.
        Unauthorized: the account was removed meanwhile.
    """
    account = session.get(Account, account_id)
    if account is None or account.password_hash is None:
        raise Unauthorized(accounts.INVALID_CREDENTIALS)
    two_factor.check(session, account, code)
    account.last_login = now()
    return account


@dataclass(frozen=True)
class Request:
    """A command line that wants to be logged in.

    Attributes:
        description: what it says that it is (hostile text).
        source: the network address that it asked from.
    """

    id: str
    description: str
    source: str


@dataclass(frozen=True)
class Secrets:
    """What the command line gets: ``browser`` for the page that a person answers on, ``waiting`` to hear the answer."""

    browser: str
    waiting: str


def ask(description: str, source: str) -> Secrets:
    """A command line asks to be logged in.

    Raises:
        InvalidParams: the description is not one line.
    """
    line.demand("description", description)
    what = {"request": new_id(), "description": description[:200], "source": source}
    return Secrets(
        signatures.sign("login-browser", what, REQUEST_SECONDS), signatures.sign("login-waiting", what, REQUEST_SECONDS)
    )


def asked(secret: str) -> Request:
    """What the browser's secret stands for.

    Raises:
        NotFound: it is forged or has expired.
    """
    return _read("login-browser", secret)


def waiting(secret: str) -> Request:
    """What the command line's secret stands for.

    Raises:
        NotFound: it is forged or has expired.
    """
    return _read("login-waiting", secret)


def _read(kind: str, secret: str) -> Request:
    what = signatures.read(kind, secret)
    return Request(what["request"], what["description"], what["source"])


def approve(session: Session, account: Account, request: Request) -> None:
    """Let the command line act as ``account``.

    Raises:
        Conflict: it was answered before.
    """
    _answer(session, account, request, True)


def deny(session: Session, account: Account, request: Request) -> None:
    """Refuse the command line.

    Raises:
        Conflict: it was answered before.
    """
    _answer(session, account, request, False)


def _answer(session: Session, account: Account, request: Request, approved: bool) -> None:
    session.execute(delete(LoginApproval).where(LoginApproval.expires_at <= now()))
    if session.scalar(select(LoginApproval.id).where(LoginApproval.request_id == request.id)):
        raise Conflict("That login was answered already.")
    session.add(
        LoginApproval(
            request_id=request.id, account_id=account.id, approved=approved, description=request.description,
            expires_at=now() + timedelta(seconds=2 * REQUEST_SECONDS),
        )
    )  # fmt: skip
    audit.record(session, account, "login:approve" if approved else "login:deny", source=request.source)
    session.flush()


def is_answered(session: Session, request: Request) -> bool:
    """Whether :func:`collect` has something to collect."""
    return session.scalar(select(LoginApproval.id).where(LoginApproval.request_id == request.id)) is not None


def collect(session: Session, request: Request) -> tuple[str, Token] | None:
    """The token (its text, and its row) for a command line whose request was approved, once; None when it was refused."""
    row = session.scalar(select(LoginApproval).where(LoginApproval.request_id == request.id).with_for_update())
    if row is None or not row.approved:
        return None
    account = session.get(Account, row.account_id)
    if account is None or row.expires_at <= now():
        return None
    row.approved = False  # the row stays until it expires: the request can be neither answered nor collected again
    account.last_login = now()
    return accounts.issue_token(session, account, row.description or "browser login", lifetime=TOKEN_LIFETIME)
