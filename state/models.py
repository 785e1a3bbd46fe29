"""The tables. Identifiers are UUID strings; times are aware UTC; secrets are encrypted (``bytes``) or hashed."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from foundation.clock import now


class Moment(TypeDecorator[datetime]):
    """An aware UTC time on every database (SQLite stores no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(timezone.utc) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class Base(DeclarativeBase):
    """Naming conventions make constraint names the same on SQLite and PostgreSQL, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Moment, dict[str, Any]: JSON, list[Any]: JSON, bytes: LargeBinary}


def new_id() -> str:
    """A random identifier."""
    return str(uuid.uuid4())


class Identified:
    """Columns that every table has."""

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class Home(Identified, Base):
    """The DAVIT_HOME that this database belongs to, whose file ``identity`` has the same id; one row (:mod:`state.identity`)."""

    __tablename__ = "homes"


class Account(Identified, Base):
    __tablename__ = "accounts"

    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str | None] = mapped_column(String(100))
    password_hash: Mapped[str | None] = mapped_column(String(200))
    is_admin: Mapped[bool] = mapped_column(default=False)
    two_factor: Mapped[bool] = mapped_column(default=False)
    last_login: Mapped[datetime | None]


class SecondFactor(Identified, Base):
    """An account's one-time passwords (TOTP, RFC 6238); in force once ``confirmed_at`` is set.

    ``secret`` is sealed. ``last_step`` is the newest time step whose code was taken: a code opens once. ``recovery`` holds the
    SHA-256 of each recovery code that is left.
    """

    __tablename__ = "second_factors"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), unique=True)
    secret: Mapped[bytes]
    confirmed_at: Mapped[datetime | None]
    last_step: Mapped[int] = mapped_column(BigInteger, default=0)
    recovery: Mapped[list[Any]] = mapped_column(default=list)


class WebSession(Identified, Base):
    """A browser that is logged in: the SHA-256 of its cookie's 256 random bits, as for tokens."""

    __tablename__ = "web_sessions"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[str] = mapped_column(String(255), default="")
    host: Mapped[str] = mapped_column(String(253), default="", server_default="")
    """The host name at which it was opened, and to which the browser sends it."""
    expires_at: Mapped[datetime]
    last_seen_at: Mapped[datetime] = mapped_column(default=now)
    account: Mapped[Account] = relationship(lazy="joined")


class LoginApproval(Identified, Base):
    """What a person answered to a command line that asked to be logged in; taken away when the command line has heard it."""

    __tablename__ = "login_approvals"

    request_id: Mapped[str] = mapped_column(String(36), unique=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    approved: Mapped[bool]
    description: Mapped[str] = mapped_column(String(255), default="")
    expires_at: Mapped[datetime]


class OAuthClient(Identified, Base):
    """A program of its account's that asks others to let it act for them; ``secret`` is sealed."""

    __tablename__ = "oauth_clients"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    redirect_uri: Mapped[str] = mapped_column(Text)
    secret: Mapped[bytes]


class Token(Identified, Base):
    """An API token. Only its SHA-256 is kept: tokens are 256 random bits, so a slow hash would add nothing.

    ``lifetime`` is seconds: a regenerated token has as long again.
    With a ``client_id`` it is what somebody allowed that client: a grant first, then access tokens that a refresh token renews.
    """

    __tablename__ = "tokens"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[str] = mapped_column(String(255), default="")
    scope: Mapped[list[Any]] = mapped_column(default=lambda: ["global"])
    expires_at: Mapped[datetime | None]
    lifetime: Mapped[int | None]
    last_used_at: Mapped[datetime | None]
    client_id: Mapped[str | None] = mapped_column(ForeignKey("oauth_clients.id", ondelete="CASCADE"))
    grant_sha256: Mapped[str | None] = mapped_column(String(64), unique=True)
    grant_expires_at: Mapped[datetime | None]
    refresh_sha256: Mapped[str | None] = mapped_column(String(64), unique=True)
    client: Mapped[OAuthClient | None] = relationship(lazy="joined")
    account: Mapped[Account] = relationship(lazy="joined")


class SshKey(Identified, Base):
    __tablename__ = "ssh_keys"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    fingerprint: Mapped[str] = mapped_column(String(100), unique=True)
    public_key: Mapped[str] = mapped_column(Text)
    comment: Mapped[str] = mapped_column(String(255), default="")
    account: Mapped[Account] = relationship(lazy="joined")


class App(Identified, Base):
    """An app.

    ``config`` is the encrypted JSON object of the config vars as last set; what runs has the release's own snapshot.
    ``restarts`` counts how often somebody asked for all its dynos to be replaced; see Dyno.restarts.
    ``buildpacks`` holds the chosen buildpack URLs or names, in order; empty means detection.
    ``sleep`` says whether it is put to sleep when nobody asks it anything: on, off, auto (see state.sleep). While
    ``asleep_at`` is set it has no running dynos; the next request unsets it.
    """

    __tablename__ = "apps"

    name: Mapped[str] = mapped_column(String(30), unique=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    stack: Mapped[str] = mapped_column(String(50), default="davit-13")
    config: Mapped[bytes]
    buildpacks: Mapped[list[Any]] = mapped_column(default=list)
    buildpack_provided_description: Mapped[str | None] = mapped_column(String(200))
    maintenance: Mapped[bool] = mapped_column(default=False)
    archived_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    restarts: Mapped[int] = mapped_column(default=0)
    repo_size: Mapped[int | None] = mapped_column(BigInteger)
    slug_size: Mapped[int | None] = mapped_column(BigInteger)
    destroying: Mapped[bool] = mapped_column(default=False)
    sleep: Mapped[str] = mapped_column(String(10), default="auto")
    asleep_at: Mapped[datetime | None]
    owner: Mapped[Account] = relationship(lazy="joined")


class Collaborator(Identified, Base):
    __tablename__ = "collaborators"
    __table_args__ = (UniqueConstraint("app_id", "account_id"),)

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    permissions: Mapped[list[Any]] = mapped_column(default=lambda: ["view", "deploy", "operate"])
    account: Mapped[Account] = relationship(lazy="joined")


class AppFeature(Identified, Base):
    """A feature that somebody switched for an app; see :mod:`state.features`."""

    __tablename__ = "app_features"
    __table_args__ = (UniqueConstraint("app_id", "name"),)

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(60))
    enabled: Mapped[bool]


class AccountFeature(Identified, Base):
    """A feature that an account switched for itself."""

    __tablename__ = "account_features"
    __table_args__ = (UniqueConstraint("account_id", "name"),)

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(60))
    enabled: Mapped[bool]


class PreAuthorization(Identified, Base):
    """Until then a token's guarded acts on an app take no two-factor code; see :mod:`state.guard`."""

    __tablename__ = "pre_authorizations"

    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"), index=True)
    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    expires_at: Mapped[datetime]


class AppTransfer(Identified, Base):
    """An app that its owner offers to somebody; ``state``: pending, accepted, declined."""

    __tablename__ = "app_transfers"

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    recipient_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(20), default="pending")
    app: Mapped[App] = relationship(lazy="joined")
    owner: Mapped[Account] = relationship(lazy="joined", foreign_keys=[owner_id])
    recipient: Mapped[Account] = relationship(lazy="joined", foreign_keys=[recipient_id])


