"""App setups: an app from a tarball with an app.json, in one call: config vars, formation, buildpacks, build, postdeploy.

``phase`` says what comes next: ``source`` (read app.json), ``building``, ``postdeploy`` (its command is to run), ``running``
(it runs; it is not run twice), ``done``. The builder moves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation import line
from foundation.errors import InvalidParams, NotFound
from state import apps, audit, builds, config, formation, notify, sizes, vault
from state.models import Account, App, AppSetup, Build, Formation

POSTDEPLOY_SHOWN = 64 * 1024
"""Characters of the postdeploy command's output that are kept, the last."""
INTERRUPTED = "Davit was restarted while the postdeploy command ran; nobody knows how it ended, and it is not run twice."


@dataclass(frozen=True)
class Source:
    """The tarball: ``checksum`` is ``SHA256:…`` or empty."""

    url: str
    checksum: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Plan:
    """What app.json asks for, read and checked.

    Attributes:
        env: config vars, every one with its value.
        formation: process type → (quantity, size or None).
        postdeploy: the command, or None.
    """

    env: Mapping[str, str] = field(repr=False, default_factory=dict)
    formation: Mapping[str, tuple[int, str | None]] = field(default_factory=dict)
    buildpacks: Sequence[str] = ()
    postdeploy: str | None = None
    success_url: str | None = None


def create(
    session: Session, account: Account, source: Source, *, name: str | None, stack: str,
    env: Mapping[str, str], buildpacks: Sequence[str] | None,
) -> AppSetup:  # fmt: skip
    """Make the app, and ask that it be set up.

    Args:
        env, buildpacks: what the caller wants instead of what app.json says.

    Raises:
        InvalidParams, Conflict: the app cannot be made, a config var cannot be used, or the version is not one line.
    """
    line.demand("source_blob.version", source.version)
    app = apps.create(session, account, name, stack=stack)
    for key, value in env.items():
        config.check(key, value)
    row = AppSetup(
        app_id=app.id, account_id=account.id, source_url=source.url, source_checksum=source.checksum,
        source_version=source.version, overrides=vault.seal(dict(env)),
        buildpacks=list(buildpacks) if buildpacks is not None else None,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    audit.record(session, account, "app-setups:create", app)
    return row


def find(session: Session, account: Account, identity: str) -> AppSetup:
    """A setup of an app that the account may see.

    Raises:
        NotFound: there is none.
    """
    row = session.get(AppSetup, identity)
    if row is None or not apps.permissions(session, account, row.app):
        raise NotFound("Couldn't find that app setup.")
    return row


def overrides_of(row: AppSetup) -> dict[str, str]:
    """The config vars that the caller wants instead of app.json's."""
    return vault.reveal(row.overrides)


def begin_build(session: Session, row: AppSetup, plan: Plan) -> Build:
    """Give the app what app.json asks for, and ask for its build.

    Raises:
        InvalidParams: a config var, buildpack or size cannot be used; nothing has changed then.
    """
    app, account = row.app, row.account
    if plan.env:
        config.change(session, account, app, dict(plan.env))
    if row.buildpacks is None:
        apps.check_buildpacks(None, plan.buildpacks)  # who wrote app.json chose them, not who sets the app up
    apps.set_buildpacks(session, account, app, row.buildpacks if row.buildpacks is not None else plan.buildpacks)
    for type, (quantity, size) in plan.formation.items():
        if not 0 <= quantity <= formation.MOST:
            raise InvalidParams(f"app.json: formation.{type}.quantity must be from 0 to {formation.MOST}.")
        session.add(Formation(app_id=app.id, type=type, quantity=quantity, size=sizes.find(size or sizes.DEFAULT).name))
    build = builds.create(
        session, app, account, source_url=row.source_url, source_checksum=row.source_checksum, source_version=row.source_version
    )
    row.build_id, row.phase, row.postdeploy, row.success_url = build.id, "building", plan.postdeploy, plan.success_url
    session.flush()
    return build


def after_build(session: Session, build_id: str) -> AppSetup | None:
    """Go on when the setup's build has ended; returns the setup when its postdeploy command is to run."""
    row = session.scalar(select(AppSetup).where(AppSetup.build_id == build_id, AppSetup.phase == "building"))
    build = session.get(Build, build_id)
    if row is None or build is None or build.status == "pending":
        return None
    if build.status == "failed":
        fail(session, row, f"The build failed: {build.failure or build.failure_kind or 'see its output'}")
        return None
    if row.postdeploy is None:
        succeed(session, row)
        return None
    row.phase = "postdeploy"
    return row


def begin_postdeploy(session: Session, setup_id: str) -> AppSetup | None:
    """The postdeploy command starts; None when it has started already."""
    row = session.get(AppSetup, setup_id)
    if row is None or row.phase != "postdeploy":
        return None
    row.phase = "running"
    return row


def end_postdeploy(session: Session, setup_id: str, status: int | None, output: str) -> None:
    """The postdeploy command has ended.

    Args:
        status: its exit status; None when nobody knows it.
    """
    row = session.get(AppSetup, setup_id)
    if row is None or row.status != "pending":
        return
    row.postdeploy_status, row.postdeploy_output = status, output.replace("\x00", "\ufffd")[-POSTDEPLOY_SHOWN:]
    if status == 0:
        succeed(session, row)
    else:
        fail(session, row, INTERRUPTED if status is None else f"The postdeploy command ended with status {status}.")


def succeed(session: Session, row: AppSetup) -> None:
    """The app is set up."""
    row.status, row.phase = "succeeded", "done"
    notify.announce(session, row.app_id, "App setup succeeded")


def fail(session: Session, row: AppSetup, message: str, manifest_errors: Sequence[str] = ()) -> None:
    """The app is not set up; it stays as far as it came, as on Heroku.

    Args:
        manifest_errors: what is wrong with app.json.
    """
    row.status, row.phase, row.failure_message, row.manifest_errors = "failed", "done", message, list(manifest_errors)
    notify.announce(session, row.app_id, f"App setup failed: {message}")


def unfinished(session: Session) -> list[AppSetup]:
    """Every pending setup, oldest first: what a starting worker has to look after."""
    return list(session.scalars(select(AppSetup).where(AppSetup.status == "pending").order_by(AppSetup.created_at)))


def build_of(session: Session, row: AppSetup) -> Build | None:
    """The setup's build, once there is one."""
    return session.get(Build, row.build_id) if row.build_id else None


def app_of(session: Session, row: AppSetup) -> App | None:
    """The setup's app."""
    return session.get(App, row.app_id)


def document(row: AppSetup) -> dict[str, Any] | None:
    """What the postdeploy command did, as the API has it."""
    if row.postdeploy_output is None:
        return None
    return {"exit_code": row.postdeploy_status, "output": row.postdeploy_output}
