"""What is done with a microVM that fails in the middle of something, with imitations of QEMU and of the guest agent."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.config import Timeouts
from runtime import applog, cgroups, scratch
from runtime.apart import apart
from runtime.children import start_time
from runtime.driver import DynoSpec, Exit, Limits, Unsupported
from runtime.dynodir import DynoDirectory, Record, boot_id
from runtime.formation import HOLD_SECONDS
from runtime.host import lives
from runtime.microvm import acceleration, agent, moving, protocol, pump, resize
from runtime.microvm import driver as microvm_driver
from runtime.microvm import dyno as microvm
from runtime.microvm.agent import Agent, GuestFailed, Streams
from runtime.microvm.driver import Launch
from runtime.microvm.dyno import MicroVm, StartFailed
from runtime.microvm.kernel import Kernel
from runtime.microvm.machine import FORM, MIB, Machine
from runtime.microvm.moving import MoveFailed
from runtime.microvm.promises import Promises
from runtime.microvm.protocol import Order
from runtime.network import NetworkFailed
from runtime.qmp import Monitor, MonitorFailed
from tests.e2e.errors_page import assert_says
from tests.runtime.imitation_qemu import LIMITS, Imitation, ImitationDriver, ended


def play(home: Path, story: Callable[[ImitationDriver, MicroVm, Imitation], Coroutine[Any, Any, None]]) -> None:
    """A dyno runs, and ``story`` happens to it."""

    async def whole() -> None:
        driver = ImitationDriver(home)
        dyno, qemu = await driver.start_imitation()
        with ended(qemu):
            try:
                await story(driver, dyno, qemu)
            finally:
                dyno.let_go()
                for other in driver.others.values():
                    other.end()

    asyncio.run(asyncio.wait_for(whole(), 240))




def no(reason: str) -> Callable[[dict[str, Any]], Any]:
    """QEMU refuses."""

    def answer(arguments: dict[str, Any]) -> Any:
        raise RuntimeError(reason)

    return answer


async def begin_move(driver: ImitationDriver, dyno: MicroVm, monkeypatch: pytest.MonkeyPatch) -> Imitation:
    """The other machine is there."""
    launch, twin = await driver.twin(dyno)

    def made(driver: object, dyno: object, incoming: int) -> Any:
        os.close(incoming)
        return launch

    monkeypatch.setattr(moving, "_twin", made)
    return twin


async def is_told_to_end(machine: Imitation) -> None:
    """Return once its guest has been told a signal."""
    while bytes([protocol.SIGNAL]) not in machine.told:
        await asyncio.sleep(0.01)


def holding(events: list[str]) -> Callable[[], Any]:
    """A hold that writes down when it began and ended."""

    @asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        events.append("held")
        try:
            yield
        finally:
            events.append("let go")

    return hold


class TestMoving:
    def test_requests_are_held_from_the_stop_until_it_runs_again_and_the_pause_is_this_moves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            events: list[str] = []
            qemu.say("STOP", when=1.0)  # of an earlier attempt
            qemu.answers["stop"] = lambda _: (events.append("stop"), qemu.say("STOP", when=100.0), {})[2]
            twin.answers["cont"] = lambda _: (events.append("cont"), twin.say("RESUME", when=100.5), {})[2]
            await dyno.monitor.execute("query-status")  # type: ignore[union-attr]
            assert await dyno.migrate(holding(events)) == 0.5
            assert events == ["held", "stop", "cont", "let go"]
            assert dyno.pid == twin.process.pid and qemu.gone
            assert "cont" not in qemu.asked and not dyno.ended

        play(tmp_path, story)

    @pytest.mark.parametrize("quick", [False, True], ids=["as ever", "nothing changes meanwhile"])
    def test_with_kvm_it_runs_until_requests_are_held_and_only_the_rest_is_to_be_sent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
    ) -> None:
        """QEMU is an imitation: no machine on which this runs lets a guest boot with KVM."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["kvm"] = True
            twin = await begin_move(driver, dyno, monkeypatch)
            events: list[str] = []
            states = [
                {"status": "active", "ram": {"dirty-sync-count": 1}, "expected-downtime": 0},
                {"status": "active", "ram": {"dirty-sync-count": 2}, "expected-downtime": 900},
                {"status": "active", "ram": {"dirty-sync-count": 3}, "expected-downtime": 40},
                {"status": "pre-switchover"},
                {"status": "pre-switchover"},
                {"status": "completed"},
            ]
            del states[1 : 3 if quick else 1]

            def state(_: dict[str, Any]) -> dict[str, Any]:
                told = states.pop(0)
                events.append(str(told.get("expected-downtime", told["status"])))
                return told

            def limited(arguments: dict[str, Any]) -> dict[str, Any]:
                events.append(f"limit {arguments['downtime-limit']}")
                return {}

            qemu.answers["query-migrate"] = state
            qemu.answers["migrate-set-parameters"] = limited
            qemu.answers["migrate-continue"] = lambda _: (events.append("continue"), qemu.say("STOP"), {})[2]
            twin.answers["cont"] = lambda _: (events.append("cont"), twin.say("RESUME"), {})[2]
            await dyno.migrate(holding(events))
            if quick:
                assert events[:4] == ["limit 1", "0", "pre-switchover", "held"]
            else:
                assert events[:7] == ["limit 1", "0", "900", "40", "held", "limit 100", "pre-switchover"]
            assert events[-5:] == ["continue", "pre-switchover", "completed", "cont", "let go"] and events.count("held") == 1
            assert "stop" not in qemu.asked and dyno.pid == twin.process.pid

        play(tmp_path, story)

    def test_another_machine_that_cannot_be_made_leaves_nothing_open(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(MoveFailed, match="runs on where it was"):  # an imitation has none of a machine's descriptors
                await dyno.migrate(holding([]))
            assert len(os.listdir("/proc/self/fd")) <= before and not dyno.ended

        play(tmp_path, story)

    @pytest.mark.row("microvm-move")
    def test_once_it_was_told_to_run_at_the_other_end_it_runs_nowhere_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both machines hold the same disk."""
        monkeypatch.setattr(moving, "ANSWER_SECONDS", 0.5)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            twin.agent_answers = False
            with pytest.raises(MoveFailed, match="does not answer any more; it is ended") as failed:
                await dyno.migrate(holding([]))
            assert_says("microvm-move", failed.value.message)
            exit = await dyno.wait()
            assert exit.status == 137 and "since it was moved" in exit.why
            assert "cont" in twin.asked and "cont" not in qemu.asked
            assert qemu.gone

        play(tmp_path, story)

    def test_when_the_other_end_will_not_run_it_ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            twin.answers["cont"] = no("I cannot")
            with pytest.raises(MoveFailed, match="did not run there: QEMU says: I cannot"):
                await dyno.migrate(holding([]))
            assert (await dyno.wait()).status == 137 and "cont" not in qemu.asked

        play(tmp_path, story)

    def test_a_move_that_fails_before_leaves_it_running_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            qemu.answers["migrate"] = no("no way")
            events: list[str] = []
            with pytest.raises(MoveFailed, match="runs on where it was: QEMU says: no way"):
                await dyno.migrate(holding(events))
            assert events == ["held", "let go"] and qemu.status == "running" and not dyno.ended
            assert "cont" not in twin.asked and dyno.pid == qemu.process.pid

        play(tmp_path, story)

    def test_one_whose_other_end_dies_meanwhile_is_told_at_once_and_runs_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As long as anybody else held that end open, what is sent there would wait for ever."""
        pairs: list[tuple[socket.socket, socket.socket]] = []
        pair = socket.socketpair
        monkeypatch.setattr(moving, "socket", SimpleNamespace(socketpair=lambda: (pairs.append(pair()), pairs[-1])[1]))

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            await begin_move(driver, dyno, monkeypatch)  # its own copy is closed, as if it had ended

            def sends(_: dict[str, Any]) -> dict[str, Any]:
                try:
                    with suppress(BlockingIOError):
                        pairs[0][0].send(b"its memory", socket.MSG_DONTWAIT)
                except BrokenPipeError as error:
                    return {"status": "failed", "error-desc": error.strerror}
                return {"status": "active"}

            qemu.answers["query-migrate"] = sends
            with pytest.raises(MoveFailed, match=r"runs on where it was: its memory could not be sent: Broken pipe"):
                await dyno.migrate(holding([]))
            assert qemu.status == "running" and not dyno.ended and dyno.pid == qemu.process.pid

        play(tmp_path, story)

    @pytest.mark.parametrize("what", ["moved", "put aside"])
    def test_one_that_qemu_does_not_let_run_on_at_once_is_told_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            await begin_move(driver, dyno, monkeypatch)

            def begins(_: dict[str, Any]) -> None:
                qemu.status = "finish-migrate"
                raise RuntimeError("no way")

            def goes_on(_: dict[str, Any]) -> dict[str, Any]:
                if qemu.asked.count("cont") < 3:
                    raise RuntimeError("Migration is not finalized yet")
                qemu.status = "running"
                return {}

            qemu.answers.update({"migrate": begins, "cont": goes_on})
            with pytest.raises(MoveFailed, match=r"runs on.*no way"):
                await (dyno.migrate(holding([])) if what == "moved" else dyno.suspend(tmp_path / "aside"))
            assert qemu.status == "running" and qemu.asked.count("cont") == 3 and not dyno.ended

        play(tmp_path, story)

    @pytest.mark.parametrize("status", ["internal-error", "gone"])
    def test_one_that_will_never_run_again_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
    ) -> None:
        monkeypatch.setattr(moving, "RUN_ON_SECONDS", 200)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.status = status
            qemu.answers["cont"] = no("Resetting the Virtual Machine is required")
            if status == "gone":
                qemu.answers["query-status"] = no("it has gone")
            assert dyno.monitor is not None
            await moving.run_on(dyno.monitor)
            assert "cont" not in qemu.asked

        play(tmp_path, story)

    def test_one_whose_requests_cannot_be_held_runs_on_before_it_gets_any(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["kvm"] = True
            twin = await begin_move(driver, dyno, monkeypatch)
            events: list[str] = []
            qemu.answers["query-migrate"] = lambda _: {"status": "pre-switchover"}
            qemu.answers["cont"] = lambda _: (events.append("cont"), setattr(qemu, "status", "running"), {})[2]

            @asynccontextmanager
            async def hold() -> AsyncIterator[str]:
                try:
                    yield "the router is away"
                finally:
                    events.append("let go")

            with pytest.raises(MoveFailed, match="runs on where it was: the router is away"):
                await dyno.migrate(hold)
            assert events == ["cont", "let go"] and "migrate-continue" not in qemu.asked
            assert not dyno.ended and dyno.pid == qemu.process.pid and "cont" not in twin.asked

        play(tmp_path, story)

    def test_one_that_has_moved_is_looked_after_also_when_its_requests_are_not_let_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)

            @asynccontextmanager
            async def hold() -> AsyncIterator[None]:
                yield
                raise RuntimeError("nobody foresaw this")

            assert await dyno.migrate(hold) >= 0
            await dyno.look()  # it answers
            await dyno.signal(signal.SIGTERM)
            await is_told_to_end(twin)

        play(tmp_path, story)

    def test_a_signal_reaches_it_where_it_arrives_and_nobody_waits_for_that(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)

            @asynccontextmanager
            async def hold() -> AsyncIterator[None]:
                await asyncio.wait_for(dyno.signal(signal.SIGTERM), 60)
                yield

            await dyno.migrate(hold)
            await is_told_to_end(twin)
            assert bytes([protocol.SIGNAL]) not in qemu.told

        play(tmp_path, story)

    def test_an_emulated_machine_stays_one_when_the_host_has_kvm_by_now(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A "no" to KVM is doubted when Davit starts; the dynos that run are what they were: they stand still while they move,
        and may take what emulating takes."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            driver.kvm = True
            assert not moving.described(driver, dyno.record, incoming=True).kvm
            twin = await begin_move(driver, dyno, monkeypatch)
            twin.answers["qom-get"] = lambda _: 0
            await dyno.migrate(holding([]))
            assert qemu.asked.index("stop") < qemu.asked.index("migrate")
            await dyno.update(replace(LIMITS, memory=64 * MIB))
            assert driver.accelerated and not any(driver.accelerated)

        play(tmp_path, story)

    def test_its_clock_is_set_where_it_has_arrived(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It stood still as long as it did; and an emulated one does for all of the move."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            await dyno.migrate(holding([]))
            assert bytes([protocol.APPLY]) in twin.told

        play(tmp_path, story)

    @pytest.mark.row("microvm-move")
    def test_one_for_which_there_is_no_room_twice_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        moving.refuse_without_memory("web.1", 300 * MIB, 300 * MIB + moving.RESERVE_MEMORY)
        monkeypatch.setattr(moving, "available_memory", lambda: 400 * MIB)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.cgroup.memory = lambda: 300 * MIB  # type: ignore[method-assign]
            with pytest.raises(Unsupported, match=r"its 300 MB .* has 400 MB left, of which it keeps 256") as refused:
                await dyno.migrate(holding([]))
            assert_says("microvm-move", refused.value.message)
            assert qemu.asked == ["qmp_capabilities"] and not dyno.ended

        play(tmp_path, story)

    def test_one_that_stands_still_on_a_full_disk_stays_where_it_is(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.status = "io-error"
            async with dyno.moving:  # nobody else has it write on
                with pytest.raises(Unsupported, match=r"stands still because the disk .* is full"):
                    await moving.move(driver, dyno, holding([]))
            assert "migrate" not in qemu.asked and not dyno.ended

        play(tmp_path, story)

    def test_of_two_at_the_same_time_the_one_for_which_there_is_no_room_beside_the_other_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(moving, "available_memory", lambda: 300 * MIB + 300 * MIB + moving.RESERVE_MEMORY - 1)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            other, another = await driver.start_imitation("other")
            for one in (dyno, other):
                one.cgroup.memory = lambda: 300 * MIB  # type: ignore[method-assign]
            twin = await begin_move(driver, dyno, monkeypatch)
            refused: list[str] = []

            @asynccontextmanager
            async def hold() -> AsyncIterator[None]:
                with pytest.raises(Unsupported, match="cannot be moved now and runs on") as failed:
                    await other.migrate(holding([]))
                refused.append(failed.value.message)
                yield

            with ended(another):
                await dyno.migrate(hold)
                assert refused and dyno.pid == twin.process.pid and driver.memory.outstanding() == 0
                other.let_go()

        play(tmp_path, story)

    def test_one_stays_when_what_starts_beside_it_is_about_to_take_the_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(moving, "available_memory", lambda: 300 * MIB + LIMITS.memory + moving.RESERVE_MEMORY)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.cgroup.memory = lambda: 300 * MIB  # type: ignore[method-assign]

            async def start(spec: object) -> Any:
                with pytest.raises(Unsupported, match="cannot be moved now and runs on"):
                    await dyno.migrate(holding([]))

            await driver._promised(start, SimpleNamespace(id="new", app_id="app-id", limits=LIMITS))  # type: ignore[arg-type]
            assert driver.memory.outstanding() == 0

        play(tmp_path, story)

    @pytest.mark.row("microvm-move")
    def test_one_that_would_stand_still_for_longer_than_requests_can_be_held_goes_on_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longest = HOLD_SECONDS + moving.STILL_SECONDS + moving.RUN_ON_SECONDS
        assert longest < Timeouts().hold - 10 and Timeouts().first_byte > moving.STILL_SECONDS
        monkeypatch.setattr(moving, "STILL_SECONDS", 0.3)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            twin.status = "inmigrate"  # for ever
            events: list[str] = []
            with pytest.raises(MoveFailed, match=r"runs on where it was: .* within the 0.3 seconds") as failed:
                await dyno.migrate(holding(events))
            assert_says("microvm-move", failed.value.message)
            assert events == ["held", "let go"] and qemu.status == "running" and not dyno.ended
            assert "cont" not in twin.asked and dyno.pid == qemu.process.pid

        play(tmp_path, story)

    def test_one_whose_memory_would_fill_the_disk_is_not_written_down(self, tmp_path: Path) -> None:
        assert moving.available_memory() > 0
        moving.refuse_without_disk("web.1", 300 * MIB, 0, 300 * MIB + moving.RESERVE_DISK)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.cgroup.memory = lambda: 1 << 60  # type: ignore[method-assign]
            with pytest.raises(MoveFailed, match=r"could not be put aside and runs on: its \d+ MB of memory do not fit"):
                await dyno.suspend(tmp_path / "aside")
            dyno.cgroup.memory = lambda: 0  # type: ignore[method-assign]
            driver.disk.give("another", 1 << 60, lambda: 0)  # which is just being written
            with pytest.raises(MoveFailed, match="do not fit"):
                await dyno.suspend(tmp_path / "aside")
            assert "stop" not in qemu.asked and not dyno.ended and not (tmp_path / "aside").exists()
            assert driver.disk.outstanding() == 1 << 60

        play(tmp_path, story)

    def test_its_writable_layer_is_put_aside_without_a_copy_and_counted_where_it_is_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = tmp_path / "held"
        held.write_bytes(os.urandom(3 * MIB))
        free = moving.RESERVE_DISK + 2 * MIB
        monkeypatch.setattr(moving.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        monkeypatch.setattr(moving, "_held_layer", lambda dyno: held)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["scratch"] = True
            with pytest.raises(MoveFailed, match=r"its 0 MB of memory and 3 MB of writable layer do not fit"):
                await dyno.suspend(tmp_path / "aside")
            assert not (tmp_path / "aside").exists() and not dyno.ended and driver.disk.outstanding() == 0
            os.link(held, driver.layer(dyno.spec_id))
            await dyno.suspend(tmp_path / "aside")
            assert (tmp_path / "aside/scratch").samefile(held)

        async def copied(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["scratch"] = True
            await dyno.suspend(tmp_path / "copied")
            assert (tmp_path / "copied/scratch").read_bytes() == held.read_bytes()
            assert not (tmp_path / "copied/scratch").samefile(held)

        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        play(tmp_path / "one", story)
        free += 2 * MIB
        play(tmp_path / "two", copied)

    @pytest.mark.row("microvm-attached")
    def test_one_to_which_a_command_is_attached_stays(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record = replace(dyno.record, fifos=False)  # as one whose own command somebody is attached to
            for asked, what in ((dyno.migrate(holding([])), "moved"), (dyno.suspend(tmp_path / "aside"), "put aside")):
                with pytest.raises(Unsupported, match=rf"cannot be {what} while a command is attached to it") as refused:
                    await asked
                assert_says("microvm-attached", refused.value.message)
            assert "stop" not in qemu.asked and not dyno.ended

        play(tmp_path, story)

    def test_a_nameless_layer_gets_a_name(self, tmp_path: Path) -> None:
        image = scratch.image(16 * MIB, tmp_path)
        moving.name_layer(image, tmp_path / "layer")
        assert os.path.samestat(os.fstat(image), (tmp_path / "layer").stat())
        moving.name_layer(image, tmp_path / "layer")  # it has one: nothing happens
        os.close(image)

    def test_another_qemu_is_told_before_anything_happens(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            driver.qemu_version = (8, 0, 1)
            with pytest.raises(Unsupported, match=r"runs in QEMU 7\.2\.0, and this host has 8\.0\.1"):
                await dyno.migrate(holding([]))

        play(tmp_path, story)

    @pytest.mark.row("microvm-move")
    @pytest.mark.parametrize("form", [None, FORM - 1], ids=["before there were any", "another"])
    def test_a_machine_that_another_davit_composed_is_told_before_anything_happens(self, tmp_path: Path, form: int | None) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["form"] = form
            with pytest.raises(Unsupported, match=r"web\.1 runs as another version of Davit composed it") as refused:
                await dyno.migrate(holding([]))
            assert_says("microvm-move", refused.value.message)
            with pytest.raises(Unsupported, match="another machine"):  # it could not be woken: whoever asked stops it, then
                await dyno.suspend(tmp_path / "snapshot")
            assert qemu.asked == ["qmp_capabilities"] and not dyno.ended and not (tmp_path / "snapshot").exists()

        play(tmp_path, story)

    def test_when_the_other_end_has_ended_and_may_have_run_it_goes_on_nowhere(self, tmp_path: Path) -> None:
        """Its runtime was killed in the middle of the move: the other may have written to the disk."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            before = replace(dyno.record, facts={**dyno.record.facts, "moving_to": [1 << 22, 0, 2]})
            dyno.record = before
            await moving.settle(driver, dyno)
            assert not dyno.ended and "cont" not in qemu.asked  # it had not sent everything away: it has never stopped
            dyno.record, qemu.status = before, "postmigrate"
            await moving.settle(driver, dyno)
            assert dyno.record.facts["moving_to"] is None and (await dyno.wait()).status == 137
            assert "cont" not in qemu.asked

        play(tmp_path, story)

    def test_a_machine_that_is_slow_to_answer_has_not_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def unanswered(path: Path) -> Any:
            raise MonitorFailed("It does not answer.")

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            monkeypatch.setattr(moving.Monitor, "connect", unanswered)
            assert not await moving._left(driver, dyno.record)
            qemu.end()
            assert await moving._left(driver, dyno.record)

        play(tmp_path, story)


class TestPuttingAside:
    """Its memory goes into a file for as long as QEMU and the disk take, which nobody else waits for."""

    def test_it_takes_none_of_the_threads_in_which_others_are_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # which is the imitated host's
            sending, sent = asyncio.Event(), asyncio.Event()

            async def slowly(monitor: object, descriptor: int) -> None:
                os.write(descriptor, b"its memory")
                sending.set()
                await sent.wait()

            monkeypatch.setattr(moving, "_send", slowly)
            asleep = asyncio.ensure_future(dyno.suspend(tmp_path / "aside"))
            await sending.wait()
            assert await asyncio.wait_for(driver.host.in_thread(lambda: "started"), 60) == "started"
            sent.set()
            await asleep
            assert (tmp_path / "aside" / "memory").read_bytes() == b"its memory"
            assert json.loads((tmp_path / "aside" / "machine.json").read_text())["size"] == 10

        play(tmp_path, story)

    def test_a_qemu_that_keeps_its_end_open_is_hung_up_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says that all has been sent; what is in it by then may be the app."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            kept: list[socket.socket] = []

            async def keeps(monitor: object, descriptor: int) -> None:
                kept.append(socket.socket(fileno=os.dup(descriptor)))

            monkeypatch.setattr(moving, "_send", keeps)
            monkeypatch.setattr(moving, "SECONDS", 0.3)
            with pytest.raises(MoveFailed, match=r"could not be put aside and runs on: its memory was not all there"):
                await dyno.suspend(tmp_path / "aside")
            assert qemu.status == "running" and not dyno.ended and not (tmp_path / "aside").exists()
            assert await asyncio.to_thread(kept[0].recv, 1) == b""
            kept[0].close()

        play(tmp_path, story)

    def test_a_qemu_that_sends_more_than_a_machine_has_fills_no_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["memory"] = 8 * MIB

            def flood(descriptor: int) -> None:
                while True:
                    os.write(descriptor, bytes(MIB))

            async def floods(monitor: object, descriptor: int) -> None:
                try:
                    await asyncio.to_thread(flood, descriptor)
                except OSError as error:
                    raise MonitorFailed(f"its memory could not be sent: {error.strerror}") from None

            monkeypatch.setattr(moving, "_send", floods)
            monkeypatch.setattr(moving, "BESIDE_MEMORY", MIB)
            with pytest.raises(MoveFailed, match=r"runs on: its QEMU sends more than the 9 MB that it can have"):
                await dyno.suspend(tmp_path / "aside")
            assert qemu.status == "running" and not dyno.ended and not (tmp_path / "aside").exists()

        play(tmp_path, story)

    def test_each_has_a_thread_of_its_own(self, tmp_path: Path) -> None:
        async def story() -> None:
            together = threading.Barrier(40)
            await asyncio.gather(*(apart(together.wait, 60) for _ in range(40)))
            with pytest.raises(FileNotFoundError):
                await apart((tmp_path / "nothing").read_bytes)

        asyncio.run(asyncio.wait_for(story(), 120))


def test_one_that_had_grown_before_it_slept_has_room_for_that_when_it_wakes(tmp_path: Path) -> None:
    driver = ImitationDriver(tmp_path)
    driver.host.admit = lambda record: None  # type: ignore[assignment, method-assign]
    driver.host.instance.uids = lambda slot: 0  # type: ignore[method-assign]
    stack = tmp_path / "stack"
    stack.touch()
    facts = {"memory": 224 * MIB, "plugged_memory": 512 * MIB}
    record = Record("woken", "app-id", "web.1", 1, "none", boot_id(), network=False, isolation="microvm", facts=facts)
    incoming = Machine("app/web.1", 224 * MIB, 1024 * MIB, 1, 2, slug=False, scratch=False, fifos=False, incoming=True)
    launch = Launch(record, DynoDirectory(tmp_path / "dynos/woken"), LIMITS, incoming, stack, None)
    driver.prepare(launch)
    for fd in launch.fds.values():
        os.close(fd)
    assert driver.limited == [736 * MIB]


def test_one_that_wakes_and_does_not_say_so_is_given_up_while_its_request_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started anew then; a guest that only works may be silent for far longer."""

    async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
        monkeypatch.setattr(driver, "order", lambda record, name, limits: Order(address="198.18.0.2/16"))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        deaf = Agent(ours)
        deaf.state = protocol.State(protocol.VERSION, "running", None, False)
        directory = DynoDirectory(driver.host.dynos / "dyno")
        launch = Launch(dyno.record, directory, LIMITS, moving.described(driver, dyno.record, incoming=True), tmp_path, None)
        launch.agent = deaf
        with pytest.raises(GuestFailed, match=r"does not answer within 0\.1 seconds"):
            await asyncio.wait_for(moving._wake(driver, launch, 0.1), 30)
        deaf.close()
        theirs.close()

    play(tmp_path, story)


def test_one_that_wakes_and_whose_agent_does_not_answer_is_given_up_while_its_request_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Timeouts.hold > 2 * moving.WAKE_SECONDS
    monkeypatch.setattr(moving, "WAKE_SECONDS", 0.3)

    async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
        (driver.directory / "woken").mkdir()
        asleep = Imitation(driver.directory / "woken", 1, "paused")
        asleep.agent_answers = False
        await asleep.open()
        driver.others[1] = asleep
        (tmp_path / "memory").touch()
        pid = asleep.process.pid
        record = replace(dyno.record, id="woken", pid=pid, started=start_time(pid), cgroup="/none/woken")
        incoming = moving.described(driver, record, incoming=True)
        launch = Launch(record, DynoDirectory(driver.host.dynos / "woken"), LIMITS, incoming, tmp_path, None)
        launch.directory.create(record)
        monkeypatch.setattr(moving, "_read", lambda *_: dict(record.facts))
        monkeypatch.setattr(moving, "_open_snapshot", lambda *_: None)
        monkeypatch.setattr(driver, "plan", lambda spec, incoming: launch)
        spec: Any = SimpleNamespace(name="web.1", network=False)
        with pytest.raises(StartFailed, match=r"its guest does not answer within 0\.3 seconds"):
            await asyncio.wait_for(moving.resume(driver, spec, tmp_path), 60)
        assert "cont" in asleep.asked and asleep.gone and not launch.directory.path.exists()

    play(tmp_path, story)


@pytest.mark.row("no-tap")
def test_one_that_gets_no_tap_is_not_started_and_leaves_nothing(tmp_path: Path) -> None:
    driver, stack = ImitationDriver(tmp_path), tmp_path / "stack"
    stack.touch()

    def tap(slot: int) -> int:
        raise NetworkFailed(f"The tap of slot {slot} could not be made: No such device.")

    host: Any = driver.host
    host.pool.reserve, host.admit, host.network = lambda: 1, lambda record: None, SimpleNamespace(tap=tap)
    host.instance.uids = lambda slot: 0
    driver.kernel = Kernel("1", tmp_path)
    spec = DynoSpec(
        "new", "web.1", "app", "app-id", stack, None, ["true"], {}, LIMITS, terminal=(24, 80), readonly=True, isolation="microvm"
    )
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NetworkFailed) as failed:
        asyncio.run(driver._start(spec))
    assert_says("no-tap", failed.value.message)
    assert driver.freed == [1] and not list(host.dynos.iterdir()) and not list(driver.directory.iterdir())
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_is_promised_and_has_been_taken_is_not_counted_twice() -> None:
    promises, taken = Promises(), [0]
    promises.give("a", 100, lambda: taken[0])
    seen: list[int] = []
    for taken[0] in (0, 70, 130):
        promises.give("b", 10, lambda: 0, seen.append)
        promises.take_back("b")
    assert seen == [100, 30, 0]


class TestFindingAgain:
    """Its runtime was killed, and the next takes it over."""

    @staticmethod
    def left(driver: ImitationDriver, dyno: MicroVm) -> Record:
        """What is known of it afterwards."""
        dyno.let_go()
        driver.host.watch = lambda pid: None  # type: ignore[method-assign]
        return dyno.record

    def test_one_that_was_just_waking_is_told_where_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else it answers where it was when it fell asleep, and nobody is routed there."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            monkeypatch.setattr(driver, "order", lambda record, name, limits: Order(address="198.18.0.2/16"))
            record = self.left(driver, dyno)
            record.facts["waking"] = True
            again = await driver._adopt(record, True)
            assert qemu.orders[0]["a"] == b"198.18.0.2/16" and not again.ended
            assert not json.loads((driver.host.dynos / "dyno" / "dyno.json").read_text())["facts"]["waking"]
            again.let_go()

        play(tmp_path, story)

    def test_one_that_had_just_moved_when_the_disk_was_full_is_where_it_went(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where it goes is written before it leaves; that it has arrived could not be."""
        write = DynoDirectory.write

        def full(directory: DynoDirectory, record: Record) -> None:
            if not record.facts["moving_to"]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(directory, record)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            twin = await begin_move(driver, dyno, monkeypatch)
            monkeypatch.setattr(DynoDirectory, "write", full)
            await dyno.migrate(holding([]))
            monkeypatch.undo()
            self.left(driver, dyno)
            known = DynoDirectory(driver.host.dynos / "dyno").read()
            monkeypatch.setattr(cgroups.Cgroup, "holds", lambda group, pid: start_time(pid) is not None)
            assert known is not None and qemu.gone and lives(known)
            again = await driver._adopt(known, True)
            assert again.pid == twin.process.pid and not again.ended
            again.let_go()

        play(tmp_path, story)

    @pytest.mark.parametrize("moved", [False, True], ids=["put aside", "moved"])
    def test_one_that_was_just_going_is_told_to_run_on_until_qemu_lets_it(self, tmp_path: Path, moved: bool) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            record = self.left(driver, dyno)
            record.facts["moving_to"] = [1 << 22, 0, 2] if moved else None
            qemu.status = "finish-migrate"

            def goes_on(_: dict[str, Any]) -> dict[str, Any]:
                if qemu.asked.count("cont") < 3:
                    raise RuntimeError("Migration is not finalized yet")
                qemu.status = "running"
                return {}

            qemu.answers["cont"] = goes_on
            again = await driver._adopt(record, True)
            assert qemu.status == "running" and again.agent is not None and not again.ended
            again.let_go()

        play(tmp_path, story)

    def test_one_that_moved_and_is_slow_to_say_where_it_is_holds_up_nobody(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(microvm, "FOUND_SECONDS", 0.1)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            launch, twin = await driver.twin(dyno)
            record, pids, says = self.left(driver, dyno), (qemu.process.pid, twin.process.pid), asyncio.Event()
            record.facts["moving_to"] = [launch.record.pid, launch.record.started, launch.generation]
            monkeypatch.setattr(cgroups.Cgroup, "holds", lambda group, pid: pid in pids)
            monkeypatch.setattr(cgroups.Cgroup, "pids", lambda group: [pid for pid in pids if start_time(pid) is not None])

            async def left(driver: object, record: object) -> bool:
                await says.wait()
                return True

            monkeypatch.setattr(moving, "_left", left)
            again = await asyncio.wait_for(driver._adopt(record, True), 60)
            assert not again.ended and again.pid == qemu.process.pid
            await again.signal(signal.SIGTERM)
            says.set()
            await is_told_to_end(twin)
            assert again.pid == twin.process.pid and not again.ended
            while not qemu.gone:
                await asyncio.sleep(0.01)
            known = DynoDirectory(driver.host.dynos / "dyno").read()
            assert known is not None and known.pid == twin.process.pid and not known.facts["moving_to"] and not again.ended
            again.let_go()

        play(tmp_path, story)

    def test_one_that_does_not_answer_holds_up_nobody_and_is_found_when_it_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(microvm, "FOUND_SECONDS", 0.1)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            record = self.left(driver, dyno)
            qemu.agent_answers = False
            again = await driver._adopt(record, True)
            assert not again.ended and again.agent is None
            await asyncio.wait_for(again.signal(signal.SIGTERM), 60)
            qemu.agent_answers = True
            while bytes([protocol.SIGNAL]) not in qemu.told:
                await asyncio.sleep(0.01)
            assert qemu.agent is not None
            qemu.agent.write(protocol.frame(protocol.EXITED, 0, struct.pack("<iB", 3, 0)))
            assert await again.wait() == Exit(3)
            again.let_go()

        play(tmp_path, story)

    def test_one_that_hangs_is_ended_without_davits_start_waiting_for_that(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(microvm, "FOUND_SECONDS", 0.1)
        monkeypatch.setattr(microvm_driver, "SILENCE", {False: 1.0})

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            record = self.left(driver, dyno)
            qemu.agent_answers = False
            again = await driver._adopt(record, True)
            assert not again.ended
            assert (await again.wait()).status == 137 and qemu.gone
            again.let_go()

        play(tmp_path, story)

    def test_one_that_stands_still_because_the_hosts_disk_is_full_is_found_also_while_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For longer than any other may be silent."""
        monkeypatch.setattr(microvm, "WATCH_SECONDS", 0.05)
        monkeypatch.setattr(microvm_driver, "SILENCE", {False: 0.1})
        said: list[str] = []
        monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: said.extend(texts))

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            record = self.left(driver, dyno)
            qemu.status, qemu.agent_answers = "io-error", False

            def tries(_: dict[str, Any]) -> dict[str, Any]:
                qemu.agent_answers = qemu.asked.count("cont") > 12
                return {}

            qemu.answers["cont"] = tries
            again = await asyncio.wait_for(driver._adopt(record, True), 60)
            assert not again.ended and again.agent is not None and len(said) == 1
            again.let_go()

        play(tmp_path, story)

    @pytest.mark.parametrize("moved", [False, True], ids=["as ever", "in the middle of a move"])
    @pytest.mark.parametrize("answer", [None, [], {"status": {}}], ids=["null", "a list", "a table"])
    def test_one_whose_qemu_answers_nonsense_is_ended_and_keeps_davit_from_nothing(
        self, tmp_path: Path, answer: Any, moved: bool
    ) -> None:
        """An app has broken out into it."""

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            record = self.left(driver, dyno)
            record.facts["moving_to"] = [1 << 22, 0, 2] if moved else None
            qemu.answers["query-status"] = lambda _: answer
            again = await driver._adopt(record, True)
            assert (await again.wait()).status == 137 and qemu.gone
            again.let_go()

        play(tmp_path, story)

    def test_one_that_is_not_found_for_a_reason_that_nobody_foresaw_is_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def settle(driver: object, dyno: object) -> None:
            raise ZeroDivisionError

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            record = self.left(driver, dyno)
            monkeypatch.setattr(moving, "settle", settle)
            again = await driver._adopt(record, True)
            assert (await again.wait()).status == 137 and qemu.gone
            again.let_go()

        play(tmp_path, story)


class TestItsEnd:
    @pytest.mark.row("microvm-gave-up")
    @pytest.mark.parametrize("reason", ["guest-reset", "guest-shutdown"])
    def test_a_kernel_that_gives_up_or_powers_off_is_a_crash_with_its_last_words(self, tmp_path: Path, reason: str) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.answers["ringbuf-read"] = lambda _: "Kernel panic - not syncing: Oops\nKernel Offset: disabled\n"
            qemu.say("SHUTDOWN", guest=True, reason=reason)
            exit = await dyno.wait()
            assert_says("microvm-gave-up", exit.why)
            assert exit.status == 134 and exit.why.endswith("powered off (Kernel panic - not syncing: Oops)")
            assert qemu.gone

        play(tmp_path, story)

    def test_a_killed_machine_whose_status_nobody_tells_is_a_crash_all_the_same(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            assert dyno._explain(None) == dyno._explain(0) == Exit(137)

        play(tmp_path, story)


class TestBoot:
    """A machine whose QEMU runs, and whose guest does not come up."""

    @staticmethod
    async def boot(driver: ImitationDriver, dyno: MicroVm, happens: Callable[[Imitation, Launch], None]) -> str:
        """The sentence with which its start fails, whatever happens to it meanwhile."""
        launch, twin = await driver.twin(dyno)
        await driver.launch(launch)
        twin.answers["ringbuf-read"] = lambda _: "Booting\nKernel panic - not syncing: No working init found.\n"
        happens(twin, launch)
        with pytest.raises(GuestFailed) as failed:
            await driver.reach(launch)
        told = await driver.failed(launch, "web.1", failed.value)
        assert isinstance(told, StartFailed) and twin.gone and driver.freed == [1]
        assert not twin.directory.exists() and not launch.directory.path.exists()
        return told.message

    @pytest.mark.row("microvm-boot")
    def test_a_guest_that_hangs_is_given_up_after_a_while(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(microvm_driver, "BOOT_SECONDS", {True: 0.5, False: 0.5})

        def hangs(twin: Imitation, launch: Launch) -> None:
            twin.agent_answers = False

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            said = await self.boot(driver, dyno, hangs)
            assert_says("microvm-boot", said)
            assert "does not answer within" in said and not dyno.ended

        play(tmp_path, story)

    @pytest.mark.row("microvm-boot")
    @pytest.mark.parametrize("how", ["its kernel gives up", "qemu is killed"])
    def test_one_that_ends_meanwhile_is_told_at_once_with_its_kernels_last_words(self, tmp_path: Path, how: str) -> None:
        def ends(twin: Imitation, launch: Launch) -> None:
            twin.agent_answers = False
            if how == "qemu is killed":
                twin.process.kill()
            else:
                twin.say("GUEST_PANICKED")

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            said = await self.boot(driver, dyno, ends)
            assert_says("microvm-boot", said)
            assert said.endswith("its machine ended while it booted (Kernel panic - not syncing: No working init found.).")

        play(tmp_path, story)


class TestWatchdog:
    @pytest.fixture(autouse=True)
    def hurried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(microvm, "WATCH_SECONDS", 0.05)
        monkeypatch.setattr(microvm, "ANSWER_SECONDS", 0.5)
        monkeypatch.setattr(microvm, "SILENCE", {False: 0.3})

    def test_a_guest_that_says_nothing_any_more_is_ended(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.agent_answers = False
            exit = await dyno.wait()
            assert exit.status == 137 and "has not answered for" in exit.why

        play(tmp_path, story)

    def test_a_machine_that_qemu_has_stopped_is_ended_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(microvm, "SILENCE", {False: 600.0})

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.status = "internal-error"
            assert "internal-error" in (await dyno.wait()).why

        play(tmp_path, story)

    @pytest.mark.row("microvm-disk-full")
    @pytest.mark.code("R99")
    def test_one_that_stands_still_because_the_hosts_disk_is_full_tries_again_until_there_is_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(microvm, "ANSWER_SECONDS", 0.3)
        said: list[str] = []
        monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: said.extend(texts))

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.status, qemu.agent_answers = "io-error", False
            qemu.answers["cont"] = lambda _: {}  # it writes, and stands still again
            while qemu.asked.count("cont") < 12:  # for far longer than any other may be silent
                await asyncio.sleep(0.01)
            assert not dyno.ended and len(said) == 1
            assert_says("microvm-disk-full", said[0])
            async with dyno.moving:  # nothing may run on where it is while it moves
                tried = qemu.asked.count("cont")
                for _ in range(5):
                    await asyncio.sleep(0.05)
                assert qemu.asked.count("cont") == tried
            qemu.answers.clear()
            qemu.agent_answers = True
            while not qemu.orders:  # its clock stood still, too
                await asyncio.sleep(0.01)
            assert qemu.status == "running" and not dyno.ended and "t" in qemu.orders[0]

        play(tmp_path, story)

    def test_one_that_stands_still_again_while_it_is_asked_is_not_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(applog, "say", lambda app_id, process, *texts: None)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            looked: list[bool] = []

            async def look() -> None:
                looked.append(True)
                qemu.status = "io-error"
                raise GuestFailed("It does not answer.")

            monkeypatch.setattr(dyno, "look", look)
            assert dyno.agent is not None
            dyno.agent.heard = -600.0
            assert await dyno._trouble() == "" and looked

        play(tmp_path, story)

    def test_one_to_whose_guest_nobody_is_connected_is_ended(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.agent = None
            assert "Nobody is connected" in (await dyno.wait()).why

        play(tmp_path, story)

    def test_one_that_only_has_nothing_to_say_is_asked_and_left_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(microvm, "ANSWER_SECONDS", 60)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            while qemu.told.count(bytes([protocol.LOOK])) < 3:
                await asyncio.sleep(0.01)
            assert not dyno.ended

        play(tmp_path, story)


class TestNews:
    """What changes on the host while a guest runs, and nobody else tells it: nothing else is told, because a clock that is set goes
    back, and a resolv.conf that is written is empty for a moment."""

    @pytest.fixture(autouse=True)
    def hurried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(microvm, "WATCH_SECONDS", 0.02)
        monkeypatch.setattr(microvm, "CLOCK_OFF", 60.0)  # a test's host may be busy, but not for so long

    @staticmethod
    async def told(qemu: Imitation, times: int) -> list[list[str]]:
        """What was told, once that was so often and some rounds have gone by in which more might be."""
        while len(qemu.orders) < times:
            await asyncio.sleep(0.01)
        for _ in range(5):
            await asyncio.sleep(0.02)
        return [sorted(order) for order in qemu.orders]

    def test_name_servers_when_they_change_and_an_emulated_one_the_time_now_and_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            driver.host.resolv_conf.write_text("nameserver 192.0.2.1\n")
            assert await self.told(qemu, 1) == [["r", "t"]]  # one that is found again, say, knows nothing yet
            assert abs(int.from_bytes(qemu.orders[0]["t"], "little") / 1e9 - time.time()) < 600
            driver.host.names_since = 2  # type: ignore[misc]
            assert await self.told(qemu, 2) == [["r", "t"], ["r"]]
            assert qemu.orders[1]["r"] == b"nameserver 192.0.2.1\n"
            monkeypatch.setattr(microvm, "TELL_SECONDS", 0.0)
            assert (await self.told(qemu, 4))[2:4] == [["t"], ["t"]]

        play(tmp_path, story)

    def test_an_accelerated_one_the_time_when_the_hosts_was_set_or_it_stood_still(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(microvm, "TELL_SECONDS", 0.0)
        set_by = [0.0]
        monkeypatch.setattr(microvm, "beyond_ticks", lambda: 1000.0 + set_by[0])

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            dyno.record.facts["kvm"] = True
            dyno.knows(1)  # as one that has been started
            assert await self.told(qemu, 0) == []
            set_by[0] = -3600.0
            assert await self.told(qemu, 1) == [["t"]]
            qemu.answers["migrate"] = no("no way")
            with pytest.raises(MoveFailed, match="could not be put aside and runs on"):
                await dyno.suspend(tmp_path / "aside")
            assert await self.told(qemu, 2) == [["t"], ["t"]]

        play(tmp_path, story)

    def test_the_time_is_not_told_to_one_that_it_would_reach_too_late(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ways = [61.0, 61.0, 0.0]
        monkeypatch.setattr(microvm, "TELL_SECONDS", 0.0)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            async def way() -> float:
                return ways.pop(0) if len(ways) > 1 else ways[0]

            monkeypatch.setattr(dyno, "_way", way)
            dyno.knows(1)
            while len(ways) > 1:
                assert qemu.orders == []
                await asyncio.sleep(0.01)
            assert (await self.told(qemu, 1))[0] == ["t"]

        play(tmp_path, story)

class TestResize:
    @pytest.mark.row("microvm-resize")
    def test_memory_that_a_guest_takes_only_half_of_is_taken_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resize, "SECONDS", 0.3)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            wanted = [0]
            qemu.answers["qom-set"] = lambda arguments: (wanted.append(arguments["value"]), {})[1]
            qemu.answers["qom-get"] = lambda _: wanted[-1] // 2
            with pytest.raises(MonitorFailed, match="took only") as failed:
                await dyno.update(replace(LIMITS, memory=512 * MIB, memory_max=512 * MIB))
            assert_says("microvm-resize", failed.value.message)
            assert wanted[-1] == 0 and dyno.record.facts["plugged_memory"] == 0
            assert dyno.record.facts["limits"] == vars(LIMITS)
            assert driver.limited[-1] == 224 * MIB < driver.limited[0]

        play(tmp_path, story)

    def test_what_grows_is_there_before_the_dyno_may_use_it_and_what_shrinks_is_out_of_use_before_it_goes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = replace(LIMITS, memory=64 * MIB, memory_max=64 * MIB)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            steps: list[str] = []
            deflating = [160 * MIB, 200 * MIB, 224 * MIB]  # a guest takes its time
            qemu.answers["balloon"] = lambda arguments: (steps.append(f"balloon {arguments['value'] // MIB}"), {})[1]
            qemu.answers["query-balloon"] = lambda _: {"actual": deflating.pop(0)}
            qemu.answers["qom-get"] = lambda _: 0
            tell = resize._tell

            async def told(dyno: MicroVm, limits: Limits, processors: int) -> None:
                steps.append("told")
                await tell(dyno, limits, processors)

            monkeypatch.setattr(resize, "_tell", told)
            await dyno.update(small)
            assert steps == ["told", "balloon 160"]
            steps.clear()
            await dyno.update(LIMITS)
            assert steps == ["balloon 224", "told"] and deflating == []

        play(tmp_path, story)

    def test_one_that_cannot_be_written_down_is_undone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(directory: DynoDirectory, record: Record) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            plugged = [0]
            qemu.answers["qom-set"] = lambda arguments: (plugged.append(arguments["value"]), {})[1]
            qemu.answers["qom-get"] = lambda _: plugged[-1]
            monkeypatch.setattr(DynoDirectory, "write", full)
            with pytest.raises(Unsupported, match=r"of web\.1 could not be written down, and it has those .*: No space left") as failed:
                await dyno.update(replace(LIMITS, memory=512 * MIB, memory_max=512 * MIB))
            assert_says("microvm-resize", failed.value.message)
            assert max(plugged) > 0 == plugged[-1] == dyno.record.facts["plugged_memory"]
            assert dyno.record.facts["limits"] == vars(LIMITS) and driver.limited[-1] == 224 * MIB

        play(tmp_path, story)


    @pytest.mark.parametrize("answer", [None, [], {}, {"actual": "all"}], ids=["null", "a list", "nothing", "a word"])
    def test_one_whose_qemu_answers_nonsense_when_it_grows_has_the_size_that_it_had(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
    ) -> None:
        """An app has broken out into it."""
        monkeypatch.setattr(resize, "SECONDS", 0.1)
        small = replace(LIMITS, memory=64 * MIB, memory_max=64 * MIB)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            await dyno.update(small)
            qemu.answers["query-balloon"] = lambda _: answer
            with pytest.raises(MonitorFailed, match=r"took only 0 of the 224 MB that it booted with"):
                await dyno.update(LIMITS)
            assert dyno.record.facts["limits"] == vars(small) and not dyno.ended

        play(tmp_path, story)

    @pytest.mark.parametrize("left", [128 * MIB, 384 * MIB], ids=["most of it", "nothing yet"])
    def test_one_that_was_still_giving_memory_away_when_it_grows_again_is_told_to_stop_and_has_what_it_gave_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
    ) -> None:
        """A shrink does not wait for a guest that gives memory away slowly."""
        monkeypatch.setattr(resize, "PULL_SECONDS", 0.1)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            asked, plugged = [0], [0]

            def sets(arguments: dict[str, Any]) -> dict[str, Any]:
                asked.append(arguments["value"])
                plugged[0] = max(plugged[0], asked[-1])  # it takes at once, and gives nothing yet
                return {}

            qemu.answers.update({"qom-set": sets, "qom-get": lambda _: plugged[0]})
            for size in (512, 128):
                await dyno.update(replace(LIMITS, memory=size * MIB, memory_max=size * MIB))
            assert asked[-1] == 0 and dyno.record.facts["plugged_memory"] == plugged[0] == 384 * MIB
            plugged[0] = left  # after what it has given away since
            await dyno.update(replace(LIMITS, memory=384 * MIB, memory_max=384 * MIB))
            has = max(left, 256 * MIB)
            assert asked[-1] == 256 * MIB and dyno.record.facts["plugged_memory"] == plugged[0] == has
            assert driver.limited[-1] == 224 * MIB + has

        play(tmp_path, story)

    def test_a_grow_that_fails_leaves_one_giving_away_what_it_was_giving_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resize, "PULL_SECONDS", 0.1)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            asked = [0]
            qemu.answers["qom-set"] = lambda arguments: (asked.append(arguments["value"]), {})[1]
            qemu.answers["qom-get"] = lambda _: 384 * MIB
            for size in (512, 128):
                await dyno.update(replace(LIMITS, memory=size * MIB, memory_max=size * MIB))
            qemu.answers["balloon"] = no("no way")
            with pytest.raises(MonitorFailed, match="no way"):
                await dyno.update(replace(LIMITS, memory=384 * MIB, memory_max=384 * MIB))
            assert asked[-1] == 0 and dyno.record.facts["plugged_memory"] == 384 * MIB
            assert dyno.record.facts["limits"]["memory"] == 128 * MIB

        play(tmp_path, story)

    def test_what_qemu_says_is_plugged_in_is_believed_as_far_as_it_can_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit of its control group goes by it."""
        monkeypatch.setattr(resize, "PULL_SECONDS", 0.1)

        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            qemu.answers["qom-get"] = lambda _: 1 << 60
            await dyno.update(replace(LIMITS, memory=512 * MIB, memory_max=512 * MIB))
            assert dyno.record.facts["plugged_memory"] == 608 * MIB - 224 * MIB
            await dyno.update(LIMITS)
            assert max(driver.limited) == 608 * MIB

        play(tmp_path, story)


class TestHostileQemu:
    """An app has broken out into it."""

    @pytest.mark.parametrize("line", [b"5", b"null", b"{", b"[" * 100_000], ids=["a number", "null", "a half", "without end"])
    def test_one_that_says_what_is_no_message_is_hung_up_on(self, line: bytes) -> None:
        async def story() -> None:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            monitor = Monitor(ours)
            theirs.sendall(line + b"\n")
            with pytest.raises(MonitorFailed):
                await monitor.event("STOP", timeout=60)
            await asyncio.gather(monitor._reading)  # which has not failed for it
            monitor.close()
            theirs.close()

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_messages_of_another_shape_are_taken_for_what_they_say(self) -> None:
        async def story() -> None:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            monitor = Monitor(ours)
            asked = asyncio.ensure_future(monitor.status())
            refused = asyncio.ensure_future(monitor.table("query-migrate"))
            await asyncio.sleep(0)
            theirs.sendall(
                b'{"QMP": 5}\n{"id": [1]}\n{"id": "1"}\n{"event": ["STOP"], "data": [1], "timestamp": 5}\n'
                b'{"event": "STOP", "data": 7, "timestamp": {"seconds": 1e999, "microseconds": []}}\n'
                b'{"id": 2, "error": "no"}\n{"id": 1, "return": {"status": "running"}}\n'
            )
            assert await monitor.event("STOP", timeout=60) == ("STOP", {"at": 0.0})
            assert await asked == "running"
            with pytest.raises(MonitorFailed, match="QEMU says: no"):
                await refused
            monitor.close()
            theirs.close()

        asyncio.run(asyncio.wait_for(story(), 120))


class Guest:
    """The other end of a guest agent's connection, which says what it likes."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        self.agent = Agent(ours)
        self.hung_up = asyncio.Event()
        self.agent.lost = self.hung_up.set
        self.agent._listen()

    async def say(self, data: bytes) -> None:
        await asyncio.to_thread(self.socket.sendall, data)


def _waiting_in(pipe: int) -> bytes | None:
    """What can be read now; None when there is nothing yet."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1 << 20)
    except BlockingIOError:
        return None


@pytest.mark.root
def test_kvm_under_which_no_guest_answers_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "SECONDS", 1.0)
    (tmp_path / "shown").mkdir()
    (tmp_path / "kvm").touch()
    found = acceleration.find_out("/bin/false", "7.2", Kernel("1", tmp_path / "shown"), tmp_path / "known", tmp_path / "kvm")
    assert "a guest does not boot" in asyncio.run(found).reason


@pytest.mark.parametrize("dies", [False, True], ids=["it stops", "it dies"])
def test_nobody_waits_any_more_for_a_guest_whose_test_boot_is_over(tmp_path: Path, dies: bool) -> None:
    async def whole() -> None:
        tried = Imitation(tmp_path, 1, "internal-error")
        with ended(tried):
            await tried.open()
            for name in ("agent", "monitor"):
                (tmp_path / name).symlink_to(f"{name}.1")
            tried.agent_answers = False
            if dies:
                tried.answers["query-status"] = no("it has gone")
            said = await acceleration._boots(tmp_path)
            assert said is not None and said.startswith("a guest does not boot" if dies else "a guest stops")
            waits = [task for task in asyncio.all_tasks() if "Agent.connect" in str(task.get_coro())]
            assert waits == []

    asyncio.run(asyncio.wait_for(whole(), 120))


class TestHostileGuest:
    def test_one_that_sends_more_than_its_window_holds_is_hung_up_on(self) -> None:
        async def story() -> None:
            guest = Guest()
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            guest.agent.main(Streams(None, (writer, os.dup(writer))))
            piece = protocol.frame(protocol.OUTPUT, 0, bytes(protocol.CHUNK))
            flood = asyncio.ensure_future(guest.say(piece * 64))
            await guest.hung_up.wait()
            assert "window" in guest.agent.breach
            await asyncio.gather(flood, return_exceptions=True)
            os.close(reader)

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_who_reads_slowly_gets_all_and_hears_the_end_also_when_the_machine_is_killed(self) -> None:
        async def story() -> None:
            guest = Guest()
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            held = os.write(writer, bytes(1 << 20))
            channel = guest.agent.main(Streams(None, (os.dup(writer), os.dup(writer))))
            os.close(writer)
            await guest.say(protocol.frame(protocol.OUTPUT, 0, b"last words"))
            while not channel._queues:
                await asyncio.sleep(0.01)
            channel.end(Exit(137))
            assert await channel.ended == Exit(137)
            said = bytearray()
            while (piece := _waiting_in(reader)) != b"":
                said += piece or b""
                await asyncio.sleep(0.01)
            os.close(reader)
            assert said[held:] == b"last words"

        asyncio.run(asyncio.wait_for(story(), 60))

    def test_many_small_frames_are_acknowledged_together(self) -> None:
        async def story() -> None:
            guest = Guest()
            guest.agent.main(None)
            heard = guest.agent._done[7] = asyncio.get_running_loop().create_future()
            await guest.say(protocol.frame(protocol.OUTPUT, 0, b"x") * 8_000 + protocol.frame(protocol.DONE, 7))
            await heard
            await asyncio.sleep(0)
            answered = len(guest.agent._out) + len(await asyncio.to_thread(guest.socket.recv, 1 << 20))
            assert answered < 8_000

        asyncio.run(asyncio.wait_for(story(), 120))

    @pytest.mark.parametrize(
        "said",
        [
            protocol.frame(protocol.LISTENERS, 0, bytes(19 * 3000)), protocol.frame(protocol.FIGURES, 0, bytes(48)),
            protocol.frame(protocol.DONE, 3), protocol.frame(protocol.STARTED, 0), protocol.frame(protocol.EXITED, 0, bytes(5)),
            protocol.frame(protocol.ACCEPTED, 0, struct.pack("<I", 1)), protocol.frame(protocol.OUTPUT, 0),
            protocol.frame(protocol.OUTPUT, 9, bytes(4096)), protocol.frame(99, 0), bytes(4096), protocol.MAGIC * 1024,
        ],
        ids=[
            "listeners", "figures", "answers", "starts", "ends", "acceptance of nothing", "empty output", "output of nothing",
            "what nobody knows", "no frames", "half frames",
        ],
    )  # fmt: skip
    def test_one_that_says_more_than_there_is_to_say_is_hung_up_on(self, said: bytes) -> None:
        async def story() -> None:
            guest = Guest()
            guest.agent.main(None)
            flood = asyncio.ensure_future(guest.say(said * ((64 << 20) // len(said))))
            await guest.hung_up.wait()
            assert "far more than a guest agent has to say" in guest.agent.breach
            with pytest.raises(OSError):  # not all of it was taken
                await flood

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_its_dyno_ends_and_the_log_says_why(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            assert qemu.agent is not None
            qemu.agent.write(protocol.frame(protocol.FIGURES, 0, bytes(48)) * 100_000)
            exit = await dyno.wait()
            assert exit.status == 137 and exit.why.startswith("Its guest agent does not keep to the protocol (it says far more")
            assert exit.why in caplog.text and qemu.gone

        play(tmp_path, story)

    def test_output_in_small_pieces_is_taken_as_fast_as_each_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(agent, "PACE", (5.0, 10_000.0))

        async def story() -> None:
            guest, rests = Guest(), list[float]()
            rest = guest.agent._rest
            monkeypatch.setattr(guest.agent, "_rest", lambda seconds: (rests.append(seconds), rest(seconds)))
            guest.agent.main(None)
            heard = guest.agent._done[7] = asyncio.get_running_loop().create_future()
            await guest.say(protocol.frame(protocol.OUTPUT, 0, b"x") * 8_000 + protocol.frame(protocol.DONE, 7))
            await heard
            assert rests and not guest.agent.breach and not asyncio.get_running_loop().remove_reader(guest.agent._socket)

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_one_that_says_anything_but_its_answer_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(agent, "_MOST_SOUGHT", 1 << 20)

        async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()

        async def story() -> None:
            async with await asyncio.start_unix_server(floods, tmp_path / "agent"):
                with pytest.raises(GuestFailed, match="1 MB of other things instead of answering"):
                    await Agent.connect(tmp_path / "agent", 100)

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_one_that_never_reads_is_hung_up_on(self) -> None:
        async def story() -> None:
            guest = Guest()
            asking = asyncio.ensure_future(guest.agent.ask(lambda number: protocol.frame(protocol.LOOK, number), 60))
            await asyncio.sleep(0)
            for _ in range(40):
                guest.agent.send(bytes(1 << 20))
            assert "does not read" in guest.agent.breach
            with pytest.raises(GuestFailed, match="connection"):  # who waits for an answer is told at once
                await asking

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_a_command_that_does_not_begin_in_time_is_closed_and_forgotten(self) -> None:
        """A guest that starts it after all must not run it unseen."""

        async def story() -> None:
            guest, reader = Guest(), protocol.Reader()
            with pytest.raises(GuestFailed, match="did not start the command"):
                await guest.agent.further(Order(["true"]), Streams.nothing(), 0.05)
            assert not guest.agent._channels
            said: list[protocol.Frame] = []
            while protocol.CLOSE not in [frame.type for frame in said]:
                said += reader.feed(await asyncio.to_thread(guest.socket.recv, 1 << 16))
            assert said[-1].channel == said[0].channel != 0

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_figures_are_believed_as_far_as_they_can_be_true(self, tmp_path: Path) -> None:
        async def story(driver: ImitationDriver, dyno: MicroVm, qemu: Imitation) -> None:
            assert qemu.agent is not None
            qemu.agent.write(protocol.frame(protocol.FIGURES, 0, struct.pack("<6Q", *[(1 << 64) - 1] * 6)))
            while dyno.agent is not None and dyno.agent.stats is None:
                await asyncio.sleep(0.01)
            stats = dyno.stats()
            assert (stats.memory, stats.disk) == (224 * MIB, LIMITS.disk)
            assert max(stats.pids, stats.ooms, stats.cpu) < 1 << 34

        play(tmp_path, story)

    @pytest.mark.parametrize("status", [-1, 256, 1 << 30])
    def test_a_status_that_none_can_have_is_told_as_1(self, status: int) -> None:
        answer = protocol.frame(protocol.SYNCED, 0, bytes(16) + struct.pack("<IBiB", protocol.VERSION, 2, status, 0) + bytes(2))
        found = protocol.Hunter(bytes(16)).feed(answer)
        assert found is not None and found[0].status == 1

    def test_magic_words_without_an_end_are_skipped_at_once(self) -> None:
        reader = protocol.Reader()
        for _ in range(20):
            assert list(reader.feed(protocol.MAGIC * 20_000)) == []
        assert len(reader._rest) < 12


class TestSnapshots:
    """What was written of a sleeping dyno, and may have changed since."""

    FACTS = {"form": FORM, "qemu": [7, 2, 0], "kernel": "1", "kvm": False, "scratch": True, "images": ["/stack/1", "/slug"]}

    def written(self, home: Path, **changes: object) -> Path:
        snapshot = home / "snapshot"
        snapshot.mkdir()
        (snapshot / "memory").write_bytes(b"what it had in mind")
        (snapshot / "scratch").touch()
        meta = {"facts": {**self.FACTS, **changes}, "digest": pump.digest_of(snapshot / "memory"), "size": 19}
        (snapshot / "machine.json").write_text(json.dumps(meta))
        return snapshot

    def read(self, snapshot: Path) -> dict[str, Any]:
        driver = SimpleNamespace(kernel=SimpleNamespace(version="1"), kvm=False)
        spec = SimpleNamespace(stack=Path("/stack/1"), slug=Path("/slug"))
        return moving._read(driver, snapshot, spec, (7, 2, 0))  # type: ignore[arg-type]

    def test_what_is_whole_is_taken(self, tmp_path: Path) -> None:
        assert self.read(self.written(tmp_path)) == self.FACTS

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("qemu", [7, 2, 1]), ("kernel", "2"), ("kvm", True), ("images", ["/stack/2", "/slug"]), ("images", ["/stack/1", "/other"]),
            ("form", FORM - 1), ("form", None),
        ],
    )  # fmt: skip
    def test_another_qemu_kernel_stack_or_slug_wakes_nothing(self, tmp_path: Path, name: str, value: object) -> None:
        with pytest.raises(MoveFailed, match="another version of Davit, QEMU or kernel, or on another stack"):
            self.read(self.written(tmp_path, **{name: value}))

    @pytest.mark.row("microvm-snapshot")
    def test_flipped_memory_or_a_missing_disk_is_damage(self, tmp_path: Path) -> None:
        snapshot = self.written(tmp_path)
        (snapshot / "scratch").unlink()
        with pytest.raises(MoveFailed, match="damaged") as failed:
            self.read(snapshot)
        assert_says("microvm-snapshot", failed.value.message)
        (snapshot / "scratch").touch()
        (snapshot / "memory").write_bytes(b"what it had in mint")
        with pytest.raises(MoveFailed, match="damaged"):
            self.read(snapshot)
