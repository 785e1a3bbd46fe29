"""regions, stacks."""

from __future__ import annotations

import click

from cli import hosts, output
from cli.output import command, json_option


@command("regions")
@json_option
def regions(as_json: bool) -> None:
    """List the regions."""
    rows = hosts.connect().get("/regions")
    if as_json:
        return output.print_json(rows)
    output.table([(row["name"], row["description"]) for row in rows], ("ID", "Location"))


@command("stacks")
@json_option
def stacks(as_json: bool) -> None:
    """List the stacks that apps can be built on."""
    rows = hosts.connect().get("/stacks")
    if as_json:
        return output.print_json(rows)
    for row in rows:
        click.echo(f"{row['name']}{' (default)' if row['default'] else ''}")
