"""One connection, tried from where a dyno's would come: whether packets pass is seen by sending one, not by reading rules."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

NAMESPACES = 3
"""Networks of dynos that are tried before it counts as failed: one may be about to be taken down."""
SECONDS = 3
"""How long a connection may take."""
_CONNECT = f"import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), {SECONDS}).close()"


class Target(NamedTuple):
    """Whom to call."""

    host: str
    address: str
    port: int


def networks(pid: int, proc: Path = Path("/proc")) -> list[Path]:
    """The dynos' networks that a runtime process holds ready for its next dynos: descriptors of network namespaces."""
    found: dict[str, Path] = {}
    try:
        own = str((proc / str(pid) / "ns" / "net").readlink())
        for descriptor in sorted((proc / str(pid) / "fd").iterdir()):
            link = str(descriptor.readlink())
            if link.startswith("net:[") and link != own:
                found.setdefault(link, descriptor)
    except OSError:
        pass  # it has ended, or is not ours to look at: what was found until now
    return list(found.values())


def target(urls: Iterable[str]) -> Target | None:
    """The first of ``urls`` that this host itself can call, at an address that dynos may call, too."""
    for url in urls:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        try:
            found = socket.getaddrinfo(parts.hostname, port, socket.AF_INET, socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            continue
        address = str(found[0][4][0])
        if ipaddress.ip_address(address).is_global and _host_reaches(address, port):
            return Target(str(parts.hostname), address, port)
    return None


def _host_reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), SECONDS).close()
        return True
    except OSError:
        return False


def passes(called: Target, namespaces: Iterable[Path]) -> bool:
    """Whether a connection comes about from one of the networks."""
    return any(_reaches(called, namespace) for namespace in list(namespaces)[:NAMESPACES])


def _reaches(called: Target, namespace: Path) -> bool:
    words = ["nsenter", f"--net={namespace}", sys.executable, "-I", "-c", _CONNECT, called.address, str(called.port)]
    try:
        return subprocess.run(words, capture_output=True, timeout=5 * SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
