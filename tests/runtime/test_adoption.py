"""A runtime that is killed leaves its dynos running; the next one finds them, and can take them away without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import children
from runtime.children import exit_information
from runtime.container import ContainerDyno
from runtime.driver import Exit
from runtime.drivers import Drivers
from tests.runtime.bench_of_driver import Bench

pytestmark = [pytest.mark.root]

_SERVER = "import socket\ns = socket.create_server(('0.0.0.0', 5000))\nprint('up', flush=True)\nwhile True: s.accept()[0].close()"
_SERVE = f'exec python3 -c "{_SERVER}"'
_EXIT_ON_TERM = "trap 'exit 3' TERM; echo up; while true; do sleep 0.05; done"


@pytest.fixture
def other(loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]) -> Iterator[Bench]:
    """A DAVIT_HOME whose driver is not open yet; nothing is left of it afterwards."""
    bench = Bench(loop, *images)
    yield bench
    bench.close()
    assert bench.leftovers_on_host() == []


def start_and_kill(bench: Bench, *commands: str, tidy: bool = True) -> list[list[object]]:
    """Start dynos in a runtime of its own and kill -9 it."""
    argv = [sys.executable, "-m", "tests.runtime.other_process", str(bench.stack), str(bench.slug), *commands]
    env = {**os.environ, "DAVIT_HOME": str(bench.home), **({} if tidy else {"TEST_UNTIDY": "1"})}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout
        started: list[list[object]] = json.loads(process.stdout.readline())
        if tidy:
            assert process.stdout.readline() == b"tidy\n"
        process.kill()
    return started


def test_dynos_run_on_and_are_adopted(other: Bench) -> None:
    import socket

    ((id, slot, address, pid),) = start_and_kill(other, _SERVE)
    other.open()
    (dyno,) = other.run(other.driver.adopt())
    assert (dyno.spec_id, dyno.slot, dyno.address, dyno.pid) == (id, slot, address, pid)
    other.until(lambda: dyno.listeners(), "listening")
    socket.create_connection((str(address), 5000), 30).close()
    assert dyno.stats().pids == 2
    assert other.start("true").slot != slot
    command = other.run(dyno.exec(["/bin/bash", "-c", "exit 6"], {"PATH": "/usr/bin:/bin"}))
    assert other.run(command.wait()) == Exit(6)
    other.run(command.remove())
    other.run(dyno.remove())
    assert other.output(dyno) == "up\n"


def test_an_adopted_dynos_status_is_known_where_the_kernel_keeps_it(other: Bench) -> None:
    start_and_kill(other, _EXIT_ON_TERM)
    other.open()
    (dyno,) = other.run(other.driver.adopt())
    other.up(dyno)
    other.run(dyno.signal(signal.SIGTERM))
    assert other.run(dyno.wait()) == (Exit(3) if _kernel_keeps_exit_status() else Exit(None, watched=True))


def test_an_adopted_dyno_that_ends_has_crashed_where_the_kernel_keeps_no_status_too(
    other: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_and_kill(other, _EXIT_ON_TERM)
    monkeypatch.setattr(children.Process, "_collect", lambda self: (True, None))  # as before Linux 6.15, where another reaps it
    other.open()
    (dyno,) = other.run(other.driver.adopt())
    other.up(dyno)
    other.run(dyno.signal(signal.SIGTERM))
    ended = other.run(dyno.wait())
    assert ended == Exit(None, watched=True) and ended.by_itself


def adopted_after_its_end(bench: Bench, command: str) -> tuple[object, object, ContainerDyno]:
    """Id and slot of a dyno that ended while no runtime ran, and what the next one makes of it."""
    ((id, slot, _, pid),) = start_and_kill(bench, command)
    os.kill(int(str(pid)), signal.SIGKILL)
    bench.until(lambda: _dead(pid), "the dyno's end")
    bench.open()
    (dyno,) = bench.run(bench.driver.adopt())
    return id, slot, dyno


def test_one_that_ended_meanwhile_is_told_as_ended_and_its_lines_are_kept(other: Bench) -> None:
    id, _, ended = adopted_after_its_end(other, "echo line; sleep 60")
    assert ended.spec_id == id
    assert other.run(ended.wait()) == Exit(None)
    other.run(ended.remove())


def test_one_that_ended_meanwhile_keeps_its_place_until_it_is_taken_away(other: Bench) -> None:
    """Or its number would be given to a new dyno, whose cable would be pulled when the old one is taken away."""
    import socket

    _, slot, ended = adopted_after_its_end(other, "sleep 60")
    fresh = other.start(_SERVE)
    assert fresh.slot > int(str(slot))  # nor is it another's at once: a route may still lead to the old address
    other.until(lambda: fresh.listeners(), "listening")
    other.run(ended.remove())
    other.until(lambda: not other.host.pool.leaving, "the old number is free again")
    socket.create_connection((str(fresh.address), 5000), 30).close()


def test_an_oci_runtime_that_outlives_the_process_that_ran_it_is_ended(other: Bench) -> None:
    """What it was about to start would be a dyno that nobody knows."""
    other.open()
    root = f"{other.host.instance.directory}/crun"
    other.close(stop_dynos=False)
    with _waiting("--root", f"{root}/of-another") as bystander, _waiting("--root", root) as left:
        other.open()
        assert left.wait(10) == -signal.SIGKILL
        assert bystander.poll() is None


def _waiting(*words: str) -> subprocess.Popen[bytes]:
    """A program with these words in its command line, that ends when nobody holds its standard input any more."""
    return subprocess.Popen(["/bin/bash", "-c", "read line", "crun", *words, "run"], stdin=subprocess.PIPE)


def test_one_that_was_killed_with_a_dyno_half_started_is_found_as_well(other: Bench) -> None:
    """Killed right after the start, before the pid was written down by us: the OCI runtime's own note is enough."""
    ((id, *_),) = start_and_kill(other, "sleep 60", tidy=False)
    other.open()
    (dyno,) = other.run(other.driver.adopt())
    assert dyno.spec_id == id
    assert not dyno.ended


