"""Accounts as an admin looks after them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from foundation import line
from foundation.errors import Conflict
from state import audit, oauth
from state.models import (
    Account,
    AccountFeature,
    App,
    AppTransfer,
    Build,
    Collaborator,
    LoginApproval,
    Pipeline,
    Release,
    SecondFactor,
    SshKey,
    Token,
    WebSession,
)

_REMOVED = " (removed)"
"""Ends the name of an account that only history still knows; no address ends so, and nobody can log in as it."""


def everybody(session: Session) -> list[Account]:
    """Every account that somebody can use, by address."""
    return list(session.scalars(select(Account).where(~Account.email.endswith(_REMOVED)).order_by(Account.email)))


def find(session: Session, identity: str) -> Account | None:
    """The account with this address or id."""
    return session.scalar(select(Account).where(or_(Account.email == identity.strip().lower(), Account.id == identity)))


def rename(session: Session, by: Account, account: Account, name: str | None) -> None:
    """Change what a person is called.

    Raises:
        InvalidParams: the name is not one line.
    """
    if account.name == name:
        return
    line.demand("name", name)
    account.name = name
    audit.record(session, by, "accounts:rename", email=account.email)


def remove(session: Session, by: Account, account: Account) -> None:
    """Remove an account with its tokens, keys, password and collaborations.

    Where builds or releases name it as their author its row stays for them, without any access, under another name.

    Raises:
        Conflict: it owns apps.
    """
    if session.scalar(select(App.id).where(App.owner_id == account.id).limit(1)):
        raise Conflict(f"{account.email} owns apps; destroy them first.", status=422)
    for client in oauth.clients(session, account):
        oauth.destroy_client(session, by, client)
    session.execute(delete(AppTransfer).where(or_(AppTransfer.owner_id == account.id, AppTransfer.recipient_id == account.id)))
    session.execute(delete(Pipeline).where(Pipeline.owner_id == account.id))
    access: list[Any] = [AccountFeature, Token, SshKey, Collaborator, WebSession, LoginApproval, SecondFactor]
    for table in access:
        session.execute(delete(table).where(table.account_id == account.id))
    audit.record(session, by, "accounts:destroy", email=account.email)
    if any(session.scalar(select(table.id).where(table.account_id == account.id).limit(1)) for table in (Build, Release)):
        account.email = f"{account.email[:200]} {account.id[:8]}{_REMOVED}"
        account.password_hash, account.is_admin, account.two_factor = None, False, False
    else:
        session.delete(account)
    session.flush()
