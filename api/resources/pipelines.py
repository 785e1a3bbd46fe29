"""Pipelines, their couplings with apps, and promotions."""

from __future__ import annotations

from typing import Any

from flask import request

from api import ranges, serialize
from api.body import Body
from api.resources.apps import render
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import apps, listings, pipelines
from state.models import Promotion

resource = Resource("pipelines", reads="read", writes="write")

ORDER = ranges.Order({"name": lambda row: (row.name, row.id), "id": lambda row: row.id}, {})
COUPLINGS = ranges.Order({"created_at": lambda row: (row.created_at, row.id), "id": lambda row: row.id}, {})
MOST_APPS = 1000


@resource.on("GET", "/pipelines", needs="account")
def index(call: Call) -> Any:
    """The pipelines that the caller owns or has an app in; ?eq[name]=NAME picks by name."""
    rows = pipelines.visible(call.session, call.account, request.args.get("eq[name]"))
    if "Range" in request.headers:
        return call.short_listing(rows, ranges.Order({"id": lambda row: row.id}, {}), serialize.pipeline)
    return [serialize.pipeline(row) for row in rows]


@resource.on("POST", "/pipelines", needs="account")
def create(call: Call) -> Reply:
    """Make a pipeline of the caller's."""
    owner = call.body.values.get("owner")
    if owner is not None and (not isinstance(owner, dict) or owner.get("id") not in (None, call.account.id)):
        raise InvalidParams("Field owner must be you: {\"id\": YOUR ID, \"type\": \"user\"}.")
    return Reply(serialize.pipeline(pipelines.create(call.session, call.account, call.body.need("name", most=100))), 201)


@resource.on("GET", "/pipelines/<pipeline>", needs="pipeline-view")
def show(call: Call) -> Any:
    """One pipeline, by id or name."""
    return serialize.pipeline(call.pipeline)


@resource.on("PATCH", "/pipelines/<pipeline>", needs="pipeline-manage")
def update(call: Call) -> Any:
    """Change the pipeline's name."""
    pipelines.rename(call.session, call.account, call.pipeline, call.body.need("name", most=100))
    return serialize.pipeline(call.pipeline)


@resource.on("DELETE", "/pipelines/<pipeline>", needs="pipeline-manage")
def destroy(call: Call) -> Any:
    """Remove the pipeline; its apps stay."""
    shown = serialize.pipeline(call.pipeline)
    pipelines.destroy(call.session, call.account, call.pipeline)
    return shown


@resource.on("GET", "/pipelines/<pipeline>/pipeline-stack", needs="pipeline-view")
def stack(call: Call) -> Any:
    """The stack of the pipeline's newest app."""
    rows = pipelines.couplings(call.session, call.pipeline)
    if not rows:
        raise NotFound("That pipeline has no apps yet.")
    return {"stack": serialize.named("stack", rows[-1].app.stack)}


@resource.on("POST", "/pipeline-transfers", needs="account")
def transfer(call: Call) -> Reply:
    """Give a pipeline of the caller's to another account."""
    pipeline = pipelines.find(call.session, call.account, _inner(call, "pipeline").need("id"), manage=True)
    recipient = _inner(call, "new_owner")
    if recipient.text("type") not in (None, "user"):
        raise InvalidParams("Field new_owner.type must be user: this Davit has no teams.")
    previous, new = pipelines.transfer(call.session, call.account, pipeline, recipient.need("id"))
    owners = {name: {"id": id, "type": "user"} for name, id in (("previous_owner", previous), ("new_owner", new))}
    return Reply({"pipeline": {"id": pipeline.id}, **owners}, 201)


def _inner(call: Call, name: str) -> Body:
    value = call.body.values.get(name)
    if isinstance(value, str):
        value = {"id": value}
    if not isinstance(value, dict):
        raise InvalidParams(f"Field {name} must be an object with an id.")
    return Body(value, f"{name}.")


# Couplings


@resource.on("GET", "/pipelines/<pipeline>/pipeline-couplings", needs="pipeline-view")
def couplings(call: Call) -> Reply:
    """The pipeline's apps, as far as the caller may see them, and their stages."""
    rows = pipelines.visible_couplings(call.session, call.account, call.pipeline)
    return call.short_listing(rows, COUPLINGS, serialize.pipeline_coupling)


