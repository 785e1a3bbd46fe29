"""A day with a unikernel, on a real OSv kernel: deselected, and said so, where none is given."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import running
from tests.e2e.world import TINY, App, Davit, eventually, tiny

pytestmark = [pytest.mark.root, pytest.mark.osv, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def osv_davit() -> Iterator[Davit]:
    home = Path(tempfile.mkdtemp(prefix="dvo", dir="/tmp"))
    extra = {"DAVIT_OSV_KERNEL": os.environ["DAVIT_OSV_KERNEL"], "DAVIT_BOOT_TIMEOUT": "180"}
    with running(Davit(home, extra=extra)) as world:
        yield world


def isolations(app: App) -> set[str]:
    return {dyno.get("isolation", "?") for dyno in app.dynos() if dyno["state"] == "up"}


def test_a_day_with_a_unikernel(osv_davit: Davit) -> None:
    app = osv_davit.create()
    app.deploy(TINY)
    app.assert_serves("first")
    app.cli("ps:isolation", "web=osv")
    eventually(lambda: isolations(app) == {"osv"}, "the unikernel", 120)
    app.assert_serves("first")
    app.cli("config:set", "GREETING=costs $5 – ü")
    eventually(lambda: "costs $5 – ü" in app.get().text, "the config var", 120)
    app.deploy(tiny("second"))
    app.assert_serves("second costs $5 – ü web.1")
    log = app.log()
    assert "listening" in log and "Setting in environment" not in log and "VFS:" not in log

    app.commit({"Procfile": "web: python3 app.py | cat\n"})
    refused = app.push_refused()
    assert "pipes one program into another" in refused.output and "microvm" in refused.output
    app.assert_serves("second")

    app.cli("ps:isolation", "web=container")
    eventually(lambda: isolations(app) == {"container"}, "the container", 120)
    app.assert_serves("second")


NODE = {
    "package.json": '{"private": true, "scripts": {"start": "node server.js"}}',
    "server.js": """
const server = require("node:http").createServer((request, response) => response.end(`Node ${process.cwd()}`));
server.listen(process.env.PORT, "0.0.0.0");
process.on("SIGTERM", () => { console.log("told to end"); process.exit(7); });
""",
}


def test_node_serves_in_a_unikernel_and_hears_of_its_end(osv_davit: Davit) -> None:
    app = osv_davit.create()
    app.deploy(NODE)
    app.cli("ps:isolation", "web=osv")
    eventually(lambda: isolations(app) == {"osv"}, "the unikernel", 120)
    app.assert_serves("Node /app")
    eventually(lambda: "told to end" in app.log(), "the container that was hears of its end", 60)
    before = app.log()
    app.cli("ps:restart")
    eventually(lambda: app.log().count("Process exited with status 7") > before.count("Process exited with status 7"), "its end", 120)
    assert app.log().count("told to end") > before.count("told to end")
    app.assert_serves("Node /app")
