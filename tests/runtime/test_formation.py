"""The formation manager's story, told with a driver that starts nothing: what it does in which order, and what it leaves alone.

The driver and router here are fakes because the order of events is the subject; the real ones have their own suites and
tests/e2e runs all of it together.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from foundation.clock import now
from foundation.errors import Conflict, DavitError, DiskFull, NotFound, Unavailable
from foundation.settings import settings
from foundation.wire import Call
from runtime import applog, records, releasing
from runtime import oneoffs as one_off_dynos
from runtime.driver import DynoSpec, Exit, Hold, Limits, Listener, Stats, Unsupported
from runtime.formation import AppManager
from runtime.oneoffs import OneOffs
from runtime.snapshots import TOGETHER, Snapshots
from state import accounts, apps, builds, config, crashes, db, formation, notify, releases, sleep, vault
from state.models import Account, App, AuditEvent, Build, Dyno, Formation, Release, Slug
from tests.conftest import PostgresCluster
from tests.e2e.errors_page import assert_says, says


class FakeDyno:
    def __init__(self, spec: DynoSpec, slot: int, events: list[str], behaviour: str) -> None:
        self.spec, self.spec_id, self.slot, self.pid = spec, spec.id, slot, 1
        self.address: str | None = f"198.18.0.{slot}"
        self.terminal_fd = None
        self.events, self.behaviour = events, behaviour
        self.over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.memory = 1
        self.written: asyncio.Event | None = None
        self.may_go_on = asyncio.Event()
        if behaviour == "crashes at start":
            self.over.set_result(Exit(7))

    async def wait(self) -> Exit:
        return await asyncio.shield(self.over)

    def end(self, status: int) -> None:
        if not self.over.done():
            self.over.set_result(Exit(status))

    async def signal(self, number: int, everyone: bool = False) -> None:
        self.events.append(f"signal {int(number)} {self.spec.name}")
        if self.behaviour == "cannot be told" and number != 9:
            await asyncio.Event().wait()
        if self.behaviour != "ignores SIGTERM" or number == 9:
            self.end(128 + number)

    def listeners(self) -> list[Listener]:
        return {
            "listens on loopback": [Listener("127.0.0.1", 8080)],
            "listens elsewhere": [Listener("0.0.0.0", 3000)],
            "never listens": [],
        }.get(self.behaviour, [Listener("0.0.0.0", 8080)])

    def stats(self) -> Stats:
        return Stats(self.memory, 0, 0.0, 1, 0)

    async def remove(self) -> None:
        self.end(137)
        self.events.append(f"removed {self.spec.name}")

    async def resize_terminal(self, rows: int, columns: int) -> None: ...

    async def update(self, limits: Limits) -> None:
        if self.behaviour == "is resized slowly":
            self.events.append("resizing")
            await self.may_go_on.wait()
        if self.behaviour == "cannot be resized":
            raise Unsupported("This one cannot be resized while it runs.")
        self.events.append(f"update {self.spec.name} to {limits.memory >> 20}")

    async def migrate(self, hold: Hold) -> float:
        self.events.append(f"migrating {self.spec.name}")
        if self.behaviour == "moves slowly":
            await self.may_go_on.wait()
        async with hold() as why:
            if why:
                raise DavitError(f"It runs on where it was: {why}.")
            self.events.append(f"migrate {self.spec.name}")
            if self.behaviour == "stands still":
                await self.may_go_on.wait()
            if self.behaviour == "dies on the way":
                self.end(137)
                await asyncio.sleep(0.1)
            if self.behaviour != "serves":
                raise DavitError("There is no room to move it to.")
        return 0.02

    async def suspend(self, to: Path) -> None:
        if self.spec.isolation != "microvm":
            raise Unsupported("Not this one.")
        to.mkdir()
        self.events.append(f"suspending {self.spec.name}")
        if self.written is not None:
            await self.written.wait()
        (to / "memory").write_text(self.spec.name)
        self.events.append(f"suspend {self.spec.name}")
        self.end(0)

    async def exec(self, *args: Any, **kwargs: Any) -> Any: ...


class FakeDriver:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.dynos: list[FakeDyno] = []
        self.behaviour = "serves"
        self.missing: dict[str, str] = {}

    async def check(self, isolation: str) -> None:
        if isolation in self.missing:
            raise Unsupported(self.missing[isolation])

    async def resume(self, spec: DynoSpec, snapshot: Path) -> FakeDyno:
        if (snapshot / "memory").read_text() != spec.name:
            raise DavitError("The snapshot is broken.")
        self.events.append(f"resume {spec.name}")
        return await self.start(spec)

    async def start(self, spec: DynoSpec) -> FakeDyno:
        await self.check(spec.isolation)
        dyno = FakeDyno(spec, len(self.dynos) + 2, self.events, self.behaviour)
        self.events.append(f"start {spec.name}")
        self.dynos.append(dyno)
        return dyno

    def alive(self) -> list[str]:
        return sorted(dyno.spec.name for dyno in self.dynos if not dyno.over.done())


class FakeRouter:
    """Notes what changes where requests go; to tell the same once more is no event."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.routed: list[str] = []

    async def sync(self, app_id: str) -> None:
        with db.snapshot() as session:
            rows = session.scalars(select(Dyno).where(Dyno.app_id == app_id, Dyno.routed.is_(True)).order_by(Dyno.name)).all()
            routed = " ".join(f"{row.name}@v{row.release_version}" for row in rows)
        if (ids := [row.id for row in rows]) != self.routed:
            self.routed = ids
            self.events.append(f"routes [{routed}]")

    async def drained(self, app_id: str, addresses: Any, timeout: float) -> None:
        self.events.append("drained")


class FakeReleasePhase:
    verdict: str | None = None
    ran = 0
    over: asyncio.Event | None = None
    """When there is one, the command runs until it is set."""

    async def run(self, state: Any, release: Release, line: str) -> str | None:
        self.ran += 1
        if self.over is not None:
            await self.over.wait()
        return self.verdict

    async def give_up(self, release_id: str) -> None:
        self.verdict = "The release command was ended."
        if self.over is not None:
            self.over.set()


class FakeStacks:
    def version(self) -> str:
        return "1"

    def run_image(self, version: str) -> Path:
        return Path("/stack")

    def slug_image(self, digest: str) -> Path:
        return Path("/slug")


class World:
    """An app with its manager."""

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.events = self.driver.events
        self.router = FakeRouter(self.events)
        self.phase = FakeReleasePhase()
        self.stacks = FakeStacks()
        self.gone: list[str] = []
        self.snapshots = Snapshots(settings().home / "snapshots")
        with db.transaction() as session:
            self.owner: Account = accounts.create(session, None, "ann@example.com")
            self.app: App = apps.create(session, self.owner, "bright-bay")
        self.manager = self.make_manager()

    def make_manager(self) -> AppManager:
        async def gone(app_id: str) -> None:
            self.gone.append(app_id)

        return AppManager(
            self.app.id, driver=self.driver, router=self.router, release_phase=self.phase,
            stacks=self.stacks, domain="localhost", cores=2, gone=gone, snapshots=self.snapshots,
        )  # type: ignore[arg-type]  # fmt: skip

    def deploy(self, **types: str) -> str:
        with db.transaction() as session:
            app = session.get_one(App, self.app.id)
            slug = Slug(app_id=app.id, digest="sha256:aa", size=1, stack=app.stack, process_types=types or {"web": "serve"})
            session.add(slug)
            session.flush()
            release = releases.create(
                session, app, session.get_one(Account, self.owner.id), kind="deploy", description="Deploy", slug=slug
            )
        self.manager.wake()
        return release.id

    def scale(self, **quantities: int) -> None:
        with db.transaction() as session:
            app, owner = session.get_one(App, self.app.id), session.get_one(Account, self.owner.id)
            formation.scale(session, owner, app, [{"type": t, "quantity": q} for t, q in quantities.items()])
        self.manager.wake()

    def shape(self, type: str, **changes: Any) -> None:
        """Change size or isolation."""
        self.change(formation.scale, [{"type": type, **changes}])

    def formation(self, type: str = "web") -> Formation:
        with db.snapshot() as session:
            return session.scalars(select(Formation).where(Formation.type == type)).one()

    def dynos(self, state: str) -> list[Dyno]:
        with db.snapshot() as session:
            return list(session.scalars(select(Dyno).where(Dyno.state == state, Dyno.leaving.is_(False)).order_by(Dyno.name)))

    def fall_asleep(self) -> None:
        assert records.put_to_sleep(self.app.id)
        self.manager.wake()

    def wake_up(self) -> None:
        with db.transaction() as session:
            assert sleep.wake(session, self.app.id)
        self.manager.wake()

    def change(self, operation: Callable[..., Any], *args: Any) -> None:
        with db.transaction() as session:
            operation(session, session.get_one(Account, self.owner.id), session.get_one(App, self.app.id), *args)
        self.manager.wake()

    def cancel(self, release_id: str) -> None:
        """Cancel the build that made this release."""
        with db.transaction() as session:
            app, owner = session.get_one(App, self.app.id), session.get_one(Account, self.owner.id)
            build = Build(app_id=app.id, account_id=owner.id, stack=app.stack, release_id=release_id, phase="releasing")
            session.add(build)
            session.flush()
            builds.request_cancel(session, owner, app, build)
        self.manager.wake()

    async def settled(self, release_id: str) -> Release:
        return await until(lambda: _finished(release_id), "the release finished")

    async def until_alive(self, *names: str) -> None:
        await until(lambda: self.driver.alive() == sorted(names) or None, f"alive: {names}, is {self.driver.alive()}")

    def forgotten(self) -> bool:
        with db.snapshot() as session:
            return session.get(App, self.app.id) is None

    async def microvm(self, **types: str) -> FakeDyno:
        """Deploy an app whose web dyno is a microVM."""
        await self.settled(self.deploy(**types))
        self.shape("web", isolation="microvm")
        web = await until(
            lambda: [row.isolation for row in self.dynos("up") if row.type == "web"] == ["microvm"]
            and [dyno for dyno in self.driver.dynos if not dyno.over.done() and dyno.spec.name == "web.1"],
            "a microVM",
        )
        await until(lambda: len(self.rows()) == 1, "the other is gone")
        return web[-1]  # type: ignore[no-any-return]

    def rows(self) -> list[tuple[str, str, bool]]:
        with db.snapshot() as session:
            rows = session.scalars(select(Dyno).order_by(Dyno.name, Dyno.created_at))
            return [(row.name, row.state, row.routed) for row in rows]

    def crashes(self) -> list[tuple[str, int | None, str | None]]:
        with db.snapshot() as session:
            return [(row.dyno, row.exit_status, row.why) for row in crashes.newest(session, self.app.id)]


def _finished(release_id: str) -> Release | None:
    with db.snapshot() as session:
        release = session.get(Release, release_id)
        return release if release and release.status != "pending" else None


def _forgotten(app_id: str) -> bool:
    with db.snapshot() as session:
        return session.get(App, app_id) is None


