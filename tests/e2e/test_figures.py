"""How an app does: what the router counted and the runtime sampled can be seen, and outlives both."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.e2e.world import Davit, eventually, tiny


def test_requests_memory_and_crashes_show_in_the_figures(davit: Davit) -> None:
    app = davit.create()
    app.deploy(tiny("first"))
    client = davit.client()
    app_id = client.get(f"/apps/{app.name}").json()["id"]

    def figures() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/apps/{app.name}/formation/web/metrics").json()
        return found

    def measured(group: str, line: str) -> list[float]:
        return [value for value in figures().get(group, {}).get(line, []) if value]

    eventually(lambda: measured("memory_bytes", "mean"), "memory was sampled", 90)
    for _ in range(30):
        app.assert_serves("first")
    eventually(lambda: measured("responses_per_second", "2xx"), "requests were counted", 90)
    assert measured("response_seconds", "p95")
    assert figures()["quota"] == 512 << 20
    for process in ("runtime", "router"):
        for pid in davit.pids()[process]:
            os.kill(pid, signal.SIGKILL)
    assert measured("responses_per_second", "2xx"), "figures are in files, not in processes"
    app.cli("apps:destroy", "--confirm", app.name)
    eventually(lambda: not (davit.home / "metrics" / app_id).exists(), "the figures went with the app", 60)
