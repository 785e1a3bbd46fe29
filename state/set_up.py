"""The first sign-in: a link that only the machine's owner sees makes the owner's account one that signs in by password.

The link is signed and good for a day, and only as long as the owner's account has no password: so it works once, and
nothing has to be remembered.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.errors import Conflict, NotFound
from state import audit, passwords, signatures
from state.accounts import check_address
from state.models import Account

SECONDS = 24 * 3600
_KIND = "set-up"


def owner(session: Session) -> Account | None:
    """The account of the machine's owner: the first admin."""
    return session.scalar(select(Account).where(Account.is_admin).order_by(Account.created_at).limit(1))


def secret(session: Session) -> str | None:
    """What the link ends with; None when the owner can sign in already."""
    account = owner(session)
    if account is None or account.password_hash is not None:
        return None
    return signatures.sign(_KIND, {"account": account.id}, SECONDS)


def done(session: Session) -> bool:
    """Whether somebody can sign in by password; until then the link is the way in."""
    return session.scalar(select(Account.id).where(Account.password_hash.is_not(None)).limit(1)) is not None


def whom(session: Session, text: str) -> Account:
    """The account that a link sets up.

    Raises:
        NotFound: the link is forged, has expired, or was used.
    """
    try:
        account = session.get(Account, signatures.read(_KIND, text)["account"])
    except NotFound:
        account = None
    if account is None or account.password_hash is not None:
        raise NotFound("That link has been used or has expired; `davit dashboard` on the machine prints another.")
    return account


def complete(session: Session, text: str, email: str, password: str) -> Account:
    """Give the owner's account an address and a password.

    Raises:
        NotFound: as :func:`whom`.
        InvalidParams: the address is none, or the password too short.
        Conflict: another account has the address.
    """
    account = whom(session, text)
    address = check_address(email)
    if session.scalar(select(Account.id).where(Account.email == address, Account.id != account.id)):
        raise Conflict(f"There is already an account for {address}.")
    passwords.assign(session, account, account, password)
    account.email = address
    audit.record(session, account, "accounts:set-up", email=address)
    session.flush()
    return account
