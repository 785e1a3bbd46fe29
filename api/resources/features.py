"""Features of apps and of the caller's account."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Flag
from api.routing import Call, Reply, Resource
from foundation.errors import NotFound
from state import features

resource = Resource("features")

ORDER = ranges.SHOWN_BY_NAME
_SWITCH = Fields(enabled=Flag(needed=True))


def _wanted(call: Call) -> bool:
    return bool(call.body.flag("enabled"))


@resource.on("GET", "/apps/<app>/features", needs="view", scope="read", gives=shapes.many(shapes.APP_FEATURE))
def index(call: Call) -> Reply:
    """The app's features, each on or off."""
    return call.short_listing(_of_app(call), ORDER, lambda row: row, as_it_is=True)


def _of_app(call: Call) -> list[Any]:
    return [serialize.feature("app", feature, row) for feature, row in features.of_app(call.session, call.app)]


@resource.on("GET", "/apps/<app>/features/<feature>", needs="view", scope="read", gives=shapes.APP_FEATURE)
def show(call: Call, feature: str) -> Any:
    """One feature of the app's, by name or id."""
    return _pick(_of_app(call), feature)


@resource.on("PATCH", "/apps/<app>/features/<feature>", needs="operate", takes=_SWITCH, gives=shapes.APP_FEATURE)
def update(call: Call, feature: str) -> Any:
    """Switch a feature of the app's."""
    name, on = _pick(_of_app(call), feature)["name"], _wanted(call)
    if name == features.GUARD:
        call.need("manage")
        if not on:
            call.guard()
    return serialize.feature("app", *features.switch(call.session, call.account, call.app, name, on))


@resource.on("GET", "/account/features", needs="account", gives=shapes.many(shapes.ACCOUNT_FEATURE))
def index_of_account(call: Call) -> Reply:
    """The caller's features, each on or off."""
    return call.short_listing(_of_account(call), ORDER, lambda row: row, as_it_is=True)


def _of_account(call: Call) -> list[Any]:
    return [serialize.feature("account", feature, row) for feature, row in features.of_account(call.session, call.account)]


@resource.on("GET", "/account/features/<feature>", needs="account", gives=shapes.ACCOUNT_FEATURE)
def show_of_account(call: Call, feature: str) -> Any:
    """One feature of the caller's, by name or id."""
    return _pick(_of_account(call), feature)


@resource.on("PATCH", "/account/features/<feature>", needs="account", takes=_SWITCH, gives=shapes.ACCOUNT_FEATURE)
def update_of_account(call: Call, feature: str) -> Any:
    """Switch a feature of the caller's; the two-factor guard is switched off with a code."""
    name, on = _pick(_of_account(call), feature)["name"], _wanted(call)
    if name == features.GUARD and not on:
        call.check_code()
    return serialize.feature("account", *features.switch_for(call.session, call.account, name, on))


def _pick(rows: list[Any], identity: str) -> Any:
    for row in rows:
        if identity in (row["name"], row["id"]):
            return row
    raise NotFound("Couldn't find that feature.")
