"""What collecting logs costs: ``python -m bench.logs``.

Beside the collector, in the same run and interleaved, two plain readers of the same kind of FIFO: ``cat`` into a file (the
least that reading costs) and a Docker-like json-file writer (each line with its time as JSON into a file). Medians; ratios
travel, absolute times do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from logs import collector, stream
from logs.lines import Splitter
from logs.resp import Client
from logs.window import key

ROOT = Path(__file__).parents[1]
LINE = b'10.0.0.1 - - [23/Nov/2026:16:00:00 +0000] "GET /items/%06d HTTP/1.1" 200 1042 "-" "curl/8.5.0"\n'
LINES = 9_000  # below the burst that a dyno may print, so that every line is kept
_TICK = os.sysconf("SC_CLK_TCK")


class Bench:
    """A Redis, a collector and the FIFOs that fake dynos print into."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
        socket = self.home / "r.sock"
        self.redis = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", self.home], stdout=subprocess.DEVNULL
        )
        wait(socket.exists)
        self.client: Client = stream.connect(f"unix://{socket}")
        environment = {**os.environ, "DAVIT_HOME": str(self.home), "REDIS_URL": f"unix://{socket}", "PYTHONPATH": str(ROOT)}
        self.logs = subprocess.Popen([sys.executable, "-m", "logs"], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
        wait((self.home / "run/logs.sock").exists)
        self.fds: list[int] = []

    def dyno(self, app_id: str) -> int:
        """Make a dyno's directory; the descriptor of its standard output."""
        directory = self.home / "run/dynos" / f"{app_id}-{len(self.fds)}"
        directory.mkdir(parents=True)
        for name in ("stdout", "stderr"):
            os.mkfifo(directory / name)
            self.fds.append(os.open(directory / name, os.O_RDWR))
        (directory / "meta.json").write_text(json.dumps({"app_id": app_id, "process": "web.1"}))
        return self.fds[-2]

    def added(self, app_id: str) -> int:
        """Lines that ever reached the app's window."""
        if not self.client.execute_command("EXISTS", key(app_id)):
            return 0
        answer = self.client.execute_command("XINFO", "STREAM", key(app_id))
        return int(answer[answer.index(b"entries-added") + 1])

    def close(self) -> None:
        """End everything."""
        for process in (self.logs, self.redis):
            process.terminate()
            process.wait()
        for fd in self.fds:
            os.close(fd)
        shutil.rmtree(self.home)


def wait(condition: Callable[[], object], timeout: float = 60) -> None:
    """Poll until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("The bench waited in vain.")
        time.sleep(0.002)


def cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def fine_cpu(pid: int) -> float:
    """CPU seconds of all threads of a process so far, from the scheduler: nanoseconds instead of ticks."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def pss(pid: int) -> float:
    """MiB of a process: its own memory and its part of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def print_lines(fd: int) -> None:
    """Write the bench's lines as a program does that flushes every 4 KiB."""
    pending = b""
    for n in range(LINES):
        pending += LINE % n
        if len(pending) > 4096:
            os.write(fd, pending)
            pending = b""
    os.write(fd, pending)


def collected(bench: Bench, round: int) -> tuple[float, float, float]:
    """(lines per second, collector's CPU µs per line, Redis's CPU µs per line)."""
    app_id = f"throughput{round}"
    fd = bench.dyno(app_id)
    os.write(fd, b"warm\n")
    wait(lambda: bench.added(app_id) == 1)
    began, before, redis_before = time.perf_counter(), fine_cpu(bench.logs.pid), fine_cpu(bench.redis.pid)
    print_lines(fd)
    wait(lambda: bench.added(app_id) == LINES + 1)
    took = time.perf_counter() - began
    spent, redis_spent = fine_cpu(bench.logs.pid) - before, fine_cpu(bench.redis.pid) - redis_before
    return LINES / took, spent / LINES * 1e6, redis_spent / LINES * 1e6


def plain(argv: list[str], path: Path) -> tuple[float, float]:
    """(lines per second, CPU µs per line) of another reader of a FIFO, its start left out."""
    fifo = path / "fifo"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR)
    out = path / "out"
    with out.open("wb") as file:
        reader = subprocess.Popen(argv, stdin=fd, stdout=file)
        try:
            os.write(fd, b"warm\n")
            wait(lambda: out.stat().st_size > 0)
            began, before = time.perf_counter(), fine_cpu(reader.pid)
            print_lines(fd)
            wait(lambda: out.read_bytes().count(b"\n") == LINES + 1)
            return LINES / (time.perf_counter() - began), (fine_cpu(reader.pid) - before) / LINES * 1e6
        finally:
            reader.kill()
            reader.wait()
            os.close(fd)


def json_file() -> None:
    """A Docker-like json-file log driver: what it does per line, in this language."""
    splitter = Splitter()
    with open(1, "w", closefd=False) as out:
        while data := os.read(0, 65536):
            lines, _ = splitter.feed(data, 1 << 30)
            for line in lines:
                at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}Z"
                out.write(json.dumps({"log": line.decode() + "\n", "stream": "stdout", "time": at}) + "\n")
            out.flush()


