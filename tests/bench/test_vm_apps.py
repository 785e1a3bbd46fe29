"""The bench behind a whole Davit: how it asks for more dynos than one process type can have, hears of requests that fail, fills a
host, and keeps what it has measured when something fails. Davit and its apps are stand-ins here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from bench import vm_apps
from bench.parts import Parts
from bench.vm_figures import Served
from builder.procfile import parse
from state.formation import MOST

GIB = 1 << 30
NEVER = 1e9


@pytest.mark.parametrize("dynos", [1, MOST - 1, MOST, MOST + 1, 10 * MOST])
def test_so_many_dynos_are_spread_over_process_types_that_the_app_has(dynos: int) -> None:
    asked = dict(words.split("=") for words in vm_apps.spread(dynos))
    assert sum(map(int, asked.values())) == dynos
    assert all(1 <= int(number) <= MOST for number in asked.values())
    files = vm_apps.same_in_many_types(10 * MOST)
    assert set(asked) <= set(parse(files["Procfile"].encode()).types)
    assert 'os.environ["PORT"]' not in files["app.py"], "no dyno but a web dyno is given one"


def test_a_request_that_fails_while_others_are_asked_fails_the_bench() -> None:
    statuses = iter([200, 200, 503])
    app = SimpleNamespace(get=lambda: SimpleNamespace(status_code=next(statuses), text="No dyno is there"))
    with pytest.raises(AssertionError, match="a request failed meanwhile: 503 No dyno"), vm_apps.asking(app) as waits:  # type: ignore[arg-type]
        while len(waits) < 2:
            pass


class Host:
    """A host on which each dyno takes as much, and an app whose dynos are up as soon as they are asked for."""

    def __init__(self, memory: int, each: int) -> None:
        self.memory, self.each, self.dynos_up, self.seconds = memory, each, 1, 0.0
        self.refuses: Callable[[int], None] = lambda number: None

    def free(self) -> int:
        return self.memory - self.each * (self.dynos_up - 1)

    def clock(self) -> float:
        return self.seconds

    def cli(self, verb: str, *changes: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        wanted = sum(int(change.partition("=")[2]) for change in changes)
        self.refuses(wanted)
        self.dynos_up, self.seconds = wanted, self.seconds + 10
        return subprocess.CompletedProcess(verb, 0, "", "")

    def dynos(self) -> list[dict[str, Any]]:
        return [{"state": "up", "isolation": "microvm"}] * self.dynos_up

    def fill(self, most: int, seconds: float) -> Served:
        vm_apps.fill(self, "microvm", most, seconds, into := Served(), free=self.free, clock=self.clock)  # type: ignore[arg-type]
        return into


def test_a_host_is_filled_until_a_gibibyte_is_left() -> None:
    full = Host(4 * GIB, GIB // 4).fill(100, NEVER)
    assert (full.dynos, full.each, full.why) == (14, GIB / 4, "less than 1 GiB of memory is left")
    assert full.room is None, "there are as many as there is room for"


def test_where_filling_is_given_up_it_says_for_how_many_there_is_room() -> None:
    by_number = Host(11 * GIB, GIB // 4).fill(5, NEVER)
    assert (by_number.dynos, by_number.why) == (5, "given up at 5, there is room")
    assert by_number.room == 41, "one that was there, and 40 for ten GiB"
    by_time = Host(11 * GIB, GIB // 4).fill(100, 30)
    assert (by_time.dynos, by_time.room, by_time.why) == (4, 41, "given up after 0.5 minutes, there is room")


def test_dynos_that_do_not_come_up_in_time_are_not_counted_and_keep_nobody_waiting() -> None:
    host = Host(11 * GIB, GIB // 4)
    up = host.dynos

    def slow() -> list[dict[str, Any]]:
        host.seconds += 0 if host.dynos_up < 4 else 1000
        return up()[: min(host.dynos_up, 3)]

    host.dynos = slow  # type: ignore[method-assign]
    found = host.fill(100, 60)
    assert (found.dynos, found.room, found.why) == (3, 41, "given up after 1 minutes, there is room")


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout("timed out"), subprocess.TimeoutExpired("davit", 1), AssertionError("no room")]
)
def test_a_host_that_takes_no_more_has_its_figures(error: Exception) -> None:
    def refuses(number: int) -> None:
        if number > 3:
            raise error

    host = Host(11 * GIB, GIB // 4)
    host.refuses = refuses
    found = host.fill(100, NEVER)
    assert (found.dynos, found.each, found.room) == (3, GIB / 4, None)
    assert found.why.startswith("the next did not come up: ")


def test_filling_that_is_interrupted_has_its_figures() -> None:
    def refuses(number: int) -> None:
        if number > 3:
            raise KeyboardInterrupt

    host = Host(11 * GIB, GIB // 4)
    host.refuses = refuses
    with pytest.raises(KeyboardInterrupt):
        vm_apps.fill(host, "microvm", 100, NEVER, into := Served(), free=host.free, clock=host.clock)  # type: ignore[arg-type]
    assert (into.dynos, into.each, into.why) == (3, GIB / 4, "cut short")


class Davit:
    """Which apps there are, and what was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def create(self) -> Any:
        return SimpleNamespace(deploy=lambda files: None, cli=lambda *words: self.done.append(words[0]))


