"""What an app's manager has under way while it looks after everything else: a release that comes up, dynos that start.

Nothing here is cancelled: an attempt is given up by telling it, and then ends by itself, in order. Nobody waits for that with
the turn held; where two of a name at once are not wanted, the next attempt begins when this one has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field

from runtime.life import DynoLife

WAVE = 4
"""Dynos of a process type that start at the same time; more would fight for the same cores and all be slow."""


class Unwanted(Exception):
    """An attempt was given up, because something else is wanted by now; the sentence says what."""


@dataclass(eq=False)
class Attempt:
    """A dyno that is being started.

    Attributes:
        name: which, as ``web.1``.
        release_id: of which release.
        size, isolation: as what.
        restarts: how often a new start of its process type had been asked for by then.
        life: the dyno, once there is one.
        arriving: whether it is up and gets the route (web): when it ends from here on it has crashed.
        task: does it.
    """

    name: str
    release_id: str
    size: str
    isolation: str
    restarts: int
    life: DynoLife | None = None
    arriving: bool = False
    task: asyncio.Task[None] | None = None
    _given_up: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def unwanted(self) -> bool:
        """Whether it was given up."""
        return self._given_up.is_set()

    def give_up(self) -> None:
        """It need not come up any more."""
        self._given_up.set()
        if self.life is not None:
            self.life.give_up()

    def take(self, life: DynoLife) -> None:
        """The dyno is this one."""
        self.life = life
        if self.unwanted:
            life.give_up()

    def check(self) -> None:
        """Raise when it was given up.

        Raises:
            Unwanted: it was.
        """
        if self.unwanted:
            raise Unwanted("Something else is wanted by now.")

    async def outlast(self, other: Awaitable[object], seconds: float | None = None) -> None:
        """Wait for something else to end, or for so many seconds at the most.

        Raises:
            Unwanted: this was given up before or meanwhile.
        """
        ending, given_up = asyncio.ensure_future(other), asyncio.ensure_future(self._given_up.wait())
        try:
            await asyncio.wait({ending, given_up}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            given_up.cancel()
            if not isinstance(other, asyncio.Future):  # a future is somebody else's, too
                ending.cancel()
        self.check()


@dataclass
class Rise:
    """A release on its way from pending to serving.

    Attributes:
        release_id: which.
        commanding: whether its release command runs or is about to.
        booting: whether its dynos are being started, after that.
        arriving: whether they are all up and get the routes: who ends from here on has crashed.
        why: why it need not come up any more; empty while it is wanted.
        task: does it.
    """

    release_id: str
    commanding: bool = False
    booting: bool = False
    arriving: bool = False
    why: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def give_up(self, why: str) -> None:
        """It is not to serve, and ends with this sentence."""
        self.why = self.why or why
        for attempt in self.attempts:
            attempt.give_up()

    def attempt(self, name: str, size: str, isolation: str, restarts: int) -> Attempt:
        """One of its dynos begins to start.

        Raises:
            Unwanted: it was given up.
        """
        self.check()
        self.attempts.append(Attempt(name, self.release_id, size, isolation, restarts))
        return self.attempts[-1]

    def check(self) -> None:
        """Raise when it was given up.

        Raises:
            Unwanted: with the reason.
        """
        if self.why:
            raise Unwanted(self.why)
