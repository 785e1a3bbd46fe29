"""The OSv driver's life cycle with the real QEMU and all that stands around a guest; the guest is an imitation (see there), for
no kernel of OSv comes with Davit. What only a real one can show is in test_osv_kernel.py."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from bench import vm_images
from bench.vm_figures import Found, Measured
from cli.host import doctor
from foundation.errors import DavitError, InvalidParams
from foundation.settings import from_environment
from runtime import cgroups, qemu
from runtime.driver import Bind, Exit, Unsupported
from runtime.network import NetworkFailed
from runtime.osv import kernel, management, signals, zfs
from runtime.osv.driver import QEMU, OsvDriver, StartFailed
from runtime.osv.dyno import Unikernel
from runtime.osv.images import TooLargeForMemory
from runtime.qmp import Monitor, MonitorFailed
from slugs import image, osvcommand, osvimage, rofs
from slugs.osvcommand import CommandRefused
from tests.conftest import PATIENCE
from tests.e2e.errors_page import assert_says
from tests.ports import free_port
from tests.runtime import imitation_guest
from tests.runtime.bench_of_driver import ENV, MIB
from tests.runtime.bench_of_osv import LIMITS, OsvBench
from tests.runtime.contract import LifeContract
from tests.runtime.imitation_guest import POWER_OFF, STAND_STILL

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imitation_guest.write(tmp_path_factory.mktemp("kernel") / "kernel.elf")


@pytest.fixture(scope="module")
def open_bench(loop: asyncio.AbstractEventLoop, images: tuple[Path, Path], loader: Path) -> Iterator[OsvBench]:
    bench = OsvBench(loop, *images, DAVIT_OSV_KERNEL=str(loader))
    bench.open()
    bench.run(bench.saying("", 0).wait())  # its images are made: what a test adds to them is left over
    bench.remove_all()
    yield bench
    bench.close()
    assert bench.leftovers_on_host() == []


@pytest.fixture
def bench(open_bench: OsvBench, monkeypatch: pytest.MonkeyPatch) -> Iterator[OsvBench]:
    """The driver; after the test everything is as before it."""
    monkeypatch.setattr("runtime.osv.dyno.POWERDOWN_SECONDS", 0.1)  # an imitation has no power button
    before = open_bench.footprint()
    yield open_bench
    open_bench.remove_all()
    open_bench.wait_for_footprint(before)


@pytest.mark.row("no-places")
class TestContract(LifeContract):
    """What is promised of every driver's dynos and that a guest without an app can show."""


def argv_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_the_bench_of_isolations_times_the_images(
    loop: asyncio.AbstractEventLoop, images: tuple[Path, Path], loader: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "app").mkdir(parents=True)
    (tmp_path / "tree" / "app" / "app.py").write_bytes(bytes(1 << 20))
    image.seal(tmp_path / "tree", slug := tmp_path / "slug")
    found = Found({"osv": Measured()}, slug_mib=1.0)
    bench = OsvBench(loop, *images, DAVIT_OSV_KERNEL=str(loader))
    bench.open()
    try:
        vm_images.unikernels(bench.osv, bench.stack, slug, "python3 app.py", {}, found)
        assert found.alone["osv"].image and found.alone["osv"].root
        assert len(list((bench.osv.images.directory / "slugs").iterdir())) == 1
        assert not any(bench.host.images._users.values()), "the stack is still in use"
    finally:
        bench.close()


# -- a life


