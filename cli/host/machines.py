"""host:user-data, host:seed, host:check: hosts from cloud-init. Thin: what they write is composed in hosts/."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from foundation.errors import InvalidParams

LEAST_THAT_CLOUDS_TAKE = 16 << 10
"""Bytes of user-data (Amazon EC2's User Guide, instance metadata and user data)."""


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a host is to be."""
    for option in reversed(
        [
            click.option("--domain", help="Apps answer at NAME.DOMAIN."),
            click.option("--admin-key", "admin_keys", multiple=True, help="An SSH public key, or the file that holds it."),
            click.option("--archive", help="Davit as a tar archive: its URL."),
            click.option("--sha256", help="The archive's SHA-256."),
            click.option("--git", help="Davit from a git repository: its URL."),
            click.option("--version", "ref", default="main", show_default=True, help="Which branch, tag or commit of it."),
            click.option("--stack", help="A ready stack (`davit stack:export`): its URL; built on the host otherwise."),
            click.option("--stack-sha256", help="The stack's SHA-256."),
            click.option("--hostname", help="The host's name."),
            click.option("--swap", type=int, default=2048, show_default=True, help="MiB of swap."),
            click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of Davit's."),
            click.option("--with-secrets", is_flag=True, help="Allow settings and addresses with a password in them."),
            click.option("--ca", "certificates", multiple=True, type=click.Path(exists=True), help="A PEM file to trust."),
            click.option("--mirror", help="Where the host's packages come from."),
        ]
    ):
        function = option(function)
    return function


@click.command("host:user-data")
@_options
def user_data(**options: Any) -> None:
    """Print the user-data (#cloud-config) that turns a blank cloud image (Debian 12 or 13, Ubuntu 24.04) into a Davit host."""
    from hosts import cloudconfig

    text = cloudconfig.user_data(_host(options))
    click.echo(text, nl=False)
    if (size := len(text.encode())) > LEAST_THAT_CLOUDS_TAKE:
        click.echo(f"This is {size >> 10} KB of user-data; Amazon EC2 takes 16 KB, other clouds and a seed disk more.", err=True)


@click.command("host:seed")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_options
@click.option("--user-data", "given", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Your own user-data.")
@click.option("--network", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A network configuration.")
@click.option("--instance", default="davit-1", show_default=True, help="Another name makes cloud-init begin anew.")
def seed(file: Path, given: Path | None, network: Path | None, instance: str, **options: Any) -> None:
    """Write the NoCloud seed disk for a virtual machine or a machine without a cloud."""
    from hosts import cloudconfig
    from hosts import seed as disk

    text = _checked(_text(given)) if given else cloudconfig.user_data(_host(options))
    disk.write(file, text, disk.meta_data(instance, options["hostname"]), network.read_text() if network else None)
    click.echo(f"Wrote {file}.")


@click.command("host:check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """See whether cloud-init understands user-data: by its own schema, and for unknown keys, which that lets pass."""
    _checked(_text(file))
    click.echo(f"{file} is sound.")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidParams("User-data is no text in UTF-8.") from None


def _checked(text: str) -> str:
    from foundation import programs, yamltext
    from hosts import vocabulary

    if not text.startswith("#cloud-config"):
        raise InvalidParams("User-data must begin with the line #cloud-config.")
    vocabulary.check(yamltext.load(text, "User-data"))
    program = shutil.which("cloud-init")
    if program:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            done = programs.run([program, "schema", "--config-file", file.name], check=False)
        if done.returncode:
            told = (done.stdout + done.stderr).decode(errors="replace").replace(file.name, "user-data")
            raise InvalidParams(f"cloud-init refuses it: {' '.join(told.split())}")
    return text


def _host(options: dict[str, Any]) -> Any:
    from hosts.plan import Download, Host

    if not options["domain"]:
        raise InvalidParams("Say where apps will answer: --domain apps.example.com.")
    downloads = {}
    for what, url, digest in (("release", "archive", "sha256"), ("stack", "stack", "stack_sha256")):
        downloads[what] = Download(options[url], (options[digest] or "").lower()) if options[url] else None
    pairs = [text.partition("=") for text in options["settings"]]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise InvalidParams(f"--set {wrong[0]} is not NAME=VALUE.")
    return Host(
        domain=options["domain"],
        admin_keys=tuple(_key(text) for text in options["admin_keys"]),
        release=downloads["release"],
        git=options["git"],
        ref=options["ref"],
        stack=downloads["stack"],
        hostname=options["hostname"],
        swap=options["swap"],
        settings={name: value for name, _, value in pairs},
        secrets=options["with_secrets"],
        certificates=tuple(Path(name).read_text() for name in options["certificates"]),
        mirror=options["mirror"],
    )


def _key(text: str) -> str:
    path = Path(text).expanduser()
    return path.read_text().strip() if " " not in text and path.is_file() else text