class Slug(Identified, Base):
    """What a build produced: ``digest`` names the sealed image in the store (``sha256:<hex>``)."""

    __tablename__ = "slugs"

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    digest: Mapped[str | None] = mapped_column(String(80), index=True)
    size: Mapped[int | None] = mapped_column(BigInteger)
    stack: Mapped[str] = mapped_column(String(50))
    stack_version: Mapped[str] = mapped_column(String(80), default="")
    commit: Mapped[str | None] = mapped_column(String(64))
    commit_description: Mapped[str | None] = mapped_column(Text)
    process_types: Mapped[dict[str, Any]] = mapped_column(default=dict)
    default_config: Mapped[dict[str, Any]] = mapped_column(default=dict)
    healthchecks: Mapped[dict[str, Any]] = mapped_column(default=dict)
    buildpack_provided_description: Mapped[str | None] = mapped_column(String(200))


class Pipeline(Identified, Base):
    """Apps of one project in stages; the couplings say which."""

    __tablename__ = "pipelines"
    __table_args__ = (UniqueConstraint("owner_id", "name"),)

    name: Mapped[str] = mapped_column(String(30), index=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))


class PipelineCoupling(Identified, Base):
    """An app's place in a pipeline; ``stage``: test, review, development, staging, production."""

    __tablename__ = "pipeline_couplings"

    pipeline_id: Mapped[str] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"), index=True)
    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), unique=True)
    stage: Mapped[str] = mapped_column(String(20))
    pipeline: Mapped[Pipeline] = relationship(lazy="joined")
    app: Mapped[App] = relationship(lazy="joined")


