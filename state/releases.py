"""Releases: v1, v2, … = slug + config vars + process types; created here, brought up by the runtime process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import redis
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from foundation import line
from foundation.clock import now
from foundation.errors import Conflict, InvalidParams, NotFound
from foundation.settings import settings
from state import audit, features, notify, vault
from state.db import lock_app, snapshot
from state.models import Account, App, Formation, Release, Slug

RELEASE_TYPE = "release"
"""The process type that is the release phase's command and is never scaled."""


def current(session: Session, app_id: str) -> Release | None:
    """The app's newest release that succeeded."""
    return session.scalar(
        select(Release).where(Release.app_id == app_id, Release.current.is_(True)).order_by(Release.version.desc()).limit(1)
    )


def newest(session: Session, app_id: str) -> Release | None:
    """The app's newest release, whatever became of it."""
    return session.scalar(select(Release).where(Release.app_id == app_id).order_by(Release.version.desc()).limit(1))


def find(session: Session, app: App, identity: str) -> Release:
    """A release by ``v7``, ``7`` or id.

    Raises:
        NotFound: the app has none such.
    """
    number = identity[1:] if identity[:1] in "vV" else identity
    query = select(Release).where(Release.app_id == app.id)
    row = (
        session.scalar(query.where(Release.version == int(number)))
        if number.isascii() and number.isdigit() and len(number) < 9
        else None
    )
    row = row or session.scalar(query.where(Release.id == identity))
    if row is None:
        raise NotFound("Couldn't find that release.", resource="release")
    return row


def create(
    session: Session,
    app: App,
    account: Account,
    *,
    kind: str,
    description: str,
    slug: Slug | None = None,
    process_types: Mapping[str, str] | None = None,
    config: bytes | None = None,
) -> Release:
    """Make the app's next release, pending; the runtime process takes it from here.

    Args:
        kind: deploy, config, rollback, other.
        description: one line of it, whatever it is, stands in the app's log and in its history.
        slug: the newest succeeded release's when None.
        process_types: the slug's when None and a slug is given, else the newest succeeded release's.
        config: sealed config vars; the app's present ones when None.

    Returns:
        The release; already succeeded when there is nothing to run (no slug).
    """
    lock_app(session, app.id)
    session.refresh(app, ["config", "name"])  # others may have set config vars since it was loaded, until the lock was ours
    description = line.of(description)
    base = current(session, app.id)
    version = (session.scalar(select(func.max(Release.version)).where(Release.app_id == app.id)) or 0) + 1
    if process_types is None:
        process_types = slug.process_types if slug else (base.process_types if base else {})
    slug = slug or (base.slug if base else None)
    release = Release(
        app_id=app.id,
        version=version,
        kind=kind,
        description=description,
        account_id=account.id,
        slug_id=slug.id if slug else None,
        config=config if config is not None else app.config,
        process_types=dict(process_types),
    )
    session.add(release)
    session.flush()
    session.refresh(release, ["slug"])
    release.dyno_metadata = features.metadata(session, app, release)
    _ensure_formation(session, app, release)
    audit.record(session, account, "releases:create", app, version=version, kind=kind)
    if kind in ("deploy", "rollback"):
        notify.announce(session, app.id, f"{description} by user {account.email}")
    notify.announce(session, app.id, f"Release v{version} created by user {account.email}")
    if slug is None and not _pending_before(session, release):
        succeed(session, release)
    notify.runtime(session, app.id)
    return release


def _pending_before(session: Session, release: Release) -> bool:
    query = select(Release.id).where(
        Release.app_id == release.app_id, Release.status == "pending", Release.version < release.version
    )
    return session.scalar(query.limit(1)) is not None


def _ensure_formation(session: Session, app: App, release: Release) -> None:
    """Every process type has a formation row: web with one dyno from its first release on, the others with none."""
    have = {row.type for row in session.scalars(select(Formation).where(Formation.app_id == app.id))}
    for name in release.process_types:
        if name not in have:
            session.add(Formation(app_id=app.id, type=name, quantity=1 if name == "web" else 0))


def next_pending(session: Session, app_id: str) -> Release | None:
    """The release that is to be brought up now: the oldest pending one."""
    return session.scalar(
        select(Release).where(Release.app_id == app_id, Release.status == "pending").order_by(Release.version).limit(1)
    )


def rebase(session: Session, release: Release) -> None:
    """A config release keeps the app's code: when a deploy finished between its creation and its turn, it takes that slug."""
    base = current(session, release.app_id)
    if release.kind == "config" and base and base.slug_id != release.slug_id:
        release.slug_id, release.process_types = base.slug_id, dict(base.process_types)
        session.flush()
        session.refresh(release)
        if release.dyno_metadata and release.slug:
            commit = release.slug.commit or ""
            release.dyno_metadata = release.dyno_metadata | {"HEROKU_SLUG_COMMIT": commit, "HEROKU_BUILD_COMMIT": commit}


def set_phase(session: Session, release_id: str, phase: str) -> None:
    """Record where a pending release stands (release, boot)."""
    session.execute(update(Release).where(Release.id == release_id).values(phase=phase, updated_at=now()))


