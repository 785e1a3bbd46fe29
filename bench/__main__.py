"""``python -m bench [NAME…] [--quick]``: every measurement, one after the other, and at the end all goals in one table.

Each bench is a program of its own (``python -m bench.NAME``) with a DAVIT_HOME of its own under /tmp, and leaves nothing
behind. Meant for a quiet machine: the load average stands on top, and ratios travel where absolute times do not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.parts import ended_whole
from bench.tables import FIGURES, HEAD, Figure, read, table
from foundation.settings import from_environment

ROOT = Path(__file__).parents[1]
CLEAR_SECONDS = 600
"""That a bench which was interrupted may take to end what it started: a whole Davit with all its dynos, at worst."""


@dataclass(frozen=True)
class Bench:
    """One bench: what it measures, its words, its words when it is to be quick, whether it wants a Davit that runs, and how many
    seconds it may take: then it is interrupted, and the next has its turn."""

    title: str
    words: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    wants_davit: bool = False
    most_seconds: int = 900


BENCHES: Mapping[str, Bench] = {
    "push": Bench("a push against docker build, rm, run", quick=("--rounds=3", "--firsts=1")),
    "dyno_start": Bench("a dyno's start against the bare process", quick=("--runs=3",)),
    "receive": Bench("receiving a push against git http-backend", quick=("--runs=2",)),
    "router": Bench("the router against a minimal HAProxy"),
    "failed_requests": Bench(
        "requests that fail while Davit works", wants_davit=True,
        quick=("--deploys=3", "--configs=3", "--rollbacks=2", "--scales=2", "--restarts=1", "--kills=1"),
    ),
    "idle": Bench("memory with no app, and what a dyno adds", quick=("--settled=4",)),
    "vms": Bench(
        "containers, microVMs and unikernels side by side", ("--minutes=3",), quick=("--runs=1", "--seconds=2", "--most=3"),
        most_seconds=2700,
    ),
    "crowd": Bench("200 dynos on one machine", quick=("--dynos=40",)),
    "logs": Bench("collecting logs", quick=("--rounds=2", "--samples=30", "--idle=4")),
    "seal": Bench("sealing a slug against tar and gzip", ("--runs=3",), quick=("--runs=1",)),
    "api": Bench("API calls and commands", quick=("--rounds=10",)),
    "dashboard": Bench("the dashboard's first page, and 200 that are open", quick=("--rounds=10",)),
    "tails": Bench("500 log tails at 1,000 lines a second", quick=("--seconds=5",)),
}  # fmt: skip
PROGRAMS = (
    "git --version", "haproxy -v", "redis-server --version", "crun --version", "qemu-system-x86_64 --version",
    "dockerd --version", "mkfs.erofs -V",
)  # fmt: skip
QUICK_ROUTER = {"ROUNDS": "2"}
KEPT = ("DAVIT_CACHE", "DAVIT_OSV_KERNEL", "DAVIT_OSV_MODULES")
"""The settings that a bench takes from whoever starts it: where this host has what it would otherwise fetch or do without."""


def versions() -> Iterator[str]:
    """Whatever the figures depend on, a line each."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    quiet = "" if os.getloadavg()[0] < 0.3 * (os.cpu_count() or 1) else "  (the machine is NOT quiet)"
    yield f"load average {load}{quiet}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB; kernel {platform.release()}"
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    yield f"{release.get('PRETTY_NAME', '').strip(chr(34))}, Python {platform.python_version()}"
    yield ", ".join(filter(None, map(_version, PROGRAMS)))


def accelerations() -> Iterator[str]:
    """How virtual machines run here, a line for each kind that there is; found out by booting one."""
    from cli.host import doctor
    from tests.e2e.world import STACKS

    ours = from_environment({**os.environ, "DAVIT_STACKS": str(STACKS)})
    yield f"microVMs: {doctor.check_microvm(ours).message}"
    if ours.osv_kernel is not None:
        yield f"unikernels: {doctor.check_osv(ours).message}"


