"""Sockets that do not block: what they raise when there is nothing to do, and the one way to write what one takes."""

from __future__ import annotations

import socket
import ssl

CHUNK = 65536
WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a socket that does not block raises when there is nothing to do at the moment."""


def send_what_fits(line: socket.socket, pending: bytearray) -> bool:
    """Write what the socket takes now, and take that off ``pending``.

    Returns:
        whether the other side is still there; when it has gone, nothing is pending any more.
    """
    try:
        while pending:
            del pending[: line.send(pending[:CHUNK])]
    except WAIT:
        pass
    except OSError:
        pending.clear()
        return False
    return True