@pytest.fixture
def davit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Davit:
    made = Davit()
    monkeypatch.setattr(vm_apps.tempfile, "mkdtemp", lambda **_: str(tmp_path))

    @contextmanager
    def running(world: object) -> Iterator[Davit]:
        yield made
        made.done.append("down")

    def fill(app: object, isolation: str, most: int, seconds: float, into: Served) -> None:
        into.dynos = 7
        made.done.append(f"filled as {isolation}")

    monkeypatch.setattr(vm_apps, "running", running)
    monkeypatch.setattr(vm_apps, "until_up", lambda app, isolation: None)
    monkeypatch.setattr(vm_apps, "requests_a_second", lambda davit, app, seconds: 1000.0)
    monkeypatch.setattr(vm_apps, "woken", lambda app: 0.5)
    monkeypatch.setattr(vm_apps, "fill", fill)
    monkeypatch.setattr(vm_apps, "destroy_all", lambda davit: made.done.append("all gone"))
    return made


def measure(isolations: list[str]) -> tuple[dict[str, Served], list[str]]:
    found: dict[str, Served] = {}
    vm_apps.measure(isolations, 1, 5, 60, found, parts := Parts())
    return found, parts.failed


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout("timed out"), subprocess.CalledProcessError(1, "wrk"), AssertionError("no answer")]
)
def test_what_fails_takes_no_other_figure_along(davit: Davit, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def wakes_not(app: object) -> float:
        raise error

    monkeypatch.setattr(vm_apps, "woken", wakes_not)
    found, failed = measure(["container", "osv"])
    assert [(one.rate, one.wake, one.dynos) for one in found.values()] == [(1000.0, None, 7)] * 2
    assert len(failed) == 2 and failed[0].startswith("container, sleep and wake: not measured: ")


def test_an_isolation_is_measured_when_nothing_of_the_one_before_is_left(
    davit: Davit, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(["container", "osv"])
    told = [words for words in davit.done if words.startswith(("filled", "all", "down"))]
    assert told == ["filled as container", "all gone", "filled as osv", "all gone", "down"]

    def still_there(davit: object) -> None:
        raise RuntimeError("left behind: a cgroup")

    monkeypatch.setattr(vm_apps, "destroy_all", still_there)
    found, failed = measure(["container", "osv"])
    assert list(found) == ["container"], "beside what still ends nothing is measured"
    assert failed == ["container, its dynos' end: not measured: RuntimeError: left behind: a cgroup"]
