"""What the database says about an app, turned into what the router does with its requests. Pure but for the reader."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from state.models import App, Domain, Dyno, Formation, Release

BACKLOG_PER_DYNO = 50
"""Requests that wait per web dyno while an app boots, before H11 (Heroku's figure)."""
BACKLOG_OF_MOVING = 2000
"""Requests that may wait while the only dyno moves: it answers again in a moment, as fast as before."""

BLANK, MAINTENANCE, CRASHED, NO_WEB, GONE = "blank", "maintenance", "crashed", "noweb", "gone"
_STARTING, _ASLEEP = "starting", "asleep"
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\Z")


@dataclass(frozen=True)
class Target:
    """A dyno that takes requests. ``server`` is its name in HAProxy: dyno name and the beginning of its id."""

    server: str
    address: str
    port: int


@dataclass(frozen=True)
class Route:
    """Where an app's requests go.

    Attributes:
        hosts: the host names it answers to, normalised.
        state: None when requests go to ``targets``; otherwise why they do not: ``blank``, ``maintenance``, ``crashed``,
            ``noweb``, ``starting:N`` (hold them, at most N at a time) or ``asleep:N`` (likewise, and wake the app).
    """

    app_id: str
    name: str
    hosts: frozenset[str]
    state: str | None
    targets: frozenset[Target]


@dataclass(frozen=True)
class DynoRow:
    """What the router needs of a row of ``dynos`` (of process type web)."""

    id: str
    name: str
    state: str
    routed: bool
    leaving: bool
    address: str | None
    port: int | None
    held: bool = False


@dataclass
class AppRows:
    """An app's rows. ``process_types`` is None when no release with a slug is current or on its way."""

    app_id: str
    name: str
    maintenance: bool = False
    asleep: bool = False
    domains: list[str] = field(default_factory=list)
    web_quantity: int = 0
    process_types: dict[str, Any] | None = None
    dynos: list[DynoRow] = field(default_factory=list)


def normal_host(text: str) -> str | None:
    """A host name as the map has it: lower case, no port, no trailing dot; None when it is no host name.

    HAProxy does the same with the Host header (``lower,field(1,:),rtrim(.)``).
    """
    host = text.lower().split(":", 1)[0].rstrip(".")
    return host if _HOST.match(host) else None


def server_name(dyno_id: str, dyno_name: str) -> str:
    """A dyno's name in HAProxy: unique in its app even while two dynos share a name during a replacement."""
    return f"{dyno_name}.{re.sub(r'[^A-Za-z0-9]', '', dyno_id)[:12]}"


def dyno_name(server: str) -> str:
    """The dyno's name in a server's: the inverse of :func:`server_name`."""
    return server.rpartition(".")[0] or server


def route(rows: AppRows, domain: str) -> Route:
    """The route that follows from an app's rows.

    Args:
        rows: what the database holds.
        domain: DAVIT_DOMAIN; the app answers at NAME.DOMAIN and at its own domains.
    """
    hosts = (normal_host(host) for host in [f"{rows.name}.{domain}", *rows.domains])
    targets = frozenset(
        Target(server_name(dyno.id, dyno.name), dyno.address, dyno.port)
        for dyno in rows.dynos
        if dyno.routed and dyno.address and dyno.port and _is_address(dyno.address)
    )
    return Route(rows.app_id, rows.name, frozenset(host for host in hosts if host), _state(rows, targets), targets)


def _state(rows: AppRows, targets: frozenset[Target]) -> str | None:
    if rows.maintenance:
        return MAINTENANCE
    if targets:
        return None
    if rows.process_types is None:
        return BLANK
    if rows.web_quantity == 0 or "web" not in rows.process_types:
        return NO_WEB
    if rows.asleep:
        return f"{_ASLEEP}:{BACKLOG_PER_DYNO * rows.web_quantity}"
    if any(dyno.held and dyno.state == "up" and not dyno.leaving for dyno in rows.dynos):
        return f"{_STARTING}:{BACKLOG_OF_MOVING}"
    staying = [dyno for dyno in rows.dynos if not dyno.leaving]
    if staying and all(dyno.state == "crashed" for dyno in staying):
        return CRASHED
    return f"{_STARTING}:{BACKLOG_PER_DYNO * rows.web_quantity}"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def read_rows(session: Session, app_ids: Iterable[str] | None = None) -> list[AppRows]:
    """Read the rows of some apps, or of all.

    Args:
        session: a reading session of the database.
        app_ids: the apps; all when None. One that does not exist (or is being destroyed) is missing in the answer.
    """
    only = None if app_ids is None else list(app_ids)

    def of(column: Any) -> list[Any]:
        return [] if only is None else [column.in_(only)]

    apps = select(App.id, App.name, App.maintenance, App.asleep_at).where(App.destroying.is_(False), *of(App.id))
    rows = {id: AppRows(id, name, bool(maintenance), at is not None) for id, name, maintenance, at in session.execute(apps)}
    for app_id, host in session.execute(select(Domain.app_id, Domain.hostname).where(*of(Domain.app_id))):
        if app_id in rows:
            rows[app_id].domains.append(host)
    formations = select(Formation.app_id, Formation.quantity).where(Formation.type == "web", *of(Formation.app_id))
    for app_id, quantity in session.execute(formations):
        if app_id in rows:
            rows[app_id].web_quantity = quantity
    _read_releases(session, rows, of(Release.app_id))
    _read_dynos(session, rows, of(Dyno.app_id))
    return list(rows.values())


def _read_releases(session: Session, rows: dict[str, AppRows], where: Sequence[Any]) -> None:
    """The current release decides which process types there are; before the first, the one on its way does."""
    releases = (
        select(Release.app_id, Release.process_types)
        .where(or_(Release.current.is_(True), Release.status == "pending"), Release.slug_id.is_not(None), *where)
        .order_by(Release.current, Release.version)
    )
    for app_id, process_types in session.execute(releases):
        if app_id in rows:
            rows[app_id].process_types = process_types or {}


def _read_dynos(session: Session, rows: dict[str, AppRows], where: Sequence[Any]) -> None:
    columns = (Dyno.app_id, Dyno.id, Dyno.name, Dyno.state, Dyno.routed, Dyno.leaving, Dyno.address, Dyno.port, Dyno.held)
    web = select(*columns).where(or_(Dyno.routed.is_(True), Dyno.type == "web"), Dyno.one_off.is_(False), *where)
    for row in session.execute(web):
        if row.app_id in rows:
            rows[row.app_id].dynos.append(DynoRow(*row[1:]))
