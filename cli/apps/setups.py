"""setup, setup:info: an app from a tarball with an app.json."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output
from cli.apps.streams import copy
from cli.output import command, json_option
from foundation.errors import DavitError


@command("setup")
@click.argument("url")
@click.option("-n", "--name", help="the app's name; one is chosen otherwise")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="a config var that goes before app.json's")
@click.option("--checksum", help="SHA256:… of the tarball")
@json_option
def setup(url: str, name: str | None, env: tuple[str, ...], checksum: str | None, as_json: bool) -> None:
    """Make an app from the tarball at URL, as its app.json says: config vars, formation, buildpacks, scripts."""
    pairs = [text.partition("=") for text in env]
    if wrong := [text for text, equals, _ in pairs if not equals]:
        raise DavitError(f"{wrong[0]} is invalid. Must be in the format FOO=bar.")
    client = hosts.connect()
    blob = {"url": url, **({"checksum": checksum} if checksum else {})}
    sent: dict[str, Any] = {"source_blob": blob, "overrides": {"env": {key: value for key, _, value in pairs}}}
    if name:
        sent["app"] = {"name": name}
    row = client.post("/app-setups", sent)
    click.echo(f"Setting up {row['app']['name']}", err=True)
    shown = False
    while row["status"] == "pending":
        stream = (row["build"] or {}).get("output_stream_url")
        if stream and not shown:
            copy(client, stream)
            shown = True
        time.sleep(1)
        row = client.get(f"/app-setups/{row['id']}")
    if as_json:
        output.print_json(row)
    if row["status"] != "succeeded":
        raise DavitError(f"{row['app']['name']} was not set up: {row['failure_message']}")
    if not as_json:
        click.echo(row["resolved_success_url"] or row["app"]["name"])


@command("setup:info")
@click.argument("setup")
@json_option
def setup_info(setup: str, as_json: bool) -> None:
    """Tell how far a setup is."""
    row = hosts.connect().get(f"/app-setups/{quote(setup, safe='')}")
    if as_json:
        return output.print_json(row)
    output.pairs([("App", row["app"]["name"]), ("Status", row["status"]), ("Failure", row["failure_message"])])
