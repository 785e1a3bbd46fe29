"""The router against hand-written HAProxies: CPU per request, requests/s, p99, route changes, memory, log lines lost.

``python bench/router.py`` prints a table of ratios. All proxies stand in front of the same backend (a HAProxy that answers
1 KB by itself) and write an access log that is read; runs are interleaved, figures are medians. Loopback only.

There are two hand-written configurations. :data:`MINIMAL` forwards and logs, and does nothing for the app but to say who
asked; the promise is about this one. :data:`SAME_HEADERS` also gives the app the headers that it gets from the router, for one
app with fixed dynos; what is left beyond it is what finding the app, its states, codes and changes cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.tables import Figure, hand_over
from foundation.settings import from_environment
from router import service
from router.accesslog import Access
from router.collector import open_fifo
from router.routes import AppRows, DynoRow

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = 2
CONNECTIONS = 32
APPS = (1, 10, 1_000, 10_000)
CHANGES = 30
PACED_CONNECTIONS = 128
PACED_MS = 13
"""Pause between a connection's requests that makes all of them together send 8,000 a second or a little more."""
TICK = os.sysconf("SC_CLK_TCK")

MINIMAL = """
global
    log stdout len 4096 format raw local0
    maxconn 8000
    nbthread {threads}
defaults
    mode http
    timeout connect 5s
    timeout client 55s
    timeout server 55s
frontend web
    bind 127.0.0.1:{port}
    option httplog
    option forwardfor
    log global
    default_backend app
backend app
    balance roundrobin
    server one 127.0.0.1:{target}
    server two 127.0.0.1:{target}
"""

SAME_HEADERS = MINIMAL.replace(
    "    option forwardfor\n",
    """    option forwardfor
    unique-id-format %[uuid()]
    unique-id-header X-Request-ID
    http-request del-header X-Request-ID
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Port {port}
    http-request set-header X-Request-Start %[date(0,ms)]
    http-request add-header Via "%[req.ver] proxy"
    http-request del-header X-Forwarded-Host
    http-request del-header Proxy
    http-response add-header Via "1.1 proxy"
""",
)

BACKEND = """
global
    maxconn 8000
    nbthread 1
defaults
    mode http
    timeout client 60s
    timeout http-keep-alive 60s
frontend app
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string "{body}"
"""


@dataclass
class Run:
    """One run of wrk: CPU microseconds per request, requests per second, p99 in milliseconds, requests answered."""

    cpu: float
    rate: float
    p99: float
    requests: float


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, to the microsecond where the scheduler tells it."""
    with contextlib.suppress(OSError):
        return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def pss_mib(pid: int) -> float:
    """Proportional set size."""
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1]) / 1024  # type: ignore[index]


@contextlib.contextmanager
def haproxy(config: str, directory: Path, name: str, *, logged: bool) -> Iterator[int]:
    """A HAProxy of the bench's own, whose log (if any) is read and thrown away."""
    path = directory / f"{name}.cfg"
    path.write_text(config)
    if not logged:
        process = subprocess.Popen(["haproxy", "-f", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        # the same FIFO as the router's, so that neither drops lines and both pay for them
        fifo = open_fifo(directory / f"{name}.fifo")
        process = subprocess.Popen(["haproxy", "-f", path], stdout=fifo, stderr=subprocess.DEVNULL, start_new_session=True)
        threading.Thread(target=_drain, args=(fifo,), daemon=True).start()
    try:
        time.sleep(0.5)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _drain(fifo: int) -> None:
    while True:
        time.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            while os.read(fifo, 1 << 20):
                pass


async def wrk(
    pid: int, port: int, host: str, seconds: float = SECONDS, script: Path | None = None, connections: int = CONNECTIONS
) -> Run:
    """Load a proxy, as fast as it goes or as a script of wrk's says, and see what it cost."""
    before = cpu_seconds(pid)
    words = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-H",
        f"Host: {host}",
        *(("-s", str(script)) if script else ()),
        f"http://127.0.0.1:{port}/x?y=1",
    ]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    out = (await process.communicate())[0].decode()
    spent = cpu_seconds(pid) - before
    requests = int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors", out)
    assert not bad, out
    latency = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    assert latency
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[latency[2]]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    return Run(spent / requests * 1e6, rate, float(latency[1]) * scale, requests)


class Bench:
    """A Davit router over rows that are made up."""

    def __init__(self, directory: Path, target: int) -> None:
        self.port = free_port()
        self.target = target
        environ = {"DAVIT_HOME": str(directory / "home"), "DAVIT_HTTP": f"127.0.0.1:{self.port}"}
        self.settings = from_environment(environ)
        self.settings.run.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, AppRows] = {}
        self.lines = 0

    def read(self, app_ids: Collection[str] | None) -> Sequence[AppRows]:
        """The reader that the router is given."""
        return [row for row in self.rows.values()] if app_ids is None else [self.rows[one] for one in app_ids if one in self.rows]

    async def deliver(self, batch: Mapping[str, Sequence[Access]]) -> None:
        """The sink that the router is given."""
        self.lines += sum(len(lines) for lines in batch.values())

    def add(self, number: int, dynos: int = 1) -> str:
        """Make up an app."""
        app_id = f"{number:08d}-0000-4000-8000-000000000000"
        rows = AppRows(app_id, f"app-{number}", web_quantity=1, process_types={"web": "x"})
        rows.dynos = [self.dyno(f"{number:06d}{index:06d}", index) for index in range(1, dynos + 1)]
        self.rows[app_id] = rows
        return app_id

    def dyno(self, id: str, index: int) -> DynoRow:
        """Make up a dyno."""
        return DynoRow(id, f"web.{index}", "up", True, False, "127.0.0.1", self.target)

    async def change(self, router: service.Router, number: int) -> float:
        """Milliseconds from a new dyno in the rows to the answer that it is in force."""
        app_id = f"{number:08d}-0000-4000-8000-000000000000"
        dynos = self.rows[app_id].dynos
        dynos.append(
            DynoRow(f"{number:06d}{time.time_ns() % 10**12:012d}"[-18:], "web.9", "up", True, False, "127.0.0.1", self.target)
        )
        if len(dynos) > 2:
            del dynos[1]
        started = time.perf_counter()
        await router.sync(app_id)
        return (time.perf_counter() - started) * 1000


