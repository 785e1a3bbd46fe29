"""Health checks of app.json: what passes, however the answer comes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import health, plans
from runtime.health import Check

_MISSING = "the expected text is missing from the answer"
_OK = b"HTTP/1.1 200 OK\r\n"


def _asked(check: Check, *pieces: bytes, stays: bool = False) -> str | None:
    """What comes of one attempt at a server that answers in these pieces, each read before the next is sent.

    Args:
        stays: whether it then keeps the connection, instead of closing it.
    """

    async def ask() -> str | None:
        over = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)
            if stays:
                await over.wait()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            try:
                return await health.passes(check, "127.0.0.1", server.sockets[0].getsockname()[1], "app.localhost")
            finally:
                over.set()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "pieces",
    [
        (_OK + b"\r\n", b"all is ", b"well"),
        (_OK, b"Content-Length: 11\r\n\r\n", b"all is well"),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"7\r\nall is \r\n", b"4;x=y\r\nwell\r\n", b"0\r\n\r\n"),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"200000\r\nall is well", b" " * 0x1FFFF5 + b"\r\n0\r\n\r\n"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", _OK + b"\r\nall is well"),
    ],
    ids=["headers first", "with its length", "in chunks", "in a large chunk", "after hints"],
)
def test_the_expected_text_is_found_however_it_comes(pieces: tuple[bytes, ...]) -> None:
    assert _asked(Check("/up", timeout=60, content="all is well"), *pieces) is None
    assert _asked(Check("/up", timeout=60, content="all is lost"), *pieces) == _MISSING


@pytest.mark.parametrize("sized", [b"Content-Length: 2\r\n\r\nup", b"Transfer-Encoding: chunked\r\n\r\n2\r\nup\r\n0\r\n\r\n"])
def test_nobody_waits_for_the_end_of_a_connection_that_is_kept(sized: bytes) -> None:
    assert _asked(Check("/up", timeout=60, content="down"), _OK + sized, stays=True) == _MISSING


def test_the_headers_are_no_part_of_the_text() -> None:
    assert _asked(Check("/up", timeout=60, content="secret"), _OK + b"X-Word: secret\r\n\r\n", b"nothing") == _MISSING


@pytest.mark.parametrize("said", [b"", b"220 mail\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 200\r\n" + b"a: b\r\n" * 5000, b"x" * 200_000])
def test_what_is_no_http_is_told(said: bytes) -> None:
    assert (_asked(Check("/up", timeout=60), said) or "").startswith("no HTTP answer")


@pytest.mark.parametrize("wrong", [b"Content-Length: many\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"])
def test_a_body_of_no_known_length_is_told(wrong: bytes) -> None:
    assert (_asked(Check("/up", timeout=60, content="x"), _OK + wrong) or "").startswith("no HTTP answer")


def test_a_flood_of_tiny_chunks_is_not_read_to_its_end() -> None:
    flood = _OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000
    assert _asked(Check("/up", timeout=60, content="y"), flood, stays=True) == _MISSING


def test_a_status_decides_without_a_text() -> None:
    assert _asked(Check("/up", timeout=60), b"HTTP/1.1 302 Found\r\n\r\n") is None
    assert _asked(Check("/up", timeout=60), b"HTTP/1.1 503 Busy\r\n\r\n") == "status 503"


def test_the_first_attempt_waits_for_its_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []

    async def pause(seconds: float) -> None:
        happened.append(seconds)

    async def passes(*asked: Any) -> str | None:
        happened.append("asked")
        return "status 503" if happened.count("asked") < 2 else None

    monkeypatch.setattr(health.asyncio, "sleep", pause)
    monkeypatch.setattr(health, "passes", passes)
    assert asyncio.run(health.until_healthy(Check("/up", wait=5, delay=20), "127.0.0.1", 5000, "app.localhost")) is None
    assert happened == [20, "asked", 5, "asked"]


def test_only_checks_of_a_start_are_made_and_each_as_app_json_says() -> None:
    found = [
        {"type": "startup", "path": "/up", "attempts": 2, "timeout": 3.0, "wait": 1.0, "initialDelay": 20.0, "content": "well"},
        {"type": "liveness", "path": "/alive"},
        {"path": "/"},
    ]
    release: Any = SimpleNamespace(slug=SimpleNamespace(healthchecks={"web": found}))
    assert plans._checks(release, "web") == [Check("/up", 2, 3.0, 1.0, "well", 20.0), Check("/")]
