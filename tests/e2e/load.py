"""A steady load on one app, as its users make it, that notices every request that was not answered right.

    load = Load(("127.0.0.1", 8080), "hello.localhost", answer=re.compile(rb"version=(\\w+)"))
    async with load.running():
        load.event = "deploy"
        ...
    print(load.tally("deploy").failures)

Requests go out at fixed moments (a slow answer does not slow the next one down), some on connections that are kept and
some on fresh ones. What counts as failed is strict: anything but a complete 200 with the expected body. One thing is
counted apart, under its own name: a kept connection that was closed between the request's departure and the first byte
of an answer (``closed on reuse``), because RFC 9112 §9.3.1 lets a client try such a request again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

REFUSED, RESET, TIMEOUT, CUT, WRONG, MALFORMED, REUSE, BACKLOG = (
    "refused",
    "reset",
    "timeout",
    "cut off",
    "wrong body",
    "malformed",
    "closed on reuse",
    "not sent",
)


class Failed(Exception):
    """A request that was not answered right; ``kind`` is one of the constants here or ``status N``."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


@dataclass
class Tally:
    """What became of the requests that were sent during one event.

    Attributes:
        sent: all of them.
        answers: how many each version answered.
        failures: how many failed, by kind.
        samples: the first failures: seconds since the load began, what happened.
        seconds: how long each good answer took.
    """

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Requests that failed, whatever the kind."""
        return sum(self.failures.values())

    @property
    def median(self) -> float:
        """Seconds; 0 when nothing was answered."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    def percentile(self, part: float) -> float:
        """Seconds within which ``part`` (0 to 1) of the good answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0

    def add(self, other: Tally) -> None:
        """Count what another tally counted as well."""
        self.sent += other.sent
        self.answers += other.answers
        self.failures += other.failures
        self.samples += other.samples
        self.seconds += other.seconds


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def usable(self) -> bool:
        return not (self.reader.at_eof() or self.writer.is_closing())

    def close(self) -> None:
        self.writer.close()


class Load:
    """Requests ``GET path`` at a fixed rate.

    Args:
        address: where to connect: (host, port).
        host: the Host header.
        answer: matches a good body; its first group, when it has one, is the version that answered.
        rate: requests per second.
        kept: every how many-th request uses a fresh connection; the others reuse kept ones. 2 is half and half.
        timeout: seconds for one request, connecting included. Above the router's 30 s, so that H12 counts as a status.
        in_flight: requests that may be under way at once; beyond that they are counted as not sent.

    Attributes:
        event: the name under which the requests sent from now on are counted.
        latest: the version that answered last.
    """

    def __init__(
        self,
        address: tuple[str, int],
        host: str,
        *,
        answer: re.Pattern[bytes],
        path: str = "/",
        rate: float = 200,
        kept: int = 2,
        timeout: float = 35,
        in_flight: int = 2000,
    ) -> None:
        self.address, self.host, self.path = address, host, path
        self._answer, self._rate, self._every, self._timeout, self._limit = answer, rate, kept, timeout, in_flight
        self._tallies: dict[str, Tally] = {}
        self._idle: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.event = "steady"
        self.latest = ""

    def tally(self, event: str) -> Tally:
        """What was counted under an event's name so far."""
        return self._tallies.setdefault(event, Tally())

    @property
    def events(self) -> list[str]:
        """The names under which something was counted, in order of appearance."""
        return list(self._tallies)

    @property
    def total(self) -> Tally:
        """All events together."""
        total = Tally()
        for tally in self._tallies.values():
            total.add(tally)
        return total

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests while the block runs; leaving it waits for the answers to those under way."""
        sending = asyncio.get_running_loop().create_task(self._send_for_ever())
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await self._settle()

    async def send(self, count: int) -> Tally:
        """Send exactly ``count`` requests at the rate, wait for their answers, and return all that was counted."""
        await self._send(count)
        await self._settle()
        return self.total

    async def _settle(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _send_for_ever(self) -> None:
        await self._send(None)

    async def _send(self, count: int | None) -> None:
        loop = asyncio.get_running_loop()
        self._began = began = loop.time()
        number = 0
        while count is None or number < count:
            due = began + number / self._rate
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            self._start(number, self.tally(self.event))
            number += 1
            if number % 20 == 0:
                await asyncio.sleep(0)  # when this loop was held up it sends what is overdue, and still hears answers

    def _start(self, number: int, tally: Tally) -> None:
        tally.sent += 1
        if len(self._tasks) >= self._limit:
            self._fail(tally, Failed(BACKLOG, f"{self._limit} requests are under way"))
            return
        fresh = self._every > 0 and number % self._every == 0
        task = asyncio.get_running_loop().create_task(self._request(tally, fresh))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, tally: Tally, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            version = await asyncio.wait_for(self._exchange(fresh), self._timeout)
        except Failed as failed:
            self._fail(tally, failed)
        except (asyncio.TimeoutError, TimeoutError):
            self._fail(tally, Failed(TIMEOUT, f"after {self._timeout:g} s"))
        else:
            tally.seconds.append(loop.time() - began)
            tally.answers[version] += 1
            self.latest = version

    def _fail(self, tally: Tally, failed: Failed) -> None:
        tally.failures[failed.kind] += 1
        if len(tally.samples) < 20:
            tally.samples.append((round(asyncio.get_running_loop().time() - self._began, 3), str(failed)))

    async def _exchange(self, fresh: bool) -> str:
        kept = None if fresh else self._take_idle()
        connection = kept or await self._connect()
        keep = False
        try:
            status, body, keep = await self._talk(connection, last=fresh, reused=kept is not None)
        finally:
            if keep:
                self._idle.append(connection)
            else:
                connection.close()
        if status != 200:
            raise Failed(f"status {status}", body[:120].decode(errors="replace"))
        match = self._answer.search(body)
        if not match:
            raise Failed(WRONG, repr(body[:120]))
        return (match[1] if match.groups() else match[0]).decode(errors="replace")

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()  # the server said good-bye while it was idle, as it may
        return None

    async def _connect(self) -> _Connection:
        try:
            return _Connection(*await asyncio.open_connection(*self.address))
        except ConnectionRefusedError as error:
            raise Failed(REFUSED) from error
        except OSError as error:
            raise Failed(RESET, f"connecting: {error}") from error

    async def _talk(self, connection: _Connection, last: bool, reused: bool) -> tuple[int, bytes, bool]:
        """(status, body, whether the connection may be kept) of one request."""
        head = b""
        try:
            connection.writer.write(
                f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: davit-load\r\n"
                f"Connection: {'close' if last else 'keep-alive'}\r\n\r\n".encode()
            )
            await connection.writer.drain()
            head = await connection.reader.readuntil(b"\r\n\r\n")
            status, headers = _parse(head)
            body = await _body(connection.reader, headers)
        except asyncio.IncompleteReadError as error:
            if not head and not error.partial:
                raise Failed(REUSE if reused else RESET, "closed without an answer") from error
            raise Failed(CUT, f"{len(head) + len(error.partial)} bytes came") from error
        except asyncio.LimitOverrunError as error:
            raise Failed(MALFORMED, "endless headers") from error
        except OSError as error:
            raise Failed(REUSE if reused and not head else RESET, str(error)) from error
        return status, body, not last and headers.get("connection", "").lower() != "close"


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
    if not match:
        raise Failed(MALFORMED, first[:80])
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(match[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise Failed(MALFORMED, f"chunk size {line[:20]!r}") from None
            chunk = await reader.readexactly(size + 2)
            if not size:
                return body
            body += chunk[:-2]
    length = headers.get("content-length")
    if length is None:
        headers["connection"] = "close"
        return await reader.read()
    if not length.isdecimal():
        raise Failed(MALFORMED, f"Content-Length {length[:20]!r}")
    return await reader.readexactly(int(length))
