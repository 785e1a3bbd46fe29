"""Apps: who may do what with which, creation, renaming, destruction, collaborators, maintenance."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import Conflict, Forbidden, InvalidParams, NotFound
from state import accounts, audit, notify, own_names, vault
from state.db import lock_app, unless_taken
from state.meanwhile import ChangedMeanwhile
from state.models import (
    Account,
    App,
    AppTransfer,
    Build,
    Collaborator,
    Domain,
    Dyno,
    Formation,
    PipelineCoupling,
    Release,
    Slug,
)

PERMISSIONS = ("view", "deploy", "operate", "manage")
"""What a collaborator can be allowed: look, push code, run and scale and configure, and change who may."""
NOT_FOUND = "Couldn't find that app."
"""The same for an app that is absent and for one that the account must not know of."""

_NAME = re.compile(r"[a-z][a-z0-9-]{1,28}[a-z0-9]")  # as the public schema's app.name
_ADJECTIVES = (
    "ancient autumn bold brave breezy bright calm clear cool crisp damp deep fair fresh gentle glad golden grand hidden high "
    "keen light lively lucky mellow misty neat nimble noble open pale patient plain polar proud quick quiet rapid rosy salty "
    "serene shining silent silver smooth snowy still sunny swift tidal tidy tranquil vivid warm wild windy wise"
).split()
_NOUNS = (
    "anchor bay beacon boat bow brook buoy cabin canal cape channel cliff cloud coast coral cove creek current dawn deck delta "
    "dune eddy estuary ferry fjord foam gale gull harbour haven horizon island jetty keel lagoon lake lantern lighthouse mast "
    "meadow mooring ocean oar pier pilot pond port quay raft reef ridge river rudder sail sea shell shoal shore sound spray "
    "star stern storm strait stream surf tide vessel wave wharf wind"
).split()


def check_name(name: object) -> str:
    """``name`` when it is a valid app name.

    Raises:
        InvalidParams: it is not; the sentence gives the rule.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidParams(
            f"Name {name!r} is not valid: it must start with a letter, end with a letter or digit, "
            "contain only lowercase letters, digits and dashes, and be 3 to 30 characters long."
        )
    if name in own_names.RESERVED:
        raise InvalidParams(f"Name “{name}” is reserved.")
    return name


def _random_name() -> str:
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.randbelow(90000) + 10000}"


def create(session: Session, account: Account, name: str | None = None, *, stack: str = "davit-13") -> App:
    """Make an app, its default domain, and release v1 ("Initial release").

    Raises:
        InvalidParams: the name cannot be used.
        Conflict: it is taken.
    """
    if name is not None:
        _refuse_name(session, name)
    app = App(name=name or _random_name(), owner_id=account.id, stack=stack, config=vault.seal({}), buildpacks=[])
    session.add(app)
    with unless_taken(_taken(app.name)):
        session.flush()
    session.add(
        Release(
            app_id=app.id, version=1, kind="initial", description="Initial release", account_id=account.id,
            config=app.config, process_types={}, status="succeeded", phase="done", current=True, finished_at=now(),
        )
    )  # fmt: skip
    session.add(Domain(app_id=app.id, hostname=own_names.of_app(app.name), kind="heroku"))
    with unless_taken(_taken(app.name)):
        session.flush()
    audit.record(session, account, "apps:create", app)
    notify.announce(session, app.id, f"Release v1 created by user {account.email}")
    notify.announce(session, app.id, f"Initial release by user {account.email}")
    notify.router(session, app.id)
    return app


def _taken(name: str) -> str:
    return f"Name {name} is already taken."


def _refuse_name(session: Session, name: str) -> None:
    """Whether an app may get this name.

    Raises:
        InvalidParams: it cannot be used.
        Conflict: it is taken, or its host name is: a custom domain of some app's, from before DAVIT_DOMAIN was what it is now.
    """
    check_name(name)
    if session.scalar(select(App.id).where(App.name == name)):
        raise Conflict(_taken(name), id="invalid_params", status=422)
    hostname = own_names.of_app(name)
    if session.scalar(select(Domain.id).where(Domain.hostname == hostname)):
        raise Conflict(f"{_taken(name)[:-1]}: {hostname} is a domain of some app's.", id="invalid_params", status=422)
    own_names.refuse(session, hostname)