class Promotion(Identified, Base):
    """A release's slug on its way to other apps of a pipeline."""

    __tablename__ = "promotions"

    pipeline_id: Mapped[str] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"), index=True)
    source_app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    source_release_id: Mapped[str | None] = mapped_column(ForeignKey("releases.id", ondelete="SET NULL"))
    pipeline: Mapped[Pipeline] = relationship(lazy="joined")


class PromotionTarget(Identified, Base):
    """Where a promotion goes: its release says how far it is."""

    __tablename__ = "promotion_targets"

    promotion_id: Mapped[str] = mapped_column(ForeignKey("promotions.id", ondelete="CASCADE"), index=True)
    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    release_id: Mapped[str | None] = mapped_column(ForeignKey("releases.id", ondelete="SET NULL"))
    release: Mapped[Release | None] = relationship(lazy="joined")


class Build(Identified, Base):
    """A build and where it stands.

    ``status`` is the API's: pending, succeeded, failed. ``phase`` is ours: waiting (another build of the app runs),
    queued, building, releasing, done. ``failure`` is the sentence that the pusher saw. ``ref`` is what the push wants
    moved from ``old_sha`` to ``commit`` once it is released; None for builds that come from no push.
    """

    __tablename__ = "builds"
    __table_args__ = (
        Index("ix_builds_app_id_created_at", "app_id", "created_at"),
        Index("ix_builds_status", "status"),
        Index("ix_builds_created_at", "created_at"),
    )

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    status: Mapped[str] = mapped_column(String(20), default="pending")
    phase: Mapped[str] = mapped_column(String(20), default="waiting")
    failure: Mapped[str | None] = mapped_column(Text)
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    commit: Mapped[str | None] = mapped_column(String(64))
    ref: Mapped[str | None] = mapped_column(Text)
    old_sha: Mapped[str | None] = mapped_column(String(64))
    source_version: Mapped[str | None] = mapped_column(String(255))
    source_url: Mapped[str | None] = mapped_column(Text)
    source_checksum: Mapped[str | None] = mapped_column(String(100))
    buildpacks: Mapped[list[Any]] = mapped_column(default=list)
    stack: Mapped[str] = mapped_column(String(50))
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    slug_id: Mapped[str | None] = mapped_column(ForeignKey("slugs.id", ondelete="SET NULL"))
    release_id: Mapped[str | None] = mapped_column(ForeignKey("releases.id", ondelete="SET NULL"))
    attempts: Mapped[int] = mapped_column(default=0)
    finished_at: Mapped[datetime | None]
    account: Mapped[Account] = relationship(lazy="joined")


class Release(Identified, Base):
    """A numbered release: slug + config vars + process types; never edited but for ``status``, ``phase``, ``failure``.

    ``status`` is the API's: pending, succeeded, failed. ``phase``: queued, release (its command runs), boot (its dynos
    start), done. ``stack_version`` is fixed when its turn comes: a rebuilt stack reaches an app with its next release.
    ``current`` is true for the newest that succeeded: what the app is, also after a reboot.
    ``kind``: initial, deploy, config, rollback, other. ``dyno_metadata``: HEROKU_… variables, where the app has that feature.
    """

    __tablename__ = "releases"
    __table_args__ = (
        UniqueConstraint("app_id", "version"),
        Index("ix_releases_status", "status"),
        Index("ix_releases_slug_id", "slug_id"),
        Index("ix_releases_app_id_current", "app_id", "current"),
    )

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    version: Mapped[int]
    kind: Mapped[str] = mapped_column(String(20), default="other")
    description: Mapped[str] = mapped_column(Text)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    slug_id: Mapped[str | None] = mapped_column(ForeignKey("slugs.id"))
    config: Mapped[bytes]
    process_types: Mapped[dict[str, Any]] = mapped_column(default=dict)
    stack_version: Mapped[str] = mapped_column(String(80), default="")
    dyno_metadata: Mapped[dict[str, Any]] = mapped_column(default=dict)
    status: Mapped[str] = mapped_column(String(20), default="pending")
    phase: Mapped[str] = mapped_column(String(20), default="queued")
    failure: Mapped[str | None] = mapped_column(Text)
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    current: Mapped[bool] = mapped_column(default=False)
    finished_at: Mapped[datetime | None]
    account: Mapped[Account] = relationship(lazy="joined")
    slug: Mapped[Slug | None] = relationship(lazy="joined")


