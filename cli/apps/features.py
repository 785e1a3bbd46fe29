"""features and labs: switches of an app, and of the caller's account."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app


def _show(title: str, rows: list[Any]) -> None:
    output.header(title)
    output.table([(f"[{'+' if row['enabled'] else ' '}] {row['name']}", row["description"]) for row in rows])


def _one(row: Any, as_json: bool) -> None:
    if as_json:
        return output.print_json(row)
    output.header(row["name"])
    output.pairs([("Description", row["description"]), ("Enabled", str(row["enabled"]).lower()), ("Docs", row["doc_url"])])


@command("features")
@on_app
@json_option
def features(app: Target, as_json: bool) -> None:
    """List an app's features, each on or off."""
    rows = app.get("/features")
    return output.print_json(rows) if as_json else _show(f"App Features {app.app}", rows)


@command("features:info")
@on_app
@click.argument("feature")
@json_option
def features_info(app: Target, feature: str, as_json: bool) -> None:
    """Show one of an app's features."""
    _one(app.get(f"/features/{quote(feature, safe='')}"), as_json)


def _switch(app: Target, feature: str, on: bool) -> None:
    with action(f"{'Enabling' if on else 'Disabling'} {feature} for {hexed(app.app)}"):
        app.client.patch(f"{app.path}/features/{quote(feature, safe='')}", {"enabled": on})


@command("features:enable")
@on_app
@click.argument("feature")
def features_enable(app: Target, feature: str) -> None:
    """Switch a feature of an app on."""
    _switch(app, feature, True)


@command("features:disable")
@on_app
@click.argument("feature")
def features_disable(app: Target, feature: str) -> None:
    """Switch a feature of an app off."""
    _switch(app, feature, False)


@command("labs")
@json_option
def labs(as_json: bool) -> None:
    """List your account's features, each on or off."""
    rows = hosts.connect().get("/account/features")
    return output.print_json(rows) if as_json else _show("User Features", rows)


@command("labs:info")
@click.argument("feature")
@json_option
def labs_info(feature: str, as_json: bool) -> None:
    """Show one of your account's features."""
    _one(hosts.connect().get(f"/account/features/{quote(feature, safe='')}"), as_json)


def _switch_own(feature: str, on: bool) -> None:
    with action(f"{'Enabling' if on else 'Disabling'} {feature} for your account"):
        hosts.connect().patch(f"/account/features/{quote(feature, safe='')}", {"enabled": on})


@command("labs:enable")
@click.argument("feature")
def labs_enable(feature: str) -> None:
    """Switch a feature of your account on."""
    _switch_own(feature, True)


@command("labs:disable")
@click.argument("feature")
def labs_disable(feature: str) -> None:
    """Switch a feature of your account off."""
    _switch_own(feature, False)
