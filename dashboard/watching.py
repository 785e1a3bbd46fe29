"""What pages watch, as fingerprints: a few characters that differ as soon as anything that the page shows has changed.

An event says only that something changed; the page then loads its part anew. So nothing can be shown twice or be missed,
whatever is lost on the way: who comes back with an old fingerprint is told at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, cast, func, literal, null, select, union_all
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
"""What lists show, each with the app that it belongs to; beside it what is under way, the last deploys, and pipelines."""
_UNDER_WAY: Sequence[Any] = (Build, Release)
_NONE, _NEVER = literal(0), cast(null(), BigInteger)
_FEW = 200
"""Apps that are asked for one by one; where it is more, all are."""


def _digest(facts: object) -> str:
    return f"{_number(facts):08x}"


def apps(session: Session, ids: Iterable[str]) -> dict[str, str]:
    """Each app's fingerprint; an app that is gone has one, too."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
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
    return Lists().look(session, account_ids)


class Lists:
    """Lists' fingerprints for whoever looks again and again: two statements as long as nothing that any list shows has changed,
    and three more, for all accounts together, when something has."""

    def __init__(self) -> None:
        self._of_all = ""
        self._of_accounts: dict[str, str] = {}

    def look(self, session: Session, account_ids: Iterable[str]) -> dict[str, str]:
        """As :func:`every`."""
        wanted = set(account_ids)
        if not wanted:
            return {}
        admins = set(session.scalars(select(Account.id).where(Account.id.in_(wanted), Account.is_admin)))
        if (of_all := _of_all(session)) != self._of_all:
            self._of_all, self._of_accounts = of_all, {}
        if unknown := wanted - admins - self._of_accounts.keys():
            self._of_accounts |= _of_accounts(session, unknown)
        return {id: of_all if id in admins else self._of_accounts[id] for id in wanted}


def _of_all(session: Session) -> str:
    """Of all that any list shows."""
    parts: list[Any] = [select(func.count(), db.sum_of(table.updated_at)).select_from(table) for table, _ in _IN_LISTS]
    parts += [select(func.count(), db.sum_of(table.created_at)).where(table.status == "pending") for table in _UNDER_WAY]
    parts += [select(func.count(), db.sum_of(Pipeline.updated_at)), select(_NONE, db.sum_of(App.released_at))]
    whole = union_all(*(part.add_columns(literal(number)) for number, part in enumerate(parts)))  # a union has no order
    return _digest(sorted((number, count, str(moments)) for count, moments, number in session.execute(whole)))


def _of_accounts(session: Session, ids: Collection[str]) -> dict[str, str]:
    """Of what each of these accounts sees. Apps are looked at once, however many accounts see them."""
    owned = select(App.owner_id, App.id).where(App.owner_id.in_(ids))
    shared = select(Collaborator.account_id, Collaborator.app_id).where(Collaborator.account_id.in_(ids))
    seen = session.execute(union_all(owned, shared)).all()
    of_apps = _of_apps(session, {app_id for _, app_id in seen})
    sums = dict.fromkeys(ids, 0)
    for account_id, app_id in seen:
        sums[account_id] += of_apps[app_id]
    own = select(Pipeline.owner_id, func.count(), db.sum_of(Pipeline.updated_at)).where(Pipeline.owner_id.in_(ids))
    for account_id, count, moments in session.execute(own.group_by(Pipeline.owner_id)):
        sums[account_id] += _number("pipelines", count, str(moments))
    return {id: _digest(total) for id, total in sums.items()}


def _of_apps(session: Session, ids: Collection[str]) -> dict[str, int]:
    """A number for each app, of what lists show of it: how many rows, how many under way, the moments of their changes."""
    parts: list[Any] = [
        select(app_id.label("id"), func.count().label("rows"), _NONE.label("busy"), db.sum_of(table.updated_at).label("moments"))
        .group_by(app_id) for table, app_id in _IN_LISTS
    ]  # fmt: skip
    for table in _UNDER_WAY:
        parts.append(select(table.app_id, _NONE, func.count(), _NEVER).where(table.status == "pending").group_by(table.app_id))
    coupled = select(PipelineCoupling.app_id, _NONE, _NONE, db.number_of(Pipeline.updated_at))
    parts.append(select(App.id, _NONE, _NONE, db.number_of(App.released_at)))
    parts.append(coupled.join(Pipeline, Pipeline.id == PipelineCoupling.pipeline_id))
    if len(ids) <= _FEW:
        parts = [part.where(part.selected_columns[0].in_(ids)) for part in parts]
    facts = union_all(*parts).subquery()
    whole = select(facts.c.id, func.sum(facts.c.rows), func.sum(facts.c.busy), func.sum(facts.c.moments))
    sums = dict.fromkeys(ids, 0)
    for id, rows, busy, moments in session.execute(whole.group_by(facts.c.id)):
        if id in sums:
            sums[id] = _number(id, int(rows), int(busy), str(moments))
    return sums


def _number(*facts: object) -> int:
    return zlib.crc32(repr(facts).encode())


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
