"""The client of QEMU's monitor, against a real QEMU; and the confinement that QEMU is started in."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import confine, qmp
from runtime.qmp import Monitor, MonitorFailed

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [pytest.mark.root, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed (set vm of scripts/packages)")]


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A QEMU without a machine, confined, and its monitor's socket."""
    path, root = tmp_path / "qmp.sock", tmp_path / "root"
    root.mkdir()
    listener = qmp.listen(path)
    monitor = ["-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    command = [str(QEMU), "-M", "none", "-nodefaults", "-display", "none", "-sandbox", confine.SANDBOX, *monitor]
    argv = confine.argv(command, root=root, uid=0x6000_0000, cgroups=[])
    process = subprocess.Popen(argv, pass_fds=(listener.fileno(),), env=confine.ENVIRONMENT)
    yield path, process
    process.kill()
    process.wait()
    listener.close()


def test_commands_are_answered_and_refusals_are_sentences(qemu: tuple[Path, subprocess.Popen[bytes]]) -> None:
    async def talk() -> None:
        monitor = await Monitor.connect(qemu[0], 60)
        assert monitor.version >= (6, 2)
        assert (await monitor.execute("query-status"))["status"]
        with pytest.raises(MonitorFailed, match=r"QEMU says: .*no-such"):
            await monitor.execute("no-such")
        monitor.close()

    asyncio.run(talk())


def test_events_are_kept_for_who_asks_later_and_the_end_is_told(qemu: tuple[Path, subprocess.Popen[bytes]]) -> None:
    async def talk() -> None:
        monitor = await Monitor.connect(qemu[0], 60)
        await monitor.execute("quit")
        assert (await monitor.event("SHUTDOWN", timeout=60))[1]["reason"] == "host-qmp-quit"
        with pytest.raises(MonitorFailed):
            await monitor.event("STOP", timeout=60)
        with pytest.raises(MonitorFailed):
            await monitor.execute("query-status")

    asyncio.run(talk())


def test_who_is_not_greeted_calls_again(
    qemu: tuple[Path, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is, also where QEMU comes to it only after several calls, each of which has hung up by then."""
    monkeypatch.setattr(qmp, "PATIENCE", 0.05)
    calls: list[float] = []
    once = Monitor._connect

    async def counted(path: Path, timeout: float) -> Monitor:
        calls.append(timeout)
        if len(calls) == 4:
            qemu[1].send_signal(signal.SIGCONT)
        return await once(path, timeout)

    async def talk() -> None:
        qemu[1].send_signal(signal.SIGSTOP)
        monitor = await Monitor.connect(qemu[0], 240)
        assert (await monitor.execute("query-status"))["status"]
        monitor.close()

    monkeypatch.setattr(Monitor, "_connect", counted)
    asyncio.run(talk())
    assert calls[:4] == [0.05, 0.1, 0.2, 0.4]


def test_who_finds_the_queue_full_waits_for_a_place_in_it(tmp_path: Path) -> None:
    """QEMU makes it one of two, and takes nobody in while its machine is being made."""
    path = tmp_path / "monitor"

    async def talk() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as early, socket.socket(socket.AF_UNIX) as late:
            listener.bind(str(path))
            listener.listen(0)
            early.connect(str(path))
            late.setblocking(False)
            with pytest.raises(BlockingIOError):
                late.connect(str(path))
            calling = asyncio.ensure_future(Monitor.connect(path, 60))
            await asyncio.sleep(0)
            listener.accept()[0].close()
            line, _ = await asyncio.to_thread(listener.accept)
            line.sendall(b'{"QMP": {"version": {"qemu": {"major": 7}}}}\n')
            await asyncio.to_thread(line.recv, 1000)
            line.sendall(b'{"return": {}, "id": 1}\n')
            monitor = await calling
            assert monitor.version == (7, 0, 0)
            monitor.close()
            line.close()

    asyncio.run(talk())


def test_what_takes_in_callers_does_not_wait_for_one_that_another_has_taken_in(tmp_path: Path) -> None:
    with qmp.listen(tmp_path / "monitor") as listener, pytest.raises(BlockingIOError):
        listener.accept()


def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MonitorFailed, match="does not answer"):
        asyncio.run(Monitor.connect(tmp_path / "none.sock", 1))


def test_who_gets_the_number_of_a_connection_that_was_hung_up_is_heard() -> None:
    """A process's end, say, that nobody is told of otherwise: its dyno would be thought to live for ever."""

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        monitor, number = Monitor(ours), ours.fileno()
        await asyncio.sleep(0)  # it listens
        monitor.close()
        reader, writer = os.pipe()
        os.dup2(reader, number)  # in the same round
        heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(number, heard.set)
        os.write(writer, b"x")
        try:
            await asyncio.wait_for(heard.wait(), 20)
        finally:
            asyncio.get_running_loop().remove_reader(number)
            theirs.close()
            for fd in {reader, writer, number}:
                os.close(fd)

    asyncio.run(talk())


def test_the_confined_program_has_nothing(qemu: tuple[Path, subprocess.Popen[bytes]]) -> None:
    asyncio.run(Monitor.connect(qemu[0], 60))
    proc = Path(f"/proc/{qemu[1].pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(0x6000_0000)] * 4
    assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"].strip()) == ("1", "2", "")
    assert sorted(os.listdir(proc / "root")) == sorted({"usr", "etc", "dev", "old", "data", "proc", *_links()})
    assert os.listdir(proc / "root/old") == os.listdir(proc / "root/data") == os.listdir(proc / "root/proc") == []
    assert set(os.listdir(proc / "root/dev")) == {"null", "zero", "urandom"}
    assert (proc / "net/dev").read_text().count(":") == 1  # the loopback alone, and that is down
    assert not any(line.split()[4].startswith("/old") for line in (proc / "mountinfo").read_text().splitlines())


def _links() -> list[str]:
    return [name for name in ("bin", "sbin", "lib", "lib32", "lib64") if Path("/", name).exists()]
