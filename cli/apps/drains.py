"""drains, drains:add, drains:remove."""

from __future__ import annotations

from urllib.parse import quote

import click

from cli import output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app


@command("drains")
@on_app
@json_option
def drains(app: Target, as_json: bool) -> None:
    """List where an app's log is sent."""
    rows = app.get("/log-drains")
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo(f"There are no drains on {hexed(app.app)}.")
    output.header("Drains")
    output.table([(row["url"], row["token"]) for row in rows])


@command("drains:add")
@on_app
@click.argument("url")
def drains_add(app: Target, url: str) -> None:
    """Send an app's log to an https, syslog or syslog+tls URL."""
    row = app.client.post(f"{app.path}/log-drains", {"url": url})
    click.echo(f"Successfully added drain {output.plain(row['url'])}")


@command("drains:remove")
@on_app
@click.argument("drain")
def drains_remove(app: Target, drain: str) -> None:
    """Send an app's log to a drain no more; by URL, token or id."""
    with action(f"Removing the drain from {hexed(app.app)}"):
        app.client.delete(f"{app.path}/log-drains/{quote(drain, safe='')}")
