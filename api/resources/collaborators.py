"""Collaborators: who may do what with an app."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import apps
from state.models import Collaborator

resource = Resource("collaborators", reads="read")

ORDER = ranges.Order({"email": lambda row: row["user"]["email"], "id": lambda row: row["id"]}, {})


def _everybody(call: Call) -> list[Any]:
    rows = [serialize.collaborator(call.app, row) for row in apps.collaborators(call.session, call.app)]
    return [serialize.owner(call.app), *rows]


def _permissions(call: Call) -> list[str] | None:
    """``["view", …]``, or ``[{"name": "view"}, …]`` as the public schema shows them."""
    if call.body.values.get("permissions") is None:
        return None
    names = [item.get("name") if isinstance(item, dict) else item for item in call.body.items("permissions", most=20)]
    if not all(isinstance(name, str) for name in names):
        raise InvalidParams("Field permissions must be a list of names.")
    return [str(name) for name in names]


@resource.on("GET", "/apps/<app>/collaborators", needs="view")
def index(call: Call) -> Reply:
    """The owner and the collaborators."""
    return call.short_listing(_everybody(call), ORDER, lambda row: row)


@resource.on("GET", "/apps/<app>/collaborators/<user>", needs="view")
def show(call: Call, user: str) -> Any:
    """One collaborator, by address or id."""
    for row in _everybody(call):
        if user in (row["id"], row["user"]["id"], row["user"]["email"]):
            return row
    raise NotFound(f"{user} is not a collaborator on {call.app.name}.")


@resource.on("POST", "/apps/<app>/collaborators", needs="manage")
def create(call: Call) -> Reply:
    """Let another account work on the app; permissions is Davit's own field (view, deploy and operate by default)."""
    user = call.body.reference("user")
    if not user:
        raise InvalidParams("Field user (an e-mail address) is required.")
    call.guard()
    row = apps.add_collaborator(call.session, call.account, call.app, user, _permissions(call))
    call.session.refresh(row)
    return Reply(serialize.collaborator(call.app, row), 201)


@resource.on("PATCH", "/apps/<app>/collaborators/<user>", needs="manage", ours=True)
def update(call: Call, user: str) -> Any:
    """Change what a collaborator may do (permissions)."""
    found = _collaborator(call, user)
    allowed = _permissions(call)
    if allowed is None:
        raise InvalidParams("Field permissions (a list of names) is required.")
    call.guard()
    row = apps.add_collaborator(call.session, call.account, call.app, found.account.email, allowed)
    return serialize.collaborator(call.app, row)


def _collaborator(call: Call, user: str) -> Collaborator:
    for row in apps.collaborators(call.session, call.app):
        if user in (row.id, row.account_id, row.account.email):
            return row
    raise NotFound(f"{user} is not a collaborator on {call.app.name}.")


@resource.on("DELETE", "/apps/<app>/collaborators/<user>", needs="view")
def destroy(call: Call, user: str) -> Any:
    """End a collaboration: one's own, or (with the permission manage) anybody's."""
    if user not in (call.account.email, call.account.id):
        call.need("manage")
        call.guard()
    return serialize.collaborator(call.app, apps.remove_collaborator(call.session, call.account, call.app, user))
