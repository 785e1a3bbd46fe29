"""App transfers: an app is offered to somebody, who accepts or declines."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Reference, Text
from api.routing import Call, Reply, Resource
from state import apps, transfers

resource = Resource("app-transfers")

ORDER = ranges.BY_AGE


@resource.on("GET", "/account/app-transfers", needs="account", gives=shapes.many(shapes.APP_TRANSFER))
def index(call: Call) -> Reply:
    """The transfers that the caller made or was offered."""
    return call.short_listing(transfers.all_of(call.session, call.account), ORDER, serialize.app_transfer)


@resource.on("GET", "/account/app-transfers/<transfer>", needs="account", gives=shapes.APP_TRANSFER)
def show(call: Call, transfer: str) -> Any:
    """One transfer, by id or the app's name."""
    return serialize.app_transfer(transfers.find(call.session, call.account, transfer))


@resource.on(
    "POST", "/account/app-transfers", needs="account",
    takes=Fields(app=Reference(needed=True), recipient=Reference(needed=True)), gives=shapes.APP_TRANSFER,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Offer an app of the caller's to somebody; takes a two-factor code where the app or the caller has the guard."""
    found = apps.find(call.session, call.account, call.body.need("app"), "manage")
    call.guard(found)
    return Reply(serialize.app_transfer(transfers.offer(call.session, call.account, found, call.body.need("recipient"))), 201)


@resource.on(
    "PATCH", "/account/app-transfers/<transfer>", needs="account",
    takes=Fields(state=Text(needed=True, most=20)), gives=shapes.APP_TRANSFER,
)  # fmt: skip
def update(call: Call, transfer: str) -> Any:
    """Answer an offer: state accepted or declined."""
    row = transfers.find(call.session, call.account, transfer)
    transfers.answer(call.session, call.account, row, call.body.need("state"))
    return serialize.app_transfer(row)


@resource.on("DELETE", "/account/app-transfers/<transfer>", needs="account", gives=shapes.APP_TRANSFER)
def destroy(call: Call, transfer: str) -> Any:
    """Take an offer back."""
    row = transfers.find(call.session, call.account, transfer)
    shown = serialize.app_transfer(row)
    transfers.take_back(call.session, call.account, row)
    return shown