async def lines_lost(bench: Bench, router: service.Router, script: Path | None = None) -> tuple[float, int, int]:
    """Ask, as fast as it goes or as a script of wrk's says; the rate, and how many lines did not reach the log, and how many of
    those were counted as lost.

    A request that wrk breaks off at the end leaves a line too: what is lost is never counted too high, and too low by one per
    connection at the most.
    """
    assert router.current
    await _settled(bench)
    before, counted = bench.lines, dropped(router)
    run = await wrk(router.current.pid, bench.port, "app-1.localhost", 2 * SECONDS, script, PACED_CONNECTIONS)
    await _settled(bench)
    return run.rate, max(0, int(run.requests) - (bench.lines - before)), dropped(router) - counted


def dropped(router: service.Router) -> int:
    """How many log lines the router counted as lost so far."""
    return int(str(router.status()["lines_dropped"]))


async def losses(bench: Bench, router: service.Router, directory: Path) -> list[Figure]:
    """At the promised rate none may be lost; as fast as it goes, each that is lost must be counted."""
    script = directory / "paced.lua"
    script.write_text(f"function delay() return {PACED_MS} end\n")
    rate, lost, counted = await lines_lost(bench, router, script)
    print(f"        at {rate:,.0f} requests/s: {lost} log lines lost, {counted} counted as lost", flush=True)
    top, gone, told = await lines_lost(bench, router)
    print(f"        at {top:,.0f} requests/s: {gone} log lines lost, {told} counted as lost", flush=True)
    return [
        Figure("router", f"log lines lost at {rate:,.0f}/s", str(lost), "", None, "0 at 8,000/s", lost == 0),
        Figure("router", f"log lines lost at {top:,.0f}/s", str(gone), f"{told} counted", None, "each counted", gone <= told),
    ]


async def _settled(bench: Bench) -> None:
    """Wait until no more lines arrive."""
    seen = -1
    while seen != bench.lines:
        seen = bench.lines
        await asyncio.sleep(0.5)


