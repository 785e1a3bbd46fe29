"""The router: keeps one HAProxy running and its routes as the database says.

HAProxy is a process of its own that lives on when this one ends, and is found again. What is in force in it is known
(:class:`router.table.Table`), read back from it after a restart, and corrected against the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path

from foundation import programs
from foundation.errors import DavitError
from foundation.settings import Address, Settings
from metrics.requests import WRITE_SECONDS, Requests
from router import certificates, generation, listeners
from router.accesslog import Access
from router.collector import Collector, Deliver, open_fifo
from router.config import Frame, Listener, Timeouts, backend, compose
from router.control import ControlFailed
from router.generation import Generation
from router.readback import read_table
from router.routes import AppRows, Route, route
from router.table import Change, PoolExhausted, Table, pool_size

log = logging.getLogger("router")

Reader = Callable[[Collection[str] | None], Sequence[AppRows]]
"""Reads the rows of some apps (or of all: None) from the database; blocking."""

LEAST_HAPROXY = (2, 4, 13)
"""The first that knows ``idle-close-on-response``; since 2.4.3 HTTP/2 clients cannot name two hosts. (Ubuntu 22.04: 2.4.14.)"""
REQUEST_SECONDS = 5.0
"""How long requests that are being answered have when the router is stopped."""

_QUIET = re.compile(
    r"|New server registered\.|Server deleted\."
    r"|(IP changed|no need to change the addr).* by 'stats socket command'\.?"  # "set server … addr … port …", server.c
)
_DELETED = re.compile(r"Server deleted\.|No such server\.")


class RouteRefused(DavitError):
    """HAProxy did not accept a change."""

    id, status = "route_refused", 500


class Router:
    """Runs HAProxy.

    Args:
        settings: this Davit's.
        read: reads the database.
        deliver: takes access lines.
        wake: wakes a sleeping app by its id; blocking.
        timeouts: Heroku's; tests have less patience.
        program: haproxy's path; looked up by default.
        endpoints: reads the uploaded certificates and their domains.
    """

    def __init__(
        self,
        settings: Settings,
        read: Reader,
        deliver: Deliver,
        *,
        timeouts: Timeouts | None = None,
        program: Path | None = None,
        wake: Callable[[str], object] = lambda app_id: None,
        endpoints: Callable[[], Collection[certificates.Bound]] = tuple,
    ) -> None:
        self.settings = settings
        self.timeouts = timeouts or Timeouts()
        self.root = settings.run / "haproxy"
        self.table = Table(0)
        self.current: Generation | None = None
        self.retiring: list[Generation] = []
        self.reloads = 0
        self._read = read
        self._endpoints = endpoints
        self._deliver = deliver
        self._program = program
        self._waker, self._waking = wake, set[str]()
        self._figures = Requests(settings.home)
        self._began = time.monotonic()
        self._fifo: int | None = None
        self._sockets: dict[str, socket.socket] = {}
        self._lock = asyncio.Lock()
        self._pending: dict[str, list[asyncio.Future[None]]] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dropped = 0

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find the HAProxy that runs, or start one; routes are as the database says when this returns.

        Raises:
            HaproxyFailed: it does not start.
            AddressInUse: something else listens on the router's address.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._program = self._program or find_program()
        self._version = program_version(self._program)
        self._fifo = open_fifo(self.root / "access.fifo")
        self.collector = Collector(self.root / "access.fifo", self._deliver, wake=self._wake_up, count=self._count)
        await self._place_certificates()
        if not await self._adopt():
            await self._replace()
        for work in (self._apply_forever, self._keep_alive, self._tidy, self.collector.run, self._write_figures):
            self._spawn(self._always(work))

    async def close(self) -> None:
        """Let go of HAProxy and leave it running."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in [self.current, *self.retiring]:
            if one:
                one.release()
        for listener in self._sockets.values():
            listener.close()
        if self._fifo is not None:
            os.close(self._fifo)

    def _count(self, access: Access) -> None:
        self._figures.count(access.app_id, access.status, access.seconds)

    async def _write_figures(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await asyncio.to_thread(self._figures.write)

    async def _always(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do a work that has no end: what makes it fail (no memory, no descriptor, a full disk) passes, and it is done again."""
        while True:
            try:
                return await work()
            except Exception:
                log.exception("a router task failed and is begun again")
            await asyncio.sleep(1)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a router task failed", exc_info=task.exception())

    def status(self) -> dict[str, object]:
        """Numbers about the router, for `ping`.

        Raises:
            HaproxyFailed: there is no HAProxy at the moment.
        """
        if not (self.current and self.current.alive):
            raise generation.HaproxyFailed("HAProxy does not run; the router starts it again, and its log says why it cannot.")
        return {
            "haproxy": self.current.pid,
            "apps": len(self.table.routes),
            "spare": self.table.free,
            "reloads": self.reloads,
            "retiring": [one.pid for one in self.retiring],
            "lines": self.collector.read,
            "lines_dropped": self.collector.dropped,
        }

    # -- routes -------------------------------------------------------------------------------------------------------

    async def sync(self, app_id: str) -> None:
        """Make HAProxy route the app as the database says now; returns when it is in force.

        Syncs that come while others are at work are done together.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(app_id, []).append(done)
        self._wake.set()
        await done

    async def sync_all(self) -> None:
        """:meth:`sync` for every app."""
        async with self._lock:
            rows = await asyncio.to_thread(self._read, None)
            wanted = {one.app_id: route(one, self.settings.domain) for one in rows}
            await self._bring_about({**dict.fromkeys(self.table.apps()), **wanted})
            await self._certify()

    async def busy(self, app_id: str, addresses: Collection[tuple[str, int]]) -> int:
        """How many requests these dynos of the app are answering at this moment, over every HAProxy that still serves.

        "show servers conn" (management.txt, section 9.3): name, ids, address, port, purge delay, connections in use, …
        """
        slot = self.table.slot(app_id)
        busy = 0
        for one in [self.current, *self.retiring]:
            if one is None:
                continue
            try:
                text = (await one.control.run("show servers conn" + (f" {backend(slot)}" if slot is not None else "")))[0]
            except ControlFailed:
                continue  # it has ended, and with it what it served
            for words in map(str.split, text.splitlines()):
                if len(words) > 6 and words[3].isdigit() and (words[2], int(words[3])) in addresses:
                    busy += int(words[6])
        return busy

    async def quiet(self, app_ids: Collection[str]) -> dict[str, float]:
        """For how many seconds nobody has asked these apps anything; 0 for one that is answering a request now."""
        told = {}
        for app_id in app_ids:
            slot = self.table.slot(app_id)
            if slot is None:
                continue
            targets = {(target.address, target.port) for target in self.table.routes[slot].targets}
            busy = await self.busy(app_id, targets)
            told[app_id] = 0.0 if busy else time.monotonic() - self.collector.seen.get(app_id, self._began)
        return told

    def _wake_up(self, app_id: str) -> None:
        if app_id not in self._waking:
            self._waking.add(app_id)
            self._spawn(self._wake_one(app_id))

    async def _wake_one(self, app_id: str) -> None:
        """Held requests ask again every second until the app is awake: what fails here is tried again by the next."""
        try:
            await asyncio.to_thread(self._waker, app_id)
        except Exception as error:
            log.warning("an app could not be woken yet", extra={"app_id": app_id, "reason": str(error)})
        finally:
            self._waking.discard(app_id)

    async def _apply_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            async with self._lock:
                pending, self._pending = self._pending, {}
                await self._apply(pending)

    async def _apply(self, pending: dict[str, list[asyncio.Future[None]]]) -> None:
        failure: Exception | None = None
        try:
            rows = await asyncio.to_thread(self._read, list(pending))
            wanted = {one.app_id: route(one, self.settings.domain) for one in rows}
            await self._bring_about({**dict.fromkeys(pending), **wanted})
            await self._certify()
        except Exception as error:
            log.exception("routes could not be changed")
            failure = error
        for done in (future for futures in pending.values() for future in futures if not future.done()):
            if failure:
                told = failure if isinstance(failure, DavitError) else RouteRefused("The router failed; its log says why.")
                done.set_exception(told)
            else:
                done.set_result(None)

    async def _bring_about(self, wanted: dict[str, Route | None]) -> None:
        """Change the routes of these apps (None: take them out). Apps that lose hosts or vanish go first."""
        try:
            for app_id in sorted(wanted, key=lambda app: wanted[app] is not None):
                change = self.table.change(app_id, wanted[app_id])
                if change:
                    await self._command(change)
                    self.table.applied(change)
        except PoolExhausted:
            await self._replace()
        except (ControlFailed, RouteRefused) as error:
            log.warning("HAProxy is replaced: a change could not be made", extra={"reason": error.message})
            await self._replace()
        if self.table.free < pool_size(len(self.table.routes)) // 64:
            await self._replace()

    async def _command(self, change: Change) -> None:
        assert self.current
        answers = await self._run(self.current, change.commands)
        for command, answer in zip(change.commands, answers, strict=True):
            if not _QUIET.fullmatch(answer):
                raise RouteRefused(f"HAProxy refused “{command}”: {answer}")

    async def _run(self, one: Generation, commands: Sequence[str]) -> list[str]:
        return await one.control.run(
            *(re.sub(r" @(hosts|states) ", rf" {one.directory}/\1.map ", text, count=1) for text in commands)
        )

    async def _certify(self) -> None:
        """Serve domains with the certificates that were uploaded for them; a change takes a new generation, and no request."""
        if self.current and await self._place_certificates():
            await self._replace()

    async def _place_certificates(self) -> bool:
        if not self.settings.https:
            return False
        return await asyncio.to_thread(lambda: certificates.place(self.settings, self._endpoints()))

    # -- generations --------------------------------------------------------------------------------------------------

    async def _adopt(self) -> bool:
        """Take over the HAProxy that runs; False when there is none that fits."""
        found = generation.find(self.root)
        live = [one for one in found if await self._answers(one)]
        if not live:
            for one in found:
                one.signal(signal.SIGKILL)
                self._retire(one)
            return False
        self.current = live[-1]
        for one in found:
            if one is not self.current:
                one.signal(signal.SIGUSR1)
                self._retire(one)
        self._take_sockets(self.current)
        try:
            self.table = await read_table(self.current)
            stale = [name for slot, names in self.table.leaving.items() for name in (f"b{slot}/{server}" for server in names)]
            await self.current.control.run(*(f"set server {name} state maint" for name in stale))
        except (ControlFailed, ValueError) as error:
            log.warning("HAProxy's routes cannot be read back", extra={"reason": str(error)})
            return False
        if self.current.facts["frame"] != self._digest():
            return False
        await self.sync_all()
        log.info("HAProxy runs on", extra={"pid": self.current.pid, "apps": len(self.table.routes)})
        return True

    @staticmethod
    async def _answers(one: Generation) -> bool:
        try:
            await one.control.open()
        except ControlFailed:
            return False
        return True

    def _take_sockets(self, one: Generation) -> None:
        for name, (address, fd) in one.facts["listeners"].items():
            if self._addresses().get(name) and str(self._addresses()[name]) == address:
                taken = listeners.take(one.pid, fd)
                if taken:
                    self._sockets[name] = taken

    async def _replace(self) -> None:
        """Start a HAProxy with the routes of the database and let the present one finish what it has."""
        await self._start_with(await self._wanted())

    async def _wanted(self) -> list[Route]:
        rows = await asyncio.to_thread(self._read, None)
        return [route(one, self.settings.domain) for one in rows]

    async def _start_with(self, routes: list[Route]) -> None:
        table = self._arrange(routes)
        old = self.current
        await self._listen(old)
        self.current = await self._start(table)
        self.table = table
        self.reloads += 1
        if old:
            old.signal(signal.SIGUSR1)
            self._retire(old)
        log.info("HAProxy started", extra={"pid": self.current.pid, "apps": len(routes), "backends": table.pool})

    def _arrange(self, routes: list[Route]) -> Table:
        """A table in which apps keep the backends that they have."""
        placed = {slot: one for one in routes if (slot := self.table.slot(one.app_id)) is not None}
        new = [one for one in routes if self.table.slot(one.app_id) is None]
        pool = max(pool_size(len(routes)), max(placed, default=0) + 1)
        vacant = (slot for slot in range(pool) if slot not in placed and slot not in self.table.leaving)
        for one in new:
            slot = next(vacant, None)
            if slot is None:
                slot, pool = pool, pool + 1
            placed[slot] = one
        return Table(pool, placed)

    async def _start(self, table: Table) -> Generation:
        assert self._program and self._fifo is not None
        number = max([int(path.name) for path in self.root.iterdir() if path.name.isdigit()], default=0) + 1
        bound = tuple(Listener(one.fileno(), one.getsockname()[1], name == "https") for name, one in self._sockets.items())
        frame = self._frame(self.root / str(number), bound)
        facts = {
            "frame": self._digest(),
            "pool": table.pool,
            "version": self._version,
            "listeners": {name: (str(self._addresses()[name]), one.fileno()) for name, one in self._sockets.items()},
        }
        fds = [one.fileno() for one in self._sockets.values()]
        files = await asyncio.to_thread(compose, frame, table.pool, list(table.routes.items()))
        return await generation.start(self._program, self.root, number, files, facts, fds, self._fifo)

    async def _listen(self, old: Generation | None) -> None:
        """Open the sockets that are still missing; one that only the old HAProxy has is waited for."""
        addresses = self._addresses()
        for name in [name for name in self._sockets if name not in addresses]:
            self._sockets.pop(name).close()
        for name, address in addresses.items():
            if name in self._sockets:
                continue
            variable = f"DAVIT_{name.upper()}"
            try:
                self._sockets[name] = listeners.listen(address, variable)
            except listeners.AddressInUse:
                if not old or not old.alive:
                    raise
                # The kernel did not let us copy the socket (see listeners.take): HAProxy has to let go of it first.
                old.signal(signal.SIGUSR1)
                await asyncio.sleep(0.2)
                self._sockets[name] = listeners.listen(address, variable)

    def _addresses(self) -> dict[str, Address]:
        both = {"http": self.settings.http, "https": self.settings.https}
        return {name: address for name, address in both.items() if address}

    def _frame(self, directory: Path, bound: tuple[Listener, ...]) -> Frame:
        root = os.geteuid() == 0
        jail = self.root / "jail"
        jail.mkdir(exist_ok=True, mode=0o711)
        return Frame(
            directory=directory,
            listeners=bound,
            certificates=certificates.ensure(self.settings) if self.settings.https else (),
            certificate_list=certificates.list_file(self.settings) if self.settings.https else None,
            timeouts=self.timeouts,
            threads=min(os.cpu_count() or 1, 4),
            maxconn=_maxconn(),
            user=_account() if root else None,
            jail=jail,
            chroot=root,
            version=self._version,
        )

    def _digest(self) -> str:
        """What a generation's configuration depends on, but for the routes."""
        names = tuple(Listener(number, 0, name == "https") for number, name in enumerate(self._addresses()))
        files = compose(self._frame(Path("/"), names), 1, [])
        addresses = {name: str(address) for name, address in self._addresses().items()}
        told = json.dumps([files, addresses, certificates.stamp(self.settings)])
        return hashlib.sha256(told.encode()).hexdigest()

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Start HAProxy again whenever it dies."""
        delay = 0.0
        while True:
            watched = self.current
            assert watched
            await watched.ended()
            async with self._lock:
                if self.current is not watched:
                    continue  # it was replaced, and ended in its own time
                log.error("HAProxy died and is started again", extra={"pid": watched.pid})
                try:
                    await self._start_with(await self._best_known())
                    delay = 0
                except Exception as error:  # no memory, no process, no room: the kernel ends HAProxy in just that hour
                    log.error("HAProxy cannot be started: %s", error)
                    delay = min(5, delay * 2 + 0.1)
            await asyncio.sleep(delay)

    async def _best_known(self) -> list[Route]:
        """The routes of the database; while that does not answer, those that were in force."""
        try:
            return await self._wanted()
        except Exception as error:
            log.warning("HAProxy is started with the routes that it had: %s", error)
            return list(self.table.routes.values())

    def _retire(self, one: Generation) -> None:
        """Let a generation finish what it has; what comes in by its connections it hands to the newest one."""
        one.control.close()
        self.retiring.append(one)
        self._spawn(self._see_out(one))

    async def _see_out(self, one: Generation) -> None:
        await one.ended()
        self.retiring.remove(one)
        one.forget()

    async def _tidy(self) -> None:
        """Delete servers whose last request is answered, and ask HAProxy for lines that it had to drop."""
        while True:
            await asyncio.sleep(1)
            async with self._lock:
                with contextlib.suppress(ControlFailed):
                    await self._delete_left()
                    await self._count_dropped()
            for one in [self.current, *self.retiring]:
                if one:
                    one.trim_messages()

    async def _delete_left(self) -> None:
        assert self.current
        leaving = [(slot, server) for slot, servers in self.table.leaving.items() for server in servers]
        answers = await self.current.control.run(*(f"del server b{slot}/{server}" for slot, server in leaving))
        for (slot, server), answer in zip(leaving, answers, strict=True):
            if _DELETED.fullmatch(answer):
                self.table.deleted(slot, server)

    async def _count_dropped(self) -> None:
        assert self.current
        answer = (await self.current.control.run("show info"))[0]
        dropped = int((re.search(r"^DroppedLogs: (\d+)", answer, re.MULTILINE) or ["", "0"])[1])
        before = self.current.facts.get("dropped", 0)
        if dropped > before:
            self.collector.lost(dropped - before)
        self.current.facts["dropped"] = dropped


def stop(settings: Settings, patience: float = REQUEST_SECONDS) -> None:
    """End every HAProxy of this Davit and remove what they leave; for `davit down`.

    Args:
        patience: seconds to let requests finish.
    """
    root = settings.run / "haproxy"
    if not root.is_dir():
        return
    found = generation.find(root)
    for one in found:
        one.signal(signal.SIGUSR1)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(one.alive for one in found):
        time.sleep(0.02)
    for one in found:
        one.signal(signal.SIGKILL)
        one.release()
    shutil.rmtree(root, ignore_errors=True)


def find_program() -> Path:
    """Where haproxy is."""
    found = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin")
    if not found:
        raise generation.HaproxyFailed("HAProxy is not installed; `apt install haproxy` installs it.")
    return Path(found)


def program_version(program: Path) -> tuple[int, int]:
    """HAProxy's version, such as (2, 6)."""
    told = programs.run([program, "-v"]).stdout.decode(errors="replace")
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", told)
    if not match or tuple(int(number or 0) for number in match.groups()) < LEAST_HAPROXY:
        least = ".".join(map(str, LEAST_HAPROXY))
        this = told.splitlines()[0] if told else "?"
        raise generation.HaproxyFailed(f"The router needs HAProxy {least} or newer; this is: {this}")
    return int(match[1]), int(match[2])


def _maxconn() -> int:
    """Connections at the same time: as many as descriptors allow (two each), up to 20,000."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 20_000 if hard == resource.RLIM_INFINITY else max(100, min(20_000, (hard - 400) // 2))


def _account() -> str | None:
    for name in ("haproxy", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    return None
