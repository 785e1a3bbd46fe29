"""``davit ps:exec``: a further command, or a shell, in a dyno that runs."""

from __future__ import annotations

from tests.e2e.terminal import Terminal
from tests.e2e.world import DAVIT, Davit, tiny


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
