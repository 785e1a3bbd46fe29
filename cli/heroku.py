"""What points the unmodified ``heroku`` command at a Davit: environment variables, and the file of certificates that they name.

The command takes only its maker's domains and this machine's loopback address as a host, so a Davit elsewhere is reached
through a forwarder on this machine (:mod:`cli.forwarder`).
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from cli import hosts

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\s*", re.DOTALL)


def pointable(url: str) -> bool:
    """Whether the ``heroku`` command takes ``url`` as its host."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address("127.0.0.1")
    except ValueError:
        return False


def environment(url: str, token: str, bundle: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The variables.

    Args:
        url: the API as the ``heroku`` command reaches it: ``http://127.0.0.1:5000``.
        bundle: the file of certificates; see :func:`write_bundle`.
        given: the present environment: git settings that are in it stay.
    """
    secure = "https://" + url.partition("://")[2]
    values = {
        "HEROKU_HOST": url,
        "HEROKU_API_KEY": token,
        "HEROKU_PARTICLEBOARD_URL": url,
        "HEROKU_LOGIN_HOST": url,
        "HEROKU_BUILDPACK_REGISTRY_URL": url,
        "HEROKU_EXEC_URL": secure,
        "HEROKU_DATA_HOST": urlsplit(url).hostname or "",
        "NODE_EXTRA_CA_CERTS": str(bundle),
        "DISABLE_TELEMETRY": "true",
        "HEROKU_DISABLE_AUTOUPDATE": "true",  # each new home would start an updater in the background
    }
    if given.get("GIT_SSL_CAINFO"):  # it would win over the setting below
        values["GIT_SSL_CAINFO"] = str(bundle)
    return values | _git({f"http.{secure}/.sslCAInfo": str(bundle)}, given)


def _git(settings: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """git settings in the environment (git-config(1), GIT_CONFIG_COUNT), after those that are there."""
    count = given.get("GIT_CONFIG_COUNT", "")
    number = int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 0
    present = {given.get(f"GIT_CONFIG_KEY_{n}"): n for n in range(number)}
    values: dict[str, str] = {}
    for key, value in settings.items():
        place = present.get(key, number)
        number = max(number, place + 1)
        values |= {f"GIT_CONFIG_KEY_{place}": key, f"GIT_CONFIG_VALUE_{place}": value}
    return values | {"GIT_CONFIG_COUNT": str(number)}


def write_bundle(url: str, authority: str, given: Mapping[str, str]) -> Path:
    """One file with Davit's authority and whatever authorities the user had named before; NODE_EXTRA_CA_CERTS takes one."""
    path = hosts.file().parent / f"certificates-{re.sub(r'[^A-Za-z0-9.]+', '-', url)}.pem"
    others: list[str] = []
    for name in ("NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"):
        source = Path(given.get(name) or path)
        try:
            others += _PEM.findall(source.read_text(errors="replace"))
        except OSError:
            continue
    ours = _PEM.findall(authority)
    texts = dict.fromkeys(text.strip() for text in [*ours, *others])
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text("\n".join(texts) + "\n")
    fresh.rename(path)
    return path


def exports(values: Mapping[str, str]) -> str:
    """Lines for a shell to evaluate."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
