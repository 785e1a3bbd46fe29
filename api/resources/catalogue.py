"""What every Davit has: regions, stacks, dyno sizes; and the lists that are empty because there is nothing of the kind."""

from __future__ import annotations

import re
from typing import Any

from api import ranges, serialize, shapes
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import sizes

resource = Resource("catalogue", reads="read")

ORDER = ranges.SHOWN_BY_NAME
STACKS = ("davit-13",)
_REGIONS = frozenset(("local", "us", "eu", serialize.REGION["id"]))
_HEROKU_STACK = re.compile(r"cedar(-\d+)?|heroku-\d+")
_IDS = {serialize.steady_id("stack", name): name for name in STACKS}


def check_region(name: str | None) -> None:
    """There is one region; the names that clients send by habit mean it, too.

    Raises:
        InvalidParams: another one.
    """
    if name is not None and name not in _REGIONS:
        raise InvalidParams(f"There is no region “{name}”; this Davit has one, `local`.")


def check_stack(name: str | None) -> str:
    """The stack that a client means; Heroku's own names, which clients send by habit, mean the default.

    Raises:
        InvalidParams: there is none of that name.
    """
    if name is None or _HEROKU_STACK.fullmatch(name):
        return STACKS[0]
    found = _IDS.get(name, name)
    if found not in STACKS:
        raise InvalidParams(f"There is no stack “{name}”; the stacks are {', '.join(STACKS)}.")
    return found


def _pick(rows: list[dict[str, Any]], identity: str, what: str) -> dict[str, Any]:
    for row in rows:
        if identity.lower() in (row["id"], row["name"].lower()):
            return row
    raise NotFound(f"Couldn't find that {what}.")


def _list(call: Call, rows: list[dict[str, Any]]) -> Reply:
    return call.short_listing(rows, ORDER, lambda row: row, as_it_is=True)


def _stacks() -> list[dict[str, Any]]:
    return [serialize.stack(name, name == STACKS[0]) for name in STACKS]


def _sizes() -> list[dict[str, Any]]:
    return [serialize.dyno_size(size) for size in sizes.SIZES.values()]


@resource.on("GET", "/regions", needs="account", gives=shapes.many(shapes.REGION))
def regions(call: Call) -> Reply:
    """The regions: one."""
    return _list(call, [serialize.region()])


@resource.on("GET", "/regions/<region>", needs="account", gives=shapes.REGION)
def region(call: Call, region: str) -> Any:
    """One region."""
    return _pick([serialize.region()], region, "region")


@resource.on("GET", "/stacks", needs="account", gives=shapes.many(shapes.STACK))
def stacks(call: Call) -> Reply:
    """The stacks."""
    return _list(call, _stacks())


@resource.on("GET", "/stacks/<stack>", needs="account", gives=shapes.STACK)
def stack(call: Call, stack: str) -> Any:
    """One stack."""
    return _pick(_stacks(), stack, "stack")


@resource.on("GET", "/apps/<app>/available-stacks", needs="view", gives=shapes.many(shapes.STACK))
def available_stacks(call: Call) -> Reply:
    """The stacks that the app can be built on."""
    return _list(call, _stacks())


@resource.on("GET", "/dyno-sizes", needs="account", gives=shapes.many(shapes.DYNO_SIZE))
def dyno_sizes(call: Call) -> Reply:
    """The dyno sizes."""
    return _list(call, _sizes())


@resource.on("GET", "/dyno-sizes/<size>", needs="account", gives=shapes.DYNO_SIZE)
def dyno_size(call: Call, size: str) -> Any:
    """One dyno size."""
    return _pick(_sizes(), size, "dyno size")


@resource.on("GET", "/apps/<app>/available-dyno-sizes", needs="view", gives=shapes.many(shapes.DYNO_SIZE))
def available_dyno_sizes(call: Call) -> Reply:
    """The dyno sizes that the app can use: all."""
    return _list(call, _sizes())


@resource.on("GET", "/apps/<app>/addons", needs="view", gives=shapes.NONE_YET)
def app_addons(call: Call) -> Any:
    """The app's add-ons: there are none."""
    return []


@resource.on("GET", "/apps/<app>/addon-attachments", needs="view", gives=shapes.NONE_YET)
def app_addon_attachments(call: Call) -> Any:
    """The app's add-on attachments: there are none."""
    return []


@resource.on("GET", "/addons", needs="account", gives=shapes.NONE_YET)
def addons(call: Call) -> Any:
    """The caller's add-ons: there are none."""
    return []


@resource.on("GET", "/addon-attachments", needs="account", gives=shapes.NONE_YET)
def addon_attachments(call: Call) -> Any:
    """The caller's add-on attachments: there are none."""
    return []


@resource.on("GET", "/teams", needs="account", gives=shapes.NONE_YET)
def teams(call: Call) -> Any:
    """The caller's teams: there are none."""
    return []


@resource.on("GET", "/spaces", needs="account", gives=shapes.NONE_YET)
def spaces(call: Call) -> Any:
    """Private spaces: there are none."""
    return []
