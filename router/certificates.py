"""The router's certificates: given ones as they are, else an own authority and a certificate for ``*.DOMAIN``.

``keys/tls.pem`` (certificate chain and key) is the default; every ``*.pem`` in ``keys/tls.d`` is offered to clients that
ask for its names (SNI).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundation.authority import Authority
from foundation.settings import Settings


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
    files = [keys / "tls.pem", *sorted((keys / "tls.d").glob("*.pem"))] if settings.https else []
    return [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]
