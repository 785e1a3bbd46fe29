"""A real OSv kernel: deselected, and said so, where none is given. What runs in it comes from the real stack."""

from __future__ import annotations

import asyncio
import mmap
import os
import shlex
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import stacks
from runtime.driver import DynoSpec, Exit, Limits
from runtime.osv import zfs
from runtime.osv.dyno import Unikernel
from slugs import rofs
from tests.runtime import rootfs
from tests.runtime.bench_of_driver import ENV as CONTRACT_ENV
from tests.runtime.bench_of_driver import MIB, Bench
from tests.runtime.bench_of_osv import OsvBench
from tests.runtime.contract import DriverContract

pytestmark = [pytest.mark.root, pytest.mark.osv, pytest.mark.timeout(600)]
LIMITS = Limits(memory=256 * MIB, memory_max=512 * MIB, cpu_quota=1.0, pids=64)
ENV = {"PATH": "/usr/bin:/bin", "HOME": "/app", "PORT": "8080", "LANG": "C.UTF-8"}
STACKS = Path(os.environ.get("DAVIT_STACKS") or "/var/cache/davit/stacks")

SAY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
extern char **environ;
int main(int argc, char **argv)
{
    for (char **entry = environ; *entry; entry++) { fputs("E", stdout); for (char *c = *entry; *c; c++) printf("%02x", (unsigned char)*c); putchar('\n'); }
    for (int i = 1; i < argc; i++) { fputs("A", stdout); for (char *c = argv[i]; *c; c++) printf("%02x", (unsigned char)*c); putchar('\n'); }
    fflush(stdout);
    exit(argc > 1 && !strcmp(argv[1], "fail") ? 42 : 0);
}
"""
RETURNS = r"""
#include <stdio.h>
int main(int argc, char **argv) { puts("returning"); return argc > 1 ? 7 : 0; }
"""
BY_OSV = ["-pie", "-fPIE", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"]
"""For a program that OSv's own loader runs: musl's programs are, and OSv brings what they need of a libc."""
WEB = """
import os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("Hello from " + os.uname().sysname + " " + os.environ.get("GREETING", "")).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
print("listening", flush=True)
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


class KernelBench(OsvBench):
    """A bench with a real kernel."""

    patience = 8.0
    limits = LIMITS
    unreachable, loopback = "ConnectionRefusedError111", "lo0"  # so OSv takes the firewall's word, and names its own device

    # the contract's words are said by a real program here
    saying, waiting, deaf = Bench.saying, Bench.waiting, Bench.deaf  # type: ignore[assignment]
    crashing, flooding = Bench.crashing, Bench.flooding  # type: ignore[assignment]

    def spec(self, *command: str, **changes: Any) -> DynoSpec:
        """A dyno as the contract of all drivers asks for one: a program and its arguments, for there is no shell."""
        assert len(command) > 1, "a unikernel has no shell"
        base = super().spec(*command, env=CONTRACT_ENV, limits=LIMITS, isolation="osv", line=shlex.join(command))
        return replace(base, **changes)

    def start(self, *command: str, **changes: Any) -> Unikernel:  # type: ignore[override]
        return self.run(self.osv.start(self.spec(*command, **changes)), 300)

    def started(self, line: str, **changes: Any) -> Unikernel:
        base = DynoSpec(
            os.urandom(8).hex(), "web.1", "app", "app-id", self.stack, self.slug, [], ENV, LIMITS, isolation="osv", line=line
        )
        return self.run(self.osv.start(replace(base, **changes)), 300)

    def printed(self, dyno: Unikernel) -> str:
        self.run(dyno.wait(), 120)
        return self.output(dyno)

    def ready(self, dyno: Unikernel) -> None:
        self.until(lambda: dyno.listeners() or dyno.ended, "answering", 120)
        assert not dyno.ended, self.output(dyno)


@pytest.fixture(scope="module")
def kernel_bench(loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelBench]:
    directory = tmp_path_factory.mktemp("slug")
    (directory / "say.c").write_text(SAY)
    tree = directory / "slug/app"
    tree.mkdir(parents=True)
    for name, options in (("say", ["-pie", "-fPIE"]), ("say-static", ["-static"])):
        subprocess.run(["gcc", "-O1", *options, "-o", tree / name, directory / "say.c"], check=True)
    subprocess.run(["gcc", "-xc", "-O1", *BY_OSV, "-o", tree / "returns", "-"], input=RETURNS.encode(), check=True)
    slug = rootfs.app_image(directory, {"web.py": WEB, "wsgi.py": WSGI, "pause.py": PAUSE, "crash.py": CRASH, "shims.py": SHIMS})
    bench = KernelBench(loop, stacks.current(STACKS).run, slug, DAVIT_OSV_KERNEL=os.environ["DAVIT_OSV_KERNEL"])
    bench.open()
    bench.run(bench.started("./say").wait(), 60)  # its slug's image is made: what a test adds is left over
    bench.remove_all()
    yield bench
    bench.close()
    assert bench.leftovers_on_host() == []


