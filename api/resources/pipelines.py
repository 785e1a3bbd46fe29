"""Pipelines, their couplings with apps, and promotions."""

from __future__ import annotations

from typing import Any

from flask import request

from api import ranges, serialize, shapes
from api.fields import Fields, Items, Object, Reference, Text
from api.resources.apps import render
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import apps, listings, pipelines
from state.models import Promotion

resource = Resource("pipelines", reads="read", writes="write")

ORDER = ranges.BY_NAME
COUPLINGS = ranges.BY_AGE
MOST_APPS = 1000
_NAME = Text(needed=True, most=100)
_STAGE = Text(needed=True, most=60)
_OWNER = Fields(id=Text(), type=Text())
_PIPELINE = Object(fields=Fields(id=Text(needed=True)), short=True, needed=True)
_NEW_OWNER = Object(fields=Fields(id=Text(needed=True), type=Text()), short=True, needed=True)
_OF_APP = Object(fields=Fields(app=Reference(needed=True)), needed=True)
_PROMOTION = Fields(pipeline=_PIPELINE, source=_OF_APP, targets=Items(of=_OF_APP, most=pipelines.MOST_TARGETS, needed=True))
_AMONG = Fields(**{"in": Object(fields=Fields(id=Items(of=Text(), most=MOST_APPS, needed=True)), needed=True)})


@resource.on("GET", "/pipelines", needs="account", gives=shapes.many(shapes.PIPELINE))
def index(call: Call) -> Reply:
    """The pipelines that the caller owns or has an app in; ?eq[name]=NAME picks by name."""
    rows = pipelines.visible(call.session, call.account, request.args.get("eq[name]"))
    return call.short_listing(rows, ORDER, serialize.pipeline, as_it_is=True)


