"""App transfers: an app is offered to somebody, who accepts or declines."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams
from state import apps, transfers

resource = Resource("app-transfers")

ORDER = ranges.Order({"created_at": lambda row: (row.created_at, row.id), "id": lambda row: row.id}, {})


@resource.on("GET", "/account/app-transfers", needs="account")
def index(call: Call) -> Any:
    """The transfers that the caller made or was offered."""
    return [serialize.app_transfer(row) for row in transfers.all_of(call.session, call.account)]


@resource.on("GET", "/account/app-transfers/<transfer>", needs="account")
def show(call: Call, transfer: str) -> Any:
    """One transfer, by id or the app's name."""
    return serialize.app_transfer(transfers.find(call.session, call.account, transfer))


@resource.on("POST", "/account/app-transfers", needs="account")
def create(call: Call) -> Reply:
    """Offer an app of the caller's to somebody; takes a two-factor code where the app or the caller has the guard."""
    app, recipient = call.body.reference("app"), call.body.reference("recipient")
    if not app or not recipient:
        raise InvalidParams("Field app and field recipient (an e-mail address or id) are required.")
    found = apps.find(call.session, call.account, app, "manage")
    call.guard(found)
    return Reply(serialize.app_transfer(transfers.offer(call.session, call.account, found, recipient)), 201)


@resource.on("PATCH", "/account/app-transfers/<transfer>", needs="account")
def update(call: Call, transfer: str) -> Any:
    """Answer an offer: state accepted or declined."""
    row = transfers.find(call.session, call.account, transfer)
    transfers.answer(call.session, call.account, row, call.body.need("state", most=20))
    return serialize.app_transfer(row)


@resource.on("DELETE", "/account/app-transfers/<transfer>", needs="account")
def destroy(call: Call, transfer: str) -> Any:
    """Take an offer back."""
    row = transfers.find(call.session, call.account, transfer)
    shown = serialize.app_transfer(row)
    transfers.take_back(call.session, call.account, row)
    return shown
