"""Listening TCP sockets of a network namespace, read from /proc/PID/net/tcp and tcp6 (proc(5))."""

from __future__ import annotations

import ipaddress
import os
import struct

from runtime.driver import Listener

_LISTEN = "0A"
_PIECE, _MOST = 4096, 64 << 10


def parse(text: str) -> list[Listener]:
    """The listening sockets in the text of a tcp or tcp6 table."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == _LISTEN:
            address, _, port = words[1].partition(":")
            found.append(Listener(_address(address), int(port, 16)))
    return found


def _address(digits: str) -> str:
    """The kernel prints addresses as 32-bit words in the host's byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return str(ipaddress.ip_address(packed))


def beginning(fd: int) -> str:
    """A table up to the first line of a socket that does not listen: the kernel has those that do first, and an app may have so
    many others that all of them take it a tenth of a second, for each look.

    Returns:
        whole lines, 64 KiB at the most (of some 150 bytes each).
    """
    text = b""
    while len(text) < _MOST and (piece := os.read(fd, _PIECE)):
        text += piece
        rows = text[: text.rfind(b"\n")].split(b"\n")[1:]
        if rows and rows[-1].split()[3:4] != [_LISTEN.encode()]:
            break
    return text.rpartition(b"\n")[0].decode()


def listeners(pid: int) -> list[Listener]:
    """The listening sockets in the network namespace of ``pid``, the first few hundred; none when it has ended."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            fd = os.open(f"/proc/{pid}/net/{table}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found += parse(beginning(fd))
        except OSError:
            continue
        finally:
            os.close(fd)
    return found
