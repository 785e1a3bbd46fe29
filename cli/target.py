"""Which app a command is about: ``-a``, DAVIT_APP, or the checkout's git remote."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output
from cli.client import ApiError, Client
from foundation.errors import DavitError

REMOTE = "davit"
_HTTP = re.compile(r"(?P<base>https?://[^/@\s]+)/(?P<app>[a-z][a-z0-9-]{1,28}[a-z0-9])\.git/?")
_SSH = re.compile(r"(?:ssh://)?(?:[^@/\s]+@)?(?P<host>[^:/\s]+)(?::\d+)?[:/](?P<app>[a-z][a-z0-9-]{1,28}[a-z0-9])\.git/?")


_NAMED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""What a name or an id may consist of, and more: the API says what it does not know."""


class NoSuchApp(ApiError):
    """The app that was named cannot be; told as the API tells of one that is not."""

    id, status = "not_found", 404


class Unclear(DavitError):
    """No app was named and the checkout does not tell which is meant."""

    id, status = "no_app", 422


@dataclass(frozen=True)
class Remote:
    """A git remote that points to an app of a Davit that this user knows."""

    name: str
    url: str
    app: str


@dataclass(frozen=True)
class Target:
    """An app, and the client to work on it with."""

    app: str
    client: Client

    @property
    def path(self) -> str:
        """The app's path in the API."""
        return f"/apps/{quote(self.app, safe='')}"

    def get(self, below: str = "", **options: Any) -> Any:
        """The JSON value at ``below`` the app."""
        return self.client.get(self.path + below, **options)


def remotes() -> list[Remote]:
    """The checkout's remotes that point to an app of a known Davit; none outside of a checkout."""
    try:
        listed = subprocess.run(
            ["git", "config", "--get-regexp", r"^remote\..*\.url$"], capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    known = hosts.known()
    found = []
    for line in listed.splitlines():
        key, _, url = line.partition(" ")
        name = key[len("remote.") : -len(".url")]
        if (match := _HTTP.fullmatch(url)) and hosts.normalize(match["base"]) in known:
            found.append(Remote(name, hosts.normalize(match["base"]), match["app"]))
        elif match := _SSH.fullmatch(url):
            found += [
                Remote(name, base, match["app"]) for base in known if base.split("//")[1].partition(":")[0] == match["host"]
            ][:1]
    return found


def find(app: str | None, remote: str | None) -> Target:
    """The app that a command is about.

    Args:
        app: its name, when it was given.
        remote: the name of the git remote to look at.

    Raises:
        Unclear: nothing tells, or several remotes do.
    """
    if app:
        if not _NAMED.fullmatch(app):  # a server takes a slash in it, however it is escaped, for another path
            raise NoSuchApp(f"Couldn't find that app ({output.plain(app)[:60]}): there is none with such a name.")
        return Target(app, hosts.connect())
    candidates = [found for found in remotes() if remote in (None, found.name)]
    if remote and not candidates:
        raise Unclear(f"There is no git remote “{remote}” here that points to an app.")
    chosen = [found for found in candidates if found.name == REMOTE] or candidates
    if len({(found.url, found.app) for found in chosen}) > 1:
        names = ", ".join(found.name for found in chosen)
        raise Unclear(f"Several git remotes point to apps ({names}); choose one with --remote, or name the app with -a.")
    if not chosen:
        raise Unclear("Missing required flag: -a APP (or run it in a checkout that has a `davit` remote).")
    return Target(chosen[0].app, hosts.connect(chosen[0].url))


def begun(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For tab completion: the apps whose names begin so; none when Davit cannot be asked."""
    try:
        return [name for name, _ in hosts.connect().get("/davit/app-names")["apps"] if name.startswith(incomplete)]
    except DavitError:
        return []


def on_app(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``-a/--app`` and ``-r/--remote``, and its function the :class:`Target` as first argument."""

    def run(app: str | None, remote: str | None, **given: Any) -> Any:
        return function(find(app, remote), **given)

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    options = [
        click.option(
            "-a", "--app", envvar="DAVIT_APP", metavar="APP", help="app to run the command against", shell_complete=begun
        ),
        click.option("-r", "--remote", metavar="REMOTE", help="git remote of the app to use"),
    ]
    decorated: Callable[..., Any] = run
    for option in options:
        decorated = option(decorated)
    return decorated
