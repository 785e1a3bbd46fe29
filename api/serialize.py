"""State as the Platform API writes it: pure, complete key sets (the public schema's), times in UTC to the second."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from builder.inside import without_secrets
from state import setups, sizes, webhooks
from state.endpoints import describe
from state.features import Feature
from state.models import (
    Account,
    AccountFeature,
    App,
    AppFeature,
    AppSetup,
    AppTransfer,
    Build,
    Collaborator,
    Domain,
    Dyno,
    Formation,
    LogDrain,
    OAuthClient,
    Pipeline,
    PipelineCoupling,
    Promotion,
    PromotionTarget,
    Release,
    Slug,
    SniEndpoint,
    SshKey,
    Token,
    Webhook,
    WebhookDelivery,
    WebhookEvent,
    WebSession,
)
from state.sizes import Size

Json = dict[str, Any]

BEGINNING = "2026-11-24T00:00:00Z"
"""The creation time of what was never created: regions, stacks, sizes."""


def steady_id(kind: str, name: str) -> str:
    """A UUID for something that has no row, always the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"davit:{kind}:{name}"))


def moment(at: datetime | None) -> str | None:
    """``2026-11-23T16:00:00Z``"""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def named(kind: str, name: str) -> Json:
    """A reference to something that has no row."""
    return {"id": steady_id(kind, name), "name": name}


def _app_reference(app: App) -> Json:
    return {"id": app.id, "name": app.name}


def _user(account: Account) -> Json:
    return {"id": account.id, "email": account.email}


GENERATION = named("generation", "cedar")
REGION = named("region", "local")


def account(row: Account) -> Json:
    """GET /account"""
    return {
        "allow_tracking": False,
        "beta": False,
        "country_of_residence": None,
        "created_at": moment(row.created_at),
        "default_organization": None,
        "default_team": None,
        "delinquent_at": None,
        "email": row.email,
        "federated": False,
        "id": row.id,
        "identity_provider": None,
        "last_login": moment(row.last_login),
        "name": row.name,
        "sms_number": None,
        "suspended_at": None,
        "two_factor_authentication": row.two_factor,
        "updated_at": moment(row.updated_at),
        "verified": True,
    }


def app(row: App, *, git_url: str, web_url: str) -> Json:
    """GET /apps/NAME; ``sleep``, ``asleep`` and ``sleeps`` (whether and when, in words; null in lists) are Davit's own."""
    stack = named("stack", row.stack)
    return {
        "acm": False,
        "archived_at": moment(row.archived_at),
        "build_stack": stack,
        "buildpack_provided_description": row.buildpack_provided_description,
        "create_status": "complete",
        "created_at": moment(row.created_at),
        "generation": GENERATION,
        "git_url": git_url,
        "id": row.id,
        "internal_routing": False,
        "joined": False,
        "locked": False,
        "maintenance": row.maintenance,
        "name": row.name,
        "organization": None,
        "owner": _user(row.owner),
        "region": REGION,
        "released_at": moment(row.released_at),
        "repo_size": row.repo_size,
        "sleep": row.sleep,
        "asleep": row.asleep_at is not None,
        "sleeps": None,
        "slug_size": row.slug_size,
        "space": None,
        "stack": stack,
        "team": None,
        "updated_at": moment(row.updated_at),
        "web_url": web_url,
    }


def build(row: Build, *, output_stream_url: str, source_url: str = "", in_full: bool = True) -> Json:
    """GET /apps/NAME/builds/ID; ``phase`` and ``failure`` are Davit's own; ``in_full`` as :func:`buildpack`'s."""
    return {
        "app": {"id": row.app_id},
        "buildpacks": [buildpack(name, in_full=in_full) for name in row.buildpacks] or None,
        "created_at": moment(row.created_at),
        "failure": row.failure,
        "generation": "cedar",
        "id": row.id,
        "output_stream_url": output_stream_url,
        "phase": row.phase,
        "release": {"id": row.release_id} if row.release_id else None,
        "slug": {"id": row.slug_id} if row.slug_id else None,
        "source_blob": {
            "checksum": row.source_checksum,
            "url": source_url,
            "version": row.source_version,
            "version_description": None,
        },
        "stack": row.stack,
        "status": row.status,
        "updated_at": moment(row.updated_at),
        "user": _user(row.account),
    }


