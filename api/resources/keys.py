"""The caller's SSH keys."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Text
from api.routing import Call, Reply, Resource
from foundation.errors import NotFound
from state import accounts

resource = Resource("keys")

ORDER = ranges.Order({"id": lambda row: row.id, "fingerprint": lambda row: row.fingerprint}, {})


@resource.on("GET", "/account/keys", needs="account", gives=shapes.many(shapes.KEY))
def index(call: Call) -> Reply:
    """The caller's SSH keys."""
    return call.short_listing(accounts.keys(call.session, call.account), ORDER, serialize.key)


@resource.on("GET", "/account/keys/<path:key>", needs="account", gives=shapes.KEY)
def show(call: Call, key: str) -> Any:
    """One key, by id or fingerprint."""
    for row in accounts.keys(call.session, call.account):
        if key in (row.id, row.fingerprint):
            return serialize.key(row)
    raise NotFound("Couldn't find that SSH key.")


@resource.on(
    "POST", "/account/keys", needs="account",
    takes=Fields(public_key=Text(needed=True, most=20_000)), gives=shapes.KEY,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Let the holder of an SSH key push as the caller."""
    row = accounts.add_key(call.session, call.account, call.body.need("public_key"))
    call.session.refresh(row)
    return Reply(serialize.key(row), 201)


@resource.on("DELETE", "/account/keys/<path:key>", needs="account", gives=shapes.KEY)
def destroy(call: Call, key: str) -> Any:
    """Take a key away, by id, fingerprint or comment."""
    return serialize.key(accounts.remove_key(call.session, call.account, key))
