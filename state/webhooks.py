"""Webhooks: who wants to hear of an app's changes, and how far each message to them is.

:mod:`state.outbox` writes events and deliveries down; the process that delivers asks for what is :func:`due`, sends it, and
says how that went. A delivery is tried once at the level ``notify``, and again and again for three days at ``sync``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from foundation import outbound
from foundation.clock import now
from foundation.errors import InvalidParams, NotFound
from state import audit, payloads, vault
from state.models import Account, App, Webhook, WebhookDelivery, WebhookEvent

LEVELS = ("notify", "sync")
SCHEMES = ("https", "http")
MOST = 20
"""Webhooks of one app."""
SHOWN = 1000
"""Deliveries and events that a list shows, the newest."""
KEPT = timedelta(days=7)
"""How long events and their deliveries can be looked at."""
PATIENCE = timedelta(days=3)
"""How long a delivery at the level sync is tried."""
_LONGEST = timedelta(hours=6)
VERSION = "application/vnd.heroku+json; version=3"


@dataclass(frozen=True)
class Wish:
    """What somebody wants of a webhook, checked."""

    place: outbound.Place
    include: list[str]
    level: str


def check(url: str, include: Sequence[Any], level: str) -> Wish:
    """Read what a webhook is to be; pure. The place is still to be checked: :func:`foundation.outbound.check`.

    Raises:
        InvalidParams: a value cannot be used; the sentence names the field.
    """
    if level not in LEVELS:
        raise InvalidParams("Field level must be notify (tried once) or sync (tried again until it is taken).")
    names = list(dict.fromkeys(include))
    for name in names:
        if name in payloads.NOT_YET:
            raise InvalidParams(f"Field include: this version of Davit has no events of {name}.")
        if name not in payloads.INCLUDES:
            raise InvalidParams(f"Field include: there is no “{str(name)[:60]}”; there are {', '.join(payloads.INCLUDES)}.")
    if not names:
        raise InvalidParams(f"Field include must name at least one of {', '.join(payloads.INCLUDES)}.")
    return Wish(outbound.parse(url, SCHEMES, credentials=False), names, level)


def create(
    session: Session, account: Account, app: App, wish: Wish, *, secret: str | None = None, authorization: str | None = None
) -> tuple[Webhook, str]:
    """Make a webhook; returns it and the secret that signs its messages (shown once).

    Args:
        authorization: value of the Authorization header of each message.

    Raises:
        InvalidParams: the app has too many.
    """
    count = session.scalar(select(func.count()).select_from(Webhook).where(Webhook.app_id == app.id)) or 0
    if count >= MOST:
        raise InvalidParams(f"{app.name} has {MOST} webhooks, which is the most; remove one first.")
    row = Webhook(app_id=app.id, url=wish.place.url, include=wish.include, level=wish.level)
    text = secret or secrets.token_hex(32)
    row.credentials = vault.seal({"secret": text, "authorization": authorization or ""})
    session.add(row)
    session.flush()
    audit.record(session, account, "webhooks:add", app, include=wish.include, level=wish.level)
    return row, text


def update(
    session: Session, account: Account, app: App, row: Webhook, wish: Wish, *, secret: str | None, authorization: str | None
) -> None:
    """Change a webhook; what is None stays."""
    known = vault.reveal(row.credentials)
    row.url, row.include, row.level = wish.place.url, wish.include, wish.level
    if secret is not None or authorization is not None:
        kept = {"secret": secret or known["secret"], "authorization": known["authorization"]}
        row.credentials = vault.seal(kept | ({"authorization": authorization} if authorization is not None else {}))
    session.flush()
    audit.record(session, account, "webhooks:update", app, include=wish.include, level=wish.level)


def all_of(session: Session, app: App) -> list[Webhook]:
    """The app's webhooks, oldest first."""
    return list(session.scalars(select(Webhook).where(Webhook.app_id == app.id).order_by(Webhook.created_at, Webhook.id)))


def find(session: Session, app: App, identity: str) -> Webhook:
    """One of the app's webhooks.

    Raises:
        NotFound: it has none such.
    """
    row = session.get(Webhook, identity)
    if row is None or row.app_id != app.id:
        raise NotFound("Couldn't find that webhook.")
    return row


def origin(row: Webhook) -> str:
    """A webhook's address for who may not manage it: scheme, host and port; what follows may be a secret."""
    parts = urlsplit(row.url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def remove(session: Session, account: Account, app: App, row: Webhook) -> None:
    """Take a webhook away; what is not delivered yet is not any more."""
    session.delete(row)
    session.flush()
    audit.record(session, account, "webhooks:remove", app)


def deliveries(session: Session, app: App, status: str | None = None) -> list[WebhookDelivery]:
    """The app's newest deliveries, or the newest that are in this status, the newest first."""
    query = select(WebhookDelivery).where(WebhookDelivery.app_id == app.id)
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    return list(session.scalars(query.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id).limit(SHOWN)))


def find_delivery(session: Session, app: App, identity: str) -> WebhookDelivery:
    """One of the app's deliveries.

    Raises:
        NotFound: it has none such.
    """
    row = session.get(WebhookDelivery, identity)
    if row is None or row.app_id != app.id:
        raise NotFound("Couldn't find that webhook delivery.")
    return row


