"""The microVM driver keeps the contract. The core of it runs with every other test, and shares guests; the whole of it, a guest
for each test, is `make test-vms`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from select import select

import pytest

from runtime import cgroups, conntrack, qemu
from runtime.driver import Bind, Exit, Unsupported
from runtime.dynodir import DynoDirectory, Record
from runtime.microvm import kernel, machine, moving, protocol, pump
from runtime.microvm.agent import Agent
from runtime.microvm.driver import QEMU, MicroVmDriver
from runtime.microvm.dyno import MicroVm, StartFailed
from runtime.microvm.moving import MoveFailed
from runtime.microvm.protocol import Order
from tests.conftest import PATIENCE, wait_until
from tests.e2e.errors_page import assert_says
from tests.runtime.bench_of_driver import ENV, LIMITS, MIB
from tests.runtime.bench_of_microvm import MicroVmBench, require, stacks
from tests.runtime.contract import CONNECT, DriverContract

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(900)]

_COUNT = """
import http.server
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        body = str(count).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
print("up", flush=True)
http.server.HTTPServer(("0.0.0.0", 5000), Handler).serve_forever()
"""


_CALLS = """
import signal, socket
line = socket.socket()
line.setblocking(False)
line.connect_ex(("1.1.1.1", 443))
print("up", flush=True)
signal.pause()
"""
"""Whether anybody answers there does not matter."""


@pytest.fixture(scope="module")
def machines(loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]) -> Iterator[MicroVmBench]:
    """The open driver; nothing is left of it afterwards."""
    require()
    bench = MicroVmBench(loop, *images, DAVIT_STACKS=str(stacks()))
    bench.open()
    yield bench
    bench.close()
    assert bench.leftovers_on_host() == []


@pytest.fixture
def bench(machines: MicroVmBench) -> Iterator[MicroVmBench]:
    """The driver with its shared guest; after the test everything is as before it."""
    machines.share()
    before = machines.footprint()
    yield machines
    machines.remove_all()
    machines.wait_for_footprint(before)


@pytest.fixture
def own(machines: MicroVmBench) -> Iterator[MicroVmBench]:
    """The driver without the shared guest, for tests that boot their own."""
    machines.shared = None
    machines.remove_all()
    before = machines.footprint()
    yield machines
    machines.remove_all()
    machines.wait_for_footprint(before)


def start(bench: MicroVmBench, *command: str, **changes: object) -> MicroVm:
    """Start a microVM."""
    return bench.run(bench.vm.start(bench.spec(*command, **changes)))


def ask(dyno: MicroVm) -> str:
    """What the counting server says next."""
    with urllib.request.urlopen(f"http://{dyno.address}:5000/", timeout=60) as answer:
        return str(answer.read().decode())


class TestSharedGuest:
    """What can be seen in a guest without changing it."""

    test_capabilities = DriverContract.test_it_has_no_capabilities_and_gains_none
    test_sys = DriverContract.test_sys_is_hidden_and_proc_sys_is_readonly
    test_descriptors = DriverContract.test_none_of_the_runtimes_descriptors_reach_it
    test_host = DriverContract.test_the_host_is_out_of_reach_at_once
    test_private = DriverContract.test_private_networks_and_metadata_are_out_of_reach_at_once
    test_mail = DriverContract.test_mail_is_refused

    def test_further_commands(self, bench: MicroVmBench) -> None:
        dyno = bench.share()
        script = "id -u; echo $A; grep CapEff /proc/self/status; hostname 2>/dev/null || cat /proc/sys/kernel/hostname; exit 9"
        exit, said = bench.command(dyno, ["/bin/bash", "-c", script], {**ENV, "A": "b\nc"})  # type: ignore[arg-type]
        assert exit == Exit(9)
        assert said.split() == ["1000", "b", "c", "CapEff:", "0" * 16, "web.1"]
        with pytest.raises(StartFailed, match="nonexistent"):
            bench.run(dyno.exec(["/nonexistent"], ENV))

    @pytest.mark.slow
    def test_more_commands_than_it_takes_are_refused_and_those_that_do_not_start_leave_nothing(self, bench: MicroVmBench) -> None:
        dyno = bench.share()

        async def none_starts(times: int) -> None:
            for _ in range(times):
                with pytest.raises(StartFailed, match="No such file"):
                    await dyno.exec(["/nonexistent"], ENV)

        bench.run(none_starts(400), 300)  # its agent has 1024 descriptors
        running = [bench.run(dyno.exec(["/usr/bin/sleep", "1000"], ENV)) for _ in range(31)]
        with pytest.raises(StartFailed, match=r"could not be started in web\.1: 31 commands run in it, as many as can\."):
            bench.run(dyno.exec(["/usr/bin/true"], ENV))
        for command in running:
            bench.run(command.remove())
        assert bench.command(dyno, ["/bin/bash", "-c", "echo again"], ENV) == (Exit(0), "again\n")  # type: ignore[arg-type]

    def test_a_terminal_has_a_size_that_changes(self, bench: MicroVmBench) -> None:
        from tests.runtime.contract import _read_line

        script = "trap 'stty size; exit 2' WINCH; stty size; while true; do sleep 0.05; done"
        command = bench.run(bench.share().exec(["/bin/bash", "-c", script], ENV, terminal=(33, 101)))
        assert command.terminal_fd is not None
        assert _read_line(bench, command.terminal_fd) == "33 101"
        bench.run(command.resize_terminal(40, 120))
        assert _read_line(bench, command.terminal_fd) == "40 120"
        assert bench.run(command.wait()) == Exit(2)
        bench.run(command.remove())

    def test_much_passes_through_a_further_command_unharmed(self, bench: MicroVmBench, tmp_path: Path) -> None:
        data = os.urandom(3 << 20)
        (tmp_path / "in").write_bytes(data)
        with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
            stdio = (source.fileno(), target.fileno(), target.fileno())
            command = bench.run(bench.share().exec(["/bin/cat"], ENV, stdio=stdio))
            assert bench.run(command.wait()) == Exit(0)
            bench.run(command.remove())
        assert (tmp_path / "out").read_bytes() == data

    def test_qemu_is_confined_and_its_command_line_holds_no_secret(self, bench: MicroVmBench) -> None:
        dyno = bench.share()
        proc = Path(f"/proc/{dyno.pid}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split()[0] == str(bench.host.instance.uids(dyno.slot) + 1000)
        assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
        assert "var" not in os.listdir(proc / "root")
        (cores,) = [line.split() for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core file size")]
        assert cores[4] == cores[5] == "0", "a core would hold the guest's memory"
        assert b"PYTHONDONTWRITEBYTECODE" not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        assert dyno.cgroup.holds(dyno.pid)

    def test_neighbours_are_out_of_reach_and_the_host_reaches_both(self, bench: MicroVmBench) -> None:
        """The neighbour is another place on the bridge, in which something listens: a further guest would cost a boot."""
        dyno, slot = bench.share(), bench.host.pool.reserve()
        serve = "import socket\ns = socket.create_server(('0.0.0.0', 5001))\nwhile True: s.accept()[0].close()"
        command = bench.run(dyno.exec(["/usr/bin/python3", "-c", serve], ENV))
        bench.until(lambda: any(one.port == 5001 for one in dyno.listeners()), "listening")
        assert dyno.address
        socket.create_connection((dyno.address, 5001), 30).close()
        place = bench.host.network.connect(slot)
        try:
            neighbour = (bench.host.instance.address(slot), 5002)
            with bench.host.network.line_inside(place) as listening:
                listening.bind(("0.0.0.0", 5002))
                listening.listen(8)
                socket.create_connection(neighbour, 30).close()
                assert bench.result(CONNECT.format(targets=[neighbour])) != {neighbour[0]: "connected"}
        finally:
            os.close(place)
            bench.host.network.disconnect(slot)
            bench.loop.call_soon(bench.host.pool.free, slot)
        bench.run(command.signal(signal.SIGKILL))
        assert bench.run(command.wait()) == Exit(137)
        bench.run(command.remove())

    def test_the_time_and_the_name_servers_are_the_hosts_also_later(self, bench: MicroVmBench) -> None:
        """Nothing in a guest keeps time with anybody, and its resolv.conf is its own."""
        dyno = bench.share()
        assert dyno.agent is not None

        def said(command: str) -> str:
            return bench.command(dyno, ["/bin/bash", "-c", command], ENV)[1]  # type: ignore[arg-type]

        async def tell() -> None:
            async with dyno.moving:
                await dyno.tell()

        wrong = Order(clock=time.time_ns() + 10**9 * 86400 * 365, resolv="nameserver 192.0.2.1\n")
        bench.run(dyno.agent.ask(lambda number: protocol.order(protocol.APPLY, number, wrong), 120))
        assert int(said("echo $EPOCHSECONDS")) > time.time() + 86400 and "192.0.2.1" in said("cat /etc/resolv.conf")
        dyno._names_told = dyno._clock_told = None  # as when it is found again
        bench.run(tell())
        assert abs(int(said("echo $EPOCHSECONDS")) - time.time()) < 3600
        assert said("cat /etc/resolv.conf") == bench.host.resolv_conf.read_text()

    def test_binds_are_refused_with_a_sentence(self, bench: MicroVmBench, tmp_path: Path) -> None:
        with pytest.raises(Unsupported, match="directories of the host"):
            start(bench, "true", binds=[Bind(tmp_path, "/davit")])

    @pytest.mark.row("resize-uses")
    def test_a_resize_below_what_it_uses_is_refused(self, bench: MicroVmBench) -> None:
        with pytest.raises(Unsupported, match="more than the") as refused:
            bench.run(bench.share().update(replace(LIMITS, memory=4096)))
        assert_says("resize-uses", refused.value.message)


class TestLife:
    """From the start to the end, and what may come between."""

    test_output = DriverContract.test_output_goes_to_the_fifos_and_the_status_is_the_commands

    def test_it_serves_grows_moves_sleeps_wakes_and_ends(self, own: MicroVmBench, monkeypatch: pytest.MonkeyPatch) -> None:
        """One guest, so that its memory must come through all of it."""
        monkeypatch.setattr(own.vm, "qemu_version", (7, 0, 0))  # as where the package was upgraded since Davit started
        dyno = start(own, "/usr/bin/python3", "-c", _COUNT)
        own.until(lambda: any(one.port == 5000 for one in dyno.listeners()), "listening")
        assert [ask(dyno), ask(dyno)] == ["1", "2"]

        grown = replace(LIMITS, memory=512 * MIB, memory_max=512 * MIB, cpu_shares=2048, cpu_quota=2.0)
        own.run(dyno.update(grown))
        large = _memory(own, dyno)
        assert large > 450 and _processors(own, dyno) == qemu.processors(grown, os.cpu_count() or 1)
        before = dyno.pid
        assert 0 <= own.run(dyno.migrate(contextlib.nullcontext)) < 60
        assert dyno.pid != before
        assert ask(dyno) == "3"

        # it serves one at a time: before this one has ended nobody else is answered
        held = socket.create_connection((dyno.address or "", 5000), 60)
        snapshot = own.home / "snapshot"
        monkeypatch.setattr(moving, "_held_layer", None)  # nothing of its disk is copied, now or the next time
        own.run(dyno.suspend(snapshot))
        assert own.run(dyno.wait()) == Exit(0)
        assert all(path.stat().st_mode & 0o77 == 0 for path in (snapshot, *snapshot.iterdir()))
        own.run(dyno.remove())
        with pytest.raises(StartFailed, match=r"could not be started: The virtual machine.*\(.*migration"):
            own.run(own.vm.resume(own.spec("/usr/bin/python3", "-c", _COUNT), _cut_off(snapshot, own.home / "cut-off")))
        assert not (own.home / "cut-off").exists() and not own.vm.running
        introduce, waking = moving.introduce, list[bool]()

        async def look(driver: MicroVmDriver, record: Record, agent: Agent, seconds: float) -> None:
            known = DynoDirectory(own.host.dynos / record.id).read()
            waking.append(known is not None and known.slot == record.slot and known.facts["waking"])
            await introduce(driver, record, agent, PATIENCE * seconds)

        monkeypatch.setattr(moving, "introduce", look)
        woken = own.run(own.vm.resume(own.spec("/usr/bin/python3", "-c", _COUNT), snapshot))
        assert waking == [True] and not woken.record.facts["waking"], "whoever finds it before it knows where it is has to tell it"
        assert not snapshot.exists() and own.vm.layer(woken.record.id).exists()
        assert woken.address != dyno.address
        assert ask(woken) == "4", "what it was connected with when it fell asleep has not ended for it"
        held.close()
        facts = woken.record.facts
        assert facts["plugged_memory"] > 0 and _limit(woken) > facts["memory"] + facts["plugged_memory"]
        own.run(woken.update(LIMITS))
        assert _memory(own, woken) < large  # by how much depends on what a busy guest can move within the time it has
        assert _processors(own, woken) == 1
        booted = _ballooned(own, woken)
        own.run(woken.update(replace(LIMITS, memory=96 * MIB, memory_max=96 * MIB)))
        wait_until(lambda: _ballooned(own, woken) <= booted - 32 * MIB, "what it booted with and may not use any more goes back")
        own.run(woken.update(LIMITS))
        assert _ballooned(own, woken) == booted and ask(woken) == "5"
        own.run(woken.signal(signal.SIGTERM))
        assert own.run(woken.wait()) == Exit(128 + signal.SIGTERM)

    def test_term_reaches_the_app_below_a_shell_and_its_slug_is_writable(self, own: MicroVmBench) -> None:
        script = "trap 'sleep 1; echo bye; exit 3' TERM; pwd; id -u; echo new >> hello.txt; cat hello.txt; while true; do sleep 0.05; done"
        dyno = start(own, f"bash -c {shlex.quote(script)}; true")
        own.until(lambda: "new" in own._said(dyno), "writing")  # type: ignore[arg-type]
        own.run(dyno.signal(signal.SIGTERM, everyone=True))
        assert own.run(dyno.wait()) == Exit(128 + signal.SIGTERM)  # the shell's, which has gone before
        said = own.output(dyno).split("\n")  # type: ignore[arg-type]
        assert said == ["/app", "1000", "Hello from the slug", "new", "bye", ""]

    def test_killing_it_is_told_and_leaves_nothing_not_even_what_the_kernel_knows_of_its_connections(
        self, own: MicroVmBench
    ) -> None:
        """A container's end closes its sockets; a machine that is killed tells nobody, and whoever has its address next would get
        what is still to come."""
        dyno = start(own, "/usr/bin/python3", "-c", _CALLS)
        assert dyno.address
        own.until_it_has_said(dyno, "up\n")  # type: ignore[arg-type]
        own.kill_the_keeper(dyno)  # type: ignore[arg-type]
        assert own.run(dyno.wait()) == Exit(128 + signal.SIGKILL)
        assert _remembered(dyno.address)
        own.run(dyno.remove())
        own.until(lambda: not own.host.pool.leaving, "its place is free")
        assert not _remembered(dyno.address)
        assert own.output(dyno) == "up\n"  # type: ignore[arg-type]

    test_flood = DriverContract.test_a_flood_waits_for_its_reader_and_holds_up_nobody

    def test_a_killed_runtime_finds_its_guest_again_and_knows_how_it_ended(
        self, loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]
    ) -> None:
        require()
        other = MicroVmBench(loop, *images, DAVIT_STACKS=str(stacks()))
        env = {**os.environ, "DAVIT_HOME": str(other.home), "DAVIT_STACKS": str(stacks())}
        script = "trap 'exit 3' TERM; while true; do sleep 0.05; done"
        ends = "sleep 5; echo done; exit 5"  # not before its runtime is killed: that would see its end, and end its machine
        argv = [sys.executable, "-m", "tests.runtime.microvm_other_process", *map(str, images), script, ends]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
            assert process.stdout
            started = json.loads(process.stdout.readline())
            process.kill()
        stdout = os.open(other.home / "run/dynos/dyno-2/stdout", os.O_RDONLY | os.O_NONBLOCK)
        wait_until(lambda: select([stdout], [], [], 0)[0], "the second says that it is done")
        os.close(stdout)
        other.open()
        try:
            found = {dyno.spec_id: dyno for dyno in other.run(other.vm.adopt())}
            assert {id: dyno.pid for id, dyno in found.items()} == {id: pid for id, pid in started}
            ended = found["dyno-2"]
            assert other.run(ended.wait()) == Exit(5)
            alive = found["dyno-1"]
            other.until(lambda: _pids(alive) == 3, "its sleep, after which its trap is set; the further command is hung up")
            exit, said = other.command(alive, ["/bin/bash", "-c", "echo another"], ENV)  # type: ignore[arg-type]
            assert (exit, said) == (Exit(0), "another\n")
            other.run(alive.signal(signal.SIGTERM))
            assert other.run(alive.wait()) == Exit(3)
        finally:
            other.close()
        assert other.leftovers_on_host() == []


class TestBadInput:
    """Each a sentence, and nothing left."""

    @pytest.mark.row("microvm-no-qemu")
    def test_qemu_missing_or_too_old(self) -> None:
        with pytest.raises(Unsupported, match="not installed") as missing:
            qemu.find(QEMU, "qemu-system-that-is-not-there")
        assert_says("microvm-no-qemu", missing.value.message)
        with pytest.raises(Unsupported, match=r"need QEMU 7\.0 or newer; this host has 6\.2\.0"):
            qemu.parse_version(QEMU, "QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.26)")
        assert qemu.parse_version(QEMU, "QEMU emulator version 7.0.0") == (7, 0, 0)
        with pytest.raises(Unsupported, match="no QEMU"):
            qemu.parse_version(QEMU, "hello")

    @pytest.mark.row("microvm-no-kernel")
    def test_a_kernel_that_is_none_or_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(kernel.KernelMissing, match="stack:build --vm") as missing:
            kernel.current(tmp_path)
        assert_says("microvm-no-kernel", missing.value.message)
        require()
        good = kernel.current(stacks())
        copy = tmp_path / kernel.NAME / "1"
        shutil.copytree(good.directory, copy)
        (tmp_path / kernel.NAME / "current").symlink_to("1")
        assert kernel.current(tmp_path).version == "1"
        (copy / "vmlinux").write_bytes(b"no kernel")
        with pytest.raises(kernel.KernelMissing, match="damaged or no kernel"):
            kernel.current(tmp_path)

    @pytest.mark.row("microvm-boot")
    def test_a_guest_that_hangs_at_boot_or_stops_there(
        self, own: MicroVmBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("runtime.microvm.machine._KERNEL_WORDS", "console=ttyS0 rdinit=/none panic=-1")
        with pytest.raises(
            StartFailed, match=r"could not be started: its machine ended while it booted \(.*panic|its guest does not answer"
        ) as failed:
            start(own, "true")
        assert_says("microvm-boot", failed.value.message)

    def test_a_broken_snapshot_starts_nothing(self, own: MicroVmBench) -> None:
        snapshot = own.home / "broken"
        snapshot.mkdir()
        (snapshot / "machine.json").write_text("{")
        with pytest.raises(MoveFailed, match="damaged"):
            own.run(own.vm.resume(own.spec("true"), snapshot))
        assert not snapshot.exists()

    test_full = DriverContract.test_a_host_that_is_full_says_so
    test_network = DriverContract.test_a_network_that_the_kernel_refuses_starts_nothing


def _remembered(address: str) -> int:
    """How many connections that an address began the kernel knows of."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, conntrack._NETFILTER) as kernel:
        wanted = socket.inet_aton(address)
        kernel.send(conntrack._message(conntrack._GET, conntrack._REQUEST | conntrack._DUMP, 0, conntrack._begun_by(wanted)))
        return sum(beginner == wanted for beginner, _ in conntrack._told(kernel))


