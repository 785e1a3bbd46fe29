"""The runtime process: adopts what runs, manages every app, answers on its socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from foundation.clock import now
from foundation.errors import NotFound, Unavailable
from foundation.settings import Settings
from foundation.wire import Call, Server
from logs.stream import forget as forget_log
from metrics import dynos
from runtime import quota, records
from runtime.driver import RunningDyno
from runtime.drivers import Drivers
from runtime.formation import POLL_SECONDS, AppManager
from runtime.library import Library
from runtime.meter import Meter
from runtime.oneoffs import OneOffs
from runtime.routes import RouterClient
from runtime.sandboxes import Sandboxes
from runtime.snapshots import Snapshots
from slugs.collect import keep
from state import identity
from state.models import Dyno
from state.notify import redis_client

log = logging.getLogger("runtime")

COLLECT_SECONDS = 3600
"""How often slugs that nothing needs are looked for."""
MEMORY_SECONDS = 20
"""How often the dynos' memory is looked at, as often as Heroku reports R14."""


class Runtime:
    """Everything that the runtime process does.

    Args:
        settings: of this Davit.
        driver: what isolates dynos, each by its own isolation's driver.
        user: the host's uid of the dyno's user in a slot.
    """

    def __init__(self, settings: Settings, driver: Drivers, user: Callable[[int], int]) -> None:
        self.settings, self.driver = settings, driver
        self.cores = os.cpu_count() or 1
        self.library = Library(settings)
        self.snapshots = Snapshots(settings.home / "snapshots")
        self.router = RouterClient(settings.run / "router.sock")
        self.oneoffs = OneOffs(driver, self.library, settings.home, self.cores)
        self.sandboxes = Sandboxes(driver, self.library, settings, user)
        self.managers: dict[str, AppManager] = {}
        self.oneoffs.formation = self._running
        self._tasks: list[asyncio.Task[None]] = []
        self.server = Server(
            settings.run / "runtime.sock",
            {
                "ping": self._ping,
                "changed": self._changed,
                "stats": self._stats,
                "migrate": self._migrate,
                "oneoff.start": self.oneoffs.start,
                "oneoff.inside": self.oneoffs.start_inside,
                "oneoff.connect": self.oneoffs.connect,
                "oneoff.wait": self.oneoffs.wait,
                "oneoff.signal": self.oneoffs.signal,
                "oneoff.resize": self.oneoffs.resize,
                "oneoff.stop": self.oneoffs.stop,
                "sandbox.open": self.sandboxes.open,
                "sandbox.wait": self.sandboxes.wait,
                "sandbox.kill": self.sandboxes.kill,
                "sandbox.seal": self.sandboxes.seal,
                "sandbox.commit_cache": self.sandboxes.commit_cache,
                "cache.purge": self.sandboxes.purge_cache,
                "slug.seal": self.sandboxes.seal_upload,
            },
        )

    async def start(self) -> None:
        """Prepare the host, take over what runs, manage every app, listen."""
        await self.driver.open()
        await asyncio.to_thread(self.sandboxes.sweep)
        await self._adopt()
        asleep = {(app_id, name) for app_id, manager in self.managers.items() for name in manager.sleepers.rows}
        await asyncio.to_thread(self.snapshots.sweep, asleep)
        for app_id in await asyncio.to_thread(records.all_app_ids):
            self._manager(app_id)
        for manager in self.managers.values():
            manager.start()
        await self.server.start()
        for work in (self._poll, self._watch_memory, self._measure, self._watch_quiet, self._collect_slugs):
            self._tasks.append(asyncio.create_task(self._forever(work), name=work.__name__))
        log.info("the runtime is ready", extra={"apps": len(self.managers)})

    async def close(self, stop_dynos: bool) -> None:
        """Stop managing; with ``stop_dynos`` end all dynos, too."""
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(manager.close() for manager in self.managers.values()))
        await self.driver.close(stop_dynos)

    def _running(self, app_id: str, dyno_id: str) -> tuple[Dyno, RunningDyno] | None:
        manager = self.managers.get(app_id)
        life = manager.lives.get(dyno_id) if manager else None
        return (life.row, life.running) if life and life.running else None

    # --- taking over

    async def _adopt(self) -> None:
        rows = await asyncio.to_thread(records.rows_of_dynos)
        adopted = await self.driver.adopt()
        drop: list[RunningDyno] = []
        for running in adopted:
            row = rows.pop(running.spec_id, None)
            if row is None:
                drop.append(running)
            elif row.one_off:
                await self.oneoffs.adopt(row, running)
            else:
                self._manager(row.app_id).adopt(row, running)
        for row in rows.values():
            if row.state == "crashed" and not row.one_off:
                self._manager(row.app_id).crashes.remember(row)
            elif row.state == "idle":
                self._manager(row.app_id).sleepers.remember(row)
            else:
                await asyncio.to_thread(records.remove, [row.id])
        await asyncio.gather(*(running.remove() for running in drop))
        log.info("dynos were found again", extra={"kept": len(adopted) - len(drop), "removed": len(drop)})

    def _manager(self, app_id: str) -> AppManager:
        if app_id not in self.managers:
            self.managers[app_id] = AppManager(
                app_id,
                driver=self.driver,
                router=self.router,
                release_phase=self.oneoffs,
                stacks=self.library,
                domain=self.settings.domain,
                cores=self.cores,
                snapshots=self.snapshots,
                gone=self._gone,
                boot_seconds=self.settings.boot_timeout,
            )
        return self.managers[app_id]

    async def _gone(self, app_id: str) -> None:
        """An app was destroyed: its one-off dynos and its files go, too."""
        await self.oneoffs.end_all(app_id)
        await asyncio.to_thread(self._remove_files, app_id)
        self.managers.pop(app_id, None)

    def _remove_files(self, app_id: str) -> None:
        home = self.settings.home
        self.snapshots.forget(app_id)
        self.sandboxes.forget_cache(app_id)
        dynos.forget(home, app_id)
        for path in (home / "repos" / f"{app_id}.git", *(home / "repos" / "incoming").glob(f"{app_id}.*")):
            shutil.rmtree(path, ignore_errors=True)
        for release_id in records.release_ids(app_id):
            shutil.rmtree(home / "releases" / release_id, ignore_errors=True)
        try:
            forget_log(redis_client(), app_id)
        except Unavailable as error:  # it would go with Redis's next start anyway
            log.warning("a destroyed app's log window stays: %s", error)

    # --- the socket

    async def _ping(self, call: Call) -> dict[str, Any]:
        return {"pid": os.getpid(), "apps": len(self.managers)}

    async def _changed(self, call: Call) -> None:
        self._wake(str(call.params["app_id"]))

    def _wake(self, app_id: str) -> None:
        manager = self.managers.get(app_id)
        if manager is None:
            self._manager(app_id).start()
        else:
            manager.wake()

    async def _stats(self, call: Call) -> dict[str, Any]:
        """``stats {app_id}`` → ``{dynos: {name: {memory, disk, cpu, pids, uptime}}}``."""
        manager = self.managers.get(str(call.params["app_id"]))
        found = {}
        for life in list(manager.lives.values()) if manager else []:
            if life.running is not None and life.exit is None:
                with contextlib.suppress(OSError):
                    stats = asdict(life.running.stats())
                    found[life.name] = {name: stats[name] for name in ("memory", "disk", "cpu", "pids", "uptime")}
        return {"dynos": found}

    async def _migrate(self, call: Call) -> dict[str, float]:
        """``migrate {app_id, name}`` → ``{pause, held}``: seconds for which the dyno stood still, and requests were held."""
        manager = self.managers.get(str(call.params["app_id"]))
        if manager is None:
            raise NotFound("Couldn't find that app.")
        moved = await manager.migrate(str(call.params["name"]))
        return {"pause": moved.pause, "held": moved.held}

    # --- looking for oneself

    async def _forever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("a background task failed; it goes on")
                await asyncio.sleep(1)

    async def _poll(self) -> None:
        """Find changes whose nudge was lost."""
        since = now() - timedelta(seconds=10)
        while True:
            started = now()
            for app_id in await asyncio.to_thread(records.changed_since, since):
                self._wake(app_id)
            since = started - timedelta(seconds=5)
            await asyncio.sleep(POLL_SECONDS)

    async def _collect_slugs(self) -> None:
        """Remove the slugs that no release can go back to, and the stacks and kernels that nothing uses.

        Raises:
            WrongDatabase: this home's rows are in another one; nothing was removed.
        """
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            gone = await asyncio.to_thread(self._collect)
            if gone:
                await asyncio.to_thread(self._forget_images, gone)
                log.info("slugs were collected", extra={"count": len(gone)})
            if old := await asyncio.to_thread(self.library.collect_stacks, self._stacks_in_use):
                log.info("stacks were removed that nothing uses any more", extra={"versions": ", ".join(old)})
            if old := await asyncio.to_thread(self.library.collect_kernels, self.driver.host.kernels_in_use):
                log.info("microVMs' kernels were removed that nothing uses any more", extra={"versions": ", ".join(old)})

    def _stacks_in_use(self) -> set[str]:
        identity.confirm()
        return records.stacks_in_use()

    def _collect(self) -> list[str]:
        return self.library.store.collect(self._kept)

    def _kept(self, young: set[str]) -> set[str]:
        identity.confirm()
        return keep(young)

    def _forget_images(self, digests: list[str]) -> None:
        if (self.settings.home / "osv").is_dir():
            from runtime.osv import images  # a host without unikernels does not load their code

            images.forget(self.settings.home, digests)

    async def _watch_quiet(self) -> None:
        """Put apps to sleep that may sleep and that nobody has asked anything for a while."""
        patience = self.settings.sleep_after
        while True:
            await asyncio.sleep(min(30.0, max(0.5, patience / 4)))
            since = now() - timedelta(seconds=patience)
            candidates = await asyncio.to_thread(records.sleep_candidates) if self.managers else []
            ready = [app_id for app_id in candidates if app_id in self.managers and self.managers[app_id].up_since(since)]
            for app_id, quiet in (await self.router.quiet(ready)).items():
                if quiet >= patience and await asyncio.to_thread(records.put_to_sleep, app_id):
                    log.info("an app that nobody asks anything is put to sleep", extra={"app_id": app_id})

    async def _measure(self) -> None:
        """Memory, CPU and restarts of every process type, for people who want to see how an app does."""
        meter = Meter()
        while True:
            await asyncio.sleep(dynos.SAMPLE_SECONDS)
            for manager in list(self.managers.values()):
                found = meter.sample(manager)
                if found:
                    try:
                        await asyncio.to_thread(dynos.write, self.settings.home, manager.app_id, found)
                    except OSError as error:
                        log.warning("figures could not be written", extra={"app_id": manager.app_id, "reason": error.strerror})
                    except Exception:  # one app's figures must not keep the others' from being written
                        log.exception("figures could not be written", extra={"app_id": manager.app_id})

    async def _watch_memory(self) -> None:
        """A dyno uses more than its size promises, one of a formation or a one-off."""
        while True:
            await asyncio.sleep(MEMORY_SECONDS)
            for manager in list(self.managers.values()):
                for life in list(manager.lives.values()):
                    if life.running is not None and life.exit is None and life.up:
                        quota.watch(life.row, life.running)
            for row, running in self.oneoffs.alive():
                quota.watch(row, running)