def events(session: Session, app: App) -> list[WebhookEvent]:
    """The app's newest events, the newest first."""
    query = select(WebhookEvent).where(WebhookEvent.app_id == app.id)
    return list(session.scalars(query.order_by(WebhookEvent.created_at.desc(), WebhookEvent.id).limit(SHOWN)))


def find_event(session: Session, app: App, identity: str) -> WebhookEvent:
    """One of the app's events.

    Raises:
        NotFound: it has none such.
    """
    row = session.get(WebhookEvent, identity)
    if row is None or row.app_id != app.id:
        raise NotFound("Couldn't find that webhook event.")
    return row


# Delivering


@dataclass(frozen=True)
class Message:
    """What is to be sent: ``body`` and ``headers`` (secrets are in them) to ``place``."""

    delivery_id: str
    place: outbound.Place
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)


def document(event: WebhookEvent) -> dict[str, Any]:
    """An event as messages and lists have it."""
    return {
        "action": event.action,
        "actor": event.actor,
        "created_at": payloads.moment(event.created_at),
        "data": event.data,
        "id": event.id,
        "previous_data": event.previous_data,
        "published_at": payloads.moment(event.created_at),
        "resource": event.resource,
        "sequence": None,
        "updated_at": payloads.moment(event.updated_at),
        "version": VERSION,
    }


def signature(secret: str, body: bytes) -> str:
    """The header Heroku-Webhook-Hmac-SHA256 (Dev Center, "App Webhooks": base64 of the HMAC of the body)."""
    return base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha256).digest()).decode()


def message(delivery: WebhookDelivery, attempt: str, encode: Any) -> Message:
    """What a delivery sends now.

    Args:
        attempt: an id for this time that it is sent.
        encode: a JSON value → bytes.
    """
    hook, event = delivery.webhook, delivery.event
    metadata = {
        "attempt": {"id": attempt}, "delivery": {"id": delivery.id}, "event": {"id": event.id, "include": event.include},
        "webhook": {"id": hook.id},
    }  # fmt: skip
    body: bytes = encode({**document(event), "webhook_metadata": metadata})
    known = vault.reveal(hook.credentials)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Davit-Webhooks",
        "Heroku-Webhook-Hmac-SHA256": signature(known["secret"], body),
    }
    if known["authorization"]:
        headers["Authorization"] = known["authorization"]
    return Message(delivery.id, outbound.parse(hook.url, SCHEMES), body, headers)


def due(
    session: Session, at: datetime, hooks: Sequence[str] = (), apps: Sequence[str] = (), accounts: Sequence[str] = ()
) -> list[tuple[WebhookDelivery, str]]:
    """Deliveries whose time has come, those first that have waited longest, each with the id of its app's owner (where the app is
    gone: empty); none of these webhooks, none of these apps, and none of these accounts.
    """
    owner = func.coalesce(App.owner_id, "")
    query = select(WebhookDelivery, owner).outerjoin(App, App.id == WebhookDelivery.app_id)
    query = query.where(
        WebhookDelivery.next_attempt_at <= at, WebhookDelivery.webhook_id.not_in(hooks), WebhookDelivery.app_id.not_in(apps),
        owner.not_in(accounts),
    )  # fmt: skip
    rows = session.execute(query.order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.created_at).limit(20))
    return [(row, account) for row, account in rows]


def record_attempt(session: Session, delivery: WebhookDelivery, attempt_id: str, code: int | None, error: str | None) -> None:
    """How an attempt went: taken (a status from 200 to 299), or not.

    Args:
        code: the answer's status, if there was an answer.
        error: what went wrong, in a word, if there was none.
    """
    at = now()
    shown = payloads.moment(at)
    delivery.attempts += 1
    delivery.last_attempt = {
        "id": attempt_id, "code": code, "error_class": error, "created_at": shown, "updated_at": shown,
        "status": "succeeded" if _taken(code) else "failed",
    }  # fmt: skip
    pause = pause_after(delivery.attempts)
    if _taken(code):
        delivery.status, delivery.next_attempt_at = "succeeded", None
    elif delivery.webhook.level == "sync" and at + pause < delivery.created_at + PATIENCE:
        delivery.status, delivery.next_attempt_at = "retrying", at + pause
    else:
        delivery.status, delivery.next_attempt_at = "failed", None


def _taken(code: int | None) -> bool:
    return code is not None and 200 <= code < 300


def pause_after(attempts: int) -> timedelta:
    """How long to wait after so many attempts: 30 seconds, then twice as long each time, six hours at the most."""
    return min(_LONGEST, timedelta(seconds=30 * 2 ** min(attempts - 1, 20)))


def sweep(session: Session, at: datetime) -> None:
    """Forget events that are old, and the webhooks of apps that are gone once nothing of theirs is waiting."""
    session.execute(delete(WebhookEvent).where(WebhookEvent.created_at < at - KEPT))
    gone = Webhook.app_id.not_in(select(App.id))
    waiting = select(WebhookDelivery.webhook_id).where(WebhookDelivery.next_attempt_at.is_not(None))
    session.execute(delete(Webhook).where(gone, Webhook.id.not_in(waiting)))
