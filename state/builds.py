"""Builds: one at a time per app, in the order of their creation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from foundation import line, wire
from foundation.clock import now
from foundation.errors import Conflict, NotFound
from foundation.settings import settings
from state import audit, notify
from state.db import ask, lock_app
from state.models import Account, App, AppSetup, Build, Release, Slug

_PENDING = (
    "SELECT account_id, id, phase FROM builds WHERE status = 'pending' UNION ALL "
    "SELECT account_id, id, phase FROM app_setups WHERE status = 'pending' AND phase <> 'building'"
)
_LAST_BEGUN = (
    "SELECT account_id, CAST(MAX(created_at) AS TEXT) FROM ("
    "SELECT account_id, created_at FROM builds WHERE created_at > :since AND phase NOT IN ('waiting', 'queued') UNION ALL "
    "SELECT account_id, created_at FROM app_setups WHERE created_at > :since AND phase <> 'source') AS begun GROUP BY account_id"
)
REMEMBERED = timedelta(days=1)
"""How far the turns of accounts look back: whose last build is older than this is as good as one who never had any."""
_ABOUT_TO = ("queued", "source", "postdeploy")
_RISING = ("releasing", "running")
"""Phases of builds and of setups: what a worker has taken and not yet begun; what needs no build slot any more."""
ACTIVE = ("queued", "building", "releasing")
"""Phases in which a build holds its app's turn."""


def create(
    session: Session,
    app: App,
    account: Account,
    *,
    commit: str | None = None,
    ref: str | None = None,
    old_sha: str | None = None,
    source_version: str | None = None,
    source_url: str | None = None,
    source_checksum: str | None = None,
    buildpacks: Sequence[str] | None = None,
) -> Build:
    """Ask for a build; `builder.queue.enqueue_next(app_id)` starts it when its turn has come.

    Args:
        commit: the git commit to build; None when ``source_url`` is given.
        ref, old_sha: what the push wants moved once this is released, and from where.
        source_version: what the release will be called by; one line of it, whatever it is.
        buildpacks: instead of the app's own choice.
    """
    source_version = line.of(source_version or "") or commit
    build = Build(
        app_id=app.id,
        account_id=account.id,
        commit=commit,
        ref=ref,
        old_sha=old_sha,
        source_version=source_version,
        source_url=source_url,
        source_checksum=source_checksum,
        buildpacks=list(buildpacks if buildpacks is not None else app.buildpacks),
        stack=app.stack,
    )
    session.add(build)
    session.flush()
    audit.record(session, account, "builds:create", app, commit=commit)
    notify.announce(session, app.id, f"Build started by user {account.email}")
    return build


def find(session: Session, app: App, identity: str) -> Build:
    """The app's build with this id.

    Raises:
        NotFound: there is none.
    """
    build = session.get(Build, identity)
    if build is None or build.app_id != app.id:
        raise NotFound("Couldn't find that build.", resource="build")
    return build


def all_of(session: Session, app: App) -> list[Build]:
    """The app's builds, oldest first."""
    return list(session.scalars(select(Build).where(Build.app_id == app.id).order_by(Build.created_at, Build.id)))


def ahead(session: Session, build: Build) -> Build | None:
    """The build of the same app that this one waits for, if any."""
    return session.scalar(
        select(Build)
        .where(
            Build.app_id == build.app_id, Build.status == "pending", Build.id != build.id, Build.created_at <= build.created_at
        )
        .order_by(Build.created_at)
        .limit(1)
    )


def next_turn(session: Session, app_id: str) -> Build | None:
    """Give the turn to the app's oldest waiting build when no other has it; returns that build."""
    lock_app(session, app_id)
    active = select(Build.id).where(Build.app_id == app_id, Build.status == "pending", Build.phase.in_(ACTIVE))
    if session.scalar(active.limit(1)):
        return None
    build = session.scalar(
        select(Build)
        .where(Build.app_id == app_id, Build.status == "pending", Build.phase == "waiting")
        .order_by(Build.created_at)
        .limit(1)
    )
    if build:
        build.phase = "queued"
    return build


def at_work(session: Session, build: Build) -> int:
    """How many builds have or are about to have a slot, ``build`` not counted."""
    others = select(func.count()).where(Build.status == "pending", Build.phase.in_(("queued", "building")), Build.id != build.id)
    return session.scalar(others) or 0


