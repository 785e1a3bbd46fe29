"""Apps."""

from __future__ import annotations

from typing import Any

from flask import request

from api import links, ranges, serialize, shapes
from api.fields import Fields, Flag, Reference, Text
from api.resources.catalogue import check_region, check_stack
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from foundation.settings import settings
from state import apps, listings, sleep
from state.models import App

resource = Resource("apps", reads="read", writes="write")

_NEW = Fields(
    name=Text(), region=Reference(), stack=Reference(), space=Reference(), team=Reference(), organization=Reference()
)  # fmt: skip
ORDER = ranges.Order({"name": lambda app: app.name, "id": lambda app: app.id}, {})


def render(app: App) -> Any:
    """An app as this caller sees its addresses."""
    return serialize.app(app, git_url=f"{links.base_url()}/{app.name}.git", web_url=settings().app_url(app.name))


def _one(call: Call) -> Any:
    """The app that was asked for, and whether it sleeps: in lists nobody looks that up."""
    return {**render(call.app), "sleeps": sleep.told(call.session, call.app, settings().sleep_after)}


def _listing(call: Call, everything: bool) -> Reply:
    window = call.window(ORDER)
    return call.listing(listings.apps(call.session, call.account, window, everything=everything), ORDER, window, render)


@resource.on("GET", "/apps", needs="account", gives=shapes.many(shapes.APP))
def index(call: Call) -> Reply:
    """Every app that the caller may see: all of this Davit for an admin."""
    return _listing(call, everything=True)


@resource.on("GET", "/users/<user>/apps", needs="account", gives=shapes.many(shapes.APP))
def index_of_user(call: Call, user: str) -> Reply:
    """The apps that the caller (~) owns or collaborates on."""
    if user not in ("~", call.account.email, call.account.id):
        raise NotFound("Couldn't find that user.")
    return _listing(call, everything=False)


@resource.on(
    "GET", "/davit/app-names", needs="account", ours=True,
    gives=shapes.plain(shapes.thing(account=shapes.EMAIL, apps=shapes.things(shapes.things(shapes.TEXT)))),
)  # fmt: skip
def names(call: Call) -> Any:
    """Only names and owners, in one answer however many: [[name, owner's address]…]; ?all=true as GET /apps."""
    everything = request.args.get("all") == "true"
    rows = listings.app_names(call.session, call.account, everything=everything)
    return {"account": call.account.email, "apps": [list(row) for row in rows]}


@resource.on("POST", "/apps", needs="account", takes=_NEW, gives=shapes.APP)
def create(call: Call) -> Reply:
    """Make an app; its name is chosen when none is given."""
    check_region(call.body.reference("region"))
    for name in ("space", "team", "organization"):
        if call.body.reference(name):
            raise InvalidParams(f"Field {name}: this Davit has none; leave it out.")
    stack = check_stack(call.body.reference("stack"))
    app = apps.create(call.session, call.account, call.body.text("name"), stack=stack)
    return Reply(render(app), 201)


@resource.on("GET", "/apps/<app>", needs="view", gives=shapes.APP)
def show(call: Call) -> Any:
    """One app."""
    return _one(call)


@resource.on(
    "PATCH", "/apps/<app>", needs="view",
    takes=Fields(name=Text(), maintenance=Flag(), build_stack=Reference(), sleep=Text()), gives=shapes.APP,
)  # fmt: skip
def update(call: Call) -> Any:
    """Change its name (which takes the permission manage), maintenance mode, build_stack or sleep (operate)."""
    if (name := call.body.text("name")) is not None:
        call.need("manage")
        call.guard()
        apps.rename(call.session, call.account, call.app, name)
    if {"maintenance", "build_stack", "sleep"} & call.body.values.keys():
        call.need("operate")
    if (maintenance := call.body.flag("maintenance")) is not None:
        apps.set_maintenance(call.session, call.account, call.app, maintenance)
    if (choice := call.body.text("sleep")) is not None:
        sleep.choose(call.session, call.account, call.app, choice)
    check_stack(call.body.reference("build_stack"))  # there is one, which the app has
    call.session.flush()
    return _one(call)


@resource.on("DELETE", "/apps/<app>", needs="manage", gives=shapes.APP)
def destroy(call: Call) -> Any:
    """Destroy the app; takes a two-factor code where it or the caller has the guard."""
    call.guard()
    shown = render(call.app)
    apps.destroy(call.session, call.account, call.app)
    return shown