def _cut_off(snapshot: Path, to: Path) -> Path:
    """The beginning of a snapshot, which is what it says that it is: only QEMU can find out that it is not whole."""
    to.mkdir()
    os.link(snapshot / "scratch", to / "scratch")
    with (snapshot / "memory").open("rb") as memory:
        (to / "memory").write_bytes(memory.read(16 * MIB))
    told = json.loads((snapshot / "machine.json").read_text())
    (to / "machine.json").write_text(json.dumps({**told, "size": 16 * MIB, "digest": pump.digest_of(to / "memory")}))
    return to


def _pids(dyno: MicroVm) -> int:
    """How many processes it has, as it told within the last seconds."""
    return dyno.stats().pids


def _memory(bench: MicroVmBench, dyno: MicroVm) -> int:
    """The guest's memory in MiB."""
    exit, said = bench.command(dyno, ["/usr/bin/head", "-1", "/proc/meminfo"], ENV)  # type: ignore[arg-type]
    assert exit == Exit(0)
    return int(said.split()[1]) // 1024


def _ballooned(bench: MicroVmBench, dyno: MicroVm) -> int:
    """Bytes that the guest has of what it booted with."""
    assert dyno.monitor is not None
    return int(bench.run(dyno.monitor.execute("query-balloon"))["actual"])


