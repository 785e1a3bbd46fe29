"""login, logout, auth:token, auth:whoami."""

from __future__ import annotations

import ipaddress
import platform
import sys
from typing import Any
from urllib.parse import urlsplit

import click

from cli import hosts, output
from cli.client import TWO_FACTOR_HEADER, ApiError, Client
from cli.output import command
from foundation.errors import DavitError
from foundation.settings import settings


@command("login")
@click.argument("url", required=False)
@click.option("-i", "--interactive", is_flag=True, help="as heroku's: always so here")
def login(url: str | None, interactive: bool) -> None:
    """Log in to the Davit at URL; asks for an API token, or e-mail address and password.

    A token can also come on standard input: davit login URL < token
    """
    base = hosts.normalize(url or settings().api_url)
    _warn_when_open(base)
    made = _by_question(base) if sys.stdin.isatty() else _by_token(base, sys.stdin.readline().strip())
    logins = hosts.load()
    logins.hosts[base] = made
    logins.default = base
    hosts.save(logins)
    click.echo(f"Logged in as {made['email']}")


def _warn_when_open(base: str) -> None:
    parts = urlsplit(base)
    try:
        near = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        near = parts.hostname == "localhost" or (parts.hostname or "").endswith(".localhost")
    if parts.scheme == "http" and not near:
        output.warn(
            "Warning: http:// sends your token unencrypted; use https:// or an SSH tunnel over a network you do not trust."
        )


def _by_question(base: str) -> dict[str, Any]:
    email = click.prompt("Email (leave empty to give an API token)", default="", show_default=False, err=True)
    if not email:
        return _by_token(base, click.prompt("API token", hide_input=True, err=True).strip())
    password = click.prompt("Password", hide_input=True, err=True)
    asked = {"description": f"davit login from {platform.node()}", "scope": ["global"], "expires_in": 365 * 24 * 3600}
    client = Client(base, None)
    try:
        made = client.post("/oauth/authorizations", asked, basic=(email, password))
    except ApiError as error:
        if error.id != "two_factor":
            raise
        code = {TWO_FACTOR_HEADER: click.prompt("Two-factor code", err=True).strip()}
        made = client.post("/oauth/authorizations", asked, basic=(email, password), headers=code)
    return {"token": made["access_token"]["token"], "email": made["user"]["email"], "authorization": made["id"]}


def _by_token(base: str, token: str) -> dict[str, Any]:
    if not token:
        raise DavitError("No token was given; `davit auth:token` on a machine that is logged in prints one.")
    email = Client(base, token).get("/account")["email"]
    return {"token": token, "email": email, "authorization": None}


@command("logout")
@click.argument("url", required=False)
def logout(url: str | None) -> None:
    """Forget the login of the Davit at URL (the last one logged in to), and take back its token when login made it."""
    logins = hosts.load()
    base = hosts.normalize(url) if url else logins.default
    if base is None or base not in logins.hosts:
        raise DavitError("You are not logged in." if url is None else f"You are not logged in to {base}.")
    entry = logins.hosts.pop(base)
    logins.default = next(iter(logins.hosts), None) if logins.default == base else logins.default
    hosts.save(logins)
    if entry.get("authorization"):
        try:
            Client(base, entry["token"]).delete(f"/oauth/authorizations/{entry['authorization']}")
        except ApiError as error:
            output.warn(f"The token could not be taken back: {error.message}")
    click.echo("Local credentials cleared")


@command("auth:token")
def token() -> None:
    """Print the API token that commands use here."""
    client = hosts.connect()
    client.get("/account")
    click.echo(client.token)


@command("auth:whoami")
def whoami() -> None:
    """Print who commands act as here."""
    click.echo(hosts.connect().get("/account")["email"])