def permissions(session: Session, account: Account, app: App) -> frozenset[str]:
    """What the account may do with the app; empty when it must not know of it."""
    if account.is_admin or app.owner_id == account.id:
        return frozenset(PERMISSIONS)
    row = session.scalar(select(Collaborator).where(Collaborator.app_id == app.id, Collaborator.account_id == account.id))
    return frozenset(row.permissions) | {"view"} if row else frozenset()


def permissions_on(session: Session, account: Account, found: Sequence[App]) -> dict[str, frozenset[str]]:
    """As :func:`permissions` for many apps by one query: what the account may do with each, by the app's id."""
    shared: dict[str, frozenset[str]] = {}
    if not account.is_admin and any(app.owner_id != account.id for app in found):
        rows = select(Collaborator.app_id, Collaborator.permissions).where(Collaborator.account_id == account.id)
        shared = {id: frozenset(allowed) | {"view"} for id, allowed in session.execute(rows)}
    whole = frozenset(PERMISSIONS)
    return {
        app.id: whole if account.is_admin or app.owner_id == account.id else shared.get(app.id, frozenset()) for app in found
    }  # fmt: skip


def find(session: Session, account: Account, identity: str, permission: str = "view") -> App:
    """The app with this name or id, when the account may do ``permission`` with it.

    Raises:
        NotFound: there is none, or the account must not know of it: the same sentence.
        Forbidden: the account sees the app and may not do this.
    """
    app = session.scalar(select(App).where(or_(App.name == identity, App.id == identity), App.destroying.is_(False)))
    allowed = permissions(session, account, app) if app else frozenset()
    if app is None or not allowed:
        raise NotFound(NOT_FOUND, resource="app")
    if permission not in allowed:
        raise Forbidden(f"You may not do that with {app.name}: it takes the permission “{permission}”.")
    return app


def visible(session: Session, account: Account, *, everything: bool = False) -> Sequence[App]:
    """The apps that the account owns or collaborates on, by name; ``everything`` of this Davit for an admin."""
    query = select(App).where(App.destroying.is_(False)).order_by(App.name)
    if not (everything and account.is_admin):
        shared = select(Collaborator.app_id).where(Collaborator.account_id == account.id)
        query = query.where(or_(App.owner_id == account.id, App.id.in_(shared)))
    return session.scalars(query).all()


def rename(session: Session, account: Account, app: App, name: str) -> None:
    """Give the app another name and default domain.

    Raises:
        InvalidParams, Conflict: as :func:`create`.
    """
    if name == app.name:
        return
    _refuse_name(session, name)
    old, app.name = app.name, name
    with unless_taken(_taken(name)):
        domain = session.scalar(select(Domain).where(Domain.app_id == app.id, Domain.kind == "heroku"))
        if domain:
            domain.hostname = own_names.of_app(name)
        session.flush()
    audit.record(session, account, "apps:rename", app, old=old)
    notify.router(session, app.id)
    notify.runtime(session, app.id)


def destroy(session: Session, account: Account, app: App) -> None:
    """Mark the app for destruction: from now on nobody finds it; the runtime stops its dynos and then removes it."""
    app.destroying = True
    session.query(Domain).filter(Domain.app_id == app.id).delete()
    session.query(PipelineCoupling).filter(PipelineCoupling.app_id == app.id).delete()
    session.query(AppTransfer).filter(AppTransfer.app_id == app.id).delete()
    old, app.name = app.name, f"~{app.id[:28]}"  # the name is free at once
    audit.record(session, account, "apps:destroy", app, name=old)
    notify.router(session, app.id)
    notify.runtime(session, app.id)


def forget(session: Session, app_id: str) -> None:
    """Remove what is left of a destroyed app from the database; its dynos must be gone."""
    session.execute(update(Build).where(Build.app_id == app_id).values(release_id=None, slug_id=None))
    tables: list[Any] = [Dyno, Formation, Domain, Collaborator, Build, Release, Slug]
    for table in tables:
        session.execute(delete(table).where(table.app_id == app_id))
    session.execute(delete(App).where(App.id == app_id))


def set_maintenance(session: Session, account: Account, app: App, on: bool) -> None:
    """Show the maintenance page instead of the app, or stop doing so."""
    if app.maintenance == on:
        return
    app.maintenance = on
    audit.record(session, account, "maintenance:on" if on else "maintenance:off", app)
    notify.announce(session, app.id, f"Maintenance mode {'enabled' if on else 'disabled'} by user {account.email}")
    notify.router(session, app.id)


