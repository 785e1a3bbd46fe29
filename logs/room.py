"""The room that the windows of all apps have in Redis together: they never take the queue's.

Redis has one bound for all that is in it (``maxmemory``), and one that is full takes no build any more. So who adds lines looks
now and then how full it is; from :data:`HIGH` on the largest windows are shortened, all to the same size, until what is used is
:data:`LOW`. The windows of apps that say little stay whole: with ten thousand apps in 256 MiB, each may have 16 KiB.

It is the process ``logs`` that does it. The others, which would all do the same work at once, and some of which have better to do
(requests wait for the router), do it from :data:`LATE` on: where ``logs`` is not there, or has nothing to say itself.

    Room(redis).make()
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from logs.sender import Redis
from logs.window import app_of, aside, key, shorten

log = logging.getLogger("logs")

HIGH, LATE, LOW = 3 / 4, 7 / 8, 5 / 8
"""Parts of Redis's bound: used at which windows are shortened by ``logs``, and by others; and until which."""
LEAST = 1 / 8
"""The part that windows may have whatever else fills it."""
UNBOUNDED = 256 << 20
"""Bytes that are taken for the bound where Redis has none."""
LOOK = 1.0
"""Seconds between two looks while lines are added."""
STRIDE = 1 / 64
"""The part of the bound that may be added before the next look."""
VAIN, VAIN_UNBOUNDED = 5.0, 30.0
"""Seconds until windows are looked through again after nothing could be taken from them: the memory is somebody else's."""
SMALLEST = 6 << 10
"""Bytes below which no window is shortened: Redis takes 5 KiB for a single line."""
_MANY = 500


class Memory(NamedTuple):
    """What Redis says of its memory, in bytes; ``bound`` is 0 where it has none."""

    used: int
    bound: int


def memory(told: Any) -> Memory | None:
    """Read an answer to ``INFO memory``: bytes, or the dictionary that redis-py makes of it; None when it is something else."""
    if isinstance(told, bytes):
        told = dict(line.split(":", 1) for line in told.decode(errors="replace").splitlines() if ":" in line)
    if not isinstance(told, dict) or "used_memory" not in told:
        return None
    return Memory(int(told["used_memory"]), int(told.get("maxmemory") or 0))


def level(sizes: Sequence[int], room: int) -> int:
    """The size to which the largest have to come down so that all have no more than ``room`` together."""
    left = max(0, room)
    for number, size in enumerate(sorted(sizes)):
        fair = left // (len(sizes) - number)
        if size > fair:
            return fair
        left -= size
    return max(sizes, default=0)


class Room:
    """Looks after one Redis for one writer.

    Args:
        redis: a blocking client.
        high: the part of Redis's bound from which windows are shortened.
    """

    def __init__(self, redis: Redis, high: float = LATE) -> None:
        self._redis, self._high = redis, high
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._added, self._stride = 0, int(UNBOUNDED * STRIDE)
        self._vain_until = 0.0
        self._thread: threading.Thread | None = None

    def wants_look(self, size: int) -> bool:
        """``size`` bytes are about to be added: whether to send ``INFO memory`` with them, for :meth:`heed`."""
        self._added += size
        if self._added < self._stride and time.monotonic() < self._look_at:
            return False
        self._added, self._look_at = 0, time.monotonic() + LOOK
        return True

    def heed(self, told: Any) -> None:
        """Shorten windows when this answer to ``INFO memory`` says that Redis fills up.

        It is done in a thread: those of ten thousand apps take seconds, in which lines go on.
        """
        found = memory(told)
        if found is None:
            return
        self._stride = int((found.bound or UNBOUNDED) * STRIDE)
        busy = self._thread is not None and self._thread.is_alive()
        if self._fills(found) and not busy and time.monotonic() >= self._vain_until:
            self._thread = threading.Thread(target=self._shorten_aside, name="log-room", daemon=True)
            self._thread.start()

    def _fills(self, found: Memory) -> bool:
        return found.used > (found.bound or UNBOUNDED) * self._high

    def make(self) -> bool:
        """Redis refuses what would take memory: whether there is room again, whoever made it.

        Raises:
            Exception: Redis cannot be reached.
        """
        self._shorten()
        left = self._memory()
        return left is not None and (not left.bound or left.used < left.bound)

    def _memory(self) -> Memory | None:
        return memory(self._redis.execute_command("INFO", "memory"))

    def _shorten_aside(self) -> None:
        try:
            self._shorten()
        except Exception as error:  # Redis is away: it is looked again with the next lines
            log.debug("windows could not be shortened: %s", error)

    def _shorten(self) -> None:
        with self._lock:
            if time.monotonic() < self._vain_until:
                return
            found = self._memory()
            if found is None or not self._fills(found):
                return  # whoever had the lock, or another process, has done it
            sizes = self._sizes()
            # asked once more: what others have freed meanwhile would count as another program's
            found = self._memory() or found
            total = sum(sizes.values())
            bound = found.bound or UNBOUNDED
            other = max(0, found.used - total) if found.bound else 0
            wanted = max(SMALLEST, level(list(sizes.values()), int(max(bound * LOW - other, bound * LEAST))))
            longer = {app_id: size for app_id, size in sizes.items() if size > wanted}
            if not longer:
                self._vain_until = time.monotonic() + (VAIN if found.bound else VAIN_UNBOUNDED)
                return
            log.info("windows are shortened", extra={"apps": len(longer), "kib": wanted >> 10, "used_mib": found.used >> 20})
            for some in _slices(list(longer)):
                self._shorten_some(some, longer, wanted)

    def _shorten_some(self, apps: Sequence[str], sizes: Mapping[str, int], wanted: int) -> None:
        refused = [
            app_id
            for app_id, answer in zip(apps, self._ask([shorten(app_id, wanted) for app_id in apps]), strict=True)
            if isinstance(answer, Exception)
        ]
        if refused:  # no script may run: then without a thought for quiet sources
            lengths = self._ask([("XLEN", key(app_id)) for app_id in refused])
            self._ask(
                [
                    ("XTRIM", key(app_id), "MAXLEN", length * wanted // sizes[app_id])
                    for app_id, length in zip(refused, lengths, strict=True)
                    if isinstance(length, int)
                ]
            )
            self._ask([("DEL", *aside(app_id)) for app_id in refused])

    def _sizes(self) -> dict[str, int]:
        """The memory of each app's lines."""
        names: set[str] = set()  # SCAN may name one twice
        cursor: Any = 0
        while True:
            cursor, found = self._redis.execute_command("SCAN", cursor, "MATCH", "logs:*", "COUNT", 1000)
            names.update(name.decode() if isinstance(name, bytes) else name for name in found)
            if not int(cursor):
                break
        sizes: dict[str, int] = {}
        for some in _slices(sorted(names)):
            for name, size in zip(some, self._ask([("MEMORY", "USAGE", name) for name in some]), strict=True):
                if isinstance(size, int):
                    sizes[app_of(name)] = sizes.get(app_of(name), 0) + size
        return sizes

    def _ask(self, commands: Sequence[Sequence[object]]) -> list[Any]:
        if not commands:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute(raise_on_error=False))


def _slices(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _MANY] for start in range(0, len(names), _MANY))
