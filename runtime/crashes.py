"""What an app's manager knows of dynos that crashed: how often in a row, when the next may start, which rows show it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterable

from runtime import applog, backoff, records
from runtime.driver import Exit
from runtime.life import DidNotStart, DynoLife
from state.models import Dyno


class Crashes:
    """The crashes of one app, by the dynos' names.

    Attributes:
        in_a_row: how often each has crashed without having been up for long in between.
        ended: how many of each process type have crashed since somebody emptied this.
        rows: ids of the rows that show dynos as crashed, until the next one starts.
    """

    def __init__(self, app_id: str) -> None:
        self.app_id = app_id
        self.in_a_row: dict[str, int] = {}
        self.ended: Counter[str] = Counter()
        self.rows: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._started_as: dict[str, Hashable] = {}
        self._noting: set[str] = set()
        self._release: str | None = None

    def remember(self, row: Dyno) -> None:
        """A dyno had crashed when an earlier runtime process ended: it is due again at once."""
        self.in_a_row[row.name] = row.crashes
        self.rows[row.name] = row.id

    def times(self, name: str) -> int:
        """How often in a row."""
        return self.in_a_row.get(name, 0)

    # --- when the next one starts

    def may_start(self, name: str, as_what: Hashable, asked_for: Collection[str] = ()) -> bool:
        """Whether the pause is over, and the last crash is written down. A pause is over early when somebody has said: now, or
        wants something else than what crashed.

        Args:
            as_what: size, isolation and whatever else makes it another one.
            asked_for: ids of the rows of dynos that somebody wants to be started anew.
        """
        if name in self._noting:
            return False
        early = self._started_as.get(name, as_what) != as_what or self.rows.get(name) in asked_for
        return early or time.monotonic() >= self._not_before.get(name, 0.0)

    def postpone(self, name: str, seconds: float) -> None:
        """Let so much time pass before the next one starts."""
        self._not_before[name] = time.monotonic() + seconds

    def starts(self, name: str, as_what: Hashable) -> None:
        """It starts now."""
        self._started_as[name] = as_what
        self._not_before.pop(name, None)

    def until_next(self) -> float | None:
        """Seconds until a pause is over; None when nothing waits."""
        return max(0.0, min(self._not_before.values()) - time.monotonic()) if self._not_before else None

    def looked(self, began: float) -> None:
        """What was due when the look began (``time.monotonic()``) has been started or is not wanted: it wakes nobody."""
        self._not_before = {name: moment for name, moment in self._not_before.items() if moment > began}

    def start_over(self, release_id: str) -> None:
        """A new release boots: the pauses of what ran before are not its."""
        if self._release != release_id:
            self._release = release_id
            self.forgive()

    def forgive(self) -> None:
        """All may start at once, as if none had crashed."""
        self.in_a_row.clear()
        self._not_before.clear()

    # --- what is written down

    def count(self, name: str, lived: float) -> None:
        """It has crashed after so many seconds, or did not come up (0)."""
        times = self.in_a_row[name] = backoff.count(self.times(name), lived)
        pause = backoff.pause(times)
        self.postpone(name, pause * random.uniform(1.0, 1.1))
        if pause:
            applog.say(self.app_id, name, f"Crashed {times} times in a row; the next start is in {pause:g} seconds")

    async def write_down(self, life: DynoLife) -> None:
        """A dyno that was up has ended: into its row, which stays until the next one starts, and into the history."""
        self.ended[life.row.type] += 1
        self.rows[life.name] = life.id  # before anything is awaited: whoever starts the next one forgets this row
        self._noting.add(life.name)  # the next one takes this one's row away, and with it what there is to write down
        try:
            await asyncio.to_thread(records.crash, life.id, self.times(life.name), life.exit)
        finally:
            self._noting.discard(life.name)

    async def write_down_failure(self, name: str, error: DidNotStart) -> None:
        """One that did not come up is shown as crashed until the next attempt."""
        self.count(name, 0.0)
        if error.row is not None:
            await asyncio.to_thread(records.insert_crashed, error.row, self.times(name), error.exit, error.message)
            self.rows[name] = error.row.id

    async def clear(self, names: Iterable[str]) -> None:
        """Forget the rows of crashed dynos that are started again or no longer wanted."""
        rows = {name: self.rows[name] for name in list(names) if name in self.rows}
        await asyncio.to_thread(records.remove, list(rows.values()))
        for name, row in rows.items():  # not before: what could not be removed is to be removed still
            if self.rows.get(name) == row:
                del self.rows[name]

    async def clear_but(self, type: str, wanted: Collection[str]) -> None:
        """Forget the rows of a process type's crashed dynos for which ``wanted`` has no name."""
        over = [name for name in self.rows if name.rpartition(".")[0] == type and name not in wanted]
        await self.clear([name for name in over if name not in self._noting])


def has_crashed(exit: Exit | None) -> bool:
    """Whether a dyno that is over crashed: one that ended with an earlier runtime process, as in a power cut, did not."""
    return exit is None or exit.by_itself
