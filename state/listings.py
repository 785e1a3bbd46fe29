"""Lists for the faces: pages of apps, releases and builds, and what one row needs from other tables in one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from foundation.settings import settings
from state.models import Account, App, Build, Collaborator, Release
from state.pages import Column, Page, Window, page

APP_COLUMNS = {"name": App.name, "id": App.id}
RELEASE_COLUMNS = {"version": Release.version, "id": Release.id}
BUILD_COLUMNS: Mapping[str, Column] = {"created_at": (Build.created_at, Build.id), "id": Build.id}


def apps(session: Session, account: Account, window: Window, *, everything: bool = False) -> Page[App]:
    """A page of the apps that the account owns or works on; of all apps for an admin who asks for ``everything``."""
    query = select(App).where(App.destroying.is_(False))
    if not (everything and account.is_admin):
        shared = select(Collaborator.app_id).where(Collaborator.account_id == account.id)
        query = query.where(or_(App.owner_id == account.id, App.id.in_(shared)))
    return page(session, App, query, APP_COLUMNS, window)


def apps_among(session: Session, account: Account, ids: Sequence[str]) -> list[App]:
    """Of the apps with these ids, those that the account may see, by name."""
    query = select(App).where(App.destroying.is_(False), App.id.in_(ids)).order_by(App.name)
    if not account.is_admin:
        shared = select(Collaborator.app_id).where(Collaborator.account_id == account.id)
        query = query.where(or_(App.owner_id == account.id, App.id.in_(shared)))
    return list(session.scalars(query))


def app_names(session: Session, account: Account, *, everything: bool = False) -> list[tuple[str, str]]:
    """Name and owner's address of every app that :func:`apps` lists, by name: what a command line completes and prints."""
    query = select(App.name, Account.email).join(Account, Account.id == App.owner_id).where(App.destroying.is_(False))
    if not (everything and account.is_admin):
        shared = select(Collaborator.app_id).where(Collaborator.account_id == account.id)
        query = query.where(or_(App.owner_id == account.id, App.id.in_(shared)))
    return [(name, email) for name, email in session.execute(query.order_by(App.name))]


def releases(session: Session, app: App, window: Window) -> Page[Release]:
    """A page of the app's releases."""
    return page(session, Release, select(Release).where(Release.app_id == app.id), RELEASE_COLUMNS, window)


def builds(session: Session, app: App, window: Window) -> Page[Build]:
    """A page of the app's builds."""
    return page(session, Build, select(Build).where(Build.app_id == app.id), BUILD_COLUMNS, window)


def eligible_for_rollback(session: Session, app: App, rows: Sequence[Release]) -> frozenset[str]:
    """Ids of those among ``rows`` that can be rolled back to; see :func:`state.releases.eligible`."""
    kept = session.scalar(
        select(Release.version)
        .where(Release.app_id == app.id)
        .order_by(Release.version.desc())
        .offset(settings().releases_kept - 1)
        .limit(1)
    )
    return frozenset(
        row.id
        for row in rows
        if row.status == "succeeded" and row.slug and row.slug.digest and (kept is None or row.version >= kept or row.current)
    )


def deployed_commit(session: Session, app: App) -> Build | None:
    """The newest build of a git commit that was released: what a rebuild builds again."""
    return session.scalar(
        select(Build)
        .where(Build.app_id == app.id, Build.status == "succeeded", Build.commit.is_not(None))
        .order_by(Build.created_at.desc())
        .limit(1)
    )
