"""How the app commands talk: Heroku's shapes, progress on standard error, one sentence when something fails."""

from __future__ import annotations

import functools
import io
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import click

from cli.client import ApiError
from foundation.errors import DavitError


def command(name: str, **options: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose failures are one sentence: exit status 2 when the API refused, 1 otherwise (as heroku's)."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **given: Any) -> Any:
            try:
                return function(*args, **given)
            except DavitError as error:
                warn(error.message)
                sys.exit(2 if isinstance(error, ApiError) else 1)
            except KeyboardInterrupt:
                sys.exit(130)

        make: Callable[[Callable[..., Any]], click.Command] = click.command(name, **options)
        return make(run)

    return decorate


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``-j``, ``--json``: print what the API answered."""
    return click.option("-j", "--json", "as_json", is_flag=True, help="output in JSON format")(function)


def warn(message: str) -> None:
    """A sentence on standard error, as heroku marks it."""
    for line in message.splitlines() or [""]:
        click.echo(f" ▸    {line}", err=True)


def print_json(value: Any) -> None:
    """A JSON value, indented."""
    click.echo(jsonlib.dumps(value, indent=2))


def hexed(app: str) -> str:
    """An app's name as messages show it."""
    return f"⬢ {app}"


class Action:
    """A step that is under way; ``result`` is what is printed when it is done."""

    def __init__(self) -> None:
        self.result = "done"


@contextmanager
def action(text: str) -> Iterator[Action]:
    """``Restarting dynos... done`` on standard error; an exclamation mark when it fails."""
    click.echo(f"{text}... ", err=True, nl=False)
    step = Action()
    try:
        yield step
    except BaseException:
        click.echo("!", err=True)
        raise
    click.echo(step.result, err=True)


def header(text: str) -> None:
    """``=== timely Config Vars`` and an empty line."""
    click.echo((f"=== {text}" if "NO_COLOR" in os.environ else click.style(f"=== {text}", bold=True)) + "\n")


@contextmanager
def paged() -> Iterator[None]:
    """What is printed in the block goes through $PAGER when it is longer than the terminal (never into a pipe)."""
    if not sys.stdout.isatty():
        yield
        return
    import shutil
    import subprocess

    screen, sys.stdout, held = sys.stdout, io.StringIO(), sys.stdout
    context = click.get_current_context(silent=True)
    if context is not None:
        context.color = "NO_COLOR" not in os.environ  # it is for a terminal in the end
    try:
        yield
        text = sys.stdout.getvalue()
    finally:
        sys.stdout = held
    pager = os.environ.get("DAVIT_PAGER", os.environ.get("PAGER", "less"))
    if text.count("\n") < shutil.get_terminal_size().lines or not shutil.which(pager.split(" ")[0]):
        screen.write(text)
        return
    environment = {"LESS": "FRX", **os.environ}
    subprocess.run(pager, shell=True, input=text, text=True, env=environment, check=False)  # noqa: S602 - the user's own


def pairs(values: Sequence[tuple[str, Any]]) -> None:
    """``Name:   value`` lines, aligned; what is None is left out."""
    shown = [(name, value) for name, value in values if value is not None]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        click.echo(f"{name + ':':<{width}} {plain(value)}")


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str] = ()) -> None:
    """Columns, two spaces between them."""
    texts = [[plain(cell) for cell in row] for row in rows]
    lines = ([list(heads), ["─" * len(head) for head in heads]] if heads else []) + texts
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))] if lines else []
    if heads:
        lines[1] = ["─" * width for width in widths]
    for line in lines:
        click.echo(" " * bool(heads) + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def plain(value: Any) -> str:
    """Text on one line that cannot steer the terminal, whoever wrote it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def size(count: int | None) -> str | None:
    """Bytes for people."""
    if count is None:
        return None
    amount, units = float(count), ["B", "KB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}"


def duration(seconds: float) -> str:
    """``5m``"""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(0, int(seconds))}s"


def when(text: str) -> str:
    """``2026/11/24 03:58:34 +0000``, in this machine's time zone."""
    return _moment(text).astimezone().strftime("%Y/%m/%d %H:%M:%S %z")


def ago(text: str) -> str:
    """``2026/11/24 03:58:34 +0000 (~ 5m ago)``"""
    seconds = max(0, int((datetime.now(timezone.utc) - _moment(text)).total_seconds()))
    return f"{when(text)} (~ {duration(seconds)} ago)"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
