"""Choosing a password by an invitation, which an admin makes and hands over: Davit sends no mail."""

from __future__ import annotations

from typing import Any

from api import links, serialize, shapes
from api.fields import Fields, Text
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import audit, invitations, people

resource = Resource("password-resets")

_PASSWORD = Text(most=1000)


@resource.on(
    "POST", "/davit/accounts/<user>/invitations", needs="admin", ours=True,
    gives=shapes.plain(shapes.thing(reset_password_token=shapes.TEXT, url=shapes.URL, expires_in=shapes.WHOLE)),
)  # fmt: skip
def invite(call: Call, user: str) -> Reply:
    """Make the address at which somebody chooses the password of their account; it works once, for seven days."""
    account = people.find(call.session, user)
    if account is None:
        raise NotFound("Couldn't find that user.")
    secret = invitations.issue(account)
    audit.record(call.session, call.account, "accounts:invite", email=account.email)
    url = f"{links.base_url()}/password-resets/{secret}/actions/finalize"
    return Reply({"reset_password_token": secret, "url": url, "expires_in": invitations.SECONDS}, 201)


@resource.on("POST", "/password-resets", needs="nothing", writes=False, gives=shapes.NEVER)
def create(call: Call) -> Any:
    """Not by mail: an admin makes an invitation (POST /davit/accounts/USER/invitations)."""
    raise InvalidParams("Davit sends no mail; ask an admin for an invitation, which lets you choose a new password.")


@resource.on(
    "POST", "/password-resets/<secret>/actions/finalize", needs="nothing", writes=True,
    takes=Fields(password=_PASSWORD, password_confirmation=_PASSWORD), gives=shapes.PASSWORD_RESET,
)  # fmt: skip
def finalize(call: Call, secret: str) -> Any:
    """Choose a password with an invitation."""
    password = call.body.text("password")
    if call.body.text("password_confirmation") != password:
        raise InvalidParams("Field password_confirmation must be the same as field password.")
    account = invitations.accept(call.session, secret, password)
    return {"created_at": serialize.moment(account.created_at), "user": {"email": account.email, "id": account.id}}
