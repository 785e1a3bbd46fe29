"""buildpacks, buildpacks:set, buildpacks:add, buildpacks:remove, buildpacks:clear."""

from __future__ import annotations

import click

from cli import output
from cli.output import command, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError

_index = click.option("-i", "--index", type=click.IntRange(1), help="the 1-based place of the buildpack in the list")


def _read(app: Target) -> list[str]:
    return [row["buildpack"]["name"] for row in app.get("/buildpack-installations")]


def _write(app: Target, names: list[str], verb: str, as_json: bool) -> None:
    rows = app.client.put(f"{app.path}/buildpack-installations", {"updates": [{"buildpack": name} for name in names]})
    if as_json:
        return output.print_json(rows)
    shown = [row["buildpack"]["name"] for row in rows]
    if not shown:
        click.echo(f"Buildpack {verb}. Next release on {app.app} will detect buildpacks normally.")
    elif len(shown) == 1:
        click.echo(f"Buildpack {verb}. Next release on {app.app} will use {shown[0]}.")
        click.echo("Run git push davit main to create a new release using this buildpack.")
    else:
        click.echo(f"Buildpack {verb}. Next release on {app.app} will use:")
        for number, name in enumerate(shown, 1):
            click.echo(f"  {number}. {name}")
        click.echo("Run git push davit main to create a new release using these buildpacks.")


@command("buildpacks")
@on_app
@json_option
def buildpacks(app: Target, as_json: bool) -> None:
    """List an app's buildpacks."""
    if as_json:
        return output.print_json(app.get("/buildpack-installations"))
    names = _read(app)
    if not names:
        return click.echo(f"{app.app} has no Buildpacks.")
    output.header(f"{app.app} Buildpack{'s' if len(names) > 1 else ''}")
    for number, name in enumerate(names, 1):
        click.echo(f"{number}. {output.plain(name)}" if len(names) > 1 else output.plain(name))


@command("buildpacks:set")
@on_app
@click.argument("buildpack")
@_index
@json_option
def set_(app: Target, buildpack: str, index: int | None, as_json: bool) -> None:
    """Set an app's buildpack; with --index, one of several."""
    names = _read(app)
    if buildpack in names:
        raise DavitError(f"The buildpack {buildpack} is already set on your app.")
    if index is None or index > len(names):
        names = [*names[1:], buildpack] if index else [buildpack]
        if index:
            names = [*_read(app), buildpack]
    else:
        names[index - 1] = buildpack
    _write(app, names, "set", as_json)


@command("buildpacks:add")
@on_app
@click.argument("buildpack")
@_index
@json_option
def add(app: Target, buildpack: str, index: int | None, as_json: bool) -> None:
    """Add a buildpack at the end, or at --index."""
    names = _read(app)
    if buildpack in names:
        raise DavitError(f"The buildpack {buildpack} is already set on your app.")
    names.insert(len(names) if index is None else index - 1, buildpack)
    _write(app, names, "added", as_json)


@command("buildpacks:remove")
@on_app
@click.argument("buildpack", required=False)
@_index
@json_option
def remove(app: Target, buildpack: str | None, index: int | None, as_json: bool) -> None:
    """Remove a buildpack, named or at --index."""
    names = _read(app)
    if (buildpack is None) == (index is None):
        raise DavitError("Name the buildpack to remove, or give its --index.")
    if index is not None:
        if index > len(names):
            raise DavitError(f"Invalid index. {app.app} has {len(names)} buildpacks.")
        del names[index - 1]
    elif buildpack in names:
        names.remove(buildpack)
    else:
        raise DavitError("Buildpack not found. Nothing was removed.")
    _write(app, names, "removed", as_json)


@command("buildpacks:clear")
@on_app
@json_option
def clear(app: Target, as_json: bool) -> None:
    """Remove all buildpacks; they are detected again."""
    rows = app.client.put(f"{app.path}/buildpack-installations", {"updates": []})
    if as_json:
        return output.print_json(rows)
    click.echo(f"Buildpacks cleared. Next release on {app.app} will detect buildpacks normally.")
