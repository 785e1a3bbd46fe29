"""certs: certificates of an app's own for its domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from cli import output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


def _read(*files: str) -> str:
    try:
        return "\n".join(Path(file).read_text() for file in files)
    except (OSError, UnicodeDecodeError) as error:
        name = getattr(error, "filename", None) or files[0]
        raise DavitError(f"{name} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.") from None


def _path(app: Target, name: str) -> str:
    return f"{app.path}/sni-endpoints/{quote(name, safe='')}"


def _only(app: Target, name: str | None) -> Any:
    if name:
        return app.client.get(_path(app, name))
    rows = app.get("/sni-endpoints")
    if len(rows) != 1:
        raise DavitError("Name the certificate with --name; `davit certs` lists them." if rows else "There are no certificates.")
    return rows[0]


@command("certs")
@on_app
@json_option
def certs(app: Target, as_json: bool) -> None:
    """List an app's certificates."""
    rows = app.get("/sni-endpoints")
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo(f"{app.app} has no SSL certificates.\nUse davit certs:add CRT KEY to add one.")
    output.table(
        [
            (
                row["name"],
                ", ".join(row["ssl_cert"]["cert_domains"]),
                output.when(row["ssl_cert"]["expires_at"]),
                len(row["domains"]),
            )
            for row in rows
        ],
        ("Name", "Common Name(s)", "Expires", "Domains"),
    )


@command("certs:add")
@on_app
@click.argument("crt")
@click.argument("key")
@click.option("--domain", "domains", multiple=True, help="serve this domain with it (may be repeated)")
def certs_add(app: Target, crt: str, key: str, domains: tuple[str, ...]) -> None:
    """Upload a certificate (with its chain) and its private key, two PEM files."""
    sent = {"certificate_chain": _read(crt), "private_key": _read(key)}
    with action(f"Adding SSL certificate to {hexed(app.app)}"):
        row = app.client.post(f"{app.path}/sni-endpoints", sent)
    for domain in domains:
        with action(f"Serving {domain} with {row['name']}"):
            app.client.patch(f"{app.path}/domains/{quote(domain, safe='')}", {"sni_endpoint": row["name"]})
    click.echo(row["name"])


@command("certs:info")
@on_app
@click.option("--name", help="the certificate's name; not needed when there is one")
@json_option
def certs_info(app: Target, name: str | None, as_json: bool) -> None:
    """Show a certificate."""
    row = _only(app, name)
    if as_json:
        return output.print_json(row)
    cert = row["ssl_cert"]
    output.header(row["name"])
    output.pairs(
        [
            ("Common Name(s)", ", ".join(cert["cert_domains"])),
            ("Subject", cert["subject"]),
            ("Issuer", cert["issuer"]),
            ("Starts At", output.when(cert["starts_at"])),
            ("Expires At", output.when(cert["expires_at"])),
        ]
    )


@command("certs:update")
@on_app
@click.argument("crt")
@click.argument("key")
@click.option("--name", help="the certificate's name; not needed when there is one")
def certs_update(app: Target, crt: str, key: str, name: str | None) -> None:
    """Put another certificate in a certificate's place."""
    row = _only(app, name)
    with action(f"Updating SSL certificate {row['name']} for {hexed(app.app)}"):
        app.client.patch(_path(app, row["name"]), {"certificate_chain": _read(crt), "private_key": _read(key)})


@command("certs:remove")
@on_app
@click.option("--name", help="the certificate's name; not needed when there is one")
def certs_remove(app: Target, name: str | None) -> None:
    """Forget a certificate that serves no domain."""
    row = _only(app, name)
    with action(f"Removing SSL certificate {row['name']} from {hexed(app.app)}"):
        app.client.delete(_path(app, row["name"]))
