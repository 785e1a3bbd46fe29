"""The router as the formation manager sees it: calls on its socket, repeated until they are answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation import wire
from foundation.errors import DavitError, Unavailable

log = logging.getLogger("runtime")


class RouterClient:
    """Talks to the router process.

    Args:
        socket: run/router.sock.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def sync(self, app_id: str) -> None:
        """Make the routes as the database says; returns when they are in force, however long that takes: while the router
        process is away HAProxy serves the old dynos, so they must stay."""
        pause = 0.02
        while True:
            try:
                await wire.acall(self.socket, "sync", {"app_id": app_id}, timeout=20)
                return
            except DavitError as error:
                if not isinstance(error, Unavailable):
                    log.warning("the router could not take a route: %s", error.message, extra={"app_id": app_id})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def quiet(self, app_ids: Sequence[str]) -> dict[str, float]:
        """For how many seconds nobody has asked these apps anything; none is named while the router is away."""
        if not app_ids:
            return {}
        try:
            answer = await wire.acall(self.socket, "quiet", {"app_ids": list(app_ids)}, timeout=10)
        except DavitError:
            return {}
        return {str(app_id): float(seconds) for app_id, seconds in answer.items()}

    async def drained(self, app_id: str, addresses: Sequence[tuple[str, int]], timeout: float) -> None:
        """Return when none of these dynos answers a request any more, or after ``timeout`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = 0.05
        params: dict[str, Any] = {"app_id": app_id, "addresses": [list(address) for address in addresses]}
        while loop.time() < deadline:
            try:
                if (await wire.acall(self.socket, "connections", params, timeout=5)).get("count") == 0:
                    return
            except DavitError:
                pass  # HAProxy serves on; ask again when its keeper is back
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)
