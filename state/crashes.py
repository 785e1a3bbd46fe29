"""Crashes of an app's dynos: a dyno's row is gone when the next one is started, this is what is known of it afterwards."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from state.models import Crash, Dyno

KEPT = 100
"""Crashes of an app that are kept: one that crashes for ever takes no more room than that."""


def record(session: Session, row: Dyno, exit_status: int | None, why: str = "") -> None:
    """Note that a dyno has crashed, and forget the app's oldest crashes.

    Args:
        exit_status: how its process ended: 128 and the signal's number when it was killed; None when nobody knows, or when it
            was still there.
        why: a sentence, where there is more to say than the status does.
    """
    crash = Crash(app_id=row.app_id, dyno=row.name, release_version=row.release_version, exit_status=exit_status, why=why or None)
    session.add(crash)
    session.flush()
    of_app = select(Crash.created_at).where(Crash.app_id == row.app_id).order_by(Crash.created_at.desc())
    oldest = session.scalar(of_app.offset(KEPT - 1).limit(1))
    if oldest is not None:
        session.execute(delete(Crash).where(Crash.app_id == row.app_id, Crash.created_at < oldest))


def newest(session: Session, app_id: str, most: int = KEPT) -> list[Crash]:
    """The app's crashes, the newest first."""
    of_app = select(Crash).where(Crash.app_id == app_id)
    return list(session.scalars(of_app.order_by(Crash.created_at.desc()).limit(most)))
