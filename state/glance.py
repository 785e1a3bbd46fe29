"""Apps at a glance: what each is doing now, what it runs, who deployed last; a fixed number of queries for any number of apps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from state.models import Account, App, Build, Collaborator, Dyno, Formation, PipelineCoupling, Release
from state.releases import RELEASE_TYPE

State = Literal["empty", "serving", "starting", "deploying", "crashed", "asleep", "stopped", "maintenance"]
"""What an app is doing: ``empty`` has no code yet, ``asleep`` wakes with the next request, ``stopped`` is scaled to nothing."""


@dataclass(frozen=True)
class Version:
    """A release as lists show it: ``by`` is an e-mail address."""

    version: int
    kind: str
    description: str
    by: str
    at: datetime


@dataclass(frozen=True)
class Glance:
    """An app at a glance.

    Attributes:
        release: what it runs; None before anything succeeded.
        deployed: the newest release that brought code; None when there is none.
        wanted, up: dynos of its formation.
        crashed: names of the dynos that are down after a crash.
        has_code: whether what it runs has a slug.
    """

    app: App
    state: State
    release: Version | None
    deployed: Version | None
    wanted: int
    up: int
    crashed: tuple[str, ...] = ()
    has_code: bool = False


@dataclass
class _Facts:
    """What the queries said about one app."""

    release: Version | None = None
    deployed: Version | None = None
    has_code: bool = False
    busy: bool = False
    types: frozenset[str] = frozenset()
    wanted: dict[str, int] = field(default_factory=dict)
    states: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))


def search(
    session: Session, account: Account, text: str = "", *,
    everything: bool = False, alone: bool = False, offset: int = 0, most: int = 50,
) -> tuple[list[App], int]:  # fmt: skip
    """A page of the apps that the account may see, by name, and how many there are in all.

    Args:
        text: what the name contains; empty for all.
        everything: all of this Davit, for an admin.
        alone: only those that are in no pipeline.
    """
    query = select(App).where(App.destroying.is_(False))
    if not (everything and account.is_admin):
        shared = select(Collaborator.app_id).where(Collaborator.account_id == account.id)
        query = query.where(or_(App.owner_id == account.id, App.id.in_(shared)))
    if alone:
        query = query.where(App.id.not_in(select(PipelineCoupling.app_id)))
    if text:
        query = query.where(App.name.contains(text.lower(), autoescape=True))
    count = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
    return list(session.scalars(query.order_by(App.name).offset(offset).limit(most))), count


def of(session: Session, apps: Sequence[App]) -> list[Glance]:
    """Each app at a glance, in the order given."""
    if not apps:
        return []
    ids = [app.id for app in apps]
    facts: dict[str, _Facts] = {id: _Facts() for id in ids}
    _releases(session, ids, facts)
    _under_way(session, ids, facts)
    _dynos(session, ids, facts)
    return [_glance(app, facts[app.id]) for app in apps]


def _version(row: Any) -> Version:
    return Version(row.version, row.kind, row.description, row.email, row.created_at)


def _releases(session: Session, ids: Sequence[str], facts: dict[str, _Facts]) -> None:
    newest = (
        select(Release.app_id, func.max(Release.version).label("version"))
        .where(Release.app_id.in_(ids), Release.status == "succeeded", Release.kind.in_(("deploy", "rollback")))
        .group_by(Release.app_id)
        .subquery()
    )
    of_newest = and_(Release.app_id == newest.c.app_id, Release.version == newest.c.version)
    told = (Release.app_id, Release.version, Release.kind, Release.description, Account.email, Release.created_at)
    deploys = select(*told).join(newest, of_newest).join(Account, Account.id == Release.account_id)
    current = select(*told, Release.slug_id, Release.process_types).join(Account, Account.id == Release.account_id)
    for row in session.execute(deploys):
        facts[row.app_id].deployed = _version(row)
    for row in session.execute(current.where(Release.app_id.in_(ids), Release.current.is_(True))):
        found = facts[row.app_id]
        found.release, found.has_code, found.types = _version(row), row.slug_id is not None, frozenset(row.process_types)


def _under_way(session: Session, ids: Sequence[str], facts: dict[str, _Facts]) -> None:
    building = select(Build.app_id).where(Build.app_id.in_(ids), Build.status == "pending")
    releasing = select(Release.app_id).where(Release.app_id.in_(ids), Release.status == "pending")
    for id in session.scalars(building.union(releasing)):
        facts[id].busy = True


def _dynos(session: Session, ids: Sequence[str], facts: dict[str, _Facts]) -> None:
    wanted = select(Formation.app_id, Formation.type, Formation.quantity).where(Formation.app_id.in_(ids))
    for id, type, quantity in session.execute(wanted):
        if type in facts[id].types and type != RELEASE_TYPE:
            facts[id].wanted[type] = quantity
    there = select(Dyno.app_id, Dyno.type, Dyno.name, Dyno.state).where(
        Dyno.app_id.in_(ids), Dyno.leaving.is_(False), Dyno.one_off.is_(False)
    )
    for id, type, name, state in session.execute(there):
        facts[id].states[type].append((name, state))


def _counted(name: str) -> tuple[str, int]:
    """``web.10`` after ``web.9``, as people count."""
    type, _, number = name.rpartition(".")
    return type, int(number)


def _glance(app: App, facts: _Facts) -> Glance:
    every = [pair for pairs in facts.states.values() for pair in pairs]
    crashed = tuple(sorted({name for name, state in every if state == "crashed"}, key=_counted))
    up = len({name for name, state in every if state == "up"})
    return Glance(
        app, _state(app, facts, crashed), facts.release, facts.deployed, sum(facts.wanted.values()), up, crashed, facts.has_code
    )


def _state(app: App, facts: _Facts, crashed: tuple[str, ...]) -> State:
    if app.maintenance:
        return "maintenance"
    if facts.busy:
        return "deploying"
    if not facts.has_code:
        return "empty"
    if crashed:
        return "crashed"
    if app.asleep_at is not None:
        return "asleep"
    if not sum(facts.wanted.values()):
        return "stopped"
    shown = facts.states.get("web") or [pair for pairs in facts.states.values() for pair in pairs]
    states = {state for _, state in shown}
    return "serving" if "up" in states else "starting"


def one(session: Session, app: App) -> Glance:
    """One app at a glance."""
    return of(session, [app])[0]
