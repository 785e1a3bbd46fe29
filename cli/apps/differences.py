"""apps:diff: in what two apps differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import click

from cli import output, target
from cli.apps.outcome import newest
from cli.output import command, json_option
from cli.target import Target

LONGEST = 56
"""Characters of a value that are shown, as heroku does."""

Difference = tuple[str, Any, Any]


@command("apps:diff")
@click.argument("app1")
@click.argument("app2")
@json_option
def diff(app1: str, app2: str, as_json: bool) -> None:
    """Show in what two apps differ: slug, config vars (with their values), stack, buildpacks and features."""
    one, other = target.find(app1, None), target.find(app2, None)
    found = list(_differences(one, other))
    if as_json:
        return output.print_json([{"property": name, "app1": first, "app2": second} for name, first, second in found])
    if not found:
        return click.echo(f"{app1} and {app2} do not differ.")
    output.table([(name, _shown(first), _shown(second)) for name, first, second in found], ("Property", app1, app2))


def _differences(one: Target, other: Target) -> Iterator[Difference]:
    yield from _unlike("slug (checksum)", _checksum(one), _checksum(other))
    yield from _each("config", one.get("/config-vars"), other.get("/config-vars"))
    yield from _unlike("stack", one.get()["stack"]["name"], other.get()["stack"]["name"])
    packs = [[row["buildpack"]["name"] for row in app.get("/buildpack-installations")] for app in (one, other)]
    for place, (first, second) in enumerate(zip_longest(*packs)):
        yield from _unlike(f"buildpack ({place})", first, second)
    yield from _each("feature", _features(one), _features(other))


def _features(app: Target) -> dict[str, str]:
    return {row["name"]: "enabled" if row["enabled"] else "disabled" for row in app.get("/features")}


def _unlike(name: str, first: Any, second: Any) -> Iterator[Difference]:
    if first != second:
        yield name, first, second


def _each(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(first.keys() | second.keys()):
        yield from _unlike(f"{what} ({name})", first.get(name), second.get(name))


def _checksum(app: Target) -> str | None:
    slug = next((release["slug"] for release in newest(app)), None)
    return app.get(f"/slugs/{slug['id']}")["checksum"] if slug else None


def _shown(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
