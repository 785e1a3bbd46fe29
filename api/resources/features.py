"""Features of apps and of the caller's account."""

from __future__ import annotations

from typing import Any

from api import serialize
from api.routing import Call, Resource
from foundation.errors import InvalidParams, NotFound
from state import features

resource = Resource("features")


def _wanted(call: Call) -> bool:
    on = call.body.flag("enabled")
    if on is None:
        raise InvalidParams("Field enabled is required: true or false.")
    return on


@resource.on("GET", "/apps/<app>/features", needs="view", scope="read")
def index(call: Call) -> Any:
    """The app's features, each on or off."""
    return [serialize.feature("app", feature, row) for feature, row in features.of_app(call.session, call.app)]


@resource.on("GET", "/apps/<app>/features/<feature>", needs="view", scope="read")
def show(call: Call, feature: str) -> Any:
    """One feature of the app's, by name or id."""
    return _pick(index(call), feature)


@resource.on("PATCH", "/apps/<app>/features/<feature>", needs="operate")
def update(call: Call, feature: str) -> Any:
    """Switch a feature of the app's."""
    name, on = _pick(index(call), feature)["name"], _wanted(call)
    if name == features.GUARD:
        call.need("manage")
        if not on:
            call.guard()
    return serialize.feature("app", *features.switch(call.session, call.account, call.app, name, on))


@resource.on("GET", "/account/features", needs="account")
def index_of_account(call: Call) -> Any:
    """The caller's features, each on or off."""
    return [serialize.feature("account", feature, row) for feature, row in features.of_account(call.session, call.account)]


@resource.on("GET", "/account/features/<feature>", needs="account")
def show_of_account(call: Call, feature: str) -> Any:
    """One feature of the caller's, by name or id."""
    return _pick(index_of_account(call), feature)


@resource.on("PATCH", "/account/features/<feature>", needs="account")
def update_of_account(call: Call, feature: str) -> Any:
    """Switch a feature of the caller's; the two-factor guard is switched off with a code."""
    name, on = _pick(index_of_account(call), feature)["name"], _wanted(call)
    if name == features.GUARD and not on:
        call.check_code()
    return serialize.feature("account", *features.switch_for(call.session, call.account, name, on))


def _pick(rows: list[Any], identity: str) -> Any:
    for row in rows:
        if identity in (row["name"], row["id"]):
            return row
    raise NotFound("Couldn't find that feature.")
