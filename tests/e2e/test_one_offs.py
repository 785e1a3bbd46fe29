"""``davit run``: a terminal, pipes, exit codes, and what becomes of a dyno whose client has gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.e2e.terminal import Terminal
from tests.e2e.together import Together
from tests.e2e.world import DAVIT, App, Davit, eventually, tiny

scene = Together(at_once=6)


def one_offs(app: App) -> list[str]:
    return [dyno["name"] for dyno in app.dynos() if dyno["type"] == "run"]


def terminal(app: App, *words: str, rows: int = 40, columns: int = 100) -> Terminal:
    return Terminal([DAVIT, "run", "-a", app.name, *words], app.davit.environment, app.checkout, rows, columns)


@scene
def a_shell_has_a_terminal(app: App) -> None:
    app.deploy({**tiny("first"), "data.txt": "from the slug\n"})
    app.cli("config:set", "GREETING=hello")
    shell = terminal(app, "bash")
    shell.expect("$ ")
    shell.type("stty size; tty; echo $GREETING $DYNO $HOME; cat data.txt; echo 'the' 'end'\n")
    shown = shell.expect("the end\r\n")
    assert "40 100" in shown and "/dev/pts/" in shown and re.search(r"hello run\.\d+ /app", shown) and "from the slug" in shown
    (name,) = one_offs(app)
    assert name in app.cli("ps").stdout and "bash" in app.cli("ps").stdout
    shell.type("trap 'echo now $(stty size)' WINCH; echo 'trap' 'set'\n")
    shell.expect("trap set\r\n")
    shell.resize(50, 120)
    shell.type("\n")
    shell.expect("now 50 120")
    shell.type("sleep 1000\n")
    shell.expect("sleep 1000")
    eventually(lambda: "sleep" in app.cli("run", "--", "true; echo sleep").stdout, "another dyno runs beside it")
    shell.type("\x03")
    shell.expect("$ ")
    shell.type("echo status=$?\n")
    shell.expect("status=130")
    shell.type("exit 7\n")
    assert shell.wait() == 7
    eventually(lambda: not one_offs(app), "the dyno is gone")


@scene
def pipes_carry_bytes_and_keep_the_streams_apart(app: App) -> None:
    app.deploy(tiny("first"))
    data = bytes(range(256)) * 4096
    argv = [DAVIT, "run", "-a", app.name, "--", "tee /dev/stderr; echo >&2; exit 5"]
    done = subprocess.run(argv, env=app.davit.environment, cwd=app.checkout, input=data, capture_output=True, timeout=60)
    assert done.returncode == 5 and done.stdout == data and data in done.stderr
    assert app.cli("run", "--", "cat", input="hi\n").stdout == "hi\n"
    assert app.cli("run", "--", "printf '%s|' a 'b c'; tty || true").stdout == "a|b c|not a tty\n"
    assert app.cli("run", "--no-tty", "-e", "A=1;B=two", "--", "echo $A $B").stdout == "1 two\n"
    assert app.cli("run", "--", "no-such-command", check=False).returncode == 127
    assert app.cli("run", "--", "kill -KILL $$", check=False).returncode == 137


@scene
def a_detached_dyno_writes_into_the_log_and_can_be_stopped(app: App) -> None:
    app.deploy(tiny("first"))
    app.cli("run:detached", "--", "echo out; echo err >&2; exit 3")
    eventually(lambda: re.search(r"heroku\[run\.\d+\]: Process exited with status 3", app.log()), "its end is in the log")
    assert re.search(r"app\[run\.\d+\]: out\n", app.log()) and re.search(r"app\[run\.\d+\]: err\n", app.log())
    app.cli("run:detached", "--", "trap 'echo asked to stop; exit 0' TERM; while true; do sleep 0.1; done")
    eventually(lambda: one_offs(app), "it runs")
    (name,) = one_offs(app)
    app.cli("ps:stop", name)
    eventually(lambda: not one_offs(app), "it is gone")
    eventually(lambda: "asked to stop" in app.log(), "it was asked to")
    assert app.get().status_code == 200


@scene
def a_dyno_whose_client_is_gone_ends(app: App) -> None:
    app.deploy(tiny("first"))
    pipes = subprocess.Popen(
        [DAVIT, "run", "-a", app.name, "--", "echo started; sleep 1000"], env=app.davit.environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=app.checkout,
    )  # fmt: skip
    assert pipes.stdout is not None and pipes.stdin is not None
    with pipes.stdin, pipes.stdout:
        assert pipes.stdout.readline() == b"started\n"
        assert len(one_offs(app)) == 1
        os.kill(pipes.pid, signal.SIGKILL)
        pipes.wait()
    eventually(lambda: not one_offs(app), "the dyno of the pipes is gone")
    shell = terminal(app, "bash")
    shell.expect("$ ")
    shell.type("sleep 1000\n")
    shell.close()
    eventually(lambda: not one_offs(app), "the dyno of the closed window is gone")
    eventually(lambda: "Client connection closed. Sending SIGHUP" in app.log(), "the log says why")


@scene
def control_c_without_a_terminal_interrupts_the_command(app: App) -> None:
    app.deploy(tiny("first"))
    process = subprocess.Popen(
        [DAVIT, "run", "-a", app.name, "--", "trap 'echo interrupted; exit 9' INT; echo ready; while true; do sleep 0.1; done"],
        env=app.davit.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=app.checkout,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"interrupted\n"
    assert process.wait(30) == 9


@scene
def one_offs_of_an_app_end_with_it(app: App) -> None:
    victim = app.davit.create()
    victim.deploy(tiny("first"))
    victim.cli("run:detached", "--", "sleep 100017")
    eventually(lambda: one_offs(victim), "it runs")
    victim.cli("apps:destroy", "--confirm", victim.name)
    eventually(lambda: not running("sleep 100017"), "its process is gone")


@scene
def a_one_off_that_uses_more_memory_than_it_has_is_told(app: App) -> None:
    app.deploy(tiny("first"))
    grows = "import sys; a = b'x' * (700 << 20); sys.stdin.readline(); b = b'x' * (900 << 20)"  # of 512 MB
    process = subprocess.Popen(
        [DAVIT, "run", "-a", app.name, "--", f'python3 -c "{grows}"'], env=app.davit.environment, cwd=app.checkout, stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    eventually(lambda: re.search(r"heroku\[run\.\d+\]: Error R14 \(Memory quota exceeded\)", app.log()), "R14 is in the log", 60)
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 137
    killed = r"heroku\[run\.\d+\]: Error R15 \(Memory quota vastly exceeded\) -> .* twice its dyno's memory"
    eventually(lambda: re.search(killed, app.log()), "R15 is in the log")


@scene
def an_app_without_code_says_so(app: App) -> None:
    done = app.cli("run", "--", "true", check=False)
    assert done.returncode and "has no code yet" in done.stderr, done.stderr
    app.deploy(tiny("first"))
    done = app.cli("run", "--size", "gigantic", "--", "true", check=False)
    assert done.returncode and "There is no dyno size “gigantic”" in done.stderr, done.stderr
    limit = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert app.cli("run", "--size", "standard-2x", "--", f"cat {limit} 2>/dev/null; nproc; id -u").stdout.endswith("\n1000\n")


def running(command: str) -> bool:
    done = subprocess.run(["pgrep", "-f", "-x", command], capture_output=True)
    return bool(done.stdout)


@pytest.fixture(scope="module")
def played(davit: Davit) -> Iterator[dict[str, Future[None]]]:
    threads, futures = scene.begin(davit)
    with threads:
        yield futures


@pytest.mark.parametrize("name", scene.parameters())
def test_a_one_off(played: dict[str, Future[None]], name: str) -> None:
    played[name].result()
