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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.crowd import until_nothing_left
from bench.dyno_start import available
from bench.parts import Parts, ended_whole
from bench.vm_figures import Served
from state.formation import MOST
from tests.e2e.conftest import running
from tests.e2e.world import TINY, App, Davit

SLEEP_AFTER = 3
"""Seconds without requests after which an app of the bench sleeps."""
PORT = 8080
"""Of servers that are no web dynos."""
PATIENCE = 600.0
LEAST_FREE = 1 << 30
"""Bytes that stay free: a host that is fuller than that begins to swap or to kill, and its figures are worth nothing."""
ROOM = "there is room"


def measure(
    isolations: list[str], seconds: int, most: int, filling: float, found: dict[str, Served], parts: Parts
) -> None:
    """All of it for each isolation, one after the other: the next begins when nothing of the one before is left.

    Args:
        isolations: those that this host can have.
        seconds: how long there is load.
        most, filling: dynos, and seconds, at which the filling of the host is given up.
        found: gets what is measured, when it is.
    """
    kept = {name: os.environ[name] for name in ("DAVIT_OSV_KERNEL", "DAVIT_OSV_MODULES") if name in os.environ}
    extra = {"DAVIT_SLEEP_AFTER": str(SLEEP_AFTER), "DAVIT_BOOT_TIMEOUT": "300", **kept}
    with ended_whole(running(Davit(Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp")), extra=extra))) as davit:
        for isolation in isolations:
            into = found[isolation] = Served()
            with parts.part(f"{isolation}, behind a Davit"):
                app = davit.create()
                app.deploy(same_in_many_types(most))
                app.cli("ps:sleep", "off")
                app.cli("ps:isolation", *(f"{type}={isolation}" for type in types(most)))
                until_up(app, isolation)
                _one(davit, app, isolation, seconds, most, filling, into, parts)
            gone = False
            with parts.part(f"{isolation}, its dynos' end"):
                destroy_all(davit)
                gone = True
            if not gone:
                break  # what still ends is load, and memory, of whatever is measured beside it


def _one(
    davit: Davit, app: App, isolation: str, seconds: int, most: int, filling: float, into: Served, parts: Parts
) -> None:
    with parts.part(f"{isolation}, requests through the router"):
        into.rate = requests_a_second(davit, app, seconds)
    if isolation == "microvm":
        with parts.part(f"{isolation}, ps:migrate"):
            with asking(app) as waits:
                said = app.cli("ps:migrate", "web.1").stderr
            into.pause, into.held = told(said, "stood still"), told(said, "were held")
            into.longest = max(waits)
    with parts.part(f"{isolation}, sleep and wake"):
        into.wake = woken(app)
    with parts.part(f"{isolation}, filling the host"):
        until_up(app, isolation)
        fill(app, isolation, most, filling, into)


def destroy_all(davit: Davit) -> None:
    """Destroy every app; returns when nothing of any is left.

    Raises:
        RuntimeError: something still is, after all patience.
    """
    with davit.client() as client:
        for app in client.get("/apps").raise_for_status().json():
            client.delete(f"/apps/{app['name']}").raise_for_status()
    until_nothing_left(davit)


def until_up(app: App, isolation: str) -> None:
    """Until its only dyno is up, as ``isolation``."""
    until(lambda: _are_up(app, 1, isolation), f"a dyno as {isolation}")


def until(check: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Poll.

    Raises:
        AssertionError: it is not so after ``seconds``.
    """
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not so within {seconds:.0f} s: {what}"
        time.sleep(0.1)


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
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found is not None and "Non-2xx" not in told, told
    return float(found[1])


def woken(app: App) -> float:
    """Seconds of the request that wakes the app: held by the router, answered by the dyno."""
    app.cli("ps:sleep", "on")
    try:
        until(lambda: [dyno["state"] for dyno in app.dynos()] == ["idle"], "it sleeps")
        began = time.perf_counter()
        answer = app.get()
        took = time.perf_counter() - began
        assert answer.status_code == 200, answer.text
        return took
    finally:
        app.cli("ps:sleep", "off")


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
            until(lambda: waits or asker.done(), "the first answer")
            yield waits
        finally:
            done.set()
        asker.result()


def fill(
    app: App, isolation: str, most: int, seconds: float, into: Served, *,
    free: Callable[[], int] = available, clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Scale up, an eighth at a time, until the host is full, one is refused, or there are ``most``, or ``seconds`` are over.

    Args:
        free: bytes of memory that the host can still give.
        clock: seconds.
    """
    before = left = free()
    end, into.dynos = clock() + seconds, 1
    try:
        while not into.why:
            wanted = min(most, into.dynos + max(1, into.dynos // 8))
            if into.dynos >= most:
                into.why = f"given up at {most}, {ROOM}"
            elif left < LEAST_FREE:
                into.why = "less than 1 GiB of memory is left"
            elif clock() >= end or not _grow(app, isolation, wanted, end, clock, into):
                into.why = into.why or f"given up after {seconds / 60:g} minutes, {ROOM}"
            else:
                into.dynos, left = wanted, free()
    finally:
        into.why = into.why or "cut short"
        if into.dynos > 1:
            into.each = (before - left) / (into.dynos - 1)
            if into.why.endswith(ROOM) and into.each > 0:
                into.room = into.dynos + max(0, left - LEAST_FREE) // into.each


def _grow(app: App, isolation: str, wanted: int, end: float, clock: Callable[[], float], into: Served) -> bool:
    """Whether so many came up before ``end``; why not, where that was not for want of time."""
    patience = clock() + PATIENCE
    try:
        done = app.cli("ps:scale", *spread(wanted), check=False)
        assert done.returncode == 0, done.stderr
        while not (up := _are_up(app, wanted, isolation)) and clock() < end:
            assert clock() < patience, f"it took more than {PATIENCE / 60:g} minutes"
            time.sleep(0.1)
        return up
    except (AssertionError, httpx.HTTPError, subprocess.SubprocessError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        into.why = f"the next did not come up: {said[-1][:100]}"
    return False


def _are_up(app: App, number: int, isolation: str) -> bool:
    return sum(dyno["state"] == "up" and dyno["isolation"] == isolation for dyno in app.dynos()) == number
