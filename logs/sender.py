"""Lines on their way to Redis: a bounded buffer and a thread that empties it, so that nobody waits for Redis.

While Redis is away, or full, the buffer keeps the newest lines of every app. What had to go is counted, and said in the app's
log (L12) before its next line. Delivery is in order per app: a line that a full Redis refuses while it takes a later one of
the app is lost, and told. A batch whose answer was lost is sent again, so that at most one batch can appear twice and none is
missing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from logs.room import Room

log = logging.getLogger("logs")

LINES = 20_000
"""Lines of one app that wait at the most: one read of a FIFO can bring half of that."""
BYTES = 16 << 20
"""Bytes of all apps that wait at the most."""
_OVERHEAD = 48  # bytes that Python adds to each line
BATCH, BATCH_BYTES = 500, 1 << 20
"""Lines that are sent together, and their bytes (or one line of each app)."""
SOME = 100
"""Lines of one app, or KiB, after which its window is trimmed."""
_LINGER = 30.0
"""Seconds after which an idle thread ends; a new one starts when it is wanted."""
_RETRY = (0.1, 2.0)
"""Seconds between attempts while Redis is away: the first, and the longest (each doubles the one before)."""


class Pipeline(Protocol):
    """What is used of a Redis client's pipeline."""

    def execute_command(self, *command: Any) -> Any:
        """Add a command."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all."""


class Redis(Protocol):
    """What is used of a Redis client: redis-py's ``Redis`` and :class:`logs.resp.Client` both fit."""

    def execute_command(self, *command: Any) -> Any:
        """Send a command and return its answer."""

    def pipeline(self, transaction: bool = True) -> Any:
        """A :class:`Pipeline`."""


class Entry(NamedTuple):
    """A packed line on its way, or the ``report`` of a loss before it."""

    app_id: str
    line: bytes
    report: bool = False


