"""run, run:detached: one-off dynos."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from cli import output
from cli.client import ACCEPT
from cli.output import action, command, hexed
from cli.target import Target, on_app
from foundation.errors import DavitError

_COMMON = [
    click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND..."),
    click.option("-s", "--size", help="dyno size"),
    click.option("--type", "type_", help="process type"),
    click.option("--isolation", help="container (the default), microvm or osv"),
    click.option("-e", "--env", help="environment variables to set, separated by semicolons: A=1;B=2"),
]
_BEHIND = "what is the command's own stands behind --."


class Around(click.Command):
    """A command around another one. As heroku's, it takes its flags before, between and behind the other's words, up to a ``--``.

    What is no flag of its own is a word. A flag that is there twice, or lacks its value, may be the other's: it is refused,
    because with a wrong ``-a`` the command would run on another app.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(args) if ctx.resilient_parsing else self._flags_first(ctx, args))

    def _flags_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {word: option for option in self.get_params(ctx) if isinstance(option, click.Option) for word in option.opts}
        flags: list[str] = []
        words: list[str] = []
        given: set[str | None] = set()
        rest = list(args)
        while rest and (text := rest.pop(0)) != "--":
            name, value = _flag(text, known)
            option = known.get(name)
            if option is None or (option is self.get_help_option(ctx) and words):
                words.append(text)
            elif option.is_flag:
                flags.append(name)
                rest[:0] = [f"-{value}"] if value else []
            else:
                value = value if value is not None else rest.pop(0) if rest else None
                if option.name in given:
                    raise click.UsageError(f"Flag {name} can only be specified once; {_BEHIND}", ctx)
                if value is None or value == "--" or _flag(value, known)[0] in known:
                    raise click.UsageError(f"Flag {name} expects a value; {_BEHIND}", ctx)
                given.add(option.name)
                flags += [name, value]
        if {"app", "remote"} <= given:
            raise click.UsageError(f"Give -a or -r, not both; {_BEHIND}", ctx)
        return [*flags, "--", *words, *rest]


def _flag(text: str, known: Mapping[str, click.Option]) -> tuple[str, str | None]:
    """What may be a flag's name, and what stands in the same word with it: ``--app=x``, ``-a=x``, ``-ax``; ``ax`` of ``-xax``."""
    if text in known:
        return text, None
    if text.startswith("--"):
        name, equals, value = text.partition("=")
        takes = name in known and not known[name].is_flag
        return (name, value) if equals and takes else (text, None)
    value = text[2:]
    return (text[:2], value.removeprefix("=") if not known[text[:2]].is_flag else value) if text[:2] in known else (text, None)


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in _COMMON:
        function = decorate(function)
    return function


def _line(words: tuple[str, ...]) -> str:
    """The shell command: one word is one already (as heroku's), several are quoted to arrive as they are."""
    if not words:
        raise DavitError("Usage: davit run COMMAND. Must specify command to run.")
    return words[0] if len(words) == 1 else shlex.join(words)


def _environment(env: str | None) -> dict[str, str]:
    values = {}
    for setting in (env or "").split(";"):
        name, equals, value = setting.partition("=")
        if setting and not equals:
            raise DavitError(f"{setting} is invalid. Must be in the format FOO=bar.")
        if setting:
            values[name.strip()] = value
    return values


@command("run", cls=Around)
@on_app
@_common
@click.option("-x", "--exit-code", is_flag=True, help="as heroku's: the command's exit status is always passed on here")
@click.option("--no-tty", is_flag=True, help="give the command no terminal")
@click.option("--no-notify", is_flag=True, help="as heroku's: nobody is notified here")
def run(
    app: Target,
    words: tuple[str, ...],
    size: str | None,
    type_: str | None,
    isolation: str | None,
    env: str | None,
    exit_code: bool,
    no_tty: bool,
    no_notify: bool,
) -> None:
    """Run a command in a one-off dyno, attached to it."""
    from cli.apps import attached

    terminal = not no_tty and sys.stdin.isatty() and sys.stdout.isatty()
    values = _environment(env)
    if terminal:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())  # the window, whatever COLUMNS and LINES say
        values = {"TERM": os.environ.get("TERM", "xterm"), "COLUMNS": str(columns), "LINES": str(lines), **values}
    line = _line(words)
    with action(f"Running {line} on {hexed(app.app)}") as step:
        asked = {"command": line, "attach": True, "size": size, "type": type_, "isolation": isolation, "env": values}
        asked["force_no_tty"] = not terminal
        dyno = app.client.post(f"{app.path}/dynos", asked, headers={"Accept": f"{ACCEPT}; attach=websocket"})
        step.result = f"up, {dyno['name']}"
    sys.exit(attached.attach(app.client, dyno["attach_url"], terminal))


