"""The dynos of a sleeping app: their rows, which say that they are idle, and what they had in memory, put aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from runtime import applog, records
from runtime.attempts import Attempt
from runtime.life import DynoLife
from runtime.snapshots import Snapshots
from state.models import Dyno

ASIDE_SECONDS = 60
"""How long somebody who wakes a dyno waits until it has been put aside; then it starts anew."""


class Sleepers:
    """Those of one app, by the dynos' names.

    Attributes:
        rows: their rows.
    """

    def __init__(self, app_id: str, snapshots: Snapshots) -> None:
        self.app_id, self.snapshots = app_id, snapshots
        self.rows: dict[str, Dyno] = {}
        self._asides: dict[str, asyncio.Future[None]] = {}
        self._awake = asyncio.Event()

    def remember(self, row: Dyno) -> None:
        """One slept when an earlier runtime process ended."""
        self.rows[row.name] = row

    async def fall_asleep(self, present: list[DynoLife], rows: list[Dyno]) -> None:
        """Those who are present leave the routes, and idle rows say what will run again; to be seen off by the caller."""
        self._awake.clear()
        await asyncio.to_thread(records.fall_asleep, [life.id for life in present], rows)
        self.rows.update({row.name: row for row in rows})
        for life in present:
            life.row.routed, life.row.leaving = False, True

    async def put_aside(self, life: DynoLife) -> bool:
        """Keep what a dyno that goes to sleep has in memory, where its isolation can; False when it is to be stopped."""
        fresh = self.snapshots.fresh(self.app_id, life.id)
        if life.name not in self.rows:
            return False
        self._asides[life.name] = over = asyncio.get_running_loop().create_future()
        try:
            async with self._turn() as came:
                return came and await self._put_aside_in(fresh, life)
        finally:
            over.set_result(None)
            if self._asides.get(life.name) is over:  # not another's, of the same name, that fell asleep after it
                del self._asides[life.name]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[bool]:
        """One's turn to be written down, among all dynos of this host; False when the app is woken before it comes."""
        turn = asyncio.ensure_future(self.snapshots.writing.acquire())
        woken = asyncio.ensure_future(self._awake.wait())
        try:
            await asyncio.wait({turn, woken}, return_when=asyncio.FIRST_COMPLETED)
            yield not self._awake.is_set()
        finally:
            woken.cancel()
            if not turn.cancel():  # it had come
                self.snapshots.writing.release()

    def stay_awake(self) -> None:
        """The app is awake: who still waits for a turn to be put aside is stopped instead, and starts anew."""
        self._awake.set()

    async def _put_aside_in(self, fresh: Path, life: DynoLife) -> bool:
        if not await life.put_aside(fresh):
            await asyncio.to_thread(self.snapshots.drop, fresh)
            return False
        if life.name in self.rows:
            await asyncio.to_thread(self.snapshots.keep, fresh, life.name)
        else:  # it was woken meanwhile, and has started anew
            await asyncio.to_thread(self.snapshots.drop, fresh)
        return True

    async def wake(self, attempt: Attempt, row: Dyno) -> Path | None:
        """A dyno starts that may have slept; the snapshot that it wakes from, if there is one that is still true.

        Raises:
            Unwanted: the attempt was given up.
        """
        attempt.check()
        slept = self.rows.get(row.name)
        if slept is None:
            return None
        applog.say(self.app_id, row.name, "Unidling", "State changed from down to starting")
        if row.name in self._asides:  # its memory is just being written: from there it goes on sooner than anew
            await attempt.outlast(self._asides[row.name], ASIDE_SECONDS)
        snapshot = await asyncio.to_thread(self.snapshots.take, self.app_id, row.name, row.id)
        await self.clear([row.name])
        alike = ("release_id", "size", "isolation", "command", "restarts")  # who was to be restarted meanwhile starts anew
        same = all(getattr(slept, name) == getattr(row, name) for name in alike)
        if snapshot is not None and not same:
            await asyncio.to_thread(self.snapshots.drop, snapshot)
            return None
        return snapshot

    async def clear(self, names: Iterable[str]) -> None:
        """These sleep no more: they start, or are not wanted."""
        rows = [self.rows[name] for name in list(names) if name in self.rows]
        await asyncio.to_thread(records.remove, [row.id for row in rows])
        for row in rows:  # not before: what could not be removed is to be removed still
            if self.rows.get(row.name) is row:
                del self.rows[row.name]
        for row in rows:
            await asyncio.to_thread(self.snapshots.drop, self.snapshots.directory / self.app_id / row.name)
