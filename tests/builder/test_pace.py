"""Whoever holds a counted place has to use it: what comes too slowly is given up, with a sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api import door
from builder.platform import Target
from builder.quarantine import Quarantine, _sleeps
from builder.repositories import Repositories
from builder.ssh import PipeIncoming, SshDoor
from foundation import pace
from foundation.pace import Pace, TooSlow
from tests.builder.test_receive_http import honest
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

APP = "11111111-1111-1111-1111-111111111111"


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of one over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


@contextmanager
def trickle(client: socket.socket, data: bytes, every: float = 0.1) -> Iterator[list[int]]:
    """A client that sends a byte now and then; gives how many it has sent."""
    over, sent = threading.Event(), [0]

    def send() -> None:
        for byte in data:
            if over.wait(every):
                return
            try:
                client.send(bytes([byte]))
            except OSError:
                return
            sent[0] += 1

    sending = threading.Thread(target=send)
    sending.start()
    try:
        yield sent
    finally:
        over.set()
        sending.join()


@pytest.mark.row("too-slow")
def test_a_client_is_given_up_when_too_little_came_while_it_was_waited_for() -> None:
    paced = Pace(window=600, least=4096)
    for _ in range(9):
        paced.heard(1, 60)
    with pytest.raises(TooSlow) as error:
        paced.heard(1, 60)
    assert_says("too-slow", error.value.message)
    assert error.value.status == 408 and "4 KiB a second has arrived for 10 minutes" in error.value.message
    with pytest.raises(TooSlow):
        paced.heard(1 << 20, 0)


def test_silence_within_the_time_and_a_slow_but_steady_line_are_fine() -> None:
    paced = Pace(window=600, least=4096)
    paced.heard(0, 599)  # git compresses
    paced.heard(4096 * 600, 0.5)
    for _ in range(100):
        paced.heard(5000 * 60, 60)
    assert not paced.spent and paced.left > 0


def test_what_comes_in_is_counted_at_the_connection_and_what_is_left_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "Pace", lambda: Pace(window=1, least=1000))
    mine, client = connection()
    line = door.Plain.adopt(mine)
    with client, line, trickle(client, b"x" * 1000):
        line.setblocking(True)
        with pace.demanded(line):
            with pytest.raises(TooSlow):
                while line.recv(100):
                    pass
            with pytest.raises(TooSlow):
                line.recv(100)
        assert line.pace is None
        while line.recv(100):
            pass  # it ends, though the client sends on


def test_nothing_is_demanded_of_a_connection_otherwise() -> None:
    mine, client = connection()
    line = door.Plain.adopt(mine)
    with client, line:
        client.send(b"x")
        line.setblocking(True)
        with pace.demanded(line):
            assert line.pace is not None and line.recv(10) == b"x"
        assert line.pace is None
        with pace.demanded(object()):
            pass


def test_commands_that_come_too_slowly_over_ssh_are_given_up() -> None:
    mine, client = socket.socketpair()
    with mine, client, trickle(client, b"x" * 1000) as sent:
        incoming = PipeIncoming(mine.fileno(), 1 << 20, lambda: sent[0], Pace(window=1, least=1000))
        with pytest.raises(TooSlow):
            incoming.exactly(1000)
        incoming.drain()  # does not wait


def test_a_pack_that_git_reads_itself_and_that_comes_too_slowly_is_given_up(tmp_path: Path) -> None:
    repositories = Repositories(tmp_path / "repos")
    repository = repositories.ensure(APP)
    _, packed = honest()
    mine, client = socket.socketpair()
    quarantine = Quarantine.create(tmp_path / "incoming", APP, repository)
    try:
        with mine, client, trickle(client, packed[:-1], every=0.2) as sent:
            incoming = PipeIncoming(mine.fileno(), 1 << 20, lambda: sent[0], Pace(window=2, least=1000))
            with pytest.raises(TooSlow):
                quarantine.index(incoming.pack(), 1 << 20, lambda: None, incoming.waited)
    finally:
        quarantine.close()
    assert not quarantine.path.exists()


def test_a_clone_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.ssh.WINDOW_SECONDS", 1)
    platform: Any = None
    silent, _kept_open = os.pipe()
    nobody = os.open(os.devnull, os.O_WRONLY)
    try:
        door = SshDoor(Repositories(tmp_path / "repos"), platform, 1 << 20, tmp_path / "host_key")
        status, _ = door._upload(Target(APP, "quiet"), "", silent, nobody)
        assert status != 0
    finally:
        for fd in (silent, _kept_open, nobody):
            os.close(fd)


def test_a_git_that_computes_in_another_thread_does_not_wait_for_its_client() -> None:
    busy = "import threading; one = threading.Thread(target=lambda: [None for _ in iter(int, 1)]); one.start(); one.join()"
    with subprocess.Popen([sys.executable, "-c", busy]) as computes, subprocess.Popen(["sleep", "60"]) as waits:
        try:
            wait_until(lambda: "R" in _states(computes.pid), "it computes")
            assert not _sleeps(computes.pid)
            wait_until(lambda: _sleeps(waits.pid), "it waits")
        finally:
            computes.kill()
            waits.kill()


def _states(pid: int) -> list[str]:
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
