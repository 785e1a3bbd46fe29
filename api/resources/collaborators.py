"""Collaborators: who may do what with an app."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Items, Reference
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import accounts, apps

resource = Resource("collaborators", reads="read")

_PERMISSIONS = Items(of=Reference(), most=20)
ORDER = ranges.Order({"email": lambda row: row["user"]["email"], "id": lambda row: row["id"]}, {})


def _everybody(call: Call) -> list[Any]:
    rows = [serialize.collaborator(call.app, row) for row in apps.collaborators(call.session, call.app)]
    return [serialize.owner(call.app), *rows]


def _permissions(call: Call) -> list[str] | None:
    """``["view", …]``, or ``[{"name": "view"}, …]`` as the public schema shows them."""
    return call.body.items("permissions")


@resource.on("GET", "/apps/<app>/collaborators", needs="view", gives=shapes.many(shapes.COLLABORATOR))
def index(call: Call) -> Reply:
    """The owner and the collaborators."""
    return call.short_listing(_everybody(call), ORDER, lambda row: row)


@resource.on("GET", "/apps/<app>/collaborators/<user>", needs="view", gives=shapes.COLLABORATOR)
def show(call: Call, user: str) -> Any:
    """One collaborator, by address or id."""
    for row in _everybody(call):
        if user in (row["id"], row["user"]["id"]) or accounts.normal(user) == row["user"]["email"]:
            return row
    raise NotFound(f"{user} is not a collaborator on {call.app.name}.")


@resource.on(
    "POST", "/apps/<app>/collaborators", needs="manage",
    takes=Fields(user=Reference(needed=True), permissions=_PERMISSIONS), gives=shapes.COLLABORATOR,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Let another account work on the app; permissions is Davit's own field (view, deploy and operate by default)."""
    call.guard()
    row = apps.add_collaborator(call.session, call.account, call.app, call.body.need("user"), _permissions(call))
    call.session.refresh(row)
    return Reply(serialize.collaborator(call.app, row), 201)


@resource.on(
    "PATCH", "/apps/<app>/collaborators/<user>", needs="manage", ours=True,
    takes=Fields(permissions=_PERMISSIONS), gives=shapes.COLLABORATOR,
)  # fmt: skip
def update(call: Call, user: str) -> Any:
    """Change what a collaborator may do (permissions)."""
    found = apps.find_collaborator(call.session, call.app, user)
    allowed = _permissions(call)
    if allowed is None:
        raise InvalidParams("Field permissions (a list of names) is required.")
    call.guard()
    row = apps.add_collaborator(call.session, call.account, call.app, found.account.email, allowed)
    return serialize.collaborator(call.app, row)


@resource.on("DELETE", "/apps/<app>/collaborators/<user>", needs="view", gives=shapes.COLLABORATOR)
def destroy(call: Call, user: str) -> Any:
    """End a collaboration: one's own, or (with the permission manage) anybody's."""
    if user != call.account.id and accounts.normal(user) != call.account.email:
        call.need("manage")
        call.guard()
    return serialize.collaborator(call.app, apps.remove_collaborator(call.session, call.account, call.app, user))