@dataclass
class Row:
    """What was measured with so many apps: medians of Davit's router, of the minimal proxy, of the one with the same headers."""

    apps: int
    ours: Run
    minimal: Run
    headers: Run
    to_one: float
    change: float
    worst: float
    fresh: float
    memory: float
    lost: int

    def __str__(self) -> str:
        to_minimal, to_headers = self.ours.cpu / self.minimal.cpu, self.ours.cpu / self.headers.cpu
        return (
            f"{self.apps:6d}  {self.ours.cpu:10.1f}  {to_minimal:8.2f}  {to_headers:13.2f}  {self.to_one:8.2f}"
            f"  {self.ours.rate / self.minimal.rate:8.2f}  {self.ours.p99 / self.minimal.p99:7.2f}"
            f"  {self.change:8.2f} ({self.worst:4.1f})  {self.fresh:10.2f}  {self.memory:7.1f}  {self.lost:10}"
        )

    def figures(self) -> list[Figure]:
        """What is promised, beside what was measured."""
        of = f"{self.apps:,} app{'s' * (self.apps != 1)}"
        cpu = f"{self.ours.cpu:.1f} µs"
        found = [
            Figure("router", f"{of}: a route change", f"{self.change:.2f} ms", f"at most {self.worst:.1f} ms", None, "≤ 10 ms",
                   self.change <= 10),
            Figure("router", f"{of}: memory (PSS)", f"{self.memory:.1f} MiB", "", None, "≤ 200 MiB", self.memory <= 200),
        ]  # fmt: skip
        if self.apps != 1:
            return [Figure("router", f"{of}: CPU per request", cpu, "one app", self.to_one, "≤ 1.2", self.to_one <= 1.2), *found]
        more = self.ours.cpu / self.minimal.cpu
        rate, p99 = self.ours.rate / self.minimal.rate, self.ours.p99 / self.minimal.p99
        return [
            Figure("router", "CPU per request", cpu, f"minimal HAProxy {self.minimal.cpu:.1f} µs", more, "≤ 1.1", more <= 1.1),
            Figure("router", "CPU per request", cpu, f"hand-written, same headers {self.headers.cpu:.1f} µs",
                   self.ours.cpu / self.headers.cpu),
            Figure("router", "requests/s", f"{self.ours.rate:,.0f}", f"minimal HAProxy {self.minimal.rate:,.0f}", rate),
            Figure("router", "p99", f"{self.ours.p99:.2f} ms", f"minimal HAProxy {self.minimal.p99:.2f} ms", p99),
            *found,
        ]  # fmt: skip


def median(runs: Sequence[Run]) -> Run:
    """Each figure's own median."""
    return Run(*(statistics.median(values) for values in zip(*(astuple(run) for run in runs), strict=True)))


async def main() -> None:
    """Run everything and print."""
    directory = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    target, minimal_port, headers_port = free_port(), free_port(), free_port()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(haproxy(BACKEND.format(port=target, body="x" * 1000), directory, "backend", logged=False))
        threads = min(os.cpu_count() or 1, 8)
        minimal = MINIMAL.format(port=minimal_port, target=target, threads=threads)
        minimal_pid = stack.enter_context(haproxy(minimal, directory, "minimal", logged=True))
        headers = SAME_HEADERS.format(port=headers_port, target=target, threads=threads)
        headers_pid = stack.enter_context(haproxy(headers, directory, "headers", logged=True))
        bench = Bench(directory, target)
        stack.callback(service.stop, bench.settings)
        one_app = 0.0
        for apps in APPS:
            for number in range(1, apps + 1):
                bench.add(number, dynos=2 if number == 1 else 1)
            router = service.Router(bench.settings, bench.read, bench.deliver)
            await router.start()
            assert router.current
            pid = router.current.pid
            ours, theirs, alike = [], [], []
            for _ in range(ROUNDS):
                theirs.append(await wrk(minimal_pid, minimal_port, "app-1.localhost"))
                alike.append(await wrk(headers_pid, headers_port, "app-1.localhost"))
                ours.append(await wrk(pid, bench.port, f"app-{apps // 2 + 1 if apps > 1 else 1}.localhost"))
            reloads = router.reloads
            changes = [await bench.change(router, apps) for _ in range(CHANGES)]
            fresh = []
            for extra in range(5):
                app_id = bench.add(apps + 1 + extra)
                started = time.perf_counter()
                await router.sync(app_id)
                fresh.append((time.perf_counter() - started) * 1000)
                del bench.rows[app_id]
                await router.sync(app_id)
            assert router.reloads == reloads, "a change needed a reload"
            typical = median(ours)
            one_app = one_app or typical.cpu
            row = Row(
                apps, typical, median(theirs), median(alike), typical.cpu / one_app, statistics.median(changes), max(changes),
                statistics.median(fresh), pss_mib(pid), dropped(router),
            )  # fmt: skip
            if apps == APPS[0]:
                print(
                    "  apps  CPU/req µs  ÷minimal  ÷same headers  ÷one app  rate÷min  p99÷min  change ms (max)"
                    "  new app ms  PSS MiB  lines lost"
                )
            print(row, flush=True)
            hand_over(row.figures())
            if apps == 1:
                hand_over(await losses(bench, router, directory))
            await router.close()
            service.stop(bench.settings, patience=1)


if __name__ == "__main__":
    asyncio.run(main())
