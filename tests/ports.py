"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

_WORKERS = 8


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now, and that no client is given by accident while its server is down.

    The kernel takes the ports of clients from ``ip_local_port_range``, where a port stays taken for a minute after its
    connection: a server that has to come back to its port must be outside of it. Each process of a parallel test run has a
    share of its own (of the process's name, ``gw3``, pytest-xdist; https://pytest-xdist.readthedocs.io/en/stable/how-to.html).
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first, size = 10_000, (lowest - 10_000) // _WORKERS
    assert size > 100, f"the machine gives clients ports from {lowest} on; the tests need some below"
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    for port in random.SystemRandom().sample(range(first + worker * size, first + (worker + 1) * size), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
