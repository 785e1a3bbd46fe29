"""What a webhook says about a thing: the Platform API's resources, as far as Heroku's webhooks have them (Dev Center, "App
Webhooks Schema"). Pure; written where a change happens, whichever process that is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from foundation.settings import settings
from state import sizes
from state.models import Account, App, Build, Collaborator, Domain, Dyno, Formation, Release, SniEndpoint

Json = dict[str, Any]


def moment(at: datetime | None) -> str | None:
    """``2026-11-23T16:00:00Z``"""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def person(account: Account | None) -> Json:
    """Who did it; Davit itself where nobody did."""
    return {"id": account.id, "email": account.email} if account else {"id": None, "email": "davit"}


def _times(row: Any) -> Json:
    return {"id": row.id, "created_at": moment(row.created_at), "updated_at": moment(row.updated_at)}


def _app(row: App, app: Json) -> Json:
    return {
        **_times(row), "name": row.name, "owner": person(row.owner), "maintenance": row.maintenance,
        "stack": {"name": row.stack}, "build_stack": {"name": row.stack}, "region": {"name": "local"},
        "released_at": moment(row.released_at), "archived_at": moment(row.archived_at), "repo_size": row.repo_size,
        "slug_size": row.slug_size, "buildpack_provided_description": row.buildpack_provided_description,
        "web_url": settings().app_url(row.name),
    }  # fmt: skip


def _build(row: Build, app: Json) -> Json:
    return {
        **_times(row), "app": app, "user": person(row.account), "status": row.status, "stack": row.stack,
        "source_blob": {"version": row.source_version}, "failure": row.failure,
        "slug": {"id": row.slug_id} if row.slug_id else None,
        "release": {"id": row.release_id} if row.release_id else None,
    }  # fmt: skip


def _collaborator(row: Collaborator, app: Json) -> Json:
    return {**_times(row), "app": app, "user": person(row.account), "permissions": [{"name": name} for name in row.permissions]}


def _domain(row: Domain, app: Json) -> Json:
    return {**_times(row), "app": app, "hostname": row.hostname, "kind": row.kind}


def _dyno(row: Dyno, app: Json) -> Json:
    return {
        **_times(row), "app": app, "name": row.name, "type": row.type, "command": row.command, "state": row.state,
        "size": sizes.find(row.size).label, "exit_status": row.exit_status,
        "release": {"id": row.release_id, "version": row.release_version},
    }  # fmt: skip


def _formation(row: Formation, app: Json) -> Json:
    return {**_times(row), "app": app, "type": row.type, "quantity": row.quantity, "size": sizes.find(row.size).label}


def _release(row: Release, app: Json) -> Json:
    slug = row.slug
    return {
        **_times(row), "app": app, "user": person(row.account), "version": row.version, "description": row.description,
        "status": row.status, "current": row.current, "failure": row.failure,
        "slug": {"id": slug.id, "commit": slug.commit} if slug else None,
    }  # fmt: skip


def _sni_endpoint(row: SniEndpoint, app: Json) -> Json:
    return {**_times(row), "app": app, "name": row.name, "certificate_chain": row.certificate_chain}


KINDS: dict[type, tuple[str, str, Callable[[Any, Json], Json]]] = {
    App: ("api:app", "app", _app),
    Build: ("api:build", "build", _build),
    Collaborator: ("api:collaborator", "collaborator", _collaborator),
    Domain: ("api:domain", "domain", _domain),
    Dyno: ("dyno", "dyno", _dyno),
    Formation: ("api:formation", "formation", _formation),
    Release: ("api:release", "release", _release),
    SniEndpoint: ("api:sni-endpoint", "sni-endpoint", _sni_endpoint),
}
"""Table → what webhooks include it as, what the payload calls it, and how it is described (with its app's id and name)."""

INCLUDES = tuple(include for include, _, _ in KINDS.values())
NOT_YET = ("api:addon", "api:addon-attachment")
"""What Heroku's webhooks can include and nothing here makes events of."""