def check_buildpacks(account: Account | None, buildpacks: Sequence[str]) -> None:
    """Whether the account may choose these; None for the author of a source, who is anybody.

    Raises:
        InvalidParams: one is on this host and the account is no admin's.
    """
    for name in buildpacks:
        if name.lower().startswith(("file:", "/", ".")) and (account is None or not account.is_admin):
            raise InvalidParams(f"Buildpack {name} is on this host; only an admin may choose such a one, and no app.json.")


def set_buildpacks(
    session: Session, account: Account, app: App, buildpacks: Sequence[str], *, seen: Sequence[str] | None = None
) -> None:
    """Choose the buildpacks, in order; none means detection at the next build.

    Args:
        seen: those that there were when the person looked, if that is known.

    Raises:
        InvalidParams: one is empty, too long or has control characters, or the account may not choose it.
        ChangedMeanwhile: there are others than were seen.
    """
    for buildpack in buildpacks:
        if not isinstance(buildpack, str) or not 0 < len(buildpack) <= 1000 or re.search(r"[\x00-\x20\x7f]", buildpack):
            raise InvalidParams(f"Buildpack {buildpack!r} is not valid: give a name such as heroku/python or a URL.")
    check_buildpacks(account, buildpacks)
    lock_app(session, app.id)
    session.refresh(app, ["buildpacks"])
    if seen is not None and list(app.buildpacks) != list(seen):
        raise ChangedMeanwhile(["the buildpacks"])
    if list(app.buildpacks) == list(buildpacks):
        return
    app.buildpacks = list(buildpacks)
    audit.record(session, account, "buildpacks:set", app, buildpacks=len(buildpacks))
    notify.announce(session, app.id, f"Set buildpacks by user {account.email}")


def add_collaborator(
    session: Session, account: Account, app: App, email: str, allowed: Sequence[str] | None = None
) -> Collaborator:
    """Let another account work on the app.

    Raises:
        InvalidParams: an unknown permission, or the owner.
        NotFound: nobody has this address.
    """
    wanted = list(allowed) if allowed is not None else ["view", "deploy", "operate"]
    if unknown := [p for p in wanted if p not in PERMISSIONS]:
        raise InvalidParams(f"There is no permission “{unknown[0]}”; there are {', '.join(PERMISSIONS)}.")
    other = session.scalar(select(Account).where(or_(Account.email == accounts.normal(email), Account.id == email)))
    if other is None:
        raise NotFound(f"There is no account for {email}.")
    if other.id == app.owner_id:
        raise InvalidParams(f"{other.email} owns {app.name} already.")
    row = session.scalar(select(Collaborator).where(Collaborator.app_id == app.id, Collaborator.account_id == other.id))
    known = row is not None
    if row is None:
        row = Collaborator(app_id=app.id, account_id=other.id)
        session.add(row)
    elif set(row.permissions) == set(wanted):
        return row
    row.permissions = wanted
    session.flush()
    audit.record(session, account, "access:update" if known else "access:add", app, email=other.email, permissions=wanted)
    notify.announce(session, app.id, f"{'Update' if known else 'Add'} {other.email} as collaborator by user {account.email}")
    return row


def collaborators(session: Session, app: App) -> list[Collaborator]:
    """The app's collaborators (the owner is not one of them), oldest first."""
    return list(session.scalars(select(Collaborator).where(Collaborator.app_id == app.id).order_by(Collaborator.created_at)))


def remove_collaborator(session: Session, account: Account, app: App, identity: str) -> Collaborator:
    """End a collaboration, named by e-mail address or id.

    Raises:
        NotFound: there is no such collaborator.
    """
    row = find_collaborator(session, app, identity)
    session.delete(row)
    audit.record(session, account, "access:remove", app, email=row.account.email)
    notify.announce(session, app.id, f"Remove {row.account.email} as collaborator by user {account.email}")
    return row


def find_collaborator(session: Session, app: App, identity: str) -> Collaborator:
    """The collaborator with this e-mail address or id (its own, or the account's).

    Raises:
        NotFound: there is none.
    """
    for row in collaborators(session, app):
        if identity in (row.id, row.account_id) or accounts.normal(identity) == row.account.email:
            return row
    raise NotFound(f"{identity} is not a collaborator on {app.name}.")