def _version(command: str) -> str:
    words = command.split()
    if not (path := shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")):
        return ""
    done = subprocess.run([path, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:  # it does not know the option, and says how it is used and which it is
        found = re.search(r"\d+\.\d[.\d]*", done.stdout)
        return f"{words[0]} {found[0] if found else '(of unknown version)'}"
    return next(iter(done.stdout.splitlines()), "").split(" https")[0].split(" malloc")[0].strip()


@contextlib.contextmanager
def environment_for(bench: Bench, figures: Path, quick: bool) -> Iterator[dict[str, str]]:
    """What a bench is started with."""
    from tests.e2e.conftest import running
    from tests.e2e.world import STACKS, Davit

    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAVIT_") or name in KEPT}
    own = kept | {"DAVIT_HOME": str(home), "DAVIT_STACKS": str(STACKS), "DAVIT_RATE_LIMIT": "100000000", FIGURES: str(figures)}
    own |= QUICK_ROUTER if quick else {}
    try:
        if bench.wants_davit:
            with ended_whole(running(Davit(home))) as davit:
                yield davit.environment | {FIGURES: str(figures)}
        else:
            yield own
    finally:
        shutil.rmtree(home, ignore_errors=True)


def work(name: str, bench: Bench, figures: Path, quick: bool) -> str | None:
    """Run one bench; None when it ended well, else what happened."""
    words = bench.quick if quick else bench.words
    try:
        with environment_for(bench, figures, quick) as environment:
            return run([sys.executable, "-m", f"bench.{name}", *words], environment, bench.most_seconds)
    except AssertionError as error:
        return str(error)


def run(argv: list[str], environment: Mapping[str, str], most_seconds: float) -> str | None:
    """Run a program to its end, or interrupt it after so many seconds or when this is interrupted; None when it ended well.

    It has a session of its own: Ctrl-C reaches it once, through this, and not again while it clears away what it made.
    """
    process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait(most_seconds)
        return None if status == 0 else f"it ended with status {status}"
    except subprocess.TimeoutExpired:
        return f"it took more than {most_seconds:g} s and was interrupted"
    finally:
        if process.poll() is None:
            _interrupt(process)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Let it clear away what it made; whoever is impatient meanwhile would have that stay."""
    print(f"\ninterrupted: it ends what it started, within {CLEAR_SECONDS} s", flush=True)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLEAR_SECONDS)
        if process.poll() is None:
            print("killed, for it did not end: what it started, below /tmp/dvb…, may run on", flush=True)
    finally:
        process.kill()
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(figures: list[Figure]) -> str:
    """All figures in one table."""
    return table(("bench", *HEAD), [[figure.subject, *figure.cells()] for figure in figures])


def main() -> int:
    """Run what was asked for; the exit status is 1 when a bench did not end well."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=shape)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(BENCHES)}; all when none is given")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that all of it works")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHES]:
        parser.error(f"there is no bench named {unknown[0]}; there are {', '.join(BENCHES)}")
    if os.geteuid() != 0:
        parser.error("the benches start containers and need root: sudo make bench")
    signal.signal(signal.SIGTERM, _interrupted)
    for line in (*versions(), *accelerations()):
        print(line, flush=True)
    failures = {}
    with tempfile.TemporaryDirectory(prefix="dvb") as directory:
        figures = Path(directory) / "figures"
        names = [name for name in BENCHES if name in (options.names or BENCHES)]
        try:
            for number, name in enumerate(names, 1):
                print(f"\n== {name} ({number} of {len(names)}): {BENCHES[name].title}\n", flush=True)
                began = time.monotonic()
                if problem := work(name, BENCHES[name], figures, options.quick):
                    failures[name] = problem
                    print(f"\n{name}: {problem}", flush=True)
                print(f"({time.monotonic() - began:.0f} s)", flush=True)
        except KeyboardInterrupt:
            failures[name] = "interrupted; those after it did not run"
        print(f"\n== all goals\n\n{summary(read(figures))}")
    for name, problem in failures.items():
        print(f"{name}: {problem}")
    return 1 if failures else 0


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
