"""activity, ps:crashes: what happened to an app of late."""

from __future__ import annotations

from typing import Any

import click

from cli import output
from cli.output import command, hexed, json_option
from cli.target import Target, on_app


@command("activity")
@on_app
@click.option("-n", "--num", type=click.IntRange(1, 200), default=20, show_default=True, help="how many, the newest first")
@json_option
def activity(app: Target, num: int, as_json: bool) -> None:
    """Show what people did to an app, and what became of it."""
    rows = app.get("/activity")[:num]
    if as_json:
        return output.print_json(rows)
    told = [(output.when(row["created_at"]), row["actor"], _what(row), row["status"] or "", row["reason"] or "") for row in rows]
    output.table(told, ("At", "Who", "What", "Status", "Why"))


def _what(row: Any) -> str:
    return f"{row['description']} ({row['times']} times)" if row["times"] > 1 else str(row["description"])


@command("ps:crashes")
@on_app
@json_option
def crashes(app: Target, as_json: bool) -> None:
    """List the crashes of an app's dynos, newest first."""
    rows = app.get("/crashes")
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo(f"No dyno of {hexed(app.app)} has crashed")
    told = [(output.when(row["created_at"]), row["description"], row["reason"] or "") for row in rows]
    output.table(told, ("At", "What", "Why"))
