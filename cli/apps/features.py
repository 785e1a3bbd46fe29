"""features and labs: switches of an app, and of the caller's account."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output, target
from cli.client import ApiError, Client
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


_app = click.option(
    "-a", "--app", envvar="DAVIT_APP", metavar="APP", help="the app whose feature it is", shell_complete=target.begun
)
_remote = click.option("-r", "--remote", metavar="REMOTE", help="git remote of the app")


def _target(app: str | None, remote: str | None) -> Target | None:
    """The app that is meant, if any is: features of the account have none."""
    try:
        return target.find(app, remote)
    except target.Unclear:
        if remote:
            raise
        return None


def _switch_of(feature: str, app: str | None, remote: str | None) -> tuple[Client, str, str]:
    """A feature of the account's or else of the app's, as heroku looks for it: the client, its path, and whose it is."""
    client, path = hosts.connect(), f"/features/{quote(feature, safe='')}"
    try:
        client.get(f"/account{path}")
    except ApiError as error:
        found = _target(app, remote) if error.status == 404 else None
        if found is None:
            raise
        return found.client, found.path + path, hexed(found.app)
    return client, f"/account{path}", "your account"


@command("labs")
@_app
@_remote
@json_option
def labs(app: str | None, remote: str | None, as_json: bool) -> None:
    """List features that are tried out, of your account and of an app, each on or off."""
    own, found = hosts.connect().get("/account/features"), _target(app, remote)
    apps = [row for row in found.get("/features") if row["state"] != "general"] if found else []
    if as_json:
        return output.print_json({"user": own, "app": apps} if found else own)
    _show("User Features", own)
    if found and apps:
        click.echo()
        _show(f"App Features {found.app}", apps)


@command("labs:info")
@click.argument("feature")
@_app
@_remote
@json_option
def labs_info(feature: str, app: str | None, remote: str | None, as_json: bool) -> None:
    """Show a feature of your account's or an app's."""
    client, path, _ = _switch_of(feature, app, remote)
    _one(client.get(path), as_json)


@command("labs:enable")
@click.argument("feature")
@_app
@_remote
def labs_enable(feature: str, app: str | None, remote: str | None) -> None:
    """Switch a feature of your account or of an app on."""
    client, path, whose = _switch_of(feature, app, remote)
    with action(f"Enabling {feature} for {whose}"):
        client.patch(path, {"enabled": True})


@command("labs:disable")
@click.argument("feature")
@_app
@_remote
@click.option("--confirm", metavar="APP", help="as heroku's: nobody is asked here")
def labs_disable(feature: str, app: str | None, remote: str | None, confirm: str | None) -> None:
    """Switch a feature of your account or of an app off."""
    client, path, whose = _switch_of(feature, app, remote)
    with action(f"Disabling {feature} for {whose}"):
        client.patch(path, {"enabled": False})