def test_stopping_takes_away_what_a_killed_runtime_left(other: Bench) -> None:
    start_and_kill(other, "sleep 60", "sleep 60")
    other.open()  # and the fixture's close(stop_dynos=True) finds nothing left, though nobody adopted them


def test_before_all_is_taken_away_dynos_are_asked_to_end_and_have_their_time(other: Bench) -> None:
    start_and_kill(other, "trap 'echo bye; exit' TERM; echo up; while true; do sleep 0.05; done", "trap '' TERM; echo up; sleep 600")
    other.open()
    drivers = Drivers(other.host, {"container": lambda host: other.driver})
    listens, ignores = sorted(other.run(drivers.adopt()), key=lambda dyno: dyno.spec_id)
    other.up(listens)
    other.up(ignores)
    drivers.adopt = lambda: asyncio.sleep(0, [listens, ignores])  # type: ignore[method-assign,assignment,return-value]
    other.run(drivers.end(5))
    assert other.output(listens) == "up\nbye\n"
    assert not ignores.ended


def test_what_nobody_wrote_down_is_swept_away(other: Bench) -> None:
    ((id, _, _, pid),) = start_and_kill(other, "sleep 60")
    for path in (other.settings.run / "dynos" / str(id)).iterdir():
        path.unlink()
    (other.settings.run / "dynos" / str(id)).rmdir()
    other.open()
    assert other.run(other.driver.adopt()) == []
    other.until(lambda: _dead(pid), "the dyno's end")


def test_two_davits_on_one_machine_do_not_meet(other: Bench, loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]) -> None:
    import socket

    second = Bench(loop, *images)
    other.open()
    second.open()
    try:
        here, there = other.host.instance, second.host.instance
        assert here.number != there.number
        assert not here.network.overlaps(there.network)
        server = other.start(_SERVE)
        other.until(lambda: server.listeners(), "listening")
        connect = f"socket.create_connection(('{server.address}', 5000), 2); print('connected')"
        code = f"import socket\ntry: {connect}\nexcept OSError as e: print(e.errno)"
        assert second.output(second.python(code)) == "113\n"
    finally:
        second.close()
    assert second.leftovers_on_host() == []
    assert server.address
    socket.create_connection((server.address, 5000), 30).close()


def test_one_davit_home_has_one_runtime(other: Bench) -> None:
    from runtime.instance import Instance, InstanceUnavailable

    other.open()
    with pytest.raises(InstanceUnavailable, match="already runs"):
        Instance.claim(other.settings)


def _dead(pid: object) -> bool:
    """Whether it has ended; this process may be its reaper now, and may not have come to it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _kernel_keeps_exit_status() -> bool:
    process = subprocess.Popen(["true"])
    fd = os.pidfd_open(process.pid)
    try:
        process.wait()
        return exit_information(fd) == 0
    finally:
        os.close(fd)
