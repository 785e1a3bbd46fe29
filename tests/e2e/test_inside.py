"""``davit ps:exec``: a further command, or a shell, in a dyno that runs; ``ps:forward``: its ports, on this machine."""

from __future__ import annotations

import subprocess

import httpx

from tests.e2e.terminal import Terminal
from tests.e2e.world import DAVIT, App, Davit, tiny
from tests.ports import free_port


def test_a_command_and_a_shell_in_a_dyno_that_runs(davit: Davit) -> None:
    app = davit.create()
    app.cli("config:set", "GREETING=hello")
    assert app.deploy(tiny("first")).accepted
    said = app.cli("ps:exec", "--", "echo $DYNO $GREETING $HOME; read word; echo got $word", input="it\n")
    assert said.stdout == "web.1 hello /app\ngot it\n"
    assert app.cli("ps:exec", "--", "exit 5", check=False).returncode == 5
    shell = Terminal([DAVIT, "ps:exec", "-a", app.name], davit.environment, app.checkout, 40, 100)
    shell.expect("$ ")
    shell.type("stty size; echo 'the' 'end'\n")
    assert "40 100" in shell.expect("the end\r\n")
    shell.type("exit\n")
    assert shell.wait() == 0
    app.assert_serves("first")
    _led_to_its_port(app)


def _led_to_its_port(app: App) -> None:
    there, here = app.cli("ps:exec", "--", "echo $PORT").stdout.strip(), free_port()
    words = [DAVIT, "ps:forward", f"{here}:{there}", "-a", app.name]
    with subprocess.Popen(words, env=app.davit.environment, cwd=app.checkout, stderr=subprocess.PIPE, text=True) as way:
        try:
            assert way.stderr
            said = iter(way.stderr.readline, "")
            assert next(line for line in said if "Use CTRL+C" in line)
            assert httpx.get(f"http://127.0.0.1:{here}/", timeout=60, trust_env=False).text.startswith("first")
        finally:
            way.kill()
