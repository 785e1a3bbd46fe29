"""Commands that people run in an app's dynos, and dynos that they stop: who, where and when.

What was run is in the app's log alone: a command may hold a secret, and the audit log is kept when the app is gone.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from foundation import line
from foundation.errors import NotFound, Unauthorized
from state import audit, notify
from state.models import Account, App, Dyno


def started(session: Session, account_id: str, dyno: Dyno) -> None:
    """Somebody starts a one-off dyno; in the transaction that writes it down.

    Raises:
        NotFound, Unauthorized: the app or the account has gone meanwhile.
    """
    account, app = _whose(session, account_id, dyno)
    audit.record(session, account, "dynos:create", app, dyno=dyno.name, size=dyno.size)
    _announce(session, account, dyno, dyno.command or "")


def entered(session: Session, account_id: str, dyno: Dyno, command: str, *, files: bool = False) -> None:
    """Somebody starts a further process in a dyno that runs.

    Args:
        files: the command is Davit's own, and reads a file for them.

    Raises:
        NotFound, Unauthorized: as :func:`started`.
    """
    account, app = _whose(session, account_id, dyno)
    audit.record(session, account, "dynos:files" if files else "dynos:inside", app, dyno=dyno.name)
    if not files:
        _announce(session, account, dyno, command, f" in {dyno.name}")


def stopped(session: Session, account_id: str, dyno: Dyno) -> None:
    """Somebody stops a one-off dyno.

    Raises:
        NotFound, Unauthorized: as :func:`started`.
    """
    account, app = _whose(session, account_id, dyno)
    audit.record(session, account, "ps:stop", app, dyno=dyno.name)
    notify.announce(session, app.id, f"Stop {dyno.name} by user {account.email}")


def _whose(session: Session, account_id: str, dyno: Dyno) -> tuple[Account, App]:
    account, app = session.get(Account, account_id), session.get(App, dyno.app_id)
    if account is None:
        raise Unauthorized("Your account is gone.")
    if app is None:
        raise NotFound("Couldn't find that app.")
    return account, app


def _announce(session: Session, account: Account, dyno: Dyno, command: str, where: str = "") -> None:
    shown = line.of(command.replace("\n", " "))
    notify.announce(session, dyno.app_id, f"Starting process with command `{shown}`{where} by user {account.email}")
