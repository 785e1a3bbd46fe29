"""git:remote, git:clone, git:credentials."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

from cli import hosts
from cli.client import Client
from cli.output import command
from cli.target import REMOTE, Target, begun, find, on_app, remotes
from foundation.errors import DavitError
from foundation.settings import settings

_ENVIRONMENT = ("DAVIT_HOME", "DAVIT_API")


def _git(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise DavitError(f"git {words[0]} failed: {done.stderr.strip() or 'it gave no reason'}")
    return done


def in_checkout() -> bool:
    """Whether the present directory belongs to a git repository."""
    try:
        return _git("rev-parse", "--git-dir", check=False).returncode == 0
    except FileNotFoundError:
        return False


def helper(client: Client) -> str:
    """The credential helper (gitcredentials(7)) that knows the token for ``client``; itself it holds none.

    For this machine's owner it is a line of shell that reads the owner's token file: git starts it with every push, and
    a push should not wait for Python.
    """
    if client.token == hosts.owner_token():
        path = shlex.quote(str(settings().home / "owner-token"))
        return f'!f() {{ test "$1" = get && echo username=davit && echo "password=$(cat {path})"; }}; f'
    program = Path(__file__).resolve().parent.parent.parent / "bin" / "davit"
    given = "".join(f"{name}={shlex.quote(os.environ[name])} " for name in _ENVIRONMENT if os.environ.get(name))
    return f"!{given}{shlex.quote(str(program))} git:credentials"


def has_remote(remote: str) -> bool:
    """Whether the checkout has a remote of this name, wherever it points."""
    return remote in _git("remote").stdout.split()


def remotes_of(app: str, client: Client) -> list[str]:
    """The names of the checkout's remotes that point to this app of this Davit; none outside of a checkout."""
    return [remote.name for remote in remotes() if (remote.app, remote.url) == (app, hosts.normalize(client.url))]


def forget(remote: str) -> None:
    """Remove a remote of the checkout; its branches here stay."""
    _git("remote", "remove", remote)


def point(remote: str, client: Client, app: str) -> None:
    """Make ``remote`` of the checkout point to an app, and its pushes ask for nothing."""
    url = f"{client.url}/{app}.git"
    if has_remote(remote):
        _git("remote", "set-url", remote, url)
    else:
        _git("remote", "add", remote, url)
    key = f"credential.{client.url}.helper"
    _git("config", "--local", "--replace-all", key, "")  # an empty one first: no other helper is asked, or told the token
    _git("config", "--local", "--add", key, helper(client))


@command("git:remote")
@click.option("-a", "--app", envvar="DAVIT_APP", metavar="APP", help="app to push to", shell_complete=begun)
@click.option("-r", "--remote", metavar="REMOTE", help="name of the git remote to make")
@click.argument("name", required=False)
def remote(app: str | None, remote: str | None, name: str | None) -> None:
    """Make a git remote (`davit`, or another name) that pushes to an app without asking for anything."""
    if not in_checkout():
        raise DavitError("This is not a git repository; run `git init` first.")
    name = remote or name or REMOTE
    target = find(app, None)
    found = target.get()["name"]
    point(name, target.client, found)
    click.echo(f"set git remote {name} to {target.client.url}/{found}.git")


@command("git:clone")
@on_app
@click.argument("directory", required=False)
def clone(app: Target, directory: str | None) -> None:
    """Clone an app's code, with its remote set up."""
    name = app.get()["name"]
    url, key = f"{app.client.url}/{name}.git", f"credential.{app.client.url}.helper"
    words = ["git", "clone", "-o", REMOTE, "--config", f"{key}=", "--config", f"{key}={helper(app.client)}", "--", url]
    done = subprocess.run([*words, directory or name])
    if done.returncode:
        sys.exit(done.returncode)


@command("git:credentials", hidden=True)
@click.argument("operation")
def credentials(operation: str) -> None:
    """Answer git's question for a token (gitcredentials(7)); called by git."""
    if operation != "get":
        return
    asked = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    url = hosts.normalize(f"{asked.get('protocol', '')}://{asked.get('host', '')}")
    token = hosts.token_of(url) if url in hosts.known() else None
    if token:
        click.echo(f"username=davit\npassword={token}")
