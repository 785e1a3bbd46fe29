"""What happened to an app of late, newest first: what people did (audit events), how builds and releases ended, which dynos
crashed."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from state import crashes
from state.models import App, AuditEvent, Build, Crash, Release

Kind = Literal["build", "release", "config", "scale", "people", "domain", "crash", "other"]
Outcome = Literal["pending", "succeeded", "failed"]

_QUIET = frozenset(("builds:create", "releases:create", "releases:rollback"))
"""Told by the build's or release's own item, which also knows how it ended."""
_READS = "dynos:files"
"""Told once where it comes in a row: a program that copies files does so hundreds of times."""
_KINDS: Mapping[str, Kind] = {
    "config": "config", "ps": "scale", "access": "people", "domains": "domain", "certs": "domain", "builds": "build",
    "slugs": "build", "features": "config", "buildpacks": "config", "pipelines": "release",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """Something that happened.

    Attributes:
        id: of the row that tells of it; it orders what happened in the same instant.
        kind: what it was about.
        what: a sentence without a full stop.
        who: an e-mail address, or ``davit``.
        outcome: how it ended, for builds and releases.
        why: why it failed.
        about: what an action of somebody's was about: the word before its colon (``ps``, ``domains``).
        build, version, dyno: what it leads to, if anything.
        times: how often it happened, without anything else in between.
    """

    id: str
    at: datetime
    kind: Kind
    what: str
    who: str
    outcome: Outcome | None = None
    why: str | None = None
    about: str | None = None
    build: str | None = None
    version: int | None = None
    dyno: str | None = None
    times: int = 1


def of(session: Session, app: App, most: int = 20) -> list[Item]:
    """The newest items."""
    items = [*_releases(session, app, most), *_builds(session, app, most), *_events(session, app, most), *_crashes(session, app)]
    return _folded(sorted(items, key=lambda item: (item.at, item.id), reverse=True))[:most]


def _folded(items: Sequence[Item]) -> list[Item]:
    """The items with the crashes of one dyno between which nothing else happened as one (one in a loop would fill the list), and
    so with the times somebody read its files."""
    folded: list[Item] = []
    run: dict[tuple[str, str], int] = {}
    for item in items:
        if item.dyno is None:  # only these two have one
            run = {}
        elif (place := run.setdefault((item.dyno, item.who), len(folded))) < len(folded):
            folded[place] = replace(folded[place], times=folded[place].times + 1)
            continue
        folded.append(item)
    return folded


def _releases(session: Session, app: App, most: int) -> list[Item]:
    query = select(Release).where(Release.app_id == app.id).order_by(Release.version.desc()).limit(most)
    return [
        Item(
            row.id, row.created_at, "config" if row.kind == "config" else "release", f"v{row.version}: {row.description}",
            row.account.email, row.status, row.failure, version=row.version,  # type: ignore[arg-type]
        )
        for row in session.scalars(query)
    ]  # fmt: skip


def _builds(session: Session, app: App, most: int) -> list[Item]:
    """Builds whose story no release tells: those under way and those that failed before there was one."""
    query = select(Build).where(Build.app_id == app.id, Build.status != "succeeded", Build.release_id.is_(None))
    return [
        Item(
            row.id, row.finished_at or row.created_at, "build",
            f"Build of {(row.commit or row.source_version or 'a tarball')[:8]}",
            row.account.email, row.status, row.failure, build=row.id,  # type: ignore[arg-type]
        )
        for row in session.scalars(query.order_by(Build.created_at.desc()).limit(most))
    ]  # fmt: skip


def _crashes(session: Session, app: App) -> list[Item]:
    return [
        Item(row.id, row.created_at, "crash", crashed(row), "davit", why=row.why, dyno=row.dyno)
        for row in crashes.newest(session, app.id)
    ]


def crashed(row: Crash) -> str:
    """``web.1 of v7 crashed with status 137 (SIGKILL)``"""
    status = "" if row.exit_status is None else f" with status {row.exit_status}"
    if row.exit_status is not None and row.exit_status > 128:
        with suppress(ValueError):
            status += f" ({signal.Signals(row.exit_status - 128).name})"
    return f"{row.dyno} of v{row.release_version} {'ended' if row.exit_status == 0 else 'crashed'}{status}"


def _events(session: Session, app: App, most: int) -> list[Item]:
    newest = select(AuditEvent).where(AuditEvent.app_id == app.id).order_by(AuditEvent.created_at.desc()).limit(most)
    items = []
    for row in session.scalars(newest.where(AuditEvent.action.not_in((*_QUIET, "config:set", _READS)))):
        about = row.action.partition(":")[0]
        items.append(Item(row.id, row.created_at, _KINDS.get(about, "other"), told(row), row.actor, about=about))
    for row in session.scalars(newest.where(AuditEvent.action == _READS)):
        items.append(Item(row.id, row.created_at, "other", told(row), row.actor, about="dynos", dyno=row.details.get("dyno")))
    return items


SENTENCES: Mapping[str, str] = {
    "apps:create": "Created the app",
    "apps:rename": "Renamed it from {old}",
    "apps:destroy": "Destroyed {name}",
    "apps:transfer": "Offered it to {recipient}",
    "apps:transfer-accepted": "Took it over",
    "apps:transfer-declined": "Declined it",
    "apps:transfer-cancel": "Took the offer of it back",
    "apps:pre-authorize": "Gave a two-factor code for what follows",
    "app-setups:create": "Set it up from its app.json",
    "maintenance:on": "Turned maintenance mode on",
    "maintenance:off": "Turned maintenance mode off",
    "features:enable": "Turned the feature {feature} on",
    "features:disable": "Turned the feature {feature} off",
    "buildpacks:set": "Changed the buildpacks",
    "config:set": "Changed config vars (set: {set}; removed: {removed})",
    "config:reveal": "Looked at the values of config vars",
    "config:rotate-keys": "Encrypted {values} secrets with a new key",
    "ps:scale": "Scaled to {formation}",
    "ps:restart": "Restarted {target}",
    "ps:stop": "Stopped {dyno}",
    "ps:migrate": "Moved {dyno}",
    "dynos:create": "Ran a command in {dyno}",
    "dynos:inside": "Ran a command inside {dyno}",
    "dynos:files": "Read files of {dyno}",
    "refs:update": "Pushed without a deploy: {refs}",
    "ps:sleep": "Set sleep to {sleep}",
    "access:add": "Added {email} as a collaborator",
    "access:update": "Changed what {email} may do to {permissions}",
    "access:remove": "Removed {email} from the collaborators",
    "domains:add": "Added the domain {hostname}",
    "domains:remove": "Removed the domain {hostname}",
    "domains:update": "Chose the certificate of {hostname}",
    "certs:add": "Added the certificate {endpoint}",
    "certs:update": "Renewed the certificate {endpoint}",
    "certs:remove": "Removed the certificate {endpoint}",
    "drains:add": "Added the log drain {to}",
    "drains:remove": "Removed the log drain {to}",
    "webhooks:add": "Added a webhook",
    "webhooks:update": "Changed a webhook",
    "webhooks:remove": "Removed a webhook",
    "slugs:create": "Uploaded a slug",
    "builds:create": "Started a build",
    "builds:cancel": "Cancelled a build",
    "builds:cache:purge": "Threw the build cache away",
    "releases:create": "Made release v{version}",
    "releases:rollback": "Rolled back to v{to}",
    "pipelines:create": "Made the pipeline {name}",
    "pipelines:rename": "Renamed the pipeline to {name}",
    "pipelines:destroy": "Removed the pipeline {name}",
    "pipelines:transfer": "Gave the pipeline {name} to {recipient}",
    "pipelines:add": "Put it into the pipeline {pipeline}, {stage}",
    "pipelines:update": "Moved it to {stage}",
    "pipelines:remove": "Took it out of the pipeline {pipeline}",
    "pipelines:promote": "Promoted v{version} to {targets}",
    "accounts:create": "Made the account {email}",
    "accounts:rename": "Changed the name of {email}",
    "accounts:destroy": "Removed the account {email}",
    "accounts:password": "Changed the password of {email}",
    "accounts:set-up": "Set the dashboard up as {email}",
    "accounts:invite": "Invited {email}",
    "sessions:create": "Signed in with {description}",
    "sessions:destroy": "Signed {description} out",
    "login:approve": "Logged a command line at {source} in",
    "login:deny": "Refused to log a command line at {source} in",
    "authorizations:create": "Made the token “{description}”",
    "authorizations:update": "Called a token “{description}”",
    "authorizations:rotate": "Renewed the token “{description}”",
    "authorizations:destroy": "Revoked the token “{description}”",
    "clients:create": "Made the OAuth client {name}",
    "clients:update": "Changed the OAuth client {name}",
    "clients:rotate": "Renewed the secret of the OAuth client {name}",
    "clients:destroy": "Removed the OAuth client {name}",
    "2fa:enable": "Turned two-factor authentication on",
    "2fa:disable": "Turned two-factor authentication off for {email}",
    "2fa:recovery-codes": "Made new recovery codes",
    "2fa:recovery-code": "Used a recovery code; {left} are left",
    "keys:add": "Added the SSH key {fingerprint}",
    "keys:remove": "Removed the SSH key {fingerprint}",
    "labs:enable": "Turned the feature {feature} on",
    "labs:disable": "Turned the feature {feature} off",
}
"""What is said of each action, with the details that its event has; the word before the colon of each is what it is about."""


class _Details(dict[str, Any]):
    """An event's details, as they are written into a sentence; what an event of an earlier version has not got is a ``?``."""

    def __getitem__(self, key: str) -> str:
        value = self.get(key, "?")
        return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def told(event: AuditEvent) -> str:
    """An audit event as a sentence; an action of another version of Davit is shown as it is called, with its details."""
    details = _Details(event.details)
    if sentence := SENTENCES.get(event.action):
        return sentence.format_map(details)
    words = ", ".join(f"{name} {details[name]}" for name, value in details.items() if value not in (None, ""))
    return f"{event.action}{' (' + words + ')' if words else ''}"
