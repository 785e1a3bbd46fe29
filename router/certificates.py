"""The router's certificates: given ones as they are, else an own authority and a certificate for ``*.DOMAIN``.

``keys/tls.pem`` (certificate chain and key) is the default; every ``*.pem`` in ``keys/tls.d`` is offered to clients that
ask for its names (SNI). What users upload for their domains is in ``keys/endpoints``, with a list that says for which
domains each is offered: never for the names that it claims, which may be others'.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation import disk
from foundation.authority import Authority
from foundation.settings import Settings

log = logging.getLogger("router")


@dataclass(frozen=True)
class Bound:
    """A certificate and the domains that are served with it: chain and key are PEM."""

    id: str
    chain: str
    key: str
    hosts: tuple[str, ...]


def ensure(settings: Settings) -> tuple[Path, ...]:
    """The PEM files and directories for HAProxy, the default certificate first; made when there is none."""
    keys = settings.home / "keys"
    directory = keys / "tls.d"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    default = keys / "tls.pem"
    # Clients accept no wildcard directly below a top level: at *.localhost they warn, as for any unknown authority.
    Authority(keys / "ca.pem").ensure(default, [settings.domain, f"*.{settings.domain}"])
    return (default, directory) if any(directory.glob("*.pem")) else (default,)


def stamp(settings: Settings) -> Sequence[tuple[str, int, int]]:
    """Changes whenever a certificate does."""
    keys = settings.home / "keys"
    directories = [*sorted((keys / "tls.d").glob("*.pem")), *sorted((keys / "endpoints").glob("*"))]
    files = [keys / "tls.pem", *directories] if settings.https else []
    return [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]


def list_file(settings: Settings) -> Path | None:
    """The list of uploaded certificates (HAProxy's crt-list), when there are any."""
    path = settings.home / "keys" / "endpoints" / "list"
    return path if path.exists() else None


def place(settings: Settings, endpoints: Collection[Bound]) -> bool:
    """Write the uploaded certificates and their list; True when that changed anything.

    One that OpenSSL does not take is left out, and logged: HAProxy would not start with it.
    """
    directory = settings.home / "keys" / "endpoints"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    changed, lines = False, []
    for one in sorted(endpoints, key=lambda one: one.id):
        path = directory / f"{one.id}.pem"
        fresh = _write_changed(path, f"{one.chain}{one.key}\n")
        if fresh and not _usable(path):
            path.unlink()
            continue
        changed |= fresh
        lines.append(f"{path} {' '.join(sorted(one.hosts))}\n")
    kept = {line.split(" ", 1)[0] for line in lines}
    if lines:
        changed |= _write_changed(directory / "list", "".join(lines))
    for path in directory.iterdir():
        if str(path) not in kept and not (lines and path.name == "list"):
            path.unlink()
            changed = True
    return changed


def _write_changed(path: Path, text: str) -> bool:
    if path.exists() and path.read_text() == text:
        return False
    disk.write(path, text.encode())
    return True


def _usable(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    except (OSError, ValueError) as error:
        log.warning("an uploaded certificate cannot be used", extra={"endpoint": path.stem, "reason": str(error)})
        return False
    return True