class Sender:
    """The buffer in front of one Redis.

    Args:
        redis: a blocking client.
        append: composes the command that appends a line: ``append(app_id, packed line)``.
        overflow: composes the packed line that tells of loss: ``overflow(count, since in seconds since the epoch)``.
        trim: composes the command that takes away what is too old of an app's lines: ``trim(app_id)``.
        room: keeps the lines of all apps from filling Redis.

    Attributes:
        away: the last attempt failed.
        prompt: worth waiting for: nobody has waited in vain since the last success.
    """

    def __init__(
        self,
        redis: Redis,
        append: Callable[[str, bytes], Sequence[Any]],
        overflow: Callable[[int, float], bytes],
        trim: Callable[[str], Sequence[Any]],
        room: Room,
    ) -> None:
        self._redis, self._append, self._overflow, self._trim, self._room = redis, append, overflow, trim, room
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[bytes]] = {}
        self._bytes = 0
        self._lost: dict[str, tuple[int, float]] = {}
        self._untrimmed: Counter[str] = Counter()
        self._accepted = self._settled = 0
        self._complained = False
        self._thread: threading.Thread | None = None
        self.away = False
        self.prompt = True

    def put(self, app_id: str, packed: Sequence[bytes]) -> int:
        """Take lines over; never blocks on Redis. Returns a mark for :meth:`wait`."""
        with self._changed:
            queue = self._waiting.get(app_id)
            if queue is None:
                queue = self._waiting[app_id] = deque()
            queue.extend(packed)
            self._bytes += _size(packed)
            self._accepted += len(packed)
            while len(queue) > LINES:
                self._drop(app_id)
            while self._bytes > BYTES:
                self._drop(max(self._waiting, key=lambda app: len(self._waiting[app])))
            if self._thread is None:
                self._begin()
            self._changed.notify_all()
            return self._accepted

    def _begin(self) -> None:
        thread = threading.Thread(target=self._work, name="log-sender", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives none at the moment: the lines wait for the next ones
            log.debug("log lines wait: %s", error)
            self.prompt = False
        else:
            self._thread = thread

    def wait(self, mark: int, timeout: float) -> bool:
        """Wait until every line up to ``mark`` is in Redis (or lost), for at most ``timeout`` seconds."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._settled >= mark, timeout)
            self.prompt = self.prompt and done
            return done

    def flush(self, timeout: float) -> bool:
        """Wait until nothing waits any more; False when the time was not enough."""
        return self.wait(self._accepted, timeout)

    def _drop(self, app_id: str) -> None:
        queue = self._waiting[app_id]
        self._bytes -= len(queue.popleft()) + _OVERHEAD
        self._lose(app_id)
        if not queue:
            del self._waiting[app_id]

    def _lose(self, app_id: str) -> None:
        self._settled += 1
        count, since = self._lost.get(app_id, (0, time.time()))
        self._lost[app_id] = (count + 1, since)

    def _work(self) -> None:
        pause = _RETRY[0]
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._waiting, _LINGER):
                    self._thread = None
                    return
                batch, losses = self._take()
            if self._send(batch, losses):
                pause = _RETRY[0]
            else:
                time.sleep(pause)
                pause = min(_RETRY[1], pause * 2)

    def _take(self) -> tuple[list[Entry], dict[str, tuple[int, float]]]:
        """The next batch, the apps in turn, a fair part of each; called with the lock held."""
        batch: list[Entry] = []
        losses: dict[str, tuple[int, float]] = {}
        apps = min(BATCH, len(self._waiting))
        fair, fair_bytes = BATCH // apps, BATCH_BYTES // apps
        for app_id in list(self._waiting)[:apps]:
            if app_id in self._lost:
                losses[app_id] = self._lost.pop(app_id)
                batch.append(Entry(app_id, self._overflow(*losses[app_id]), report=True))
            queue = self._waiting.pop(app_id)  # and to the end of the row, when more of it waits
            taken = [queue.popleft() for _ in range(min(fair, len(queue)))]
            size = _size(taken)
            while size > fair_bytes and len(taken) > 1:
                queue.appendleft(taken.pop())
                size -= len(queue[0]) + _OVERHEAD
            self._bytes -= size
            self._untrimmed[app_id] += max(len(taken), size >> 10)
            batch += [Entry(app_id, line) for line in taken]
            if queue:
                self._waiting[app_id] = queue
        return batch, losses

    def _send(self, batch: list[Entry], losses: dict[str, tuple[int, float]]) -> bool:
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for app_id, line, _ in batch:
                pipeline.execute_command(*self._append(app_id, line))
            for app_id in {entry.app_id for entry in batch if self._untrimmed[entry.app_id] >= SOME}:
                pipeline.execute_command(*self._trim(app_id))
                del self._untrimmed[app_id]
            looks = self._room.wants_look(sum(len(entry.line) for entry in batch))
            if looks:
                pipeline.execute_command("INFO", "memory")
            answers = pipeline.execute(raise_on_error=False)
        except Exception as error:  # whatever the client raises: its lines wait, and nobody's program stops
            self._put_back([entry for entry in batch if not entry.report], losses, error)
            return False
        if any(isinstance(answer, Exception) for answer in answers) and not self._bear_refusals(batch, losses, answers):
            return False
        if looks:
            self._room.heed(answers[-1])
        with self._changed:
            if self.away:
                log.info("Redis is back; the log window goes on")
            self.away, self.prompt = False, True
            self._settled += len(batch) - len(losses)
            self._changed.notify_all()
        return True

    def _bear_refusals(self, batch: list[Entry], losses: dict[str, tuple[int, float]], answers: Sequence[Any]) -> bool:
        """Some commands were refused: lines that Redis may take later wait, others are lost; whether all went well but those."""
        answered = list(enumerate(zip(batch, answers, strict=False)))
        newest = {entry.app_id: number for number, (entry, answer) in answered if not isinstance(answer, Exception)}
        waiting: list[Entry] = []
        untold: dict[str, tuple[int, float]] = {}
        lost: list[str] = []
        passing: Exception | None = None
        for number, (entry, answer) in answered:
            if not isinstance(answer, Exception):
                continue
            if _passes(answer):
                passing = answer
            if entry.report:
                untold[entry.app_id] = losses[entry.app_id]
            elif _passes(answer) and number > newest.get(entry.app_id, -1):
                waiting.append(entry)
            else:  # or it would come after what was said later: room was made in the middle of the batch
                lost.append(entry.app_id)
        refusal = next(answer for answer in answers if isinstance(answer, Exception))
        if not self._complained and passing is None:
            self._complained = True
            log.warning("Redis refuses a command", extra={"lines": len(lost), "reason": str(refusal)})
        with self._changed:
            for app_id in lost:
                self._lose(app_id)
            self._settled -= len(lost)  # they are in the batch, which is settled as a whole
            if passing is None:
                self._restore(untold)
                return True
            self._settled += len(batch) - len(losses) - len(waiting)
        self._put_back(waiting, untold, passing)
        if _full(passing):
            self._make_room()
        return False

    def _make_room(self) -> None:
        try:
            self._room.make()
        except Exception as error:  # the lines wait all the same
            log.debug("no room could be made: %s", error)

    def _put_back(self, batch: Sequence[Entry], losses: dict[str, tuple[int, float]], error: Exception) -> None:
        with self._changed:
            if not self.away:
                what = "full" if _full(error) else "away"
                log.warning(f"Redis is {what}; log lines wait", extra={"reason": f"{type(error).__name__}: {error}"})
            self.away, self.prompt = True, False
            back: dict[str, list[bytes]] = {}
            for app_id, line, _ in batch:
                back.setdefault(app_id, []).append(line)
            for app_id, lines in back.items():
                self._waiting.setdefault(app_id, deque()).extendleft(reversed(lines))
                self._bytes += _size(lines)
            self._restore(losses)
            for app_id in back:
                while len(self._waiting.get(app_id, ())) > LINES:
                    self._drop(app_id)
            self._changed.notify_all()

    def _restore(self, losses: dict[str, tuple[int, float]]) -> None:
        """These losses could not be told."""
        for app_id, (count, since) in losses.items():
            later = self._lost.get(app_id, (0, since))
            self._lost[app_id] = (count + later[0], since)


def _size(lines: Sequence[bytes]) -> int:
    return sum(map(len, lines)) + _OVERHEAD * len(lines)


_PASSING = {
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY",
    "BusyLoadingError", "ClusterDownError", "MasterDownError", "OutOfMemoryError", "ReadOnlyError",
}  # fmt: skip


def _passes(error: Exception) -> bool:
    """Whether Redis refuses for a while, whatever it is asked: it reads its file back, it is full, it is a replica now."""
    return _kind(error) in _PASSING


def _full(error: Exception) -> bool:
    return _kind(error) in ("OOM", "OutOfMemoryError")


def _kind(error: Exception) -> str:
    """The first word of a refusal; redis-py has classes of their own for some, and leaves it out there."""
    name = type(error).__name__
    return name if name in _PASSING else str(error).split(" ", 1)[0]