def _begin_inside(app: Target, dyno: str, asked: dict[str, Any]) -> Any:
    """Have a command begun in a dyno that runs, to be attached to."""
    headers = {"Accept": f"{ACCEPT}; attach=websocket"}
    return app.client.post(f"{app.path}/dynos/{quote(dyno, safe='')}", asked, headers=headers)


def _inside(app: Target, dyno: str, line: str, env: str | None, no_tty: bool) -> None:
    """Run a command in a dyno that runs; ends with its exit status."""
    from cli.apps import attached

    terminal = not no_tty and sys.stdin.isatty() and sys.stdout.isatty()
    values = _environment(env)
    if terminal:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        values = {"TERM": os.environ.get("TERM", "xterm"), "COLUMNS": str(columns), "LINES": str(lines), **values}
    with action(f"Running {line} on {hexed(app.app)}") as step:
        found = _begin_inside(app, dyno, {"command": line, "env": values, "force_no_tty": not terminal})
        step.result = f"up, {found['name']}"
    sys.exit(attached.attach(app.client, found["attach_url"], terminal))


@command("run:inside", cls=Around)
@on_app
@click.argument("dyno")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND...")
@click.option("-e", "--env", help="environment variables to set, separated by semicolons: A=1;B=2")
@click.option("-x", "--exit-code", is_flag=True, help="as heroku's: the command's exit status is always passed on here")
@click.option("--no-tty", is_flag=True, help="give the command no terminal")
def inside(app: Target, dyno: str, words: tuple[str, ...], env: str | None, exit_code: bool, no_tty: bool) -> None:
    """Run a command in a dyno that runs."""
    _inside(app, dyno, _line(words), env, no_tty)


@command("ps:exec", cls=Around)
@on_app
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND...]")
@click.option("-d", "--dyno", default="web.1", show_default=True, help="the dyno to look into")
@click.option("--no-tty", is_flag=True, help="give the command no terminal")
def exec_(app: Target, words: tuple[str, ...], dyno: str, no_tty: bool) -> None:
    """Open a shell, or run a command, in a dyno that runs."""
    _inside(app, dyno, _line(words) if words else "bash", None, no_tty)


@command("ps:copy")
@on_app
@click.argument("file")
@click.option("-d", "--dyno", default="web.1", show_default=True, help="the dyno to copy from")
@click.option("-o", "--output", "to", help="what the copy is called")
def copy(app: Target, file: str, dyno: str, to: str | None) -> None:
    """Copy a file out of a dyno that runs."""
    from cli.apps import attached

    target = Path(to or Path(file).name)
    if target.exists():
        raise DavitError(f"The local file {target} already exists")
    part = target.with_name(f".{target.name}.part")
    line = f"exec cat -- {shlex.quote(file)}"
    with action(f"Copying {file} to {target}"):
        found = _begin_inside(app, dyno, {"command": line, "force_no_tty": True})
        try:
            with part.open("wb", buffering=0) as copied:
                if attached.attach(app.client, found["attach_url"], False, into=copied.fileno()):
                    raise DavitError(f"{file} could not be copied; is it there, and a file?")
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)


@command("run:detached", cls=Around)
@on_app
@_common
@click.option("-t", "--tail", is_flag=True, help="continually stream its logs")
def detached(
    app: Target,
    words: tuple[str, ...],
    size: str | None,
    type_: str | None,
    isolation: str | None,
    env: str | None,
    tail: bool,
) -> None:
    """Run a command in a one-off dyno whose output goes to the log."""
    from cli.apps import logs

    line = _line(words)
    with action(f"Running {line} on {hexed(app.app)}") as step:
        asked = {"command": line, "attach": False, "size": size, "type": type_, "isolation": isolation}
        asked["env"] = _environment(env)
        dyno = app.client.post(f"{app.path}/dynos", asked)
        step.result = f"done, {dyno['name']}"
    if tail:
        wanted = {"lines": 100, "tail": True, "source": None, "dyno": dyno["name"]}
        return logs.follow(app, wanted, app.client.post(f"{app.path}/log-sessions", wanted))
    output.warn(f"Run davit logs --app {app.app} --dyno {dyno['name']} to view the output.")
