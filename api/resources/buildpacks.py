"""Buildpack installations: the buildpacks of the next build, in order."""

from __future__ import annotations

import re
from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Items, Object, Text
from api.routing import Call, Reply, Resource
from builder import buildpacks
from state import apps

resource = Resource("buildpack-installations", reads="read")

_REGISTRY = re.compile(r"https://buildpack-registry\.s3\.amazonaws\.com/buildpacks/([\w.-]+/[\w.-]+)\.tgz")
ORDER = ranges.Order({"ordinal": lambda row: row["ordinal"]}, {"ordinal": int})
_MOST = 50
_UPDATE = Object(fields=Fields(buildpack=Text(needed=True, most=1000)))


def _name(sent: str) -> str:
    """A buildpack as it is kept: the public registry's archive URL, which clients send for a name, becomes the name again."""
    found = _REGISTRY.fullmatch(sent)
    return found[1] if found else sent.removeprefix("urn:buildpack:")


def chosen(call: Call, sent: list[str]) -> list[str]:
    """Buildpacks as they are kept.

    Raises:
        InvalidParams: one is no buildpack, or on this host and the caller is no admin.
    """
    names = [_name(text) for text in sent]
    apps.check_buildpacks(call.account, names)
    return [buildpacks.check(name, admin=call.account.is_admin) for name in names]


def _render(call: Call) -> Any:
    in_full = call.may("deploy")
    return [serialize.buildpack_installation(ordinal, text, in_full=in_full) for ordinal, text in enumerate(call.app.buildpacks)]


@resource.on("GET", "/apps/<app>/buildpack-installations", needs="view", gives=shapes.many(shapes.BUILDPACK_INSTALLATION))
def index(call: Call) -> Reply:
    """The chosen buildpacks, in order; none means detection."""
    return call.short_listing(_render(call), ORDER, lambda row: row)


@resource.on(
    "PUT", "/apps/<app>/buildpack-installations", needs="deploy",
    takes=Fields(updates=Items(of=_UPDATE, most=_MOST, needed=True)), gives=shapes.many(shapes.BUILDPACK_INSTALLATION),
)  # fmt: skip
def update(call: Call) -> Any:
    """Choose the buildpacks, in order."""
    names = chosen(call, [update.need("buildpack") for update in call.body.items("updates") or []])
    apps.set_buildpacks(call.session, call.account, call.app, names)
    return _render(call)
