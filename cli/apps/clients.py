"""clients: programs that people may allow to act for them (OAuth)."""

from __future__ import annotations

import shlex
from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output
from cli.output import action, command, json_option


def _path(id: str) -> str:
    return f"/oauth/clients/{quote(id, safe='')}"


_shell = click.option("-s", "--shell", is_flag=True, help="output in shell key/value format")


def _show(row: Any, as_json: bool, shell: bool) -> None:
    if as_json:
        return output.print_json(row)
    if shell:
        for name, value in (("ID", row["id"]), ("SECRET", row["secret"])):
            click.echo(f"HEROKU_OAUTH_{name}={shlex.quote(value or '')}")
        return
    output.header(row["name"])
    output.pairs([("ID", row["id"]), ("Redirect URI", row["redirect_uri"]), ("Secret", row["secret"] or "(shown once)")])


@command("clients")
@json_option
def clients(as_json: bool) -> None:
    """List your OAuth clients."""
    rows = hosts.connect().get("/oauth/clients")
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo("No OAuth clients.")
    output.table([(row["name"], row["id"], row["redirect_uri"]) for row in rows], ("Name", "ID", "Redirect URI"))


@command("clients:create")
@click.argument("name")
@click.argument("redirect_uri")
@_shell
@json_option
def clients_create(name: str, redirect_uri: str, shell: bool, as_json: bool) -> None:
    """Make an OAuth client; its secret is shown only now."""
    with action(f"Creating {name}"):
        row = hosts.connect().post("/oauth/clients", {"name": name, "redirect_uri": redirect_uri})
    _show(row, as_json, shell)


@command("clients:info")
@click.argument("id")
@_shell
@json_option
def clients_info(id: str, shell: bool, as_json: bool) -> None:
    """Show an OAuth client."""
    _show(hosts.connect().get(_path(id)), as_json, shell)


@command("clients:update")
@click.argument("id")
@click.option("-n", "--name", help="what it is called")
@click.option("--url", help="where people are sent back to")
def clients_update(id: str, name: str | None, url: str | None) -> None:
    """Change an OAuth client."""
    given = {"name": name, "redirect_uri": url}
    with action(f"Updating {id}"):
        hosts.connect().patch(_path(id), {field: value for field, value in given.items() if value is not None})


@command("clients:rotate")
@click.argument("id")
@_shell
@json_option
def clients_rotate(id: str, shell: bool, as_json: bool) -> None:
    """Change an OAuth client's secret for a new one, which is shown only now."""
    with action(f"Updating {id}"):
        row = hosts.connect().post(f"{_path(id)}/actions/rotate-credentials")
    _show(row, as_json, shell)


@command("clients:destroy")
@click.argument("id")
def clients_destroy(id: str) -> None:
    """Take an OAuth client away; what it was allowed ends."""
    with action(f"Destroying {id}"):
        hosts.connect().delete(_path(id))
