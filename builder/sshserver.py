"""What Davit's SSH servers have in common: people come with a key, and only so many at the same time."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import asyncssh

from foundation import disk

CHUNK = 65536
OPTIONS: dict[str, Any] = {
    "encoding": None, "line_editor": False, "allow_scp": False, "agent_forwarding": False, "x11_forwarding": False,
    "compression_algs": ["none"], "server_version": "Davit", "login_timeout": 30, "keepalive_interval": 30,
    "keepalive_count_max": 4, "reuse_address": True,
}  # fmt: skip
"""For :func:`asyncssh.create_server`."""


class Crowd:
    """How many are connected.

    Args:
        most: at the same time; who comes then is hung up on.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.connections = 0


class KeyServer(asyncssh.SSHServer):
    """One connection: counted, and let in by a public key only. A subclass says which (``validate_public_key``)."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn
        self._crowd.connections += 1
        if self._crowd.connections > self._crowd.most:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.connections -= 1

    def begin_auth(self, username: str) -> bool:
        return True  # always; and whichever the user name, it is the key that counts

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return False


def ensure_host_key(path: Path) -> None:
    """Make the host key when there is none: once, whole or not at all, readable by its owner only."""
    if disk.is_written(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = asyncssh.generate_private_key("ssh-ed25519", comment=f"davit@{socket.gethostname()}")
    disk.write_first(path, key.export_private_key("openssh"))
