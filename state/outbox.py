"""The outbox of webhooks: whoever changes a row that a webhook is about writes the event in the same transaction.

Sessions are watched as a whole, so that no operation has to remember it: what a flush adds, changes or deletes is noted, and
written down before the commit, when the app has a webhook for it. Statements that change rows past the session say so with
:func:`note`. Delivering is another matter (:mod:`state.webhooks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session

from foundation.clock import now
from state import payloads
from state.models import Account, App, Webhook, WebhookDelivery, WebhookEvent, new_id

bell: Callable[[], object] | None = None
"""Set by the process that delivers: rung once an event is in force."""


@dataclass
class _Change:
    """What became of a row; ``old`` has the former values of its columns, ``row`` is the row itself when it is gone."""

    action: str
    old: dict[str, Any] = field(default_factory=dict)
    row: Any = None


def _changes(session: Session) -> dict[tuple[type, str], _Change]:
    found: dict[tuple[type, str], _Change] = session.info.setdefault("outbox", {})
    return found


def note(session: Session, kind: type, ids: Iterable[str]) -> None:
    """Rows that a statement has changed in this transaction."""
    for id in ids:
        _changes(session).setdefault((kind, id), _Change("update"))


def note_removal(session: Session, rows: Iterable[Any]) -> None:
    """Rows that a statement is about to remove in this transaction."""
    for row in rows:
        _changes(session)[type(row), row.id] = _Change("destroy", row=row)


def act_as(session: Session, account: Account | None) -> None:
    """Who does what this transaction does."""
    session.info["actor"] = payloads.person(account)


@event.listens_for(Session, "after_flush")
def _watch(session: Session, context: object) -> None:
    for row in session.new:
        if type(row) in payloads.KINDS:
            _changes(session)[type(row), row.id] = _Change("create")
    for row in session.dirty:
        if type(row) in payloads.KINDS and session.is_modified(row):
            change = _changes(session).setdefault((type(row), row.id), _Change("update"))
            for name, old in _former(row):
                change.old.setdefault(name, old)
            if isinstance(row, App) and row.destroying:
                change.action = "destroy"
    for row in session.deleted:
        if type(row) in payloads.KINDS:
            known = _changes(session).get((type(row), row.id))
            if known and known.action == "create":
                del _changes(session)[type(row), row.id]
            else:
                _changes(session)[type(row), row.id] = _Change("destroy", row=row)


def _former(row: Any) -> list[tuple[str, Any]]:
    state = inspect(row)
    histories = ((attribute.key, state.attrs[attribute.key].history) for attribute in state.mapper.column_attrs)
    return [(name, history.deleted[0]) for name, history in histories if history.has_changes() and history.deleted]


@event.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    session.flush()
    changes: dict[tuple[type, str], _Change] = session.info.pop("outbox", {})
    if not changes:
        return
    rows: list[tuple[_Change, Any]] = [(change, change.row or session.get(*key)) for key, change in changes.items()]
    here = [(change, row, row.id if isinstance(row, App) else row.app_id) for change, row in rows if row is not None]
    app_ids = {app_id for _, _, app_id in here}
    hooks = list(session.scalars(select(Webhook).where(Webhook.app_id.in_(app_ids))))
    if not hooks:
        return
    for change, row, app_id in here:
        include = payloads.KINDS[type(row)][0]
        wanting = [hook for hook in hooks if hook.app_id == app_id and include in hook.include]
        if wanting:
            _record(session, app_id, change, row, wanting)
    session.flush()
    session.info.pop("outbox", None)
    if bell is not None:
        session.info.setdefault("after", []).append(bell)


def _record(session: Session, app_id: str, change: _Change, row: Any, hooks: list[Webhook]) -> None:
    include, resource, describe = payloads.KINDS[type(row)]
    app = session.get(App, app_id)
    data = describe(row, {"id": app_id, "name": app.name if app else ""})
    former = {name: _plain(old) for name, old in change.old.items() if name in data and not isinstance(data[name], dict)}
    if isinstance(row, App) and change.action == "destroy":
        data["name"] = former.pop("name", data["name"])  # a destroyed app's name is free, and its row has another
    if change.action == "update" and change.old and not _tells(former, data):
        return
    happened = WebhookEvent(
        id=new_id(), app_id=app_id, include=include, action=change.action, resource=resource, data=data, previous_data=former,
        actor=session.info.get("actor") or payloads.person(None),
    )  # fmt: skip
    session.add(happened)
    session.flush()
    for hook in hooks:
        session.add(WebhookDelivery(webhook_id=hook.id, event_id=happened.id, app_id=app_id, next_attempt_at=now()))


def _tells(former: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether an update changed something that the webhook's reader can see."""
    return any(name != "updated_at" and data[name] != old for name, old in former.items())


def _plain(value: Any) -> Any:
    return payloads.moment(value) if hasattr(value, "strftime") else value
