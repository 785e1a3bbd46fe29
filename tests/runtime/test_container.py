"""The container driver keeps the contract: all of it with crun; with runc what an OCI runtime could do otherwise."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import Conflict, DavitError
from runtime import ociruntime
from runtime.driver import Exit, Listener, Unsupported
from tests.e2e.errors_page import assert_says
from tests.runtime.bench_of_driver import ENV, Bench
from tests.runtime.contract import SAYS_GOODBYE, DriverContract, SharedKernelContract, maintenance

pytestmark = [pytest.mark.root]


_NS_GET_OWNER_UID = 0xB704  # ioctl_ns(2)


@pytest.mark.row("no-network")
class TestWithCrun(SharedKernelContract):
    """Every test of the contract."""

    oci_runtime = "crun"

    def test_no_device_of_the_hosts_becomes_a_dynos(self, bench: Bench) -> None:
        """Who owns a device may forbid it to everybody else; OCI runtimes give away what they get as standard streams."""
        names = ("null", "zero", "full", "random", "urandom", "tty")
        owned_before = {name: (os.stat(f"/dev/{name}").st_uid, os.stat(f"/dev/{name}").st_mode) for name in names}
        with open("/dev/null", "r+b", buffering=0) as null:
            given = bench.start("chmod 0 /dev/stdin /dev/null /dev/zero; true", stdio=(null.fileno(),) * 3)
            assert bench.run(given.wait()) == Exit(0)
        own = bench.start("chmod 0 /dev/stdin /dev/null; touch /tmp/up; sleep 60")
        bench.until(lambda: (own.root / "tmp/up").exists(), "the attempt")
        further = bench.run(own.exec(["/bin/sh", "-c", "chmod 0 /dev/stdin /dev/stdout /dev/null; true"], ENV))
        bench.run(further.wait())
        bench.run(further.remove())
        assert {name: (os.stat(f"/dev/{name}").st_uid, os.stat(f"/dev/{name}").st_mode) for name in names} == owned_before


    def test_a_runtime_that_starts_again_sees_off_what_the_earlier_one_asked_to_end(self, bench: Bench) -> None:
        code = f"/usr/bin/python3 -c {shlex.quote(SAYS_GOODBYE)}; true"
        dyno = bench.start(code)
        bench.up(dyno)
        bench.run(dyno.signal(signal.SIGTERM, everyone=True))
        found = bench.restart_the_runtime(dyno)
        assert not found.ended
        (found.root / "app/go").touch()
        assert bench.run(found.wait()) == Exit(128 + signal.SIGTERM)
        assert bench.output(found, "stderr") == "bye\n"

    @pytest.mark.parametrize("further", [False, True], ids=["a dyno", "a further command"])
    def test_who_gives_up_a_start_gives_away_no_other_descriptors(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, further: bool
    ) -> None:
        """The caller closes its own at once, and their numbers are another file's when the OCI runtime is started."""
        dyno = bench.waiting("up\n") if further else None
        begun, may_go_on, given = threading.Event(), threading.Event(), []
        spawn = bench.host.spawn

        def slowly(argv: Sequence[str], stdio: Sequence[int], *more: Any) -> int:
            begun.set()
            assert may_go_on.wait(60)
            given.extend(os.fstat(fd).st_ino for fd in stdio)
            return spawn(argv, stdio, *more)

        def prepare(plan: Any) -> None:
            begun.set()
            assert may_go_on.wait(60)
            own_prepare(plan)

        own_prepare = bench.driver._prepare
        monkeypatch.setattr(bench.host, "spawn", slowly)
        monkeypatch.setattr(bench.driver, "_prepare", prepare)
        mine = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("in", "out", "err")]
        wanted = [os.fstat(fd).st_ino for fd in mine]
        spec = bench.spec("sleep 60", stdio=tuple(mine))

        async def give_up() -> None:
            stdio = (mine[0], mine[1], mine[2])
            starting = asyncio.ensure_future(dyno.exec(spec.command, ENV, stdio=stdio) if dyno else bench.driver.start(spec))
            await asyncio.to_thread(begun.wait, 60)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

        bench.run(give_up())
        for number, fd in enumerate(mine):
            os.dup2(other := os.open(tmp_path / f"others-{number}", os.O_RDWR | os.O_CREAT), fd)  # at once: another thread opens, too
            os.close(other)
        may_go_on.set()
        bench.until(lambda: len(given) == 3, "the start goes on")
        bench.until(lambda: list(bench.driver.running.values()) == ([dyno] if dyno else []) and not bench.host.tasks - maintenance(bench), "it is removed")
        assert given == wanted
        if dyno:
            assert "sleep" not in "".join(Path(f"/proc/{pid}/comm").read_text() for pid in dyno.cgroup.pids())
        for fd in mine:
            os.close(fd)

    def test_its_own_ports_are_connected_to_from_within_itself(self, bench: Bench) -> None:
        """On its loopback address, where nobody else is; the host's own port of the same number is another."""
        serve = "import socket; s = socket.create_server(('127.0.0.1', {port}))\nwhile 1: c = s.accept()[0]; c.sendall(c.recv(9).upper())"
        with socket.create_server(("127.0.0.1", 0)) as hosts:
            port = hosts.getsockname()[1]
            dyno = bench.python(serve.format(port=port))
            bench.until(lambda: Listener("127.0.0.1", port) in dyno.listeners(), "it listens")
            with bench.run(dyno.connect(port)) as line:
                line.settimeout(60)
                line.sendall(b"hello")
                assert line.recv(9) == b"HELLO"
            other = bench.start("sleep 60")
            with pytest.raises(Conflict, match=f"Nothing listens on port {port}"):
                bench.run(other.connect(port))
        bench.run(dyno.signal(signal.SIGKILL, everyone=True))
        bench.run(dyno.wait())
        with pytest.raises(DavitError, match="has ended"):
            bench.run(dyno.connect(port))
        with pytest.raises(Unsupported, match="no network"):
            bench.run(bench.start("sleep 60", network=False).connect(port))

    def test_what_the_kernel_counts_for_each_user_is_counted_for_each_dyno(self, bench: Bench) -> None:
        """A namespace's owner pays for who is in it, in inotify for one: root would, for all dynos and for itself."""
        dynos = [bench.start("sleep 60") for _ in range(2)]
        owners = []
        for dyno in dynos:
            with open(f"/proc/{dyno.pid}/ns/user") as namespace:
                owners.append(struct.unpack("I", ioctl(namespace, _NS_GET_OWNER_UID, bytes(4)))[0])
        assert owners == [bench.host.instance.uids(dyno.slot) for dyno in dynos] and len(set(owners)) == 2
        assert os.geteuid() == 0 and Path("/proc/self/status").read_text().count("Uid:\t0\t0\t0\t0") == 1

    def test_a_host_whose_root_may_not_give_a_dyno_its_own_owner_runs_it_all_the_same(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ociruntime.OciRuntime, "users", lambda self, namespace: "/nowhere" if self.joins else None)
        host = bench.host
        found = ociruntime.choose(bench.driver.oci.root, host.work / "probe", host.instance.cgroup)
        assert found.is_crun and not found.joins and bench.driver.oci.joins
        descriptor, found.copy = found.copy, None  # the link is the driver's
        assert descriptor is not None and bench.driver.oci.copy is not None
        os.close(descriptor)
        bench.driver.oci.hold(bench.driver.oci.copy)

    def test_crun_runs_from_a_copy_that_nobody_can_write_to(self, bench: Bench) -> None:
        """It spares each start crun's own copying; where the host allows none, crun copies itself."""
        runtime = bench.driver.oci
        assert runtime.copy is not None and runtime.program != runtime.path
        with pytest.raises(PermissionError):
            os.pwrite(runtime.copy, b"x", 0)
        copy, runtime.copy = runtime.copy, None
        assert runtime.program == runtime.path
        assert bench.run(bench.start("exit 3").wait()) == Exit(3)
        runtime.copy = copy


