"""What DAVIT_DYNOS_ALLOW opens, to whom, and for how long: real nftables, connections and containers."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from runtime import conntrack, firewall
from runtime.osv import management, signals
from tests.runtime.bench_of_driver import Bench
from tests.runtime.contract import CONNECT

NOWHERE = ["113"] * 7
"""EHOSTUNREACH for each of the places."""


def test_dynos_alone_reach_what_is_allowed_and_no_connection_outlives_that() -> None:
    words = ["unshare", "--net", "--mount", "--propagation=private", sys.executable, "-m", "tests.runtime.beside_a_database"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    reached = ["reached", "113", "113", "reached", "reached", "113", "113"]
    assert json.loads(done.stdout) == {
        "before": NOWHERE, "dyno": reached, "build": NOWHERE, "adopted": reached,
        "connections": ["answered answered", "silent silent"], "ended": NOWHERE,
    }  # fmt: skip


_ASKS = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
for port in map(int, sys.argv[3:]):
    try: socket.create_connection((sys.argv[2], port), 30).close(); print("connected")
    except ConnectionRefusedError: print("refused")
"""
_LISTENS = "import socket, time\nall = [socket.create_server(('0.0.0.0', port)) for port in (8080, 8000, 65077)]\ntime.sleep(1000)"


def test_what_a_unikernel_does_for_its_host_it_does_for_root_alone(
    loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]
) -> None:
    """Its REST server and its agent ask nobody who they are. (A container listens there as one would.)"""
    assert firewall.OF_ROOT == (management.PORT, signals.PORT)
    bench = Bench(loop, *images)
    bench.open()
    try:
        dyno = bench.python(_LISTENS)
        bench.until(lambda: len(dyno.listeners()) == 3, "listening")
        answers = {}
        for uid in (0, 65534):
            words = [sys.executable, "-c", _ASKS, str(uid), str(dyno.address), "8080", "8000", "65077"]
            answers[uid] = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout.split()
        assert answers == {0: ["connected"] * 3, 65534: ["connected", "refused", "refused"]}
    finally:
        bench.close()
    assert bench.leftovers_on_host() == []


_WAITS = "import socket\nsocket.create_server(('0.0.0.0', 5000)).accept()\n"


def test_a_container_of_an_app_reaches_a_service_of_this_host_and_that_of_a_build_does_not(
    loop: asyncio.AbstractEventLoop, images: tuple[Path, Path]
) -> None:
    number = os.getpid() % 1024
    network = ipaddress.IPv4Network((int(ipaddress.IPv4Address("100.64.0.0")) + number * 4096, 20))  # side by side with others
    here = str(network[1])
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        bench = Bench(loop, *images, DAVIT_NETWORK=str(network), DAVIT_DYNOS_ALLOW=f"{here}:{port}")
        connect = CONNECT.format(targets=[(here, port)])
        bench.open()
        try:
            assert bench.result(connect, allowed=True) == {here: "connected"}
            assert bench.result(connect) == {here: "OSError113"}
            waiting = bench.python(_WAITS + connect, allowed=True)
            bench.close(stop_dynos=False)
            known = ["ip", "neigh", "show", str(waiting.address), "dev", bench.host.instance.bridge, "nud", "permanent"]
            subprocess.run(["ip", "neigh", "del", *known[3:6]], check=True)  # as if a version had started it that did not do this
            bench.open()
            gateway = bench.host.instance.gateway
            assert conntrack.forget_strays(network, [gateway]) == 0, "what those that have ended left is forgotten at the start"
            assert bench.host.instance.mac(waiting.slot).encode() in subprocess.run(known, check=True, capture_output=True).stdout
            (adopted,) = (dyno for dyno in bench.run(bench.driver.adopt()) if dyno.spec_id == waiting.spec_id)
            bench.until(adopted.listeners, "listening")
            assert adopted.address
            socket.create_connection((adopted.address, 5000), 60).close()
            assert json.loads(bench.output(adopted)) == {here: "connected"}, "another runtime process took it over"
            bench.remove_all()
            bench.until(lambda: not bench.host.pool.leaving, "free slots")
            assert conntrack.forget_strays(network, [gateway]) == 0, "a connection that is just over would be remembered for minutes"
        finally:
            bench.close()
    assert bench.leftovers_on_host() == []