class Formation(Identified, Base):
    """How many dynos of a process type, at which size, in which isolation.

    ``live`` says that a change of size is to reach running dynos without a restart. ``failure`` is the sentence for a size
    or isolation that did not come about; the columns say what runs again then. ``restarts``: as the app's, for this type alone.
    """

    __tablename__ = "formations"
    __table_args__ = (UniqueConstraint("app_id", "type"), CheckConstraint("quantity >= 0", "quantity_positive"))

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(63))
    quantity: Mapped[int] = mapped_column(default=0)
    size: Mapped[str] = mapped_column(String(30), default="basic")
    isolation: Mapped[str] = mapped_column(String(20), default="container")
    restarts: Mapped[int] = mapped_column(default=0)
    live: Mapped[bool] = mapped_column(default=False)
    failure: Mapped[str | None] = mapped_column(Text)


class Dyno(Identified, Base):
    """A dyno that exists or is about to: written only by the runtime process.

    ``name`` is web.1, run.4821. During a replacement two rows share a name; ``leaving`` marks the old one.
    ``state`` is the API's: starting, up, crashed, down, idle. ``slot`` is the host's resource number while it runs: it
    decides address and uid range. ``routed`` says that the router may send requests to ``address``:``port``; ``held`` that it has
    none now because it moves to another process, and will have it again in a moment.
    ``ends_at`` is of detached one-offs only: they go on when the runtime process is restarted, until then at the latest.
    ``restarts`` is the sum of the app's and its process type's when its start began: when that has grown since, it is to be
    replaced. No clock tells that, which may be set back.
    """

    __tablename__ = "dynos"
    __table_args__ = (Index("ix_dynos_app_id", "app_id"),)

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    release_id: Mapped[str | None] = mapped_column(ForeignKey("releases.id", ondelete="SET NULL"))
    release_version: Mapped[int] = mapped_column(default=0)
    name: Mapped[str] = mapped_column(String(80))
    type: Mapped[str] = mapped_column(String(63))
    size: Mapped[str] = mapped_column(String(30))
    isolation: Mapped[str] = mapped_column(String(20), default="container")
    command: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(20), default="starting")
    leaving: Mapped[bool] = mapped_column(default=False)
    routed: Mapped[bool] = mapped_column(default=False)
    held: Mapped[bool] = mapped_column(default=False)
    slot: Mapped[int | None]
    address: Mapped[str | None] = mapped_column(String(45))
    port: Mapped[int | None]
    crashes: Mapped[int] = mapped_column(default=0)
    exit_status: Mapped[int | None]
    started_at: Mapped[datetime | None]
    one_off: Mapped[bool] = mapped_column(default=False)
    ends_at: Mapped[datetime | None]
    restart_requested: Mapped[bool] = mapped_column(default=False)
    restarts: Mapped[int] = mapped_column(default=0)


class Crash(Identified, Base):
    """A dyno that crashed, kept when its row is gone; written by the runtime process only."""

    __tablename__ = "crashes"
    __table_args__ = (Index("ix_crashes_app_id_created_at", "app_id", "created_at"),)

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    dyno: Mapped[str] = mapped_column(String(80))
    release_version: Mapped[int]
    exit_status: Mapped[int | None]
    why: Mapped[str | None] = mapped_column(Text)


class Domain(Identified, Base):
    __tablename__ = "domains"

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    hostname: Mapped[str] = mapped_column(String(253), unique=True)
    kind: Mapped[str] = mapped_column(String(10), default="custom")
    sni_endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("sni_endpoints.id", ondelete="SET NULL"), index=True)
    sni_endpoint: Mapped[SniEndpoint | None] = relationship(lazy="joined")


