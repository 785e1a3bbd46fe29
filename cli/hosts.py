"""Which Davit a command talks to, and with which token.

In this order: DAVIT_URL (with DAVIT_TOKEN, or what ``davit login`` stored for it); the Davit that the checkout's remote
points to; this machine's own, for the owner of DAVIT_HOME; the one that ``davit login`` was last called for.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cli.client import Client
from foundation import disk
from foundation.errors import DavitError
from foundation.settings import settings


@dataclass
class Logins:
    """What ``davit login`` stored: base URL → {"token", "email", "authorization"}; the last one is the default."""

    default: str | None = None
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)


def file() -> Path:
    """Where logins are stored (XDG base directory specification)."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "davit" / "logins.json"


def load() -> Logins:
    """The stored logins; none when there is no such file, or it cannot be read."""
    try:
        values = json.loads(file().read_bytes())
        return Logins(values.get("default"), dict(values["hosts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Logins()


def save(logins: Logins) -> None:
    """Store logins so that nobody else can read them."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    disk.write(path, json.dumps({"default": logins.default, "hosts": logins.hosts}, indent=1).encode())


def normalize(url: str) -> str:
    """A base URL as logins are stored under: scheme and authority, nothing else.

    Raises:
        DavitError: it cannot be read.
    """
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
    except ValueError:
        raise DavitError(f"“{url}” is not the URL of a Davit; it looks like http://127.0.0.1:5000.") from None
    return f"{parts.scheme}://{parts.netloc}".lower()


def owner_token() -> str | None:
    """The token of this machine's owner, when this user may read it."""
    try:
        return (settings().home / "owner-token").read_text().strip()
    except OSError:
        return None


def token_of(url: str) -> str | None:
    """The token for the Davit at ``url``, if there is one."""
    if given := os.environ.get("DAVIT_TOKEN"):
        return given if normalize(os.environ.get("DAVIT_URL", settings().api_url)) == url else None
    if stored := load().hosts.get(url):
        return str(stored["token"])
    return owner_token() if url == normalize(settings().api_url) else None


def known() -> list[str]:
    """Base URLs of every Davit that this user has a token for."""
    urls = [normalize(os.environ["DAVIT_URL"])] if os.environ.get("DAVIT_URL") else []
    if owner_token():
        urls.append(normalize(settings().api_url))
    return [*urls, *(url for url in load().hosts if url not in urls)]


def connect(url: str | None = None) -> Client:
    """A client of the Davit that is meant; see this module's text.

    Args:
        url: the one that the checkout's remote points to, if any.

    Raises:
        DavitError: there is no token for it, with what to do.
    """
    here = normalize(settings().api_url)
    chosen = os.environ.get("DAVIT_URL") or url or (here if owner_token() else None) or load().default
    if chosen is None:
        raise DavitError(_nothing_known())
    chosen = normalize(chosen)
    token = token_of(chosen)
    if token is None:
        raise DavitError(f"You are not logged in to {chosen}: run `davit login {chosen}`.")
    why_not = _why_nobody_answers if chosen == here else None
    return Client(chosen, token, why_not=why_not, ask_code=_ask_code if sys.stdin.isatty() else None)


def _ask_code() -> str:
    import click

    click.echo(err=True)  # what is under way has begun a line
    return str(click.prompt("Two-factor code", err=True)).strip()


def _why_nobody_answers() -> str:
    """Why this machine's own Davit does not answer: it is down, or has another address than this command's settings say."""
    from cli.host import record

    asked = settings().api_url
    with contextlib.suppress(OSError):
        supervisor = record.running_supervisor(settings().home / "run")
        was = _environment(supervisor).get("DAVIT_API") if supervisor else None
        if was != os.environ.get("DAVIT_API") and supervisor:
            remedy = f"set DAVIT_API={was}, as it was there" if was else "unset DAVIT_API, which was not set there"
            return f"Davit runs here, but not at {asked}, where this command asked: {remedy}."
    return f"Davit is not running here (nobody answers at {asked}); start it with `davit up`."


def _environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


def _nothing_known() -> str:
    home = settings().home
    if (home / "davit.db").exists() or (home.exists() and not os.access(home, os.X_OK)):
        return f"Only the owner of {home} works with this machine's Davit without a login: `davit login {settings().api_url}`."
    return "Davit is not running here; start it with `davit up`, or log in to another machine's with `davit login URL`."
