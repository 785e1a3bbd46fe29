"""buildpacks:search, buildpacks:info, buildpacks:versions: what the registry of this Davit knows."""

from __future__ import annotations

import re
from base64 import b64decode
from urllib.parse import urlencode

import click

from cli import hosts, output
from cli.output import command, json_option
from foundation.errors import DavitError

_NAME = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w-]*", re.ASCII)
_buildpack = click.argument("buildpack", metavar="NAMESPACE/NAME")


def _path(buildpack: str) -> str:
    if not _NAME.fullmatch(buildpack):
        raise DavitError(f"“{output.plain(buildpack)}” is no buildpack's name; one looks like heroku/python.")
    return f"/buildpacks/{buildpack}"


@command("buildpacks:search")
@click.argument("term", required=False)
@click.option("--namespace", help="namespaces to look in, separated by commas")
@click.option("--name", help="names to look for, separated by commas")
@click.option("--description", help="what the description has to hold")
@json_option
def search(term: str | None, namespace: str | None, name: str | None, description: str | None, as_json: bool) -> None:
    """Search for buildpacks, by a word in their names or descriptions."""
    wanted = [("in[namespace][]", word.strip()) for word in (namespace or "").split(",") if word.strip()]
    wanted += [("in[name][]", word.strip()) for word in (name or "").split(",") if word.strip()]
    wanted += [("like[description]", description)] if description else []
    rows = hosts.connect().get("/buildpacks" + (f"?{urlencode(wanted)}" if wanted else ""))
    if term:
        rows = [row for row in rows if term.lower() in f"{row['namespace']}/{row['name']} {row['description']}".lower()]
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo("No buildpacks found")
    listed = [(f"{row['namespace']}/{row['name']}", row["category"] or "", row["description"]) for row in rows]
    output.table(listed, ("Buildpack", "Category", "Description"))
    click.echo(f"\n{len(rows)} buildpack{'s' if len(rows) > 1 else ''} found")


@command("buildpacks:info")
@_buildpack
@json_option
def info(buildpack: str, as_json: bool) -> None:
    """Show what a buildpack is."""
    client, path = hosts.connect(), _path(buildpack)
    row = client.get(path)
    if as_json:
        return output.print_json(row)
    output.header(buildpack)
    source, readme = row["source"], None
    if source["type"] != "registry":  # of what comes from elsewhere nothing more is known here
        readme = b64decode(client.get(f"{path}/readme")["content"]).decode(errors="replace").strip()
    values = [("description", row["description"]), ("category", row["category"])]
    output.pairs([*values, ("source", f"{source['type']} {source['owner']}/{source['repo']}"), ("readme", readme)])


@command("buildpacks:versions")
@_buildpack
@json_option
def versions(buildpack: str, as_json: bool) -> None:
    """List the versions of a buildpack."""
    rows = hosts.connect().get(f"{_path(buildpack)}/revisions")
    if as_json:
        return output.print_json(rows)
    rows.sort(key=lambda row: row["release"], reverse=True)
    output.table([(row["release"], row["created_at"], row["status"]) for row in rows], ("Version", "Released At", "Status"))