class SniEndpoint(Identified, Base):
    """A certificate of an app's, for those of its domains that are bound to it. ``private_key`` is encrypted."""

    __tablename__ = "sni_endpoints"
    __table_args__ = (UniqueConstraint("app_id", "name"),)

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(60))
    certificate_chain: Mapped[str] = mapped_column(Text)
    private_key: Mapped[bytes]


class LogDrain(Identified, Base):
    """Where an app's log lines are sent. The URL is encrypted: it often holds a password."""

    __tablename__ = "log_drains"

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    token: Mapped[str] = mapped_column(String(40), unique=True)
    url: Mapped[bytes]


class AppSetup(Identified, Base):
    """An app on its way from a tarball with an app.json; see :mod:`state.setups`. ``overrides`` are sealed config vars."""

    __tablename__ = "app_setups"
    __table_args__ = (Index("ix_app_setups_status", "status"),)

    app_id: Mapped[str] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(String(20), default="pending")
    phase: Mapped[str] = mapped_column(String(20), default="source")
    source_url: Mapped[str] = mapped_column(Text)
    source_checksum: Mapped[str | None] = mapped_column(String(100))
    source_version: Mapped[str | None] = mapped_column(String(255))
    overrides: Mapped[bytes]
    buildpacks: Mapped[list[Any] | None] = mapped_column(JSON)
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id", ondelete="SET NULL"), index=True)
    postdeploy: Mapped[str | None] = mapped_column(Text)
    postdeploy_status: Mapped[int | None]
    postdeploy_output: Mapped[str | None] = mapped_column(Text)
    success_url: Mapped[str | None] = mapped_column(Text)
    manifest_errors: Mapped[list[Any]] = mapped_column(default=list)
    failure_message: Mapped[str | None] = mapped_column(Text)
    app: Mapped[App] = relationship(lazy="joined")
    account: Mapped[Account] = relationship(lazy="joined")


class Webhook(Identified, Base):
    """Who wants to hear of an app's changes. ``credentials``: sealed, the signing secret and an Authorization header.

    No foreign key to the app: what is on its way when an app is destroyed still arrives.
    """

    __tablename__ = "webhooks"

    app_id: Mapped[str] = mapped_column(String(36), index=True)
    url: Mapped[str] = mapped_column(Text)
    include: Mapped[list[Any]]
    level: Mapped[str] = mapped_column(String(10))
    credentials: Mapped[bytes]


class WebhookEvent(Identified, Base):
    """What happened to an app, as its webhooks tell it; written in the transaction of the change itself."""

    __tablename__ = "webhook_events"
    __table_args__ = (Index("ix_webhook_events_app_id_created_at", "app_id", "created_at"),)

    app_id: Mapped[str] = mapped_column(String(36))
    include: Mapped[str] = mapped_column(String(40))
    action: Mapped[str] = mapped_column(String(20))
    resource: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]
    previous_data: Mapped[dict[str, Any]]
    actor: Mapped[dict[str, Any]]


class WebhookDelivery(Identified, Base):
    """An event on its way to a webhook; ``status`` is the API's: pending, retrying, failed, succeeded.

    ``next_attempt_at`` is when it is to be tried; None once it is over.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("ix_webhook_deliveries_app_id_created_at", "app_id", "created_at"),)

    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("webhook_events.id", ondelete="CASCADE"), index=True)
    app_id: Mapped[str] = mapped_column(String(36))
    status: Mapped[str] = mapped_column(String(20), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(index=True)
    last_attempt: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    webhook: Mapped[Webhook] = relationship(lazy="joined")
    event: Mapped[WebhookEvent] = relationship(lazy="joined")


class AuditEvent(Identified, Base):
    """Who changed what and when; appended in the transaction of the change itself, and kept when the app is gone."""

    __tablename__ = "audit_events"
    __table_args__ = (Index("ix_audit_events_app_id_created_at", "app_id", "created_at"),)

    account_id: Mapped[str | None] = mapped_column(String(36))
    actor: Mapped[str] = mapped_column(String(254))
    action: Mapped[str] = mapped_column(String(60))
    app_id: Mapped[str | None] = mapped_column(String(36))
    app_name: Mapped[str | None] = mapped_column(String(30))
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


LEAVING = {("apps", "restarted_at"), ("formations", "restarted_at")}
"""Tables and columns that this version knows no more and the one before reads, as its processes do while `docker compose up`
replaces them one by one. A migration of a later version drops them where they are there."""
