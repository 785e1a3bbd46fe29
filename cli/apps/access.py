"""access, access:add, access:remove, keys, keys:add, keys:remove, accounts, accounts:create, accounts:password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from cli import hosts, output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


@command("access")
@on_app
@json_option
def access(app: Target, as_json: bool) -> None:
    """List who has access to an app."""
    rows = app.get("/collaborators")
    if as_json:
        return output.print_json(rows)
    output.header(f"Access for {hexed(app.app)}")
    output.table([(row["user"]["email"], row["role"], ", ".join(one["name"] for one in row["permissions"])) for row in rows])


@command("access:add")
@on_app
@click.argument("email")
@click.option("-p", "--permissions", help="comma-separated: view, deploy, operate, manage (all but manage by default)")
def access_add(app: Target, email: str, permissions: str | None) -> None:
    """Let another account work on an app."""
    sent: dict[str, object] = {"user": email}
    if permissions:
        sent["permissions"] = [name.strip() for name in permissions.split(",")]
    with action(f"Adding {email} access to the app {hexed(app.app)}"):
        app.client.post(f"{app.path}/collaborators", sent)


@command("access:remove")
@on_app
@click.argument("email")
def access_remove(app: Target, email: str) -> None:
    """End another account's work on an app."""
    with action(f"Removing {email} access from the app {hexed(app.app)}"):
        app.client.delete(f"{app.path}/collaborators/{quote(email, safe='')}")


@command("keys")
@click.option("-l", "--long", "whole", is_flag=True, help="display the whole key")
@json_option
def keys(whole: bool, as_json: bool) -> None:
    """List your SSH keys."""
    client = hosts.connect()
    rows = client.get("/account/keys")
    if as_json:
        return output.print_json(rows)
    email = client.get("/account")["email"]
    if not rows:
        return output.warn("You have no SSH keys.")
    output.header(f"{email} keys")
    for row in rows:
        click.echo(row["public_key"] if whole else output.plain(f"{row['fingerprint']} {row['comment']}".strip()))


@command("keys:add")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def keys_add(file: Path | None) -> None:
    """Add an SSH public key: the file given, or the one in ~/.ssh."""
    path = file or _own_key()
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DavitError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.") from None
    if "PRIVATE KEY" in text:
        raise DavitError(f"{path} is a private key, which must stay with you; give the .pub file beside it.")
    with action(f"Uploading {path} SSH key"):
        hosts.connect().post("/account/keys", {"public_key": text})


def _own_key() -> Path:
    found = sorted((Path.home() / ".ssh").glob("*.pub"), key=lambda path: "ed25519" not in path.name)
    if not found:
        raise DavitError("There is no SSH public key in ~/.ssh; make one with `ssh-keygen -t ed25519`.")
    return found[0]


@command("keys:remove")
@click.argument("key")
def keys_remove(key: str) -> None:
    """Remove an SSH key, by comment, fingerprint or id."""
    with action(f"Removing {key} SSH key"):
        hosts.connect().delete(f"/account/keys/{quote(key, safe='')}")


@command("keys:clear")
def keys_clear() -> None:
    """Remove all of your SSH keys."""
    client = hosts.connect()
    with action("Removing all SSH keys"):
        for row in client.get("/account/keys"):
            client.delete(f"/account/keys/{row['id']}")


@command("apps:leave")
@on_app
def leave(app: Target) -> None:
    """End your collaboration on somebody's app."""
    email = app.client.get("/account")["email"]
    with action(f"Leaving {hexed(app.app)}"):
        app.client.delete(f"{app.path}/collaborators/{quote(email, safe='')}")


@command("accounts")
@json_option
def accounts(as_json: bool) -> None:
    """List all accounts of this Davit (admins)."""
    rows = hosts.connect().get("/davit/accounts")
    if as_json:
        return output.print_json(rows)
    output.table([(row["email"], row["name"] or "", output.when(row["created_at"])) for row in rows], ("Email", "Name", "Since"))


@command("accounts:create")
@click.argument("email")
@click.option("--name", help="the person's name")
@click.option("--admin", is_flag=True, help="may do everything")
def accounts_create(email: str, name: str | None, admin: bool) -> None:
    """Make an account (admins); prints its first token, which is shown only now."""
    client = hosts.connect()
    with action(f"Creating account {email}"):
        row = client.post("/davit/accounts", {"email": email, "name": name, "admin": admin})
    click.echo(row["access_token"]["token"])
    output.warn(f"Give this token to {row['email']}: it is their login (`davit login {client.url}`) and is not shown again.")


@command("accounts:remove")
@click.argument("email")
def accounts_remove(email: str) -> None:
    """Remove an account that owns no apps (admins)."""
    with action(f"Removing account {email}"):
        hosts.connect().delete(f"/davit/accounts/{quote(email, safe='')}")


@command("accounts:2fa:disable")
@click.argument("email")
def accounts_two_factor_disable(email: str) -> None:
    """Turn the two-factor authentication of somebody off who has lost the device (admins)."""
    with action(f"Turning the two-factor authentication of {email} off"):
        hosts.connect().delete(f"/davit/accounts/{quote(email, safe='')}/two-factor")


@command("accounts:password")
def accounts_password() -> None:
    """Set your password, for those logins that take no token."""
    client = hosts.connect()
    words = "Present password (leave empty if you have none)"
    present = click.prompt(words, default="", hide_input=True, show_default=False, err=True)
    password = click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    with action("Setting your password"):
        client.patch("/account", {"password": present, "new_password": password} if present else {"password": password})
