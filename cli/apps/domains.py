"""domains, domains:add, domains:remove."""

from __future__ import annotations

from urllib.parse import quote

import click

from cli import output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app


@command("domains")
@on_app
@json_option
def domains(app: Target, as_json: bool) -> None:
    """List an app's domains."""
    rows = app.client.all(f"{app.path}/domains", "hostname")
    if as_json:
        return output.print_json(rows)
    output.header(f"{app.app} Heroku Domain".replace("Heroku", "Davit"))
    for row in rows:
        if row["kind"] == "heroku":
            click.echo(row["hostname"])
    custom = [row for row in rows if row["kind"] == "custom"]
    if custom:
        click.echo()
        output.header(f"{app.app} Custom Domains")
        output.table(
            [(row["hostname"], "CNAME", row["cname"]) for row in custom], ("Domain Name", "DNS Record Type", "DNS Target")
        )


@command("domains:add")
@on_app
@click.argument("hostname")
@json_option
def add(app: Target, hostname: str, as_json: bool) -> None:
    """Route a domain to an app."""
    with action(f"Adding {hostname} to {hexed(app.app)}"):
        row = app.client.post(f"{app.path}/domains", {"hostname": hostname, "sni_endpoint": None})
    if as_json:
        return output.print_json(row)
    output.warn(f"Configure your app's DNS provider to point to the DNS Target {row['cname']}.")


@command("domains:remove")
@on_app
@click.argument("hostname")
def remove(app: Target, hostname: str) -> None:
    """Stop routing a domain to an app."""
    with action(f"Removing {hostname} from {hexed(app.app)}"):
        app.client.delete(f"{app.path}/domains/{quote(hostname, safe='')}")
