"""The formation manager of one app: makes what runs equal what the database wants, and loses no request on the way.

One asyncio task per app looks at what is wanted and sets it going; it never waits for a command or a dyno. What takes long is
under way beside it (:mod:`runtime.attempts`): one release that comes up (its command, then its dynos, beside those that serve;
:mod:`runtime.releasing`), the dynos of the current release that are being started, and those that get another size or move while
they run. What it knows of dynos that crashed is in :mod:`runtime.crashes`, of those that sleep in :mod:`runtime.sleepers`; what
each is to be in :mod:`runtime.plans`. Every step can be repeated: after a kill -9 the next runtime process adopts the dynos and
goes on from the database. One that was still starting is *half-started* until an attempt goes on with it, instead of starting
another; whom no attempt wants at the first look leaves.

The turn, a lock, belongs to whoever decides which dynos serve: the look at what is wanted, a release whose dynos are all up (from
then on it is the current one), an attempt whose dyno is up or takes a place. Who has it waits for the database and for the
router to have taken the routes, never for a dyno, an attempt or a command: those are told, and end by themselves. A dyno that
is *leaving* has no route and is nobody's present dyno; it is seen off in the background, which may take a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from foundation.errors import DavitError, DiskFull, NotFound, Unavailable
from runtime import applog, environment, records
from runtime.attempts import WAVE, Attempt, Rise, Unwanted
from runtime.crashes import Crashes, has_crashed
from runtime.driver import RunningDyno, Unsupported
from runtime.drivers import Starter
from runtime.life import BOOT_SECONDS, DidNotStart, DynoLife, Plan, describe
from runtime.plans import Planner, Stacks
from runtime.records import AppState, Wanted
from runtime.releasing import ReleasePhase, Releasing
from runtime.sleepers import Sleepers
from runtime.snapshots import Snapshots
from state import identity, isolations
from state.models import Dyno, Release, new_id
from state.releases import RELEASE_TYPE

log = logging.getLogger("runtime")
_T = TypeVar("_T")

DRAIN_SECONDS = 30
"""How long a dyno that left the routes may still answer what it was asked before."""
HOLD_SECONDS = 10.0
"""Within which a dyno's requests have to be held, written down and by the router: what is to be moved may stand still for that
long."""
POLL_SECONDS = 2.0
_ALL_AT_ONCE: AbstractAsyncContextManager[Any] = contextlib.nullcontext()


class Router(Protocol):
    """What the formation manager needs of the router."""

    async def sync(self, app_id: str) -> None:
        """Make the routes as the database says; returns when they are in force, however long that takes."""

    async def drained(self, app_id: str, addresses: Sequence[tuple[str, int]], timeout: float) -> None:
        """Return when none of these dynos answers a request any more, or after ``timeout`` seconds."""


class Moved(NamedTuple):
    """How a dyno was moved: seconds for which it stood still, and for which requests were held from it."""

    pause: float
    held: float


class AppManager:
    """Keeps one app's dynos.

    Args:
        app_id: the app.
        driver: starts them.
        router: routes to them.
        release_phase: runs the release command.
        stacks: where images are.
        domain: for the Host header of health checks.
        cores: CPUs that a dyno may use at the most.
        snapshots: where dynos of a sleeping app lie.
        gone: called when the app is destroyed and forgotten.
        boot_seconds: the time a web dyno has to bind PORT.
    """

    def __init__(
        self,
        app_id: str,
        *,
        driver: Starter,
        router: Router,
        release_phase: ReleasePhase,
        stacks: Stacks,
        domain: str,
        cores: int,
        snapshots: Snapshots,
        gone: Callable[[str], Awaitable[None]],
        boot_seconds: float = BOOT_SECONDS,
    ) -> None:
        self.app_id = app_id
        self.driver, self.router, self.release_phase, self.cores, self._gone = driver, router, release_phase, cores, gone
        self.lives: dict[str, DynoLife] = {}
        self._adopted: list[tuple[DynoLife, RunningDyno]] = []
        self.crashes = Crashes(app_id)
        self.sleepers = Sleepers(app_id, snapshots)
        self._held: set[str] = set()
        self._resizing: set[str] = set()
        self._replaced: dict[str, list[DynoLife]] = {}  # by name: stopped for another in its place, which is not up yet
        self._turn = asyncio.Lock()
        self._rise: Rise | None = None
        self._attempts: dict[str, Attempt] = {}
        self._given_up: set[Attempt] = set()
        self._waves: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(WAVE))
        self._resizes = asyncio.Semaphore(WAVE)
        self._planner = Planner(stacks, domain, cores)
        self._releasing = Releasing(self, release_phase, stacks)
        self.boot_seconds = boot_seconds
        self._wake = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None

    # --- what others call

    def start(self) -> None:
        """Begin to manage."""
        self._wake.set()
        self._task = asyncio.create_task(self._manage(), name=f"app {self.app_id}")

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    async def close(self) -> None:
        """Stop managing; the dynos run on."""
        for task in [*([self._task] if self._task else []), *self._under_way()]:
            await _cancelled(task)
        while self._background:  # what ends may begin something: who moved gets the route back
            await _cancelled(self._background.pop())

    def _under_way(self) -> list[asyncio.Task[None]]:
        attempts = [*self._attempts.values(), *self._given_up]
        tasks = [self._rise.task if self._rise else None, *(attempt.task for attempt in attempts)]
        return [task for task in tasks if task is not None]

    def adopt(self, row: Dyno, running: RunningDyno) -> None:
        """Take over a dyno that an earlier runtime process started; before :meth:`start`."""
        self.lives[row.id] = DynoLife(self.driver, row, self._life_ended)
        self._adopted.append((self.lives[row.id], running))

    def up_since(self, moment: datetime) -> bool:
        """Whether web dynos are up, all of them for so long."""
        web = self.present("web")
        return bool(web) and all(life.started_at <= moment for life in web)

    async def migrate(self, name: str) -> Moved:
        """Move the running dyno ``name`` to another process, beside everything else.

        Raises:
            NotFound: no such dyno runs.
            Unsupported: its isolation cannot do that.
            Unavailable: this process ends meanwhile.
            DavitError: it could not be moved; the sentence says whether it runs on where it was.
        """
        async with self._turn:
            moving = self._in_background(self._move(self._movable(name)), f"move {name}")
        try:
            return await asyncio.shield(moving)
        except asyncio.CancelledError:
            if moving.cancelled():
                raise Unavailable(f"Davit's runtime is ending; whether {name} was moved shows when it is back.") from None
            raise

    # --- the one task

    async def _manage(self) -> None:
        self._take_over()
        while True:
            self._wake.clear()
            try:
                async with self._turn:
                    state = await self._look()
                if state is None:
                    await asyncio.to_thread(identity.confirm)  # in another home's database no app is to be found
                if state is None or state.app.destroying:
                    await self._destroy(state)
                    return
            except Exception:
                log.exception("managing an app failed; it is tried again", extra={"app_id": self.app_id})
                await asyncio.sleep(1)
                self._wake.set()
            await self._until_woken(self.crashes.until_next())

    async def _until_woken(self, seconds: float | None) -> None:
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({waking}, timeout=seconds)  # wait_for of Python before 3.12 forgets to end when woken just then
        finally:
            waking.cancel()

    async def _look(self) -> AppState | None:
        """Read what is wanted and set it going."""
        began = time.monotonic()
        state = await asyncio.to_thread(records.read_app, self.app_id)
        if state is None or state.app.destroying:
            return state
        if state.pending is not None and self._rise is None:
            self._rise = Rise(state.pending.id)
            self._rise.task = asyncio.create_task(self._bring_up(self._rise), name=f"release of {self.app_id}")
        if self._rise is not None and state.pending is not None and state.cancelled:
            await self._give_up_release(self._rise, "The build was cancelled.")
        await self._converge(state)
        rising = self._rise.release_id if self._rise else None
        await self._retire([life for life in self._half_started() if life.row.release_id != rising])
        self.crashes.looked(began)
        return state

    async def _give_up_release(self, rise: Rise, why: str) -> None:
        rise.give_up(why)
        if rise.commanding:
            await self.release_phase.give_up(rise.release_id)

    # --- taking over

    def _take_over(self) -> None:
        """Keep the adopted dynos; those that were still starting are gone on with as if they were started now."""
        for life, running in self._adopted:
            life.take_over(running)
            if life.leaving or life.row.state not in ("starting", "up", "crashed"):
                life.row.leaving = True
                self._retire_later([life])
            elif life.row.state == "crashed":  # an earlier runtime process wrote that down, and ended
                self.crashes.remember(life.row)
                self._in_background(self._remove_crashed(life), f"remove {life.name}")
        self._adopted.clear()

    def _half_started(self) -> list[DynoLife]:
        """The dynos that an earlier runtime process was starting and that no attempt has gone on with so far."""
        attempts = [*self._attempts.values(), *self._given_up, *(self._rise.attempts if self._rise else [])]
        taken = [attempt.life for attempt in attempts]
        lives = self.lives.values()
        return [life for life in lives if life.row.state == "starting" and not life.leaving and life not in taken]

    def _take_half_started(self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted) -> None:
        """Let an attempt that is about to start a dyno go on with one that is on its way to be the same."""
        named = [life for life in self._half_started() if life.name == attempt.name]
        if fitting := [life for life in named if not self._stale(life, state, release, wanted)]:
            attempt.take(max(fitting, key=lambda life: life.row.created_at))

    # --- a release

    async def _bring_up(self, rise: Rise) -> None:
        try:
            await self._releasing.bring_up(rise)
        finally:
            if self._rise is rise:
                self._rise = None
            self._wake.set()

    async def state(self) -> AppState:
        """The app as the database has it (runtime.releasing.Formation)."""
        state = await asyncio.to_thread(records.read_app, self.app_id)
        if state is None:
            raise Unwanted("The app was destroyed.")
        return state

    async def go_live(self, rise: Rise, release: Release, new: list[DynoLife]) -> None:
        """From here on this is the current release (runtime.releasing.Formation)."""
        async with self._turn:
            await self._go_live(rise, release, new)
            self._rise = None  # before anybody else has the turn: its dynos are the current release's now

    async def _go_live(self, rise: Rise, release: Release, new: list[DynoLife]) -> None:
        """Whatever was being started of another release need not come up any more."""
        wanted = (await self.state()).formation.get("web") if new else None
        rise.check()
        for life in new:
            if life.exit is not None and wanted is not None and _index(life.name) <= wanted.quantity:
                raise _ended_soon(life)
        rise.arriving = True
        self._give_up(self._attempts)
        if release.slug is not None:
            old = [life for life in self.present("web") if life.row.release_id != release.id]
            self.crashes.forgive()
            await self._switch([life for life in new if life.exit is None], old)
        await asyncio.to_thread(records.succeed, release.id)

    def _give_up(self, names: Iterable[str]) -> None:
        """Dynos that are being started are not wanted any more: they are told, and end by themselves."""
        for name in list(names):
            if attempt := self._attempts.pop(name, None):
                self._given_up.add(attempt)
                attempt.give_up()

    def _forget(self, life: DynoLife) -> None:
        self.lives.pop(life.id, None)
        life.gone.set()

    async def _forget_after(self, ending: Awaitable[None]) -> None:
        try:
            await ending
        except Exception:
            log.exception("seeing a dyno off did not go as it should")

    async def _end(self, life: DynoLife, grace: float) -> None:
        try:
            await life.stop(grace)
        except Exception:
            log.exception("a dyno could not be stopped cleanly", extra={"dyno": life.name})
            await life.end_by_force()

    async def abandon(self, release: Release) -> None:
        """End the dynos of a release that has failed (runtime.releasing.Formation)."""
        mine = [life for life in self.lives.values() if life.row.release_id == release.id and not life.row.routed]
        await asyncio.gather(*(self._end(life, grace=5) for life in mine))
        for life in mine:
            self._forget(life)

    # --- converging on the current release

    async def _converge(self, state: AppState) -> None:
        release = state.current
        if release is None or release.slug is None:
            self._give_up(self._attempts)
            await self._retire(self._serving())
            await self.crashes.clear(list(self.crashes.rows))
            await self.sleepers.clear(list(self.sleepers.rows))
            return
        if state.asleep:
            self._give_up(self._attempts)
            await self._fall_asleep(state, release)
            return
        self.sleepers.stay_awake()
        types = {type for type in release.process_types if type != RELEASE_TYPE}
        await self._retire([life for life in self._serving() if life.row.type not in types])
        for type in sorted(types, key=lambda type: (type != "web", type)):
            wanted = state.wanted(release, type)
            if wanted:
                await self._converge_type(state, release, wanted)
        names = set(self._names(state, release))
        await self.sleepers.clear([name for name in self.sleepers.rows if name not in names])

    def _names(self, state: AppState, release: Release) -> list[str]:
        """The names of the dynos that the formation wants."""
        wanted = [state.wanted(release, type) for type in sorted(release.process_types) if type != RELEASE_TYPE]
        return [f"{one.type}.{index}" for one in wanted if one for index in range(1, one.quantity + 1)]

    async def _converge_type(self, state: AppState, release: Release, wanted: Wanted) -> None:
        names = [f"{wanted.type}.{index}" for index in range(1, wanted.quantity + 1)]
        self._replaced = {name: lives for name, lives in self._replaced.items() if _type(name) != wanted.type or name in names}
        self._give_up(self._obsolete(state, release, wanted, names))
        present = self._serving(wanted.type)
        if wanted.live:
            self._resize_live(wanted, present)
        stale = [life for life in present if life.id not in self._resizing and self._stale(life, state, release, wanted)]
        have = {life.name for life in present if life not in stale}
        surplus = [life for life in present if life.name not in names]
        await self.crashes.clear_but(wanted.type, [name for name in names if name not in have])
        for name in names:
            if name not in have and self._may_start(name, state, wanted):
                self._begin(state, release, wanted, name, [life for life in stale if life.name == name])
        # a runtime that was killed may have left two of a name, or a web dyno that is up and not routed to yet
        twice = [life for life in stale if life.name in have and life.name not in self._attempts]
        if wanted.type == "web":
            lost = [life for life in self._serving("web") if not life.row.routed and life.name in names and life not in twice]
            lost = [life for life in lost if life.name not in self._attempts and life.id not in self._held]
            if lost:
                await self._switch(lost, [life for life in stale if life not in lost and life.name in {one.name for one in lost}])
        await self._retire([life for life in [*surplus, *twice] if life.id in self.lives and not life.leaving])

    def _obsolete(self, state: AppState, release: Release, wanted: Wanted, names: Collection[str]) -> list[str]:
        """Dynos that are being started as something that is not wanted any more, or were to start before somebody said: now."""
        shape = (release.id, *_as_what(wanted))
        return [
            name
            for name, attempt in self._attempts.items()
            if _type(name) == wanted.type
            and (
                name not in names
                or (attempt.release_id, attempt.size, attempt.isolation, attempt.restarts) != shape
                or (attempt.life is not None and attempt.life.id in state.restart_dynos)
            )
        ]

    def _may_start(self, name: str, state: AppState, wanted: Wanted) -> bool:
        if name in self._attempts or not self.crashes.may_start(name, _as_what(wanted), state.restart_dynos):
            return False
        if _type(name) != "web" and any(attempt.name == name for attempt in self._given_up):
            return False  # that one may be about to run
        # one that sleeps is not woken only to be replaced in a moment
        return not (self._rise is not None and self._rise.booting and name in self.sleepers.rows)

    def _begin(self, state: AppState, release: Release, wanted: Wanted, name: str, leaving: list[DynoLife]) -> None:
        """Start a dyno in place of one that is leaving or missing, beside everything else."""
        self.crashes.starts(name, _as_what(wanted))
        attempt = self._attempts[name] = Attempt(name, release.id, wanted.size.name, wanted.isolation, wanted.restarts)
        self._take_half_started(attempt, state, release, wanted)
        work = self._attempt(attempt, state, release, wanted, leaving)
        attempt.task = asyncio.create_task(work, name=f"start {name}")

    async def _attempt(
        self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted, leaving: list[DynoLife]
    ) -> None:
        try:
            await self._renew(attempt, state, release, wanted, leaving)
        except Unwanted:
            pass
        except Exception:
            log.exception("starting a dyno failed; it is tried again", extra={"app_id": self.app_id, "dyno": attempt.name})
            if not attempt.unwanted:
                self.crashes.postpone(attempt.name, 1)
        finally:
            if attempt.unwanted and wanted.type == "web" and attempt.life is not None and attempt.life.id in self.lives:
                attempt.life.row.leaving = True
                self._in_background(self._discard(attempt.life), f"retire {attempt.name}")
            self._over(attempt)  # a worker that came up all the same is as any other now: the next look says what becomes of it

    def _over(self, attempt: Attempt) -> None:
        self._given_up.discard(attempt)
        if self._attempts.get(attempt.name) is attempt:
            del self._attempts[attempt.name]
        self._wake.set()

    def _resize_live(self, wanted: Wanted, present: list[DynoLife]) -> None:
        """Begin to give running dynos their new size as they are. When one cannot take it, all are to be as they were."""
        for life in present:
            if life.row.size != wanted.size.name and life.row.isolation == wanted.isolation and life.id not in self._resizing:
                self._resizing.add(life.id)
                self._in_background(self._resize(wanted, life), f"resize {life.name}")

    async def _resize(self, wanted: Wanted, life: DynoLife) -> None:
        try:
            async with self._resizes:
                await life.resize(wanted.size, environment.limits(wanted.size, self.cores))
        except (Unavailable, DiskFull) as error:  # it was not refused: it could not be written down
            log.warning("resizing a dyno is tried again: %s", error.message, extra={"app_id": self.app_id, "dyno": life.name})
            await asyncio.sleep(1)
        except DavitError as error:
            if life.exit is None and not life.leaving:
                applog.say(self.app_id, life.name, f"The size stays {life.row.size}: {error.message}")
                await self._stay(wanted, life, error.message)
        except Exception:
            log.exception("resizing a dyno failed; it is tried again", extra={"app_id": self.app_id, "dyno": life.name})
            await asyncio.sleep(1)
        finally:
            self._resizing.discard(life.id)
            self._wake.set()

    async def _stay(self, wanted: Wanted, life: DynoLife, failure: str) -> None:
        """What the formation wants of size or isolation cannot be: it wants again what ``life`` has (or had)."""
        there = (life.row.size, life.row.isolation)
        await asyncio.to_thread(records.stay, self.app_id, wanted.type, (wanted.size.name, wanted.isolation), there, failure)

    async def _renew(
        self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted, leaving: list[DynoLife]
    ) -> None:
        before = leaving or self._replaced.get(attempt.name, [])  # of an attempt that was given up, or did not get to its end
        if wanted.type != "web" and attempt.life is None:
            if not await self._can_be_had(wanted, leaving):
                return
            async with self._turn:
                attempt.check()  # one of a given-up attempt may have come up since the look that began this one
                await self._retire([life for life in self.present(wanted.type) if life.name == attempt.name])
            self._replaced[attempt.name], leaving = before, []
        try:
            wave = self._waves[wanted.type]  # each type its own: web dynos that hang keep no worker down
            started = await self.start_one(attempt, state, release, wanted, attempt.name, wave)
            self._replaced.pop(attempt.name, None)
            if wanted.type == "web":
                await self._take_place(attempt, started, leaving)
        except DidNotStart as error:
            attempt.check()
            changed = [life for life in before if _shape(life) != (wanted.size.name, wanted.isolation)]
            if changed:
                await self._stay(wanted, changed[0], _stays(wanted, changed[0], error.message))
                self._replaced.pop(attempt.name, None)
            await self._start_failed(attempt, error, leaving, bool(changed))

    async def _take_place(self, attempt: Attempt, started: DynoLife, leaving: list[DynoLife]) -> None:
        """Route to a web dyno that is up instead of those in whose place it was started.

        Raises:
            DidNotStart: it has ended again before anybody was served by it; it has been removed, and they serve on.
            Unwanted: the attempt was given up.
        """
        async with self._turn:
            attempt.check()
            if started.exit is None:
                attempt.arriving = True
                await self._switch([started], [life for life in leaving if life.id in self.lives])
                self._over(attempt)  # before anybody else has the turn: from here on it is a dyno as any other
                return
        applog.say(self.app_id, started.name, "State changed from up to crashed")
        await self._end(started, grace=0)
        self._forget(started)
        raise _ended_soon(started)

    async def _until_alone(self, attempt: Attempt) -> None:
        """Wait until no other dyno of that name is left: two clocks or two consumers at once are what nobody asked for.

        Raises:
            Unwanted: the attempt was given up.
        """
        for life in [life for life in self.lives.values() if life.name == attempt.name and life is not attempt.life]:
            await attempt.outlast(life.gone.wait())

    async def _can_be_had(self, wanted: Wanted, leaving: list[DynoLife]) -> bool:
        """Look before others than web stop, since they are stopped first: can this host isolate them as they are to be?"""
        changed = [life for life in leaving if life.row.isolation != wanted.isolation]
        try:
            if changed:
                await self.driver.check(wanted.isolation)
            return True
        except DavitError as error:
            applog.say(self.app_id, changed[0].name, f"The isolation stays {changed[0].row.isolation}: {error.message}")
            await self._stay(wanted, changed[0], _stays(wanted, changed[0], error.message))
            self._wake.set()
            return False

    async def _start_failed(self, attempt: Attempt, error: DidNotStart, kept: list[DynoLife], changed: bool) -> None:
        kept = [life for life in kept if life.id in self.lives and life.exit is None and not life.leaving]
        if kept:  # the old one serves on; asking again is up to the person
            applog.say(self.app_id, attempt.name, "Restart failed: the new dyno did not come up, so the old one serves on")
            for life in kept:
                life.row.restarts = attempt.restarts
            done = {"restart_requested": False, "restarts": attempt.restarts}
            await asyncio.to_thread(records.change, [life.id for life in kept], **done)
            return
        if changed:
            return  # it starts again as it was
        await self.crashes.write_down_failure(attempt.name, error)

    def _stale(self, life: DynoLife, state: AppState, release: Release, wanted: Wanted) -> bool:
        return (
            life.row.release_id != release.id
            or life.row.size != wanted.size.name
            or life.row.isolation != wanted.isolation
            or life.row.id in state.restart_dynos
            or life.row.restarts != wanted.restarts
        )

    def _serving(self, type: str | None = None) -> list[DynoLife]:
        """Those present that are not of the release that is just coming up."""
        rising = self._rise.release_id if self._rise else None
        return [life for life in self.present(type) if life.row.release_id != rising]

    def present(self, type: str | None = None) -> list[DynoLife]:
        """The dynos that are up and not leaving (runtime.releasing.Formation)."""
        return [
            life
            for life in self.lives.values()
            if type in (None, life.row.type)
            and life.up and life.exit is None and not life.leaving and not self._unwanted(life)
        ]  # fmt: skip

    def _unwanted(self, life: DynoLife) -> bool:
        return any(attempt.life is life for attempt in self._given_up)

    # --- starting

    async def start_one(
        self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted, name: str,
        wave: AbstractAsyncContextManager[Any] = _ALL_AT_ONCE,
    ) -> DynoLife:  # fmt: skip
        """Start a dyno, or go on with a half-started one; returns when it is up (runtime.releasing.Formation).

        Args:
            wave: entered while it starts, so that not too many do so at the same time.
        """
        if attempt.life is None:
            self._take_half_started(attempt, state, release, wanted)
        if attempt.life is not None:
            try:
                return await self._go_on(attempt.life, state, release, wanted)
            except DidNotStart as error:
                if has_crashed(error.exit):  # otherwise it ended with the earlier process, as in a power cut
                    raise
        return await self._start(attempt, state, release, wanted, name, wave)

    async def _go_on(self, life: DynoLife, state: AppState, release: Release, wanted: Wanted) -> DynoLife:
        plan = await asyncio.to_thread(self._plan, state, release, wanted, life.name, life.id)
        async with self._forgotten_unless_up(life):
            await life.go_on(plan)
        return life

    async def _start(
        self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted, name: str,
        wave: AbstractAsyncContextManager[Any],
    ) -> DynoLife:  # fmt: skip
        plan = await asyncio.to_thread(self._plan, state, release, wanted, name, new_id())
        life = DynoLife(self.driver, plan.row, self._life_ended)
        self.lives[life.id] = life
        attempt.take(life)
        async with contextlib.AsyncExitStack() as starting:
            await starting.enter_async_context(self._forgotten_unless_up(life))
            slept, began = name in self.sleepers.rows, time.monotonic()

            async def ready() -> Path | None:
                if wanted.type != "web":
                    await self._until_alone(attempt)
                await starting.enter_async_context(wave)
                snapshot = await self.sleepers.wake(attempt, plan.row)
                if snapshot is not None:
                    await starting.enter_async_context(self.sleepers.snapshots.reading)
                await self.crashes.clear([name])
                return snapshot

            try:
                as_it_was = await life.start(plan, ready)
            except BaseException:  # wherever it failed: what it was to wake from would lie there
                snapshots = self.sleepers.snapshots
                await asyncio.to_thread(snapshots.drop, snapshots.fresh(self.app_id, life.id))
                raise
            if slept:
                how = "from its memory" if as_it_was else "anew"
                applog.say(self.app_id, name, f"Woken in {(time.monotonic() - began) * 1000:.0f} ms ({how})")
        return life

    @contextlib.asynccontextmanager
    async def _forgotten_unless_up(self, life: DynoLife) -> AsyncIterator[None]:
        try:
            yield
        except DidNotStart as error:
            self._forget(life)
            error.row = life.row
            raise
        except BaseException:
            self._forget(life)
            raise

    def _plan(self, state: AppState, release: Release, wanted: Wanted, name: str, dyno_id: str) -> Plan:
        crashes = self.crashes.times(name)
        return self._planner.plan(state, release, wanted, name, dyno_id, crashes=crashes, boot_seconds=self.boot_seconds)

    # --- switching and retiring

    async def _switch(self, new: list[DynoLife], old: list[DynoLife]) -> None:
        """Route to ``new`` instead of ``old``; the old finish what they were asked, then stop in the background."""
        await asyncio.to_thread(records.switch, [life.id for life in new], [life.id for life in old])
        for life in new:
            life.row.routed = True
        for life in old:
            life.row.routed, life.row.leaving = False, True
        await self.router.sync(self.app_id)
        self._retire_later(old)

    async def _retire(self, lives: Iterable[DynoLife]) -> None:
        """Take these off the routes and see them off in the background."""
        leaving = list(lives)
        if not leaving:
            return
        web = [life for life in leaving if life.row.routed or life.id in self._held]
        await asyncio.to_thread(records.switch, [], [life.id for life in leaving])
        for life in leaving:
            life.row.routed, life.row.leaving = False, True
        if web:
            await self.router.sync(self.app_id)
        self._retire_later(leaving, drained=not web)

    async def _discard(self, life: DynoLife) -> None:
        """See off a dyno that never had a route; a next runtime process must not take it for one that is about to get one."""
        await self._forget_after(asyncio.to_thread(records.switch, [], [life.id]))
        await self._see_off(life, drained=True, aside=False)

    def _retire_later(self, lives: list[DynoLife], drained: bool = False, aside: bool = False) -> None:
        for life in lives:
            self._in_background(self._see_off(life, drained, aside), f"retire {life.name}")

    def _in_background(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _see_off(self, life: DynoLife, drained: bool, aside: bool) -> None:
        try:
            if not drained and life.row.address and life.row.port and life.exit is None:
                await self._forget_after(self.router.drained(self.app_id, [(life.row.address, life.row.port)], DRAIN_SECONDS))
            if not (aside and await self.sleepers.put_aside(life)):
                await life.stop()
        except Exception:
            log.exception("a dyno could not be stopped cleanly", extra={"dyno": life.name})
            await life.end_by_force()  # before it is forgotten: it must not run beside the next one of its name
        finally:
            self._forget(life)
            self._wake.set()

    # --- sleep

    async def _fall_asleep(self, state: AppState, release: Release) -> None:
        """Stop everything; the router holds the next request and wakes the app."""
        present, names = self._serving(), self._names(state, release)
        missing = [name for name in names if name not in self.sleepers.rows]
        if not present and not missing:
            return
        rows = [self._planner.idle_row(state, release, name) for name in missing]
        await self.sleepers.fall_asleep(present, rows)
        await self.crashes.clear(list(self.crashes.rows))
        await self.router.sync(self.app_id)
        for name in missing:
            applog.say(self.app_id, name, "Idling", "State changed from up to down")
        self._retire_later(present, aside=True)

    # --- moving

    def _movable(self, name: str) -> DynoLife:
        life = next((life for life in self._serving() if life.name == name), None)
        if life is None or life.running is None:
            raise NotFound(f"Couldn't find that process ({name}), or it is not up.")
        if life.row.isolation != isolations.MICROVM:
            raise Unsupported(
                f"{name} is isolated by {life.row.isolation}, and only microVMs can be moved while they run; "
                f"`davit ps:isolation {life.row.type}={isolations.MICROVM}` makes it one."
            )
        return life

    async def _move(self, life: DynoLife) -> Moved:
        assert life.running is not None
        held = 0.0

        @contextlib.asynccontextmanager
        async def hold() -> AsyncIterator[str]:
            nonlocal held
            began = time.monotonic()
            async with self._held_back(life) as why:
                yield why
            held = time.monotonic() - began

        pause = await life.running.migrate(hold)
        stood, waited = (f"{seconds * 1000:.0f} ms" for seconds in (pause, held))
        said = f"Moved to another process; it stood still for {stood}, and requests were held for {waited}"
        applog.say(self.app_id, life.name, said)
        return Moved(pause, held)

    @contextlib.asynccontextmanager
    async def _held_back(self, life: DynoLife) -> AsyncIterator[str]:
        """Requests go to other dynos meanwhile; where there is none the router holds them. Afterwards it is routed to as
        before, unless it has ended or is leaving by then. Whoever enters or leaves this waits HOLD_SECONDS at the most.

        Gives why requests are not held; empty when they are.
        """
        if life.id in self._held:
            yield "it has not got its route back since it moved last; the router or the database is away"
            return
        if not life.row.routed:
            yield ""
            return
        self._held.add(life.id)
        written = asyncio.ensure_future(asyncio.to_thread(records.hold, life.id, True))  # which nobody can call back
        try:
            yield await self._hold(life, written)
        finally:
            serving = self._in_background(self._serve_again(life, written), f"serve {life.name}")
            await asyncio.wait({serving}, timeout=HOLD_SECONDS)
            if not serving.done():
                log.warning("a dyno that moved has no route yet", extra={"app_id": self.app_id, "dyno": life.name})

    async def _hold(self, life: DynoLife, written: asyncio.Future[bool]) -> str:
        async def hold() -> None:
            await asyncio.shield(written)
            life.row.routed = False
            await self.router.sync(self.app_id)

        holding = asyncio.ensure_future(hold())
        try:
            await asyncio.wait({holding}, timeout=HOLD_SECONDS)
            if not holding.done():
                return f"the router did not hold its requests within {HOLD_SECONDS:g} seconds"
            holding.result()
            return ""
        except DavitError as error:
            return f"its requests could not be held: {error.message}"
        finally:
            holding.cancel()

    async def _serve_again(self, life: DynoLife, written: asyncio.Future[bool]) -> None:
        """Whatever became of ``written``, it is taken back; a database that is away is asked until it is there."""
        try:
            await asyncio.wait({written})
            if not await self._let_go(life):
                return
        finally:
            self._held.discard(life.id)
            self._wake.set()
        await self.router.sync(self.app_id)

    async def _let_go(self, life: DynoLife) -> bool:
        while life.exit is None and life.id in self.lives and not life.leaving:
            try:
                back = await asyncio.to_thread(records.hold, life.id, False)
            except (DavitError, SQLAlchemyError) as error:
                log.warning("a dyno's route could not be given back; it is tried again: %s", error, extra={"dyno": life.name})
                await asyncio.sleep(1)
                continue
            life.row.routed = back and not life.row.leaving and life.exit is None
            return True
        return False  # whoever sees it off tells the router

    # --- crashes

    def _life_ended(self, life: DynoLife) -> None:
        if life.row.type == "web" and any(one.life is life and not one.arriving for one in self._attempts.values()):
            return  # nobody was served by it yet: its attempt sees it before it gets a route, and fails for it
        self._in_background(self._crashed(life), f"crash of {life.name}")

    async def _crashed(self, life: DynoLife) -> None:
        if life.leaving or self._unwanted(life):  # it ended before it was told to
            applog.say(self.app_id, life.name, "State changed from up to down")
            await self._end(life, grace=0)
            self._forget(life)
            return
        applog.say(self.app_id, life.name, "State changed from up to crashed")
        rise = self._rise
        if rise is not None and life.row.release_id == rise.release_id and not rise.arriving and not life.row.routed:
            # nobody was served by it yet, and its release fails for it
            await self._end(life, grace=0)
            self._forget(life)
            return
        if has_crashed(life.exit):
            self.crashes.count(life.name, life.lived)
        life.row.routed = False
        await self._forget_after(self.crashes.write_down(life))
        self._wake.set()
        if life.row.type == "web":  # it has a route, or was about to get one
            await self._forget_after(self.router.sync(self.app_id))
        self._forget(life)
        self._wake.set()
        await self._forget_after(life.stop(grace=0, forget=False))

    async def _remove_crashed(self, life: DynoLife) -> None:
        await self._forget_after(life.stop(grace=0, forget=False))
        self._forget(life)
        self._wake.set()

    # --- the end of the app

    async def _destroy(self, state: AppState | None) -> None:
        """Called without the turn, so that what is under way can end."""
        self._give_up(self._attempts)
        if self._rise is not None:
            await self._give_up_release(self._rise, "The app was destroyed.")
        if under_way := self._under_way():
            await asyncio.wait(under_way)
        if state is not None:
            await asyncio.to_thread(records.fail_pending, self.app_id, "The app was destroyed.")
            await self.router.sync(self.app_id)
        await asyncio.gather(*(self._end(life, grace=10) for life in list(self.lives.values())))
        for life in list(self.lives.values()):
            self._forget(life)
        await self._gone(self.app_id)
        if state is not None:  # last: as long as there is a row, whoever starts next goes on with the rest
            await asyncio.to_thread(records.forget_app, self.app_id)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def _as_what(wanted: Wanted) -> tuple[str, str, int]:
    return wanted.size.name, wanted.isolation, wanted.restarts


def _shape(life: DynoLife) -> tuple[str, str]:
    return life.row.size, life.row.isolation


def _stays(wanted: Wanted, life: DynoLife, why: str) -> str:
    """Why a process type does not change, for the person who wanted it."""
    if life.row.isolation != wanted.isolation:
        return f"{wanted.type} did not come up as {wanted.isolation}, so it stays {life.row.isolation}. {why}"
    return f"{wanted.type} did not come up at {wanted.size.label}, so it stays {life.row.size}. {why}"


def _ended_soon(life: DynoLife) -> DidNotStart:
    """A web dyno was up, and ended before it had a route."""
    assert life.exit is not None
    how = describe(life.exit, life.row.isolation)
    error = DidNotStart(f"{life.name} ended soon after it had listened on $PORT, {how}. `davit logs` shows why.", life.exit)
    error.row = life.row
    return error


def _type(name: str) -> str:
    return name.rpartition(".")[0]


def _index(name: str) -> int:
    return int(name.rpartition(".")[2])
