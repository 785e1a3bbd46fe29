"""The bench of isolations: its figures, what it takes away when something fails, and what is printed when it is interrupted.
Drivers and dynos are stand-ins here."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import vm_apps, vms
from bench.parts import Parts, ended_whole
from bench.tables import Figure
from bench.vm_figures import Found, Measured, Served, figures

MIB = 1 << 20


def by_name(found: Found) -> dict[str, Figure]:
    return {figure.what: figure for figure in figures(found)}


def test_virtual_machines_stand_beside_the_container_and_say_how_they_ran() -> None:
    found = Found(
        {"container": Measured([0.1, 0.3, 0.2], memory=10 * MIB), "microvm": Measured([4.0], memory=260 * MIB, pause=0.01)},
        {"container": Served(rate=2000.0, each=2.0 * MIB), "microvm": Served(rate=500.0, each=100.0 * MIB)},
        {"microvm": "TCG"},
    )
    shown = by_name(found)
    assert shown["container: start to the first 200"] == Figure("vms", "container: start to the first 200", "200.0 ms")
    start = shown["microvm, TCG: start to the first 200"]
    assert (start.value, start.beside, start.ratio) == ("4.00 s", "200.0 ms", 20.0)
    assert shown["microvm, TCG: requests a second through the router"].ratio == 0.25
    assert shown["microvm, TCG: of the host's memory, each of them"].ratio == 50
    assert shown["microvm, TCG: memory beyond a container's"].value == "250.0 MiB"
    assert shown["microvm, TCG: pause of a move to another QEMU"].value == "10.0 ms"


def test_memory_that_stands_beside_nothing_is_not_said_to_be_beyond_a_containers() -> None:
    """As with ``--only microvm``, and where the container could not be measured."""
    for alone in ({"microvm": Measured(memory=260 * MIB)}, {"container": Measured(), "microvm": Measured(memory=260 * MIB)}):
        shown = by_name(Found(alone))
        assert shown["microvm: memory of its own, the server's and all of QEMU"].value == "260.0 MiB"
        assert not any("beyond" in what for what in shown)


def test_what_was_not_measured_has_no_figure() -> None:
    assert figures(Found()) == []
    assert figures(Found({"microvm": Measured(starts=[1.0])}, {"microvm": Served(wake=0.5)})) == [
        Figure("vms", "microvm: start to the first 200", "1.00 s"),
        Figure("vms", "microvm: the request that wakes it, held and answered", "500.0 ms"),
    ]


def test_the_images_of_each_isolation_are_told_also_where_there_is_none() -> None:
    alone = {"container": Measured(), "microvm": Measured(), "osv": Measured(image=0.02, root=1.5)}
    shown = by_name(Found(alone, acceleration={"microvm": "KVM", "osv": "KVM"}, seal=0.01, slug_mib=20.4))
    sealed = shown["the slug sealed, once for all isolations, each MB"]
    assert (sealed.value, sealed.beside) == ("10.0 ms", "a slug of 20 MiB")
    for isolation in ("container", "microvm, KVM"):
        assert shown[f"{isolation}: its image of the slug"].value == "none: it mounts the sealed slug"
    assert shown["osv, KVM: its image of the slug, each MB"].value == "20.0 ms"


class Dyno:
    """Does what it is told, but for what fails."""

    def __init__(self, fails: str) -> None:
        self.fails, self.there = fails, True
        self.cgroup = SimpleNamespace(pids=list)

    def __getattr__(self, name: str) -> Any:
        async def done(*words: object) -> float:
            if name == "suspend":
                assert isinstance(words[0], Path)
                words[0].mkdir()
            if name == self.fails:
                raise OSError(f"no {name} today")
            return 0.01

        return done

    async def remove(self) -> None:
        self.there = False


class Driver:
    """Its dynos."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.dynos: list[Dyno] = []

    async def start(self, spec: object) -> Dyno:
        self.dynos.append(Dyno(self.fails))
        return self.dynos[-1]

    async def resume(self, spec: object, snapshot: Path) -> Dyno:
        if self.fails == "resume":
            raise OSError("no resume today")
        return await self.start(spec)


@pytest.mark.parametrize("fails", ["", "until_up", "signal", "update", "migrate", "suspend", "resume"])
def test_whatever_fails_no_dyno_and_no_file_stays_and_the_rest_is_measured(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def until_up(dyno: Dyno) -> None:
        if fails == "until_up":
            raise TimeoutError("no answer within 300 seconds")

    monkeypatch.setattr(vms, "until_up", until_up)
    monkeypatch.setattr(vms.tempfile, "mkdtemp", lambda **_: (tmp_path / "aside").mkdir() or str(tmp_path / "aside"))
    driver = Driver(fails)
    asyncio.run(vms.measure(driver, "microvm", tmp_path, 2, into := Measured(), parts := Parts()))  # type: ignore[arg-type]
    assert driver.dynos and not any(dyno.there for dyno in driver.dynos)
    assert not (tmp_path / "aside").exists()
    measured = {name for name, value in vars(into).items() if value not in (None, [])}
    everything = {"starts", "stops", "memory", "grow", "shrink", "pause", "aside", "resumed"}
    missing = {
        "": set(), "until_up": everything, "signal": {"stops"}, "update": {"grow", "shrink"}, "migrate": {"pause"},
        "suspend": {"aside", "resumed"}, "resume": {"resumed"},
    }  # fmt: skip
    assert measured == everything - missing[fails]
    assert bool(parts.failed) == bool(fails)


@pytest.fixture
def own_handler() -> Iterator[None]:
    """Nothing of the test's own outlives it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_handler")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_tells_what_it_has_measured(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def alone(wanted: object, runs: int, found: Found, parts: Parts) -> None:
        found.alone["container"] = Measured(starts=[0.2])

    def behind_a_davit(
        isolations: list[str], seconds: int, most: int, filling: float, served: dict[str, Served], parts: Parts
    ) -> None:
        assert threading.current_thread() is threading.main_thread(), "no interruption reaches another"
        served["container"] = Served(rate=1500.0)
        os.kill(os.getpid(), number)
        threading.Event().wait(60)
        raise AssertionError("it was not interrupted")

    monkeypatch.setattr(vms, "alone", alone)
    monkeypatch.setattr(vm_apps, "measure", behind_a_davit)
    monkeypatch.setattr("sys.argv", ["bench.vms"])
    assert vms.main() == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "interrupted" in told
    assert "container: start to the first 200 | 200.0 ms" in told and "through the router | 1500/s" in told


@pytest.mark.usefixtures("own_handler")
def test_an_interruption_takes_dynos_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def until_up(dyno: Dyno) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    monkeypatch.setattr(vms, "until_up", until_up)
    monkeypatch.setattr("sys.argv", ["bench.vms", "--most", "0"])
    driver = Driver("")

    async def alone(wanted: object, runs: int, found: Found, parts: Parts) -> None:
        await vms.measure(driver, "microvm", tmp_path, runs, Measured(), parts)  # type: ignore[arg-type]

    monkeypatch.setattr(vms, "alone", alone)
    assert vms.main() == 1
    assert [dyno.there for dyno in driver.dynos] == [False], "no further one was started"


@pytest.mark.usefixtures("own_handler")
def test_what_a_bench_started_is_ended_whole_however_often_it_is_interrupted() -> None:
    ended: list[str] = []

    @contextmanager
    def davit() -> Iterator[str]:
        try:
            yield "a Davit"
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
                ended.append("went on")

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), ended_whole(davit()) as started:
        assert started == "a Davit"
        raise KeyboardInterrupt
    assert ended == ["went on", "went on"]
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.default_int_handler