async def until(check: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    for _ in range(int(seconds / 0.01)):
        if value := check():
            return value
        await asyncio.sleep(0.01)
    pytest.fail(f"did not happen: {what}")


@pytest.fixture
def world(davit_home: Path, migrated_sqlite: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    yield from _world(davit_home, redis_server, monkeypatch)


@pytest.fixture
def world_on_postgres(
    postgres_that_goes: PostgresCluster, davit_home: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setenv("DATABASE_URL", postgres_that_goes.migrated())
    yield from _world(davit_home, redis_server, monkeypatch)


def _world(davit_home: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.setenv("REDIS_URL", redis_server)
    for cached in (settings, db.engine, notify.redis_client):
        cached.cache_clear()
    vault.ensure_keys()
    yield World()
    db.engine().dispose()
    for cached in (settings, db.engine, notify.redis_client):
        cached.cache_clear()


def play(world: World, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world.manager.start()
        try:
            await story()
        finally:
            await world.manager.close()

    asyncio.run(whole())


def test_a_first_deploy_boots_one_web_dyno_and_routes_to_it(world: World) -> None:
    async def story() -> None:
        release = await world.settled(world.deploy(web="serve", worker="work"))
        assert (release.status, release.current) == ("succeeded", True)
        assert world.rows() == [("web.1", "up", True)]
        assert world.events.index("start web.1") < world.events.index("routes [web.1@v2]")

    play(world, story)


def test_the_old_dyno_is_told_to_stop_only_after_the_route_moved_and_it_was_idle(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.events.clear()
        await world.settled(world.deploy())
        await until(lambda: world.rows() == [("web.1", "up", True)], "the old dyno is forgotten")
        order = ["start web.1", "routes [web.1@v3]", "drained", "signal 15 web.1", "removed web.1"]
        assert [event for event in world.events if event in order] == order
        assert world.driver.alive() == ["web.1"]

    play(world, story)


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("crashes at start", "ended before it listened on $PORT, with status 7"),
        ("never listens", "It listens on no port at all"),
        ("listens on loopback", "It listens on 127.0.0.1:8080 only"),
        ("listens elsewhere", "It listens on port 3000 instead of $PORT (8080)"),
    ],
)
def test_a_release_that_does_not_come_up_fails_and_the_old_one_serves_on(world: World, behaviour: str, sentence: str) -> None:
    async def story() -> None:
        good = await world.settled(world.deploy())
        world.driver.behaviour = behaviour
        world.manager.boot_seconds = 0.3
        bad = await world.settled(world.deploy())
        assert bad.status == "failed" and bad.failure_kind == "app did not start"
        assert sentence in (bad.failure or "")
        assert world.rows() == [("web.1", "up", True)] and world.driver.alive() == ["web.1"]
        with db.snapshot() as session:
            current = releases.current(session, world.app.id)
            assert current is not None and current.id == good.id

    play(world, story)


def test_one_that_cannot_be_told_to_end_is_ended_after_the_grace_period_all_the_same(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.dynos[0].behaviour = "cannot be told"
        (life,) = world.manager.lives.values()
        await asyncio.wait_for(life.stop(grace=0.1), 60)
        ended = [event for event in world.events if event.startswith(("signal", "removed"))]  # another one may have begun since
        assert ended == ["signal 15 web.1", "signal 9 web.1", "removed web.1"]

    play(world, story)


def test_a_release_command_that_fails_vetoes_the_release(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.phase.verdict = "The release command `migrate` ended with status 1."
        bad = await world.settled(world.deploy(web="serve", release="migrate"))
        assert (bad.status, bad.failure_kind, bad.failure) == ("failed", "release phase failed", world.phase.verdict)
        assert world.events.count("start web.1") == 1

    play(world, story)


def test_a_release_command_runs_once_and_is_never_a_dyno_of_the_formation(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", release="migrate"))
        assert world.phase.ran == 1
        assert world.driver.alive() == ["web.1"]

    play(world, story)


def test_a_release_command_holds_nothing_else_up(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.phase.over = asyncio.Event()
        coming = world.deploy(web="serve", release="migrate")
        await until(lambda: world.phase.ran or None, "the command runs")
        world.driver.dynos[0].end(1)
        await until(lambda: world.rows() == [("web.1", "up", True)] and len(world.driver.dynos) == 2, "the crashed one is back")
        world.scale(web=2)
        await until(lambda: world.rows() == [("web.1", "up", True), ("web.2", "up", True)], "scaled")
        assert {dyno.release_version for dyno in world.dynos("up")} == {2} and _finished(coming) is None
        world.phase.over.set()
        assert (await world.settled(coming)).status == "succeeded"
        await until(lambda: {dyno.release_version for dyno in world.dynos("up")} == {3} or None, "the new release serves")
        await world.until_alive("web.1", "web.2")

    play(world, story)


def test_a_crash_while_the_next_release_boots_is_looked_after(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour = "never listens"
        coming = world.deploy()
        await until(lambda: len(world.driver.dynos) == 2 or None, "the next one boots")
        world.driver.behaviour = "serves"
        world.driver.dynos[0].end(1)
        await until(lambda: ("web.1", "up", True) in world.rows() or None, "the crashed one is back")
        world.driver.dynos[1].behaviour = "serves"
        assert (await world.settled(coming)).status == "succeeded"
        await until(lambda: world.rows() == [("web.1", "up", True)] or None, "only the new one is left")
        assert world.dynos("up")[0].release_version == 3

    play(world, story)


def test_a_dyno_that_crashes_while_its_release_goes_live_has_crashed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        sync = world.router.sync

        async def sync_and_crash(app_id: str) -> None:
            await sync(app_id)
            monkeypatch.setattr(world.router, "sync", sync)
            world.driver.dynos[1].end(5)
            await until(lambda: ("web.1", "up", True) not in world.rows(), "its end is noticed")

        monkeypatch.setattr(world.router, "sync", sync_and_crash)
        await world.settled(world.deploy())
        await until(lambda: world.rows() == [("web.1", "up", True)], "it is up again")
        assert world.crashes() == [("web.1", 5, None)]

    play(world, story)


async def stuck(world: World) -> None:
    """The app's dyno has crashed, and the next one does not get up for a minute; any after that would."""
    await world.settled(world.deploy())
    world.driver.behaviour = "never listens"
    world.driver.dynos[0].end(1)
    await until(lambda: len(world.driver.dynos) == 2 or None, "it starts again")
    world.driver.behaviour = "serves"


def test_a_new_release_does_not_wait_for_a_dyno_that_does_not_come_up(world: World) -> None:
    async def story() -> None:
        await stuck(world)
        world.change(config.change, {"MEND": "1"})
        await until(lambda: world.rows() == [("web.1", "up", True)] or None, "the mended one serves")
        assert world.dynos("up")[0].release_version == 3 and world.driver.alive() == ["web.1"]

    play(world, story)


def test_a_restart_does_not_wait_for_a_dyno_that_does_not_come_up(world: World) -> None:
    async def story() -> None:
        await stuck(world)
        world.change(formation.restart)
        await until(lambda: world.rows() == [("web.1", "up", True)] or None, "started once more")
        assert world.driver.alive() == ["web.1"] and len(world.driver.dynos) == 3

    play(world, story)


def test_web_dynos_that_do_not_come_up_keep_no_worker_down(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", clock="tick"))
        world.scale(web=5, clock=1)
        await until(lambda: len(world.dynos("up")) == 6, "all are up")
        start = world.driver.start

        async def web_hangs(spec: DynoSpec) -> FakeDyno:
            world.driver.behaviour = "never listens" if spec.name.startswith("web") else "serves"
            return await start(spec)

        world.driver.start = web_hangs  # type: ignore[method-assign]
        world.events.clear()
        world.change(formation.restart)
        await until(lambda: len([event for event in world.events if event.startswith("start web")]) == 4, "a wave hangs")
        await until(lambda: "start clock.1" in world.events, "the clock is back meanwhile", 30)

    play(world, story)


def test_a_worker_that_takes_its_time_to_end_holds_up_no_other(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", slow="work", quick="work"))
        world.scale(slow=1, quick=1)
        await world.until_alive("quick.1", "slow.1", "web.1")
        next(dyno for dyno in world.driver.dynos if dyno.spec.name == "slow.1").behaviour = "ignores SIGTERM"
        await world.settled(world.deploy(web="serve", slow="work", quick="work"))
        await until(lambda: "quick" in {d.type for d in world.dynos("up") if d.release_version == 3} or None, "the quick one is new")
        assert [dyno.spec.name for dyno in world.driver.dynos].count("slow.1") == 1
        next(dyno for dyno in world.driver.dynos if dyno.spec.name == "slow.1").end(0)
        await until(lambda: len([d for d in world.dynos("up") if d.release_version == 3]) == 3 or None, "all are new")

    play(world, story)


def test_a_worker_whose_predecessor_takes_its_time_to_end_is_shown_as_starting(world: World) -> None:
    def shown() -> list[tuple[str, str]]:
        with db.snapshot() as session:
            return [(row.name, row.state) for row in formation.dynos(session, session.get_one(App, world.app.id))]

    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(worker=1)
        await until(lambda: len(world.dynos("up")) == 2, "both are up")
        stubborn = world.driver.dynos[-1]
        stubborn.behaviour = "ignores SIGTERM"
        world.change(formation.restart, "worker")
        await until(lambda: "signal 15 worker.1" in world.events, "it is told to end")
        await until(lambda: shown() == [("web.1", "up"), ("worker.1", "starting")], "its successor is shown", 20)
        assert world.events.count("start worker.1") == 1 and not stubborn.over.done()
        world.change(formation.restart, "worker.1")
        world.scale(worker=0)
        await until(lambda: shown() == [("web.1", "up")], "none is wanted")
        world.scale(worker=1)
        await until(lambda: shown() == [("web.1", "up"), ("worker.1", "starting")], "one is wanted again")
        ended = now()
        stubborn.end(0)
        await until(lambda: shown() == [("web.1", "up"), ("worker.1", "up")], "it is up")
        started = world.dynos("up")[-1].started_at
        assert started is not None and started >= ended, "its wait is no part of its life"
        assert world.events.count("start worker.1") == 2
        await until(lambda: len(world.rows()) == 2, "no other row is left")

    play(world, story)


def test_a_worker_that_takes_its_time_to_end_holds_up_nothing_when_something_else_is_wanted(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", clock="tick"))
        world.scale(clock=1)
        await until(lambda: len(world.dynos("up")) == 2, "both are up")
        stubborn = world.driver.dynos[-1]
        stubborn.behaviour = "ignores SIGTERM"
        world.change(formation.restart, "clock")
        await until(lambda: "signal 15 clock.1" in world.events, "it is told to end")
        world.change(formation.restart)
        await until(lambda: [dyno.spec.name for dyno in world.driver.dynos].count("web.1") == 2, "web is replaced")
        left = [("clock.1", "starting", False), ("clock.1", "up", False), ("web.1", "up", True)]
        await until(lambda: sorted(world.rows()) == left, "the first web dyno is gone")
        world.driver.dynos[-1].end(1)
        await until(lambda: ("web.1", "up", True) in world.rows() and len(world.driver.dynos) == 4, "the crashed one is back")
        assert (await world.settled(world.deploy(web="serve", clock="tick"))).status == "succeeded"
        world.scale(web=2)
        await until(lambda: {"web.1", "web.2"} == {dyno.name for dyno in world.dynos("up") if dyno.release_version == 3}, "scaled")
        assert not stubborn.over.done() and world.events.count("start clock.1") == 1, "never two clocks"
        stubborn.end(0)
        await until(lambda: ("clock.1", 3) in {(row.name, row.release_version) for row in world.dynos("up")}, "the clock is new")
        assert world.events.count("start clock.1") == 2

    play(world, story)


def test_a_worker_whose_machine_boots_for_long_holds_up_nothing_and_never_runs_twice(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", clock="tick"))
        start, booted = world.driver.start, asyncio.Event()

        async def slowly(spec: DynoSpec) -> FakeDyno:
            world.events.append(f"boot {spec.name}")
            if spec.name == "clock.1":
                await booted.wait()
            return await start(spec)

        world.driver.start = slowly  # type: ignore[method-assign]
        world.scale(clock=1)
        await until(lambda: "boot clock.1" in world.events, "it boots")
        world.change(formation.restart, "clock")
        world.driver.dynos[0].end(1)
        await until(lambda: ("web.1", "up", True) in world.rows() and len(world.driver.dynos) == 2, "the crashed one is back")
        assert (await world.settled(world.deploy(web="serve", clock="tick"))).status == "succeeded"
        assert world.events.count("boot clock.1") == 1
        booted.set()
        await until(lambda: ("clock.1", 3) in {(row.name, row.release_version) for row in world.dynos("up")}, "the clock is new")
        clocks = [event for event in world.events if event in ("start clock.1", "removed clock.1")]
        assert clocks == ["start clock.1", "removed clock.1", "start clock.1"]

    play(world, story)


@pytest.mark.row("crash-after-start")
def test_a_release_of_which_a_dyno_has_ended_before_the_last_was_up_fails_and_the_old_one_serves_on(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.scale(web=5)
        await until(lambda: len([row for row in world.rows() if row == (row[0], "up", True)]) == 5, "five serve")
        start = world.driver.start

        async def last_is_slow(spec: DynoSpec) -> FakeDyno:
            world.driver.behaviour = "never listens" if spec.name == "web.5" else "serves"
            return await start(spec)

        world.driver.start = last_is_slow  # type: ignore[method-assign]
        bad = world.deploy()
        await until(lambda: len(world.driver.dynos) == 10, "the last one boots")
        for dyno in world.driver.dynos[5:9]:
            dyno.end(1)
        await until(lambda: len(world.rows()) == 6, "their ends are noticed")
        world.driver.dynos[9].behaviour = "serves"
        release = await world.settled(bad)
        assert (release.status, release.failure_kind) == ("failed", "app did not start")
        assert_says("crash-after-start", release.failure or "")
        await until(lambda: world.rows() == [(f"web.{index}", "up", True) for index in range(1, 6)], "the old ones, and no other")
        assert {dyno.release_version for dyno in world.dynos("up")} == {2} and len(world.driver.dynos) == 10
        assert world.crashes() == []

    play(world, story)


@pytest.mark.parametrize("status", [0, 1])
def test_a_dyno_that_ends_while_it_drains_is_no_crash_of_its_successor(world: World, status: int) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        over = asyncio.Event()

        async def drained(app_id: str, addresses: Any, timeout: float) -> None:
            await over.wait()

        world.router.drained = drained  # type: ignore[method-assign]
        await world.settled(world.deploy())
        assert world.rows() == [("web.1", "up", False), ("web.1", "up", True)]
        world.driver.dynos[0].end(status)
        await until(lambda: world.rows() == [("web.1", "up", True)], "the old one is struck off")
        assert world.manager.crashes.in_a_row == {} and world.crashes() == []
        world.driver.dynos[1].end(1)  # the new one's first crash: it is back at once
        await until(lambda: world.rows() == [("web.1", "up", True)] and len(world.driver.dynos) == 3, "it is back")
        assert world.manager.crashes.in_a_row == {"web.1": 1}
        over.set()

    play(world, story)


@pytest.mark.row("release-cancelled")
@pytest.mark.parametrize("when", ["its command runs", "it boots"])
@pytest.mark.parametrize("what", ["its build is cancelled", "its app is destroyed"])
def test_a_release_that_is_not_wanted_any_more_ends_at_once(world: World, when: str, what: str) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        if when == "it boots":
            world.driver.behaviour = "never listens"
        else:
            world.phase.over = asyncio.Event()
        coming = world.deploy(web="serve", release="migrate")
        await until(lambda: (len(world.driver.dynos) == 2 if when == "it boots" else world.phase.ran) or None, when)
        if what == "its build is cancelled":
            world.cancel(coming)
            release = await world.settled(coming)
            await until(lambda: world.driver.alive() == ["web.1"] or None, "what came up is gone")
            assert (release.status, release.failure_kind) == ("failed", "cancelled")
            assert_says("release-cancelled", release.failure or "")
            assert world.rows() == [("web.1", "up", True)] and world.dynos("up")[0].release_version == 2
        else:
            world.change(apps.destroy)
            await until(world.forgotten, "the app is forgotten")
            assert world.driver.alive() == [] and world.gone == [world.app.id]

    play(world, story)


@pytest.mark.row("release-inside")
def test_a_release_that_davit_cannot_bring_up_ends_with_a_sentence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.settled(world.deploy())

        def no_image(version: str) -> Path:
            raise DavitError("The stack's image is gone.")

        monkeypatch.setattr(world.stacks, "run_image", no_image)
        release = await world.settled(world.deploy())
        assert (release.status, release.failure) == ("failed", "The stack's image is gone.")

        def broken(version: str) -> Path:
            raise RuntimeError("a mistake of ours")

        monkeypatch.setattr(world.stacks, "run_image", broken)
        monkeypatch.setattr(releasing, "TRIES", 2)
        release = await world.settled(world.deploy())
        assert release.status == "failed"
        assert_says("release-inside", release.failure or "")
        assert world.driver.alive() == ["web.1"]

    play(world, story)


def test_a_database_that_is_away_is_not_held_against_a_release(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        begin, away = records.begin_release, [Unavailable("The database was busy."), DiskFull()] * 2

        def refuse(*words: Any) -> Release | None:
            if away:
                raise away.pop()
            return begin(*words)

        monkeypatch.setattr(records, "begin_release", refuse)
        monkeypatch.setattr(releasing, "TRIES", 1)
        monkeypatch.setattr(releasing, "TRY_AGAIN", 0.01)
        release = await world.settled(world.deploy())
        assert not away and release.status == "succeeded"

    play(world, story)


def test_scaling_up_and_down(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(web=3, worker=2)
        await world.until_alive("web.1", "web.2", "web.3", "worker.1", "worker.2")
        await until(lambda: "routes [web.1@v2 web.2@v2 web.3@v2]" in world.events, "all are routed")
        world.events.clear()
        world.scale(web=1, worker=0)
        await world.until_alive("web.1")
        gone = next(index for index, event in enumerate(world.events) if event.startswith("signal 15 web"))
        assert world.events.index("routes [web.1@v2]") < gone

    play(world, story)


def test_scaling_web_to_nothing_stops_all_web_dynos(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.scale(web=0)
        await world.until_alive()
        await until(lambda: world.rows() == [], "no row is left")

    play(world, story)


def test_a_restart_replaces_each_dyno_by_a_fresh_one_before_the_old_stops(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        first = world.driver.dynos[0]
        world.events.clear()
        world.change(formation.restart)
        await until(lambda: "removed web.1" in world.events, "the old dyno is removed")
        assert first.over.done() and world.driver.alive() == ["web.1"]
        assert world.events.index("start web.1") < world.events.index("signal 15 web.1")
        await asyncio.sleep(0.1)
        assert world.events.count("start web.1") == 1, "one restart is one restart"

    play(world, story)


@pytest.mark.parametrize("target", [None, "web"])
def test_a_restart_is_one_restart_though_the_clock_was_set_back(
    world: World, monkeypatch: pytest.MonkeyPatch, target: str | None
) -> None:
    """It was an hour ahead when the dyno started; when the restart is asked for no clock is looked at."""

    async def story() -> None:
        ahead = now() + timedelta(hours=1)
        with monkeypatch.context() as earlier:
            earlier.setattr("runtime.life.now", lambda: ahead)
            await world.settled(world.deploy())
        world.events.clear()
        world.change(formation.restart, target)
        await until(lambda: "removed web.1" in world.events, "the old dyno is removed")
        await world.until_alive("web.1")
        for _ in range(5):
            world.manager.wake()
            await asyncio.sleep(0.05)
        assert world.events.count("start web.1") == 1 and world.driver.alive() == ["web.1"]

    play(world, story)


def test_a_restart_whose_new_dyno_does_not_come_up_keeps_the_old_one(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour = "crashes at start"
        world.change(formation.restart, "web.1")
        await until(lambda: len(world.driver.dynos) == 2, "a new dyno was tried")
        await until(lambda: world.rows() == [("web.1", "up", True)], "the old one is the one")
        assert not world.driver.dynos[0].over.done()

    play(world, story)


@pytest.mark.parametrize("alone", [False, True])
def test_a_web_dyno_that_ends_before_it_has_a_route_displaces_none(world: World, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """It was up, and ended while that was being written down."""

    async def story() -> None:
        await world.settled(world.deploy())
        change, ended = records.change, threading.Event()

        def change_and_end(ids: Any, **values: Any) -> None:
            change(ids, **values)
            if values.get("state") == "up" and not ended.is_set():
                loop.call_soon_threadsafe(world.driver.dynos[-1].end, 3)
                loop.call_soon_threadsafe(loop.call_later, 0.05, ended.set)
                assert ended.wait(60)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(records, "change", change_and_end)
        if alone:
            world.scale(web=2)
            await until(lambda: world.rows() == [("web.1", "up", True), ("web.2", "up", True)], "the next attempt is up")
            assert len(world.driver.dynos) == 3
            assert [crash[:2] for crash in world.crashes()] == [("web.2", 3)]
        else:
            world.change(formation.restart, "web.1")
            await until(ended.is_set, "the new one has ended")
            await until(lambda: world.rows() == [("web.1", "up", True)], "the old one serves on, and is the only one")
            assert not world.driver.dynos[0].over.done() and world.driver.alive() == ["web.1"]
            assert "signal 15 web.1" not in world.events and world.crashes() == []

    play(world, story)


def test_a_restart_that_fails_after_the_old_dyno_has_gone_is_tried_again(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour = "never listens"
        world.change(formation.restart, "web.1")
        await until(lambda: len(world.driver.dynos) == 2, "a new dyno is tried")
        world.driver.behaviour = "serves"
        world.driver.dynos[0].end(1)
        await until(lambda: ("web.1", "crashed", False) in world.rows(), "the old one has crashed")
        world.driver.dynos[1].end(1)
        await until(lambda: ("web.1", "up", True) in world.rows(), "it is tried again")
        assert len(world.crashes()) == 2, "both have crashed"

    play(world, story)


def test_a_crash_is_followed_by_a_restart_at_once_and_the_next_one_waits(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.dynos[0].end(1)
        await until(lambda: len(world.driver.dynos) == 2, "started again")
        await until(lambda: world.rows() == [("web.1", "up", True)], "up again")
        world.driver.dynos[1].end(3)
        await until(lambda: world.rows() == [("web.1", "crashed", False)], "shown as crashed")
        [row] = records.rows_of_dynos().values()
        assert row.exit_status == 3
        await asyncio.sleep(0.2)
        assert len(world.driver.dynos) == 2, "the second restart waits"
        await world.settled(world.deploy())
        assert world.rows() == [("web.1", "up", True)], "a new release starts over"
        assert world.crashes() == [("web.1", 3, None), ("web.1", 1, None)], "history when it is up again"

    play(world, story)


@pytest.mark.parametrize("said", ["another isolation", "restart web", "restart web.1"])
def test_who_waits_after_a_crash_starts_at_once_as_something_else_or_when_it_is_told_to(world: World, said: str) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.dynos[0].end(1)
        await until(lambda: len(world.driver.dynos) == 2 and world.rows() == [("web.1", "up", True)], "up again")
        world.driver.dynos[1].end(1)
        await until(lambda: world.rows() == [("web.1", "crashed", False)], "it waits")
        world.manager.crashes.postpone("web.1", 3600)
        if said == "another isolation":
            world.shape("web", isolation="microvm")
        else:
            world.change(formation.restart, said.partition(" ")[2])
        await until(lambda: world.rows() == [("web.1", "up", True)], "up at once")

    play(world, story)


def _crashes_are_written_late(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Events: one is about to be written; it may be."""
    begun, go_on, crash = threading.Event(), threading.Event(), records.crash

    def slow(*words: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        crash(*words)

    monkeypatch.setattr(records, "crash", slow)
    return begun, go_on


def test_a_crash_is_written_down_before_the_next_dyno_takes_its_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = _crashes_are_written_late(monkeypatch)

    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.dynos[0].end(4)
        await until(begun.is_set, "the crash is about to be written")
        world.manager.wake()
        await asyncio.sleep(0.2)
        assert len(world.driver.dynos) == 1
        go_on.set()
        await until(lambda: len(world.driver.dynos) == 2, "started again")
        await until(lambda: world.rows() == [("web.1", "up", True)], "up again")
        assert world.crashes() == [("web.1", 4, None)]

    play(world, story)


def test_a_dyno_that_crashed_while_the_next_release_boots_is_not_shown_beside_its_successor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = _crashes_are_written_late(monkeypatch)

    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour = "never listens"
        coming = world.deploy()
        await until(lambda: len(world.driver.dynos) == 2, "the next one boots")
        world.driver.dynos[0].end(4)
        await until(begun.is_set, "the crash is about to be written")
        world.driver.dynos[1].behaviour = "serves"
        assert (await world.settled(coming)).status == "succeeded"
        go_on.set()
        await until(lambda: world.rows() == [("web.1", "up", True)], "only the new one is left")
        assert world.crashes() == [("web.1", 4, None)]

    play(world, story)


def test_a_dyno_that_crashes_after_an_hour_has_not_crashed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: said.extend(texts))

    async def story() -> None:
        await world.settled(world.deploy())
        for number in range(1, 5):  # young, old, old, old
            world.driver.dynos[-1].end(7)
            await until(lambda: len(world.driver.dynos) == number + 1 and world.rows() == [("web.1", "up", True)], "up again, at once")  # noqa: B023
            assert world.manager.crashes.in_a_row == {"web.1": 1}
            [life] = world.manager.lives.values()
            life._began -= 3600
            life.started_at += timedelta(hours=1)  # the host's clock was set back meanwhile
        assert not any("times in a row" in text for text in said)

    play(world, story)


@pytest.mark.code("R99")
def test_a_dyno_that_the_host_cannot_start_is_a_platform_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: said.extend(texts))

    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))

        async def no_room(spec: DynoSpec) -> FakeDyno:
            raise DavitError("There is no room for another dyno on this host.")

        monkeypatch.setattr(world.driver, "start", no_room)
        world.scale(worker=1)
        await until(lambda: any("R99" in text for text in said), "it is said")
        assert "Error R99 (Platform error) -> There is no room for another dyno on this host." in said
        assert world.driver.alive() == ["web.1"]

    play(world, story)


def test_a_dyno_that_does_not_come_up_again_is_shown_as_crashed_and_why_is_kept(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour = "crashes at start"
        world.driver.dynos[0].end(1)
        await until(lambda: world.rows() == [("web.1", "crashed", False)] and len(world.crashes()) == 2, "it did not come up again")
        (_, status, why), first = world.crashes()
        assert status == 7 and why and "ended before it listened on $PORT, with status 7" in why and first == ("web.1", 1, None)
        assert [row.exit_status for row in records.rows_of_dynos().values()] == [7]

    play(world, story)


def test_a_config_change_restarts_with_the_new_value(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(config.change, {"GREETING": "hello"})
        await until(lambda: len(world.driver.dynos) == 2, "a new dyno")
        assert world.driver.dynos[1].spec.env["GREETING"] == "hello"
        assert "hello" not in " ".join(world.driver.dynos[1].spec.command)

    play(world, story)


def test_releases_are_brought_up_one_after_the_other(world: World) -> None:
    async def story() -> None:
        ids = [world.deploy(), world.deploy(), world.deploy()]
        done = [await world.settled(one) for one in ids]
        assert [one.version for one in done] == [2, 3, 4] and all(one.status == "succeeded" for one in done)
        await until(lambda: world.driver.alive() == ["web.1"], "one dyno is left")
        await until(lambda: world.rows() == [("web.1", "up", True)], "one row is left")

    play(world, story)


def test_a_worker_of_the_old_release_is_gone_before_the_new_one_starts(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", clock="tick"))
        world.scale(clock=1)
        await world.until_alive("clock.1", "web.1")
        world.events.clear()
        await world.settled(world.deploy(web="serve", clock="tick"))
        await until(lambda: "start clock.1" in world.events, "a new clock")
        assert world.events.index("removed clock.1") < world.events.index("start clock.1")

    play(world, story)


def test_an_app_whose_process_died_in_the_middle_of_a_release_is_finished_by_the_next_process(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        await world.manager.close()
        release_id = world.deploy()
        records.begin_release(release_id, "1")
        records.set_phase(release_id, "boot")
        old = world.driver.dynos[0]
        rows = records.rows_of_dynos()
        world.manager = world.make_manager()
        world.manager.adopt(rows[old.spec_id], old)
        world.manager.start()
        release = await world.settled(release_id)
        assert release.status == "succeeded"
        await until(lambda: world.driver.alive() == ["web.1"], "the old one is gone")

    play(world, story)


def test_a_dyno_that_ended_with_the_process_that_kept_it_comes_back_at_once_and_was_no_crash(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        await world.manager.close()
        ended = world.driver.dynos[0]
        ended.over.set_result(Exit(None))  # nobody was there to see it
        rows = records.rows_of_dynos()
        world.manager = world.make_manager()
        world.manager.adopt(rows[ended.spec_id], ended)
        world.manager.start()
        await world.until_alive("web.1")
        assert world.manager.crashes.in_a_row == {} and "removed web.1" in world.events
        assert world.crashes() == []

    play(world, story)


def test_an_adopted_dyno_that_ends_has_crashed_though_the_kernel_keeps_no_status(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        await world.manager.close()
        running = world.driver.dynos[0]
        rows = records.rows_of_dynos()
        world.manager = world.make_manager()
        world.manager.adopt(rows[running.spec_id], running)
        world.manager.start()
        await until(lambda: world.rows() == [("web.1", "up", True)], "it was taken over")
        running.over.set_result(Exit(None, oom=True, watched=True))
        await until(lambda: [dyno for dyno in world.driver.dynos[1:] if not dyno.over.done()], "another one")
        assert world.manager.crashes.in_a_row == {"web.1": 1}
        name, status, why = world.crashes()[0]  # (the closed manager saw it, too)
        assert (name, status) == ("web.1", None) and "It was killed: it used more than" in (why or "")

    play(world, story)


def test_a_dyno_that_was_still_starting_holds_nobody_up_but_its_own_app(world: World) -> None:
    async def story() -> None:
        await world.manager.close()
        world.driver.behaviour = "never listens"
        release_id = world.deploy()
        records.begin_release(release_id, "1")
        records.set_phase(release_id, "boot")
        world.manager = world.make_manager()
        world.manager.start()
        await until(lambda: [row for row in records.rows_of_dynos().values() if row.port], "it starts")
        await world.manager.close()
        (starting,), rows = world.driver.dynos, records.rows_of_dynos()
        world.driver.behaviour = "serves"
        world.manager = world.make_manager()
        world.manager.adopt(rows[starting.spec_id], starting)  # returns at once
        starting.behaviour = "serves"
        world.manager.start()
        assert (await world.settled(release_id)).status == "succeeded"
        assert world.driver.dynos == [starting]

    play(world, story)


def restarted(world: World) -> None:
    """The runtime process ended; the next one adopts what runs."""
    rows = records.rows_of_dynos()
    world.manager = world.make_manager()
    for dyno in world.driver.dynos:
        if dyno.spec_id in rows:
            world.manager.adopt(rows[dyno.spec_id], dyno)  # type: ignore[arg-type]
    world.manager.start()


async def half_started(world: World, **types: str) -> FakeDyno:
    """The app's web dyno has crashed, the next one hangs while it starts, and the runtime process ends."""
    await world.settled(world.deploy(**types))
    world.driver.behaviour = "never listens"
    world.driver.dynos[0].end(1)
    await until(lambda: [row for row in world.dynos("starting") if row.port], "it starts again")
    world.driver.behaviour = "serves"
    await world.manager.close()
    return world.driver.dynos[1]


def test_a_dyno_that_hangs_while_the_runtime_is_restarted_holds_up_nothing(world: World) -> None:
    async def story() -> None:
        hangs = await half_started(world, web="serve", worker="work")
        restarted(world)
        world.scale(web=2, worker=1)
        both = [("web.1", "starting", False), ("web.2", "up", True), ("worker.1", "up", False)]
        await until(lambda: world.rows() == both, "the others are up", 30)
        world.change(formation.restart, "worker")
        await until(lambda: world.events.count("start worker.1") == 2, "the worker is restarted", 30)
        await until(lambda: world.rows() == both, "it is up")
        hangs.behaviour = "serves"
        await until(lambda: ("web.1", "up", True) in world.rows(), "it has come up")
        assert not hangs.over.done() and world.events.count("start web.1") == 2

    play(world, story)


@pytest.mark.parametrize("wanted", ["a restart", "another release", "none", "no app"])
def test_a_dyno_that_hangs_while_the_runtime_is_restarted_makes_way_for_what_is_wanted_by_then(world: World, wanted: str) -> None:
    async def story() -> None:
        hangs = await half_started(world)
        if wanted == "a restart":
            world.change(formation.restart)
        restarted(world)
        await until(lambda: hangs.over.done() or world.manager._attempts, "the manager has looked", 30)
        if wanted == "another release":
            await world.settled(world.deploy())
        elif wanted == "none":
            world.scale(web=0)
        elif wanted == "no app":
            world.change(apps.destroy)
        await until(hangs.over.done, "it has ended", 30)
        if wanted == "no app":
            await until(world.forgotten, "the app is forgotten")
        else:
            await until(lambda: world.rows() == ([] if wanted == "none" else [("web.1", "up", True)]), "what is wanted is there")

    play(world, story)


async def half_risen(world: World) -> tuple[str, FakeDyno]:
    """A release boots, its dyno hangs, and the runtime process ends."""
    await world.settled(world.deploy())
    world.driver.behaviour = "never listens"
    coming = world.deploy()
    await until(lambda: [row for row in world.dynos("starting") if row.port], "it boots")
    world.driver.behaviour = "serves"
    await world.manager.close()
    return coming, world.driver.dynos[1]


def test_a_release_that_hangs_while_the_runtime_is_restarted_holds_up_nothing(world: World) -> None:
    async def story() -> None:
        coming, hangs = await half_risen(world)
        restarted(world)
        world.driver.dynos[0].end(1)
        await until(lambda: ("web.1", "up", True) in world.rows() and len(world.driver.dynos) == 3, "the crashed one is back", 30)
        world.scale(web=2)
        await until(lambda: ("web.2", "up", True) in world.rows(), "scaled", 30)
        assert _finished(coming) is None and not hangs.over.done()
        world.cancel(coming)
        release = await until(lambda: _finished(coming), "it is cancelled", 30)
        assert release.failure_kind == "cancelled"
        await until(lambda: world.rows() == [("web.1", "up", True), ("web.2", "up", True)], "nothing is left of it")
        assert hangs.over.done()

    play(world, story)


@pytest.mark.parametrize(("status", "ends"), [(None, "succeeded"), (7, "failed")])
def test_a_release_whose_dyno_ended_with_the_earlier_runtime_gets_another_and_one_that_crashed_fails(
    world: World, status: int | None, ends: str
) -> None:
    async def story() -> None:
        coming, ended = await half_risen(world)
        ended.over.set_result(Exit(status))
        restarted(world)
        assert (await world.settled(coming)).status == ends
        await until(lambda: world.rows() == [("web.1", "up", True)], "one is left")
        assert {dyno.release_version for dyno in world.dynos("up")} == {3 if ends == "succeeded" else 2}

    play(world, story)


def test_a_dyno_that_starts_of_a_release_that_was_replaced_leaves_after_a_restart_of_the_runtime(world: World) -> None:
    async def story() -> None:
        old = await half_started(world)
        row = records.rows_of_dynos()[old.spec_id]
        replaced = world.deploy()
        records.begin_release(replaced, "1")
        records.succeed(replaced)
        restarted(world)
        await until(old.over.done, "the old one has ended", 30)
        await until(lambda: world.rows() == [("web.1", "up", True)], "the new one alone")
        assert world.dynos("up")[0].release_version == 3 and row.release_version == 2

    play(world, story)


def test_a_release_command_that_was_interrupted_is_not_run_a_second_time(world: World) -> None:
    async def story() -> None:
        await world.manager.close()
        release_id = world.deploy(web="serve", release="migrate")
        records.begin_release(release_id, "1")
        records.set_phase(release_id, "release")
        world.manager = world.make_manager()
        world.manager.start()
        release = await world.settled(release_id)
        assert (release.status, world.phase.ran) == ("failed", 0)
        assert "nobody knows how it ended" in (release.failure or "")

    play(world, story)


def test_a_manager_that_is_woken_in_the_instant_in_which_it_is_closed_ends(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.manager.crashes.postpone("web.2", 600)  # so that it waits for a time, too
        world.manager.wake()
        await until(lambda: not (world.manager._wake.is_set() or world.manager._turn.locked()), "it waits")
        assert world.manager._task is not None
        world.manager.wake()
        world.manager._task.cancel()
        await until(world.manager._task.done, "it has ended", 30)

    play(world, story)


def test_a_destroyed_app_leaves_nothing(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(apps.destroy)
        await until(lambda: _forgotten(world.app.id), "its row is gone, which is the last of it")
        assert world.gone == [world.app.id]
        assert world.driver.alive() == [] and world.rows() == []
        await until(world.forgotten, "its row goes last")

    play(world, story)


def test_an_app_that_is_not_in_another_homes_database_is_not_a_destroyed_one(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """As when another Davit's database comes to be at the address, while this one runs."""

    async def story() -> None:
        await world.settled(world.deploy())
        (settings().home / "identity").write_text("mine\n")
        records.forget_app(world.app.id)
        world.manager.wake()
        await until(lambda: "but another Davit's; nothing was changed" in caplog.text, "it was looked at")
        assert world.gone == [] and world.driver.alive() == ["web.1"]
        (settings().home / "identity").unlink()
        await until(lambda: world.gone == [world.app.id], "where the database is the home's, the app is gone")

    play(world, story)


# -- isolation and size


def test_another_isolation_comes_without_a_gap(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.events.clear()
        world.shape("web", isolation="microvm")
        await until(lambda: [row.isolation for row in world.dynos("up")] == ["microvm"], "it is a microVM")
        order = ["start web.1", "routes [web.1@v2]", "drained", "signal 15 web.1"]
        await until(lambda: [event for event in world.events if event in order] == order, "start, switch, drain, stop")
        assert world.driver.dynos[-1].spec.isolation == "microvm"
        assert world.formation().failure is None

    play(world, story)


def test_an_isolation_in_which_it_does_not_boot_leaves_the_old_dynos_and_says_why(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour, world.manager.boot_seconds = "never listens", 0.3
        world.shape("web", isolation="osv")
        row = await until(lambda: (found := world.formation()).failure and found, "the reason")
        assert row.isolation == "container"
        assert row.failure.startswith("web did not come up as osv, so it stays container. web.1 did not bind $PORT")
        await world.until_alive("web.1")
        assert [(one.isolation, one.routed) for one in world.dynos("up")] == [("container", True)]
        assert len(world.driver.dynos) == 2  # and it is not tried again

    play(world, story)


def test_an_isolation_that_this_host_cannot_have_stops_no_worker(world: World) -> None:
    async def story() -> None:
        world.driver.missing["microvm"] = "QEMU is not installed."
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(worker=1)
        await world.until_alive("web.1", "worker.1")
        world.events.clear()
        world.shape("worker", isolation="microvm")
        row = await until(lambda: (found := world.formation("worker")).failure and found, "the reason")
        assert row.isolation == "container"
        assert "QEMU is not installed." in row.failure
        assert not [event for event in world.events if "signal" in event]

    play(world, story)


@pytest.mark.parametrize("refusals", [0, 1])
def test_a_worker_that_does_not_start_in_its_new_isolation_starts_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """Also where that could not be written down at first, and the dyno that it was had stopped by then."""

    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(worker=1)
        await world.until_alive("web.1", "worker.1")

        async def refuse(spec: DynoSpec) -> FakeDyno:
            if spec.isolation == "osv":
                raise Unsupported("It forks, which OSv cannot.")
            return await FakeDriver.start(world.driver, spec)

        world.driver.start = refuse  # type: ignore[method-assign]
        refusing = Refusing(monkeypatch, refusals, "stay")
        world.shape("worker", isolation="osv")
        await until(lambda: world.formation("worker").failure, "the reason")
        assert refusing.refused == refusals
        await until(lambda: [row.isolation for row in world.dynos("up")] == ["container"] * 2, "it works again")
        await world.until_alive("web.1", "worker.1")

    play(world, story)


def test_a_size_reaches_running_dynos_live(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.shape("web", size="standard-2x", live=True)
        await until(lambda: [row.size for row in world.dynos("up")] == ["standard-2x"], "the size")
        assert "update web.1 to 1024" in world.events
        assert len(world.driver.dynos) == 1
        world.shape("web", size="basic")
        await until(lambda: [row.size for row in world.dynos("up")] == ["basic"], "the size, by a restart")
        assert len(world.driver.dynos) == 2

    play(world, story)


@pytest.mark.row("resize-uses")
@pytest.mark.parametrize(("behaviour", "memory", "why"), [("cannot be resized", 1, "cannot be resized"), ("serves", 1 << 31, "2048 MiB")])
def test_a_size_that_cannot_come_live_changes_nothing(world: World, behaviour: str, memory: int, why: str) -> None:
    async def story() -> None:
        world.driver.behaviour = behaviour
        await world.settled(world.deploy())
        world.driver.dynos[0].memory = memory
        world.shape("web", size="standard-1x", live=True)
        row = await until(lambda: (found := world.formation()).failure and found, "the reason")
        assert why in row.failure
        assert memory == 1 or says("resize-uses", row.failure)
        assert row.size == "basic"
        assert len(world.driver.dynos) == 1

    play(world, story)


def test_a_live_size_that_could_not_be_written_down_is_tried_again_and_not_told_as_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        refusing = Refusing(monkeypatch, 1)
        world.shape("web", size="standard-2x", live=True)
        await until(lambda: [row.size for row in world.dynos("up")] == ["standard-2x"], "the size")
        assert refusing.refused == 1 and len(world.driver.dynos) == 1
        assert (world.formation().size, world.formation().failure) == ("standard-2x", None)

    play(world, story)


def test_of_two_dynos_of_which_one_cannot_shrink_the_other_is_restarted_as_it_was(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.shape("web", size="standard-2x", quantity=2)
        await until(lambda: [(row.name, row.size) for row in world.dynos("up")] == [("web.1", "standard-2x"), ("web.2", "standard-2x")], "both")
        await until(lambda: len(world.rows()) == 2, "no other is left")
        one, two = (next(d for d in world.driver.dynos if d.spec.name == name and not d.over.done()) for name in ("web.1", "web.2"))
        update = two.update

        async def shrink_only(limits: Limits) -> None:
            one.memory = 1 << 31  # from now on the first one cannot shrink
            if limits.memory > 512 << 20:
                raise Unsupported("It cannot grow back.")
            await update(limits)

        one.behaviour, two.update = "is resized slowly", shrink_only  # type: ignore[method-assign]
        world.shape("web", size="standard-1x", live=True)
        await until(lambda: {row.name: row.size for row in world.dynos("up")}.get("web.2") == "standard-1x", "the second is small")
        one.behaviour = "cannot be resized"
        one.may_go_on.set()
        await until(lambda: two.over.done(), "the second is replaced")
        await until(lambda: world.rows() == [("web.1", "up", True), ("web.2", "up", True)], "both serve")
        assert {row.size for row in world.dynos("up")} == {"standard-2x"} and not one.over.done()

    play(world, story)


def test_eco_dynos_sleep_by_themselves_and_others_only_when_they_are_told_to(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        assert records.sleep_candidates() == [] and not records.put_to_sleep(world.app.id)
        world.shape("web", size="eco")
        await until(lambda: [row.size for row in world.dynos("up")] == ["eco"], "eco")
        assert records.sleep_candidates() == [world.app.id]
        world.change(sleep.choose, "off")
        assert records.sleep_candidates() == [] and not records.put_to_sleep(world.app.id)
        world.change(sleep.choose, "auto")
        world.fall_asleep()
        await until(lambda: world.rows() == [("web.1", "idle", False)], "it sleeps")

    play(world, story)


@pytest.mark.row("move-others")
def test_requests_are_held_while_the_only_dyno_is_moved(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        with pytest.raises(Unsupported, match="isolated by container") as refused:
            await world.manager.migrate("web.1")
        assert_says("move-others", refused.value.message)
        await world.microvm()
        world.events.clear()
        sync, held = world.router.sync, list[bool]()

        async def look(app_id: str) -> None:
            (holds,) = [row.held for row in world.dynos("up")]
            if [holds] != held[-1:]:  # a look may tell it the same once more
                held.append(holds)
            await sync(app_id)

        world.router.sync = look  # type: ignore[method-assign]
        moved = await world.manager.migrate("web.1")
        assert held == [True, False], "the router is told for how long"
        assert moved.pause == 0.02 and moved.held > 0
        assert world.events == ["migrating web.1", "routes []", "migrate web.1", "routes [web.1@v3]"]
        world.driver.dynos[-1].behaviour = "cannot be moved"
        with pytest.raises(DavitError, match="no room"):
            await world.manager.migrate("web.1")
        assert world.rows() == [("web.1", "up", True)]
        with pytest.raises(DavitError, match=r"web\.2"):
            await world.manager.migrate("web.2")

    play(world, story)


def test_a_move_is_given_up_when_the_router_is_away_and_one_that_took_the_hold_late_is_told_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may stand still already."""
    monkeypatch.setattr("runtime.formation.HOLD_SECONDS", 1.0)

    async def story() -> None:
        await world.microvm()
        sync = world.router.sync

        async def late(app_id: str) -> None:
            await sync(app_id)
            await asyncio.Event().wait()  # its answer never comes

        world.router.sync = late  # type: ignore[method-assign]
        world.events.clear()
        with pytest.raises(DavitError, match="the router did not hold its requests within"):
            await world.manager.migrate("web.1")
        await until(lambda: world.router.routed == [row.id for row in world.dynos("up")], "it is routed to as before")
        assert world.events == ["migrating web.1", "routes []", "routes [web.1@v2]"]
        assert world.rows() == [("web.1", "up", True)] and not world.dynos("up")[0].held

    play(world, story)


def test_a_move_is_given_up_when_the_database_is_busy_and_what_it_writes_late_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.formation.HOLD_SECONDS", 0.1)
    hold, its_turn = records.hold, threading.Event()

    def busy(dyno_id: str, held: bool) -> bool:
        if held:
            its_turn.wait(60)
        return hold(dyno_id, held)

    async def story() -> None:
        await world.microvm()
        monkeypatch.setattr(records, "hold", busy)
        with pytest.raises(DavitError, match="did not hold its requests within"):
            await world.manager.migrate("web.1")
        assert not its_turn.is_set() and world.rows() == [("web.1", "up", True)]
        with pytest.raises(DavitError, match="not got its route back since it moved last"):
            await world.manager.migrate("web.1")
        its_turn.set()
        await until(lambda: not world.manager._held, "it was written, and taken back")
        assert world.rows() == [("web.1", "up", True)] and not world.dynos("up")[0].held

    play(world, story)


@pytest.mark.parametrize("refused", ["the hold", "its end"])
def test_a_dyno_that_moved_while_the_database_was_away_gets_its_route_back(
    world: World, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    hold, refusals, back = records.hold, list[bool](), threading.Event()

    def goes(dyno_id: str, held: bool) -> bool:
        if not back.is_set() and held == (refused == "the hold"):
            refusals.append(held)
            raise Unavailable("The database does not answer.")
        return hold(dyno_id, held)

    async def story() -> None:
        await world.microvm()
        monkeypatch.setattr(records, "hold", goes)
        moving = asyncio.create_task(world.manager.migrate("web.1"))
        if refused == "the hold":
            with pytest.raises(DavitError, match="could not be held: The database does not answer"):
                await moving
        else:
            await until(lambda: refusals, "it cannot be written")
            assert world.rows() == [("web.1", "up", False)]
            back.set()
            await moving
        await until(lambda: world.rows() == [("web.1", "up", True)], "it is written")
        await until(lambda: world.router.routed == [row.id for row in world.dynos("up")], "it is routed to as before")
        assert not world.dynos("up")[0].held

    play(world, story)


def test_a_dyno_that_leaves_while_its_requests_are_held_answers_those_that_it_has(world: World) -> None:
    async def story() -> None:
        web = await world.microvm()
        web.behaviour = "stands still"
        moving = asyncio.create_task(world.manager.migrate("web.1"))
        await until(lambda: "migrate web.1" in world.events, "it stands still")
        world.events.clear()
        world.scale(web=0)
        await until(lambda: world.rows() == [], "it is gone")
        assert world.events[:3] == ["drained", "signal 15 web.1", "removed web.1"]
        web.behaviour = "serves"
        web.may_go_on.set()
        await moving

    play(world, story)


def test_a_dyno_that_dies_while_it_moves_is_not_routed_to_again(world: World) -> None:
    async def story() -> None:
        (await world.microvm()).behaviour = "dies on the way"
        world.driver.missing["microvm"] = "No more."
        with pytest.raises(DavitError, match="no room"):
            await world.manager.migrate("web.1")
        await until(lambda: world.rows() == [("web.1", "crashed", False)], "it has crashed")
        assert "routes [web.1@v2]" not in world.events[world.events.index("migrate web.1") :]

    play(world, story)


def test_a_move_and_a_resize_that_take_their_time_hold_up_nothing_else(world: World) -> None:
    """Not another release, not scaling, not the end of the app."""

    async def story() -> None:
        first = await world.microvm(web="serve", worker="work")
        first.behaviour = "moves slowly"
        moving = asyncio.create_task(world.manager.migrate("web.1"))
        await until(lambda: "migrating web.1" in world.events, "it moves")
        world.scale(worker=1)
        await world.until_alive("web.1", "worker.1")
        worker = next(dyno for dyno in world.driver.dynos if dyno.spec.name == "worker.1")
        worker.behaviour = "is resized slowly"
        world.shape("worker", size="standard-1x", live=True)
        await until(lambda: "resizing" in world.events, "it is resized")
        await world.settled(world.deploy(web="serve"))
        await until(lambda: first.over.done(), "the moving one has left")
        first.may_go_on.set()
        with pytest.raises(DavitError):
            first.behaviour = "cannot be moved"
            await moving
        await until(lambda: world.rows() == [("web.1", "up", True)], "what is left")
        assert world.dynos("up")[0].release_version == 3

    play(world, story)


def test_who_waits_for_a_move_is_told_that_davit_ends(world: World) -> None:
    async def story() -> None:
        (await world.microvm()).behaviour = "moves slowly"
        moving = asyncio.create_task(world.manager.migrate("web.1"))
        await until(lambda: "migrating web.1" in world.events, "it moves")
        await world.manager.close()
        with pytest.raises(Unavailable, match="ending"):
            await moving

    play(world, story)


def test_davit_ends_while_a_dyno_moves_and_the_router_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        web = await world.microvm()
        web.behaviour = "stands still"
        moving = asyncio.create_task(world.manager.migrate("web.1"))
        await until(lambda: "migrate web.1" in world.events, "it stands still")

        async def away(app_id: str) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr("runtime.formation.HOLD_SECONDS", 0.1)
        world.router.sync = away  # type: ignore[method-assign]
        closing = asyncio.create_task(world.manager.close())
        await asyncio.wait({closing}, timeout=60)
        assert closing.done()
        with pytest.raises(Unavailable, match="ending"):
            await moving
        assert world.rows() == [("web.1", "up", True)], "the next runtime has nothing to mend"

    play(world, story)


def test_a_dyno_that_a_killed_runtime_left_unrouted_is_routed(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        await world.manager.close()
        (row,) = world.dynos("up")
        records.change([row.id], routed=False, held=True)  # it moved just then
        (running,) = world.driver.dynos
        world.manager = world.make_manager()
        world.manager.adopt(world.dynos("up")[0], running)  # type: ignore[arg-type]
        world.manager.start()
        await until(lambda: world.rows() == [("web.1", "up", True)], "its route")
        assert not world.dynos("up")[0].held

    play(world, story)


# -- sleep


def test_of_two_web_dynos_of_a_name_that_a_killed_runtime_left_the_old_one_leaves_and_never_gets_a_route(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(worker=1)
        await world.until_alive("web.1", "worker.1")
        await until(lambda: len(world.dynos("up")) == 2, "both are up")
        old, before = list(world.driver.dynos), records.rows_of_dynos()
        world.phase.over = asyncio.Event()
        await world.settled(world.deploy(web="serve", worker="work"))
        await until(lambda: {dyno.release_version for dyno in world.dynos("up")} == {3} and len(world.rows()) == 2, "v3 serves")
        await until(lambda: not {dyno.spec_id for dyno in old} & set(records.rows_of_dynos()), "v2 is gone")
        await world.manager.close()
        left = []
        for ended in old:  # as if these had come up only after their release had been replaced
            running = await world.driver.start(ended.spec)
            row = before[ended.spec_id]
            with db.transaction() as session:
                values = {column.key: getattr(row, column.key) for column in Dyno.__mapper__.column_attrs}
                session.add(Dyno(**values | {"state": "up", "routed": False, "leaving": False}))
            left.append(running)
        world.manager = world.make_manager()
        world.events.clear()
        rows = records.rows_of_dynos()
        for running in world.driver.dynos:
            if not running.over.done():
                world.manager.adopt(rows[running.spec_id], running)  # type: ignore[arg-type]
        world.manager.start()
        await until(lambda: all(running.over.done() for running in left), "the old ones have left")
        await until(lambda: world.rows() == [("web.1", "up", True), ("worker.1", "up", False)], "the new ones alone")
        assert {dyno.release_version for dyno in world.dynos("up")} == {3}
        assert not [event for event in world.events if event.startswith(("start", "routes")) and "web.1@v2" in event]

    play(world, story)


def test_a_web_dyno_that_is_not_wanted_any_more_is_written_down_as_leaving(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had come up when it was given up; a next runtime process must not route to it."""

    async def story() -> None:
        await world.settled(world.deploy())
        change, up, may_go_on = records.change, threading.Event(), threading.Event()

        def change_slowly(ids: Any, **values: Any) -> None:
            change(ids, **values)
            if values.get("state") == "up" and not up.is_set():
                up.set()
                assert may_go_on.wait(60)

        monkeypatch.setattr(records, "change", change_slowly)
        world.driver.behaviour = "ignores SIGTERM"
        world.change(formation.restart)
        await until(up.is_set, "the new one is up")
        unwanted, world.driver.behaviour = world.driver.dynos[-1], "serves"
        world.change(formation.restart)
        await until(lambda: world.manager._given_up, "it is given up")
        may_go_on.set()
        await until(lambda: "signal 15 web.1" in world.events, "one is told to end")
        await until(lambda: records.rows_of_dynos()[unwanted.spec_id].leaving, "that it leaves is written down")
        unwanted.end(0)
        await until(lambda: world.rows() == [("web.1", "up", True)], "the third is the one")

    play(world, story)


def test_a_crash_that_a_killed_runtime_wrote_down_is_not_forgotten(world: World) -> None:
    """Its dyno was not taken away before the end of the process, and is adopted."""

    async def story() -> None:
        await world.settled(world.deploy())
        await world.manager.close()
        (row,), (crashed,) = world.dynos("up"), world.driver.dynos
        crashed.end(3)
        records.crash(row.id, 2, Exit(3))
        world.manager = world.make_manager()
        world.manager.adopt(records.rows_of_dynos()[row.id], crashed)  # type: ignore[arg-type]
        world.manager.start()
        await until(lambda: world.rows() == [("web.1", "up", True)], "the next one is up")
        assert world.manager.crashes.times("web.1") == 2
        await until(lambda: "removed web.1" in world.events, "the crashed one is taken away")
        assert world.driver.alive() == ["web.1"] and world.rows() == [("web.1", "up", True)]

    play(world, story)


def test_an_app_whose_release_comes_up_is_not_put_to_sleep(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        world.phase.over = asyncio.Event()
        assert records.sleep_candidates() == [world.app.id]
        second = world.deploy(web="serve", release="migrate")
        assert records.sleep_candidates() == [] and not records.put_to_sleep(world.app.id)
        with db.transaction() as session:  # it was looked at before the release was made, and put to sleep after
            session.get_one(App, world.app.id).asleep_at = now()
        world.phase.over.set()
        await world.settled(second)
        await world.until_alive("web.1")
        assert records.sleep_candidates() == [world.app.id]

    play(world, story)


def test_a_sleeping_app_has_no_dynos_and_wakes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: said.extend(texts))

    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(worker=1)
        await world.until_alive("web.1", "worker.1")
        world.change(sleep.choose, "on")
        world.fall_asleep()
        await world.until_alive()
        await until(lambda: world.rows() == [("web.1", "idle", False), ("worker.1", "idle", False)], "idle")
        assert world.events.index("routes []") < world.events.index("signal 15 web.1")
        world.wake_up()
        await world.until_alive("web.1", "worker.1")
        await until(lambda: world.rows() == [("web.1", "up", True), ("worker.1", "up", False)], "up")
        told = [re.fullmatch(r"Woken in \d+ ms \((.+)\)", text) for text in said]
        assert sorted(match[1] for match in told if match) == ["anew", "anew"]

    play(world, story)


def test_who_sleeps_when_the_runtime_ends_sleeps_on_and_wakes(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        world.fall_asleep()
        await until(lambda: world.rows() == [("web.1", "idle", False)], "idle")
        await world.manager.close()
        world.manager = world.make_manager()
        world.manager.sleepers.remember(world.dynos("idle")[0])
        world.manager.start()
        world.wake_up()
        await until(lambda: world.rows() == [("web.1", "up", True)], "up")

    play(world, story)


def test_a_deploy_wakes(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        world.fall_asleep()
        await until(lambda: world.rows() == [("web.1", "idle", False)], "idle")
        assert (await world.settled(world.deploy())).status == "succeeded"
        assert world.rows() == [("web.1", "up", True)]

    play(world, story)


def test_a_microvm_is_put_aside_and_woken_as_it_was_unless_that_is_broken_or_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: said.extend(texts))

    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        world.shape("web", isolation="microvm")
        await until(lambda: [row.isolation for row in world.dynos("up")] == ["microvm"] and len(world.rows()) == 1, "microVM")
        kept = world.snapshots.directory / world.app.id / "web.1"

        async def asleep() -> None:
            world.fall_asleep()
            await until(kept.exists, "it is put aside")
            await world.until_alive()

        async def awake() -> None:
            await until(lambda: world.rows() == [("web.1", "up", True)], "up")
            assert not list(kept.parent.iterdir())

        await asleep()
        world.wake_up()
        await awake()
        assert world.events.count("resume web.1") == 1
        assert re.fullmatch(r"Woken in \d+ ms \(from its memory\)", said[-1])
        await asleep()
        (kept / "memory").write_text("rubbish")
        world.wake_up()
        await awake()
        assert re.fullmatch(r"Woken in \d+ ms \(anew\)", said[-1])
        await asleep()
        await world.settled(world.deploy())
        await awake()
        assert world.events.count("resume web.1") == 1
        await asleep()
        world.change(formation.restart)
        await awake()
        assert world.events.count("resume web.1") == 1

    play(world, story)


def test_who_is_woken_while_it_is_put_aside_goes_on_from_there(world: World) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        world.shape("web", isolation="microvm")
        await until(lambda: [row.isolation for row in world.dynos("up")] == ["microvm"] and len(world.rows()) == 1, "microVM")
        written = world.driver.dynos[-1].written = asyncio.Event()
        world.fall_asleep()
        await until(lambda: "suspending web.1" in world.events, "it is being put aside")
        started = world.events.count("start web.1")
        world.wake_up()
        await asyncio.sleep(0.1)
        assert world.events.count("start web.1") == started
        written.set()
        await until(lambda: world.rows() == [("web.1", "up", True)], "up")
        assert world.events.count("resume web.1") == 1

    play(world, story)


def test_few_are_put_aside_at_a_time_and_who_is_woken_before_its_turn_starts_anew(world: World) -> None:
    async def story() -> None:
        await world.microvm()
        world.change(sleep.choose, "on")
        for _ in range(TOGETHER):  # others of this host
            await world.snapshots.writing.acquire()
        world.fall_asleep()
        await until(lambda: "routes []" in world.events[-3:], "it falls asleep")
        await asyncio.sleep(0.1)
        assert world.driver.alive() == ["web.1"] and "suspending web.1" not in world.events
        world.wake_up()
        await until(lambda: world.rows() == [("web.1", "up", True)], "up")
        assert "suspending web.1" not in world.events and "resume web.1" not in world.events
        world.fall_asleep()
        await until(lambda: world.events[-1] == "drained", "it waits for its turn")
        world.snapshots.writing.release()
        await until(lambda: "suspend web.1" in world.events, "it is put aside")
        await until(lambda: world.snapshots.writing._value == 1, "its turn is over")

    play(world, story)


def test_who_is_not_wanted_any_more_when_its_turn_to_wake_comes_leaves_nothing(world: World) -> None:
    async def story() -> None:
        await world.microvm()
        world.change(sleep.choose, "on")
        kept = world.snapshots.directory / world.app.id / "web.1"
        world.fall_asleep()
        await until(kept.exists, "it is put aside")
        for _ in range(TOGETHER):
            await world.snapshots.reading.acquire()
        world.wake_up()
        await until(lambda: not kept.exists(), "it wants to wake")
        world.scale(web=0)
        await until(lambda: not world.manager._attempts, "it is given up")
        assert list(kept.parent.iterdir()) and "resume web.1" not in world.events
        world.snapshots.reading.release()
        await until(lambda: not list(kept.parent.iterdir()), "it is removed")
        await until(lambda: world.rows() == [], "it is struck off")
        assert "resume web.1" not in world.events

    play(world, story)


def test_a_wake_that_fails_before_its_turn_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.microvm()
        world.change(sleep.choose, "on")
        kept = world.snapshots.directory / world.app.id / "web.1"
        world.fall_asleep()
        await until(kept.exists, "it is put aside")
        await world.until_alive()
        clear, taken = world.manager.sleepers.clear, list[Path]()

        async def fails_once(names: Iterable[str]) -> None:
            if "web.1" in (names := list(names)) and not taken:
                taken.extend(kept.parent.iterdir())
                raise RuntimeError("the database, for example")
            await clear(names)

        monkeypatch.setattr(world.manager.sleepers, "clear", fails_once)
        world.wake_up()
        await until(lambda: world.rows() == [("web.1", "up", True)], "up, anew")
        assert taken and not list(kept.parent.iterdir()) and "resume web.1" not in world.events

    play(world, story)


def test_snapshots_from_which_nobody_wakes_are_swept_away(tmp_path: Path) -> None:
    for name in ("app/web.1", "app/web.2", "app/.half", "other/web.1"):
        (tmp_path / name).mkdir(parents=True)
    Snapshots(tmp_path).sweep({("app", "web.1")})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == ["app/web.1"]


@pytest.mark.parametrize("isolation", ["container", "microvm"])
def test_a_dyno_that_cannot_be_put_aside_or_stopped_is_not_forgotten_while_it_runs(
    world: World, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        (web,) = world.driver.dynos
        if isolation == "microvm":
            web = await world.microvm()

        def no_room(*words: Any) -> Path:
            raise OSError(28, "No space left on device")

        signal, refused = web.signal, 0

        async def refuse_twice(number: int, everyone: bool = False) -> None:
            nonlocal refused
            refused += 1
            if refused < 3:
                raise OSError(5, "Input/output error")
            await signal(number, everyone)

        monkeypatch.setattr(world.snapshots, "fresh" if isolation == "container" else "keep", no_room)
        web.signal = refuse_twice  # type: ignore[method-assign]
        world.fall_asleep()
        await until(lambda: world.rows() == [("web.1", "idle", False)], "it is struck off")
        assert web.over.done() and "removed web.1" in world.events

    play(world, story)


# -- a database that refuses


def test_a_release_waits_for_a_database_that_is_away(
    world_on_postgres: World, postgres_that_goes: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_on_postgres
    monkeypatch.setattr(releasing, "TRIES", 1)

    async def story() -> None:
        await world.settled(world.deploy())
        world.driver.behaviour = "never listens"
        coming = world.deploy()
        await until(lambda: len(world.driver.dynos) == 2, "it boots")
        await asyncio.to_thread(postgres_that_goes.stop)
        world.driver.behaviour = world.driver.dynos[1].behaviour = "serves"
        await until(lambda: "removed web.1" in world.events, "that it is up could not be written down")
        assert not world.driver.dynos[0].over.done(), "what serves serves on"
        await asyncio.to_thread(postgres_that_goes.start)
        assert (await world.settled(coming)).status == "succeeded"
        await until(lambda: world.rows() == [("web.1", "up", True)], "the new one alone")

    play(world, story)


@pytest.mark.parametrize("refused", ["set_phase release", "insert", "set_phase boot"])
def test_a_database_that_is_away_around_a_release_command_fails_no_release(
    world: World, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """The command runs once, and its release comes up."""
    world.phase = OneOffs(world.driver, FakeStacks(), settings().home, 2)  # type: ignore[arg-type, assignment]
    world.manager = world.make_manager()
    monkeypatch.setattr(releasing, "TRIES", 1)
    monkeypatch.setattr(releasing, "TRY_AGAIN", 0.01)
    write, away = getattr(records, refused.split()[0]), ["after", "before"]

    def refuse(*words: Any) -> None:
        mine = words[-1] == refused.split()[1] if " " in refused else words[0].type == "release"
        when = away.pop() if mine and away else ""
        if when != "before":
            write(*words)
        if (when and refused != "insert") or when == "before":
            raise Unavailable("The database was busy.")

    monkeypatch.setattr(records, refused.split()[0], refuse)

    async def story() -> None:
        start = world.driver.start

        async def start_and_end(spec: DynoSpec) -> FakeDyno:
            dyno = await start(spec)
            if spec.name.startswith("release"):
                dyno.end(0)
            return dyno

        world.driver.start = start_and_end  # type: ignore[method-assign]
        release = await world.settled(world.deploy(web="serve", release="migrate"))
        assert (release.status, release.failure) == ("succeeded", None)
        assert len([event for event in world.events if event.startswith("start release")]) == 1
        assert "before" not in away

    play(world, story)


@pytest.mark.parametrize("what", ["crashes", "sleepers"])
def test_rows_that_could_not_be_removed_are_removed_later(world: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        world.change(sleep.choose, "on")
        world.fall_asleep()
        await until(lambda: world.rows() == [("web.1", "idle", False)], "it sleeps")
        await world.manager.close()
        (row,) = records.rows_of_dynos().values()
        (kept := getattr(world.manager, what)).remember(row)
        with monkeypatch.context() as away:
            away.setattr(records, "remove", _busy)
            with pytest.raises(Unavailable):
                await kept.clear(["web.1"])
        await kept.clear(["web.1"])
        assert world.rows() == [] and not kept.rows

    play(world, story)


def _busy(*words: Any) -> None:
    raise Unavailable("The database was busy.")


class Refusing:
    """In front of a function of ``records``: its call of this number fails, as on a full disk or a database that is busy too long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, name: str = "change") -> None:
        self._left, self._change = number, getattr(records, name)
        self.refused = 0
        monkeypatch.setattr(records, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self.refused += 1
            raise DiskFull()
        self._change(*args, **kwargs)


@pytest.mark.parametrize("number", [1, 2])
def test_a_dyno_whose_start_cannot_be_written_down_does_not_run_on(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        refusing = Refusing(monkeypatch, number)
        world.scale(worker=1)
        await until(lambda: refusing.refused, "the database refused")
        await until(lambda: world.rows() == [("web.1", "up", True), ("worker.1", "up", False)], "both are up")
        assert world.driver.alive() == ["web.1", "worker.1"]
        assert world.events.count("removed worker.1") == 1

    play(world, story)


def test_a_one_off_whose_start_cannot_be_written_down_does_not_run_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        release_id = world.deploy()
        await world.settled(release_id)
        one_offs = OneOffs(world.driver, FakeStacks(), settings().home, 2)  # type: ignore[arg-type]
        state = records.read_app(world.app.id)
        assert state is not None and state.current is not None
        Refusing(monkeypatch, 1)
        with pytest.raises(DiskFull):
            await one_offs.run(state, state.current, "migrate")
        assert world.driver.alive() == ["web.1"] and [row[0] for row in world.rows()] == ["web.1"]

    play(world, story)


def _one_off(world: World, terminal: bool = True) -> tuple[OneOffs, Call]:
    one_offs = OneOffs(world.driver, FakeStacks(), settings().home, 2)  # type: ignore[arg-type]
    attached = {"terminal": [24, 80]} if terminal else {}
    return one_offs, Call({"app_id": world.app.id, "command": "work", **attached}, [], [], [])


def test_a_stack_is_in_use_until_the_next_release_has_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        assert records.stacks_in_use() == {"1"}
        monkeypatch.setattr(FakeStacks, "version", lambda self: "2")
        await world.settled(world.deploy())
        await until(lambda: records.stacks_in_use() == {"2"}, "the old release's dyno has ended")

    play(world, story)


def test_who_runs_a_command_stops_one_or_enters_a_dyno_is_on_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(notify, "announcer", lambda app_id, text: said.append(text))

    async def story() -> None:
        await world.settled(world.deploy())
        one_offs, call = _one_off(world)
        one_offs.formation = lambda app_id, dyno_id: (next(row for row in world.dynos("up") if row.name == "web.1"), world.driver.dynos[0])  # type: ignore[assignment, return-value]
        by = {"by": world.owner.id}
        started = await one_offs.start(Call({**call.params, **by}, [], [], []))
        for more in ({}, {"files": True}):
            inside = {"app_id": world.app.id, "inside": "web", "command": "printenv\nSECRET", "terminal": [24, 80], **by, **more}
            with pytest.raises(AttributeError, match="terminal_fd"):  # this world's dynos run nothing further
                await one_offs.start_inside(Call(inside, [], [], []))
        await one_offs.stop(Call({"dyno_id": started["dyno_id"], **by}, [], [], []))
        with db.snapshot() as session:
            rows = session.scalars(select(AuditEvent).where(AuditEvent.details["dyno"].is_not(None)).order_by(AuditEvent.created_at))
            found = [(row.actor, row.action, row.details["dyno"]) for row in rows if "dyno" in row.details]
        name = started["name"]
        assert found == [
            ("ann@example.com", action, dyno)
            for action, dyno in (("dynos:create", name), ("dynos:inside", "web.1"), ("dynos:files", "web.1"), ("ps:stop", name))
        ]
        assert said[-3:] == [
            "Starting process with command `work` by user ann@example.com",
            "Starting process with command `printenv SECRET` in web.1 by user ann@example.com",
            f"Stop {name} by user ann@example.com",
        ]

    play(world, story)


def test_a_one_off_that_fills_the_disk_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    def full(dyno: Dyno, by: str) -> None:
        raise DiskFull()

    async def story() -> None:
        await world.settled(world.deploy())
        one_offs, call = _one_off(world)
        started = await one_offs.start(call)
        monkeypatch.setattr(records, "stop", full)
        await one_offs.stop(Call({"dyno_id": started["dyno_id"], "by": world.owner.id}, [], [], []))
        await world.until_alive("web.1")

    play(world, story)
    [told] = [record for record in caplog.records if "not in the audit log" in record.message]
    assert told.account == world.owner.id and told.dyno.startswith("run.")  # type: ignore[attr-defined]


@pytest.mark.parametrize("terminal", [True, False], ids=["attached", "detached"])
def test_a_one_off_whose_client_hangs_up_while_it_starts_does_not_run_on(
    world: World, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        one_offs, call = _one_off(world, terminal)
        begun, may_go_on, change = threading.Event(), threading.Event(), records.change

        def busy(*args: Any, **kwargs: Any) -> None:
            if terminal or "ends_at" in kwargs:  # the last thing that is written of one that nobody is connected to
                begun.set()
                assert may_go_on.wait(60)
            change(*args, **kwargs)

        monkeypatch.setattr(records, "change", busy)
        starting = asyncio.ensure_future(one_offs.start(call))
        await until(begun.is_set, "its row is written")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        may_go_on.set()
        await world.until_alive("web.1")
        await until(lambda: [row[0] for row in world.rows()] == ["web.1"], "its row is gone")
        assert not one_offs.alive()

    play(world, story)


def test_a_one_off_that_is_started_while_its_app_is_destroyed_does_not_run_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        one_offs, call = _one_off(world)
        start = world.driver.start

        async def slowly(spec: DynoSpec) -> FakeDyno:
            if spec.name.startswith("run."):
                world.change(apps.destroy)
                await until(world.forgotten, "the app is gone")
                await one_offs.end_all(world.app.id)
            return await start(spec)

        monkeypatch.setattr(world.driver, "start", slowly)
        with pytest.raises(NotFound):
            await one_offs.start(call)
        assert world.driver.alive() == [] and world.rows() == [] and not one_offs.alive()

    play(world, story)


def test_a_one_off_that_cannot_be_started_keeps_no_descriptors(world: World) -> None:
    async def story() -> None:
        one_offs, call = _one_off(world)  # of an app without code
        reader, writer = os.pipe()
        call.fds.append(writer)
        with pytest.raises(Conflict):
            await one_offs.start(call)
        assert os.read(reader, 1) == b"", "nobody could write there any more"
        os.close(reader)

    play(world, story)


def test_a_one_off_whose_client_went_with_the_earlier_runtime_is_hung_up_and_told_to_end(world: World) -> None:
    """A shell in a microVM has no terminal of ours that could go, and takes no notice of SIGTERM."""

    async def story() -> None:
        await world.settled(world.deploy())
        (row,), (running,) = world.dynos("up"), world.driver.dynos
        one_offs = OneOffs(world.driver, FakeStacks(), settings().home, 2)  # type: ignore[arg-type]
        await one_offs.adopt(row, running)  # type: ignore[arg-type]
        await until(lambda: "signal 15 web.1" in world.events, "it is told to end")
        assert "signal 1 web.1" in world.events and one_offs.rows

    play(world, story)


@pytest.mark.row("release-timeout")
def test_a_release_command_has_an_hour(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.settled(world.deploy())
        one_offs = OneOffs(world.driver, FakeStacks(), settings().home, 2)  # type: ignore[arg-type]
        state = records.read_app(world.app.id)
        assert state is not None and state.current is not None
        monkeypatch.setattr(one_off_dynos, "RELEASE_SECONDS", 0.1)
        said = await one_offs.run(state, state.current, "migrate")
        assert said is not None
        assert_says("release-timeout", said)
        assert world.driver.alive() == ["web.1"]

    play(world, story)


@pytest.mark.row("release-not-started")
def test_a_release_command_that_cannot_be_started_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.phase = OneOffs(world.driver, FakeStacks(), settings().home, 2)  # type: ignore[arg-type, assignment]
    world.manager = world.make_manager()

    async def story() -> None:
        world.driver.missing["container"] = "There is no room for a dyno."
        release = await world.settled(world.deploy(web="serve", release="migrate"))
        assert release.failure_kind == "release phase failed" and release.failure is not None
        assert_says("release-not-started", release.failure)
        assert release.failure.endswith("There is no room for a dyno.")

    play(world, story)


def test_an_ended_dyno_is_struck_off_when_the_database_writes_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await world.settled(world.deploy(web="serve", worker="work"))
        world.scale(worker=1)
        await until(lambda: len(world.dynos("up")) == 2, "both are up")
        remove, left = records.remove, [2]

        def refuse(dyno_ids: Any) -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise Unavailable("The database was busy.")
            remove(dyno_ids)

        monkeypatch.setattr(records, "remove", refuse)
        monkeypatch.setattr(records, "_AGAIN", (0.01, 0.01, 0.01))
        world.scale(worker=0)
        await until(lambda: world.rows() == [("web.1", "up", True)], "the worker is struck off")

    play(world, story)
