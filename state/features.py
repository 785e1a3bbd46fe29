"""Features: what an app or an account can switch on and off.

Heroku's names where Davit has the same thing. Each does what its description says; there are none for show.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.errors import InvalidParams, NotFound
from state import audit, notify, own_names
from state.models import Account, AccountFeature, App, AppFeature, Release


@dataclass(frozen=True)
class Feature:
    """Something that can be switched.

    Attributes:
        title: as a page shows it.
        usual: whether it is on where nobody has switched it.
        fixed: why it cannot be switched; empty when it can.
    """

    name: str
    title: str
    description: str
    usual: bool = False
    fixed: str = ""


GUARD = "two-factor-guard"
METADATA = "runtime-dyno-metadata"
EXEC = "runtime-heroku-exec"

OF_APPS = (
    Feature(
        "preboot", "Preboot", "New web dynos start, and answer, before the old ones stop.", True,
        "Davit always starts new web dynos before it stops the old ones; preboot cannot be switched off.",
    ),
    Feature(
        METADATA, "Dyno metadata",
        "Dynos find the app's name, the release and the commit in HEROKU_… variables, from the next release on.",
    ),
    Feature(EXEC, "Exec", "ps:exec opens a shell in a running dyno.", True),
    Feature(
        GUARD, "Two-factor guard",
        "Destroying, renaming or transferring the app and changing who may work on it take a two-factor code.",
    ),
)  # fmt: skip
OF_ACCOUNTS = (
    Feature(
        GUARD, "Two-factor guard",
        "Whatever you do with any app: destroying, renaming or transferring it and changing who may work on it take a "
        "two-factor code.",
    ),
)  # fmt: skip


def _find(features: tuple[Feature, ...], name: str) -> Feature:
    for feature in features:
        if feature.name == name:
            return feature
    raise NotFound(f"Couldn't find that feature; there are {', '.join(feature.name for feature in features)}.")


def of_app(session: Session, app: App) -> list[tuple[Feature, AppFeature | None]]:
    """Every feature of apps, each with the app's own switch where it was used."""
    rows = {row.name: row for row in session.scalars(select(AppFeature).where(AppFeature.app_id == app.id))}
    return [(feature, rows.get(feature.name)) for feature in OF_APPS]


def of_account(session: Session, account: Account) -> list[tuple[Feature, AccountFeature | None]]:
    """Every feature of accounts, each with the account's own switch where it was used."""
    rows = {row.name: row for row in session.scalars(select(AccountFeature).where(AccountFeature.account_id == account.id))}
    return [(feature, rows.get(feature.name)) for feature in OF_ACCOUNTS]


def enabled(session: Session, app: App, name: str) -> bool:
    """Whether the app has the feature."""
    row = session.scalar(select(AppFeature).where(AppFeature.app_id == app.id, AppFeature.name == name))
    return row.enabled if row else _find(OF_APPS, name).usual


def enabled_for(session: Session, account: Account, name: str) -> bool:
    """Whether the account has the feature."""
    row = session.scalar(select(AccountFeature).where(AccountFeature.account_id == account.id, AccountFeature.name == name))
    return row.enabled if row else _find(OF_ACCOUNTS, name).usual


def switch(session: Session, account: Account, app: App, name: str, on: bool) -> tuple[Feature, AppFeature]:
    """Switch a feature of the app's.

    Raises:
        NotFound: there is no such feature.
        InvalidParams: it cannot be switched.
    """
    feature = _find(OF_APPS, name)
    if feature.fixed and on != feature.usual:
        raise InvalidParams(feature.fixed)
    if feature.name == GUARD and on:
        _has_second_factor(account)
    row = session.scalar(select(AppFeature).where(AppFeature.app_id == app.id, AppFeature.name == name))
    if row is None:
        row = AppFeature(app_id=app.id, name=name)
        session.add(row)
    row.enabled = on
    session.flush()
    verb = "Enable" if on else "Disable"
    audit.record(session, account, "features:enable" if on else "features:disable", app, feature=name)
    notify.announce(session, app.id, f"{verb} {name} feature by user {account.email}")
    return feature, row


def switch_for(session: Session, account: Account, name: str, on: bool) -> tuple[Feature, AccountFeature]:
    """Switch a feature of the account's.

    Raises:
        NotFound: there is no such feature.
        InvalidParams: it cannot be switched.
    """
    feature = _find(OF_ACCOUNTS, name)
    if feature.name == GUARD and on:
        _has_second_factor(account)
    row = session.scalar(select(AccountFeature).where(AccountFeature.account_id == account.id, AccountFeature.name == name))
    if row is None:
        row = AccountFeature(account_id=account.id, name=name)
        session.add(row)
    row.enabled = on
    session.flush()
    audit.record(session, account, "labs:enable" if on else "labs:disable", feature=name)
    return feature, row


def _has_second_factor(account: Account) -> None:
    if not account.two_factor:
        raise InvalidParams("The two-factor guard asks for two-factor codes; turn two-factor authentication on first.")


def metadata(session: Session, app: App, release: Release) -> dict[str, str]:
    """The HEROKU_… variables of the release's dynos (Dev Center, "Dyno Metadata"); none where the feature is off."""
    if not enabled(session, app, METADATA):
        return {}
    slug = release.slug
    return {
        "HEROKU_APP_DEFAULT_DOMAIN_NAME": own_names.of_app(app.name),
        "HEROKU_APP_ID": app.id,
        "HEROKU_APP_NAME": app.name,
        "HEROKU_RELEASE_CREATED_AT": release.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "HEROKU_RELEASE_VERSION": f"v{release.version}",
        "HEROKU_BUILD_COMMIT": (slug.commit if slug else None) or "",
        "HEROKU_SLUG_COMMIT": (slug.commit if slug else None) or "",
        "HEROKU_SLUG_DESCRIPTION": (slug.commit_description if slug else None) or release.description,
    }
