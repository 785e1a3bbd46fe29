"""When a web dyno counts as up: it listens on PORT where the router can reach it, and its health checks pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.driver import Listener

_LOOPBACK = ("127.", "::1", "::ffff:127.")
_BODY = 1 << 20
"""Bytes of an answer that are looked through."""
_PIECES = 4096
"""Headers of an answer, and chunks of its body, that are read: whoever sends more of them, and tiny ones, keeps Davit busy."""


@dataclass(frozen=True)
class Check:
    """A health check of app.json (``healthchecks.web[]``).

    Attributes:
        path: what is asked for by GET; 200 to 399 passes.
        attempts: how often it may fail in a row.
        timeout: seconds for one answer.
        wait: seconds between two attempts.
        content: text that the body must contain, within its first MiB.
        delay: seconds before the first attempt.
    """

    path: str
    attempts: int = 3
    timeout: float = 5
    wait: float = 5
    content: str | None = None
    delay: float = 0


def listening(listeners: Sequence[Listener], port: int) -> bool:
    """Whether something listens on ``port`` on an address that is not only the dyno's loopback."""
    return any(one.port == port and not one.address.startswith(_LOOPBACK) for one in listeners)


def explain(listeners: Sequence[Listener], port: int) -> str:
    """Why the app cannot be reached, for the person who has to mend it."""
    if any(one.port == port for one in listeners):
        return (
            f"It listens on 127.0.0.1:{port} only, where nothing outside the dyno can reach it: make it listen on 0.0.0.0:$PORT."
        )
    others = sorted({one.port for one in listeners})
    if others:
        return (
            f"It listens on port {', '.join(map(str, others))} instead of $PORT ({port}): "
            "make it read the environment variable PORT."
        )
    return "It listens on no port at all: the web process must bind 0.0.0.0:$PORT."


async def passes(check: Check, address: str, port: int, host: str) -> str | None:
    """Ask once; None when it passed, else what came instead."""
    try:
        return await asyncio.wait_for(_ask(check, address, port, host), check.timeout)
    except (asyncio.TimeoutError, TimeoutError):
        return f"no answer within {check.timeout:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return f"no HTTP answer ({error or type(error).__name__})"


async def _ask(check: Check, address: str, port: int, host: str) -> str | None:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        request = (
            f"GET {check.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: davit-healthcheck\r\n"
            "X-Forwarded-Proto: https\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
        writer.write(request.encode())
        status, headers = await _head(reader)
        while 100 <= status < 200 and status != 101:  # before the answer proper
            status, headers = await _head(reader)
        if not 200 <= status < 400:
            return f"status {status}"
        if check.content is not None and check.content.encode() not in await _body(reader, headers):
            return "the expected text is missing from the answer"
        return None
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    """The status and the headers, by their names in small letters.

    Raises:
        ValueError: it is no HTTP, or has no end.
    """
    words = (await reader.readline()).split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("what came is something else")
    headers: dict[bytes, bytes] = {}
    for _ in range(_PIECES):
        line = (await reader.readline()).strip()
        if not line:
            return int(words[1]), headers
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    raise ValueError("its headers have no end")


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    """The body as far as it is looked through; it may come in as many pieces as the server likes."""
    if headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
        return await _chunks(reader)
    left = min(int(headers.get(b"content-length") or _BODY), _BODY)
    body = bytearray()
    while left > len(body) and (piece := await reader.read(left - len(body))):
        body += piece
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    for _ in range(_PIECES):
        size = int((await reader.readline()).partition(b";")[0], 16)
        body += await reader.readexactly(max(0, min(size, _BODY - len(body))))
        if size <= 0 or len(body) == _BODY:
            break
        await reader.readline()
    return bytes(body)


async def until_listening(read: Callable[[], Sequence[Listener]], port: int) -> None:
    """Return when the port is bound; looks often at first (most apps bind within half a second), then less."""
    pause = 0.003
    while not listening(read(), port):
        await asyncio.sleep(pause)
        pause = min(pause * 1.01, 0.05)


async def until_healthy(check: Check, address: str, port: int, host: str) -> str | None:
    """Attempt as often as allowed; None when it passed, else the last thing that came instead."""
    await asyncio.sleep(check.delay)
    problem: str | None = "was not asked"
    for attempt in range(check.attempts):
        if attempt:
            await asyncio.sleep(check.wait)
        problem = await passes(check, address, port, host)
        if problem is None:
            return None
    return problem
