"""What every driver promises. A driver's test module inherits this class and brings the ``bench`` fixture."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import struct
import termios
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path
from typing import ClassVar

import pytest

from foundation.errors import DavitError
from runtime.driver import Bind, Exit
from tests.conftest import PATIENCE
from tests.e2e.errors_page import assert_says, says
from tests.runtime.bench_of_driver import ENV, LIMITS, MIB, Bench

CONNECT = """
import json, socket
results = {{}}
for host, port in {targets}:
    try:
        socket.create_connection((host, port), 2).close()
        results[host] = "connected"
    except OSError as error:
        results[host] = type(error).__name__ + str(error.errno)
print(json.dumps(results))
"""
_UP = "print('up', flush=True)\nsignal.pause()"
_IDLE = "import time; time.sleep(100000)"
_TAKES_ITS_TIME = """
import signal, sys, time
def stop(*_):
    print('bye', flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
while True: time.sleep(0.05)
"""
SAYS_GOODBYE = """
import os, signal, sys, time
def stop(*_):
    while not os.path.exists('/app/go'): time.sleep(0.01)
    print('bye', file=sys.stderr, flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
while True: time.sleep(0.05)
"""
_EXHAUST = "x = []\nwhile True: x.append(bytearray(1 << 20))"


class LifeContract:
    """A dyno's life, from its start to its end and past everybody's death: what every isolation promises whatever the app is.

    It is written in the bench's own words (:meth:`Bench.saying`, :meth:`Bench.waiting`, …), so that a guest that is only an
    imitation can show it, too.

    Attributes:
        left_out: the tests that a driver does not keep, and why not: given to the class that inherits this.
    """

    left_out: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, left_out: Mapping[str, str] | None = None) -> None:
        silent = [name for name, value in vars(cls).items() if name.startswith("test_") and value is None]
        unknown = [name for name in left_out or () if not callable(getattr(cls, name, None))]
        unexplained = [name for name, why in (left_out or {}).items() if not why.strip()]
        if wrong := [*silent, *unknown, *unexplained]:
            raise TypeError(f"{cls.__name__} leaves out {', '.join(wrong)}: each must be a test here, and have a reason in left_out.")
        cls.left_out = {**cls.left_out, **(left_out or {})}
        for name in left_out or ():
            setattr(cls, name, None)

    # -- its end

    def test_it_says_its_words_and_its_status_is_the_apps(self, bench: Bench) -> None:
        dyno = bench.saying("hello\nfrom within\n", 7)
        assert bench.run(dyno.wait()) == Exit(7)
        assert bench.run(dyno.wait()) == Exit(7)
        assert bench.output(dyno) == "hello\nfrom within\n"

    def test_its_last_words_wait_for_their_reader(self, bench: Bench) -> None:
        dyno = bench.saying("last words\n", 0)
        assert bench.run(dyno.wait()) == Exit(0)
        bench.run(dyno.remove())
        assert (bench.host.dynos / dyno.spec_id / "ended").exists()
        assert bench.output(dyno) == "last words\n"

    def test_an_apps_crash_is_told(self, bench: Bench) -> None:
        dyno = bench.crashing("before\n")
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGABRT)
        assert bench.output(dyno).startswith("before\n")

    def test_killing_what_keeps_it_is_told_and_leaves_nothing(self, bench: Bench) -> None:
        dyno = bench.waiting("up\n")
        bench.kill_the_keeper(dyno)
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGKILL)
        bench.run(dyno.remove())
        assert bench.output(dyno) == "up\n"

    def test_what_ignores_term_is_ended_by_kill(self, bench: Bench) -> None:
        dyno = bench.deaf("up\n")
        bench.run(dyno.signal(signal.SIGTERM))
        assert not dyno.ended
        bench.run(dyno.signal(signal.SIGKILL, everyone=True))
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGKILL)

    def test_an_ended_dyno_takes_every_call(self, bench: Bench) -> None:
        dyno = bench.saying("x\n", 0)
        bench.run(dyno.wait())
        bench.run(dyno.signal(signal.SIGTERM, everyone=True))
        assert dyno.listeners() == []
        assert dyno.stats().pids >= 0
        bench.run(dyno.remove())
        bench.run(dyno.remove())

    def test_one_that_runs_can_be_taken_away(self, bench: Bench) -> None:
        dyno = bench.waiting("up\n")
        bench.run(dyno.remove())
        assert dyno.ended
        assert bench.output(dyno) == "up\n"

    # -- its start

    def test_a_stack_that_is_not_there_starts_nothing(self, bench: Bench) -> None:
        with pytest.raises(DavitError, match=r"."):
            bench.waiting("x\n", stack=Path("/nonexistent"))
        assert not list(bench.host.dynos.iterdir())

    def test_a_host_that_is_full_says_so(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = bench.host.pool
        bench.until(lambda: not pool.leaving and len(pool._ready) == pool.warm, "quiet")
        with monkeypatch.context() as full:
            full.setattr(pool, "_ready", deque())
            full.setattr(pool, "_used", set(range(1, 1024)))
            with pytest.raises(DavitError, match="as many as it has places for") as full_up:
                bench.waiting("x\n")
        assert_says("no-places", full_up.value.message)

    def test_a_network_that_the_kernel_refuses_starts_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = bench.host.pool
        bench.until(lambda: not pool.leaving and len(pool._ready) == pool.warm, "quiet")
        with monkeypatch.context() as without:
            without.setattr(pool, "_ready", deque())
            without.setattr(pool, "warm", 0)
            without.setattr(bench.host.network, "_bridge", 1 << 30)  # as when somebody has deleted it
            with pytest.raises(DavitError, match=r"of slot \d+ could not be made: \S") as refused:
                bench.waiting("x\n")
        assert says("no-network", refused.value.message) or says("no-tap", refused.value.message)
        assert bench.saying("again\n", 0)

    def test_given_descriptors_get_its_output(self, bench: Bench, tmp_path: Path) -> None:
        with (tmp_path / "in").open("w+") as source, (tmp_path / "out").open("w") as target:
            dyno = bench.saying("to a file\n", 3, stdio=(source.fileno(), target.fileno(), target.fileno()))
            assert bench.run(dyno.wait()) == Exit(3)
        assert (tmp_path / "out").read_text() == "to a file\n"

    # -- while it runs

    def test_a_flood_waits_for_its_reader_and_holds_up_nobody(self, bench: Bench) -> None:
        flood = bench.flooding("flood flood flood\n")
        calm = bench.saying("calm\n", 0)
        assert bench.run(calm.wait()) == Exit(0)
        assert bench.output(calm) == "calm\n"
        assert not flood.ended
        bench.run(flood.signal(signal.SIGKILL, everyone=True))
        assert bench.run(flood.wait()) == Exit(128 + signal.SIGKILL)

    def test_its_share_of_the_processors_changes_while_it_runs(self, bench: Bench) -> None:
        dyno = bench.waiting("up\n")
        for quota in (0.5, 1.0):
            bench.run(dyno.update(replace(bench.limits, cpu_quota=quota)))
            assert bench.quota(dyno) == quota
        assert not dyno.ended

    # -- the runtime's end

    def test_a_runtime_that_starts_again_finds_it_and_hears_how_it_ends(self, bench: Bench) -> None:
        before = bench.waiting("before\n")
        dyno = bench.restart_the_runtime(before)
        assert (dyno.slot, dyno.address, dyno.pid) == (before.slot, before.address, before.pid)
        assert not dyno.ended
        assert bench.saying("x\n", 0).slot != dyno.slot
        assert dyno.stats().pids >= 1
        bench.run(dyno.signal(signal.SIGKILL, everyone=True))
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGKILL)
        assert bench.output(dyno) == "before\n"

    def test_a_killed_runtime_leaves_it_running_and_the_next_one_finds_it(self, bench: Bench) -> None:
        other = bench.another()
        try:
            ((id, slot, pid),) = other.started_by_a_runtime_that_is_killed("before\n")
            other.open()
            (dyno,) = other.run(other.driver.adopt())
            assert (dyno.spec_id, dyno.slot, dyno.pid, dyno.ended) == (id, slot, pid, False)
            other.run(dyno.remove())
            assert other.output(dyno) == "before\n"
            other.remove_all()
        finally:
            other.close()
        assert other.leftovers_on_host() == []

    def test_one_that_died_while_no_runtime_ran_is_told_and_keeps_its_place_until_it_is_taken_away(self, bench: Bench) -> None:
        other = bench.another()
        try:
            ((id, slot, pid),) = other.started_by_a_runtime_that_is_killed("before\n")
            os.kill(pid, signal.SIGKILL)
            other.until(lambda: _buried(pid), "its end")
            other.open()
            (dyno,) = other.run(other.driver.adopt())
            assert dyno.spec_id == id
            assert other.run(dyno.wait()).status in (None, 128 + signal.SIGKILL)
            assert other.saying("x\n", 0).slot != slot
            other.run(dyno.remove())
        finally:
            other.close()
        assert other.leftovers_on_host() == []


def _buried(pid: int) -> bool:
    """Whether it has ended with all its threads; whose runtime is dead is inherited, in life by init, here by this process."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not Path(f"/proc/{pid}").exists()


class DriverContract(LifeContract):
    """The contract of runtime.driver: a life, and what an app finds and may do in it."""
    # -- being ready

    def test_it_is_ready_when_it_listens_and_serves_until_it_is_told_to_end(self, bench: Bench) -> None:
        dyno = bench.serving()
        bench.until(dyno.listeners, "listening", 120)
        assert [one.port for one in dyno.listeners()] == [5000]
        assert dyno.address
        with socket.create_connection((dyno.address, 5000), 30) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"served" in connection.makefile("rb").read()
        bench.run(dyno.signal(signal.SIGTERM))
        assert bench.run(dyno.wait()).status == 128 + signal.SIGTERM

    # -- running

    def test_output_goes_to_the_fifos_and_the_status_is_the_commands(self, bench: Bench) -> None:
        dyno = bench.start("echo out; echo err >&2; exit 7")
        assert bench.run(dyno.wait()) == Exit(7)
        assert (bench.output(dyno), bench.output(dyno, "stderr")) == ("out\n", "err\n")

    def test_a_program_may_open_its_standard_output_again(self, bench: Bench) -> None:
        assert bench.output(bench.start("echo again > /dev/stdout")) == "again\n"

    def test_given_descriptors_are_its_standard_streams(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "in").write_text("question")
        with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
            dyno = bench.start("cat; echo; echo error >&2", stdio=(source.fileno(), target.fileno(), target.fileno()))
            assert bench.run(dyno.wait()).status == 0
        assert (tmp_path / "out").read_text() == "question\nerror\n"

    def test_the_slug_is_its_app_and_writable(self, bench: Bench) -> None:
        dyno = bench.start("pwd; cat hello.txt; id -u; echo new >> hello.txt; cat hello.txt; ls -ln hello.txt | head -c 20")
        lines = bench.output(dyno).splitlines()
        assert lines[:5] == ["/app", "Hello from the slug", "1000", "Hello from the slug", "new"]

    def test_without_a_slug_its_app_is_empty_and_writable(self, bench: Bench) -> None:
        assert bench.output(bench.start("ls -A; echo x > y; cat y", slug=None)) == "x\n"

    def test_a_readonly_dyno_writes_nowhere_but_in_tmp(self, bench: Bench) -> None:
        dyno = bench.start("echo x > /app/y || echo refused; echo t > /tmp/t; cat /tmp/t", readonly=True)
        assert bench.output(dyno) == "refused\nt\n"

    def test_its_environment_is_the_given_one_and_nothing_else(self, bench: Bench) -> None:
        secret = "s3cret with spaces\nand a second line"
        dyno = bench.python("import os, json; print(json.dumps(dict(os.environ)))", env={**ENV, "SECRET": secret})
        seen = json.loads(bench.output(dyno))
        seen.pop("LC_CTYPE", None)
        assert seen == {**ENV, "SECRET": secret}

    def test_no_secret_stays_in_a_file_or_on_a_command_line(self, bench: Bench) -> None:
        dyno = bench.python(_IDLE, env={**ENV, "SECRET": "s3cret-in-no-file"})
        bench.until(lambda: not list((bench.host.work / "dynos").iterdir()), "tidying up")
        for top in (bench.host.instance.directory, bench.host.dynos):
            for path in top.rglob("*"):
                if path.is_file():
                    assert b"s3cret-in-no-file" not in path.read_bytes(), path
        assert b"s3cret" not in Path(f"/proc/{dyno.pid}/cmdline").read_bytes()

    def test_its_name_is_its_host_name(self, bench: Bench) -> None:
        code = "import socket, json; print(json.dumps([socket.gethostname(), socket.gethostbyname('web.1')]))"
        dyno = bench.python(code)
        assert json.loads(bench.output(dyno)) == ["web.1", dyno.address]

    def test_none_of_the_runtimes_descriptors_reach_it(self, bench: Bench) -> None:
        assert bench.result("import os, json; print(json.dumps(sorted(os.listdir('/proc/self/fd'))))") == ["0", "1", "2", "3"]

    def test_signals_have_their_default_effect(self, bench: Bench) -> None:
        text = bench.output(bench.start("/usr/bin/grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"))
        posix = (1 << 31) - 1  # 32 and 33 are libc's own
        assert [int(line.split()[1], 16) & posix for line in text.splitlines()] == [0, 0]

    def test_a_bind_shows_the_hosts_files_as_its_own(self, bench: Bench, tmp_path: Path) -> None:
        source = tmp_path / "shared"
        source.mkdir(mode=0o700)
        (source / "file").write_text("shared")
        bind = Bind(source, "/davit", writable=True)
        dyno = bench.start("id -u; cat /davit/file; echo back > /davit/new; ls -lnd /davit | grep -c ' 1000 1000 '", binds=[bind])
        assert bench.output(dyno) == "1000\nshared1\n"
        assert (source / "new").read_text() == "back\n"
        assert (source / "new").stat().st_uid == source.stat().st_uid

    def test_a_start_that_is_given_up_leaves_nothing(self, bench: Bench) -> None:
        async def give_up() -> None:
            starting = asyncio.ensure_future(bench.driver.start(bench.spec("/usr/bin/python3", "-c", _IDLE)))
            await asyncio.sleep(0.01)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

        bench.run(give_up())
        bench.until(lambda: not bench.driver.running and not bench.host.tasks - maintenance(bench), "removal")

    # -- ending

    def test_term_reaches_the_command_which_may_take_its_time(self, bench: Bench) -> None:
        dyno = bench.python(_TAKES_ITS_TIME)
        bench.up(dyno)
        bench.run(dyno.signal(signal.SIGTERM))
        assert bench.run(dyno.wait()) == Exit(3)
        assert bench.output(dyno) == "up\nbye\n"

    def test_a_command_without_handlers_ends_by_term(self, bench: Bench) -> None:
        dyno = bench.start("/usr/bin/sleep", "60")
        bench.run(dyno.signal(signal.SIGTERM))
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGTERM)

    def test_a_signal_to_everyone_reaches_grandchildren(self, bench: Bench) -> None:
        dyno = bench.start(
            "(trap 'echo inner; exit 0' TERM; echo up; while true; do sleep 0.05; done) & trap '' TERM; wait; wait; exit 4"
        )
        bench.up(dyno)
        bench.run(dyno.signal(signal.SIGTERM, everyone=True))
        bench.run(dyno.wait())
        assert bench.output(dyno) == "up\ninner\n"

    @pytest.mark.parametrize(
        ("above", "status"),
        [("%s; true", 128 + signal.SIGTERM), ("%s | cat", 128 + signal.SIGTERM), ("trap 'exit 7' TERM; %s & wait", 7)],
        ids=["a script", "a pipe", "one that ends first"],
    )
    def test_an_app_below_a_shell_may_take_its_time(self, bench: Bench, above: str, status: int) -> None:
        script = above % f"/usr/bin/python3 -c {shlex.quote(SAYS_GOODBYE)}"
        # when it may go: a moment after the shell above it has gone
        helper = "(trap 'sleep 0.5; touch go' TERM; touch trapped; while [ ! -e go ]; do sleep 0.1; done)"
        dyno = bench.start(f"{helper} & while [ ! -e trapped ]; do sleep 0.01; done; {script}")
        bench.up(dyno)
        bench.run(dyno.signal(signal.SIGTERM, everyone=True))
        assert bench.run(dyno.wait()) == Exit(status)
        assert bench.output(dyno, "stderr").endswith("bye\n")

    def test_a_further_command_does_not_keep_a_dyno_that_ends(self, bench: Bench) -> None:
        dyno = bench.python(_TAKES_ITS_TIME)
        bench.up(dyno)
        reader, writer = os.pipe()
        with open(os.devnull, "r+") as null, os.fdopen(reader) as said:
            script = "trap '' TERM; echo deaf; while true; do sleep 1; done"
            command = bench.run(dyno.exec(["/bin/bash", "-c", script], ENV, stdio=(null.fileno(), writer, null.fileno())))
            os.close(writer)
            assert bench.run(asyncio.to_thread(said.readline)) == "deaf\n"
            bench.run(dyno.signal(signal.SIGTERM, everyone=True))
            assert bench.run(dyno.wait()) == Exit(3)
            bench.run(command.remove())

    # -- limits

    def test_memory_beyond_the_limit_ends_it_and_is_told(self, bench: Bench) -> None:
        dyno = bench.python(_EXHAUST)
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGKILL, oom=True)
        assert dyno.stats().ooms >= 1

    def test_memory_of_a_child_counts_as_the_dynos(self, bench: Bench) -> None:
        dyno = bench.start(f'/usr/bin/python3 -c "{_EXHAUST.replace(chr(39), chr(39))}"; sleep 60')
        assert bench.run(dyno.wait()).oom

    def test_a_fork_bomb_hurts_only_itself(self, bench: Bench) -> None:
        code = """
import os, json, signal
count = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    print(json.dumps([count, error.errno]))
"""
        count, number = bench.result(code, limits=replace(LIMITS, pids=20))
        assert 10 < count < 20
        assert number == 11

    def test_a_full_disk_is_its_own(self, bench: Bench) -> None:
        code = """
import json
file = open('/app/big', 'wb', buffering=0)
try:
    while True: file.write(bytes(1 << 20))
except OSError as error:
    print(json.dumps([error.errno, file.tell() >> 20]))
"""
        number, written = bench.result(code, limits=replace(LIMITS, disk=64 * MIB))
        assert number == 28
        assert 40 < written < 64

    def test_limits_change_while_it_runs(self, bench: Bench) -> None:
        code = f"import signal, sys\nsignal.signal(10, lambda *_: bytearray(200 << 20) and sys.exit(5))\n{_UP}"
        dyno = bench.python(code)
        bench.up(dyno)
        bench.run(dyno.update(replace(LIMITS, memory=512 * MIB, memory_max=512 * MIB, pids=100, cpu_quota=0.5)))
        bench.run(dyno.signal(10))
        assert bench.run(dyno.wait()) == Exit(5)

    def test_limits_shrink_while_it_runs_and_hold(self, bench: Bench) -> None:
        code = f"import signal, sys\nsignal.signal(10, lambda *_: bytearray(200 << 20) and sys.exit(5))\n{_UP}"
        large = replace(LIMITS, memory=512 * MIB, memory_max=512 * MIB)
        dyno = bench.python(code, limits=large)
        bench.up(dyno)
        bench.run(dyno.update(LIMITS))
        bench.run(dyno.signal(10))
        assert bench.run(dyno.wait()) == Exit(128 + signal.SIGKILL, oom=True)

    def test_stats_tell_what_it_uses(self, bench: Bench) -> None:
        code = f"import signal\nx = bytearray(40 << 20)\nopen('/app/f', 'wb').write(bytes(20 << 20))\n{_UP}"
        dyno = bench.python(code)
        bench.up(dyno)
        bench.until(lambda: dyno.stats().disk >= 20 * MIB, "its file being counted")
        stats = dyno.stats()
        assert 40 * MIB < stats.memory < 60 * MIB
        assert stats.disk < 24 * MIB
        assert stats.cpu > 0
        assert stats.pids == 2

    # -- isolation

    def test_it_has_no_capabilities_and_gains_none(self, bench: Bench) -> None:
        code = (
            "import json; print(json.dumps(dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines())))"
        )
        status = bench.result(code)
        assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
        assert status["NoNewPrivs"] == "1"

    def test_sys_is_hidden_and_proc_sys_is_readonly(self, bench: Bench) -> None:
        code = """
import json, os
def refused(path):
    try: open(path, 'w').write('1')
    except OSError: return True
places = ['/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/sys/x', '/x']
print(json.dumps([os.listdir('/sys'), *map(refused, places)]))
"""
        assert bench.result(code) == [[], True, True, True, True]

    def test_neighbours_are_out_of_reach_and_the_host_reaches_both(self, bench: Bench) -> None:
        serve = "import socket\ns = socket.create_server(('0.0.0.0', 5000))\nwhile True: s.accept()[0].close()"
        neighbour = bench.python(serve)
        bench.until(lambda: neighbour.listeners(), "listening")
        assert neighbour.address
        assert bench.result(CONNECT.format(targets=[(neighbour.address, 5000)])) != {neighbour.address: "connected"}
        socket.create_connection((neighbour.address, 5000), 30).close()

    def test_the_host_is_out_of_reach_at_once(self, bench: Bench) -> None:
        gateway = bench.host.instance.gateway
        with socket.create_server(("0.0.0.0", 0)) as server:
            port = server.getsockname()[1]
            # Linux says it to one address six times at once, then once a second (net.ipv4.icmp_ratelimit); the rest waits
            own = [address for address in _host_addresses() if address != gateway][:5]
            targets = [(address, port) for address in (gateway, *own)]
            results = bench.result(CONNECT.format(targets=targets))
        there = {gateway, *_host_addresses()}  # another Davit's bridge may have gone meanwhile
        assert {results[one] for one in results if one in there} <= {"OSError113", "ConnectionRefusedError111"}, results

    def test_private_networks_and_metadata_are_out_of_reach_at_once(self, bench: Bench) -> None:
        targets = [
            (address, 80)
            for address in ("169.254.169.254", "10.1.2.3", "192.168.1.1", "172.16.0.1", "100.64.0.1", "198.19.255.1")
        ]
        results = bench.result(CONNECT.format(targets=targets))
        assert set(results.values()) == {bench.unreachable}, results

    def test_mail_is_refused(self, bench: Bench) -> None:
        assert bench.result(CONNECT.format(targets=[("8.8.4.4", 25)])) == {"8.8.4.4": bench.unreachable}

    def test_without_a_network_it_has_the_loopback_only(self, bench: Bench) -> None:
        code = "import socket, json; print(json.dumps([name for _, name in socket.if_nameindex()]))"
        assert bench.result(code, network=False) == [bench.loopback]

    def test_another_dynos_files_and_processes_are_not_there(self, bench: Bench) -> None:
        bench.start("echo secret > /tmp/mine; sleep 60")
        code = "import json, os; print(json.dumps([os.listdir('/tmp'), [p for p in os.listdir('/proc') if p.isdigit()]]))"
        assert bench.result(code) == [[], ["1", "2"]]

    # -- looking in

    def test_listeners_say_address_and_port(self, bench: Bench) -> None:
        code = f"import signal, socket\nall = [socket.create_server(a) for a in (('127.0.0.1', 5001), ('0.0.0.0', 5000))]\n{_UP}"
        dyno = bench.python(code)
        bench.until(lambda: len(dyno.listeners()) == 2, "listening")
        assert sorted((one.address, one.port) for one in dyno.listeners()) == [("0.0.0.0", 5000), ("127.0.0.1", 5001)]

    def test_a_further_command_runs_inside_as_its_user(self, bench: Bench) -> None:
        dyno = bench.start("sleep 60")
        script = "id -u; echo $A; grep CapEff /proc/self/status; exit 9"
        exit, said = bench.command(dyno, ["/bin/bash", "-c", script], {**ENV, "A": "b"})
        assert exit == Exit(9)
        assert said.split() == ["1000", "b", "CapEff:", "0" * 16]
        assert not dyno.ended

    def test_a_further_command_that_is_not_there_is_a_sentence(self, bench: Bench) -> None:
        dyno = bench.start("sleep 60")
        with pytest.raises(DavitError, match="nonexistent"):
            bench.run(dyno.exec(["/nonexistent"], ENV))

    def test_a_terminal_has_a_size_that_changes(self, bench: Bench) -> None:
        dyno = bench.start("trap 'stty size; exit 0' WINCH; stty size; while true; do sleep 0.05; done", terminal=(33, 101))
        assert dyno.terminal_fd is not None
        assert _read_line(bench, dyno.terminal_fd) == "33 101"
        bench.run(dyno.resize_terminal(40, 120))
        assert _read_line(bench, dyno.terminal_fd) == "40 120"
        assert bench.run(dyno.wait()) == Exit(0)
        assert struct.unpack("HHHH", ioctl(dyno.terminal_fd, termios.TIOCGWINSZ, bytes(8)))[:2] == (40, 120)

    def test_a_further_command_may_have_a_terminal(self, bench: Bench) -> None:
        dyno = bench.start("sleep 60")
        command = bench.run(dyno.exec(["/bin/bash", "-c", "stty size; exit 2"], ENV, terminal=(20, 70)))
        assert command.terminal_fd is not None
        assert _read_line(bench, command.terminal_fd) == "20 70"
        assert bench.run(command.wait()) == Exit(2)
        bench.run(command.remove())

    def test_many_start_at_once(self, bench: Bench) -> None:
        async def all_of_them() -> list[int | None]:
            dynos = await asyncio.gather(*(bench.driver.start(bench.spec("exit 5")) for _ in range(12)))
            assert len({dyno.address for dyno in dynos}) == 12
            return [(await dyno.wait()).status for dyno in dynos]

        assert bench.run(all_of_them()) == [5] * 12


