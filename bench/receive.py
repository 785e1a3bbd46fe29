"""What receiving a push costs, beside ``git http-backend`` behind gunicorn: ``python -m bench.receive [--runs 5]``.

Davit is a whole one that ``davit up`` started, with its own accounts and database; ``git http-backend`` is a CGI program behind
gunicorn's gthread worker, with nobody to ask. The client is the real git. The same pushes over SSH
stand beside them. A push goes to a branch
that is not deployed, so that receiving is all that is measured: credentials, protocol, index, connectivity check, ref.
Interleaved; medians of the wall time, and by how much the server with all its children grew at the most (PSS, sampled).
Ratios travel, absolute times do not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.parts import ended_whole
from bench.tables import Figure, hand_over, ms
from tests.e2e.conftest import running
from tests.e2e.world import Davit

ROOT = Path(__file__).parents[1]
PUSHES = ("1 MB", "5,000 files", "300 MB blob")
GOAL_RATIO, GOAL_GROWTH = 1.2, 32


# The servers


def http_backend(home: Path) -> Any:
    """git http-backend as a CGI program, bounded in memory as performance.md has it."""
    bounds = {"core.bigFileThreshold": "16m", "receive.unpackLimit": "1", "http.receivepack": "true", "gc.auto": "0"}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        repository = home / "backend" / environ["PATH_INFO"].split("/")[1]
        if not repository.exists():
            subprocess.run(["git", "init", "-q", "--bare", repository], check=True)
        cgi = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(home / "backend"), "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "x",
            "GIT_CONFIG_COUNT": str(len(bounds)), "GATEWAY_INTERFACE": "CGI/1.1",
            **{f"GIT_CONFIG_KEY_{n}": key for n, key in enumerate(bounds)},
            **{f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(bounds.values())},
            **{key: environ[key] for key in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE", "CONTENT_LENGTH",
                                             "HTTP_CONTENT_ENCODING", "HTTP_GIT_PROTOCOL") if key in environ},
        }  # fmt: skip
        process = subprocess.Popen(["git", "http-backend"], env=cgi, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin and process.stdout
        while data := environ["wsgi.input"].read(65536):
            process.stdin.write(data)
        process.stdin.close()
        status, headers = "200 OK", []
        while line := process.stdout.readline().strip():
            key, _, value = line.decode().partition(": ")
            if key == "Status":
                status = value
            else:
                headers.append((key, value))
        write = start_response(status, headers)
        while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
            write(data)
        process.wait()
        return []

    return app


def serve(home: Path) -> None:
    """Run ``git http-backend`` in this process, on a free port written to HOME/port."""
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            options = {"bind": "127.0.0.1:0", "worker_class": "gthread", "workers": 1, "threads": 4, "loglevel": "warning"}
            for key, value in {**options, "when_ready": ready, "timeout": 600}.items():
                self.cfg.set(key, value)

        def load(self) -> Any:
            return http_backend(home)

    def ready(arbiter: Any) -> None:
        (home / "port.new").write_text(str(arbiter.LISTENERS[0].sock.getsockname()[1]))
        (home / "port.new").rename(home / "port")

    sys.argv = sys.argv[:1]
    Server().run()


# What is pushed


def working_copy(kind: str, at: Path) -> Path:
    """A repository with one commit of that kind."""
    at.mkdir(parents=True)
    git("init", "-q", "-b", "main", cwd=at)
    if kind == "1 MB":
        (at / "file").write_bytes(secrets.token_bytes(1_000_000))
    elif kind == "300 MB blob":
        with (at / "file").open("wb") as file:
            for _ in range(300):
                file.write(secrets.token_bytes(1_000_000))
    else:
        for number in range(5000):
            path = at / f"d{number // 100}" / f"f{number}.js"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(secrets.token_bytes(3600) + b"// some text that compresses\n" * 370)
    git("-c", "core.bigFileThreshold=16m", "add", "-A", cwd=at)
    git("commit", "-q", "-m", "x", cwd=at)
    git("repack", "-q", "-a", "-d", cwd=at)  # so that the client has nothing left to compress
    return at


def git(*words: str, cwd: Path, **more: str) -> None:
    person = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **person, **more}
    subprocess.run(["git", *words], cwd=cwd, env=env, check=True, capture_output=True)


# Measuring


class Memory:
    """The most that a process and its children took, in MiB of PSS, sampled for the length of a block."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.known = set(_family(pid))
        self.before = self.now()
        self.peak = self.before
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        return self.peak - self.before

    def now(self) -> float:
        # A child between vfork and exec still has its parent's memory, which must not count twice.
        return sum(_pss(pid) for pid in _family(self.pid) if pid in self.known or not _is_python(pid)) / 1024

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self.peak = max(self.peak, self.now())


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except OSError:
        return