def quiet_delay(bench: Bench, floods: int, samples: int, prefix: str) -> tuple[list[float], list[float]]:
    """(delays in ms of a quiet dyno's lines while others flood, CPUs used by (collector, Redis))."""
    noise = "import os\nd=b'noise ' * 16 + b'\\n'\nwhile True: os.write(1, d * 600)"
    quiet = bench.dyno(f"{prefix}quiet")
    writers = [
        subprocess.Popen([sys.executable, "-c", noise], stdout=bench.dyno(f"{prefix}noisy{n}"), stdin=subprocess.DEVNULL)
        for n in range(floods)
    ]
    try:
        time.sleep(6 if floods else 0.1)  # past the bursts
        arrived: dict[str, float] = {}
        done = threading.Event()

        def read() -> None:
            after = "0-0"
            while not done.is_set():
                for id, line in stream.tail(bench.client, f"{prefix}quiet", after, timeout=0.5):
                    arrived[line.text] = time.perf_counter()
                    after = id

        reader = threading.Thread(target=read)
        reader.start()
        sent = {}
        began, before = time.perf_counter(), [cpu(bench.logs.pid), cpu(bench.redis.pid)]
        for n in range(samples):
            sent[str(n)] = time.perf_counter()
            os.write(quiet, b"%d\n" % n)
            wait(lambda n=n: str(n) in arrived)  # type: ignore[misc]
            time.sleep(0.02)
        took = time.perf_counter() - began
        done.set()
        reader.join()
        used = [(now - then) / took for now, then in zip([cpu(bench.logs.pid), cpu(bench.redis.pid)], before, strict=True)]
        return [(arrived[text] - sent[text]) * 1000 for text in sent], used
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def idle(bench: Bench, seconds: float) -> float:
    """CPU of the idle collector, in percent of one."""
    time.sleep(1.5)
    before = fine_cpu(bench.logs.pid)
    time.sleep(seconds)
    return (fine_cpu(bench.logs.pid) - before) / seconds * 100


def row(name: str, value: str, ratio: str = "") -> None:
    """One line of the table."""
    print(f"| {name:<58} | {value:>26} | {ratio:>14} |", flush=True)


def throughput(rounds: int) -> None:
    """Lines per second and CPU per line, beside the plain readers."""
    bench = Bench()
    ours, cats, jsons = [], [], []
    writer = [sys.executable, "-c", "from bench.logs import json_file; json_file()"]
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        for round in range(rounds):
            ours.append(collected(bench, round))
            cats.append(plain(["cat"], bench.home))
            jsons.append(plain(writer, bench.home))
    finally:
        bench.close()
    rate, per_line, redis_line = (statistics.median(values) for values in zip(*ours, strict=True))
    cat_rate, cat_line = (statistics.median(values) for values in zip(*cats, strict=True))
    json_rate, json_line = (statistics.median(values) for values in zip(*jsons, strict=True))
    row("davit logs: lines/s of one dyno's burst, into Redis", f"{rate:,.0f}", "1")
    row("cat into a file: lines/s", f"{cat_rate:,.0f}", f"{cat_rate / rate:.2f}")
    row("json-file writer (Python): lines/s", f"{json_rate:,.0f}", f"{json_rate / rate:.2f}")
    row("davit logs: CPU µs/line (+ Redis)", f"{per_line:.1f} (+ {redis_line:.1f})", "1")
    row("cat into a file: CPU µs/line", f"{cat_line:.2f}", f"{cat_line / per_line:.2f}")
    row("json-file writer (Python): CPU µs/line", f"{json_line:.1f}", f"{json_line / per_line:.2f}")


def delays(samples: int) -> None:
    """A quiet dyno's lines while others flood."""
    base = 0.0
    for floods in (0, 1, 4, 16):
        bench = Bench()
        try:
            found, used = quiet_delay(bench, floods, samples, f"f{floods}")
        finally:
            bench.close()
        found.sort()
        middle, worst = statistics.median(found), found[int(len(found) * 0.99)]
        base = base or middle
        row(f"quiet dyno's line, {floods} dynos flooding: ms median / p99", f"{middle:.1f} / {worst:.1f}", f"{middle / base:.1f}")
        row(f"  CPU meanwhile: logs / Redis", f"{used[0]:.0%} / {used[1]:.0%}")  # noqa: F541


def sizes(seconds: float) -> None:
    """Memory and idle CPU with 0 and 200 dynos."""
    bench = Bench()
    try:
        wait(lambda: cpu(bench.logs.pid) > 0)
        empty = pss(bench.logs.pid)
        row("memory (PSS), no dyno: MiB", f"{empty:.1f}", "1")
        row("CPU idle, no dyno: % of one", f"{idle(bench, seconds):.3f}")
        for n in range(200):
            os.write(bench.dyno(f"app{n}"), b"hello\n")
        wait(lambda: all(bench.added(f"app{n}") == 1 for n in range(200)))
        full = pss(bench.logs.pid)
        row("memory (PSS), 200 dynos: MiB", f"{full:.1f}", f"{full / empty:.2f}")
        row("CPU idle, 200 dynos: % of one", f"{idle(bench, seconds):.3f}")
    finally:
        bench.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of rest to measure")
    options = parser.parse_args()
    print(f"a dyno may print {collector.LINES_PER_SECOND:,} lines/s in the long run, {collector.LINES_AT_ONCE:,} at once\n")
    row("what", "value", "ratio")
    print(f"|{'-' * 60}|{'-' * 28}|{'-' * 16}|")
    throughput(options.rounds)
    sizes(options.idle)
    delays(options.samples)


if __name__ == "__main__":
    main()