def buildpack(text: str, *, in_full: bool = True) -> Json:
    """A buildpack: its URL (``urn:buildpack:NAME`` for a bundled one) and its name; without ``in_full`` no password is in it."""
    if "://" not in text:
        return {"name": text, "url": f"urn:buildpack:{text}"}
    shown = text if in_full else without_secrets(text)
    return {"name": shown, "url": shown}


def buildpack_installation(ordinal: int, text: str, *, in_full: bool = True) -> Json:
    """GET /apps/NAME/buildpack-installations; ``in_full`` as :func:`buildpack`'s."""
    return {"ordinal": ordinal, "buildpack": buildpack(text, in_full=in_full)}


_PERMISSIONS = {
    "view": "See the app, its releases and its logs",
    "deploy": "Push code, roll back, read config vars",
    "operate": "Scale, restart, run, configure",
    "manage": "Change who may do what, rename, destroy",
}


def _collaborator(app: App, user: Account, role: str, permissions: list[str], row: Json) -> Json:
    return {
        "app": _app_reference(app),
        "permissions": [{"name": name, "description": _PERMISSIONS[name]} for name in permissions],
        "role": role,
        "user": {**_user(user), "federated": False},
        **row,
    }


def collaborator(app: App, row: Collaborator) -> Json:
    """GET /apps/NAME/collaborators"""
    times = {"id": row.id, "created_at": moment(row.created_at), "updated_at": moment(row.updated_at)}
    allowed = [name for name in _PERMISSIONS if name in row.permissions or name == "view"]
    return _collaborator(app, row.account, "collaborator", allowed, times)


def owner(app: App) -> Json:
    """The owner, as the list of collaborators shows them."""
    created = moment(app.created_at)
    row = {"id": steady_id("owner", app.id), "created_at": created, "updated_at": created}
    return _collaborator(app, app.owner, "owner", list(_PERMISSIONS), row)


def domain(app: App, row: Domain, own: str) -> Json:
    """GET /apps/NAME/domains; ``own`` is the app's own host name, which a custom domain's DNS record points to."""
    return {
        "acm_status": None,
        "acm_status_reason": None,
        "app": _app_reference(app),
        "cname": own if row.kind == "custom" else None,
        "created_at": moment(row.created_at),
        "hostname": row.hostname,
        "id": row.id,
        "kind": row.kind,
        "sni_endpoint": {"id": row.sni_endpoint.id, "name": row.sni_endpoint.name} if row.sni_endpoint else None,
        # the schema: “status of this record's cname”: of the target, which is there as soon as the app is, not of the user's zone
        "status": "succeeded" if row.kind == "custom" else "none",
        "updated_at": moment(row.updated_at),
    }


def dyno(app: App, row: Dyno, *, attach_url: str | None = None) -> Json:
    """GET /apps/NAME/dynos; ``exit_status`` and ``isolation`` are Davit's own."""
    return {
        "app": _app_reference(app),
        "attach_url": attach_url,
        "command": row.command,
        "created_at": moment(row.created_at),
        "exit_status": row.exit_status,
        "id": row.id,
        "name": row.name,
        "release": {"id": row.release_id, "version": row.release_version},
        "isolation": row.isolation,
        "size": sizes.find(row.size).label,
        "state": row.state,
        "type": row.type,
        "updated_at": moment(row.updated_at),
    }


