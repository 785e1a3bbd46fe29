"""Connections to a dyno's own ports, for who may run commands there: whatever the dyno can reach, a command in it reaches.

``davit ps:forward`` and ``ps:socks`` come by a WebSocket for each connection (:mod:`foundation.websocket`), the ``heroku``
command by SSH (:mod:`api.tunnel`).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from api import streams
from foundation import wire
from foundation.nonblocking import notice_vanishing
from foundation.settings import settings
from foundation.websocket import Messages, relay


def connect(app_id: str, dyno_id: str, port: int) -> socket.socket:
    """A connection to a port of a dyno's.

    Raises:
        DavitError: the dyno has gone, or nothing listens there.
    """
    asked = {"app_id": app_id, "inside": dyno_id, "port": port}
    [descriptor] = wire.call(settings().run / "runtime.sock", "oneoff.connect", asked, timeout=30).fds
    return socket.socket(fileno=descriptor)


def carry(web: Messages, line: socket.socket, may_go_on: Callable[[], bool]) -> None:
    """Carry bytes until both directions have ended, one side has gone, or the client may not do that any more.

    Args:
        may_go_on: asked every :data:`api.streams.RECHECK_SECONDS`.
    """
    asked = time.monotonic()

    def going() -> bool:
        nonlocal asked
        if time.monotonic() > asked + streams.RECHECK_SECONDS:
            asked = time.monotonic()
            return streams.working() and may_go_on()
        return streams.working()

    web.socket.setblocking(False)
    notice_vanishing(web.socket)
    relay(web, line, going)
