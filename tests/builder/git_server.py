"""``python -m tests.builder.git_server http|ssh HOME LIMIT PUSHES``: one of the git doors in a process of its own, on a free port.

The port is written to HOME/http.port or HOME/ssh.port. HTTP runs in gunicorn's gthread worker, as in production.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

from builder import git, receive
from builder.http import HttpDoor
from builder.repositories import Repositories
from builder.ssh import SshDoor
from foundation.settings import Address
from tests.builder.git_platform import ScriptedPlatform


def _announce(home: Path, name: str, port: int) -> None:
    (home / f"{name}.port.new").write_text(str(port))
    (home / f"{name}.port.new").rename(home / f"{name}.port")


def serve_http(home: Path, limit: int, most: int) -> None:
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            options = {"bind": "127.0.0.1:0", "worker_class": "gthread", "workers": 1, "threads": 2 * most + 4, "loglevel": "warning"}
            for key, value in {**options, "when_ready": ready, "graceful_timeout": 1}.items():
                self.cfg.set(key, value)

        def load(self) -> Any:
            return HttpDoor(Repositories(home / "repos"), ScriptedPlatform(home), limit, most=most)

    def ready(arbiter: Any) -> None:
        _announce(home, "http", arbiter.LISTENERS[0].sock.getsockname()[1])

    Server().run()


def serve_ssh(home: Path, limit: int, most: int) -> None:
    async def run() -> None:
        platform = ScriptedPlatform(home)
        door = SshDoor(platform.repositories, platform, limit, home / "ssh_host_ed25519", most)
        _announce(home, "ssh", await door.start(Address("127.0.0.1", 0)))
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    receive.KEEPALIVE = 0.3  # so that a test of quiet builds need not take long,
    git.MEMORY = 128 << 20  # and one of greedy packs neither
    logging.basicConfig(level=logging.WARNING)
    sys.argv[0] = "git_server"
    which, where, size, pushes = sys.argv[1:]
    sys.argv = sys.argv[:1]
    {"http": serve_http, "ssh": serve_ssh}[which](Path(where), int(size), int(pushes))