def dyno_size(size: Size) -> Json:
    """GET /dyno-sizes; memory in GB as Heroku has it."""
    return {
        "architecture": "amd64",
        "compute": max(1, size.cpu_shares // 1024),
        "cost": None,
        "dedicated": size.dedicated,
        "generation": GENERATION,
        "id": steady_id("dyno-size", size.label),
        "memory": round(size.memory / 1024, 2),
        "name": size.label,
        "precise_dyno_units": 0.0,
        "private_space_only": False,
    }


def formation(app: App, row: Formation, command: str) -> Json:
    """GET /apps/NAME/formation; ``isolation`` and ``failure`` (why a size or isolation did not come about) are Davit's own."""
    label = sizes.find(row.size).label
    return {
        "app": _app_reference(app),
        "command": command,
        "created_at": moment(row.created_at),
        "dyno_size": {"id": steady_id("dyno-size", label), "name": label},
        "failure": row.failure,
        "id": row.id,
        "isolation": row.isolation,
        "quantity": row.quantity,
        "size": label,
        "type": row.type,
        "updated_at": moment(row.updated_at),
    }


def key(row: SshKey) -> Json:
    """GET /account/keys"""
    return {
        "comment": row.comment,
        "created_at": moment(row.created_at),
        "email": row.account.email,
        "fingerprint": row.fingerprint,
        "id": row.id,
        "public_key": f"{row.public_key} {row.comment}".strip(),
        "updated_at": moment(row.updated_at),
    }


def authorization(row: Token, at: datetime, text: str | None, *, grant_code: str = "") -> Json:
    """GET /oauth/authorizations; ``text`` is the token as it may be shown, None for a grant that is not exchanged yet."""
    client = row.client
    return {
        "access_token": _token(row, at, text) if text is not None else None,
        "client": {"id": client.id, "name": client.name, "redirect_uri": client.redirect_uri} if client else None,
        "created_at": moment(row.created_at),
        "description": row.description,
        "grant": _grant(row, at, grant_code) if row.grant_sha256 else None,
        "id": row.id,
        "refresh_token": {"expires_in": None, "id": row.id, "token": redacted()} if row.refresh_sha256 else None,
        "scope": row.scope,
        "session": None,
        "updated_at": moment(row.updated_at),
        "user": {**_user(row.account), "full_name": row.account.name},
    }


def _token(row: Token, at: datetime, text: str) -> Json:
    left: timedelta | None = row.expires_at - at if row.expires_at else None
    return {"expires_in": max(0, int(left.total_seconds())) if left else None, "id": row.id, "token": text}


def _grant(row: Token, at: datetime, code: str) -> Json:
    left = row.grant_expires_at - at if row.grant_expires_at else timedelta()
    return {"code": code or redacted(), "expires_in": max(0, int(left.total_seconds())), "id": row.id}


def oauth_client(row: OAuthClient, secret: str) -> Json:
    """GET /oauth/clients"""
    return {
        "created_at": moment(row.created_at),
        "id": row.id,
        "ignores_delinquent": None,
        "name": row.name,
        "redirect_uri": row.redirect_uri,
        "secret": secret,
        "updated_at": moment(row.updated_at),
    }


def oauth_token(row: Token, at: datetime, access: str, refresh: str) -> Json:
    """POST /oauth/tokens"""
    return {
        "access_token": _token(row, at, access),
        "authorization": {"id": row.id},
        "client": None,
        "created_at": moment(row.created_at),
        "grant": None,
        "id": row.id,
        "refresh_token": {"expires_in": None, "id": row.id, "token": refresh},
        "session": None,
        "updated_at": moment(row.updated_at),
        "user": {"id": row.account_id},
    }


def web_session(row: WebSession, at: datetime) -> Json:
    """GET /oauth/sessions; ``host`` is the name at which the browser is signed in."""
    return {
        "created_at": moment(row.created_at),
        "description": row.description,
        "expires_in": max(0, int((row.expires_at - at).total_seconds())),
        "host": row.host,
        "id": row.id,
        "updated_at": moment(row.updated_at),
    }


def redacted(text: str = "") -> str:
    """A token as lists show it: the beginning, ten asterisks, the end. Only the caller's own has an end that is known.

    The others end with a dot, which no token does: clients find their own by beginning and end, `heroku logout` to take it back.
    """
    return text[:8] + "*" * 10 + text[-4:] if text else "davit-" + "*" * 10 + "."


def release(app: App, row: Release, *, eligible: bool, output_stream_url: str | None) -> Json:
    """GET /apps/NAME/releases; ``failure`` is Davit's own."""
    return {
        "addon_plan_names": [],
        "app": _app_reference(app),
        "artifacts": [{"type": "slug", "id": row.slug_id}] if row.slug_id else [],
        "created_at": moment(row.created_at),
        "current": row.current,
        "description": row.description,
        "eligible_for_rollback": eligible,
        "failure": row.failure,
        "id": row.id,
        "output_stream_url": output_stream_url,
        "slug": {"id": row.slug_id} if row.slug_id else None,
        "status": row.status,
        "updated_at": moment(row.updated_at),
        "user": _user(row.account),
        "version": row.version,
    }


def slug(row: Slug, *, blob_url: str = "", put: bool = False) -> Json:
    """GET /apps/NAME/slugs/ID; ``put``: its tarball is to be put at the URL rather than read there."""
    return {
        "blob": {"method": "put" if put else "get", "url": blob_url},
        "buildpack_provided_description": row.buildpack_provided_description,
        "checksum": row.digest.replace("sha256:", "SHA256:") if row.digest else None,
        "commit": row.commit,
        "commit_description": row.commit_description,
        "created_at": moment(row.created_at),
        "deleted_at": moment(row.updated_at) if row.size and not row.digest else None,
        "id": row.id,
        "process_types": dict(row.process_types),
        "size": row.size,
        "stack": named("stack", row.stack),
        "updated_at": moment(row.updated_at),
    }


def feature(kind: str, what: Feature, row: AppFeature | AccountFeature | None) -> Json:
    """GET /apps/NAME/features and /account/features"""
    enabled = what.usual if row is None else row.enabled
    return {
        "created_at": moment(row.created_at) if row else BEGINNING,
        "description": what.description,
        "display_name": what.title,
        "doc_url": "",
        "enabled": enabled,
        "feedback_email": "",
        "id": steady_id(f"{kind}-feature", what.name),
        "name": what.name,
        "state": "general" if kind == "app" else "beta",
        "updated_at": moment(row.updated_at) if row else BEGINNING,
    }


def app_transfer(row: AppTransfer) -> Json:
    """GET /account/app-transfers"""
    return {
        "app": _app_reference(row.app),
        "created_at": moment(row.created_at),
        "id": row.id,
        "owner": _user(row.owner),
        "recipient": _user(row.recipient),
        "state": row.state,
        "updated_at": moment(row.updated_at),
    }


def pipeline(row: Pipeline) -> Json:
    """GET /pipelines"""
    return {
        "created_at": moment(row.created_at),
        "generation": GENERATION,
        "id": row.id,
        "name": row.name,
        "owner": {"id": row.owner_id, "type": "user"},
        "updated_at": moment(row.updated_at),
    }


def pipeline_coupling(row: PipelineCoupling) -> Json:
    """GET /pipeline-couplings; clients read the pipeline's name, which the public schema lacks."""
    return {
        "app": {"id": row.app_id},
        "created_at": moment(row.created_at),
        "id": row.id,
        "pipeline": {"id": row.pipeline_id, "name": row.pipeline.name},
        "stage": row.stage,
        "updated_at": moment(row.updated_at),
    }


def promotion(row: Promotion, status: str) -> Json:
    """GET /pipeline-promotions/ID"""
    return {
        "created_at": moment(row.created_at),
        "id": row.id,
        "pipeline": {"id": row.pipeline_id},
        "source": {"app": {"id": row.source_app_id}, "release": {"id": row.source_release_id}},
        "status": status,
        "updated_at": moment(row.updated_at),
    }


def promotion_target(row: PromotionTarget, status: str, error: str | None) -> Json:
    """GET /pipeline-promotions/ID/promotion-targets"""
    return {
        "app": {"id": row.app_id},
        "error_message": error,
        "id": row.id,
        "pipeline_promotion": {"id": row.promotion_id},
        "release": {"id": row.release_id} if row.release_id else None,
        "status": status,
    }


def webhook(row: Webhook, *, in_full: bool = True) -> Json:
    """GET /apps/NAME/webhooks; without ``in_full`` the address ends with its host: what follows may be a secret."""
    return {
        "created_at": moment(row.created_at),
        "id": row.id,
        "include": row.include,
        "level": row.level,
        "updated_at": moment(row.updated_at),
        "url": row.url if in_full else webhooks.origin(row),
    }


def webhook_delivery(row: WebhookDelivery) -> Json:
    """GET /apps/NAME/webhook-deliveries"""
    return {
        "created_at": moment(row.created_at),
        "event": {"id": row.event_id, "include": row.event.include},
        "id": row.id,
        "last_attempt": row.last_attempt,
        "next_attempt_at": moment(row.next_attempt_at),
        "num_attempts": row.attempts,
        "status": row.status,
        "updated_at": moment(row.updated_at),
        "webhook": {"id": row.webhook_id, "level": row.webhook.level},
    }


def webhook_event(row: WebhookEvent) -> Json:
    """GET /apps/NAME/webhook-events"""
    return {
        "created_at": moment(row.created_at),
        "id": row.id,
        "include": row.include,
        "payload": webhooks.document(row),
        "updated_at": moment(row.updated_at),
    }


def app_setup(row: AppSetup, build: Build | None, output_stream_url: str | None) -> Json:
    """GET /app-setups/ID"""
    return {
        "app": _app_reference(row.app),
        "build": {"id": build.id, "output_stream_url": output_stream_url, "status": build.status} if build else None,
        "created_at": moment(row.created_at),
        "failure_message": row.failure_message,
        "id": row.id,
        "manifest_errors": row.manifest_errors,
        "postdeploy": setups.document(row),
        "resolved_success_url": row.success_url,
        "status": row.status,
        "updated_at": moment(row.updated_at),
    }


def region() -> Json:
    """GET /regions: there is one, this Davit."""
    return {
        **REGION,
        "country": "Here",
        "created_at": BEGINNING,
        "description": "This Davit",
        "locale": "Here",
        "private_capable": False,
        "provider": {"name": "davit", "region": "local"},
        "updated_at": BEGINNING,
    }


def stack(name: str, default: bool) -> Json:
    """GET /stacks"""
    return {
        **named("stack", name),
        "created_at": BEGINNING,
        "default": default,
        "state": "public",
        "updated_at": BEGINNING,
    }


def log_session(id: str, at: datetime, url: str) -> Json:
    """POST /apps/NAME/log-sessions"""
    return {"created_at": moment(at), "id": id, "logplex_url": url, "updated_at": moment(at)}


def log_drain(app: App, row: LogDrain, url: str) -> Json:
    """GET /apps/NAME/log-drains"""
    return {
        "addon": None,
        "app": _app_reference(app),
        "created_at": moment(row.created_at),
        "id": row.id,
        "token": row.token,
        "updated_at": moment(row.updated_at),
        "url": url,
    }


def sni_endpoint(app: App, row: SniEndpoint, domains: Sequence[Domain]) -> Json:
    """GET /apps/NAME/sni-endpoints; what the certificate says is in ``ssl_cert``. The private key is never shown."""
    said = describe(row.certificate_chain)
    return {
        "app": _app_reference(app),
        "certificate_chain": row.certificate_chain,
        "created_at": moment(row.created_at),
        "display_name": None,
        "domains": [domain.id for domain in domains],
        "id": row.id,
        "name": row.name,
        "ssl_cert": {
            "acm": False,
            "ca_signed?": not said.self_signed,
            "cert_domains": list(said.names),
            "expires_at": moment(said.ends_at),
            "id": row.id,
            "issuer": said.issuer,
            "self_signed?": said.self_signed,
            "starts_at": moment(said.starts_at),
            "subject": said.subject,
        },
        "updated_at": moment(row.updated_at),
    }


def config(values: Mapping[str, str]) -> Json:
    """GET /apps/NAME/config-vars"""
    return dict(values)
