"""config, config:get, config:set, config:unset, config:edit."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from cli import output
from cli.apps.outcome import newest, no_wait_option, see_through
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


@command("config")
@on_app
@click.option("-s", "--shell", is_flag=True, help="output in shell format")
@json_option
def config(app: Target, shell: bool, as_json: bool) -> None:
    """List an app's config vars."""
    values = app.get("/config-vars")
    if as_json:
        return output.print_json(values)
    if shell:
        for name in sorted(values):
            click.echo(f"{name}={shlex.quote(values[name])}")
        return
    output.header(f"{app.app} Config Vars")
    output.pairs(sorted(values.items()))


@command("config:get")
@on_app
@click.argument("names", nargs=-1, required=True)
@click.option("-s", "--shell", is_flag=True, help="output in shell format")
@json_option
def get(app: Target, names: tuple[str, ...], shell: bool, as_json: bool) -> None:
    """Show config vars."""
    values = app.get("/config-vars")
    if as_json:
        return output.print_json({name: values.get(name) for name in names})
    for name in names:
        value = values.get(name, "")
        click.echo(f"{name}={shlex.quote(value)}" if shell else value)


@command("config:set", context_settings={"ignore_unknown_options": False})
@on_app
@click.argument("settings", nargs=-1, metavar="NAME=VALUE...")
@click.option(
    "--stdin", "from_stdin", metavar="NAME", help="read the value of NAME from standard input: it stays off the command line"
)
@no_wait_option
def set_(app: Target, settings: tuple[str, ...], from_stdin: str | None, no_wait: bool) -> None:
    """Set config vars and restart the app; they stay set when it does not start with them."""
    values: dict[str, str | None] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise DavitError(f"{setting} is invalid. Must be in the format FOO=bar.")
        values[name] = value
    if from_stdin:
        values[from_stdin] = sys.stdin.read().removesuffix("\n")
    if not values:
        raise DavitError("Usage: davit config:set NAME=VALUE. Must specify at least one.")
    _change(app, "Setting", values, no_wait)
    output.pairs([(name, value) for name, value in values.items() if name != from_stdin])


@command("config:unset")
@on_app
@click.argument("names", nargs=-1, required=True)
@no_wait_option
def unset(app: Target, names: tuple[str, ...], no_wait: bool) -> None:
    """Remove config vars and restart the app."""
    _change(app, "Unsetting", {name: None for name in names}, no_wait)


def _change(app: Target, verb: str, values: dict[str, Any], no_wait: bool) -> None:
    with action(f"{verb} {', '.join(values)} and restarting {hexed(app.app)}") as step:
        before = newest(app)
        app.client.patch(f"{app.path}/config-vars", values)
        (release,) = newest(app)
        made = release["id"] not in [row["id"] for row in before]  # none when nothing changed
        if made and not no_wait:
            see_through(app, release, advice="What you changed stays so for the next release; what ran before runs on.")
        step.result = f"done, v{release['version']}"


@command("config:edit")
@on_app
@click.argument("name", required=False)
@no_wait_option
def edit(app: Target, name: str | None, no_wait: bool) -> None:
    """Change config vars in your editor ($VISUAL or $EDITOR): all, a line each, or the value of one."""
    values = app.get("/config-vars")
    before = values.get(name, "") if name else "".join(f"{key}={shlex.quote(values[key])}\n" for key in sorted(values))
    after = click.edit(before, extension=".sh" if name is None else ".txt")
    if after is None or after == before:
        return output.warn("no changes to config")
    changed = {name: after.removesuffix("\n")} if name else _parsed(after)
    wanted: dict[str, str | None] = {key: value for key, value in changed.items() if values.get(key) != value}
    if name is None:
        wanted |= {key: None for key in values if key not in changed}
    if not wanted:
        return output.warn("no changes to config")
    if app.get("/config-vars") != values:
        raise DavitError("Config changed on server. Refusing to update.")
    _change(app, "Changing", wanted, no_wait)


def _parsed(text: str) -> dict[str, str]:
    found = {}
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        for word in lexer:
            key, equals, value = word.partition("=")
            if not equals:
                raise DavitError(f"Invalid line: {word}. Write NAME=VALUE, with quotes around a value that has spaces.")
            found[key] = value
    except ValueError as error:
        raise DavitError(f"That cannot be read: {error}.") from None
    return found