def _is_python(pid: int) -> bool:
    try:
        return "python" in str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return True


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def measure(url: str, source: Path, pid: int, key: Path) -> tuple[float, float]:
    """(seconds, MiB grown) of one push."""
    known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    ssh = f"ssh -F none -i {key} -o IdentitiesOnly=yes {known}"
    with Memory(pid) as memory:
        began = time.perf_counter()
        git("push", "-q", url, "main:refs/heads/bench", cwd=source, GIT_SSH_COMMAND=ssh)
        return time.perf_counter() - began, memory.growth


def main() -> int:
    """Print the table; the exit status is 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve", metavar="HOME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve))
    home = Path(tempfile.mkdtemp(prefix="dvbench", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        davit = stack.enter_context(ended_whole(running(Davit(Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))))))
        argv = [sys.executable, "-m", "bench.receive", "--serve", str(home)]
        backend = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL)
        stack.callback(backend.wait)
        stack.callback(backend.terminate)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "key"], check=True)
        davit.cli("keys:add", str(home / "key.pub"))
        while not (home / "port").exists():
            time.sleep(0.02)
        pids = davit.pids()
        return _table(davit, home, {"davit": pids["web"][0], "http-backend": backend.pid, "ssh": pids["ssh"][0]}, options.runs)


def _urls(davit: Davit, home: Path, name: str) -> dict[str, str]:
    """A repository that does not exist yet, or an app's that is empty, of each server."""
    over_http, over_ssh = davit.create().name, davit.create().name
    return {
        "davit": f"http://x:{davit.token}@127.0.0.1:{davit.api}/{over_http}.git",
        "http-backend": f"http://127.0.0.1:{(home / 'port').read_text()}/{name}.git",
        "ssh": f"ssh://git@127.0.0.1:{davit.ssh}/{over_ssh}.git",
    }


def _table(davit: Davit, home: Path, pids: dict[str, int], runs: int) -> int:
    missed = 0
    print(f"{'push':<14}{'davit':>9}{'backend':>9}{'ratio':>8}{'ssh':>9}   {'grows (MiB)':>12}{'backend':>9}{'ssh':>7}")
    for kind in PUSHES:
        source = working_copy(kind, home / kind.replace(" ", "-"))
        found: dict[str, list[tuple[float, float]]] = {which: [] for which in pids}
        for run in range(runs + 1):  # the first warms all up and does not count
            for which, url in _urls(davit, home, f"{kind.replace(' ', '-').replace(',', '')}-{run}").items():
                result = measure(url, source, pids[which], home / "key")
                if run:
                    found[which].append(result)
        seconds = {which: statistics.median(s for s, _ in rows) for which, rows in found.items()}
        growth = {which: max(m for _, m in rows) for which, rows in found.items()}
        ratio = seconds["davit"] / seconds["http-backend"]
        most = max(growth["davit"], growth["ssh"])
        hand_over([
            Figure("receive", kind, ms(seconds["davit"]), f"http-backend {ms(seconds['http-backend'])}", ratio,
                   f"≤ {GOAL_RATIO}", ratio <= GOAL_RATIO),
            Figure("receive", f"{kind}: the server grows by", f"{most:.1f} MiB", f"http-backend {growth['http-backend']:.1f} MiB",
                   None, f"≤ {GOAL_GROWTH} MiB", most <= GOAL_GROWTH),
        ])  # fmt: skip
        missed += ratio > GOAL_RATIO or most > GOAL_GROWTH
        print(
            f"{kind:<14}{seconds['davit']:>8.2f}s{seconds['http-backend']:>8.2f}s{ratio:>8.2f}"
            f"{seconds['ssh']:>8.2f}s   {growth['davit']:>12.1f}{growth['http-backend']:>9.1f}{growth['ssh']:>7.1f}",
            flush=True,
        )
        shutil.rmtree(home / "backend")
        for app in davit.client().get("/apps").raise_for_status().json():
            davit.cli("apps:destroy", "--app", app["name"], "--confirm", app["name"])
    print(f"goal: ratio ≤ {GOAL_RATIO}, growth ≤ {GOAL_GROWTH} MiB; {runs} runs, medians of the time, the most of the growth")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
