"""The formation: how many dynos of each process type, at which size, in which isolation; restarts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.errors import InvalidParams, NotFound
from state import audit, isolations, notify, releases, sizes, sleep
from state.db import lock_app
from state.meanwhile import ChangedMeanwhile
from state.models import Account, App, Dyno, Formation

MOST = 100
"""Dynos of one process type at the most."""
_QUANTITY = re.compile(r"[+-]?[0-9]{1,9}")


def all_of(session: Session, app: App) -> list[Formation]:
    """The formation of the process types that the app has now, by type."""
    base = releases.current(session, app.id)
    types = set(base.process_types) if base else set()
    rows = session.scalars(select(Formation).where(Formation.app_id == app.id).order_by(Formation.type))
    return [row for row in rows if row.type in types]


def find(session: Session, app: App, type: str) -> Formation:
    """The formation of one process type.

    Raises:
        NotFound: the app has no such process type; the sentence lists those it has.
    """
    rows = all_of(session, app)
    for row in rows:
        if type in (row.type, row.id):
            return row
    names = ", ".join(row.type for row in rows) or "none yet: push some code first"
    raise NotFound(f"Couldn't find that process type ({type}). {app.name} has: {names}.")


def scale(session: Session, account: Account, app: App, updates: Sequence[Mapping[str, Any]]) -> list[Formation]:
    """Change quantities, sizes and isolations, all or none. A sleeping app wakes.

    Args:
        updates: ``{"type", "quantity"?: 2 | "2" | "+1" | "-1", "size"?: "standard-1x", "live"?: True, "isolation"?: "microvm"}``
            each; ``live``: running dynos get the size without a restart; ``"seen": {"quantity": "1", …}``: what these were when
            the person looked.

    Raises:
        InvalidParams, NotFound: a value or a type is wrong; nothing has changed then.
        ChangedMeanwhile: one is not what was seen; nothing has changed then.
    """
    lock_app(session, app.id)
    _refuse_stale(session, app, updates)
    changed = []
    for wanted in updates:
        if not isinstance(wanted, Mapping) or not isinstance(wanted.get("type"), str):
            raise InvalidParams('Each update needs a process type, for example {"type": "web", "quantity": 2}.')
        row = find(session, app, wanted["type"])
        if row.type == releases.RELEASE_TYPE and wanted.get("quantity") not in (None, 0, "0"):
            raise InvalidParams("The release process type is run once for each release and cannot be scaled.")
        if wanted.get("quantity") is not None:
            row.quantity = _quantity(row, wanted["quantity"])
        if wanted.get("size") is not None:
            row.size, row.live, row.failure = sizes.find(str(wanted["size"])).name, bool(wanted.get("live")), None
        if wanted.get("isolation") is not None:
            row.isolation, row.failure = _isolation(row, str(wanted["isolation"])), None
        changed.append(row)
    sleep.wake(session, app.id)
    session.flush()
    words = ", ".join(_described(row) for row in changed)
    audit.record(session, account, "ps:scale", app, formation=words)
    notify.announce(session, app.id, f"Scaled to {words} by user {account.email}")
    notify.runtime(session, app.id)
    notify.router(session, app.id)
    return changed


def _refuse_stale(session: Session, app: App, updates: Sequence[Mapping[str, Any]]) -> None:
    stale = []
    for wanted in updates:
        if isinstance(wanted, Mapping) and (seen := wanted.get("seen")):
            row = find(session, app, str(wanted.get("type")))
            session.refresh(row)
            present = {"quantity": str(row.quantity), "size": row.size, "isolation": row.isolation}
            for name, words in (("quantity", "number of dynos"), ("size", "size"), ("isolation", "isolation")):
                if wanted.get(name) is not None and present[name] not in (seen.get(name), str(wanted[name])):
                    stale.append(f"{row.type}'s {words}")
    if stale:
        raise ChangedMeanwhile(stale)


def _described(row: Formation) -> str:
    place = "" if row.isolation == isolations.DEFAULT else f" ({row.isolation})"
    return f"{row.type}@{row.quantity}:{sizes.find(row.size).label}{place}"


def _isolation(row: Formation, name: str) -> str:
    found = isolations.find(name)
    if row.type == releases.RELEASE_TYPE and found != isolations.DEFAULT:
        raise InvalidParams("The release command always runs in a container; choose the isolation of other process types.")
    return found


def stay(session: Session, app_id: str, type: str, wanted: tuple[str, str], present: tuple[str, str], failure: str) -> None:
    """A size or isolation did not come about: the formation says again what runs, and why. Called by the runtime alone.

    Args:
        wanted: the size and isolation that did not; nothing happens when the formation wants something else by now.
        present: the size and isolation of the dynos that run on.
        failure: the sentence for the person.
    """
    row = session.scalar(select(Formation).where(Formation.app_id == app_id, Formation.type == type))
    if row is not None and (row.size, row.isolation) == wanted:
        (row.size, row.isolation), row.failure = present, failure
        row.live = False  # those that took the new size already are restarted: growing back may be as impossible as shrinking


def _quantity(row: Formation, value: object) -> int:
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if not _QUANTITY.fullmatch(text):
        raise InvalidParams(f"{row.type}={value} is not a number of dynos; give one such as {row.type}=2 or {row.type}+1.")
    relative = isinstance(value, str) and text[0] in "+-"
    number = row.quantity + int(text) if relative else int(text)
    if not 0 <= number <= MOST:
        raise InvalidParams(f"{row.type}={text} would make {number} dynos; a process type has 0 to {MOST}.")
    return number


def restart(session: Session, account: Account, app: App, target: str | None = None) -> None:
    """Replace dynos by fresh ones without losing a request.

    Args:
        target: a process type (``web``), a dyno (``web.1``), or None for all.

    Raises:
        NotFound: the app has no such process type or dyno.
    """
    if target is None:
        app.restarts = App.restarts + 1  # in the database: two who ask at once have asked twice
    elif "." in target:
        rows = session.scalars(select(Dyno).where(Dyno.app_id == app.id, Dyno.name == target, Dyno.leaving.is_(False))).all()
        if not rows:
            raise NotFound(f"Couldn't find that process ({target}).")
        for row in rows:
            row.restart_requested = True
    else:
        find(session, app, target).restarts = Formation.restarts + 1
    sleep.wake(session, app.id)
    audit.record(session, account, "ps:restart", app, target=target or "all")
    notify.announce(session, app.id, f"Restart {target or 'all dynos'} by user {account.email}")
    notify.runtime(session, app.id)


def dynos(session: Session, app: App) -> list[Dyno]:
    """The app's dynos as people count them: those on their way out are left out."""
    rows = session.scalars(select(Dyno).where(Dyno.app_id == app.id, Dyno.leaving.is_(False))).all()
    shown: dict[str, Dyno] = {}
    for row in sorted(rows, key=lambda row: row.created_at):
        known = shown.get(row.name)
        if known is None or row.state == "up" or known.state != "up":
            shown[row.name] = row
    return sorted(shown.values(), key=lambda row: (row.type, int(row.name.rpartition(".")[2])))