@resource.on("GET", "/pipeline-couplings", needs="account")
def all_couplings(call: Call) -> Reply:
    """The couplings of every pipeline that the caller may see."""
    return call.short_listing(pipelines.visible_couplings(call.session, call.account), COUPLINGS, serialize.pipeline_coupling)


@resource.on("GET", "/users/~/pipeline-couplings", needs="account")
def own_couplings(call: Call) -> Reply:
    """The couplings of every pipeline that the caller may see."""
    return call.short_listing(pipelines.visible_couplings(call.session, call.account), COUPLINGS, serialize.pipeline_coupling)


@resource.on("GET", "/apps/<app>/pipeline-couplings", needs="view")
def coupling_of_app(call: Call) -> Any:
    """The app's pipeline and stage."""
    return serialize.pipeline_coupling(pipelines.coupling_of(call.session, call.app))


@resource.on("GET", "/pipeline-couplings/<coupling>", needs="account")
def coupling(call: Call, coupling: str) -> Any:
    """One coupling."""
    return serialize.pipeline_coupling(pipelines.find_coupling(call.session, call.account, coupling))


@resource.on("POST", "/pipeline-couplings", needs="account")
def couple(call: Call) -> Reply:
    """Add an app to a pipeline: app, pipeline, stage."""
    identity, app = call.body.reference("pipeline"), call.body.reference("app")
    if not identity or not app:
        raise InvalidParams("Field pipeline, field app and field stage are required.")
    stage = call.body.need("stage", most=60)
    pipeline = pipelines.find(call.session, call.account, identity)
    found = apps.find(call.session, call.account, app, "operate")
    return Reply(serialize.pipeline_coupling(pipelines.couple(call.session, call.account, pipeline, found, stage)), 201)


@resource.on("PATCH", "/pipeline-couplings/<coupling>", needs="account")
def move(call: Call, coupling: str) -> Any:
    """Put an app into another stage."""
    row = pipelines.find_coupling(call.session, call.account, coupling, change=True)
    pipelines.move(call.session, call.account, row, call.body.need("stage", most=60))
    return serialize.pipeline_coupling(row)


@resource.on("DELETE", "/pipeline-couplings/<coupling>", needs="account")
def uncouple(call: Call, coupling: str) -> Any:
    """Take an app out of its pipeline."""
    row = pipelines.find_coupling(call.session, call.account, coupling, change=True)
    shown = serialize.pipeline_coupling(row)
    pipelines.uncouple(call.session, call.account, row)
    return shown


# Promotions


@resource.on("POST", "/pipeline-promotions", needs="account", scope="write-protected")
def promote(call: Call) -> Reply:
    """Release an app's slug on others of its pipeline, without building it again: pipeline, source.app, targets[].app."""
    pipeline = pipelines.find(call.session, call.account, _inner(call, "pipeline").need("id"))
    source = _inner(call, "source").reference("app")
    targets = [target.reference("app") for target in call.body.objects("targets", most=pipelines.MOST_TARGETS)]
    if source is None or None in targets:
        raise InvalidParams("Field source.app and field app of each of targets are required.")
    row = pipelines.promote(call.session, call.account, pipeline, source, [target for target in targets if target])
    return Reply(_promotion(call, row), 201)


@resource.on("GET", "/pipeline-promotions/<promotion>", needs="account")
def promotion(call: Call, promotion: str) -> Any:
    """One promotion: pending until every target's release has come up or failed."""
    return _promotion(call, pipelines.find_promotion(call.session, call.account, promotion))


def _promotion(call: Call, row: Promotion) -> Any:
    pending = any(pipelines.standing(target)[0] == "pending" for target in pipelines.targets_of(call.session, row))
    return serialize.promotion(row, "pending" if pending else "completed")


@resource.on("GET", "/pipeline-promotions/<promotion>/promotion-targets", needs="account")
def promotion_targets(call: Call, promotion: str) -> Any:
    """How far a promotion is, target by target."""
    row = pipelines.find_promotion(call.session, call.account, promotion)
    rows = pipelines.targets_of(call.session, row)
    return [serialize.promotion_target(target, *pipelines.standing(target)) for target in rows]


@resource.on("POST", "/filters/apps", needs="account", writes=False, scope="read")
def filter_apps(call: Call) -> Any:
    """Of the apps with these ids (in.id), those that the caller may see."""
    wanted = _inner(call, "in").items("id", most=MOST_APPS)
    ids = [id for id in wanted if isinstance(id, str) and "\x00" not in id]
    return [render(app) for app in listings.apps_among(call.session, call.account, ids)]
