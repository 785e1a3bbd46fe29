"""OSv's own REST server, where the user's modules bring it (``libhttpserver-api.so``): memory, threads, uptime, the host name.

It has no authentication and may do anything in its guest; it is reached on the guest's address by this host's root alone, for
dynos cannot reach one another, the router asks for the app's port only, and the firewall lets no other user of the host pass.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml

from foundation import yamltext
from foundation.errors import InvalidParams

PORT = 8000
SERVER = "libhttpserver-api.so"
CLOUD_INIT = ("usr/mgmt/cloud-init.so", "libcloud-init.so")
"""Where OSv's module has it, and where some have put it."""
CLOUD_INIT_VARIABLE = "OSV_CLOUD_INIT"
"""The config var that holds an app's document for OSv's cloud-init; the guest does not find it in its environment."""

_LONGEST = 1 << 20
_KEYS = {"run": list, "mounts": list, "hostname": str, "files": (dict, list)}


@dataclass(frozen=True)
class Figures:
    """What OSv tells of itself: bytes, seconds, and how many threads there are."""

    memory_total: int
    memory_free: int
    uptime: float
    threads: int


async def figures(address: str, seconds: float = 3.0, port: int = PORT) -> Figures | None:
    """Ask the guest at ``address``; None when it does not answer, or not sensibly."""
    try:
        total, free, uptime, threads = [
            await ask(address, "GET", path, seconds, port)
            for path in ("/os/memory/total", "/os/memory/free", "/os/uptime", "/os/threads")
        ]
        return Figures(int(total), int(free), float(uptime), len(threads["list"]))
    except (OSError, ValueError, KeyError, TypeError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        return None


async def set_hostname(address: str, name: str, seconds: float = 3.0, port: int = PORT) -> bool:
    """Give the guest its name; whether it took it."""
    try:
        await ask(address, "POST", f"/os/hostname?name={quote(name, safe='')}", seconds, port)
    except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        return False
    return True


async def ask(address: str, method: str, path: str, seconds: float, port: int = PORT) -> Any:
    """One request; what its JSON says (None for an empty answer).

    Raises:
        ValueError: the answer is no success or no JSON.
        OSError, asyncio.TimeoutError: there is none.
    """
    return await asyncio.wait_for(_ask(address, method, path, port), seconds)


async def _ask(address: str, method: str, path: str, port: int) -> Any:
    reader, writer = await asyncio.open_connection(address, port, limit=_LONGEST)
    try:
        writer.write(f"{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise ValueError(f"OSv answers {status}")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None
        )
        body = await reader.readexactly(min(length, _LONGEST)) if length is not None else await reader.read(_LONGEST)
        return json.loads(body) if body.strip() else None
    finally:
        writer.close()


@dataclass(frozen=True)
class CloudInit:
    """An app's document: what OSv's module is given, and the host name, which is set otherwise (the module waits for ever for
    a DHCP server to tell it)."""

    document: bytes | None
    hostname: str | None


def cloud_init(text: str) -> CloudInit:
    """Read what an app gives for OSv's cloud-init.

    Raises:
        InvalidParams: it is no YAML, or has keys or types that OSv's module does not know (which it would pass over in silence).
    """
    document = yamltext.load(text, CLOUD_INIT_VARIABLE)
    if not isinstance(document, Mapping):
        raise InvalidParams(f"{CLOUD_INIT_VARIABLE} must be a mapping with some of: {', '.join(_KEYS)}.")
    for key, value in document.items():
        if key not in _KEYS:
            raise InvalidParams(f"{CLOUD_INIT_VARIABLE} has the key “{str(key)[:60]}”; OSv knows {', '.join(_KEYS)}.")
        if not isinstance(value, _KEYS[key]):  # type: ignore[arg-type]
            raise InvalidParams(f"{CLOUD_INIT_VARIABLE}: “{key}” has the wrong type.")
    rest = {key: value for key, value in document.items() if key != "hostname"}
    return CloudInit(yaml.safe_dump(rest, sort_keys=False).encode() if rest else None, document.get("hostname"))
