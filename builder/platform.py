"""What the git doors (HTTP and SSH) ask of the rest of Davit: who is it, which app, build this, how did it go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from builder import output, queue
from foundation import line
from foundation.errors import Unauthorized, Unavailable
from state import accounts, apps, audit, builds, db, scopes
from state.models import Account, App, Build

log = logging.getLogger("builder")

_NAMED = 10
"""Refs of one push that the audit log names; of more it has the number."""
_NAME = 200
"""Characters of a ref's name that it shows."""


@dataclass(frozen=True)
class Pusher:
    """An account that came through a door."""

    account_id: str
    email: str


@dataclass(frozen=True)
class Target:
    """An app that the pusher may push to."""

    app_id: str
    name: str


@dataclass(frozen=True)
class Outcome:
    """How a build ended.

    Attributes:
        succeeded: its release serves.
        reason: what the pusher's ref line says otherwise, in a few words ("build failed").
    """

    succeeded: bool
    reason: str = ""


class Platform(Protocol):
    """The doors' only way to the rest of Davit; tests put a small one of their own in its place."""

    def by_token(self, token: str) -> Pusher:
        """The account of an API token.

        Raises:
            Unauthorized: the token is none.
            Forbidden: it is for something narrower.
        """

    def by_key(self, public_key: str) -> Pusher | None:
        """The account of an SSH public key in OpenSSH's text form, or None."""

    def app(self, pusher: Pusher, name: str) -> Target:
        """The app NAME, whose code the account may read and push.

        Raises:
            NotFound: absent or another's, in the same words.
            Forbidden: seen, but without the permission to deploy.
        """

    def build(self, pusher: Pusher, target: Target, *, commit: str, ref: str, old: str, keep: Callable[[str], None]) -> str:
        """Ask for a build and return its id.

        Args:
            old: what the ref is before, 40 zeros when it is new.
            keep: called with the build's id before the request is in force; makes the commit outlast this process.
        """

    def stored(self, pusher: Pusher, target: Target, refs: Mapping[str, str]) -> None:
        """Branches and tags that do not deploy were moved: name → what each is at, 40 zeros where it was deleted."""

    def start(self, app_id: str) -> None:
        """Start the app's next build, when its turn has come."""

    def follow(self, build_id: str) -> Iterator[bytes | None]:
        """What the build prints as it comes; None when it has been quiet for a second; ends with the build."""

    def outcome(self, build_id: str) -> Outcome:
        """How the finished build ended."""

    def standing(self, build_id: str) -> str | None:
        """A build's status (pending, succeeded, failed), or None when there is no such build."""


class Davit:
    """The real one: the database, the queue and the build's output file."""

    def by_token(self, token: str) -> Pusher:
        with db.snapshot() as session:
            row = accounts.find_token(session, token)
            scopes.demand(row.scope, "write-protected")  # what is pushed runs with the config vars
            account = row.account
            return Pusher(account.id, account.email)

    def by_key(self, public_key: str) -> Pusher | None:
        with db.snapshot() as session:
            account = accounts.authenticate_key(session, public_key)
            return Pusher(account.id, account.email) if account else None

    def app(self, pusher: Pusher, name: str) -> Target:
        with db.snapshot() as session:
            account = session.get(Account, pusher.account_id)
            if account is None:
                raise Unauthorized("Your account is gone.")
            app = apps.find(session, account, name, "deploy")
            return Target(app.id, app.name)

    def build(self, pusher: Pusher, target: Target, *, commit: str, ref: str, old: str, keep: Callable[[str], None]) -> str:
        with db.transaction(momentary=True) as session:  # the pusher is told at the end: a power cut before ends the push, too
            account = session.get(Account, pusher.account_id)
            if account is None:
                raise Unauthorized("Your account is gone.")
            app = apps.find(session, account, target.app_id, "deploy")  # it may have changed while the pack came in
            build = builds.create(session, app, account, commit=commit, ref=ref, old_sha=old)
            keep(build.id)
        queue.tell_of_wait(build.id)
        return build.id

    def stored(self, pusher: Pusher, target: Target, refs: Mapping[str, str]) -> None:
        with db.transaction() as session:
            app = session.get(App, target.app_id)
            account = session.get(Account, pusher.account_id)
            told = [_told(name, at) for name, at in list(refs.items())[:_NAMED]]
            if more := len(refs) - len(told):
                told.append(f"and {more} more")
            audit.record(session, account, "refs:update", app, refs=told)

    def start(self, app_id: str) -> None:
        try:
            queue.enqueue_next(app_id)
        except Unavailable as error:
            log.warning("a build has its turn when the database is back: %s", error.message)

    def follow(self, build_id: str) -> Iterator[bytes | None]:
        return iter(output.follow(build_id))

    def outcome(self, build_id: str) -> Outcome:
        said = output.outcome(build_id)
        try:
            with db.snapshot() as session:
                build = session.get(Build, build_id)
        except Unavailable:
            if said is None:
                raise
        else:
            if build is None:
                return Outcome(False, "the app was destroyed")
            if build.status != "pending":
                return Outcome(build.status == "succeeded", build.failure_kind or "build failed")
        return Outcome(bool(said and said.status == "succeeded"), (said and said.kind) or "build failed")

    def standing(self, build_id: str) -> str | None:
        with db.snapshot() as session:
            build = session.get(Build, build_id)
            return build.status if build else None


def _told(name: str, at: str) -> str:
    """Where a ref leads now, in a line for others: git takes names that are none, of 4 KB."""
    shown = line.of(name)[:_NAME]
    return f"{shown} at {at[:12]}" if at.strip("0") else f"{shown} deleted"