@resource.on(
    "POST", "/pipelines", needs="account",
    takes=Fields(name=_NAME, owner=Object(fields=_OWNER)), gives=shapes.PIPELINE,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Make a pipeline of the caller's."""
    owner = call.body.inner("owner")
    if owner and owner.text("id") not in (None, call.account.id):
        raise InvalidParams("Field owner must be you: {\"id\": YOUR ID, \"type\": \"user\"}.")
    return Reply(serialize.pipeline(pipelines.create(call.session, call.account, call.body.need("name"))), 201)


@resource.on("GET", "/pipelines/<pipeline>", needs="pipeline-view", gives=shapes.PIPELINE)
def show(call: Call) -> Any:
    """One pipeline, by id or name."""
    return serialize.pipeline(call.pipeline)


@resource.on("PATCH", "/pipelines/<pipeline>", needs="pipeline-manage", takes=Fields(name=_NAME), gives=shapes.PIPELINE)
def update(call: Call) -> Any:
    """Change the pipeline's name."""
    pipelines.rename(call.session, call.account, call.pipeline, call.body.need("name"))
    return serialize.pipeline(call.pipeline)


@resource.on("DELETE", "/pipelines/<pipeline>", needs="pipeline-manage", gives=shapes.PIPELINE)
def destroy(call: Call) -> Any:
    """Remove the pipeline; its apps stay."""
    shown = serialize.pipeline(call.pipeline)
    pipelines.destroy(call.session, call.account, call.pipeline)
    return shown


@resource.on("GET", "/pipelines/<pipeline>/pipeline-stack", needs="pipeline-view", gives=shapes.PIPELINE_STACK)
def stack(call: Call) -> Any:
    """The stack of the pipeline's newest app."""
    rows = pipelines.couplings(call.session, call.pipeline)
    if not rows:
        raise NotFound("That pipeline has no apps yet.")
    return {"stack": serialize.named("stack", rows[-1].app.stack)}


@resource.on(
    "POST", "/pipeline-transfers", needs="account",
    takes=Fields(pipeline=_PIPELINE, new_owner=_NEW_OWNER), gives=shapes.PIPELINE_TRANSFER,
)  # fmt: skip
def transfer(call: Call) -> Reply:
    """Give a pipeline of the caller's to another account."""
    pipeline = pipelines.find(call.session, call.account, call.body.inside("pipeline").need("id"), manage=True)
    recipient = call.body.inside("new_owner")
    if recipient.text("type") not in (None, "user"):
        raise InvalidParams("Field new_owner.type must be user: this Davit has no teams.")
    previous, new = pipelines.transfer(call.session, call.account, pipeline, recipient.need("id"))
    owners = {name: {"id": id, "type": "user"} for name, id in (("previous_owner", previous), ("new_owner", new))}
    return Reply({"pipeline": {"id": pipeline.id}, **owners}, 201)


# Couplings


@resource.on(
    "GET", "/pipelines/<pipeline>/pipeline-couplings", needs="pipeline-view",
    gives=shapes.many(shapes.PIPELINE_COUPLING),
)  # fmt: skip
def couplings(call: Call) -> Reply:
    """The pipeline's apps, as far as the caller may see them, and their stages."""
    rows = pipelines.visible_couplings(call.session, call.account, [call.pipeline])
    return call.short_listing(rows, COUPLINGS, serialize.pipeline_coupling)


@resource.on("GET", "/pipeline-couplings", needs="account", gives=shapes.many(shapes.PIPELINE_COUPLING))
def all_couplings(call: Call) -> Reply:
    """The couplings of every pipeline that the caller may see."""
    return call.short_listing(pipelines.visible_couplings(call.session, call.account), COUPLINGS, serialize.pipeline_coupling)


@resource.on("GET", "/users/~/pipeline-couplings", needs="account", gives=shapes.many(shapes.PIPELINE_COUPLING))
def own_couplings(call: Call) -> Reply:
    """The couplings of every pipeline that the caller may see."""
    return call.short_listing(pipelines.visible_couplings(call.session, call.account), COUPLINGS, serialize.pipeline_coupling)


@resource.on("GET", "/apps/<app>/pipeline-couplings", needs="view", gives=shapes.PIPELINE_COUPLING)
def coupling_of_app(call: Call) -> Any:
    """The app's pipeline and stage."""
    return serialize.pipeline_coupling(pipelines.coupling_of(call.session, call.app))


@resource.on("GET", "/pipeline-couplings/<coupling>", needs="account", gives=shapes.PIPELINE_COUPLING)
def coupling(call: Call, coupling: str) -> Any:
    """One coupling."""
    return serialize.pipeline_coupling(pipelines.find_coupling(call.session, call.account, coupling))


@resource.on(
    "POST", "/pipeline-couplings", needs="account",
    takes=Fields(pipeline=Reference(needed=True), app=Reference(needed=True), stage=_STAGE), gives=shapes.PIPELINE_COUPLING,
)  # fmt: skip
def couple(call: Call) -> Reply:
    """Add an app to a pipeline: app, pipeline, stage."""
    pipeline = pipelines.find(call.session, call.account, call.body.need("pipeline"))
    found = apps.find(call.session, call.account, call.body.need("app"), "operate")
    row = pipelines.couple(call.session, call.account, pipeline, found, call.body.need("stage"))
    return Reply(serialize.pipeline_coupling(row), 201)


@resource.on(
    "PATCH", "/pipeline-couplings/<coupling>", needs="account",
    takes=Fields(stage=_STAGE), gives=shapes.PIPELINE_COUPLING,
)  # fmt: skip
def move(call: Call, coupling: str) -> Any:
    """Put an app into another stage."""
    row = pipelines.find_coupling(call.session, call.account, coupling, change=True)
    pipelines.move(call.session, call.account, row, call.body.need("stage"))
    return serialize.pipeline_coupling(row)


@resource.on("DELETE", "/pipeline-couplings/<coupling>", needs="account", gives=shapes.PIPELINE_COUPLING)
def uncouple(call: Call, coupling: str) -> Any:
    """Take an app out of its pipeline."""
    row = pipelines.find_coupling(call.session, call.account, coupling, change=True)
    shown = serialize.pipeline_coupling(row)
    pipelines.uncouple(call.session, call.account, row)
    return shown


# Promotions


@resource.on(
    "POST", "/pipeline-promotions", needs="account", scope="write-protected",
    takes=_PROMOTION, gives=shapes.PIPELINE_PROMOTION,
)  # fmt: skip
def promote(call: Call) -> Reply:
    """Release an app's slug on others of its pipeline, without building it again: pipeline, source.app, targets[].app."""
    pipeline = pipelines.find(call.session, call.account, call.body.inside("pipeline").need("id"))
    targets = [target.need("app") for target in call.body.items("targets") or []]
    row = pipelines.promote(call.session, call.account, pipeline, call.body.inside("source").need("app"), targets)
    return Reply(_promotion(call, row), 201)


@resource.on("GET", "/pipeline-promotions/<promotion>", needs="account", gives=shapes.PIPELINE_PROMOTION)
def promotion(call: Call, promotion: str) -> Any:
    """One promotion: pending until every target's release has come up or failed."""
    return _promotion(call, pipelines.find_promotion(call.session, call.account, promotion))


def _promotion(call: Call, row: Promotion) -> Any:
    pending = any(pipelines.standing(target)[0] == "pending" for target in pipelines.targets_of(call.session, row))
    return serialize.promotion(row, "pending" if pending else "completed")


@resource.on(
    "GET", "/pipeline-promotions/<promotion>/promotion-targets", needs="account",
    gives=shapes.many(shapes.PIPELINE_PROMOTION_TARGET),
)  # fmt: skip
def promotion_targets(call: Call, promotion: str) -> Reply:
    """How far a promotion is, target by target, as far as the caller may see their apps."""
    row = pipelines.find_promotion(call.session, call.account, promotion)
    rows = pipelines.targets_of(call.session, row, call.account)
    order = ranges.Order({"id": lambda row: row.id}, {})
    return call.short_listing(rows, order, lambda target: serialize.promotion_target(target, *pipelines.standing(target)))


@resource.on(
    "POST", "/filters/apps", needs="account", writes=False, scope="read",
    takes=_AMONG, gives=shapes.many(shapes.APP),
)  # fmt: skip
def filter_apps(call: Call) -> Any:
    """Of the apps with these ids (in.id), those that the caller may see."""
    ids = call.body.inside("in").items("id") or []
    return [render(app) for app in listings.apps_among(call.session, call.account, ids)]
