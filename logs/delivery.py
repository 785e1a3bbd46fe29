"""One drain's delivery: a thread that sends its lines over HTTPS or syslog; loaded when there is a first drain."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from foundation import outbound
from foundation.clock import now
from foundation.errors import DavitError
from logs import stream
from logs.drains import Drain
from logs.frames import frame
from logs.places import Place
from logs.stream import Line

log = logging.getLogger("logs")

BUFFER = 1024
"""Lines of one drain that wait at the most (Heroku's number)."""
BODY = 100 << 10
"""Bytes of a frame that are aimed at."""
TIMEOUT = 5.0
"""Seconds for one delivery."""
PAUSES = (1.0, 60.0)
"""Seconds after a failed delivery: the first pause, and the longest; each doubles the one before."""
COMPLAIN = 60.0
"""Seconds between two lines in the app's own log about one drain's trouble."""


@dataclass
class Lost:
    """Lines that were dropped and not yet told of."""

    count: int = 0
    since: float = 0.0


class Lag(NamedTuple):
    """What a drain has not got.

    Attributes:
        lines: how many wait or are under way.
        since: when the oldest of them was said, in seconds since the epoch; 0 where there is none.
        lost: lines that were dropped and that it was not told of yet.
    """

    lines: int
    since: float
    lost: int


class _Waiting(NamedTuple):
    """A line in the buffer, and how many before it were lost."""

    place: Place
    line: Line
    missed: int


class Refused(DavitError):
    """The other side does not want a frame."""

    id, status = "destination_unreachable", 502


class Delivery:
    """Sends one drain's lines; a thread of its own.

    Args:
        drain: where to.
        settled: called with the place of the last line that was delivered or given up, and with the lines up to there that
            were lost and not yet told of.
        complain: called with a sentence for the app's log.
        lost: what was lost before.
    """

    def __init__(
        self, drain: Drain, settled: Callable[[Place, Lost], None], complain: Callable[[str], None], lost: Lost | None = None
    ) -> None:
        self.drain = drain
        self.lost = lost or Lost()
        self.failures = 0
        self._settled, self._complain = settled, complain
        self._complained = -COMPLAIN
        self._waiting: deque[_Waiting] = deque()
        self._under_way: Sequence[_Waiting] = ()
        self._telling = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._line: _Https | _Syslog | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[tuple[Place, Line]], missed: int = 0) -> None:
        """Lines to send, before which ``missed`` others were lost; when too many wait, the oldest go."""
        with self._changed:
            if not lines:
                self._lose(missed)
            self._waiting.extend(_Waiting(place, line, 0 if n else missed) for n, (place, line) in enumerate(lines))
            for _ in range(len(self._waiting) - BUFFER):
                self._lose(1 + self._waiting.popleft().missed)
            self._changed.notify()

    def lag(self) -> Lag:
        """How far behind it is."""
        with self._changed:
            oldest = self._under_way or self._waiting
            lost = self.lost.count + self._telling + sum(one.missed for one in self._waiting)
            since = oldest[0].line.at.timestamp() if oldest else 0.0
            return Lag(len(self._under_way) + len(self._waiting), since, lost)

    def stop(self) -> None:
        """End; what waits is not sent."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def _lose(self, count: int) -> None:
        if count and not self.lost.count:
            self.lost = Lost(0, time.time())
        self.lost.count += count

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._deliver(batch)
        except Exception:
            log.exception("a drain's delivery failed", extra={"drain": self.drain.token})
        finally:
            self._hang_up()

    def _take(self) -> list[_Waiting]:
        """The next lines, as soon as there are some, none missing between them; nothing at the end."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return []
            self._lose(self._waiting[0].missed)
            batch: list[_Waiting] = []
            size = 0
            while self._waiting and size < BODY and not (batch and self._waiting[0].missed):
                batch.append(self._waiting.popleft())
                size += len(batch[-1].line.text) + 80
            self._under_way = batch
            return batch

    def _deliver(self, batch: Sequence[_Waiting]) -> None:
        """Send a batch, again and again until it is taken, refused for good, or the end has come."""
        id = str(uuid.uuid4())
        with self._changed:
            lost, self.lost = self.lost, Lost()
            self._telling = lost.count
        lines = [*([_overflow(lost)] if lost.count else []), *(one.line for one in batch)]
        owed = Lost()
        pause = PAUSES[0]
        while not self._stopping:
            try:
                self._send(lines, id)
            except Refused as error:
                self._trouble(error.message)
                owed = Lost(lost.count + len(batch), lost.since or time.time())
                with self._changed:
                    self.lost = Lost(owed.count + self.lost.count, owed.since)
                    self._telling = 0
                break
            except Exception as error:  # one that nobody foresaw, too: nobody would begin this thread anew
                self.failures += 1
                self._hang_up()
                if isinstance(error, DavitError):
                    self._trouble(error.message, certificate=isinstance(error, outbound.BadCertificate))
                else:
                    self._trouble("Davit could not send; its own log says why.")
                    log.warning("a drain waits", extra={"drain": self.drain.token}, exc_info=True)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, pause)
                pause = min(PAUSES[1], 2 * pause)
            else:
                self.failures = 0
                break
        with self._changed:
            self._under_way, self._telling = (), 0
        if not self._stopping:
            self._settled(batch[-1].place, owed)

    def _send(self, lines: Sequence[Line], id: str) -> None:
        if self._line is None:
            place = replace(outbound.parse(self.drain.url, tuple(outbound.PORTS)), ours=self.drain.ours)
            self._line = _Https(place) if place.scheme.startswith("http") else _Syslog(place)
        self._line.send(lines, self.drain, id)

    def _hang_up(self) -> None:
        if self._line:
            self._line.close()
            self._line = None

    def _trouble(self, sentence: str, certificate: bool = False) -> None:
        if time.monotonic() - self._complained < COMPLAIN:
            return
        self._complained = time.monotonic()
        code = "L14 (certificate error)" if certificate else "L13 (local delivery error)"
        self._complain(f"Error {code}: {self.drain.token}: {sentence}")