class TestWithRunc:
    """What crun and runc do differently."""

    oci_runtime = "runc"

    @pytest.mark.row("runc-exec")
    def test_a_further_command_is_refused_with_what_to_do(self, bench: Bench) -> None:
        dyno = bench.start("sleep 60")
        for terminal in (None, (20, 70)):
            with pytest.raises(Unsupported) as refused:
                bench.run(dyno.exec(["/bin/true"], ENV, terminal=terminal))
            assert_says("runc-exec", refused.value.message)
        assert not dyno.ended

    test_status = DriverContract.test_output_goes_to_the_fifos_and_the_status_is_the_commands
    test_slug = DriverContract.test_the_slug_is_its_app_and_writable
    test_environment = DriverContract.test_its_environment_is_the_given_one_and_nothing_else
    test_secrets = DriverContract.test_no_secret_stays_in_a_file_or_on_a_command_line
    test_descriptors = DriverContract.test_none_of_the_runtimes_descriptors_reach_it
    test_reopened_output = DriverContract.test_a_program_may_open_its_standard_output_again
    test_bind = DriverContract.test_a_bind_shows_the_hosts_files_as_its_own
    test_term = DriverContract.test_term_reaches_the_command_which_may_take_its_time
    test_memory = DriverContract.test_memory_beyond_the_limit_ends_it_and_is_told
    test_fork_bomb = DriverContract.test_a_fork_bomb_hurts_only_itself
    test_filter = SharedKernelContract.test_system_calls_are_filtered
    test_capabilities = DriverContract.test_it_has_no_capabilities_and_gains_none
    test_sys = DriverContract.test_sys_is_hidden_and_proc_sys_is_readonly
    test_system_calls = SharedKernelContract.test_dangerous_system_calls_are_refused
    test_terminal = DriverContract.test_a_terminal_has_a_size_that_changes


_MAKES_A_NAMESPACE = f"""
import fcntl, os, struct
from runtime import userns
namespace = userns.create(1 << 28)
print(struct.unpack("I", fcntl.ioctl(namespace, {_NS_GET_OWNER_UID}, bytes(4)))[0], os.geteuid())
"""


@pytest.mark.parametrize(("without", "owner"), [([], 1 << 28), (["setpriv", "--bounding-set=-setpcap"], 0)])
def test_a_root_that_may_not_keep_its_powers_as_somebody_else_makes_its_own_namespaces(without: list[str], owner: int) -> None:
    """It would lose them with the user's number; where only root may make namespaces there would be no dyno at all."""
    words = [*without, sys.executable, "-c", _MAKES_A_NAMESPACE]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([str(owner), "0"], "")
