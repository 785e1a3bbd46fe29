"""authorizations, sessions, 2fa: what may act as you, and how it is known that it is you."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from cli import hosts, output
from cli.client import TWO_FACTOR_HEADER
from cli.output import action, command, json_option


def _path(id: str) -> str:
    return f"/oauth/authorizations/{quote(id, safe='')}"


def _show(row: Any) -> None:
    left = row["access_token"]["expires_in"]
    output.pairs(
        [
            ("ID", row["id"]),
            ("Description", row["description"]),
            ("Scope", ", ".join(row["scope"])),
            ("Token", row["access_token"]["token"]),
            ("Expires", f"in {left} s" if left is not None else "never"),
        ]
    )


@command("authorizations")
@json_option
def authorizations(as_json: bool) -> None:
    """List your tokens."""
    rows = hosts.connect().get("/oauth/authorizations")
    if as_json:
        return output.print_json(rows)
    output.table([(row["description"], row["id"], ", ".join(row["scope"])) for row in rows], ("Description", "ID", "Scope"))


@command("authorizations:create")
@click.option("-d", "--description", help="what it is for")
@click.option("-s", "--scope", help="comma-separated: global, identity, read, write, read-protected, write-protected")
@click.option("-e", "--expires-in", type=click.IntRange(1), help="seconds that it lasts; for ever by default")
@click.option("-S", "--short", is_flag=True, help="print only the token")
@json_option
def authorizations_create(description: str | None, scope: str | None, expires_in: int | None, short: bool, as_json: bool) -> None:
    """Make a token, which is shown only now."""
    sent = {"description": description, "expires_in": expires_in, "scope": scope.split(",") if scope else None}
    with action("Creating OAuth Authorization"):
        row = hosts.connect().post("/oauth/authorizations", {name: value for name, value in sent.items() if value is not None})
    if as_json:
        return output.print_json(row)
    return click.echo(row["access_token"]["token"]) if short else _show(row)


@command("authorizations:info")
@click.argument("id")
@json_option
def authorizations_info(id: str, as_json: bool) -> None:
    """Show one of your tokens, redacted."""
    row = hosts.connect().get(_path(id))
    return output.print_json(row) if as_json else _show(row)


@command("authorizations:update")
@click.argument("id")
@click.option("-d", "--description", required=True, help="what it is for")
def authorizations_update(id: str, description: str) -> None:
    """Change what one of your tokens is called."""
    with action("Updating OAuth Authorization"):
        row = hosts.connect().patch(_path(id), {"description": description})
    _show(row)


@command("authorizations:revoke")
@click.argument("id")
def authorizations_revoke(id: str) -> None:
    """Take a token away."""
    with action("Revoking OAuth Authorization"):
        hosts.connect().delete(_path(id))


@command("authorizations:rotate")
@click.argument("id")
def authorizations_rotate(id: str) -> None:
    """Change a token for a new one, which is shown only now."""
    with action("Rotating OAuth Authorization"):
        row = hosts.connect().post(f"{_path(id)}/actions/regenerate-tokens")
    _show(row)


@command("sessions")
@json_option
def sessions(as_json: bool) -> None:
    """List the browsers that you are logged in with."""
    rows = hosts.connect().get("/oauth/sessions")
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo("No sessions.")
    output.table([(row["description"], row["id"]) for row in rows], ("Description", "ID"))


@command("sessions:destroy")
@click.argument("id")
def sessions_destroy(id: str) -> None:
    """Log a browser out."""
    with action("Destroying session"):
        hosts.connect().delete(f"/oauth/sessions/{quote(id, safe='')}")


@command("2fa")
def two_factor() -> None:
    """Tell whether two-factor authentication is on."""
    on = hosts.connect().get("/account")["two_factor_authentication"]
    click.echo(f"Two-factor authentication is {'' if on else 'not '}enabled")


def _code() -> dict[str, str]:
    return {TWO_FACTOR_HEADER: click.prompt("Two-factor code", err=True).strip()}


@command("2fa:enable")
def two_factor_enable() -> None:
    """Turn two-factor authentication on: shows a secret for an authenticator app, and asks for its code."""
    client = hosts.connect()
    password = click.prompt(
        "Password (leave empty if your account has none)", hide_input=True, default="", show_default=False, err=True
    )
    begun = client.post("/account/two-factor", {"password": password} if password else {})
    click.echo(f"Add this to your authenticator app:\n\n    {begun['uri']}\n\nor type in the secret {begun['secret']}\n")
    done = client.post("/account/two-factor/actions/confirm", {"code": click.prompt("Code that it shows", err=True).strip()})
    click.echo("Two-factor authentication is on. Keep these recovery codes; each works once, without the app:\n")
    click.echo("\n".join(f"    {code}" for code in done["recovery_codes"]))


@command("2fa:disable")
def two_factor_disable() -> None:
    """Turn two-factor authentication off."""
    client, headers = hosts.connect(), _code()
    with action("Disabling two-factor authentication"):
        client.call("DELETE", "/account/two-factor", headers=headers)


@command("2fa:recovery-codes")
def two_factor_recovery_codes() -> None:
    """Make new recovery codes; the old ones end."""
    made = hosts.connect().call("POST", "/account/recovery-codes", {}, headers=_code())
    click.echo("\n".join(made["recovery_codes"]))
