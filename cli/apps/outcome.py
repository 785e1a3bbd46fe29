"""How a release ends: commands that make one say “done” when it is live, and what went wrong when it is not."""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from cli.apps.streams import copy
from cli.client import Unreachable
from cli.target import Target
from foundation.errors import DavitError

PATIENCE_SECONDS = 75 * 60
"""A release command may take an hour, and another release's may come first: who waited so long looks for themselves."""
_OUTAGES = 30
"""Looks in a row that may find nobody: Davit may be restarted meanwhile."""


def no_wait_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--no-wait``: return when the release is made."""
    return click.option("--no-wait", is_flag=True, help="return when the release is made, not when it is live")(function)


def newest(app: Target, count: int = 1) -> list[Any]:
    """The app's newest releases, as the API shows them, the newest first."""
    rows: list[Any] = app.get("/releases", headers={"Range": f"version ..; max={count}, order=desc"})
    return rows


def see_through(app: Target, release: Any, *, advice: str = "") -> None:
    """Wait until the release is live; what its release command prints goes to standard error.

    Args:
        release: as the API shows it.
        advice: a sentence for when it fails: what to do.

    Raises:
        DavitError: it failed, or is still under way after :data:`PATIENCE_SECONDS`.
    """
    if release["status"] == "pending" and release["output_stream_url"]:
        _show_command(app, release)
    deadline, pause, outages = time.monotonic() + PATIENCE_SECONDS, 0.1, 0
    while release["status"] == "pending":
        if time.monotonic() > deadline:
            raise DavitError(f"Release v{release['version']} is still under way; `davit releases` shows how it ends.")
        time.sleep(pause)
        pause = min(pause * 1.3, 2.0)
        try:
            release, outages = app.get(f"/releases/{release['version']}"), 0
        except Unreachable:
            outages += 1
            if outages > _OUTAGES:
                raise
    if release["status"] == "failed":
        why = release["failure"] or "`davit logs` says why."
        raise DavitError(f"Release v{release['version']} failed: {why}" + (f"\n{advice}" if advice else ""))


def _show_command(app: Target, release: Any) -> None:
    """The command's output as it comes; where that breaks off, the release's end is still waited for."""
    click.echo("running release command...", err=True)
    try:
        copy(app.client, release["output_stream_url"], sys.stderr.buffer)
    except (Unreachable, OSError, http.client.HTTPException):
        click.echo("The output of the release command broke off.", err=True)
    click.echo(f"Waiting for v{release['version']}... ", err=True, nl=False)
