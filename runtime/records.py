"""What the runtime process reads from and writes to the database: the dynos' rows and the wanted state of an app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from foundation.clock import now
from foundation.errors import DavitError
from runtime import quota
from runtime.driver import Exit
from state import apps, builds, commands, crashes, formation, outbox, releases, sizes, sleep
from state.db import ask, snapshot, transaction
from state.models import App, Dyno, Formation, Release

log = logging.getLogger("runtime")

_AGAIN = (1.0, 5.0, 15.0, 30.0)
"""Seconds between attempts to strike a dyno off that has ended."""


@dataclass(frozen=True)
class Wanted:
    """One process type's part of the formation; ``restarts``: see :class:`state.models.Dyno`."""

    type: str
    quantity: int
    size: sizes.Size
    isolation: str
    restarts: int
    live: bool = False


@dataclass(frozen=True)
class AppState:
    """An app as the database says it should be; ``cancelled``: somebody gave up the build that the pending release is of."""

    app: App
    current: Release | None
    pending: Release | None
    formation: dict[str, Wanted]
    asleep: bool = False
    restart_dynos: frozenset[str] = field(default_factory=frozenset)
    cancelled: bool = False

    def wanted(self, release: Release, type: str) -> Wanted | None:
        """What the formation wants of a process type; None when the release has none of that name."""
        return self.formation.get(type) if type in release.process_types else None


def read_app(app_id: str) -> AppState | None:
    """The app's wanted state; None when there is no such app any more."""
    with snapshot() as session:
        app = session.get(App, app_id)
        if app is None:
            return None
        rows = session.scalars(select(Formation).where(Formation.app_id == app_id))
        wanted = {
            row.type: Wanted(row.type, row.quantity, sizes.find(row.size), row.isolation, app.restarts + row.restarts, row.live)
            for row in rows
        }
        restart = session.scalars(select(Dyno.id).where(Dyno.app_id == app_id, Dyno.restart_requested.is_(True)))
        current, pending = releases.current(session, app_id), releases.next_pending(session, app_id)
        cancelled = pending is not None and builds.is_cancelled(session, pending)
        return AppState(app, current, pending, wanted, app.asleep_at is not None, frozenset(restart), cancelled)


def release_for_run(app_id: str) -> Release | None:
    """What a one-off dyno runs: the current release, or that with newer config vars which its dynos are just moving to.

    As on Heroku, ``config:set`` is in force for the next ``run``, whether or not the web dynos have been replaced yet.
    """
    with snapshot() as session:
        current = releases.current(session, app_id)
        if current is None or current.slug_id is None:
            return current
        newer = select(Release).where(
            Release.app_id == app_id, Release.status == "pending", Release.kind == "config",
            Release.slug_id == current.slug_id, Release.version > current.version,
        )  # fmt: skip
        return session.scalar(newer.order_by(Release.version.desc()).limit(1)) or current


def all_app_ids() -> list[str]:
    """Every app, those under destruction included."""
    return [app_id for (app_id,) in ask("SELECT id FROM apps")]


def changed_since(moment: datetime) -> set[str]:
    """Apps whose wanted state may have changed since ``moment``."""
    rows = ask(
        "SELECT id FROM apps WHERE updated_at >= :moment OR destroying"
        " UNION SELECT app_id FROM formations WHERE updated_at >= :moment"
        " UNION SELECT app_id FROM releases WHERE status = 'pending'"
        " UNION SELECT app_id FROM dynos WHERE restart_requested",
        moment=moment,
    )
    return {app_id for (app_id,) in rows}


def stacks_in_use() -> set[str]:
    """The versions of the stack that current releases, those under way and running dynos have."""
    rows = ask(
        "SELECT stack_version FROM releases WHERE current OR status = 'pending'"
        " OR id IN (SELECT release_id FROM dynos WHERE release_id IS NOT NULL)"
    )
    return {version for (version,) in rows if version}


def rows_of_dynos() -> dict[str, Dyno]:
    """Every dyno's row, by id."""
    if not ask("SELECT id FROM dynos LIMIT 1"):
        return {}
    with snapshot() as session:
        return {row.id: row for row in session.scalars(select(Dyno))}


def insert(dyno: Dyno, by: str | None = None) -> None:
    """A dyno is about to start; ``by`` is the account of who starts a one-off."""
    with transaction(momentary=by is None) as session:
        session.add(dyno)
        if by is not None:
            commands.started(session, by, dyno)


def enter(dyno: Dyno, by: str, command: str, files: bool) -> None:
    """Somebody is about to run a command in a dyno that runs."""
    with transaction() as session:
        commands.entered(session, by, dyno, command, files=files)


def stop(dyno: Dyno, by: str) -> None:
    """Somebody is about to stop a one-off."""
    with transaction() as session:
        commands.stopped(session, by, dyno)


def insert_crashed(row: Dyno, times: int, exit: Exit | None, why: str) -> None:
    """A dyno did not come up, ``times`` times in a row by now: show it as crashed until the next attempt.

    Args:
        exit: how it ended by itself; None when it had to be ended.
    """
    status = exit.status if exit else None
    with transaction(momentary=True) as session:
        columns = {column.key: getattr(row, column.key) for column in Dyno.__mapper__.column_attrs}
        columns |= {"state": "crashed", "crashes": times, "exit_status": status}
        columns |= {"slot": None, "address": None, "routed": False}
        crashes.record(session, session.merge(Dyno(**columns)), status, why)


