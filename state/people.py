"""Accounts as an admin looks after them."""

from __future__ import annotations

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from foundation.errors import Conflict
from state import audit
from state.models import Account, App, Collaborator, SshKey, Token


def everybody(session: Session) -> list[Account]:
    """Every account, by address."""
    return list(session.scalars(select(Account).order_by(Account.email)))


def find(session: Session, identity: str) -> Account | None:
    """The account with this address or id."""
    return session.scalar(select(Account).where(or_(Account.email == identity.strip().lower(), Account.id == identity)))


def rename(session: Session, by: Account, account: Account, name: str | None) -> None:
    """Change what a person is called."""
    account.name = name
    audit.record(session, by, "accounts:rename", email=account.email)


def remove(session: Session, by: Account, account: Account) -> None:
    """Remove an account with its tokens, keys and collaborations.

    Raises:
        Conflict: it owns apps, or releases and builds name it as their author.
    """
    if session.scalar(select(App.id).where(App.owner_id == account.id).limit(1)):
        raise Conflict(f"{account.email} owns apps; destroy them first.", status=422)
    for table in (Token, SshKey, Collaborator):
        session.execute(delete(table).where(table.account_id == account.id))
    session.delete(account)
    try:
        session.flush()
    except IntegrityError:
        raise Conflict(
            f"{account.email} has made builds or releases that still exist, which name it; keep it.", status=422
        ) from None
    audit.record(session, by, "accounts:destroy", email=account.email)
