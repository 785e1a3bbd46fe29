"""pipelines: apps in stages, and the promotion of what one runs to the next."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output
from cli.client import Client
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError

STAGES = ("review", "development", "staging", "production")
_stage = click.option("-s", "--stage", type=click.Choice(STAGES), required=True)


def _find(client: Client, name: str) -> Any:
    return client.get(f"/pipelines/{quote(name, safe='')}")


def _coupling(app: Target) -> Any:
    return app.get("/pipeline-couplings")


@command("pipelines")
@json_option
def pipelines(as_json: bool) -> None:
    """List your pipelines."""
    rows = hosts.connect().get("/pipelines")
    if as_json:
        return output.print_json(rows)
    output.header("My Pipelines")
    for row in rows:
        click.echo(output.plain(row["name"]))


@command("pipelines:create")
@on_app
@click.argument("name", required=False)
@_stage
def pipelines_create(app: Target, name: str | None, stage: str) -> None:
    """Make a pipeline with an app in one of its stages."""
    with action(f"Creating {name or app.app} pipeline"):
        made = app.client.post("/pipelines", {"name": name or app.app})
    with action(f"Adding {hexed(app.app)} to {made['name']} pipeline as {stage}"):
        app.client.post("/pipeline-couplings", {"app": app.get()["id"], "pipeline": made["id"], "stage": stage})


@command("pipelines:add")
@on_app
@click.argument("pipeline")
@_stage
def pipelines_add(app: Target, pipeline: str, stage: str) -> None:
    """Add an app to a pipeline."""
    found = _find(app.client, pipeline)
    with action(f"Adding {hexed(app.app)} to {found['name']} pipeline as {stage}"):
        app.client.post("/pipeline-couplings", {"app": app.get()["id"], "pipeline": found["id"], "stage": stage})


@command("pipelines:update")
@on_app
@_stage
def pipelines_update(app: Target, stage: str) -> None:
    """Put an app into another stage of its pipeline."""
    with action(f"Changing {hexed(app.app)} to {stage}"):
        app.client.patch(f"/pipeline-couplings/{_coupling(app)['id']}", {"stage": stage})


@command("pipelines:remove")
@on_app
def pipelines_remove(app: Target) -> None:
    """Take an app out of its pipeline."""
    with action(f"Removing {hexed(app.app)} from its pipeline"):
        app.client.delete(f"/pipeline-couplings/{_coupling(app)['id']}")


@command("pipelines:info")
@click.argument("pipeline")
@json_option
def pipelines_info(pipeline: str, as_json: bool) -> None:
    """Show a pipeline's apps and their stages."""
    client = hosts.connect()
    found = _find(client, pipeline)
    couplings = client.get(f"/pipelines/{found['id']}/pipeline-couplings")
    apps = {row["id"]: row["name"] for row in client.post("/filters/apps", {"in": {"id": [c["app"]["id"] for c in couplings]}})}
    if as_json:
        return output.print_json({"pipeline": found, "apps": couplings})
    output.header(found["name"])
    ordered = sorted(couplings, key=lambda one: STAGES.index(one["stage"]) if one["stage"] in STAGES else 0)
    output.table([(hexed(apps.get(c["app"]["id"], c["app"]["id"])), c["stage"]) for c in ordered], ("App Name", "Stage"))


@command("pipelines:rename")
@click.argument("pipeline")
@click.argument("name")
def pipelines_rename(pipeline: str, name: str) -> None:
    """Give a pipeline another name."""
    client = hosts.connect()
    with action(f"Renaming {pipeline} pipeline to {name}"):
        client.patch(f"/pipelines/{_find(client, pipeline)['id']}", {"name": name})


@command("pipelines:destroy")
@click.argument("pipeline")
def pipelines_destroy(pipeline: str) -> None:
    """Remove a pipeline; its apps stay."""
    client = hosts.connect()
    with action(f"Destroying {pipeline} pipeline"):
        client.delete(f"/pipelines/{_find(client, pipeline)['id']}")


@command("pipelines:transfer")
@click.argument("words", nargs=-1, metavar="[PIPELINE] RECIPIENT")
@click.option("-p", "--pipeline", help="the pipeline, where it is not the first argument")
@click.option("-c", "--confirm", metavar="PIPELINE", help="as heroku's: nobody is asked here")
def pipelines_transfer(words: tuple[str, ...], pipeline: str | None, confirm: str | None) -> None:
    """Give a pipeline to another account."""
    if len(words) != (1 if pipeline else 2):
        raise DavitError("Name the pipeline and who gets it: davit pipelines:transfer PIPELINE RECIPIENT.")
    pipeline, recipient = pipeline or words[0], words[-1]
    client = hosts.connect()
    found = _find(client, pipeline)
    sent = {"pipeline": {"id": found["id"]}, "new_owner": {"id": recipient, "type": "user"}}
    with action(f"Transferring {found['name']} pipeline to {recipient}"):
        client.post("/pipeline-transfers", sent)


@command("pipelines:promote")
@on_app
@click.option("-t", "--to", help="comma-separated apps; all of the next stage by default")
def pipelines_promote(app: Target, to: str | None) -> None:
    """Release what an app runs on the apps of the next stage, without building it again."""
    own = _coupling(app)
    couplings = app.client.get(f"/pipelines/{own['pipeline']['id']}/pipeline-couplings")
    apps = {
        row["id"]: row["name"] for row in app.client.post("/filters/apps", {"in": {"id": [c["app"]["id"] for c in couplings]}})
    }
    following = STAGES[STAGES.index(own["stage"]) + 1 :]
    wanted = set(to.split(",")) if to else None
    targets = [
        c["app"]["id"]
        for c in couplings
        if (apps.get(c["app"]["id"]) in wanted if wanted is not None else following and c["stage"] == following[0])
    ]
    if not targets:
        raise DavitError(f"There is no app to promote {app.app} to." if to else f"No app is in the stage after {own['stage']}.")
    sent = {
        "pipeline": {"id": own["pipeline"]["id"]},
        "source": {"app": {"id": own["app"]["id"]}},
        "targets": [{"app": {"id": id}} for id in targets],
    }
    with action(f"Promoting {hexed(app.app)} to {', '.join(apps[id] for id in targets)}"):
        made = app.client.post("/pipeline-promotions", sent)
        rows = app.client.get(f"/pipeline-promotions/{made['id']}/promotion-targets")
        while any(row["status"] == "pending" for row in rows):
            time.sleep(1)
            rows = app.client.get(f"/pipeline-promotions/{made['id']}/promotion-targets")
    output.table([(hexed(apps[row["app"]["id"]]), row["status"], row["error_message"] or "") for row in rows])
    if any(row["status"] != "succeeded" for row in rows):
        raise DavitError("Not every app runs what was promoted.")
