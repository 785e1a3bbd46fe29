"""The formation manager of one app: makes what runs equal what the database wants, and loses no request on the way.

One asyncio task per app looks at what is wanted and sets it going; it never waits for a command or a dyno. What takes long is
under way beside it (:mod:`runtime.attempts`): one release that comes up (its command, then its dynos, beside those that serve),
the dynos of the current release that are being started, and those that get another size or move while they run. Every step can
be repeated: after a kill -9 the next runtime process adopts the dynos and goes on from the database.

The turn, a lock, belongs to whoever decides which dynos serve: the look at what is wanted, a release whose dynos are all up (from
then on it is the current one), an attempt whose dyno is up or takes a place. Who has it waits for the database and for the
router to have taken the routes, never for a dyno, an attempt or a command: those are told, and end by themselves. A dyno that
is *leaving* has no route and is nobody's present dyno; it is seen off in the background, which may take a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy.exc import OperationalError

from foundation.clock import now
from foundation.errors import DavitError, DiskFull, NotFound, Unavailable
from runtime import applog, backoff, environment, health, records
from runtime.attempts import Attempt, Rise, Unwanted
from runtime.driver import DynoSpec, RunningDyno, Unsupported
from runtime.drivers import Starter
from runtime.life import BOOT_SECONDS, DidNotStart, DynoLife, Plan, describe
from runtime.records import AppState, Wanted
from runtime.snapshots import Snapshots
from state import isolations
from state.models import Dyno, Release, new_id
from state.releases import RELEASE_TYPE, config_of

log = logging.getLogger("runtime")
_T = TypeVar("_T")

WAVE = 4
"""Dynos of an app that start at the same time; more would fight for the same cores and all be slow."""
DRAIN_SECONDS = 30
"""How long a dyno that left the routes may still answer what it was asked before."""
ASIDE_SECONDS = 60
"""How long somebody who wakes a dyno waits until it has been put aside; then it starts anew."""
POLL_SECONDS = 2.0
TRIES = 10
"""How often a release is tried whose way up ends with an error of Davit's own."""
TRY_AGAIN = 1.0
"""Seconds between two of these tries."""


class Router(Protocol):
    """What the formation manager needs of the router."""

    async def sync(self, app_id: str) -> None:
        """Make the routes as the database says; returns when they are in force, however long that takes."""

    async def drained(self, app_id: str, addresses: Sequence[tuple[str, int]], timeout: float) -> None:
        """Return when none of these dynos answers a request any more, or after ``timeout`` seconds."""


class ReleasePhase(Protocol):
    """Runs a release's command."""

    async def run(self, state: AppState, release: Release, line: str) -> str | None:
        """Run it as a one-off dyno; None when it ended with status 0, else the sentence."""

    async def give_up(self, release_id: str) -> None:
        """End the release's command, if it runs or is about to; :meth:`run` then returns soon."""