class SharedKernelContract(DriverContract):
    """What is promised besides where dynos share the host's kernel."""

    def test_its_writable_layer_lies_on_the_host(self, bench: Bench) -> None:
        dyno = bench.start("echo new >> hello.txt")
        bench.run(dyno.wait())
        assert (dyno.upper / "app/hello.txt").read_text().endswith("new\n")

    def test_system_calls_are_filtered(self, bench: Bench) -> None:
        assert bench.result("import json; print(json.dumps('Seccomp:\\t2' in open('/proc/self/status').read()))")

    def test_its_terminals_are_counted(self, bench: Bench) -> None:
        code = """
import json, os
all = []
try:
    while len(all) < 99: all.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
except OSError as error: print(json.dumps([len(all), error.errno]))
"""
        assert bench.result(code) == [64, 28]

    def test_dangerous_system_calls_are_refused(self, bench: Bench) -> None:
        code = """
import ctypes, json, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(*args) < 0 else 0
def family(*args):
    try: socket.socket(*args).close(); return 0
    except OSError as error: return error.errno
import platform
x86 = platform.machine() == 'x86_64'
print(json.dumps({
    'unshare user': call(272 if x86 else 97, 0x10000000), 'clone3': call(435, 0, 0), 'keyctl': call(250 if x86 else 219, 0, 0),
    'bpf': call(321 if x86 else 280, 0, 0, 0), 'io_uring': call(425, 1, 0),
    'aio': call(206 if x86 else 0, 1, ctypes.byref(ctypes.c_ulong())),
    'clone newuser': call(56 if x86 else 220, 0x10000011, 0, 0, 0, 0),
    'odd families': [n for n in range(3, 45) if n not in (10, 16) and family(n, 1, 0) != 97],
    'AF_ALG': family(38, 5, 0), 'AF_VSOCK': family(40, 1, 0), 'AF_PACKET': family(17, 3, 0), 'netfilter': family(16, 3, 12),
    'route': family(16, 3, 0), 'inet': family(2, 1, 0), 'unix': family(1, 1, 0),
}))
"""
        assert bench.result(code) == {
            "unshare user": 1, "clone3": 38, "keyctl": 1, "bpf": 1, "io_uring": 38, "aio": 38, "clone newuser": 1, "odd families": [],
            "AF_ALG": 97, "AF_VSOCK": 97, "AF_PACKET": 97, "netfilter": 97, "route": 0, "inet": 0, "unix": 0,
        }  # fmt: skip


def maintenance(bench: Bench) -> set[object]:
    return {task for task in bench.host.tasks if "_maintain" in repr(task)}


def _read_line(bench: Bench, fd: int) -> str:
    os.set_blocking(fd, False)
    text = b""

    def complete() -> bool:
        nonlocal text
        try:
            text += os.read(fd, 1)
        except BlockingIOError:
            return False
        return text.endswith(b"\n")

    async def read() -> None:
        while not complete():
            await asyncio.sleep(0 if text else 0.01)

    bench.run(read(), 15 * PATIENCE)
    return text.decode().strip()


def _host_addresses() -> list[str]:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        return [address.get_attr("IFA_ADDRESS") for address in ip.get_addr(family=2)]
