"""Who changed what and when: one event in the transaction of every change."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from state import outbox
from state.models import Account, App, AuditEvent


def record(session: Session, account: Account | None, action: str, app: App | None = None, **details: Any) -> None:
    """Append an audit event.

    Args:
        account: who did it; None for Davit itself.
        action: ``noun:verb`` as the CLI names it (``config:set``).
        app: the app it concerns.
        details: names and numbers, never values of config vars or other secrets.
    """
    outbox.act_as(session, account)
    session.add(
        AuditEvent(
            account_id=account.id if account else None,
            actor=account.email if account else "davit",
            action=action,
            app_id=app.id if app else None,
            app_name=app.name if app else None,
            details=details,
        )
    )