def test_nothing_of_what_the_kernel_is_told_is_on_a_command_line_or_in_the_log(bench: OsvBench) -> None:
    spec = bench.says(f"visible\n{STAND_STILL}", env={**ENV, "SECRET": "$s3cret-on-the-line", "OTHER": "s3cret-on-the-disk"})
    dyno = bench.run(bench.osv.start(spec))
    assert "s3cret" not in argv_of(dyno.pid)
    assert "qemu-system" in argv_of(dyno.pid)
    assert dyno.monitor is not None
    line = bench.run(dyno.monitor.execute("qom-get", {"path": "/machine", "property": "append"}))
    assert "--env=.0=" in line and "$s3cret-on-the-line" in line and "s3cret-on-the-disk" not in line
    for top in (bench.osv.directory, bench.host.dynos, bench.osv.images.directory):
        for path in top.rglob("*"):
            assert not path.is_file() or b"s3cret" not in path.read_bytes(), path
    bench.run(dyno.signal(signal.SIGKILL))
    assert bench.output(dyno) == "visible\n"


def test_a_crash_is_told_and_a_guest_that_stands_still_after_it_is_ended(
    bench: OsvBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.osv.dyno.CRASH_SECONDS", 0.2)
    monkeypatch.setattr("runtime.osv.dyno.SILENCE", 0.2)
    dyno = bench.begin(f"working\nAborted\n\n[backtrace]\n{STAND_STILL}")
    assert bench.run(dyno.wait()) == Exit(128 + signal.SIGABRT)
    assert bench.output(dyno) == "working\nAborted\n\n[backtrace]\n"


def test_a_program_that_is_over_before_qemu_has_answered_has_its_own_status(
    bench: OsvBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = kernel.begin

    async def unheard(monitor: Monitor, line: bytes) -> None:
        await begin(monitor, line)
        (dyno,) = bench.osv.running.values()
        assert dyno.process is not None
        await dyno.process.wait()
        raise MonitorFailed("The virtual machine has gone.")

    monkeypatch.setattr("runtime.osv.kernel.begin", unheard)
    dyno = bench.saying("said\n", 3)
    assert (bench.run(dyno.wait()), bench.output(dyno)) == (Exit(3), "said\n")
    bench.remove_all()
    with pytest.raises(StartFailed, match="The virtual machine has gone"):
        bench.run(bench.osv.start(replace(bench.says(""), env={"SAY": f"$nothing was started{POWER_OFF}"})))


def test_one_that_only_says_a_crashs_words_lives_on(bench: OsvBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write into an app's log could end it otherwise. (The imitation has no network: it is asked otherwise.)"""
    monkeypatch.setattr("runtime.osv.dyno.CRASH_SECONDS", 0.05)
    asked = []

    async def answers(address: str, seconds: float) -> bool:
        asked.append(address)
        return True

    monkeypatch.setattr("runtime.osv.signals.answers", answers)
    dyno = bench.begin(f"Assertion failed: what a visitor typed\n{STAND_STILL}")
    bench.until(lambda: len(asked) > 2, "the question whether it lives")
    assert not dyno.ended
    bench.run(dyno.signal(signal.SIGKILL))


def test_a_guest_whose_kernel_answers_nobody_is_ended(bench: OsvBench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WATCH_SECONDS", 0.1), ("SILENCE", 0.2), ("MISSES", 2)):
        monkeypatch.setattr(f"runtime.osv.dyno.{name}", value)
    dyno = bench.begin(f"deaf and dumb\n{STAND_STILL}")
    assert bench.run(dyno.wait()) == Exit(137)
    assert bench.output(dyno) == "deaf and dumb\n"
    monkeypatch.setattr("runtime.osv.memory.touched", lambda pid, size: size)
    assert bench.run(bench.waiting("it has used all its memory\n").wait()) == Exit(137, oom=True)


def test_a_flood_does_not_fill_the_runtimes_memory(bench: OsvBench) -> None:
    dyno = bench.flooding("flood flood flood\n")
    bench.until(lambda: len(dyno._waiting) > 0, "back pressure", 60)
    assert len(dyno._waiting) < 1 << 20
    bench.run(dyno.signal(signal.SIGKILL))
    bench.run(dyno.wait())


def test_the_app_cannot_be_found_is_an_end_and_not_a_start_that_fails(bench: OsvBench) -> None:
    dyno = bench.begin(f"Failed to load object: /app/x. Powering off.\n{POWER_OFF}")
    assert bench.run(dyno.wait()) == Exit(127)


@pytest.mark.row("osv-resize")
def test_qemu_is_confined_and_has_limits(bench: OsvBench) -> None:
    dyno = bench.begin(STAND_STILL)
    status = dict(line.split(":\t") for line in Path(f"/proc/{dyno.pid}/status").read_text().splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == {str(bench.host.instance.uids(dyno.slot) + 1000)}
    assert (status["NoNewPrivs"], status["CapBnd"], status["Seccomp"]) == ("1", "0000000000000000", "2")
    assert os.readlink(f"/proc/{dyno.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert dyno.pid in dyno.cgroup.pids()
    assert dyno.slot in bench.host.network.cables()
    bench.run(dyno.update(replace(LIMITS, cpu_quota=0.5)))
    with pytest.raises(Unsupported, match="memory cannot be changed") as refused:
        bench.run(dyno.update(replace(LIMITS, memory=256 * MIB)))
    assert_says("osv-resize", refused.value.message)
    bench.until(lambda: dyno.touched, "the look at its memory")
    assert 0 < dyno.stats().memory < 32 * MIB, "QEMU's own memory, which is more, is not the guest's"
    assert dyno.cgroup.memory() > dyno.stats().memory and dyno.listeners() == []
    assert dyno.stats().uptime is None, "its kernel does not tell"
    dyno.figures = management.Figures(128 * MIB, 100 * MIB, 75.0, 9)  # as OSv's REST server would
    assert (dyno.stats().memory, dyno.stats().pids, dyno.stats().uptime) == (28 * MIB, 9, 75.0)


def test_what_is_done_otherwise_is_said_in_the_apps_log(bench: OsvBench, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr("runtime.osv.driver.applog.say", lambda *words: said.append(words))
    translate = osvcommand.translate
    monkeypatch.setattr(
        "slugs.osvcommand.translate", lambda *given: replace(translate(*given), notes=("it is served by one process",))
    )
    bench.run(bench.saying("x\n", 0).wait())
    assert said == [("app-id", "web.1", "it is served by one process")]


def test_one_that_is_found_while_it_boots_is_found_again_by_every_later_runtime(
    bench: OsvBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its console says when it has booted is read once; until it is read there is as much room as in any dyno's FIFO."""

    async def line_only(driver: OsvDriver, launch: Any, dyno: Unikernel) -> None:
        dyno.monitor = await Monitor.connect(driver.directory / dyno.spec_id / "monitor", 60)
        await kernel.begin(dyno.monitor, launch.line)

    with monkeypatch.context() as ended_early:  # its runtime: it has handed over the command line and read nothing
        ended_early.setattr(OsvDriver, "_boot", line_only)
        ended_early.setattr(Unikernel, "_readable", lambda dyno: None)
        dyno = bench.begin(f"before\n{STAND_STILL}")
        assert not dyno.console.booted
    assert fcntl.fcntl(dyno._console_fd, fcntl.F_GETPIPE_SZ) == 1 << 20
    fcntl.fcntl(dyno._console_fd, fcntl.F_SETPIPE_SZ, 1 << 16)  # as one that an older Davit has started
    dyno = bench.restart_the_runtime(dyno)  # type: ignore[assignment, arg-type]
    assert dyno.console.booted and not dyno.ended
    assert fcntl.fcntl(dyno._console_fd, fcntl.F_GETPIPE_SZ) == 1 << 20
    monkeypatch.setattr("runtime.osv.driver.BOOT_SECONDS", {True: 0.0, False: 0.0})
    dyno = bench.restart_the_runtime(dyno)  # type: ignore[assignment, arg-type]
    assert dyno.console.booted and not dyno.ended
    bench.run(dyno.signal(signal.SIGKILL))
    assert bench.output(dyno) == "before\n"


def test_all_others_start_and_end_while_an_image_is_made(
    bench: OsvBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write = threading.Event(), osvimage.write_plain

    def slow(tree: Any, path: Path, **options: Any) -> Any:
        if path.suffix != ".rofs":
            return write(tree, path, **options)
        assert go.wait(60)
        raise osvimage.ImageFailed("It cannot be made.")

    new = tmp_path / "new"
    new.write_bytes(bench.slug.read_bytes())
    monkeypatch.setattr(osvimage, "write_plain", slow)

    async def story() -> None:
        # more than the driver has threads
        starting = [asyncio.ensure_future(bench.osv.start(bench.says("", slug=new))) for _ in range(6)]
        while sum(turn.wanted for turn in bench.osv.images._making.values()) < 4:
            await asyncio.sleep(0.01)
        try:
            dyno = await asyncio.wait_for(bench.osv.start(bench.says(f"meanwhile\n{POWER_OFF}")), 40 * PATIENCE)
            await dyno.wait()
            await dyno.remove()
            assert not any(start.done() for start in starting)
        finally:
            go.set()
            told = await asyncio.gather(*starting, return_exceptions=True)
        assert [type(error) for error in told] == [osvimage.ImageFailed] * 6

    bench.run(story())


# -- refused, and nothing is left


@pytest.mark.row("osv-refused", "osv-too-large", "osv-line", "osv-cloud-init", "osv-module")
def test_what_a_unikernel_cannot_have_is_refused(bench: OsvBench, tmp_path: Path) -> None:
    rows = {
        "needs a shell": "osv-refused", "memory": "osv-too-large", "a unikernel takes 3600": "osv-line",
        "has the key “runcmd”": "osv-cloud-init", "mgmt/cloud-init.so": "osv-module", "host name": "osv-module",
    }  # fmt: skip
    for changes, error, why in (
        ({"line": "a | b"}, CommandRefused, "needs a shell"),
        ({"line": None}, CommandRefused, "comes from none"),
        ({"terminal": (24, 80)}, Unsupported, "no terminal and no shell"),
        ({"binds": [Bind(tmp_path, "/x")]}, Unsupported, "directories of the host"),
        ({"env": {**ENV, "LONG": "$" + "x" * 4000}}, DavitError, "a unikernel takes 3600"),
        ({"limits": replace(LIMITS, memory=1)}, TooLargeForMemory, "memory"),
        ({"stack": Path("/nonexistent")}, DavitError, "."),
        ({"env": {**ENV, "OSV_CLOUD_INIT": "runcmd: [x]"}}, InvalidParams, "has the key “runcmd”"),
        ({"env": {**ENV, "OSV_CLOUD_INIT": "files: {/a: b}"}}, Unsupported, "mgmt/cloud-init.so"),
        ({"env": {**ENV, "OSV_CLOUD_INIT": "hostname: x"}}, Unsupported, "host name"),
    ):
        with pytest.raises(error, match=why) as refused:
            bench.run(bench.osv.start(bench.says(STAND_STILL, **changes)))
        if row := rows.get(why):
            assert_says(row, refused.value.message)
    with pytest.raises(Unsupported, match="no other can be started"):
        bench.run(bench.begin(STAND_STILL).exec(["ls"], {}))


@pytest.mark.row("osv-boot")
def test_a_guest_that_does_not_come_to_start_its_app_is_ended(bench: OsvBench, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = replace(bench.says(""), env={**ENV, "SAY": "$nothing of it"})
    with monkeypatch.context() as impatient:
        impatient.setattr("runtime.osv.driver.BOOT_SECONDS", {True: 3.0, False: 3.0})
        with pytest.raises(StartFailed, match="did not start it within 3 seconds") as told:
            bench.run(bench.osv.start(silent))
        assert_says("osv-boot", told.value.message)
    off = replace(bench.says(""), env={**ENV, "SAY": f"$\nCould not mount rofs root filesystem.\n{POWER_OFF}"})
    with pytest.raises(StartFailed, match="Could not mount rofs root filesystem") as told:
        bench.run(bench.osv.start(off))
    assert_says("osv-boot", told.value.message)
    crash = replace(bench.says(""), env={**ENV, "SAY": f"$\ntrying to execute or access missing symbol\n\n[backtrace]\n{POWER_OFF}"})
    with pytest.raises(StartFailed, match="could not be started: trying to execute or access missing symbol") as told:
        bench.run(bench.osv.start(crash))
    assert_says("osv-boot", told.value.message)


@pytest.mark.row("no-tap")
@pytest.mark.parametrize(
    ("error", "told"),
    [(NetlinkError(errno.EBUSY), r"Device or resource busy\."), (FileNotFoundError(2, ""), r"\(is the module tun loaded\?")],
)
def test_a_tap_that_cannot_be_made_is_told_and_nothing_is_left(
    bench: OsvBench, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def refuse(slot: int) -> None:
        raise error

    with monkeypatch.context() as without:
        without.setattr(bench.host.network, "_plug_in", refuse)
        with pytest.raises(NetworkFailed, match=rf"The tap of slot \d+ could not be made: .*{told}") as failed:
            bench.waiting("x\n")
        assert_says("no-tap", failed.value.message)


@pytest.mark.parametrize("when", ["at once", "while it boots"])
def test_a_start_that_is_given_up_leaves_nothing(bench: OsvBench, when: str) -> None:
    async def give_up() -> None:
        starting = asyncio.ensure_future(bench.osv.start(bench.says(STAND_STILL)))
        await asyncio.sleep(0)
        while when == "while it boots" and not bench.osv.running:
            assert not starting.done()
            await asyncio.sleep(0)
        assert starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    bench.run(give_up())
    bench.until(lambda: not bench.osv.running and len(bench.host.tasks) <= 1, "removal", 30)


# -- the host


@pytest.mark.row("osv-no-kernel", "osv-no-qemu")
def test_kernels_that_are_none_are_refused_with_a_sentence(
    tmp_path: Path, loader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no kernel")
    (tmp_path / "disk").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1000))
    (tmp_path / "linux").write_bytes(loader.read_bytes().replace(b"OSv ", b"Lnx "))
    for path, why in (
        (None, "DAVIT_OSV_KERNEL is not set"), (tmp_path / "none", "cannot be read"), (tmp_path / "text", "no 64-bit ELF"),
        (tmp_path / "disk", "a boot disk"), (Path("/bin/true"), "no kernel for x86-64"), (tmp_path / "linux", "is not OSv's"),
    ):  # fmt: skip
        with pytest.raises(kernel.KernelUnusable, match=why) as told:
            kernel.check(path)
        assert_says("osv-no-kernel", told.value.message)
    old = tmp_path / "qemu-system-old"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)'\n")
    old.chmod(0o755)
    monkeypatch.setattr("runtime.qemu.PLACES", f"{tmp_path}:/usr/bin")
    for name, why in (("qemu-system-none", "apt-get install qemu-system-x86"), ("qemu-system-old", "need QEMU 6.0 or newer")):
        with pytest.raises(Unsupported, match=why) as lacking:
            qemu.find(QEMU, name)
        assert_says("osv-no-qemu", lacking.value.message)


def test_a_kernel_is_tried_by_booting_it(loop: asyncio.AbstractEventLoop, tmp_path: Path, loader: Path) -> None:
    (tmp_path / "kernels").mkdir()
    kept = kernel.keep(loader, tmp_path / "kernels")
    assert kernel.keep(loader, tmp_path / "kernels") == kept
    trial = loop.run_until_complete(kernel.boot(qemu.find(QEMU)[0], kept, kvm=False))
    assert trial.banner == "OSv v0.0-imitation"


def test_the_doctor_tells_how_the_kernel_boots_and_whether_with_kvm(loader: Path, davit_home: Path) -> None:
    point = doctor.check_osv(from_environment({"DAVIT_HOME": str(davit_home), "DAVIT_OSV_KERNEL": str(loader)}))
    words = r"OSv v0\.0-imitation booted in [0-9.]+ s; unikernels run (with KVM|emulated and slow \(TCG\): \S.+)"
    assert point.level == "ok" and re.fullmatch(words, point.message)


def test_kvm_that_lies(loader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Its names are short: a socket's path has 107 bytes.)"""
    monkeypatch.setattr(kernel, "KVM_SECONDS", 1.0)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kvm").touch()
    kept = kernel.keep(loader, tmp_path / "kernels")
    found = asyncio.run(kernel.find_out("/bin/false", "7.2", kept, tmp_path / "k", tmp_path / "kvm"))
    assert not found.kvm and found.reason == "the kernel does not boot within 1 seconds under this host's KVM"


@pytest.mark.row("osv-builder")
def test_a_zfs_builder_that_takes_no_files_is_ended_and_told(
    loader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zfs, "BOOT_SECONDS", 5.0)
    with pytest.raises(zfs.BuilderFailed, match="--console=serial") as told:
        zfs.build(loader, rofs.Folder(), tmp_path / "image")
    assert_says("osv-builder", told.value.message)
    assert list(tmp_path.iterdir()) == groups_of_builders() == []


@pytest.mark.row("osv-builder")
def test_an_image_that_its_disk_has_no_room_for_is_refused_before_it_begins(loader: Path, tmp_path: Path) -> None:
    tree = rofs.Folder()
    tree.add("huge", rofs.File(1 << 60, io.BytesIO))
    with pytest.raises(zfs.BuilderFailed, match=r"take 1152921504\.6 GB, and .* GB free") as told:
        zfs.build(loader, tree, tmp_path / "image")
    assert_says("osv-builder", told.value.message)
    assert list(tmp_path.iterdir()) == []


BUILDER = r"""
use Socket; $| = 1;
socket(my $server, PF_INET, SOCK_STREAM, 0); bind($server, sockaddr_in(10000, INADDR_ANY)) or die; listen($server, 1);
print "Waiting for connection from host...\n"; accept(my $peer, $server); print "x" x 300000, "\n";
open(my $out, ">&=", $ARGV[0]); while (sysread($peer, my $piece, 65536)) { syswrite($out, $piece); }
opendir(my $top, "/"); print join(" ", readdir($top)), "\n"; exit $ARGV[1];
"""
"""What an OSv builder does with what it is sent, but for the file system; in Perl, which every host has."""


def test_a_zfs_builder_is_confined_as_a_dyno_is_and_is_sent_the_files_where_nobody_else_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}
    connection = zfs._connection

    def looking(pid: int) -> socket.socket:
        seen.update(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        seen.update(net=os.readlink(f"/proc/{pid}/ns/net"), cgroup=Path(f"/proc/{pid}/cgroup").read_text())
        return connection(pid)

    monkeypatch.setattr(zfs, "_connection", looking)
    tree = rofs.Folder()
    tree.add("app/app.py", rofs.data(b"print(1)\n" * 50_000))
    (tmp_path / "shown").mkdir()
    with (tmp_path / "received").open("wb") as received:
        argv = ["/usr/bin/perl", "-e", BUILDER, str(received.fileno())]
        assert zfs.run([*argv, "0"], tree, tmp_path / "shown", [received.fileno()]) == 2
        with pytest.raises(zfs.BuilderFailed, match=r"failed: .*\busr\b"):
            zfs.run([*argv, "3"], tree, tmp_path / "shown", [received.fileno()])
    assert (tmp_path / "received").read_bytes().count(b"print(1)\n") == 100_000
    assert seen["Uid"].split() == [str(0x6F00_0000 + os.getpid())] * 4
    assert (seen["CapEff"], seen["CapBnd"], seen["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert seen["net"] != os.readlink("/proc/self/ns/net") and f"/davit-builder-{os.getpid()}/qemu" in seen["cgroup"]
    assert groups_of_builders() == []


def groups_of_builders() -> list[Path]:
    return [path for top in cgroups.layout().directories("/") for path in top.glob("davit-builder-*")]


def test_the_agent_for_signals_is_built_and_passes_them_on(tmp_path: Path) -> None:
    """Built by this machine's compiler here (the build stack's in life), and run as the program that it is, too."""
    program, port = _agent(tmp_path), free_port()
    process = subprocess.Popen([program, str(port)])
    try:

        async def scenario() -> None:
            for _ in range(500):
                if await signals.send("127.0.0.1", 0, port=port):
                    break
                await asyncio.sleep(0.02)
            assert await signals.answers("127.0.0.1", 5, port)
            assert await signals.send("127.0.0.1", signal.SIGTERM, port=port)

        asyncio.run(scenario())
        assert process.wait(20) == -signal.SIGTERM
        assert not asyncio.run(signals.send("127.0.0.1", signal.SIGTERM, port=port))
        assert asyncio.run(signals.answers("127.0.0.1", 5, port)), "a kernel that refuses lives"
    finally:
        process.kill()
        process.wait()


def test_a_program_beside_the_app_begins_when_whoever_waits_for_it_is_there(tmp_path: Path) -> None:
    """By the agent, run as the program that it is; one that cannot be begun is told to nobody and keeps nobody waiting for good."""
    program, port, further, beside = _agent(tmp_path), free_port(), free_port(), tmp_path / "beside.so"
    source = "int puts(const char *); int main(int count, char **words) { return puts(words[count - 1]) < 0; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-xc", "-o", beside, "-"], input=source.encode(), check=True)
    waiting = subprocess.Popen([program, "wait", str(port), str(further)])
    begins = subprocess.Popen([program, "begin", str(port), beside], stdout=subprocess.PIPE)
    try:
        said, _ = begins.communicate(timeout=20)
        assert (said, begins.returncode) == (f"{beside}\n".encode(), 0)
        with socket.create_server(("127.0.0.1", further)) as listening:
            assert waiting.wait(20) == 0
            listening.settimeout(1)
            listening.accept()[0].close()
    finally:
        for process in (waiting, begins):
            process.kill()
            process.wait()
    missing = subprocess.Popen([program, "begin", str(port), "/nonexistent"])
    assert subprocess.run([program, "wait", str(port)], timeout=20, check=False).returncode == missing.wait(20) == 0


ASKS = """
#include <pthread.h>
#include <unistd.h>
static void *ask(void *handler) { char said; while (read(0, &said, 1) > 0) ; ((void (*)(void))handler)(); return 0; }
void osv_current_app_on_termination_request(void (*handler)(void)) { pthread_t one; pthread_create(&one, 0, ask, handler); }
"""
"""OSv's way to ask a program to end, imitated: when its standard input is over."""


@pytest.mark.parametrize("words", [[], ["begin"]])
def test_the_agent_ends_when_osv_asks_it_to(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "asks.c").write_text(ASKS)
    program, port = _agent(tmp_path, "-pthread", str(tmp_path / "asks.c")), str(free_port())
    argv = [program, *words, port, *(["/nonexistent"] if words else [])]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        listens = Path("/proc/net/tcp")
        for _ in range(2000):
            if f":{int(port):04X} 00000000:0000 0A" in listens.read_text():
                break
            time.sleep(0.01)
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_who_waits_for_what_does_not_come_goes_on(tmp_path: Path) -> None:
    assert subprocess.run([_agent(tmp_path, "-DTRIES=3"), "wait", str(free_port())], timeout=20, check=False).returncode == 0


_SOURCE = Path(signals.__file__).with_name("agent.c")


def _agent(directory: Path, *options: str) -> Path:
    program = directory / "agent"
    subprocess.run(["gcc", "-Wall", "-Werror", "-O2", *options, "-o", program, _SOURCE], check=True)
    return program