def next_slot(queued: Sequence[str], most: int) -> str | None:
    """Which of the queued builds and steps of app setups has the next slot; None when none may.

    What is to be worked no more (its app is gone, it was cancelled) is first, and over at once. Then the accounts take turns:
    the one with the fewest at work is first, then the one whose last is the longest ago.

    Args:
        queued: their ids, those that came first at the front.
        most: how many releases of an account may be on their way up, postdeploy commands among them; then it has no turn.

    Raises:
        Unavailable: the database does not answer.
    """
    rows = ask(_PENDING)
    owner = {id: account for account, id, _ in rows}
    if over := next((id for id in queued if id not in owner), None):
        return over
    # One that has just been taken is in the queue no more, and not at work yet; one whose worker has ended is in it again.
    waiting = set(queued)
    working = Counter(account for account, id, phase in rows if phase == "building" or (phase in _ABOUT_TO and id not in waiting))
    rising = Counter(account for account, id, phase in rows if phase in _RISING and id not in waiting)
    begun = dict(ask(_LAST_BEGUN, since=now() - REMEMBERED))
    return min(
        (id for id in queued if rising[owner[id]] < most),
        key=lambda id: (working[owner[id]], begun.get(owner[id], "")),
        default=None,
    )


def rising(session: Session, account_id: str) -> tuple[int, int]:
    """How many releases of builds are on their way up, and postdeploy commands run: of all, and of the account."""
    owners = [
        *session.scalars(select(Build.account_id).where(Build.status == "pending", Build.phase.in_(_RISING))),
        *session.scalars(select(AppSetup.account_id).where(AppSetup.status == "pending", AppSetup.phase.in_(_RISING))),
    ]
    return len(owners), owners.count(account_id)


def begin(session: Session, build_id: str) -> Build:
    """A worker starts on the build.

    Raises:
        NotFound: it is gone with its app.
        Conflict: it is finished already.
    """
    build = session.get(Build, build_id)
    if build is None:
        raise NotFound("Couldn't find that build.", resource="build")
    if build.status != "pending":
        raise Conflict("That build is finished.")
    build.phase, build.attempts = "building", build.attempts + 1
    return build


def releasing(session: Session, build_id: str, slug: Slug, release: Release) -> None:
    """The slug is sealed and its release made."""
    session.execute(
        update(Build)
        .where(Build.id == build_id)
        .values(phase="releasing", slug_id=slug.id, release_id=release.id, updated_at=now())
    )


def succeed(session: Session, build_id: str, *, repo_size: int | None = None) -> None:
    """The build's release serves.

    Args:
        repo_size: bytes that the app's repository takes now.
    """
    if repo_size is not None:
        app_id = select(Build.app_id).where(Build.id == build_id).scalar_subquery()
        session.execute(update(App).where(App.id == app_id).values(repo_size=repo_size))
    _finish(session, build_id, "succeeded", None, None)


def fail(session: Session, build_id: str, kind: str, message: str) -> None:
    """The build changed nothing.

    Args:
        kind: what the pusher's ref line says (``build failed``, ``release phase failed``, ``app did not start``, ``cancelled``).
        message: the sentence for the person.
    """
    _finish(session, build_id, "failed", kind, message)


def _finish(session: Session, build_id: str, status: str, kind: str | None, message: str | None) -> None:
    build = session.get(Build, build_id)
    if build is None or build.status != "pending":
        return
    build.status, build.phase, build.finished_at = status, "done", now()
    build.failure_kind, build.failure = kind, message
    notify.announce(session, build.app_id, "Build succeeded" if status == "succeeded" else f"Build failed: {message}")
    notify.wake(session, f"build:{build_id}")


def request_cancel(session: Session, account: Account, app: App, build: Build) -> None:
    """Ask that a build be given up.

    Raises:
        Conflict: it is finished.
    """
    if build.status != "pending":
        raise Conflict("That build is finished; there is nothing to cancel.", status=422)
    build.cancel_requested = True
    audit.record(session, account, "builds:cancel", app, build=build.id)
    notify.wake(session, f"build:{build.id}")
    notify.runtime(session, app.id)  # its release may be on its way up


def is_cancelled(session: Session, release: Release) -> bool:
    """Whether somebody asked to give up the build that made ``release``."""
    asked = select(Build.id).where(Build.release_id == release.id, Build.status == "pending", Build.cancel_requested.is_(True))
    return session.scalar(asked) is not None


def purge_cache(app_id: str) -> None:
    """Have the app's build cache thrown away; never inside a write transaction, and :func:`note_purge` comes after it.

    Raises:
        DavitError: the runtime process does not answer, or cannot do it.
    """
    wire.call(settings().run / "runtime.sock", "cache.purge", {"app_id": app_id}, timeout=30)


def note_purge(session: Session, account: Account, app: App) -> None:
    """The app's build cache was thrown away."""
    audit.record(session, account, "builds:cache:purge", app)
    notify.announce(session, app.id, f"Build cache purged by user {account.email}")


def unfinished(session: Session) -> list[Build]:
    """Every pending build, oldest first: what a starting worker has to look after."""
    return list(session.scalars(select(Build).where(Build.status == "pending").order_by(Build.created_at)))
