"""A little internet: a network namespace whose server builds can reach, because it is no part of this host or its networks.

Its address is of a network for documentation (RFC 5737), and the way to it stands in a routing table of its own: the
firewall refuses builds whatever the main table calls this host's own networks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.world import eventually

ADDRESS, GATEWAY = "203.0.113.10", "203.0.113.9"
_TABLE = "7713"


@contextlib.contextmanager
def internet(files: Path) -> Iterator[str]:
    """Serve a directory at ``http://ADDRESS/`` (plain files) and ``git://ADDRESS/`` (its repositories); gives the address."""
    name = f"dvnet{os.getpid()}"
    host, inside = f"dvh{os.getpid()}", f"dvi{os.getpid()}"
    _ip("netns", "add", name)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        _ip("link", "add", host, "type", "veth", "peer", inside, "netns", name)
        _ip("addr", "add", f"{GATEWAY}/32", "dev", host)
        _ip("link", "set", host, "up")
        # a new interface forwards where the whole host does; Davit lets its bridge and the default route's interface do it only
        Path(f"/proc/sys/net/ipv4/conf/{host}/forwarding").write_text("1")
        _ip("route", "add", ADDRESS, "dev", host, "table", _TABLE)
        _ip("rule", "add", "to", ADDRESS, "lookup", _TABLE)
        for words in (
            ["addr", "add", f"{ADDRESS}/32", "dev", inside], ["link", "set", "lo", "up"], ["link", "set", inside, "up"],
            ["route", "add", GATEWAY, "dev", inside],
        ):  # fmt: skip
            _ip("-n", name, *words)
        for argv in (
            ["git", "daemon", "--export-all", f"--base-path={files}", "--reuseaddr", f"--listen={ADDRESS}"],
            ["python3", "-m", "http.server", "--bind", ADDRESS, "--directory", str(files), "80"],
        ):
            servers.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env={**os.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
                )
            )  # fmt: skip
        for port in (80, 9418):
            probe = ["bash", "-c", f"echo > /dev/tcp/{ADDRESS}/{port}"]
            eventually(lambda: subprocess.run(probe, capture_output=True).returncode == 0, f"port {port} answers")  # noqa: B023
        yield ADDRESS
    finally:
        for server in servers:
            server.terminate()
            server.wait(10)
        subprocess.run(["ip", "rule", "del", "to", ADDRESS, "lookup", _TABLE], check=False)
        _ip("netns", "del", name)  # and with it both ends of the cable, and the route


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
