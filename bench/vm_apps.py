"""What the isolations are worth behind a whole Davit: requests a second through its router, how long the request that wakes an
app is held, how long visitors wait while a microVM moves, and how many dynos this host takes. :mod:`bench.vms` prints it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.dyno_start import available
from state.formation import MOST
from tests.e2e.conftest import running
from tests.e2e.world import TINY, App, Davit, eventually

SLEEP_AFTER = 3
"""Seconds without requests after which an app of the bench sleeps."""
PORT = 8080
"""Of servers that are no web dynos."""
PATIENCE = 600.0
LEAST_FREE = 1 << 30
"""Bytes that stay free: a host that is fuller than that begins to swap or to kill, and its figures are worth nothing."""


@dataclass
class Served:
    """Of one isolation: requests a second; seconds; dynos that run and bytes of the host that each takes, why there are no more,
    and for how many there is room when the host was not filled."""

    rate: float = 0.0
    wake: float = 0.0
    pause: float | None = None
    held: float | None = None
    longest: float | None = None
    dynos: int = 0
    each: float = 0.0
    why: str = ""
    room: float | None = None


def measure(isolations: list[str], seconds: int, most: int, filling: float) -> dict[str, Served]:
    """All of it for each isolation.

    Args:
        isolations: those that this host can have.
        seconds: how long there is load.
        most, filling: dynos, and seconds, at which the filling of the host is given up.
    """
    kept = {name: os.environ[name] for name in ("DAVIT_OSV_KERNEL", "DAVIT_OSV_MODULES") if name in os.environ}
    extra = {"DAVIT_SLEEP_AFTER": str(SLEEP_AFTER), "DAVIT_BOOT_TIMEOUT": "300", **kept}
    found: dict[str, Served] = {}
    with running(Davit(Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp")), extra=extra)) as davit:
        for isolation in isolations:
            app = davit.create()
            try:
                app.deploy(same_in_many_types(most))
                app.cli("ps:sleep", "off")
                app.cli("ps:isolation", *(f"{type}={isolation}" for type in types(most)))
                _until_up(app, 1, isolation)
                found[isolation] = _one(davit, app, isolation, seconds, most, filling)
            except AssertionError as error:
                print(f"{isolation}, behind a Davit: not measured: {str(error)[:300]}", flush=True)
            app.cli("apps:destroy", "--confirm", app.name)
    return found


def _one(davit: Davit, app: App, isolation: str, seconds: int, most: int, filling: float) -> Served:
    into = Served()
    into.rate = requests_a_second(davit, app, seconds)
    if isolation == "microvm":
        with asking(app) as waits:
            said = app.cli("ps:migrate", "web.1").stderr
        into.pause, into.held = told(said, "stood still"), told(said, "were held")
        into.longest = max(waits)
    into.wake = woken(app)
    fill(app, isolation, most, filling, into)
    return into


def types(dynos: int) -> list[str]:
    """The process types that so many dynos need: one has :data:`state.formation.MOST` of them at the most."""
    return ["web", *(f"more{number}" for number in range(1, -(-dynos // MOST)))]


def spread(dynos: int) -> list[str]:
    """So many dynos in words for ``ps:scale``, which fill one process type after the other."""
    return [f"{type}={min(MOST, dynos - number * MOST)}" for number, type in enumerate(types(dynos))]


def same_in_many_types(dynos: int) -> dict[str, str]:
    """The tiny app, whose server is what each of its process types runs; only web dynos are given a port."""
    server = TINY["app.py"].replace('os.environ["PORT"]', f'os.environ.get("PORT", {PORT})')
    return {"Procfile": "".join(f"{type}: python3 -u app.py\n" for type in types(dynos)), "app.py": server}


def requests_a_second(davit: Davit, app: App, seconds: int) -> float:
    """Through Davit's router, with 8 connections."""
    words = ["wrk", "-t1", "-c8", f"-d{seconds}s", "-H", f"Host: {app.name}.localhost", f"http://127.0.0.1:{davit.http}/"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found is not None and "Non-2xx" not in told, told
    return float(found[1])


def woken(app: App) -> float:
    """Seconds of the request that wakes the app: held by the router, answered by the dyno."""
    app.cli("ps:sleep", "on")
    eventually(lambda: [dyno["state"] for dyno in app.dynos()] == ["idle"], "it sleeps", PATIENCE)
    began = time.perf_counter()
    answer = app.get()
    took = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    app.cli("ps:sleep", "off")
    return took


def told(said: str, what: str) -> float:
    """Seconds of ``what``, from what ``ps:migrate`` says."""
    found = re.search(rf"{what} for ([\d.]+) ms", said)
    assert found is not None, said
    return float(found[1]) / 1000


@contextmanager
def asking(app: App) -> Iterator[list[float]]:
    """Ask again and again meanwhile; the seconds that each answer took.

    Raises:
        AssertionError: one of them was none.
    """
    waits: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.perf_counter()
            answer = app.get()
            assert answer.status_code == 200, f"a request failed meanwhile: {answer.status_code} {answer.text}"
            waits.append(time.perf_counter() - began)

    with ThreadPoolExecutor(1) as threads:
        asker = threads.submit(ask)
        try:
            eventually(lambda: waits or asker.done(), "the first answer", PATIENCE)
            yield waits
        finally:
            done.set()
        asker.result()


def fill(app: App, isolation: str, most: int, seconds: float, into: Served) -> None:
    """Scale up, an eighth at a time, until the host is full, one is refused, or there are ``most``, or ``seconds`` are over."""
    free, into.dynos, into.why = available(), 1, f"given up at {most}, there is room"
    end = time.monotonic() + seconds
    while into.dynos < most:
        if available() < LEAST_FREE:
            into.why = "less than 1 GiB of memory is left"
            break
        if time.monotonic() > end:
            into.why = f"given up after {seconds / 60:.0f} minutes, there is room"
            break
        wanted = min(most, into.dynos + max(1, into.dynos // 8))
        done = app.cli("ps:scale", *spread(wanted), check=False)
        try:
            assert done.returncode == 0, done.stderr
            _until_up(app, wanted, isolation)
        except AssertionError as error:
            into.why = f"the next did not come up: {str(error).strip().splitlines()[-1][:100]}"
            break
        into.dynos = wanted
    left = available()
    into.each = (free - left) / max(1, into.dynos - 1)
    if into.why.startswith("given up") and into.each > 0:
        into.room = into.dynos + max(0, left - LEAST_FREE) // into.each


def _until_up(app: App, number: int, isolation: str) -> None:
    def up() -> bool:
        return sum(dyno["state"] == "up" and dyno.get("isolation") == isolation for dyno in app.dynos()) == number

    eventually(up, f"{number} dynos as {isolation}", PATIENCE)
