"""A generation: one HAProxy process with its configuration, maps and control socket in a directory of its own.

A reload starts the next generation on the same listening sockets and tells the one before to finish what it has.
The directory ``run/haproxy/N`` holds everything that a new Davit process needs to find the generation again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import DavitError
from router import listeners
from router.control import Control, ControlFailed


class HaproxyFailed(DavitError):
    """HAProxy did not start."""

    id, status = "haproxy_failed", 500


_MESSAGES = 1 << 20


@dataclass
class Generation:
    """A running HAProxy.

    Attributes:
        facts: what its directory remembers of how it was made (see :func:`start`).
    """

    number: int
    directory: Path
    pid: int
    facts: dict[str, Any]
    control: Control
    pidfd: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except OSError:
            return False
        return self.process is None or self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    async def ended(self) -> None:
        """Wait until the process has ended; who does so may be told to stop after :meth:`release`."""
        loop = asyncio.get_running_loop()
        end = loop.create_future()
        own = os.dup(self.pidfd)  # the other's number may be another file's by then
        loop.add_reader(own, lambda: None if end.done() else end.set_result(None))
        try:
            await end
        finally:
            loop.remove_reader(own)
            os.close(own)

    def trim_messages(self) -> None:
        """Empty the file of HAProxy's remarks when it has grown (it notes every server that comes and goes)."""
        messages = self.directory / "messages"
        try:
            if messages.stat().st_size > _MESSAGES:
                os.truncate(messages, 0)
        except OSError:
            pass

    def forget(self) -> None:
        """Close what we hold of it and delete its directory; only when it has ended."""
        self.control.close()
        if self.process:
            self.process.wait()
        os.close(self.pidfd)
        shutil.rmtree(self.directory, ignore_errors=True)

    def release(self) -> None:
        """Close what we hold of it and leave it running."""
        self.control.close()
        os.close(self.pidfd)


async def start(
    program: Path,
    root: Path,
    number: int,
    files: Mapping[str, str],
    facts: Mapping[str, Any],
    fds: list[int],
    log: int,
    patience: float = 30,
) -> Generation:
    """Start HAProxy and wait until it serves.

    Args:
        program: haproxy.
        root: the directory of generations.
        files: the configuration, from :func:`router.config.compose`.
        facts: JSON values to remember with it.
        fds: listening sockets; they keep their numbers in HAProxy.
        log: the descriptor that access lines are written to.

    Raises:
        HaproxyFailed: it ended or did not answer; the sentence has its last words.
    """
    directory = root / str(number)
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(mode=0o700)
        for name, text in files.items():
            (directory / name).write_text(text)
        process = _spawn(program, directory, fds, log)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # a disk that is full must not be filled by the next try
        raise
    try:
        control = _control(directory, facts)
        remembered = {**facts, "pid": process.pid, "born": _born(process.pid)}
        temporary = directory / "facts.json.new"
        temporary.write_text(json.dumps(remembered))
        temporary.rename(directory / "facts.json")
        await _until_it_answers(process, control, directory, patience)
        return Generation(number, directory, process.pid, remembered, control, os.pidfd_open(process.pid), process)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _control(directory: Path, facts: Mapping[str, Any]) -> Control:
    # "add server" was experimental before HAProxy 2.6
    return Control(directory / "control.sock", preamble=("experimental-mode on",) if tuple(facts["version"]) < (2, 6) else ())


def _spawn(program: Path, directory: Path, fds: list[int], log: int) -> subprocess.Popen[bytes]:
    with open(directory / "messages", "ab") as messages:
        return subprocess.Popen(
            [program, "-f", directory / "haproxy.cfg"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=messages,
            pass_fds=fds,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            start_new_session=True,
            cwd="/",
            preexec_fn=None if os.geteuid() == 0 else listeners.allow_taking,
        )


async def _until_it_answers(process: subprocess.Popen[bytes], control: Control, directory: Path, patience: float) -> None:
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            await control.open()
            return
        except ControlFailed:
            if process.poll() is not None or asyncio.get_running_loop().time() > deadline:
                raise HaproxyFailed(f"HAProxy did not start: {_last_words(directory)}") from None
        await asyncio.sleep(0.005)


def _last_words(directory: Path) -> str:
    lines = (directory / "messages").read_text(errors="replace").splitlines()
    telling = [line for line in lines if "[ALERT]" in line]
    return (telling or lines or ["it said nothing."])[0]


def find(root: Path) -> list[Generation]:
    """The generations that still run, oldest first; the directories of others are deleted, half-started ones told to end."""
    found = []
    for directory in sorted((path for path in root.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        generation = _adopt(directory)
        if generation:
            found.append(generation)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return found


def _adopt(directory: Path) -> Generation | None:
    try:
        facts = json.loads((directory / "facts.json").read_text())
        pid = int(facts["pid"])
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError, KeyError):
        _kill_half_started(directory)
        return None
    if _born(pid) != facts["born"]:
        os.close(pidfd)
        return None
    return Generation(int(directory.name), directory, pid, facts, _control(directory, facts), pidfd)


def _kill_half_started(directory: Path) -> None:
    """Let a HAProxy end whose parent died before it noted its pid: found by its configuration's path, which is ours alone."""
    config = os.fsencode(directory / "haproxy.cfg")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if config in words and words[0].endswith(b"haproxy"):
                os.kill(int(process.name), signal.SIGUSR1)
        except OSError:
            continue


def _born(pid: int) -> str:
    """When a process started, in ticks since boot (proc(5), stat, field 22), with the boot's id: unique for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{stat.rpartition(')')[2].split()[19]}"
