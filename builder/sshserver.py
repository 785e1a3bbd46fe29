"""What Davit's SSH servers have in common: people come with a key, and only so many at the same time."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any, BinaryIO

import asyncssh

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
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    key = asyncssh.generate_private_key("ssh-ed25519", comment=f"davit@{socket.gethostname()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            _write_key(file, key)
        os.link(fresh, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        fresh.unlink()


def _write_key(file: BinaryIO, key: asyncssh.SSHKey) -> None:
    file.write(key.export_private_key("openssh"))
    file.flush()
    os.fsync(file.fileno())
