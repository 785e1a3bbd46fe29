"""One-off dynos: ``davit run``, detached or attached, and the release phase's command."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from foundation.clock import now
from foundation.errors import Conflict, DavitError, DiskFull, InvalidParams, NotFound, Unavailable
from foundation.wire import Call
from runtime import applog, environment, quota, records
from runtime.driver import DynoSpec, RunningDyno
from runtime.drivers import Starter
from runtime.life import describe
from runtime.plans import Stacks
from runtime.records import AppState
from runtime.release_output import ReleaseOutput
from runtime.releasing import NotBegun
from state import isolations, sizes
from state.db import snapshot
from state.models import Dyno, Release, new_id
from state.releases import RELEASE_TYPE, config_of

log = logging.getLogger("runtime")
_T = TypeVar("_T")

LONGEST_SECONDS = 24 * 3600
"""How long a one-off may run."""
RELEASE_SECONDS = 3600
"""How long a release command may run (Heroku's limit)."""
HANGUP_SECONDS = 10
"""From SIGHUP (the client has gone) to SIGKILL."""
GRACE_SECONDS = 30
"""From SIGTERM to SIGKILL."""
RECORD_SECONDS = 5
"""How long who stops a one-off waits until that is on record."""


class OneOffs:
    """Starts and ends one-off dynos.

    Args:
        driver, stacks: as the formation manager's.
        home: DAVIT_HOME.
        cores: CPUs that a dyno may use at the most.
    """

    def __init__(self, driver: Starter, stacks: Stacks, home: Path, cores: int) -> None:
        self.driver, self.stacks, self.home, self.cores = driver, stacks, home, cores
        self.running: dict[str, RunningDyno] = {}
        self.rows: dict[str, Dyno] = {}
        self.formation: Callable[[str, str], tuple[Dyno, RunningDyno] | None] = lambda app_id, dyno_id: None
        """Finds a running dyno of an app's formation; set by the process that has the formations."""
        self._given_up: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- calls on the runtime's socket

    async def start(self, call: Call) -> dict[str, Any]:
        """``oneoff.start``: see docs/architecture.md. Descriptors: three for standard input, output and error, or none."""
        params = call.params
        beginning = self._keep(self._begin(params, call.fds))
        try:
            row, dyno = await asyncio.shield(beginning)
        except asyncio.CancelledError:  # the caller has gone: what is begun must not run on without anybody
            beginning.add_done_callback(self._end_unwanted)
            raise
        if params.get("terminal") and dyno.terminal_fd is not None:
            call.reply_fds.append(os.dup(dyno.terminal_fd))
        self._keep(self._until_over(row, dyno, _seconds(params)))
        if _is_attached(params, call.fds):
            call.at_hangup(lambda: self._keep(self._client_gone(row)))
        # more than the name: it may have ended, and its row be gone, before anybody can look
        version = {"release_id": row.release_id, "release_version": row.release_version}
        return {"dyno_id": row.id, "name": row.name, "size": row.size, **version}

    async def _begin(self, params: Mapping[str, Any], fds: list[int]) -> tuple[Dyno, RunningDyno]:
        """Start one; closes ``fds``.

        Raises:
            NotFound: there is no such app, or it has been destroyed meanwhile; nothing runs.
            Conflict: it has no code.
            InvalidParams: these are no three descriptors.
        """
        attached = _is_attached(params, fds)
        try:
            state = await asyncio.to_thread(records.read_app, str(params["app_id"]))
            if state is None or state.app.destroying:
                raise NotFound("Couldn't find that app.")
            release = await asyncio.to_thread(records.release_for_run, state.app.id)
            if release is None or release.slug is None:
                raise Conflict(f"{state.app.name} has no code yet, so nothing can run; push some first.", status=422)
            terminal = (int(params["terminal"][0]), int(params["terminal"][1])) if params.get("terminal") else None
            if fds and len(fds) != 3:
                raise InvalidParams("A one-off without a terminal takes three descriptors: standard input, output and error.")
            row, spec = await self._enter(
                state, release, str(params["command"]), type=str(params.get("type") or "run"), size=params.get("size"),
                env=dict(params.get("env") or {}), terminal=terminal, fds=fds,
                isolation=str(params.get("isolation") or isolations.DEFAULT), by=params.get("by"),
            )  # fmt: skip
            dyno = await self._launch(row, spec)
        finally:
            for fd in fds:
                os.close(fd)
        try:
            there = await asyncio.to_thread(records.read_app, row.app_id)
            if not attached:
                await self._let_go_on(row, now() + timedelta(seconds=_seconds(params)))
        except BaseException:
            await self._clean_up(row, dyno)
            raise
        if there is None or there.app.destroying:  # whoever ended the app's one-offs may not have known of this one
            await self._clean_up(row, dyno)
            raise NotFound("Couldn't find that app: it has been destroyed.")
        return row, dyno

    def _end_unwanted(self, begun: asyncio.Task[tuple[Dyno, RunningDyno]]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            self._keep(self._clean_up(*begun.result()))

    async def start_inside(self, call: Call) -> dict[str, Any]:
        """``oneoff.inside {app_id, inside, command, env, terminal, by, files}``: a further command in a dyno that runs (its id).

        ``by`` is the account of who runs it, for the record; ``files``: to read a file. Answered as ``oneoff.start``; the id in
        the answer is the command's, for ``oneoff.wait`` and the others.
        """
        params = call.params
        try:
            row, dyno = self._host_dyno(str(params["app_id"]), str(params["inside"]))
            terminal = (int(params["terminal"][0]), int(params["terminal"][1])) if params.get("terminal") else None
            if terminal is None and len(call.fds) != 3:
                raise InvalidParams("A command without a terminal takes three descriptors: standard input, output and error.")
            env = await asyncio.to_thread(self._environment_inside, row, dict(params.get("env") or {}))
            stdio = (call.fds[0], call.fds[1], call.fds[2]) if terminal is None else None
            words = environment.command(str(params["command"]))
            if by := params.get("by"):
                await asyncio.to_thread(records.enter, row, by, str(params["command"]), bool(params.get("files")))
            command = await dyno.exec(words, env, terminal=terminal, stdio=stdio)
        finally:
            for fd in call.fds:
                os.close(fd)
        id = new_id()
        self.running[id] = command
        if terminal is not None and command.terminal_fd is not None:
            call.reply_fds.append(os.dup(command.terminal_fd))
        self._keep(self._until_command_over(id, command))
        call.at_hangup(lambda: self._keep(self._hang_up(command)))
        log.info("a command runs in a dyno", extra={"dyno": row.name, "app": row.app_id})
        version = {"release_id": row.release_id, "release_version": row.release_version}
        return {"dyno_id": id, "name": row.name, "size": row.size, **version}

    async def connect(self, call: Call) -> dict[str, Any]:
        """``oneoff.connect {app_id, inside, port}``: a TCP connection to a port of a dyno that runs (its id), as a descriptor."""
        params = call.params
        row, dyno = self._host_dyno(str(params["app_id"]), str(params["inside"]))
        port = int(params["port"])
        if not 0 < port < 65536:
            raise InvalidParams("A port is a number from 1 to 65535.")
        line = await dyno.connect(port)
        call.reply_fds.append(line.detach())
        log.info("a connection into a dyno", extra={"dyno": row.name, "app": row.app_id, "port": port})
        return {}

    def _host_dyno(self, app_id: str, dyno_id: str) -> tuple[Dyno, RunningDyno]:
        found = self.formation(app_id, dyno_id)
        if found is None and dyno_id in self.rows and self.rows[dyno_id].app_id == app_id:
            found = self.rows[dyno_id], self.running[dyno_id]
        if found is None:
            raise NotFound("That dyno does not run at the moment; `ps` shows those that do.")
        return found

    def _environment_inside(self, row: Dyno, extra: Mapping[str, str]) -> dict[str, str]:
        with snapshot() as session:
            release = session.get(Release, row.release_id) if row.release_id else None
        defaults = release.slug.default_config if release and release.slug else {}
        config = config_of(release) if release else {}
        return environment.compose(sizes.find(row.size), row.name, config, defaults, port=row.port, extra=extra)

    async def _until_command_over(self, id: str, command: RunningDyno) -> None:
        try:
            await asyncio.wait_for(command.wait(), LONGEST_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            await command.signal(signal.SIGKILL, everyone=True)
            await command.wait()
        await command.remove()
        await self._forget(id)

    async def _hang_up(self, command: RunningDyno) -> None:
        finished = asyncio.ensure_future(command.wait())
        done, _ = await asyncio.wait({finished}, timeout=1)
        finished.cancel()
        if not done:
            await command.signal(signal.SIGHUP, everyone=True)
            await self._kill_later(command, HANGUP_SECONDS)

    async def wait(self, call: Call) -> dict[str, Any]:
        """``oneoff.wait {dyno_id}`` → ``{status}``."""
        exit = await self._find(call).wait()
        return {"status": exit.status, "oom": exit.oom}

    async def signal(self, call: Call) -> None:
        """``oneoff.signal {dyno_id, number}``."""
        await self._find(call).signal(int(call.params["number"]), everyone=True)

    async def resize(self, call: Call) -> None:
        """``oneoff.resize {dyno_id, rows, columns}``."""
        await self._find(call).resize_terminal(int(call.params["rows"]), int(call.params["columns"]))

    async def stop(self, call: Call) -> None:
        """``oneoff.stop {dyno_id, by}``: SIGTERM, and SIGKILL after the grace period.

        Also where it cannot go on record: it may be what fills the disk, or keeps the database busy.
        """
        dyno, row, by = self._find(call), self.rows.get(str(call.params["dyno_id"])), call.params.get("by")
        if row is not None and by:
            applog.say(row.app_id, row.name, "Stopping all processes with SIGTERM")
        await dyno.signal(signal.SIGTERM, everyone=True)
        self._keep(self._kill_later(dyno, GRACE_SECONDS))
        if row is not None and by:
            await asyncio.wait({self._keep(self._note_stop(row, by))}, timeout=RECORD_SECONDS)

    async def _note_stop(self, row: Dyno, by: str) -> None:
        try:
            await asyncio.to_thread(records.stop, row, by)
        except DavitError as error:
            log.warning(
                "who stopped a one-off is not in the audit log: %s", error.message,
                extra={"account": by, "dyno": row.name, "app": row.app_id},
            )  # fmt: skip

    async def end_all(self, app_id: str) -> None:
        """End the app's one-off dynos; returns when they are gone."""
        mine = [(row, self.running[row.id]) for row in list(self.rows.values()) if row.app_id == app_id]
        await asyncio.gather(*(dyno.remove() for _, dyno in mine), return_exceptions=True)
        await records.strike_off([row.id for row, _ in mine])

    def alive(self) -> list[tuple[Dyno, RunningDyno]]:
        """Those that have not ended, the commands of releases among them."""
        return [(row, self.running[row.id]) for row in self.rows.values() if row.state != "complete"]

    def _find(self, call: Call) -> RunningDyno:
        dyno = self.running.get(str(call.params["dyno_id"]))
        if dyno is None:
            raise NotFound("Couldn't find that process.")
        return dyno

    # --- taking over

    async def adopt(self, row: Dyno, dyno: RunningDyno) -> None:
        """Take over a one-off that an earlier runtime process started.

        A detached one goes on until its command or its time is over. Of the others the terminal or the pipes went with the
        process that held them: they are hung up and asked to end, and ended after the grace period. A release command is
        ended at once: its release fails, and the next one's must not meet it.
        """
        self.running[row.id], self.rows[row.id] = dyno, row
        if row.ends_at is not None:
            since = row.started_at or row.created_at
            seconds, left = (row.ends_at - since).total_seconds(), (row.ends_at - now()).total_seconds()
            self._keep(self._until_over(row, dyno, round(seconds), left=max(1.0, left)))
        elif row.type == RELEASE_TYPE:
            applog.say(row.app_id, row.name, "Stopping process with SIGKILL: Davit was restarted while it ran")
            await self._clean_up(row, dyno)
        else:
            self._keep(self._end_abandoned(row, dyno))

    async def _let_go_on(self, row: Dyno, ends_at: datetime) -> None:
        """Note that a one-off needs nobody, so that a restart of this process does not end it."""
        try:
            await asyncio.to_thread(records.change, [row.id], ends_at=ends_at)
        except DavitError as error:  # it runs all the same
            log.warning("a detached one-off would not survive a restart: %s", error.message, extra={"dyno": row.name})

    async def _end_abandoned(self, row: Dyno, dyno: RunningDyno) -> None:
        over = asyncio.ensure_future(self._until_over(row, dyno, LONGEST_SECONDS))
        done, _ = await asyncio.wait({over}, timeout=1)  # it may have ended with its terminal, or long before
        if not done:
            why = "Davit was restarted, and nobody is connected to it any more"
            applog.say(row.app_id, row.name, f"Stopping all processes with SIGHUP and SIGTERM: {why}")
            await dyno.signal(signal.SIGHUP, everyone=True)  # a shell takes no notice of SIGTERM
            await dyno.signal(signal.SIGTERM, everyone=True)
            await self._kill_later(dyno, GRACE_SECONDS)
        await over

    # --- the release phase

    async def run(self, state: AppState, release: Release, line: str) -> str | None:
        """Run a release's command; None when it ended with status 0, else the sentence (runtime.releasing.ReleasePhase)."""
        try:
            return await self._run(state, release, line)
        finally:
            self._given_up.discard(release.id)

    async def _run(self, state: AppState, release: Release, line: str) -> str | None:
        reader, writer = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            try:
                row, spec = await self._enter(
                    state, release, line, type="release", size=None, env={}, terminal=None, fds=[nothing, writer, writer]
                )
            except (Unavailable, DiskFull) as error:
                raise NotBegun(str(error)) from error
            dyno = await self._launch(row, spec)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(nothing)
            os.close(writer)
        if release.id in self._given_up:
            await self._end_command(row, dyno)
        reading = asyncio.ensure_future(self._relay(release.id, row, reader))
        try:
            exit = await asyncio.wait_for(dyno.wait(), RELEASE_SECONDS)
            if exit.oom:
                quota.killed(row)
            await asyncio.wait({reading}, timeout=5)
        except (asyncio.TimeoutError, TimeoutError):
            await dyno.signal(signal.SIGKILL, everyone=True)
            return f"The release command `{line}` did not end within {RELEASE_SECONDS // 60} minutes."
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            await self._clean_up(row, dyno)
        how = describe(exit, row.isolation)
        return None if exit.status == 0 and not exit.oom else f"The release command `{line}` ended {how}."

    async def give_up(self, release_id: str) -> None:
        """End the release's command, if it runs or is about to (runtime.releasing.ReleasePhase)."""
        if release_id in self._given_up:
            return
        self._given_up.add(release_id)
        for row in list(self.rows.values()):
            if row.type == RELEASE_TYPE and row.release_id == release_id:
                self._keep(self._end_command(row, self.running[row.id]))  # who asks has the turn, and a signal may take a second

    async def _end_command(self, row: Dyno, dyno: RunningDyno) -> None:
        """SIGTERM as for every dyno, and SIGKILL after the grace period."""
        applog.say(row.app_id, row.name, "Stopping process with SIGTERM: its release was cancelled")
        await dyno.signal(signal.SIGTERM, everyone=True)
        self._keep(self._kill_later(dyno, GRACE_SECONDS))

    async def _relay(self, release_id: str, row: Dyno, reader: int) -> None:
        """Append what the command prints to the release's output file and to the app's log."""
        path = self.home / "releases" / release_id / "output"
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb"))
        try:
            output = await asyncio.to_thread(
                ReleaseOutput, path, lambda lines: applog.output(row.app_id, row.name, *lines),
                lambda text: applog.say(row.app_id, "logplex", text),
            )  # fmt: skip
            try:
                while chunk := await stream.read(65536):  # who prints faster than this is taken waits in its pipe
                    await asyncio.to_thread(output.take, chunk)
            finally:
                await asyncio.to_thread(output.close)
        finally:
            transport.close()

    # --- one dyno

    async def _enter(
        self, state: AppState, release: Release, line: str, *, type: str, size: str | None, env: Mapping[str, str],
        terminal: tuple[int, int] | None, fds: list[int], isolation: str = isolations.DEFAULT, by: str | None = None,
    ) -> tuple[Dyno, DynoSpec]:  # fmt: skip
        """Write down that it is about to start, and who (an account's id) has it start."""
        row, spec = await asyncio.to_thread(self._plan, state, release, line, type, size, env, terminal, fds, isolation)
        await asyncio.to_thread(records.insert, row, by)
        return row, spec

    async def _launch(self, row: Dyno, spec: DynoSpec) -> RunningDyno:
        applog.say(row.app_id, row.name, f"Starting process with command `{row.command}`")
        try:
            dyno = await self.driver.start(spec)
        except BaseException:
            await records.strike_off([row.id])
            raise
        self.running[row.id], self.rows[row.id] = dyno, row
        try:
            await asyncio.to_thread(records.change, [row.id], state="up", slot=dyno.slot, address=dyno.address, started_at=now())
        except Exception:  # what the caller is told has not started must not run on
            await self._clean_up(row, dyno)
            raise
        applog.say(row.app_id, row.name, "State changed from starting to up")
        return dyno

    def _plan(
        self, state: AppState, release: Release, line: str, type: str, size_name: str | None, env: Mapping[str, str],
        terminal: tuple[int, int] | None, fds: list[int], isolation: str,
    ) -> tuple[Dyno, DynoSpec]:  # fmt: skip
        assert release.slug is not None and release.slug.digest is not None
        wanted = state.formation.get(type)
        size = sizes.find(size_name) if size_name else (wanted.size if wanted else sizes.find(sizes.DEFAULT))
        taken = {row.name for row in self.rows.values() if row.app_id == state.app.id}
        name = next(name for name in iter(lambda: f"{type}.{random.randint(1000, 9999)}", None) if name not in taken)
        row = Dyno(
            id=new_id(), app_id=state.app.id, release_id=release.id, release_version=release.version, name=name, type=type,
            size=size.name, isolation=isolation, command=line, state="starting", one_off=True, leaving=False, routed=False,
            held=False, crashes=0, restart_requested=False,
        )  # fmt: skip
        defaults = release.slug.default_config | release.dyno_metadata
        values = environment.compose(size, name, config_of(release), defaults, port=None, extra=env)
        spec = DynoSpec(
            id=row.id, name=name, app=state.app.name, app_id=state.app.id,
            stack=self.stacks.run_image(release.stack_version), slug=self.stacks.slug_image(release.slug.digest),
            command=environment.command(line), env=values, limits=environment.limits(size, self.cores), terminal=terminal,
            stdio=(fds[0], fds[1], fds[2]) if fds else None, isolation=isolation, line=line, allowed=True,
        )  # fmt: skip
        return row, spec

    async def _until_over(self, row: Dyno, dyno: RunningDyno, seconds: int, *, left: float | None = None) -> None:
        """``seconds`` in all; ``left`` of them when it was taken over."""
        try:
            exit = await asyncio.wait_for(dyno.wait(), seconds if left is None else left)
        except (asyncio.TimeoutError, TimeoutError):
            applog.say(row.app_id, row.name, f"Stopping process with SIGKILL: it ran for {seconds} seconds")
            await dyno.signal(signal.SIGKILL, everyone=True)
            exit = await dyno.wait()
        if exit.oom:
            quota.killed(row)
        status = "unknown" if exit.status is None else exit.status
        applog.say(row.app_id, row.name, f"Process exited with status {status}", "State changed from up to complete")
        await self._clean_up(row, dyno)

    async def _clean_up(self, row: Dyno, dyno: RunningDyno) -> None:
        row.state = "complete"
        await dyno.remove()
        self._keep(self._forget(row.id))
        await records.strike_off([row.id])

    async def _forget(self, dyno_id: str) -> None:
        """Those who ask for the exit status right after the end still get it."""
        await asyncio.sleep(60)
        self.running.pop(dyno_id, None)
        self.rows.pop(dyno_id, None)

    async def _client_gone(self, row: Dyno) -> None:
        dyno = self.running.get(row.id)
        if dyno is None:
            return
        finished = asyncio.ensure_future(dyno.wait())
        done, _ = await asyncio.wait({finished}, timeout=1)
        finished.cancel()
        if done:
            return
        applog.say(row.app_id, row.name, "Client connection closed. Sending SIGHUP to all processes")
        await dyno.signal(signal.SIGHUP, everyone=True)
        await self._kill_later(dyno, HANGUP_SECONDS)

    async def _kill_later(self, dyno: RunningDyno, seconds: float) -> None:
        try:
            await asyncio.wait_for(dyno.wait(), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            await dyno.signal(signal.SIGKILL, everyone=True)

    def _keep(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_attached(params: Mapping[str, Any], fds: list[int]) -> bool:
    """Whether somebody is connected to it, with whom it goes."""
    return bool(params.get("terminal") or fds)


def _seconds(params: Mapping[str, Any]) -> int:
    return int(params.get("time_to_live") or LONGEST_SECONDS)