def _overflow(lost: Lost) -> Line:
    text = f"Error L10 (output buffer overflow): {lost.count} messages dropped since {stream.iso(lost.since)}."
    return Line(now(), "heroku", "logplex", text)


class _Https:
    """POSTs of application/logplex-1, over one connection as long as it holds."""

    def __init__(self, place: outbound.Place) -> None:
        self._http = outbound.Http(place, TIMEOUT)

    def send(self, lines: Sequence[Line], drain: Drain, id: str) -> None:
        """Deliver; Refused when the other side does not want these lines, now or later."""
        headers = {
            "Content-Type": "application/logplex-1", "Logplex-Msg-Count": str(len(lines)), "Logplex-Frame-Id": id,
            "Logplex-Drain-Token": drain.token, "User-Agent": "Logplex/davit",
        }  # fmt: skip
        answer = self._http.request("POST", body=b"".join(frame(line, "host") for line in lines), headers=headers)
        if 400 <= answer.status < 500 and answer.status != 429:
            raise Refused(f"{self._http.place.shown} refused {len(lines)} messages with status {answer.status}.")
        if not 200 <= answer.status < 300:
            raise outbound.Unreached(f"{self._http.place.shown} answered with status {answer.status}.")

    def close(self) -> None:
        """Hang up."""
        self._http.close()


class _Syslog:
    """Frames over TCP or TLS."""

    def __init__(self, place: outbound.Place) -> None:
        self._place = place
        self._socket: socket.socket | None = None

    def send(self, lines: Sequence[Line], drain: Drain, id: str) -> None:
        """Deliver: nothing is acknowledged in this protocol, so a connection that ends takes what it had with it."""
        if self._socket is None:
            self._socket = outbound.connect(self._place, TIMEOUT)
        try:
            if _has_ended(self._socket):
                raise ConnectionResetError(104, "the connection was closed")
            self._socket.settimeout(TIMEOUT)
            self._socket.sendall(b"".join(frame(line, drain.token) for line in lines))
        except OSError as error:
            self.close()
            reason = error.strerror or "it takes nothing"
            raise outbound.Unreached(f"{self._place.shown} does not take lines: {reason}.") from None

    def close(self) -> None:
        """Hang up."""
        if self._socket:
            self._socket.close()
            self._socket = None


def _has_ended(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return not line.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
