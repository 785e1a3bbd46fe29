"""heroku:env."""

from __future__ import annotations

import os
import sys

import click

from cli import heroku, hosts, output
from cli.client import TIMEOUT, Client, Unreachable
from cli.output import command
from foundation.authority import Authority
from foundation.errors import DavitError
from foundation.settings import settings

PATIENCE = 5.0
"""Seconds that a Davit which was reached before may take: new shells wait for it."""


@command("heroku:env")
@click.argument("url", required=False)
def env(url: str | None) -> None:
    """Print what points the heroku command at a Davit: eval "$(davit heroku:env)"

    For a Davit on another machine a small forwarder is started on this one (or the one that runs is used again).
    """
    client = hosts.connect(url)
    assert client.token is not None
    base, authority = _directly(client) if heroku.pointable(client.url) and _here(client) else _forwarded(client)
    bundle = heroku.write_bundle(base, authority, os.environ)
    click.echo(heroku.exports(heroku.environment(base, client.token, bundle, os.environ)), nl=False)
    if sys.stdout.isatty():
        output.warn('This is for your shell: eval "$(davit heroku:env)"')


def _here(client: Client) -> bool:
    return client.url == hosts.normalize(settings().api_url) and (settings().home / "keys" / "ca.pem").exists()


def _directly(client: Client) -> tuple[str, str]:
    client.get("/account")
    try:
        return client.url, Authority(settings().home / "keys" / "ca.pem").pem.decode()
    except OSError as error:
        raise DavitError(f"Davit's authority cannot be read: {error.strerror}.") from None


def _forwarded(client: Client) -> tuple[str, str]:
    from cli import forwarder

    known = forwarder.known(client.url)
    try:
        client.get("/account", timeout=PATIENCE if known else TIMEOUT)
    except Unreachable as error:
        if not known:
            raise
        output.warn(f"{error} The heroku command works as soon as it can.")
        return forwarder.ensure(client.url, renew=False)
    return forwarder.ensure(client.url)