class Stacks(Protocol):
    """Where images are."""

    def version(self) -> str:
        """The newest stack's version."""

    def run_image(self, version: str) -> Path:
        """The run image of this version, or of the newest when it is gone."""

    def slug_image(self, digest: str) -> Path:
        """A slug's image."""


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
        self.driver, self.router, self.release_phase, self.stacks = driver, router, release_phase, stacks
        self.domain, self.cores, self.snapshots, self._gone = domain, cores, snapshots, gone
        self.lives: dict[str, DynoLife] = {}
        self._adopted: list[tuple[DynoLife, RunningDyno]] = []
        self._asides: dict[str, asyncio.Future[None]] = {}
        self.crashes: dict[str, int] = {}
        self.crashed_rows: dict[str, str] = {}
        self._noting: set[str] = set()  # dynos whose crash is being written down
        self.ended: Counter[str] = Counter()
        self.idle_rows: dict[str, Dyno] = {}
        self._held: set[str] = set()
        self._resizing: set[str] = set()
        self._turn = asyncio.Lock()
        self._rise: Rise | None = None
        self._attempts: dict[str, Attempt] = {}
        self._given_up: set[Attempt] = set()
        self._wave = asyncio.Semaphore(WAVE)
        self._failures = ("", 0)  # the release that failed last by Davit's own fault, and how often
        self.not_before: dict[str, float] = {}
        self.boot_seconds = boot_seconds
        self._wake = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._crash_release: str | None = None

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
        for task in [*([self._task] if self._task else []), *self._under_way(), *self._background]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    def _under_way(self) -> list[asyncio.Task[None]]:
        attempts = [*self._attempts.values(), *self._given_up]
        tasks = [self._rise.task if self._rise else None, *(attempt.task for attempt in attempts)]
        return [task for task in tasks if task is not None]

    def adopt(self, row: Dyno, running: RunningDyno) -> None:
        """Take over a dyno that an earlier runtime process started; before :meth:`start`."""
        self.lives[row.id] = DynoLife(self.driver, row, self._life_ended)
        self._adopted.append((self.lives[row.id], running))

    def remember_crash(self, row: Dyno) -> None:
        """A dyno had crashed when an earlier runtime process ended: it is due again at once."""
        self.crashes[row.name] = row.crashes
        self.crashed_rows[row.name] = row.id

    def remember_idle(self, row: Dyno) -> None:
        """A dyno slept when an earlier runtime process ended."""
        self.idle_rows[row.name] = row

    def up_since(self, moment: datetime) -> bool:
        """Whether web dynos are up, all of them for so long."""
        web = self._present("web")
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
        while True:
            self._wake.clear()
            try:
                await self._take_over()
                async with self._turn:
                    state = await self._look()
                if state is None or state.app.destroying:
                    await self._destroy(state)
                    return
            except Exception:
                log.exception("managing an app failed; it is tried again", extra={"app_id": self.app_id})
                await asyncio.sleep(1)
                self._wake.set()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._until_next_restart())

    async def _look(self) -> AppState | None:
        """Read what is wanted and set it going."""
        state = await asyncio.to_thread(records.read_app, self.app_id)
        if state is None or state.app.destroying:
            return state
        if state.pending is not None and self._rise is None:
            self._rise = Rise(state.pending.id)
            self._rise.task = asyncio.create_task(self._bring_up(self._rise), name=f"release of {self.app_id}")
        if self._rise is not None and state.pending is not None and state.cancelled:
            await self._give_up_release(self._rise, "The build was cancelled.")
        await self._converge(state)
        self.not_before = {name: moment for name, moment in self.not_before.items() if moment > time.monotonic()}
        return state

    async def _give_up_release(self, rise: Rise, why: str) -> None:
        rise.give_up(why)
        if rise.commanding:
            await self.release_phase.give_up(rise.release_id)

    def _until_next_restart(self) -> float | None:
        return max(0.0, min(self.not_before.values()) - time.monotonic()) if self.not_before else None

    # --- taking over

    async def _take_over(self) -> None:
        """Go on with the adopted dynos; one that was still starting is waited for, as a new one would be."""
        adopted, self._adopted = self._adopted, []
        results = await asyncio.gather(*(self._resume(life, running) for life, running in adopted), return_exceptions=True)
        for one, result in zip(adopted, results, strict=True):
            if isinstance(result, DidNotStart):
                self._forget(one[0])
            elif isinstance(result, BaseException):
                log.error("a dyno could not be taken over", exc_info=result, extra={"dyno": one[0].name})
                if one[0].running is not None:
                    self._retire_later([one[0]], drained=True)
                else:
                    self._adopted.append(one)
        if self._adopted:
            raise Unavailable("Dynos wait for being taken over.")

    async def _resume(self, life: DynoLife, running: RunningDyno) -> None:
        row = life.row
        plan = None
        if row.state == "starting" and not row.leaving:
            state = await asyncio.to_thread(records.read_app, self.app_id)
            release = await asyncio.to_thread(_release_of, row)
            plan = self._plan_for_adopted(state, release, row) if state and release else None
        await life.resume(running, plan)
        if row.leaving or (plan is None and row.state != "up"):
            row.leaving = True
            self._retire_later([life])

    # --- a release

    async def _bring_up(self, rise: Rise) -> None:
        """Release phase, boot beside the old, switch; or fail and leave all as it was."""
        try:
            await self._rise_or_fail(rise)
        except Exception:
            log.exception("bringing a release up failed; it is tried again", extra={"app_id": self.app_id})
            await asyncio.sleep(TRY_AGAIN)
        finally:
            if self._rise is rise:
                self._rise = None
            self._wake.set()

    async def _rise_or_fail(self, rise: Rise) -> None:
        release: Release | None = None
        try:
            release = await asyncio.to_thread(records.begin_release, rise.release_id, self.stacks.version())
            if release is None:
                return
            new = []
            if release.slug is not None:
                await self._run_release_phase(rise, release)
                new = await self._boot(rise, release)
            async with self._turn:
                await self._go_live(rise, release, new)
                self._rise = None  # before anybody else has the turn: its dynos are the current release's now
        except Exception as error:
            failed = self._failure(rise, error)
            if failed is None:
                raise
            if release is not None:
                await self._abandon(release)
            await asyncio.to_thread(records.fail, rise.release_id, *failed)

    def _failure(self, rise: Rise, error: Exception) -> tuple[str, str] | None:
        """Kind and sentence of a release that ends; None: what is in the way may pass, so it is tried again."""
        if rise.why or isinstance(error, Unwanted):
            return "cancelled", rise.why or str(error)
        if isinstance(error, ReleasePhaseFailed):
            return "release phase failed", error.message
        if isinstance(error, DavitError) and not isinstance(error, Unavailable | DiskFull):
            return "app did not start", error.message
        if isinstance(error, DavitError | OperationalError):
            return None  # the database is busy or away, or there is no room: as long as that lasts
        failed, times = self._failures
        self._failures = rise.release_id, times + 1 if failed == rise.release_id else 1
        if self._failures[1] < TRIES:
            return None
        log.error("a release is given up", exc_info=error, extra={"app_id": self.app_id})
        return "app did not start", "Davit itself failed to bring the release up; its runtime.log has the details. Release again."

    async def _run_release_phase(self, rise: Rise, release: Release) -> None:
        line = release.process_types.get(RELEASE_TYPE)
        if not line or release.phase == "boot":
            return
        if release.phase == "release":
            raise ReleasePhaseFailed(
                "Davit was restarted while the release command ran; nobody knows how it ended. Release again."
            )
        state = await self._state()
        await asyncio.to_thread(records.set_phase, release.id, "release")
        rise.check()
        rise.commanding = True
        try:
            problem = await self.release_phase.run(state, release, line)
        except DavitError as error:
            problem = f"The release command could not be started: {error.message}"
        finally:
            rise.commanding = False
        rise.check()
        if problem:
            raise ReleasePhaseFailed(problem)

    async def _boot(self, rise: Rise, release: Release) -> list[DynoLife]:
        """Start the web dynos beside those that serve; other process types follow when it is the current release."""
        rise.booting = True
        await asyncio.to_thread(records.set_phase, release.id, "boot")
        self._forgive(release.id)
        state = await self._state()
        wanted = self._wanted(state, release, "web")
        names = [f"web.{index}" for index in range(1, wanted.quantity + 1)] if wanted else []
        return await self._start_all(rise, state, release, wanted, names) if wanted else []

    async def _state(self) -> AppState:
        state = await asyncio.to_thread(records.read_app, self.app_id)
        if state is None:
            raise Unwanted("The app was destroyed.")
        return state

    async def _go_live(self, rise: Rise, release: Release, new: list[DynoLife]) -> None:
        """From here on this is the current release; whatever was being started of another need not come up.

        Raises:
            DidNotStart: one of its dynos has ended again, while the others started.
            Unwanted: the release was given up.
        """
        wanted = (await self._state()).formation.get("web") if new else None
        rise.check()
        for life in new:
            if life.exit is not None and wanted is not None and _index(life.name) <= wanted.quantity:
                how = describe(life.exit, life.row.isolation)
                said = f"{life.name} ended soon after it had listened on $PORT, {how}. `davit logs` shows why."
                raise DidNotStart(said, life.exit)
        rise.arriving = True
        self._give_up(self._attempts)
        if release.slug is not None:
            old = [life for life in self._present("web") if life.row.release_id != release.id]
            self.crashes.clear()
            self.not_before.clear()
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

    async def _abandon(self, release: Release) -> None:
        mine = [life for life in self.lives.values() if life.row.release_id == release.id and not life.row.routed]
        await asyncio.gather(*(self._forget_after(life.stop(grace=5)) for life in mine))
        for life in mine:
            self._forget(life)

    # --- converging on the current release

    async def _converge(self, state: AppState) -> None:
        release = state.current
        if release is None or release.slug is None:
            self._give_up(self._attempts)
            await self._retire(self._serving())
            await self._clear_crashed(list(self.crashed_rows))
            await self._clear_idle(list(self.idle_rows))
            return
        if state.asleep:
            self._give_up(self._attempts)
            await self._fall_asleep(state, release)
            return
        types = {type for type in release.process_types if type != RELEASE_TYPE}
        await self._retire([life for life in self._serving() if life.row.type not in types])
        for type in sorted(types, key=lambda type: (type != "web", type)):
            wanted = self._wanted(state, release, type)
            if wanted:
                await self._converge_type(state, release, wanted)
        names = set(self._names(state, release))
        await self._clear_idle([name for name in self.idle_rows if name not in names])

    def _names(self, state: AppState, release: Release) -> list[str]:
        """The names of the dynos that the formation wants."""
        wanted = [self._wanted(state, release, type) for type in sorted(release.process_types) if type != RELEASE_TYPE]
        return [f"{one.type}.{index}" for one in wanted if one for index in range(1, one.quantity + 1)]

    async def _converge_type(self, state: AppState, release: Release, wanted: Wanted) -> None:
        names = [f"{wanted.type}.{index}" for index in range(1, wanted.quantity + 1)]
        self._give_up(self._obsolete(state, release, wanted, names))
        present = self._serving(wanted.type)
        if wanted.live:
            self._resize_live(wanted, present)
        stale = [life for life in present if life.id not in self._resizing and self._stale(life, state, release, wanted)]
        have = {life.name for life in present if life not in stale}
        surplus = [life for life in present if life.name not in names]
        over = [name for name in self.crashed_rows if _type(name) == wanted.type and (name not in names or name in have)]
        await self._clear_crashed([name for name in over if name not in self._noting])
        for name in names:
            if name not in have and self._may_start(name):
                self._begin(state, release, wanted, name, [life for life in stale if life.name == name])
        await self._retire([life for life in surplus if life.id in self.lives])
        if wanted.type == "web":  # a runtime that was killed may have left one that is up and not routed to yet
            there = [life for life in self._serving("web") if not life.row.routed and life.name in names]
            there = [life for life in there if life.name not in self._attempts and life.id not in self._held]
            if there:
                await self._switch(there, [life for life in stale if life.name in {one.name for one in there}])

    def _obsolete(self, state: AppState, release: Release, wanted: Wanted, names: Collection[str]) -> list[str]:
        """Dynos that are being started as something that is not wanted any more, or were to start before somebody said: now."""
        asked = _restarts(state, wanted)
        return [
            name
            for name, attempt in self._attempts.items()
            if _type(name) == wanted.type
            and (
                name not in names
                or (attempt.release_id, attempt.size, attempt.isolation) != (release.id, wanted.size.name, wanted.isolation)
                or any(attempt.began < moment for moment in asked)
                or (attempt.life is not None and attempt.life.id in state.restart_dynos)
            )
        ]

    def _may_start(self, name: str) -> bool:
        if name in self._attempts or name in self._noting or time.monotonic() < self.not_before.get(name, 0.0):
            return False
        if _type(name) != "web" and any(attempt.name == name for attempt in self._given_up):
            return False  # that one may be about to run
        # one that sleeps is not woken only to be replaced in a moment
        return not (self._rise is not None and self._rise.booting and name in self.idle_rows)

    def _begin(self, state: AppState, release: Release, wanted: Wanted, name: str, leaving: list[DynoLife]) -> None:
        """Start a dyno in place of one that is leaving or missing, beside everything else."""
        self.not_before.pop(name, None)
        attempt = self._attempts[name] = Attempt(name, release.id, wanted.size.name, wanted.isolation)
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
                self.not_before[attempt.name] = time.monotonic() + 1
        finally:
            if attempt.unwanted and wanted.type == "web" and attempt.life is not None and attempt.life.id in self.lives:
                attempt.life.row.leaving = True
                self._retire_later([attempt.life], drained=True)
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
            async with self._wave:
                await life.resize(wanted.size, environment.limits(wanted.size, self.cores))
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
        before = leaving
        if wanted.type != "web":
            if not await self._can_be_had(wanted, leaving):
                return
            async with self._turn:
                attempt.check()
                await self._retire(leaving)
            await self._until_alone(attempt)
            leaving = []
        try:
            async with self._wave:
                started = await self._start_one(attempt, state, release, wanted, attempt.name)
        except DidNotStart as error:
            attempt.check()
            changed = [life for life in before if _shape(life) != (wanted.size.name, wanted.isolation)]
            if changed:
                await self._stay(wanted, changed[0], _stays(wanted, changed[0], error.message))
            await self._start_failed(attempt.name, error, leaving, bool(changed))
            return
        if wanted.type == "web":
            async with self._turn:
                attempt.check()
                await self._switch([started], [life for life in leaving if life.id in self.lives])
                self._over(attempt)  # before anybody else has the turn: from here on it is a dyno as any other

    async def _until_alone(self, attempt: Attempt) -> None:
        """Wait until no other dyno of that name is left: two clocks or two consumers at once are what nobody asked for.

        Raises:
            Unwanted: the attempt was given up.
        """
        for life in [life for life in self.lives.values() if life.name == attempt.name]:
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

    async def _start_failed(self, name: str, error: DidNotStart, kept: list[DynoLife], changed: bool) -> None:
        if kept:  # the old one serves on; asking again is up to the person
            applog.say(self.app_id, name, "Restart failed: the new dyno did not come up, so the old one serves on")
            for life in kept:
                life.started_at = now()
            await asyncio.to_thread(records.change, [life.id for life in kept], restart_requested=False)
            return
        if changed:
            return  # it starts again as it was
        self._count_crash(name, 0.0)
        if error.row is not None:
            await asyncio.to_thread(records.insert_crashed, error.row, self.crashes[name], error.exit, error.message)
            self.crashed_rows[name] = error.row.id

    async def _clear_crashed(self, names: Iterable[str]) -> None:
        """Forget crashed dynos that are started again or no longer wanted."""
        rows = [self.crashed_rows.pop(name) for name in list(names) if name in self.crashed_rows]
        await asyncio.to_thread(records.remove, rows)

    def _stale(self, life: DynoLife, state: AppState, release: Release, wanted: Wanted) -> bool:
        asked = _restarts(state, wanted)
        return (
            life.row.release_id != release.id
            or life.row.size != wanted.size.name
            or life.row.isolation != wanted.isolation
            or life.row.id in state.restart_dynos
            or any(life.started_at < moment for moment in asked)
        )

    def _wanted(self, state: AppState, release: Release, type: str) -> Wanted | None:
        return state.formation.get(type) if type in release.process_types else None

    def _serving(self, type: str | None = None) -> list[DynoLife]:
        """Those present that are not of the release that is just coming up."""
        rising = self._rise.release_id if self._rise else None
        return [life for life in self._present(type) if life.row.release_id != rising]

    def _present(self, type: str | None = None) -> list[DynoLife]:
        return [
            life
            for life in self.lives.values()
            if type in (None, life.row.type)
            and life.up and life.exit is None and not life.leaving and not self._unwanted(life)
        ]  # fmt: skip

    def _unwanted(self, life: DynoLife) -> bool:
        return any(attempt.life is life for attempt in self._given_up)

    # --- starting

    async def _start_all(self, rise: Rise, state: AppState, release: Release, wanted: Wanted, names: list[str]) -> list[DynoLife]:
        """Start these dynos of a release, some at a time; all are up, or none is left.

        Raises:
            DidNotStart: the first that did not.
            Unwanted: the release was given up.
        """
        there = {life.name: life for life in self._present(wanted.type) if life.row.release_id == release.id}
        missing = [name for name in names if name not in there]
        for start in range(0, len(missing), WAVE):
            batch = [(name, rise.attempt(name, wanted.size.name, wanted.isolation)) for name in missing[start : start + WAVE]]
            results = await asyncio.gather(
                *(self._start_one(attempt, state, release, wanted, name) for name, attempt in batch), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                there[result.name] = result
        return list(there.values())

    async def _start_one(self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted, name: str) -> DynoLife:
        plan = await asyncio.to_thread(self._plan, state, release, wanted, name, new_id())
        life = DynoLife(self.driver, plan.row, self._life_ended)
        self.lives[life.id] = life
        attempt.take(life)
        try:
            slept, began = name in self.idle_rows, time.monotonic()
            snapshot = await self._unidle(attempt, plan.row)
            await self._clear_crashed([name])
            as_it_was = await life.start(plan, snapshot)
            if slept:
                how = "from its memory" if as_it_was else "anew"
                applog.say(self.app_id, name, f"Woken in {(time.monotonic() - began) * 1000:.0f} ms ({how})")
        except DidNotStart as error:
            self._forget(life)
            error.row = plan.row
            raise
        except BaseException:
            self._forget(life)
            raise
        return life

    def _plan(self, state: AppState, release: Release, wanted: Wanted, name: str, dyno_id: str) -> Plan:
        line = release.process_types[wanted.type]
        assert release.slug is not None and release.slug.digest is not None
        port = environment.PORT if wanted.type == "web" else None
        row = Dyno(
            id=dyno_id, app_id=self.app_id, release_id=release.id, release_version=release.version, name=name, type=wanted.type,
            size=wanted.size.name, isolation=wanted.isolation, command=line, state="starting", leaving=False, routed=False,
            crashes=self.crashes.get(name, 0), one_off=False, restart_requested=False,
        )  # fmt: skip
        defaults = release.slug.default_config | release.dyno_metadata
        env = environment.compose(wanted.size, name, config_of(release), defaults, port=port, extra={})
        spec = DynoSpec(
            id=dyno_id,
            name=name,
            app=state.app.name,
            app_id=self.app_id,
            stack=self.stacks.run_image(release.stack_version),
            slug=self.stacks.slug_image(release.slug.digest),
            command=environment.command(line),
            env=env,
            limits=environment.limits(wanted.size, self.cores),
            port=port,
            isolation=wanted.isolation,
            line=line,
            allowed=True,
        )
        return Plan(row, spec, f"{state.app.name}.{self.domain}", _checks(release, wanted.type), self.boot_seconds)

    def _plan_for_adopted(self, state: AppState, release: Release, row: Dyno) -> Plan | None:
        wanted = self._wanted(state, release, row.type)
        return self._plan(state, release, wanted, row.name, row.id) if wanted else None

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
        web = [life for life in leaving if life.row.routed]
        await asyncio.to_thread(records.switch, [], [life.id for life in leaving])
        for life in leaving:
            life.row.routed, life.row.leaving = False, True
        if web:
            await self.router.sync(self.app_id)
        self._retire_later(leaving, drained=not web)

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
            if not (aside and await self._put_aside(life)):
                await life.stop()
        except Exception:
            log.exception("a dyno could not be stopped cleanly", extra={"dyno": life.name})
        finally:
            self._forget(life)
            self._wake.set()

    # --- sleep

    async def _fall_asleep(self, state: AppState, release: Release) -> None:
        """Stop everything; the router holds the next request and wakes the app."""
        present, names = self._serving(), self._names(state, release)
        missing = [name for name in names if name not in self.idle_rows]
        if not present and not missing:
            return
        rows = [self._idle_row(state, release, name) for name in missing]
        await asyncio.to_thread(records.fall_asleep, [life.id for life in present], rows)
        self.idle_rows.update({row.name: row for row in rows})
        for life in present:
            life.row.routed, life.row.leaving = False, True
        await self._clear_crashed(list(self.crashed_rows))
        await self.router.sync(self.app_id)
        for name in missing:
            applog.say(self.app_id, name, "Idling", "State changed from up to down")
        self._retire_later(present, aside=True)

    def _idle_row(self, state: AppState, release: Release, name: str) -> Dyno:
        wanted = state.formation[_type(name)]
        return Dyno(
            id=new_id(), app_id=self.app_id, release_id=release.id, release_version=release.version, name=name, type=wanted.type,
            size=wanted.size.name, isolation=wanted.isolation, command=release.process_types[wanted.type], state="idle",
            leaving=False, routed=False, crashes=0, one_off=False, restart_requested=False,
        )  # fmt: skip

    async def _put_aside(self, life: DynoLife) -> bool:
        """Keep what a dyno that goes to sleep has in memory, where its isolation can; False when it is to be stopped."""
        fresh = self.snapshots.fresh(self.app_id, life.id)
        if life.name not in self.idle_rows:
            return False
        self._asides[life.name] = over = asyncio.get_running_loop().create_future()
        try:
            return await self._put_aside_in(fresh, life)
        finally:
            over.set_result(None)
            if self._asides.get(life.name) is over:  # not another's, of the same name, that fell asleep after it
                del self._asides[life.name]

    async def _put_aside_in(self, fresh: Path, life: DynoLife) -> bool:
        if not await life.put_aside(fresh):
            return False
        if life.name in self.idle_rows:
            await asyncio.to_thread(self.snapshots.keep, fresh, life.name)
        else:  # it was woken meanwhile, and has started anew
            await asyncio.to_thread(self.snapshots.drop, fresh)
        return True

    async def _unidle(self, attempt: Attempt, row: Dyno) -> Path | None:
        """A dyno starts that may have slept; the snapshot that it wakes from, if there is one that is still true.

        Raises:
            Unwanted: the attempt was given up.
        """
        attempt.check()
        slept = self.idle_rows.get(row.name)
        if slept is None:
            return None
        applog.say(self.app_id, row.name, "Unidling", "State changed from down to starting")
        if row.name in self._asides:  # its memory is just being written: from there it goes on sooner than anew
            await attempt.outlast(self._asides[row.name], ASIDE_SECONDS)
        snapshot = await asyncio.to_thread(self.snapshots.take, self.app_id, row.name, row.id)
        await self._clear_idle([row.name])
        same = all(getattr(slept, name) == getattr(row, name) for name in ("release_id", "size", "isolation", "command"))
        if snapshot is not None and not same:
            await asyncio.to_thread(self.snapshots.drop, snapshot)
            return None
        return snapshot

    async def _clear_idle(self, names: Iterable[str]) -> None:
        rows = [self.idle_rows.pop(name) for name in list(names) if name in self.idle_rows]
        await asyncio.to_thread(records.remove, [row.id for row in rows])
        for row in rows:
            await asyncio.to_thread(self.snapshots.drop, self.snapshots.directory / self.app_id / row.name)

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
        async def hold() -> AsyncIterator[None]:
            nonlocal held
            began = time.monotonic()
            async with self._held_back(life):
                yield
            held = time.monotonic() - began

        pause = await life.running.migrate(hold)
        stood, waited = (f"{seconds * 1000:.0f} ms" for seconds in (pause, held))
        said = f"Moved to another process; it stood still for {stood}, and requests were held for {waited}"
        applog.say(self.app_id, life.name, said)
        return Moved(pause, held)

    @contextlib.asynccontextmanager
    async def _held_back(self, life: DynoLife) -> AsyncIterator[None]:
        """Requests go to other dynos meanwhile; where there is none the router holds them. Afterwards it is routed to as
        before, unless it has ended or is leaving by then."""
        if not life.row.routed:
            yield
            return
        self._held.add(life.id)
        try:
            life.row.routed = False
            await asyncio.to_thread(records.hold, life.id, True)
            await self.router.sync(self.app_id)
            yield
        finally:
            self._held.discard(life.id)
            if life.exit is None and life.id in self.lives and not life.leaving:
                back = await asyncio.to_thread(records.hold, life.id, False)
                life.row.routed = back and not life.row.leaving and life.exit is None
                await self.router.sync(self.app_id)

    # --- crashes

    def _life_ended(self, life: DynoLife) -> None:
        self._in_background(self._crashed(life), f"crash of {life.name}")

    async def _crashed(self, life: DynoLife) -> None:
        if life.leaving or self._unwanted(life):  # it ended before it was told to
            applog.say(self.app_id, life.name, "State changed from up to down")
            await self._forget_after(life.stop(grace=0))
            self._forget(life)
            return
        applog.say(self.app_id, life.name, "State changed from up to crashed")
        rise = self._rise
        if rise is not None and life.row.release_id == rise.release_id and not rise.arriving and not life.row.routed:
            # nobody was served by it yet, and its release fails for it
            await self._forget_after(life.stop(grace=0))
            self._forget(life)
            return
        self.ended[life.row.type] += 1
        if life.exit is None or life.exit.status is not None:  # else it ended with an earlier runtime process, as in a power cut
            self._count_crash(life.name, (now() - life.started_at).total_seconds())
        self.crashed_rows[life.name] = life.id  # before anything is awaited: whoever starts the next one forgets this row
        life.row.routed = False
        await self._forget_after(self._write_crash_down(life))
        self._forget(life)
        self._wake.set()
        await self._forget_after(life.stop(grace=0, forget=False))

    async def _write_crash_down(self, life: DynoLife) -> None:
        self._noting.add(life.name)  # the next one takes this one's row away, and with it what there is to write down
        try:
            await asyncio.to_thread(records.crash, life.id, self.crashes.get(life.name, 0), life.exit)
        finally:
            self._noting.discard(life.name)
            self._wake.set()
        if life.row.type == "web":  # it has a route, or was about to get one
            await self.router.sync(self.app_id)

    def _count_crash(self, name: str, lived: float) -> None:
        crashes = self.crashes[name] = backoff.count(self.crashes.get(name, 0), lived)
        pause = backoff.pause(crashes)
        self.not_before[name] = time.monotonic() + pause * random.uniform(1.0, 1.1)
        if pause:
            applog.say(self.app_id, name, f"Crashed {crashes} times in a row; the next start is in {pause:g} seconds")
        self._wake.set()

    def _forgive(self, release_id: str) -> None:
        """A new release starts over with the crash pauses."""
        if self._crash_release != release_id:
            self._crash_release = release_id
            self.crashes.clear()
            self.not_before.clear()

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
        await asyncio.gather(*(self._forget_after(life.stop(grace=10)) for life in list(self.lives.values())))
        for life in list(self.lives.values()):
            self._forget(life)
        await self._gone(self.app_id)
        if state is not None:  # last: as long as there is a row, whoever starts next goes on with the rest
            await asyncio.to_thread(records.forget_app, self.app_id)


class ReleasePhaseFailed(DavitError):
    """The release command ended badly."""

    id, status = "release_phase_failed", 422


def _restarts(state: AppState, wanted: Wanted) -> list[datetime]:
    """When somebody asked for the process type to be started over."""
    return [moment for moment in (state.app.restarted_at, wanted.restarted_at) if moment is not None]


def _shape(life: DynoLife) -> tuple[str, str]:
    return life.row.size, life.row.isolation


def _stays(wanted: Wanted, life: DynoLife, why: str) -> str:
    """Why a process type does not change, for the person who wanted it."""
    if life.row.isolation != wanted.isolation:
        return f"{wanted.type} did not come up as {wanted.isolation}, so it stays {life.row.isolation}. {why}"
    return f"{wanted.type} did not come up at {wanted.size.label}, so it stays {life.row.size}. {why}"


def _type(name: str) -> str:
    return name.rpartition(".")[0]


def _index(name: str) -> int:
    return int(name.rpartition(".")[2])


def _checks(release: Release, type: str) -> list[health.Check]:
    assert release.slug is not None
    names = ("path", "attempts", "timeout", "wait", "content")
    found = (release.slug.healthchecks or {}).get(type, [])
    return [health.Check(**{name: check[name] for name in names if name in check}) for check in found if check.get("path")]


def _release_of(row: Dyno) -> Release | None:
    from state.db import snapshot

    with snapshot() as session:
        release = session.get(Release, row.release_id) if row.release_id else None
        if release is not None:
            _ = release.slug
        return release
