"""Connections into a dyno, for ``heroku ps:forward`` and ``ps:socks``: to its own ports and nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from foundation.errors import Conflict

SECONDS = 5.0
"""How long a connection may take to come about."""
LOOPBACK = "127.0.0.1"


async def connect(line: Callable[[], socket.socket], addresses: Sequence[str], port: int) -> socket.socket:
    """A TCP connection to ``port`` at the first of the addresses that takes one.

    Args:
        line: makes a socket that is not connected (it may block), in the network that the addresses are in.

    Returns:
        a socket that does not block, the caller's to close.

    Raises:
        Conflict: nothing listens there.
    """
    for address in addresses:
        made = await _made(line)
        made.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(made, (address, port)), SECONDS)
        except (OSError, asyncio.TimeoutError):
            made.close()
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise Conflict(f"Nothing listens on port {port} in that dyno.")


async def _made(line: Callable[[], socket.socket]) -> socket.socket:
    """Make it in a thread; who is cancelled meanwhile waits for that, since the caller closes what it is made of."""
    making = asyncio.ensure_future(asyncio.to_thread(line))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait({making})
        if not making.cancelled() and making.exception() is None:
            making.result().close()
        raise
