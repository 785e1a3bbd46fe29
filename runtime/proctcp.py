"""Listening TCP sockets of a network namespace, read from /proc/PID/net/tcp and tcp6 (proc(5))."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

from runtime.driver import Listener

_LISTEN = "0A"


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


def listeners(pid: int) -> list[Listener]:
    """The listening sockets in the network namespace of ``pid``; none when it has ended."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            found += parse(Path(f"/proc/{pid}/net/{table}").read_text())
        except OSError:
            continue
    return found
