"""A real HAProxy with little patience, and small apps to stand behind it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from foundation.settings import Settings, from_environment
from router import service
from router.accesslog import Access
from router.certificates import Bound
from router.config import Timeouts
from router.routes import AppRows, DynoRow
from tests.conftest import PATIENCE
from tests.ports import free_port
from tests.router.apps import TinyApp

T = TypeVar("T")
PROGRAM = Path(os.environ["HAPROXY"]) if "HAPROXY" in os.environ else None
"""Another haproxy than the installed one, to test its version."""
IMPATIENT = Timeouts(connect=1, first_byte=1, idle=2.5, hold=1.5, keep_alive=20, headers=2)


class Davit:
    """A router in a thread of its own, with rows instead of a database."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.port = free_port()
        self.settings: Settings = from_environment({"DAVIT_HOME": str(home), "DAVIT_HTTP": f"127.0.0.1:{self.port}", **environ})
        self.settings.run.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, AppRows] = {}
        self.lines: list[Access] = []
        self.woken: list[str] = []
        self.bound: list[Bound] = []
        self.store_is_away = False
        self.timeouts = IMPATIENT
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.router = self._new()

    def _new(self) -> service.Router:
        return service.Router(
            self.settings, self._read, self._deliver, timeouts=self.timeouts, program=PROGRAM, wake=self.woken.append,
            endpoints=lambda: list(self.bound),
        )  # fmt: skip

    def start(self) -> None:
        """Start the router, or start it again."""
        self.do(self.router.start())

    def restart(self) -> None:
        """Let go of HAProxy, as a process that dies does, and start anew."""
        self.do(self.router.close())
        self.router = self._new()
        self.start()

    def close(self) -> None:
        """End everything."""
        self.do(self.router.close())
        service.stop(self.settings, patience=0.1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the router's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def app(self, name: str, *dynos: DynoRow, **rows: Any) -> AppRows:
        """Make an app, and have its route in force. One web dyno is wanted unless told otherwise."""
        made = AppRows(f"id-{name}", name, **{"web_quantity": 1, "process_types": {"web": "serve"}, **rows})
        made.dynos = list(dynos)
        self.rows[made.app_id] = made
        self.sync(name)
        return made

    def sync(self, name: str) -> None:
        """Have the app's route in force."""
        self.do(self.router.sync(f"id-{name}"))

    def reload(self) -> None:
        """Start a new HAProxy beside the old one."""

        async def replace() -> None:
            async with self.router._lock:
                await self.router._replace()

        self.do(replace())

    def log(self, name: str, containing: str, timeout: float = 5) -> str:
        """The app's first log line that contains a text, waited for."""
        return until(
            lambda: next((one.text for one in self.lines if one.app_id == f"id-{name}" and containing in one.text), None), timeout
        )

    def _read(self, app_ids: Collection[str] | None) -> Sequence[AppRows]:
        return list(self.rows.values()) if app_ids is None else [self.rows[one] for one in app_ids if one in self.rows]

    async def _deliver(self, batch: Mapping[str, Sequence[Access]]) -> None:
        if self.store_is_away:
            raise ConnectionError
        for lines in batch.values():
            self.lines.extend(lines)


def until(look: Callable[[], T | None], timeout: float = 10) -> T:
    """Poll until there is something true to see; ``timeout`` is in an idle machine's seconds."""
    deadline = time.monotonic() + PATIENCE * timeout
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            pytest.fail("what the test waits for did not happen")
        time.sleep(0.01)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path for DAVIT_HOME."""
    directory = Path(tempfile.mkdtemp(prefix="dvr", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def davit() -> Iterator[Davit]:
    """A running router that the tests of a module share; each test has apps of its own."""
    directory = Path(tempfile.mkdtemp(prefix="dvr", dir="/tmp"))
    made = Davit(directory)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_davit(home: Path) -> Iterator[Davit]:
    """A running router of the test's own, which it may break."""
    made = Davit(home)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def tiny() -> Iterator[Callable[[], TinyApp]]:
    """Makes small apps."""
    apps: list[TinyApp] = []

    def make() -> TinyApp:
        apps.append(TinyApp())
        return apps[-1]

    yield make
    for app in apps:
        app.close()
