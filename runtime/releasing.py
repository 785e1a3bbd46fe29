"""A release on its way from pending to serving: its command, its dynos beside those that serve; or its failure.

Nothing here has the turn: the formation's manager takes it when the dynos are up, and makes this the current release.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from foundation.errors import DavitError, DiskFull, Unavailable
from runtime import records
from runtime.attempts import WAVE, Attempt, Rise, Unwanted
from runtime.crashes import Crashes
from runtime.life import DynoLife
from runtime.plans import Stacks
from runtime.records import AppState, Wanted
from state.models import Release
from state.releases import RELEASE_TYPE

log = logging.getLogger("runtime")

TRIES = 10
"""How often a release is tried whose way up ends with an error of Davit's own."""
TRY_AGAIN = 1.0
"""Seconds between two of these tries."""


class ReleasePhase(Protocol):
    """Runs a release's command."""

    async def run(self, state: AppState, release: Release, line: str) -> str | None:
        """Run it as a one-off dyno; None when it ended with status 0, else the sentence.

        Raises:
            NotBegun: the database is away, and nothing has been started.
            DavitError: it could not be started.
        """

    async def give_up(self, release_id: str) -> None:
        """End the release's command, if it runs or is about to; :meth:`run` then returns soon."""


class Formation(Protocol):
    """What a release needs of the manager of its app's formation."""

    app_id: str
    crashes: Crashes

    async def state(self) -> AppState:
        """The app as the database has it.

        Raises:
            Unwanted: there is no such app any more.
        """

    def present(self, type: str | None = None) -> list[DynoLife]:
        """The dynos that are up and not leaving."""

    async def start_one(self, attempt: Attempt, state: AppState, release: Release, wanted: Wanted, name: str) -> DynoLife:
        """Start a dyno; returns when it is up.

        Raises:
            DidNotStart: it is not going to be.
            Unwanted: the attempt was given up.
        """

    async def go_live(self, rise: Rise, release: Release, new: list[DynoLife]) -> None:
        """Make this the current release.

        Raises:
            DidNotStart: one of its dynos has ended again, while the others started.
            Unwanted: the release was given up.
        """

    async def abandon(self, release: Release) -> None:
        """End its dynos."""


class Releasing:
    """Brings the releases of an app up, one after the other."""

    def __init__(self, formation: Formation, phase: ReleasePhase, stacks: Stacks) -> None:
        self._formation, self._phase, self._stacks = formation, phase, stacks
        self._command: Command | None = None
        self._failures = ("", 0)  # the release that failed last by Davit's own fault, and how often

    async def bring_up(self, rise: Rise) -> None:
        """Release phase, boot beside the old, switch; or fail and leave all as it was."""
        try:
            await self._rise_or_fail(rise)
        except Exception:
            log.exception("bringing a release up failed; it is tried again", extra={"app_id": self._formation.app_id})
            await asyncio.sleep(TRY_AGAIN)

    async def _rise_or_fail(self, rise: Rise) -> None:
        release: Release | None = None
        try:
            release = await asyncio.to_thread(records.begin_release, rise.release_id, self._stacks.version())
            if release is None:
                return
            new = []
            if release.slug is not None:
                await self._run_release_phase(rise, release)
                new = await self._boot(rise, release)
            await self._formation.go_live(rise, release, new)
        except Exception as error:
            failed = self._failure(rise, error)
            if failed is None:
                raise
            if release is not None:
                await self._formation.abandon(release)
            await asyncio.to_thread(records.fail, rise.release_id, *failed)

    def _failure(self, rise: Rise, error: Exception) -> tuple[str, str] | None:
        """Kind and sentence of a release that ends; None: what is in the way may pass, so it is tried again."""
        if rise.why or isinstance(error, Unwanted):
            return "cancelled", rise.why or str(error)
        if isinstance(error, ReleasePhaseFailed):
            return "release phase failed", error.message
        if isinstance(error, DavitError) and not isinstance(error, Unavailable | DiskFull):
            return "app did not start", error.message
        if isinstance(error, DavitError):
            return None  # the database is busy or away, or there is no room: as long as that lasts
        failed, times = self._failures
        self._failures = rise.release_id, times + 1 if failed == rise.release_id else 1
        if self._failures[1] < TRIES:
            return None
        log.error("a release is given up", exc_info=error, extra={"app_id": self._formation.app_id})
        return "app did not start", "Davit itself failed to bring the release up; its runtime.log has the details. Release again."

    async def _run_release_phase(self, rise: Rise, release: Release) -> None:
        line = release.process_types.get(RELEASE_TYPE)
        if not line or release.phase == "boot":
            return
        command = self._command
        if command is None or command.release_id != release.id:
            command = self._command = Command(release.id, begun=release.phase == "release")
        if command.begun and not command.over:
            raise ReleasePhaseFailed(
                "Davit was restarted while the release command ran; nobody knows how it ended. Release again."
            )
        if not command.over:
            await self._run_command(rise, release, line, command)
        rise.check()
        if command.problem:
            raise ReleasePhaseFailed(command.problem)

    async def _run_command(self, rise: Rise, release: Release, line: str, command: Command) -> None:
        state = await self._formation.state()
        await asyncio.to_thread(records.set_phase, release.id, "release")
        rise.check()
        command.begun = rise.commanding = True
        try:
            command.problem = await self._phase.run(state, release, line)
        except NotBegun:
            command.begun = False
            raise
        except DavitError as error:
            command.problem = f"The release command could not be started: {error.message}"
        finally:
            rise.commanding = False
        command.over = True

    async def _boot(self, rise: Rise, release: Release) -> list[DynoLife]:
        """Start the web dynos beside those that serve; other process types follow when it is the current release."""
        rise.booting = True
        await asyncio.to_thread(records.set_phase, release.id, "boot")
        self._formation.crashes.start_over(release.id)
        state = await self._formation.state()
        wanted = state.wanted(release, "web")
        names = [f"web.{index}" for index in range(1, wanted.quantity + 1)] if wanted else []
        return await self._start_all(rise, state, release, wanted, names) if wanted else []

    async def _start_all(self, rise: Rise, state: AppState, release: Release, wanted: Wanted, names: list[str]) -> list[DynoLife]:
        """Start these dynos of a release, some at a time; all are up, or none is left.

        Raises:
            DidNotStart: the first that did not.
            Unwanted: the release was given up.
        """
        there = {life.name: life for life in self._formation.present(wanted.type) if life.row.release_id == release.id}
        missing = [name for name in names if name not in there]
        for start in range(0, len(missing), WAVE):
            what = (wanted.size.name, wanted.isolation, wanted.restarts)
            batch = [(name, rise.attempt(name, *what)) for name in missing[start : start + WAVE]]
            starts = (self._formation.start_one(attempt, state, release, wanted, name) for name, attempt in batch)
            results = await asyncio.gather(*starts, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                there[result.name] = result
        return list(there.values())


@dataclass
class Command:
    """What this process knows of the command of the release that comes up, whatever could be written down of it.

    Attributes:
        release_id: whose.
        begun: whether it may have run, and is not to run again.
        over: whether it has ended; ``problem`` says how, None when all is well.
    """

    release_id: str
    begun: bool
    over: bool = False
    problem: str | None = None


class NotBegun(Unavailable):
    """The database did not take that a release command is about to start; nothing of it has run."""


class ReleasePhaseFailed(DavitError):
    """The release command ended badly."""

    id, status = "release_phase_failed", 422
