"""Webhooks of apps, their events and deliveries."""

from __future__ import annotations

from typing import Any

from flask import request

from api import ranges, serialize, shapes, streams
from api.fields import Fields, Items, Text
from api.routing import Call, Reply, Resource
from foundation import outbound
from foundation.errors import InvalidParams
from state import domains, webhooks
from state.db import transaction
from state.models import Webhook

resource = Resource("webhooks")  # messages tell of releases, so it takes what they take

SECRET_HEADER = "Heroku-Webhook-Secret"  # noqa: S105
_SECRETS = {"secret": Text(most=300), "authorization": Text(most=1000)}
_NEW = Fields(
    url=Text(needed=True, most=2000), include=Items(of=Text(), most=50, needed=True), level=Text(needed=True, most=20), **_SECRETS
)  # fmt: skip
_CHANGES = Fields(url=Text(most=2000), include=Items(of=Text(), most=50), level=Text(most=20), **_SECRETS)
ORDER = ranges.BY_AGE


@resource.on("GET", "/apps/<app>/webhooks", needs="view", gives=shapes.many(shapes.APP_WEBHOOK))
def index(call: Call) -> Reply:
    """The app's webhooks."""
    return call.short_listing(webhooks.all_of(call.session, call.app), ORDER, lambda row: _render(call, row))


def _render(call: Call, row: Webhook) -> Any:
    return serialize.webhook(row, in_full=call.may("operate"))


@resource.on("GET", "/apps/<app>/webhooks/<webhook>", needs="view", gives=shapes.APP_WEBHOOK)
def show(call: Call, webhook: str) -> Any:
    """One webhook."""
    return _render(call, webhooks.find(call.session, call.app, webhook))


@resource.on("POST", "/apps/<app>/webhooks", needs="operate", writes=False, takes=_NEW, gives=shapes.APP_WEBHOOK)
def create(call: Call) -> Reply:
    """Have changes told to a URL: include, level, url; the secret that signs them comes back in Heroku-Webhook-Secret."""
    wish = webhooks.check(call.body.need("url"), call.body.items("include") or [], call.body.need("level"))
    secret, authorization = _secrets(call)
    with streams.looking_up(call.session, call.account.id):
        outbound.check(domains.marked(wish.place))
    with transaction() as session:
        now = call.within(session)
        row, text = webhooks.create(session, now.account, now.app, wish, secret=secret, authorization=authorization)
    return Reply(serialize.webhook(row), 201, {SECRET_HEADER: text} if secret is None else {})


@resource.on("PATCH", "/apps/<app>/webhooks/<webhook>", needs="operate", writes=False, takes=_CHANGES, gives=shapes.APP_WEBHOOK)
def update(call: Call, webhook: str) -> Reply:
    """Change a webhook."""
    known = webhooks.find(call.session, call.app, webhook)
    include = known.include if (asked := call.body.items("include")) is None else asked
    wish = webhooks.check(call.body.text("url") or known.url, include, call.body.text("level") or known.level)
    secret, authorization = _secrets(call)
    with streams.looking_up(call.session, call.account.id):
        outbound.check(domains.marked(wish.place))
    with transaction() as session:
        now = call.within(session)
        row = webhooks.find(session, now.app, webhook)
        webhooks.update(session, now.account, now.app, row, wish, secret=secret, authorization=authorization)
    return Reply(serialize.webhook(row))


def _secrets(call: Call) -> tuple[str | None, str | None]:
    authorization = call.body.text("authorization")
    if authorization is not None and not authorization.isprintable():
        raise InvalidParams("Field authorization must be a header's value: one line of printable characters.")
    if authorization is not None and not authorization.isascii():
        raise InvalidParams("Field authorization must be a header's value: ASCII characters only.")
    return call.body.text("secret"), authorization


@resource.on("DELETE", "/apps/<app>/webhooks/<webhook>", needs="operate", gives=shapes.APP_WEBHOOK)
def destroy(call: Call, webhook: str) -> Any:
    """Take a webhook away."""
    row: Webhook = webhooks.find(call.session, call.app, webhook)
    shown = serialize.webhook(row)
    webhooks.remove(call.session, call.account, call.app, row)
    return shown


@resource.on("GET", "/apps/<app>/webhook-deliveries", needs="view", gives=shapes.many(shapes.APP_WEBHOOK_DELIVERY))
def deliveries(call: Call) -> Reply:
    """What was, or is to be, sent; the newest 1,000, kept for seven days; ?eq[status]=failed picks by status."""
    rows = webhooks.deliveries(call.session, call.app, request.args.get("eq[status]"))
    return call.short_listing(rows, ORDER, serialize.webhook_delivery)


@resource.on("GET", "/apps/<app>/webhook-deliveries/<delivery>", needs="view", gives=shapes.APP_WEBHOOK_DELIVERY)
def delivery(call: Call, delivery: str) -> Any:
    """One delivery: how often it was tried, and how that went."""
    return serialize.webhook_delivery(webhooks.find_delivery(call.session, call.app, delivery))


@resource.on("GET", "/apps/<app>/webhook-events", needs="view", gives=shapes.many(shapes.APP_WEBHOOK_EVENT))
def events(call: Call) -> Reply:
    """What the app's webhooks were told; the newest 1,000, kept for seven days."""
    return call.short_listing(webhooks.events(call.session, call.app), ORDER, serialize.webhook_event)


@resource.on("GET", "/apps/<app>/webhook-events/<event>", needs="view", gives=shapes.APP_WEBHOOK_EVENT)
def event(call: Call, event: str) -> Any:
    """One event with its payload."""
    return serialize.webhook_event(webhooks.find_event(call.session, call.app, event))
