"""domains, domains:add, domains:remove, domains:info, domains:update, domains:wait, domains:clear."""

from __future__ import annotations

import time
from urllib.parse import quote

import click

from cli import output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


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
@click.option("-c", "--cert", metavar="NAME", help="the certificate that serves it")
@click.option("--wait", is_flag=True, help="return when it is in force")
@json_option
def add(app: Target, hostname: str, cert: str | None, wait: bool, as_json: bool) -> None:
    """Route a domain to an app."""
    with action(f"Adding {hostname} to {hexed(app.app)}"):
        row = app.client.post(f"{app.path}/domains", {"hostname": hostname, "sni_endpoint": cert})
        if wait:
            _wait(app, row["hostname"])
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


@command("domains:info")
@on_app
@click.argument("hostname")
@json_option
def info(app: Target, hostname: str, as_json: bool) -> None:
    """Show a domain."""
    row = app.get(f"/domains/{quote(hostname, safe='')}")
    if as_json:
        return output.print_json(row)
    endpoint = (row["sni_endpoint"] or {}).get("name")
    output.pairs(
        [(name, row[name]) for name in ("hostname", "kind", "cname", "status", "created_at", "id")] + [("certificate", endpoint)]
    )


@command("domains:update")
@on_app
@click.argument("hostname")
@click.option("--cert", required=True, metavar="NAME", help="the certificate that serves it; `none` for Davit's own")
def update(app: Target, hostname: str, cert: str) -> None:
    """Serve a domain with one of the app's certificates."""
    with action(f"Updating {hostname} to use {cert}"):
        app.client.patch(f"{app.path}/domains/{quote(hostname, safe='')}", {"sni_endpoint": None if cert == "none" else cert})


@command("domains:wait")
@on_app
@click.argument("hostname", required=False)
def wait(app: Target, hostname: str | None) -> None:
    """Wait until a domain, or every one, is in force."""
    _wait(app, app.get(f"/domains/{quote(hostname, safe='')}")["hostname"] if hostname else None)


def _wait(app: Target, hostname: str | None) -> None:
    while True:
        rows = [row for row in app.get("/domains") if hostname in (None, row["hostname"])]
        if hostname and not rows:  # somebody removed it meanwhile
            raise DavitError(f"Couldn't find the domain {hostname}.")
        if failed := [row["hostname"] for row in rows if row["status"] == "failed"]:
            raise DavitError(f"{failed[0]} could not be made to work.")
        if all(row["status"] in ("none", "succeeded") for row in rows):
            return
        time.sleep(2)


@command("domains:clear")
@on_app
def clear(app: Target) -> None:
    """Stop routing every domain of its own to an app."""
    with action(f"Removing all domains from {hexed(app.app)}"):
        for row in app.client.all(f"{app.path}/domains", "hostname"):
            if row["kind"] == "custom":
                app.client.delete(f"{app.path}/domains/{quote(row['hostname'], safe='')}")
