"""What pages watch, as fingerprints: a few characters that differ as soon as anything that the page shows has changed.

An event says only that something changed; the page then loads its part anew. So nothing can be shown twice or be missed,
whatever is lost on the way: who comes back with an old fingerprint is told at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, or_, select
from sqlalchemy.orm import Session

from state import db
from state.models import (
    Account,
    App,
    AuditEvent,
    Build,
    Collaborator,
    Domain,
    Dyno,
    Formation,
    Pipeline,
    PipelineCoupling,
    Release,
)

_OF_APP: Sequence[Any] = (Dyno, Build, Release, Formation, Domain, Collaborator)
_IN_LISTS: Sequence[tuple[Any, Any]] = (
    (App, App.id), *((table, table.app_id) for table in (Dyno, Formation, Collaborator, PipelineCoupling)),
)  # fmt: skip
"""What lists show, each with the app that it belongs to."""


def _digest(facts: object) -> str:
    return f"{zlib.crc32(repr(facts).encode()):08x}"


def apps(session: Session, ids: Iterable[str]) -> dict[str, str]:
    """Each app's fingerprint; an app that is gone has one, too."""
    wanted = sorted(set(ids))
    facts: dict[str, list[object]] = {id: [] for id in wanted}
    for table in _OF_APP:
        query = select(table.app_id, func.count(), db.sum_of(table.updated_at)).where(table.app_id.in_(wanted))
        for id, count, moments in session.execute(query.group_by(table.app_id)):
            facts[id].append((table.__tablename__, count, str(moments)))
    events = select(AuditEvent.app_id, func.count(), func.max(AuditEvent.created_at)).where(AuditEvent.app_id.in_(wanted))
    for id, count, newest in session.execute(events.group_by(AuditEvent.app_id)):
        facts[str(id)].append(("audit", count, str(newest)))
    for row in session.execute(select(App.id, App.name, App.updated_at, App.destroying).where(App.id.in_(wanted))):
        facts[row.id].append(tuple(map(str, row)))
    return {id: _digest(found) for id, found in facts.items()}


def every(session: Session, account_ids: Iterable[str]) -> dict[str, str]:
    """For each account a fingerprint of all apps and pipelines that it sees, as its lists show them; administrators share one."""
    wanted = set(account_ids)
    admins = set(session.scalars(select(Account.id).where(Account.id.in_(wanted), Account.is_admin)))
    found = {id: _every(session, id, admin=False) for id in wanted - admins}
    return found | (dict.fromkeys(admins, _every(session, "", admin=True)) if admins else {})


def _every(session: Session, account_id: str, *, admin: bool) -> str:
    shared = select(Collaborator.app_id).where(Collaborator.account_id == account_id)
    mine = select(App.id).where(or_(App.owner_id == account_id, App.id.in_(shared)))

    def seen(query: Select[Any], app_id: Any) -> Select[Any]:
        return query if admin else query.where(app_id.in_(mine))

    facts: list[object] = [admin]
    for table, app_id in _IN_LISTS:
        query = select(func.count(), func.max(table.updated_at)).select_from(table)
        facts.append(str(session.execute(seen(query, app_id)).one()))
    for unfinished in (Build, Release):
        query = select(func.count()).where(unfinished.status == "pending")
        facts.append(session.execute(seen(query, unfinished.app_id)).scalar())
    facts.append(str(session.execute(seen(select(func.max(App.released_at)), App.id)).scalar()))
    through = seen(select(PipelineCoupling.pipeline_id), PipelineCoupling.app_id)
    pipelines = select(func.count(), func.max(Pipeline.updated_at))
    if not admin:
        pipelines = pipelines.where(or_(Pipeline.owner_id == account_id, Pipeline.id.in_(through)))
    facts.append(str(session.execute(pipelines).one()))
    return _digest(facts)


def parse(cursor: str) -> dict[str, str]:
    """A stream's cursor, ``app=1f2e3d4c;build=812:-1.-1.0``, by topic; it may come from a client."""
    pairs = (part.partition("=") for part in cursor[:1000].split(";"))
    return {name: value for name, _, value in pairs if name and value}


def cursor(seen: Mapping[str, str]) -> str:
    """The text that :func:`parse` reads."""
    return ";".join(f"{name}={value}" for name, value in sorted(seen.items()) if value)


class Change:
    """Says cheaply whether anything at all was written since it was asked last, on one connection of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._version: object = None

    def happened(self) -> bool:
        """On SQLite, ``PRAGMA data_version`` costs no query; elsewhere it is always true."""
        if self._connection.dialect.name != "sqlite":
            return True
        version = self._connection.exec_driver_sql("PRAGMA data_version").scalar()
        changed, self._version = version != self._version, version
        return bool(changed)
