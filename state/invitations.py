"""Invitations: an admin makes an address at which somebody chooses a password, for a new account or one that forgot its own.

Davit sends no mail; the admin hands the secret over. It works once: choosing a password makes it void.
"""

from __future__ import annotations

import hashlib

from sqlalchemy.orm import Session

from foundation.errors import NotFound
from state import passwords, signatures
from state.models import Account

SECONDS = 7 * 24 * 3600
"""How long an invitation can be used."""


def _present(account: Account) -> str:
    """Changes with the password."""
    return hashlib.sha256((account.password_hash or "").encode()).hexdigest()[:16]


def issue(account: Account) -> str:
    """The secret with which its bearer chooses the account's password."""
    return signatures.sign("invitation", {"account": account.id, "present": _present(account)}, SECONDS)


def find(session: Session, secret: str) -> Account:
    """Whose invitation it is.

    Raises:
        NotFound: it is forged, expired or used.
    """
    what = signatures.read("invitation", secret)
    account = session.get(Account, what["account"])
    if account is None or what["present"] != _present(account):
        raise NotFound("That invitation was used already; ask for a new one.")
    return account


def accept(session: Session, secret: str, password: object) -> Account:
    """Choose the account's password; its browsers are logged out, its second factor stays.

    Raises:
        NotFound: the invitation is forged, expired or used.
        InvalidParams: the password is too short or too long.
    """
    account = find(session, secret)
    passwords.assign(session, account, account, password)
    return account
