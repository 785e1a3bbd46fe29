"""logs."""

from __future__ import annotations

import http.client
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from cli.apps.streams import copy, harmless
from cli.client import ApiError, Unreachable
from cli.output import command
from cli.target import Target, on_app

_PREFIX = re.compile(r"^(?P<time>\S+ )(?P<source>[\w-]+\[[^\]]*\]:)")
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


@command("logs")
@on_app
@click.option(
    "-n", "--num", default=100, show_default=True, type=click.IntRange(0, 1500),
    help="number of lines to show; fewer where they are long (2 MiB are kept)",
)  # fmt: skip
@click.option("-t", "--tail", is_flag=True, help="continually stream logs")
@click.option("-s", "--source", type=click.Choice(["app", "heroku"]), help="only show output from the app, or from the platform")
@click.option(
    "-d", "--dyno", "--dyno-name", "-p", "--process-type", "--ps",
    help="only show output from this dyno (web.1) or process type (web)",
)  # fmt: skip
def logs(app: Target, num: int, tail: bool, source: str | None, dyno: str | None) -> None:
    """Show an app's log."""
    asked = {"lines": num, "tail": tail, "source": source, "dyno": dyno}
    session = app.client.post(f"{app.path}/log-sessions", asked)
    if tail:
        follow(app, asked, session)
    elif sys.stdout.isatty():
        with app.client.stream(session["logplex_url"]) as answer:
            for raw in answer:
                _show(raw.decode(errors="replace").rstrip("\n"))
    else:
        copy(app.client, session["logplex_url"])


def follow(app: Target, asked: dict[str, Any], session: dict[str, Any]) -> None:
    """Show lines for ever; a broken connection is made again where it broke off, an expired session replaced."""
    # Python's own handler waits for a read that may last for ever when the signal comes just before it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    last: str | None = None
    failures = 0
    while True:
        try:
            for id, line in _events(app, session["logplex_url"], last):
                last, failures = id, 0
                _show(line)
        except ApiError as error:
            if error.status != 404:
                raise
            session = app.client.post(f"{app.path}/log-sessions", asked)
        except (Unreachable, OSError, http.client.HTTPException):
            failures += 1
            if failures > 30:
                raise
        time.sleep(1)


def _events(app: Target, url: str, last: str | None) -> Iterator[tuple[str | None, str]]:
    """The lines of a stream of server-sent events, with their ids (HTML standard, section 9.2)."""
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
    with app.client.stream(url, headers=headers) as answer:
        for raw in answer:
            name, _, value = raw.decode(errors="replace").rstrip("\n").partition(":")
            if name == "id":
                last = value.strip()
            elif name == "data":
                yield last, value.removeprefix(" ")


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _show(line: str) -> None:
    if sys.stdout.isatty():
        line = harmless(line)
    match = _PREFIX.match(line) if _coloured() else None
    if match:
        colour = _COLOURS[sum(match["source"].encode()) % len(_COLOURS)]
        line = click.style(match[0], fg=colour) + line[match.end() :]
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
