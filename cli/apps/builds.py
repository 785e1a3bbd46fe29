"""builds, builds:create, builds:output, builds:cancel, builds:info."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from cli import output
from cli.apps.streams import copy
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


def _newest(app: Target, count: int) -> list[Any]:
    rows: list[Any] = app.get("/builds", headers={"Range": f"created_at ..; max={count}, order=desc"})
    return rows


def _one(app: Target, build: str | None) -> Any:
    if build:
        return app.get(f"/builds/{quote(build, safe='')}")
    rows = _newest(app, 1)
    if not rows:
        raise DavitError(f"{app.app} has no builds yet: push some code first.")
    return rows[0]


@command("builds")
@on_app
@click.option("-n", "--num", default=15, show_default=True, type=click.IntRange(1, 1000), help="number of builds to show")
@json_option
def builds(app: Target, num: int, as_json: bool) -> None:
    """List an app's builds."""
    rows = _newest(app, num)
    if as_json:
        return output.print_json(rows)
    output.header(f"{app.app} Builds")
    output.table(
        [
            (
                row["id"],
                row["status"],
                (row["source_blob"]["version"] or "")[:10],
                row["user"]["email"],
                output.ago(row["created_at"]),
            )
            for row in rows
        ]
    )


@command("builds:create")
@on_app
def create(app: Target) -> None:
    """Build the newest deployed commit again, and release it."""
    build = app.client.post(f"{app.path}/builds")
    copy(app.client, build["output_stream_url"])
    _verdict(app, build["id"])


def _verdict(app: Target, build_id: str) -> None:
    row = app.get(f"/builds/{build_id}")
    if row["status"] == "failed":
        raise DavitError(row["failure"] or "Build failed.")


@command("builds:output")
@on_app
@click.argument("build", required=False)
def show_output(app: Target, build: str | None) -> None:
    """Show what a build printed; follows it while it runs."""
    copy(app.client, _one(app, build)["output_stream_url"])


@command("builds:info")
@on_app
@click.argument("build", required=False)
@json_option
def info(app: Target, build: str | None, as_json: bool) -> None:
    """Show a build."""
    row = _one(app, build)
    if as_json:
        return output.print_json(row)
    output.header(f"Build {row['id']}")
    output.pairs(
        [
            ("By", row["user"]["email"]),
            ("Commit", row["source_blob"]["version"]),
            ("Failure", row["failure"]),
            ("Phase", row["phase"]),
            ("Stack", row["stack"]),
            ("Status", row["status"]),
            ("When", output.ago(row["created_at"])),
        ]
    )


@command("builds:cancel")
@on_app
@click.argument("build", required=False)
def cancel(app: Target, build: str | None) -> None:
    """Cancel a build: the one named, or the newest that is under way."""
    row = app.get(f"/builds/{quote(build, safe='')}") if build else _under_way(app)
    with action(f"Stopping build {row['id']} on {hexed(app.app)}"):
        app.client.delete(f"{app.path}/builds/{row['id']}")


@command("builds:cache:purge")
@on_app
def purge_cache(app: Target) -> None:
    """Throw the build cache away, so that the next build fetches everything anew."""
    with action(f"Purging the build cache of {hexed(app.app)}"):
        app.client.delete(f"{app.path}/build-cache")


def _under_way(app: Target) -> Any:
    for row in _newest(app, 50):
        if row["status"] == "pending":
            return row
    raise DavitError(f"No build of {app.app} is under way.")
