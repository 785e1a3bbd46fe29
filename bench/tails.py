"""What following logs costs: ``python -m bench.tails``.

A real web process and a real Redis; many clients follow one app's log (server-sent events, in a process of their own) while
lines come at a steady rate, each with the time at which it was written. Printed: the delay from there to the last byte of the
line at a client (median, 99th part of a hundred), the CPU of the web process, and its memory before, with the tails, and after.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.api import ROOT, Web, own_home, populate
from bench.tables import Figure, hand_over, ms

_SENT = re.compile(rb"sent=(\d+\.\d+)\n\n")


def follow(url: str, count: int, seconds: float) -> None:
    """In a process of its own: follow with ``count`` connections; prints how many lines came and their delays in ms."""
    parts = urlsplit(url)
    selector = selectors.DefaultSelector()
    for number in range(count):
        line = socket.create_connection((parts.hostname or "", parts.port or 0))
        line.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
        selector.register(line, selectors.EVENT_READ, number)
    for key in list(selector.get_map().values()):
        while not key.fileobj.recv(4096).endswith(b"\r\n\r\n"):  # type: ignore[union-attr]
            pass
        key.fileobj.setblocking(False)  # type: ignore[union-attr]
    print("ready", flush=True)
    delays: list[float] = []
    lines, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for key, _ in selector.select(0.5):
            data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
            at = time.time()
            lines += data.count(b"sent=")
            if key.data < 10:  # this process must not be what is measured
                delays += [(at - float(one)) * 1000 for one in _SENT.findall(data)]
    delays.sort()
    print(json.dumps({"lines": lines, "median": delays[len(delays) // 2], "p99": delays[len(delays) * 99 // 100]}), flush=True)


def cpu(web: Web) -> float:
    """Seconds of CPU that the web process has taken."""
    children = Path(f"/proc/{web.process.pid}/task/{web.process.pid}/children").read_text().split()
    ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children]
    return sum(int(fields[11]) + int(fields[12]) for fields in ticks) / os.sysconf("SC_CLK_TCK")


P99_SECONDS, MIB_EACH = 1.0, 0.25
"""What is wanted: the delay of 99 lines in a hundred, and memory for each tail, whose buffer may have that much."""


def measure(home: Path, tails: int, rate: int, seconds: float) -> list[Figure]:
    """One measurement; prints it."""
    import http.client
    from datetime import datetime, timezone

    from foundation.settings import settings
    from logs import stream
    from logs.stream import Line

    web = Web(home)
    try:
        token = (home / "owner-token").read_text().strip()
        line = http.client.HTTPConnection("127.0.0.1", web.port, timeout=30)
        line.request("POST", "/apps/app-00001/log-sessions", '{"tail": true, "lines": 0}', {"Authorization": f"Bearer {token}"})
        url = json.loads(line.getresponse().read())["logplex_url"]
        line.request("GET", "/apps/app-00001", headers={"Authorization": f"Bearer {token}"})
        app_id = json.loads(line.getresponse().read())["id"]
        before = web.pss()
        words = [sys.executable, "-m", "bench.tails", "--follow", url, f"--tails={tails}", f"--seconds={seconds + 2}"]
        client = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert client.stdout and client.stdout.readline() == "ready\n"
        time.sleep(1)
        redis, began, spent, sent = stream.connect(settings().effective_redis_url), time.monotonic(), cpu(web), 0
        while time.monotonic() < began + seconds:
            due = int((time.monotonic() - began) * rate) - sent
            stream.emit(
                redis, app_id,
                [Line(datetime.now(timezone.utc), "app", "web.1", f"{'x' * 80} sent={time.time():.6f}") for _ in range(due)],
                wait=0,
            )  # fmt: skip
            sent += due
            time.sleep(0.01)
        spent, during = cpu(web) - spent, web.pss()
        said = json.loads(client.communicate()[0])
        time.sleep(2)
        share = said["lines"] / max(1, sent * tails)
        print(
            f"| {tails} | {sent / seconds:.0f} | {share:.1%} | {said['median']:.0f} ms | {said['p99']:.0f} ms | "
            f"{spent / seconds:.0%} | {before:.1f} | {during:.1f} | {web.pss():.1f} |"
        )
        what, p99, each = f"{tails} tails at {sent / seconds:.0f} lines a second", said["p99"] / 1000, (during - before) / tails
        return [
            Figure("tails", f"{what}: lines that arrived", f"{share:.1%}", goal="100 %", met=share >= 1),
            Figure("tails", f"{what}: delay, median", ms(said["median"] / 1000)),
            Figure("tails", f"{what}: delay, p99", ms(p99), goal=f"≤ {P99_SECONDS:.0f} s", met=p99 <= P99_SECONDS),
            Figure("tails", f"{what}: memory for each", f"{each:.2f} MiB", goal=f"≤ {MIB_EACH} MiB", met=each <= MIB_EACH),
        ]
    finally:
        web.process.terminate()
        web.process.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tails", type=int, default=500)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        follow(options.follow, options.tails, options.seconds)
        return
    home = own_home()
    populate(10)
    redis = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", home / "run" / "redis.sock", "--save", "", "--dir", home],
        stdout=subprocess.DEVNULL,
    )
    try:
        print("| tails | lines/s | arrived | delay, median | p99 | CPU of web | MiB before | with tails | after |")
        print("|---|---|---|---|---|---|---|---|---|")
        for tails in sorted({1, options.tails}):
            found = measure(home, tails, options.rate, options.seconds)
        hand_over(found)
    finally:
        redis.terminate()
        redis.wait()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
