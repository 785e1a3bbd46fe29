"""The life of one dyno: starting, up, crashed or stopped, gone; its row, its log lines, its health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from foundation.clock import now
from foundation.errors import DavitError
from runtime import applog, health, quota, records
from runtime.driver import DynoSpec, Exit, Limits, RunningDyno, Unsupported
from runtime.drivers import Starter
from state.models import Dyno
from state.sizes import MIB, Size

log = logging.getLogger("runtime")

BOOT_SECONDS = 60
"""A web dyno binds PORT within this, or R10."""
AGAIN_SECONDS = 1.0
"""Between two attempts to end a dyno that could not be stopped."""
GRACE_SECONDS = 30
"""From SIGTERM to SIGKILL, or R12."""


class DidNotStart(DavitError):
    """A dyno ended, hung or stayed unreachable before it was up; the sentence says which and what to do."""

    id, status = "app_did_not_start", 422
    row: Dyno | None = None

    def __init__(self, message: str, exit: Exit | None = None) -> None:
        """Refuse; ``exit`` when the dyno ended by itself."""
        super().__init__(message)
        self.exit = exit


@dataclass(frozen=True)
class Plan:
    """What a dyno is to be, decided by the formation manager.

    Attributes:
        row: its (unsaved) database row.
        spec: what the driver starts.
        host: the Host header of health checks.
        checks: health checks that must pass before it counts as up.
        boot_seconds: the time it has for that.
    """

    row: Dyno
    spec: DynoSpec
    host: str
    checks: Sequence[health.Check] = ()
    boot_seconds: float = BOOT_SECONDS


class DynoLife:
    """One dyno from its start to its end.

    Args:
        ended: called (with this life) when it has ended by itself, not when :meth:`stop` ended it.

    Attributes:
        row: the database row as this process last wrote it.
        running: the driver's handle; None before it started.
        gone: set when nothing of it is left and its keeper has forgotten it.
    """

    def __init__(self, driver: Starter, row: Dyno, ended: Callable[[DynoLife], None]) -> None:
        self.driver = driver
        self.row = row
        self.running: RunningDyno | None = None
        self.stopping = False
        self.up = False
        self.exit: Exit | None = None
        self.gone = asyncio.Event()
        self._given_up = asyncio.Event()
        self.started_at: datetime = now()
        self._began = time.monotonic()
        self._ended = ended
        self._watcher: asyncio.Task[None] | None = None

    @property
    def lived(self) -> float:
        """Seconds since it was started, by a clock that nobody sets; for one that was taken over, until then as its row says."""
        return time.monotonic() - self._began

    @property
    def id(self) -> str:
        """The dyno's id."""
        return self.row.id

    @property
    def name(self) -> str:
        """``web.1``."""
        return self.row.name

    def give_up(self) -> None:
        """While it starts: it need not come up any more, and :meth:`start` ends as soon as the driver has it."""
        self._given_up.set()

    @property
    def given_up(self) -> bool:
        """Whether it was given up while it started."""
        return self._given_up.is_set()

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out, and nobody counts on it any more: its end is no crash."""
        return self.stopping or self.row.leaving

    async def start(self, plan: Plan, ready: Callable[[], Awaitable[Path | None]]) -> bool:
        """Start it and return when it is up (a web dyno: reachable and healthy; others: running).

        Args:
            ready: returns when it may start; its row says that it is starting meanwhile. With what an earlier dyno was put
                aside as, if there is one: it wakes from there, or starts anew when that cannot be done.

        Returns:
            whether it was woken from there.

        Raises:
            DidNotStart: it is not going to be up; it has been stopped and removed.
        """
        row = self.row
        await asyncio.to_thread(records.insert, row)
        try:
            snapshot = await ready()
        except BaseException:
            await records.strike_off([row.id])
            raise
        if self.given_up:
            if snapshot is not None:
                await asyncio.to_thread(shutil.rmtree, snapshot, ignore_errors=True)
            await records.strike_off([row.id])
            raise self._not_wanted()
        self.started_at, self._began = now(), time.monotonic()  # it may have waited for long
        applog.say(row.app_id, row.name, f"Starting process with command `{row.command}`")
        try:
            woken = await self._wake(plan, snapshot)
            self._take(woken or await self.driver.start(plan.spec))
        except DavitError as error:
            await records.strike_off([row.id])
            applog.say(row.app_id, row.name, f"Error R99 (Platform error) -> {error.message}")
            raise DidNotStart(f"{row.name} could not be started: {error.message}") from error
        except BaseException:
            await records.strike_off([row.id])
            raise
        await self._come_up(plan)
        return woken is not None

    async def _wake(self, plan: Plan, snapshot: Path | None) -> RunningDyno | None:
        if snapshot is None:
            return None
        try:
            return await self.driver.resume(plan.spec, snapshot)
        except DavitError as error:
            log.warning("a dyno could not be woken as it was and starts anew: %s", error.message, extra={"dyno": self.name})
            return None
        finally:
            await asyncio.to_thread(shutil.rmtree, snapshot, ignore_errors=True)

    async def resize(self, size: Size, limits: Limits) -> None:
        """Give it another size while it runs.

        Raises:
            Unavailable, DiskFull: it has the limits, and that cannot be written down now; to be done again.
            DavitError: it cannot be done without a restart; nothing has changed.
        """
        assert self.running is not None
        used = self.running.stats().memory
        if used > limits.memory_max:
            raise Unsupported(
                f"{self.name} uses {used // MIB} MiB of memory now, and {size.label} ends a dyno at {limits.memory_max // MIB}; "
                "without --live it is restarted at the new size."
            )
        try:
            await self.running.update(limits)
        except OSError as error:
            raise Unsupported(f"The kernel refuses the new limits of {self.name}: {error.strerror or error}.") from error
        await asyncio.to_thread(records.change, [self.row.id], size=size.name)
        self.row.size = size.name
        applog.say(self.row.app_id, self.name, f"Resized to {size.label} while running")

    async def put_aside(self, to: Path) -> bool:
        """End it as :meth:`stop` does, but so that it can be woken from ``to`` as it was; False when that cannot be."""
        running = self.running
        if self.stopping or running is None or self.exit is not None:
            return False
        self.stopping = True
        try:
            await asyncio.to_thread(to.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
            await running.suspend(to)
            await running.remove()
        except Exception as error:  # a full disk, for example: whoever asked for this stops it, then
            if not isinstance(error, Unsupported):
                log.warning("a dyno could not be put aside and is stopped: %s", error, extra={"dyno": self.name})
                applog.say(self.row.app_id, self.name, "What it has in memory could not be kept: it starts anew when it wakes")
            self.stopping = False
            return False
        await records.strike_off([self.row.id])
        return True

    def take_over(self, running: RunningDyno) -> None:
        """Keep a dyno that an earlier runtime process started; one that was still starting waits for :meth:`go_on`."""
        self._take(running)
        self.started_at = self.row.started_at or self.row.created_at
        self._began = time.monotonic() - max(0.0, (now() - self.started_at).total_seconds())
        self.up = self.row.state == "up"

    async def go_on(self, plan: Plan) -> None:
        """Return when one that was taken over while it started is up.

        Raises:
            DidNotStart: as :meth:`start`.
        """
        await self._come_up(plan)

    def _take(self, running: RunningDyno) -> None:
        self.running = running
        self.row.slot, self.row.address = running.slot, running.address
        self._watcher = asyncio.create_task(self._watch(running), name=f"watch {self.row.name}")

    async def _come_up(self, plan: Plan) -> None:
        try:
            await self._become_up(plan)
        except DidNotStart:
            raise
        except Exception:  # the database, for example: what nobody would look after must not run on
            await self.stop(grace=0)
            raise

    async def _become_up(self, plan: Plan) -> None:
        running, row = self.running, self.row
        assert running is not None
        await asyncio.to_thread(
            records.change, [row.id], slot=row.slot, address=row.address, port=plan.spec.port, started_at=self.started_at
        )
        row.port, row.started_at = plan.spec.port, self.started_at
        if plan.spec.port is not None:
            problem = await self._until_reachable(plan, running)
            if problem:
                await self._give_up(problem)
        self.up, row.state = True, "up"
        await asyncio.to_thread(records.change, [row.id], state="up")
        applog.say(row.app_id, row.name, "State changed from starting to up")

    async def _until_reachable(self, plan: Plan, running: RunningDyno) -> DidNotStart | None:
        """Wait for the port and the health checks; None when all is well."""
        port = plan.spec.port
        assert port is not None and running.address is not None
        exiting = asyncio.ensure_future(running.wait())
        ready = asyncio.ensure_future(health.until_listening(running.listeners, port))
        unwanted = asyncio.ensure_future(self._given_up.wait())
        checking: asyncio.Future[DidNotStart | None] | None = None
        try:
            first = {exiting, ready, unwanted}
            await asyncio.wait(first, timeout=plan.boot_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ready.exception() and not exiting.done() and not unwanted.done():
                checking = asyncio.ensure_future(self._until_healthy(plan, running.address))
                await asyncio.wait({checking, unwanted, exiting}, return_when=asyncio.FIRST_COMPLETED)
                if checking.done():
                    return checking.result()
            if unwanted.done():
                return self._not_wanted()
            if exiting.done():
                exit = exiting.result()
                when = "before it listened on $PORT" if checking is None else "before its health check passed"
                said = f"{self.name} ended {when}, {describe(exit, self.row.isolation)}. `davit logs` shows why."
                return DidNotStart(said, exit)
            why = health.explain(running.listeners(), port)
            applog.say(
                self.row.app_id, self.name,
                f"Error R10 (Boot timeout) -> Web process failed to bind to $PORT within {plan.boot_seconds:g} seconds of launch",
                why,
            )  # fmt: skip
            return DidNotStart(f"{self.name} did not bind $PORT within {plan.boot_seconds:g} seconds. {why}")
        finally:
            for waiting in (ready, exiting, unwanted, checking):
                if waiting is not None:
                    waiting.cancel()

    def _not_wanted(self) -> DidNotStart:
        return DidNotStart(f"{self.name} was stopped while it started: something else is wanted by now.")

    async def _until_healthy(self, plan: Plan, address: str) -> DidNotStart | None:
        for check in plan.checks:
            problem = await health.until_healthy(check, address, plan.spec.port or 0, plan.host)
            if problem:
                return DidNotStart(f"{self.name} failed its health check GET {check.path}: {problem}.")
        return None

    async def _give_up(self, problem: DidNotStart) -> None:
        state = "down" if self.given_up else "crashed"
        applog.say(self.row.app_id, self.name, f"State changed from starting to {state}")
        await self.stop(grace=0)
        raise problem

    async def _watch(self, running: RunningDyno) -> None:
        exit = await running.wait()
        self.exit = exit
        if exit.oom:
            quota.killed(self.row)
        elif exit.why:
            applog.say(self.row.app_id, self.name, f"Error R99 (Platform error) -> {exit.why}")
        applog.say(self.row.app_id, self.name, f"Process exited with status {'unknown' if exit.status is None else exit.status}")
        if not self.stopping and self.up:
            self._ended(self)

    async def stop(self, grace: float = GRACE_SECONDS, forget: bool = True) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds, then remove every trace; returns when it is gone.

        Args:
            forget: remove its row, too; otherwise it stays, to say that the dyno crashed.
        """
        if self.stopping:
            if self._watcher:
                await asyncio.wait({self._watcher})
            return
        self.stopping = True
        running = self.running
        if running is not None:
            await self._end(running, grace)
            await running.remove()
        if forget:
            await records.strike_off([self.row.id])

    async def end_by_force(self) -> None:
        """After :meth:`stop` has failed: SIGKILL, as often as it takes, then remove what can be removed; raises nothing."""
        self.stopping = True
        running, watcher = self.running, self._watcher
        if running is None or watcher is None:
            return
        while not watcher.done():
            with contextlib.suppress(Exception):
                await running.signal(signal.SIGKILL, everyone=True)
            await asyncio.wait({watcher}, timeout=AGAIN_SECONDS)
        try:
            await running.remove()
        except Exception:
            log.exception("a dyno that has ended could not be removed", extra={"dyno": self.name})
        await records.strike_off([self.row.id])

    async def _end(self, running: RunningDyno, grace: float) -> None:
        assert self._watcher is not None
        if self.exit is None and grace > 0:
            applog.say(self.row.app_id, self.name, "Stopping all processes with SIGTERM")
            await self._ask_to_end(running, grace)
        if self.exit is None:
            if grace > 0:
                applog.say(
                    self.row.app_id, self.name,
                    f"Error R12 (Exit timeout) -> Process failed to exit within {grace:g} seconds of SIGTERM",
                    "Stopping process with SIGKILL",
                )  # fmt: skip
            await running.signal(signal.SIGKILL, everyone=True)
            await asyncio.wait({self._watcher}, timeout=10)

    async def _ask_to_end(self, running: RunningDyno, grace: float) -> None:
        """SIGTERM; returns when it has ended or ``grace`` seconds are over, whether or not it could be told by then."""
        assert self._watcher is not None
        telling = asyncio.ensure_future(running.signal(signal.SIGTERM, everyone=True))
        end = time.monotonic() + grace
        try:
            await asyncio.wait({telling, self._watcher}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
                await asyncio.wait({self._watcher}, timeout=max(0.0, end - time.monotonic()))
        finally:
            telling.cancel()


def describe(exit: Exit, isolation: str) -> str:
    """How a dyno ended, after “it ended”."""
    if exit.oom:
        return f"killed because it used more than {quota.most(isolation)}"
    if exit.why:
        return f"with status {exit.status}: {exit.why[0].lower()}{exit.why[1:]}"
    if exit.status is None:
        return "with an unknown status"
    if exit.status > 128:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(exit.status - 128).name}"
    return f"with status {exit.status}"
