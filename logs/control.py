"""``run/logs.sock``: the packets of :mod:`foundation.wire`, answered inside the collector's own loop.

foundation.wire's server lives in asyncio, whose import alone would take half of the memory that this process may use;
the calls here need no waiting, so a few lines answer the same packets.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PACKET = 65536
_CLIENTS = 64


class Control:
    """Answers calls on a unix SEQPACKET socket.

    Args:
        path: where to listen; an old socket there is replaced. Mode 0600, owned by the owner of its directory.
        calls: name → function of the call's params; must return at once.
    """

    def __init__(self, path: Path, calls: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
        self._calls = calls
        self._owner = path.parent.stat().st_uid
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.listener.bind(os.fspath(fresh))
        fresh.chmod(0o600)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(fresh, owner.st_uid, owner.st_gid)
        self.listener.listen(16)
        self.listener.setblocking(False)
        fresh.rename(path)
        self.clients: dict[int, socket.socket] = {}

    def accept(self) -> int | None:
        """Let the next caller in; the descriptor to poll, or None when there was none or it may not talk."""
        try:
            client, _ = self.listener.accept()
        except OSError:
            return None
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid(), self._owner) or len(self.clients) >= _CLIENTS:
            client.close()
            return None
        client.setblocking(False)
        self.clients[client.fileno()] = client
        return client.fileno()

    def serve(self, fd: int) -> bool:
        """Answer what the caller behind ``fd`` sent; False when it hung up (its socket is closed then)."""
        client = self.clients[fd]
        try:
            data = client.recv(_PACKET)
            if data:
                client.send(json.dumps(self._answer(data)).encode())
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        del self.clients[fd]
        client.close()
        return False

    def close(self) -> None:
        """Stop listening and hang up."""
        self.listener.close()
        for client in self.clients.values():
            client.close()

    def _answer(self, data: bytes) -> dict[str, Any]:
        try:
            message = json.loads(data)
            name, params = message["call"], message["params"]
            if not isinstance(name, str) or not isinstance(params, dict):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            return _error("bad_request", "The packet is not a call.", 400)
        if name not in self._calls:
            return _error("not_found", f"There is no call named “{name}” here.", 404)
        return {"result": self._calls[name](params)}


def _error(id: str, message: str, status: int) -> dict[str, Any]:
    return {"error": {"id": id, "message": message, "status": status}}