def crash(dyno_id: str, times: int, exit: Exit | None) -> None:
    """A dyno that was up has ended, ``times`` times in a row by now; its row stays to say so until the next one starts.

    One that ended together with the runtime process, as in a power cut, did not crash.
    """
    status = exit.status if exit else None
    with transaction(momentary=True) as session:
        row = session.get(Dyno, dyno_id)
        if row is None:
            return
        row.state, row.routed, row.crashes, row.exit_status = "crashed", False, times, status
        if exit is not None and exit.by_itself:
            crashes.record(session, row, status, _why(row, exit))


def _why(row: Dyno, exit: Exit | None) -> str:
    if exit is None or not exit.oom:
        return f"{exit.why}." if exit and exit.why else ""
    return f"It was killed: it used more than {quota.most(row.isolation)}."


def hold(dyno_id: str, held: bool) -> bool:
    """Take a dyno off the routes, or put it back if it still is up and is not leaving; whether it is routed to then."""
    with transaction(momentary=True) as session:
        row = session.get(Dyno, dyno_id)
        if row is None or row.leaving or row.state != "up":
            return False
        row.routed, row.held, row.updated_at = not held, held, now()
        return row.routed


def change(dyno_ids: Sequence[str], **values: Any) -> None:
    """Set columns of dynos."""
    if dyno_ids:
        with transaction(momentary=True) as session:
            session.execute(update(Dyno).where(Dyno.id.in_(dyno_ids)).values(updated_at=now(), **values))
            if "state" in values:
                outbox.note(session, Dyno, dyno_ids)


def switch(routed: Sequence[str], unrouted: Sequence[str]) -> None:
    """Move the route from some dynos to others, in one transaction; those that leave the route are leaving.

    Who has crashed in the meantime gets no route.
    """
    with transaction(momentary=True) as session:
        up = update(Dyno).where(Dyno.id.in_(routed), Dyno.state != "crashed")
        session.execute(up.values(routed=True, held=False, state="up", updated_at=now()))
        session.execute(update(Dyno).where(Dyno.id.in_(unrouted)).values(routed=False, leaving=True, updated_at=now()))
        outbox.note(session, Dyno, routed)


def fall_asleep(leaving: Sequence[str], idle: Sequence[Dyno]) -> None:
    """The app sleeps: its dynos leave the routes, and ``idle`` rows show what will run again."""
    with transaction(momentary=True) as session:
        session.execute(update(Dyno).where(Dyno.id.in_(leaving)).values(routed=False, leaving=True, updated_at=now()))
        session.add_all(idle)


def sleep_candidates() -> list[str]:
    """The apps that may be put to sleep when nobody asks them anything."""
    with snapshot() as session:
        return sleep.candidates(session)


def put_to_sleep(app_id: str) -> bool:
    """Put an app to sleep; False when it must not be."""
    with transaction(momentary=True) as session:
        return sleep.fall_asleep(session, app_id)


def stay(app_id: str, type: str, wanted: tuple[str, str], present: tuple[str, str], failure: str) -> None:
    """A size or isolation did not come about; see :func:`state.formation.stay`."""
    with transaction() as session:
        formation.stay(session, app_id, type, wanted, present, failure)


def remove(dyno_ids: Sequence[str]) -> None:
    """Dynos are gone."""
    if dyno_ids:
        with transaction(momentary=True) as session:
            outbox.note_removal(session, session.scalars(select(Dyno).where(Dyno.id.in_(dyno_ids))).all())
            session.execute(delete(Dyno).where(Dyno.id.in_(dyno_ids)))


async def strike_off(dyno_ids: Sequence[str]) -> None:
    """Dynos are gone, whatever the database says to that at first: it is tried again, and nothing is raised.

    What still cannot be written then is cleared up by the next runtime process.
    """
    for pause in (*_AGAIN, None):
        try:
            return await asyncio.to_thread(remove, dyno_ids)
        except (DavitError, SQLAlchemyError) as error:
            if pause is None:
                log.error("dynos that have ended stay listed: %s", error, extra={"dynos": ",".join(dyno_ids)})
                return
        await asyncio.sleep(pause)


def begin_release(release_id: str, stack_version: str) -> Release | None:
    """A pending release's turn has come: rebase it, fix its stack; None when it is no longer pending."""
    with transaction(momentary=True) as session:
        release = session.get(Release, release_id)
        if release is None or release.status != "pending":
            return None
        releases.rebase(session, release)
        sleep.wake(session, release.app_id)
        if not release.stack_version:
            release.stack_version = stack_version
        return release


def set_phase(release_id: str, phase: str) -> None:
    """Record where a release stands."""
    with transaction(momentary=True) as session:
        releases.set_phase(session, release_id, phase)


def succeed(release_id: str) -> None:
    """The release serves."""
    with transaction() as session:
        release = session.get(Release, release_id)
        if release is not None and release.status == "pending":
            releases.succeed(session, release)
            sleep.wake(session, release.app_id)  # what was put to sleep in the instant in which the release was made


def fail(release_id: str, kind: str, message: str) -> None:
    """The release did not come up."""
    with transaction() as session:
        release = session.get(Release, release_id)
        if release is not None and release.status == "pending":
            releases.fail(session, release, kind, message)


def fail_pending(app_id: str, message: str) -> None:
    """None of the app's releases comes up any more; whoever waits for one is told."""
    with transaction() as session:
        for release in session.scalars(select(Release).where(Release.app_id == app_id, Release.status == "pending")):
            releases.fail(session, release, "cancelled", message)


def release_ids(app_id: str) -> list[str]:
    """The ids of all the app's releases."""
    with snapshot() as session:
        return list(session.scalars(select(Release.id).where(Release.app_id == app_id)))


def forget_app(app_id: str) -> None:
    """The last trace of a destroyed app."""
    with transaction() as session:
        apps.forget(session, app_id)
