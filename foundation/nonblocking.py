"""Sockets that do not block: what they raise when there is nothing to do, and the one way to read from and to write to one."""

from __future__ import annotations

import contextlib
import socket
import ssl

CHUNK = 65536
WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a socket that does not block raises when there is nothing to do at the moment."""


def receive_what_came(line: socket.socket) -> bytes | None:
    """What has come: nothing at the end, or when the other side has gone, and None when nothing is here at the moment."""
    try:
        return line.recv(CHUNK)
    except WAIT:
        return None
    except OSError:
        return b""


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


def notice_vanishing(line: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without a word, within about two minutes (tcp(7))."""
    with contextlib.suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3)):
            line.setsockopt(socket.IPPROTO_TCP, option, value)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)
