"""host:user-data, host:seed, host:check: hosts from cloud-init. Thin: what they write is composed in hosts/."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from foundation.errors import InvalidParams

LEAST_THAT_CLOUDS_TAKE = 16 << 10
"""Bytes of user-data (Amazon EC2's User Guide, instance metadata and user data)."""


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a host is to be."""
    for option in reversed(
        [
            click.option("--domain", help="Apps answer at NAME.DOMAIN."),
            click.option("--admin-key", "admin_keys", multiple=True, help="An SSH public key, or the file that holds it."),
            click.option("--archive", help="Davit as a tar archive: its URL."),
            click.option("--sha256", help="The archive's SHA-256."),
            click.option("--git", help="Davit from a git repository: its URL."),
            click.option("--version", "ref", help="Which branch, tag or commit of it (main)."),
            click.option("--stack", help="A ready stack (`davit stack:export`): its URL; built on the host otherwise."),
            click.option("--stack-sha256", help="The stack's SHA-256."),
            click.option("--hostname", help="The host's name."),
            click.option("--swap", type=int, help="MiB of swap (2048)."),
            click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of Davit's."),
            click.option("--with-secrets", is_flag=True, help="Allow settings and addresses with a password in them."),
            click.option("--ca", "certificates", multiple=True, type=_FILE, help="A PEM file to trust."),
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
@click.option("--user-data", "given", type=_FILE, help="Your own user-data.")
@click.option("--network", type=_FILE, help="A network configuration.")
@click.option("--instance", default="davit-1", show_default=True, help="Another name makes cloud-init begin anew.")
def seed(file: Path, given: Path | None, network: Path | None, instance: str, **options: Any) -> None:
    """Write the NoCloud seed disk for a virtual machine or a machine without a cloud."""
    from hosts import cloudconfig
    from hosts import seed as disk

    if given:
        _only(options, "hostname")
    text = _checked(_text(given, "User-data"))[0] if given else cloudconfig.user_data(_host(options))
    if not instance.strip():
        raise InvalidParams("The instance needs a name: --instance davit-1.")
    disk.write(file, text, disk.meta_data(instance, options["hostname"]), _network(network) if network else None)
    click.echo(f"Wrote {file}.")
    if not given and not options["admin_keys"]:
        click.echo("It has no --admin-key: nobody will be able to log in by SSH.", err=True)


@click.command("host:check")
@click.argument("file", type=_FILE)
def check(file: Path) -> None:
    """See whether cloud-init understands user-data: by its own schema, and for unknown keys, which that lets pass."""
    _, whole = _checked(_text(file, "User-data"))
    unasked = " as far as can be seen here: cloud-init is not installed, so its schema was not asked"
    click.echo(f"{file} is sound{'' if whole else unasked}.")


def _text(file: Path, what: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidParams(f"{what} is no text in UTF-8.") from None
    except OSError as error:
        raise InvalidParams(f"{what} cannot be read: {error.strerror}.") from None


def _checked(text: str) -> tuple[str, bool]:
    """User-data that is sound, and whether cloud-init's schema says so, too."""
    from foundation import programs, yamltext
    from hosts import vocabulary

    if not re.match(r"#cloud-config\s", text):
        raise InvalidParams("User-data must begin with the line #cloud-config.")
    vocabulary.check(yamltext.load(text, "User-data", once=True))
    program = shutil.which("cloud-init")
    if program:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            done = programs.run([program, "schema", "--config-file", file.name], check=False)
        if done.returncode:
            told = " ".join((done.stdout + done.stderr).decode(errors="replace").replace(file.name, "user-data").split())
            raise InvalidParams(f"cloud-init refuses it: {re.sub(r'^.*schema errors: ', '', told)}")
    return text, program is not None


def _network(file: Path) -> str:
    from foundation import yamltext

    text = _text(file, "The network configuration")
    value = yamltext.load(text, "The network configuration", once=True)
    inner = value.get("network", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or inner.get("version") not in (1, 2):
        raise InvalidParams("The network configuration must be a mapping that has “version: 2” (netplan's) or “version: 1”.")
    return text


def _only(options: dict[str, Any], *allowed: str) -> None:
    """See that nothing else is asked for, which would be passed over."""
    flags = {parameter.name: parameter.opts[0] for parameter in click.get_current_context().command.params}
    for name, value in options.items():
        if name not in allowed and value not in (None, (), False):
            raise InvalidParams(
                f"--user-data is all that the host will be told; {flags[name]} would not be in it: leave one of them out."
            )


def _host(options: dict[str, Any]) -> Any:
    from hosts.plan import Download, Host

    if not options["domain"]:
        raise InvalidParams("Say where apps will answer: --domain apps.example.com.")
    for flag, name, of in (("sha256", "sha256", "archive"), ("stack-sha256", "stack_sha256", "stack"), ("version", "ref", "git")):
        if options[name] is not None and not options[of]:
            raise InvalidParams(f"--{flag} is there without --{of}, to which it belongs.")
    downloads = {}
    for what, url, digest in (("release", "archive", "sha256"), ("stack", "stack", "stack_sha256")):
        downloads[what] = Download(options[url], (options[digest] or "").lower()) if options[url] else None
    pairs = [text.partition("=") for text in options["settings"]]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise InvalidParams(f"--set {wrong[0]} is not NAME=VALUE.")
    return Host(
        domain=options["domain"].lower(),
        admin_keys=tuple(key for text in options["admin_keys"] for key in _keys(text)),
        release=downloads["release"],
        git=options["git"],
        ref="main" if options["ref"] is None else options["ref"],
        stack=downloads["stack"],
        hostname=options["hostname"],
        swap=2048 if options["swap"] is None else options["swap"],
        settings={name: value for name, _, value in pairs},
        secrets=options["with_secrets"],
        certificates=tuple(_text(file, f"The certificate {file}") for file in options["certificates"]),
        mirror=options["mirror"],
    )


def _keys(text: str) -> list[str]:
    """SSH keys: the one that it is, or those of the file that it names."""
    if " " in text.strip():
        return [text]
    path = Path(text).expanduser()
    if not text or not path.is_file():
        raise InvalidParams(f"--admin-key “{text}” is no SSH public key and no file.")
    lines = [line.strip() for line in _text(path, f"The SSH public key {path}").splitlines()]
    if keys := [line for line in lines if line and not line.startswith("#")]:
        return ["\n".join(keys)] if "PRIVATE KEY" in keys[0] else keys
    raise InvalidParams(f"--admin-key “{text}” is no SSH public key but an empty file.")
