"""A release command that prints much, and fast, is kept within bounds and holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime import applog, release_output
from runtime.oneoffs import OneOffs
from runtime.release_output import ReleaseOutput
from state.models import Dyno

MUCH = 50 << 20


def test_50_mb_of_a_release_command_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines wait, in their thread, for what the loop does for another app: a loop that waits for them would never do it."""
    others_turn, said, printed = threading.Event(), [], []

    def output(app_id: str, process: str, *lines: str) -> None:
        assert others_turn.wait(120), "the loop is held up by what a release command prints"
        printed.extend(lines)

    monkeypatch.setattr(applog, "output", output)
    monkeypatch.setattr(applog, "say", lambda app_id, process, text: said.append((process, text)))
    oneoffs = OneOffs(None, None, tmp_path, 1)  # type: ignore[arg-type]

    async def story() -> int:
        reader, writer = os.pipe()
        program = f"import sys; line = b'0123456789abcde\\n' * 4096\nfor _ in range({MUCH} // len(line)): sys.stdout.buffer.write(line)"
        command = subprocess.Popen([sys.executable, "-c", program], stdout=writer)
        os.close(writer)
        row = Dyno(id="d", app_id="chatty", name="release.1")
        relay = asyncio.ensure_future(oneoffs._relay("r1", row, reader))
        for _ in range(10):  # another app's operation: a turn of the loop each
            await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)
        assert not relay.done() and command.poll() is None, "it waits in its pipe; nothing is heaped up here"
        others_turn.set()
        await asyncio.wait_for(relay, 120)
        return command.wait(60)

    assert asyncio.run(story()) == 0
    assert (tmp_path / "releases/r1/output").stat().st_size == release_output.KEPT
    ((process, text),) = said
    assert process == "logplex" and f"{MUCH // 16 - len(printed)} messages dropped" in text


def test_lines_come_as_they_are_and_the_last_one_needs_no_end(tmp_path: Path) -> None:
    lines: list[str] = []
    output = ReleaseOutput(tmp_path / "output", lines.extend, lines.append)
    for piece in (b"one\ntw", b"o\nth", "rée".encode()[:3], "rée".encode()[3:]):
        output.take(piece)
    output.close()
    assert lines == ["one", "two", "thrée"]
    assert (tmp_path / "output").read_text() == "one\ntwo\nthrée"


def test_a_full_disk_does_not_stop_the_command(tmp_path: Path) -> None:
    lines: list[str] = []
    output = ReleaseOutput(tmp_path / "output", lines.extend, lines.append)
    with open("/dev/full", "ab", buffering=0) as full:
        output._file.close()
        output._file = full
        output.take(b"one\n")
        output.take(b"two\n")
        output.close()
    assert lines == ["one", "two"]
