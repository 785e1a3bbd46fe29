"""Pipelines: apps of one project in stages, and promoting one's code to the next."""

from __future__ import annotations

from flask import Response

from dashboard import watching
from dashboard.routing import Pages, Visit
from foundation.errors import InvalidParams
from state import apps, glance, pipelines
from state.models import Pipeline

pages = Pages("pipelines")

USUAL = ("development", "staging", "production")
"""Stages that are shown even when they are empty."""


def _pipeline(visit: Visit) -> Pipeline:
    assert visit.pipeline is not None
    return visit.pipeline


@pages.on("GET", "/pipelines/new", needs="account")
def new(visit: Visit) -> Response:
    """Ask for a name."""
    return visit.page("new_pipeline.html")


@pages.on("POST", "/pipelines/new", does="POST /pipelines", again=new)
def create(visit: Visit) -> Response:
    """Make a pipeline."""
    row = pipelines.create(visit.session, visit.account, visit.text("name", 100))
    return visit.done(f"/pipelines/{row.id}", f"The pipeline {row.name} is there. Now add apps to it.")


@pages.on("GET", "/pipelines/<pipeline>", does="GET /pipelines/<pipeline>")
def show(visit: Visit) -> Response:
    """The apps by stage."""
    row = _pipeline(visit)
    whole = pipelines.couplings(visit.session, row)
    allowed = apps.permissions_on(visit.session, visit.account, [one.app for one in whole])
    coupled = [one for one in whole if allowed[one.app_id]]
    seen = {one.app.id: one for one in glance.of(visit.session, [one.app for one in coupled])}
    stages = [
        (stage, [(one, seen[one.app_id]) for one in coupled if one.stage == stage])
        for stage in pipelines.STAGES
        if stage in USUAL or any(one.stage == stage for one in coupled)
    ]
    owns = row.owner_id == visit.account.id or visit.account.is_admin
    may_add = pipelines.may_add(visit.account, row, allowed.values())
    return visit.page(
        "pipeline.html", seen=watching.every(visit.session, [visit.account.id])[visit.account.id],
        pipeline=row, stages=stages, names=pipelines.STAGES, owns=owns, may_add=may_add,
        free=_free(visit) if may_add else [],
        deployable={id for id, words in allowed.items() if "deploy" in words},
        movable={one.id for one in coupled if pipelines.may_change(visit.account, one, allowed[one.app_id])},
    )  # fmt: skip


def _free(visit: Visit) -> list[str]:
    """Names of apps that the visitor may put into a pipeline and that are in none."""
    free, _ = glance.search(visit.session, visit.account, everything=True, alone=True, most=1000)
    allowed = apps.permissions_on(visit.session, visit.account, free)
    return [app.name for app in free if "operate" in allowed[app.id]][:200]


@pages.on("POST", "/pipelines/<pipeline>/apps", needs="account", again=show)
def add(visit: Visit, pipeline: str) -> Response:
    """Add an app; takes the permission operate on it."""
    row = pipelines.find(visit.session, visit.account, pipeline)
    app = apps.find(visit.session, visit.account, visit.text("app", 60), "operate")
    pipelines.couple(visit.session, visit.account, row, app, visit.text("stage", 60))
    return visit.done(f"/pipelines/{row.id}", f"{app.name} is in the pipeline.")


@pages.on("POST", "/pipelines/<pipeline>/move", needs="account", again=show)
def move(visit: Visit, pipeline: str) -> Response:
    """Put an app into another stage, or take it out."""
    row = pipelines.find_coupling(visit.session, visit.account, visit.text("coupling", 60), change=True)
    if visit.text("stage", 60) == "out":
        pipelines.uncouple(visit.session, visit.account, row)
        return visit.done(f"/pipelines/{pipeline}", f"{row.app.name} is out of the pipeline.")
    pipelines.move(visit.session, visit.account, row, visit.text("stage", 60))
    return visit.done(f"/pipelines/{pipeline}", f"{row.app.name} is in {row.stage}.")


@pages.on("POST", "/pipelines/<pipeline>/promote", does="POST /pipeline-promotions", again=show)
def promote(visit: Visit, pipeline: str) -> Response:
    """Release an app's code on the apps of the next stage."""
    row = pipelines.find(visit.session, visit.account, pipeline)
    targets = [text.strip() for text in visit.form.getlist("target") if text.strip()]
    if not targets:
        raise InvalidParams("There is no app in a later stage to promote to; add one first.")
    pipelines.promote(visit.session, visit.account, row, visit.text("source", 60), targets)
    return visit.done(f"/pipelines/{row.id}", "Promoted: the releases are on their way.")


@pages.on("POST", "/pipelines/<pipeline>/name", does="PATCH /pipelines/<pipeline>", again=show)
def rename(visit: Visit) -> Response:
    """Give it another name."""
    row = _pipeline(visit)
    pipelines.rename(visit.session, visit.account, row, visit.text("name", 100))
    return visit.done(f"/pipelines/{row.id}", f"It is called {row.name} now.")


@pages.on("POST", "/pipelines/<pipeline>/transfer", needs="pipeline-manage", again=show)
def transfer(visit: Visit) -> Response:
    """Give it to somebody else; its apps stay whose they are."""
    row = _pipeline(visit)
    recipient = visit.text("recipient", 254)
    pipelines.transfer(visit.session, visit.account, row, recipient)
    return visit.done("/", f"The pipeline {row.name} is {recipient}'s now; its apps stay whose they are.")


@pages.on("POST", "/pipelines/<pipeline>/destroy", does="DELETE /pipelines/<pipeline>", again=show)
def destroy(visit: Visit) -> Response:
    """Remove the pipeline; its apps stay."""
    row = _pipeline(visit)
    pipelines.destroy(visit.session, visit.account, row)
    return visit.done("/", f"The pipeline {row.name} is removed; its apps stay.")
