"""What is known of processes that are somebody else's children for a moment, or for good."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runtime import children

_BETWEEN = """
import os, sys, time
reader, writer = os.pipe()
if os.fork():  # as the OCI runtime: a process between, which is there a little longer than the command
    sys.exit(0)
between = os.getpid()
child = os.fork()
if not child:
    os._exit(5)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print(child, flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def subreaper() -> Iterator[None]:
    children.become_subreaper()
    yield
    children.become_subreaper(False)


def test_the_status_of_a_command_is_known_though_its_parent_ends_after_it(subreaper: None) -> None:
    """Longer than a process that is nobody's is waited for: only the process between can say when it is over."""

    async def status() -> int | None:
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", _BETWEEN, "2", stdout=asyncio.subprocess.PIPE)
        assert program.stdout is not None
        process = children.Process(int(await program.stdout.readline()))
        await program.wait()
        return await asyncio.wait_for(process.wait(), 120)

    assert asyncio.run(status()) == 5
    children.reap_remains(set())


def test_who_came_from_outside_is_told_from_the_containers_own() -> None:
    init = subprocess.Popen(["/bin/bash", "-c", "sleep 600 & setsid sleep 600 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True)
    guest = subprocess.Popen(["/bin/bash", "-c", "sleep 600 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True)
    try:
        pids = []
        for process in (init, guest):
            assert process.stdout is not None
            process.stdout.readline()
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                pids += [process.pid, *map(int, file.read().split())]
        sessions = children.sessions_from_outside(pids, init.pid)
        assert sessions == {guest.pid}
        found = children.members(sessions, pids)
        assert guest.pid in found and len(found) == 2 and init.pid not in found
    finally:
        for pid in pids:
            os.kill(pid, 9)
        for process in (init, guest):
            process.communicate()