def succeed(session: Session, release: Release) -> None:
    """The release is what the app is from now on; with a rollback's, its config vars are the app's."""
    if release.kind == "rollback":
        _take_config_back(session, release)
    session.execute(update(Release).where(Release.app_id == release.app_id, Release.current.is_(True)).values(current=False))
    release.status, release.phase, release.current, release.finished_at = "succeeded", "done", True, now()
    values: dict[str, Any] = {"released_at": now()}
    if release.slug:
        values["slug_size"] = release.slug.size
        values["buildpack_provided_description"] = release.slug.buildpack_provided_description
    session.execute(update(App).where(App.id == release.app_id).values(**values))
    notify.wake(session, f"release:{release.id}")


def _take_config_back(session: Session, rollback: Release) -> None:
    """The app has the config vars of the rollback's release, and so have the releases that wait behind it.

    What somebody set or unset after the rollback had been asked for is newer, and stays as they wanted it.
    """
    lock_app(session, rollback.app_id)
    app = session.get_one(App, rollback.app_id)
    session.refresh(app, ["config"])
    then, before = config_of(rollback), _config_before(session, rollback)
    app.config = vault.seal(_with_changes(then, before, vault.reveal(app.config)))
    waiting = select(Release).where(
        Release.app_id == rollback.app_id,
        Release.status == "pending",
        Release.version > rollback.version,
        Release.kind != "rollback",
    )
    for later in session.scalars(waiting):
        later.config = vault.seal(_with_changes(then, before, config_of(later)))


def _config_before(session: Session, rollback: Release) -> dict[str, str]:
    """The app's config vars when the rollback was asked for: every change is a release, and only a failed rollback is none."""
    asked = session.scalar(
        select(Release)
        .where(
            Release.app_id == rollback.app_id,
            Release.version < rollback.version,
            (Release.kind != "rollback") | (Release.status == "succeeded"),
        )
        .order_by(Release.version.desc())
        .limit(1)
    )
    return config_of(asked) if asked else {}


def _with_changes(config: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """``config``, with what differs between ``before`` and ``after`` as it is in ``after``."""
    kept = {name: value for name, value in config.items() if name in after or name not in before}
    return kept | {name: value for name, value in after.items() if before.get(name) != value}


def fail(session: Session, release: Release, kind: str, message: str) -> None:
    """The release did not come up; what ran before runs on.

    Args:
        kind: ``release phase failed``, ``app did not start`` (what a refused push shows).
        message: the sentence for the person.
    """
    release.status, release.phase, release.finished_at = "failed", "done", now()
    release.failure, release.failure_kind = message, kind
    notify.announce(session, release.app_id, f"Release v{release.version} failed: {message}")
    notify.wake(session, f"release:{release.id}")


def wait(release_id: str, timeout: float | None = None) -> Release:
    """Block until the release has succeeded or failed.

    Args:
        timeout: seconds; None waits for as long as it takes.

    Raises:
        TimeoutError: it is still pending after ``timeout``.
        NotFound: the app was destroyed meanwhile.
    """
    deadline = time.monotonic() + timeout if timeout is not None else None
    bell = notify.subscribe(f"release:{release_id}")
    try:
        while True:
            with snapshot() as session:
                release = session.get(Release, release_id)
            if release is None:
                raise NotFound("The app was destroyed while its release was starting.")
            if release.status != "pending":
                return release
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            _listen(bell, 0.5)
    finally:
        if bell:
            bell.close()


def _listen(bell: Any, seconds: float) -> None:
    try:
        if bell is None:
            time.sleep(0.05)
        else:
            bell.get_message(timeout=seconds)
    except redis.RedisError:
        time.sleep(0.05)


def rollback(session: Session, account: Account, app: App, to: Release) -> Release:
    """A new release with an earlier one's slug, config vars and process types; no rebuild.

    The app's own config vars follow when the release succeeds; one that fails leaves them as they are.

    Raises:
        InvalidParams: that release has no code, or never succeeded.
        Conflict: its slug has been collected.
    """
    if to.status != "succeeded":
        raise InvalidParams(f"v{to.version} did not succeed, so there is nothing to go back to; pick another release.")
    if to.slug is None:
        raise InvalidParams(f"v{to.version} has no code; pick a release that has (`davit releases` lists them).")
    if to.slug.digest is None or not eligible(session, to):
        raise Conflict(
            f"The slug of v{to.version} is no longer kept (those of the newest {settings().releases_kept} are); push it again.",
            status=422,
        )
    audit.record(session, account, "releases:rollback", app, to=to.version)
    return create(
        session, app, account, kind="rollback", description=f"Rollback to v{to.version}",
        slug=to.slug, process_types=to.process_types, config=to.config,
    )  # fmt: skip


def eligible(session: Session, release: Release) -> bool:
    """Whether the release can be rolled back to: it succeeded, has code, and its slug is still kept."""
    if release.status != "succeeded" or release.slug is None or release.slug.digest is None:
        return False
    newer = session.scalar(select(func.count()).where(Release.app_id == release.app_id, Release.version > release.version))
    return (newer or 0) < settings().releases_kept or release.current


def last_good_before(session: Session, app: App) -> Release:
    """The release that ``rollback`` without a number goes to.

    Raises:
        InvalidParams: there is none.
    """
    base = current(session, app.id)
    row = session.scalar(
        select(Release)
        .where(
            Release.app_id == app.id,
            Release.status == "succeeded",
            Release.slug_id.is_not(None),
            Release.version < (base.version if base else 0),
        )
        .order_by(Release.version.desc())
        .limit(1)
    )
    if row is None:
        raise InvalidParams("There is no earlier release to roll back to.")
    return row


def config_of(release: Release) -> dict[str, str]:
    """The release's config vars; slug defaults are not in them."""
    return vault.reveal(release.config)
