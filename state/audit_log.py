"""The audit log as an admin reads it: filtered, newest first, page by page, whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from state import pages
from state.models import AuditEvent
from state.pages import Column, Page, Window

BATCH = 500


@dataclass(frozen=True)
class Filter:
    """What is wanted; empty fields want everything.

    Attributes:
        actor: part of who did it.
        action: how the action begins (``config``, ``ps:scale``).
        app: the app's name at the time, or its id.
        since, until: from and up to when.
    """

    actor: str = ""
    action: str = ""
    app: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def query(self) -> Select[AuditEvent]:
        """The events that are wanted, without an order."""
        query = select(AuditEvent)
        if self.actor:
            query = query.where(AuditEvent.actor.contains(self.actor, autoescape=True))
        if self.action:
            query = query.where(AuditEvent.action.startswith(self.action, autoescape=True))
        if self.app:
            query = query.where(or_(AuditEvent.app_name == self.app, AuditEvent.app_id == self.app))
        if self.since:
            query = query.where(AuditEvent.created_at >= self.since)
        if self.until:
            query = query.where(AuditEvent.created_at < self.until)
        return query


def page(session: Session, wanted: Filter, *, offset: int = 0, most: int = 100) -> tuple[list[AuditEvent], bool]:
    """Events from ``offset`` on, newest first, and whether there are more."""
    query = wanted.query().order_by(AuditEvent.created_at.desc(), AuditEvent.id)
    rows = list(session.scalars(query.offset(offset).limit(most + 1)))
    return rows[:most], len(rows) > most


COLUMNS: Mapping[str, Column] = {"created_at": (AuditEvent.created_at, AuditEvent.id), "id": AuditEvent.id}


def part(session: Session, wanted: Filter, window: Window) -> Page[AuditEvent]:
    """The part of the filtered log that ``window`` asks for."""
    return pages.page(session, AuditEvent, wanted.query(), COLUMNS, window)


def every(session: Session, wanted: Filter) -> Iterator[dict[str, Any]]:
    """All of it, oldest first, as rows for a file; reads a batch at a time."""
    query = wanted.query().order_by(AuditEvent.created_at, AuditEvent.id)
    for row in session.scalars(query.execution_options(yield_per=BATCH)):
        yield {
            "at": row.created_at.isoformat(), "actor": row.actor, "action": row.action, "app": row.app_name or "",
            "app_id": row.app_id or "", "details": row.details,
        }  # fmt: skip