WSGI = """
def app(environ, start):
    start("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
PAUSE = """
import signal, sys, time
def stop(*_):
    print("stopping", flush=True)
    sys.exit(9)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True: time.sleep(0.2)
"""
CRASH = "import ctypes, sys\nprint('before', flush=True)\nctypes.string_at(16)\n"
SHIMS = """
import asyncio, os, signal, socket, sys, tempfile, threading, time
began = time.monotonic(); time.sleep(0.1); assert time.monotonic() - began >= 0.1
a, b = socket.socketpair(); a.sendall(b"x"); assert b.recv(1) == b"x"
event = threading.Event(); threading.Timer(0.1, event.set).start(); assert event.wait(20)
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    await asyncio.sleep(0.05)
asyncio.run(main())
assert sys.stdin.read() == ""
print("shims hold", sys.version_info[:2], flush=True)
"""


@pytest.fixture
def bench(kernel_bench: KernelBench) -> Iterator[KernelBench]:
    before = kernel_bench.footprint()
    yield kernel_bench
    kernel_bench.remove_all()
    kernel_bench.wait_for_footprint(before)


def decoded(text: str) -> tuple[dict[str, str], list[str]]:
    environment, arguments = {}, []
    for line in text.splitlines():
        value = bytes.fromhex(line[1:]).decode()
        if line[0] == "E":
            name, _, content = value.partition("=")
            environment[name] = content
        else:
            arguments.append(value)
    return environment, arguments


def test_python_serves(bench: KernelBench) -> None:
    dyno = bench.started("python3 web.py", env={**ENV, "GREETING": "costs $5 – ünïcode"}, port=8080)
    bench.ready(dyno)
    answer = urllib.request.urlopen(f"http://{dyno.address}:8080/", timeout=30).read().decode()
    assert answer == "Hello from Linux costs $5 – ünïcode"
    bench.run(dyno.signal(signal.SIGTERM), 30)
    assert bench.run(dyno.wait(), 60).status == 143
    assert bench.output(dyno).startswith("listening\n")


VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(st.dictionaries(st.from_regex(r"X_[A-Z0-9_]{1,8}", fullmatch=True), VALUES, max_size=12), st.lists(VALUES, max_size=4))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_environment_arrives(bench: KernelBench, environment: dict[str, str], arguments: list[str]) -> None:
    words = {f"WORD_{number}": value for number, value in enumerate(arguments)}
    davits = {"DAVIT_W0": "mine", "DAVIT_SITE": "$theirs", "DAVIT_SIGNALS": "many", "DAVIT_DYNO": "ü"}
    given_environment = {**ENV, **environment, **davits, "X_TRAP": "a?=b $PATH \"q\" 'r' \\ &! ; ü\nsecond", "X_LONG": "y" * 20_000, "X-DASHED.NAME": "5 $ – ü"}
    line = " ".join(["./say", *(f'"${name}"' for name in words)])
    text = bench.printed(bench.started(line, env={**given_environment, **words}))
    found, seen = decoded(text)
    assert {name: found.get(name) for name in given_environment if name != "PATH"} == {
        k: v for k, v in given_environment.items() if k != "PATH"
    }
    assert seen == arguments


def test_a_hundred_and_fifty_variables_arrive(bench: KernelBench) -> None:
    many = {f"VARIABLE_{number}": f"{number} " + "v" * 90 for number in range(150)}
    found, _ = decoded(bench.printed(bench.started("./say", env={**ENV, **many})))
    assert {name: found.get(name) for name in many} == many


@pytest.mark.parametrize("program", ["./say", "./say-static"])
def test_native_programs_and_their_status(bench: KernelBench, program: str) -> None:
    dyno = bench.started(f"{program} fail")
    assert bench.run(dyno.wait(), 60) == Exit(42)
    assert decoded(bench.output(dyno))[1] == ["fail"]
    assert bench.run(bench.started(program).wait(), 60) == Exit(0)


@pytest.mark.parametrize(("line", "status"), [("./returns", 0), ("./returns fail", 7)])
def test_what_osvs_own_loader_runs_is_over_when_its_main_returns(bench: KernelBench, line: str, status: int) -> None:
    """OSv asks what runs beside it to end, and waits for that."""
    dyno = bench.started(line)
    assert bench.run(dyno.wait(), 60) == Exit(status)
    assert bench.output(dyno) == "returning\n"


def test_a_last_line_without_an_end_hides_no_status(bench: KernelBench) -> None:
    words = "import os, sys; sys.stdout.write('no'); sys.stdout.flush(); "
    for end, exit, said in (("sys.exit(3)", 3, "no"), ("os.abort()", 134, 'noUncaught signal 6 ("Aborted"). Powering off.\n')):
        dyno = bench.started('python3 -c "$CODE"', env={**ENV, "CODE": words + end})
        assert (bench.run(dyno.wait(), 60), bench.output(dyno)) == (Exit(exit), said)


def test_gunicorns_application_is_served_by_one_process(bench: KernelBench) -> None:
    dyno = bench.started("python3 -c \"import davit_wsgi, wsgi; davit_wsgi.serve(wsgi.app, '0.0.0.0', 8080, 4)\"", port=8080)
    bench.ready(dyno)
    assert [urllib.request.urlopen(f"http://{dyno.address}:8080/", timeout=30).read() for _ in range(20)] == [b"ok"] * 20
    bench.run(dyno.signal(signal.SIGTERM), 30)
    assert bench.run(dyno.wait(), 60) == Exit(0), bench.output(dyno)[-2000:]


def test_pythons_shims_hold(bench: KernelBench) -> None:
    assert "shims hold" in bench.printed(bench.started("python3 shims.py"))


def test_term_reaches_the_program_which_may_take_its_time(bench: KernelBench) -> None:
    dyno = bench.started("python3 pause.py")
    bench.until(lambda: b"up" in _peek(bench, dyno), "the handler", 120)
    bench.run(dyno.signal(signal.SIGTERM), 30)
    assert bench.run(dyno.wait(), 60) == Exit(9)


def test_without_an_agent_the_power_button_is_pressed(bench: KernelBench) -> None:
    dyno = bench.started("python3 pause.py")
    bench.until(lambda: b"up" in _peek(bench, dyno), "the program", 120)
    dyno.record.facts["agent"] = False
    bench.run(dyno.signal(signal.SIGTERM), 30)
    assert bench.run(dyno.wait(), 60) == Exit(143)


def test_a_crash_ends_it(bench: KernelBench) -> None:
    dyno = bench.started("python3 crash.py")
    assert bench.run(dyno.wait(), 120).status in (134, 139)
    assert bench.output(dyno).startswith("before\n")


def test_memory_that_runs_out_ends_it(bench: KernelBench) -> None:
    dyno = bench.started(
        'python3 -c "x = []\nwhile True: x.append(bytearray(1 << 20))"', limits=replace(LIMITS, memory=128 * MIB)
    )
    assert bench.run(dyno.wait(), 120).status in (1, 134, 137, 139)


def test_a_fork_is_refused_and_the_program_goes_on(bench: KernelBench) -> None:
    code = "import errno, os\ntry: os.fork()\nexcept OSError as e: print(errno.errorcode[e.errno], flush=True)\nprint('on')"
    dyno = bench.started('python3 -W ignore -c "$CODE"', env={**ENV, "CODE": code})
    assert (bench.printed(dyno), bench.run(dyno.wait())) == ("ENOSYS\non\n", Exit(0))


def test_app_is_readonly_and_tmp_is_not(bench: KernelBench) -> None:
    code = "import errno\ntry: open('/app/x', 'w')\nexcept OSError as e: print(errno.errorcode[e.errno])\nopen('/tmp/x', 'w').write('t'); print(open('/tmp/x').read())"
    assert bench.printed(bench.started('python3 -c "$CODE"', env={**ENV, "CODE": code})) in ("EROFS\nt\n", "EACCES\nt\n")


def test_neighbours_and_the_host_are_out_of_reach(bench: KernelBench) -> None:
    web = bench.started("python3 web.py", port=8080)
    bench.ready(web)
    code = (
        "import socket\nfor host, port in TARGETS:\n try: socket.create_connection((host, port), 4); print('reached', host)\n"
        " except OSError: print('no')"
    ).replace(
        "TARGETS", repr([(web.address, 8080), (web.address, 65077), (bench.host.instance.gateway, 22), ("169.254.169.254", 80)])
    )
    assert bench.printed(bench.started('python3 -c "$CODE"', env={**ENV, "CODE": code})) == "no\n" * 4


def _peek(bench: KernelBench, dyno: Unikernel) -> bytes:
    """What it has printed so far, left where it is."""
    import fcntl
    import struct
    import termios

    fd = os.open(bench.host.dynos / dyno.spec_id / "stdout", os.O_RDONLY | os.O_NONBLOCK)
    try:
        (waiting,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
        return b"up" if waiting >= 3 else b""
    finally:
        os.close(fd)


_NOT_IN_A_UNIKERNEL = {
    "there is no shell, no second stream and no standard input": (
        "test_output_goes_to_the_fifos_and_the_status_is_the_commands",
        "test_a_program_may_open_its_standard_output_again",
        "test_given_descriptors_are_its_standard_streams",
        "test_without_a_slug_its_app_is_empty_and_writable",
    ),
    "nothing but /tmp can be written to": (
        "test_the_slug_is_its_app_and_writable",
        "test_a_readonly_dyno_writes_nowhere_but_in_tmp",
        "test_a_full_disk_is_its_own",
    ),
    "nothing of the host's can be shown in it; that is refused": ("test_a_bind_shows_the_hosts_files_as_its_own",),
    "its kernel adds variables of its own": ("test_its_environment_is_the_given_one_and_nothing_else",),
    "it is called osv.local, unless its REST server tells it otherwise": ("test_its_name_is_its_host_name",),
    "there is no Linux in it to look at a process with": (
        "test_none_of_the_runtimes_descriptors_reach_it",
        "test_signals_have_their_default_effect",
        "test_it_has_no_capabilities_and_gains_none",
        "test_sys_is_hidden_and_proc_sys_is_readonly",
        "test_another_dynos_files_and_processes_are_not_there",
    ),
    "one program runs in it, without fork": (
        "test_a_signal_to_everyone_reaches_grandchildren",
        "test_an_app_below_a_shell_may_take_its_time",
        "test_a_further_command_does_not_keep_a_dyno_that_ends",
        "test_memory_of_a_child_counts_as_the_dynos",
        "test_a_fork_bomb_hurts_only_itself",
        "test_a_further_command_runs_inside_as_its_user",
        "test_a_further_command_that_is_not_there_is_a_sentence",
        "test_a_terminal_has_a_size_that_changes",
        "test_a_further_command_may_have_a_terminal",
    ),
    "its memory is what it was started with; another is refused": (
        "test_limits_change_while_it_runs",
        "test_limits_shrink_while_it_runs_and_hold",
    ),
    "its processes and its disk are not counted: it has one, and none": ("test_stats_tell_what_it_uses",),
    "a port is seen by asking it over HTTP, and this test's answers nobody; that one which serves is seen is shown by another": (
        "test_listeners_say_address_and_port",
        "test_neighbours_are_out_of_reach_and_the_host_reaches_both",
    ),
    "twelve kernels at once are more than an emulating machine boots within the test's time": ("test_many_start_at_once",),
}


class TestContract(
    DriverContract, left_out={name: reason for reason, names in _NOT_IN_A_UNIKERNEL.items() for name in names}
):
    """What is promised of every driver, as far as one program that has neither a shell nor a second process can show it. What a
    unikernel has otherwise is tested above; what it has not is refused (test_osv_driver.py)."""


def test_a_zfs_image_holds_what_was_sent_to_the_builder(tmp_path: Path) -> None:
    """The builder is looked for beside the kernel, under the name that OSv gives it."""
    builder = Path(os.environ["DAVIT_OSV_KERNEL"]).with_name("zfs_builder-stripped.elf")
    if not builder.exists():
        pytest.skip(f"there is no {builder}: no ZFS image was made")
    tree = rofs.Folder()
    words = [os.urandom(10_000) for _ in range(40)]  # what cannot be compressed lies in the image as it is
    for number, word in enumerate(words):
        tree.add(f"app/{number}.txt", rofs.data(word))
    assert zfs.build(builder, tree, tmp_path / "image") == 41
    image = (tmp_path / "image").open("rb")
    with image, mmap.mmap(image.fileno(), 0, prot=mmap.PROT_READ) as content:
        assert [word for word in words if content.find(word) < 0] == []
    assert (tmp_path / "image").stat().st_blocks * 512 < zfs.LEAST_SIZE // 8