def _processors(bench: MicroVmBench, dyno: MicroVm) -> int:
    """How many processors a program in the guest may use."""
    exit, said = bench.command(dyno, ["/usr/bin/python3", "-c", "import os; print(len(os.sched_getaffinity(0)))"], ENV)  # type: ignore[arg-type]
    assert exit == Exit(0)
    return int(said)


def _limit(dyno: MicroVm) -> int:
    """Bytes of memory that QEMU may take, as the kernel says."""
    name = "memory.max" if dyno.cgroup.v2 else "memory.limit_in_bytes"
    return next(int((place / name).read_text()) for place in cgroups.layout().directories(dyno.record.cgroup) if (place / name).exists())


def test_a_machine_is_composed_of_its_parts() -> None:
    whole = machine.Machine("app/web.1", 608 * MIB, 1024 * MIB, 1, 4, mac="02:00:00:00:00:01")
    words = machine.command("qemu", whole)
    assert words[words.index("-m") + 1] == "size=608M,maxmem=1632M"
    assert any(word.startswith("virtio-net-pci") and "02:00:00:00:00:01" in word and "guest_announce=off" in word for word in words)
    assert "tap,id=net,fd=8,vhost=off" in words
    assert words[words.index("-sandbox") + 1].startswith("on,")
    assert {"dump-guest-core=off", "mem-merge=off"} <= set(words[words.index("-M") + 1].split(","))
    alone = machine.command("qemu", replace(whole, mac=None, slug=False, scratch=False, fifos=False, incoming=True))
    assert not any("virtio-net" in word or "slug" in word or "scratch" in word for word in alone)
    assert alone[-2:] == ["-incoming", f"fd:{machine.INCOMING}"]


def test_processors_follow_the_size_and_the_host() -> None:
    assert qemu.processors(LIMITS, 8) == 1
    assert qemu.processors(replace(LIMITS, cpu_shares=4096, cpu_quota=8.0), 8) == 4
    assert qemu.processors(replace(LIMITS, cpu_shares=65536, cpu_quota=2.0), 8) == 2


@pytest.mark.slow
class TestWhole(
    DriverContract,
    left_out={
        "test_a_bind_shows_the_hosts_files_as_its_own": "nothing of the host's can be shown in a machine of its own; that is refused",
        "test_many_start_at_once": "twelve kernels at once are more than an emulating machine boots within the test's time",
    },
):
    """Every test of the contract, each in guests of its own."""

    @pytest.fixture
    def bench(self, own: MicroVmBench) -> Iterator[MicroVmBench]:
        """No guest is shared."""
        own.sharing = False
        yield own
        own.sharing = True


def test_the_driver_says_what_it_is() -> None:
    assert MicroVmDriver.isolation == "microvm"
