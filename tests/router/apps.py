"""Small apps that do as the path says, and a small client that hides nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1

from router.routes import DynoRow

_numbers = itertools.count(1)


class TinyApp:
    """An HTTP server in a thread: one dyno's process.

    Attributes:
        seen: the request heads that it was sent, as text.
        gate: ``/gate`` answers once this is set.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = threading.Event()
        self.number = next(_numbers)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def dyno(self, number: int = 1, **row: object) -> DynoRow:
        """A row for it."""
        values: dict[str, object] = {"state": "up", "routed": True, "leaving": False, "address": "127.0.0.1", "port": self.port}
        return DynoRow(f"{self.number:012d}", f"web.{number}", **{**values, **row})  # type: ignore[arg-type]

    def close(self) -> None:
        """End it and what it does."""
        self.gate.set()

        async def end() -> None:
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.seen.append(head)
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head.split("\r\n")[1:])}
        path = head.split(" ")[1].split("?")[0]
        if path == "/close":
            return False
        if path == "/garbage":
            writer.write(b"this is no HTTP\r\n\r\n")
            return False
        if path == "/silent":
            await asyncio.sleep(60)
        if path == "/stall":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            await asyncio.sleep(60)
        if path == "/half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            return False
        if path == "/gate":
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
            if headers.get("x-then") == "close":
                return False
        if path == "/drip":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(8):
                writer.write(b"6\r\ndata\n\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.4)
            writer.write(b"0\r\n\r\n")
            return True
        if path == "/socket":
            key = (
                headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            )  # RFC 6455, 1.3; HAProxy checks the answer
            accept = b64encode(sha1(key.encode()).digest()).decode()
            lines = [
                "HTTP/1.1 101 Switching Protocols",
                "Connection: Upgrade",
                "Upgrade: websocket",
                f"Sec-WebSocket-Accept: {accept}",
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            while data := await reader.read(65536):
                writer.write(data.upper())
            return False
        if headers.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._body(reader, headers)
        if path == "/502":
            writer.write(b"HTTP/1.1 502 Own\r\nContent-Length: 3\r\n\r\nown")
            return True
        answer = json.dumps({"dyno": self.number, "received": body, "head": head}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer))
        writer.write(answer if not head.startswith("HEAD") else b"")
        await writer.drain()
        return True

    @staticmethod
    async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> int:
        received = 0
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await reader.readline(), 16):
                received += len(await reader.readexactly(size))
                await reader.readline()
            await reader.readline()
        for _ in range(int(headers.get("content-length", 0)) // 65536 + 1):
            left = int(headers.get("content-length", 0)) - received
            received += len(await reader.readexactly(min(65536, left))) if left > 0 else 0
        return received


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        """The body, parsed."""
        value: dict[str, object] = json.loads(self.body)
        return value


class Client:
    """One connection to the router."""

    def __init__(self, port: int, host: str, timeout: float = 10) -> None:
        self.host = host
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._rest = b""

    def send(self, path: str = "/", *lines: str, method: str = "GET", body: bytes = b"", host: str | None = None) -> None:
        """Send a request."""
        head = [f"{method} {path} HTTP/1.1", f"Host: {host or self.host}", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        self.socket.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def answer(self, *, to_head: bool = False) -> Answer:
        """Read an answer; raises ConnectionError when the connection ends before it is whole."""
        head, self._rest = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        status = int(first.split(" ")[1])
        if to_head or status in (101, 204, 304):
            return Answer(status, headers, b"")
        return Answer(
            status, headers, self._chunks() if "transfer-encoding" in headers else self._take(int(headers["content-length"]))
        )

    def get(self, path: str = "/", *lines: str, **options: object) -> Answer:
        """Send and read."""
        self.send(path, *lines, **options)  # type: ignore[arg-type]
        return self.answer()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def more(self) -> bytes:
        """Whatever comes next."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        return self.socket.recv(65536)

    def _until(self, end: bytes) -> tuple[bytes, bytes]:
        while end not in self._rest:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError(f"the connection ended after {self._rest!r}")
            self._rest += data
        head, _, rest = self._rest.partition(end)
        return head, rest

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the connection ended within a body")
            self._rest += data
        body, self._rest = self._rest[:size], self._rest[size:]
        return body

    def _chunks(self) -> bytes:
        body = b""
        while True:
            size, self._rest = self._until(b"\r\n")
            body += self._take(int(size, 16))
            self._take(2)
            if int(size, 16) == 0:
                return body
