"""From ``git push`` to the new version answering, against Docker in the same run: ``python -m bench.push [--rounds 7]``.

A one-line change to examples/flask with everything warm, and a first push of it with its packages from the registry. Beside
them ``docker build`` + ``docker rm -f`` + ``docker run`` of the same files on the same Debian and Python, in a daemon with a
network namespace of its own, and by the classic builder, which Debian's docker.io has where docker-buildx is not installed;
BuildKit, which docker-ce has, is not measured. Rounds are interleaved; medians; ratios travel, absolute times do not.

A watcher asks for the page all the time, each time on a new connection: 50 times a second while the work goes on, and with
2 ms between two questions once the new version can be there. Whatever is not answered with 200 counts as failed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from bench.parts import ended_whole
from bench.tables import Figure, ms, report, table
from slugs import image
from tests.compose import test_compose as compose
from tests.e2e.conftest import running
from tests.e2e.world import STACKS, App, Davit

CALM, HURRY = 0.02, 0.002
PATIENCE = 120.0
EXAMPLE = compose.CHECKOUT / "examples" / "flask"
PAGE = 'from flask import Flask\n\napp = Flask(__name__)\n\n\n@app.get("/")\ndef hello() -> str:\n    return "{}"\n'
CONCURRENCY = "2"
"""Both run so many gunicorn workers."""
BASE = "davit-bench-base"
DOCKERFILE = f"""
FROM {BASE}
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
CMD ["gunicorn", "app:app"]
"""
BASE_DOCKERFILE = f"""
FROM {BASE}-debian
COPY ca.crt /etc/ssl/certs/ca-certificates.crt
RUN python3 -m venv /venv
ENV PATH=/venv/bin:/usr/bin:/bin PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1
"""


@dataclass
class Watcher:
    """Asks one address until the wanted text comes; counts what fails meanwhile.

    Args:
        address: host and port.
        host: the Host header.
        wanted: the body that the new version answers with.
    """

    address: tuple[str, int]
    host: str
    wanted: str
    failed: int = 0
    asked: int = 0
    answered_at: float | None = None
    pause: float = CALM
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watcher:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def hurry(self) -> None:
        """The new version may be there any moment."""
        self.pause = HURRY

    def until_answered(self) -> float:
        """The moment (``time.monotonic``) of the new version's first answer."""
        self.hurry()
        deadline = time.monotonic() + PATIENCE
        while self.answered_at is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"“{self.wanted}” was not answered within {PATIENCE:g} s.")
            time.sleep(0.001)
        return self.answered_at

    def _run(self) -> None:
        while not self._stop.is_set():
            status, body = self._ask()
            self.asked += 1
            self.failed += status != 200
            if body == self.wanted and self.answered_at is None:
                self.answered_at = time.monotonic()
                self.pause = CALM
            self._stop.wait(self.pause)

    def _ask(self) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            connection.request("GET", "/", headers={"Host": self.host, "Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()


@dataclass
class Deploy:
    """One deploy: seconds to the first answer of the new version, requests that failed, and where the time went."""

    seconds: float
    failed: int
    steps: dict[str, float]


# Davit


class Pushing:
    """Pushes examples/flask to a Davit, and knows where the time of a push went.

    Args:
        davit: it runs.
    """

    def __init__(self, davit: Davit) -> None:
        self.davit = davit
        self.count = 0

    def app(self) -> App:
        """An app that was never pushed to."""
        app = self.davit.create()
        app.cli("config:set", f"WEB_CONCURRENCY={CONCURRENCY}")
        app.commit(example="flask")
        return app

    def push(self, app: App, *, first: bool = False) -> Deploy:
        """Commit a change of one line, push it, and wait for the answer."""
        self.count += 1
        text = f"version {self.count}"
        app.commit({"app.py": PAGE.format(text)})
        with Watcher(("127.0.0.1", self.davit.http), f"{app.name}.localhost", text) as watcher:
            time.sleep(0.1)
            began, began_at = time.monotonic(), time.time()
            seen = self._git_push(app, watcher, began)
            answered = watcher.until_answered()
        marks = {**seen, "answered": answered - began, **self._database_marks(app, began_at), **self._log_marks(app, began_at)}
        return Deploy(answered - began, 0 if first else watcher.failed, steps_of(marks, self._job_steps(app)))

    def _git_push(self, app: App, watcher: Watcher, began: float) -> dict[str, float]:
        """Run ``git push``; when the pusher saw what, in seconds since ``began``."""
        process = subprocess.Popen(
            ["git", "push", "davit", "main"], cwd=app.checkout, env=self.davit.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        seen: dict[str, float] = {}
        output = b""
        for line in process.stderr:
            output += line
            for mark, text in (("heading", b"Building on"), ("launching", b"Launching..."), ("released", b"Released v")):
                if text in line:
                    seen[mark] = time.monotonic() - began
            if "launching" in seen:
                watcher.hurry()
        if process.wait() != 0:
            raise RuntimeError(f"The push was refused.\n{output.decode(errors='replace')}\n{self.davit.logs()}")
        seen["returned"] = time.monotonic() - began
        return seen

    def _database_marks(self, app: App, began_at: float) -> dict[str, float]:
        """When rows were written, in seconds since the push began."""
        with contextlib.closing(sqlite3.connect(f"file:{self.davit.home / 'davit.db'}?mode=ro", uri=True)) as database:
            (app_id,) = database.execute("SELECT id FROM apps WHERE name = ?", (app.name,)).fetchone()
            row = database.execute(
                "SELECT b.id, b.created_at, r.created_at, d.created_at, r.finished_at FROM builds b"
                " JOIN releases r ON r.id = b.release_id JOIN dynos d ON d.release_id = r.id"
                " WHERE b.app_id = ? ORDER BY b.created_at DESC LIMIT 1", (app_id,),
            ).fetchone()  # fmt: skip
        self.build_id, *moments = row
        names = ("build row", "release row", "dyno row", "release succeeded")
        return {name: _seconds(moment) - began_at for name, moment in zip(names, moments, strict=True)}

    def _log_marks(self, app: App, began_at: float) -> dict[str, float]:
        """When the new dyno was up, by the app's log; in seconds since the push began."""
        up = [line.split()[0] for line in app.log().splitlines() if line.endswith("State changed from starting to up")]
        return {"dyno up": _seconds(up[-1]) - began_at}

    def _job_steps(self, app: App) -> dict[str, float]:
        steps: dict[str, float] = json.loads((self.davit.home / "builds" / self.build_id / "steps.json").read_text())
        return steps


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).replace(tzinfo=timezone.utc).timestamp()


AROUND = ("sandbox", "seal", "release", "launch", "cache", "finish")
"""Steps of the build job that are not the sandbox's program's."""


def steps_of(marks: Mapping[str, float], job: Mapping[str, float]) -> dict[str, float]:
    """Where the seconds of a push went, in order; they add up to the time to the answer.

    Args:
        marks: moments, in seconds since the push began.
        job: the build job's own steps, in seconds.
    """
    inside = {name: value for name, value in job.items() if name not in AROUND}
    before_release = sum(inside.values()) + job["sandbox"] + job["seal"]
    ways = {
        "git client, receive, checks → build row": marks["build row"],
        "queue, worker's fork → “Building on”": marks["heading"] - marks["build row"],
        "job: sandbox": job["sandbox"],
        **{f"job: {name}": value for name, value in inside.items()},
        "job: seal": job["seal"],
        "job: rest → release row": marks["release row"] - marks["heading"] - before_release,
        "runtime takes the release → dyno row": marks["dyno row"] - marks["release row"],
        "driver starts it, app boots and listens → up": marks["dyno up"] - marks["dyno row"],
        "routed → release succeeded": marks["release succeeded"] - marks["dyno up"],
        "app's workers boot → answered": marks["answered"] - marks["release succeeded"],
        "all: → answered": marks["answered"],
        "then: git push returns": marks["returned"] - marks["answered"],
    }
    return ways


# Docker


class Dockers:
    """The same app by hand with Docker.

    Args:
        docker: the daemon.
    """

    name = "bench-app"

    def __init__(self, docker: compose.Docker) -> None:
        self.docker = docker
        self.count = 0
        self.context = docker.directory / "context"

    def prepare(self) -> None:
        """The base image: Davit's own stack, so that Python is the same, with a virtual environment; and the app's files."""
        mounted = self.docker.directory / "stack"
        mounted.mkdir()
        image.mount((STACKS / "davit-13" / "current" / f"run.{_format()}").resolve(), mounted)
        try:
            tar = subprocess.Popen(["tar", "-C", mounted, "-c", "."], stdout=subprocess.PIPE)
            words = [compose._docker(), "import", "-", f"{BASE}-debian"]
            subprocess.run(words, stdin=tar.stdout, env=self.docker.environment, check=True, stdout=subprocess.DEVNULL)
            if tar.wait() != 0:
                raise RuntimeError("The stack could not be read.")
        finally:
            image.unmount(mounted)
        base = self.docker.directory / "base"
        base.mkdir()
        shutil.copy(compose.CERTIFICATES, base / "ca.crt")
        (base / "Dockerfile").write_text(BASE_DOCKERFILE)
        self.docker.run("build", "-q", "-t", BASE, base)
        shutil.copytree(EXAMPLE, self.context)
        (self.context / "Dockerfile").write_text(DOCKERFILE)

    def deploy(self, *, first: bool = False) -> Deploy:
        """``docker build``, ``docker rm -f``, ``docker run``, and wait for the answer."""
        self.count += 1
        text = f"version {self.count}"
        (self.context / "app.py").write_text(PAGE.format(text))
        steps: dict[str, float] = {}
        if first:
            self.remove()
        with Watcher((f"{compose.NETWORK}.2", 8000), "localhost", text) as watcher:
            time.sleep(0.1)
            began = last = time.monotonic()
            run = ("run", "-d", "--name", self.name, "-p", "8000:8000", "-e", "PORT=8000", "-e", f"WEB_CONCURRENCY={CONCURRENCY}")
            for step, words in (
                ("docker build", ("build", "-q", *(("--no-cache",) if first else ()), "-t", "bench-app", ".")),
                ("docker rm -f", ("rm", "-f", self.name)),
                ("docker run", (*run, "bench-app")),
            ):
                if not (first and "rm" in words):
                    self.docker.run(*words, cwd=self.context)
                    steps[step], last = time.monotonic() - last, time.monotonic()
            answered = watcher.until_answered()
        steps["until it answers"] = answered - last
        return Deploy(answered - began, 0 if first else watcher.failed, steps)

    def remove(self) -> None:
        """The container away."""
        subprocess.run([compose._docker(), "rm", "-f", self.name], env=self.docker.environment, capture_output=True)


def _format() -> str:
    images = json.loads((STACKS / "davit-13" / "current" / "stack.json").read_text())
    return str(images["format"])


@contextlib.contextmanager
def dockers() -> Iterator[Dockers]:
    """A Docker daemon in a network namespace, ready to build; nothing of it is left afterwards."""
    if Path("/run/netns", compose.Docker.name).exists():
        raise SystemExit(f"The network namespace {compose.Docker.name} exists: another run uses it, or was ended by force.")
    directory = Path(tempfile.mkdtemp(prefix="dvb", dir="/var/tmp"))
    docker = compose.Docker(directory)
    try:
        docker.open()
        by_hand = Dockers(docker)
        by_hand.prepare()
        try:
            yield by_hand
        finally:
            by_hand.remove()
    finally:
        docker.close()
        shutil.rmtree(directory, ignore_errors=True)


# The run


def median(deploys: Sequence[Deploy]) -> float:
    """The median of the seconds."""
    return statistics.median(deploy.seconds for deploy in deploys)


def step_table(deploys: Sequence[Deploy]) -> str:
    """Each step's median, least and most."""
    names = list(dict.fromkeys(name for deploy in deploys for name in deploy.steps))
    rows = []
    for name in names:
        values = [deploy.steps.get(name, 0.0) for deploy in deploys]
        rows.append([name, *(f"{value * 1000:.1f}" for value in (statistics.median(values), min(values), max(values)))])
    return table(("step", "median ms", "least", "most"), rows)


def show(what: str, deploy: Deploy) -> None:
    print(f"  {what:<28} {ms(deploy.seconds):>10}   {deploy.failed} failed", flush=True)


def measure(pushing: Pushing, by_hand: Dockers, rounds: int, firsts: int) -> list[Figure]:
    """All rounds; prints as they come."""
    ours: list[Deploy] = []
    theirs: list[Deploy] = []
    print("First deploy, packages from the registry", flush=True)
    for _ in range(firsts):
        app = pushing.app()
        ours.append(pushing.push(app, first=True))
        show("git push to Davit", ours[-1])
        theirs.append(by_hand.deploy(first=True))
        show("docker build, run", theirs[-1])
        if len(ours) < firsts:
            app.cli("apps:destroy", "--confirm", app.name)
    print(f"\nDavit\n{step_table(ours)}\n\nDocker\n{step_table(theirs)}\n\nA change of one line, warm", flush=True)
    first_figure = figure("first push of examples/flask", ours, theirs)
    ours, theirs = [], []
    pushing.push(app)  # the first of either warms up
    by_hand.deploy()
    for _ in range(rounds):
        ours.append(pushing.push(app))
        show("git push to Davit", ours[-1])
        theirs.append(by_hand.deploy())
        show("docker build, rm, run", theirs[-1])
    print(f"\nDavit\n{step_table(ours)}\n\nDocker\n{step_table(theirs)}", flush=True)
    warm_figure = figure("push of a one-line change, warm", ours, theirs)
    return [warm_figure, least(ours, theirs), failures(ours, theirs), first_figure]


def figure(what: str, ours: Sequence[Deploy], theirs: Sequence[Deploy]) -> Figure:
    """Davit's median beside Docker's."""
    ratio = median(ours) / median(theirs)
    return Figure("push", what, ms(median(ours)), f"Docker (classic builder) {ms(median(theirs))}", ratio, "≤ Docker", ratio <= 1)


def least(ours: Sequence[Deploy], theirs: Sequence[Deploy]) -> Figure:
    """What a warm push must reach where it is slower than Docker."""
    ratio, seconds = median(ours) / median(theirs), median(ours)
    met = ratio <= 1.5 and seconds <= 1.5
    return Figure("push", "the same, the least", ms(seconds), "", ratio, "≤ 1.5 × and ≤ 1.5 s", met)


def failures(ours: Sequence[Deploy], theirs: Sequence[Deploy]) -> Figure:
    """Requests that failed during the warm deploys."""
    failed, beside = (sum(deploy.failed for deploy in deploys) for deploys in (ours, theirs))
    return Figure("push", f"failed requests in {len(ours)} warm deploys", str(failed), f"Docker {beside}", None, "0", failed == 0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="warm deploys of each")
    parser.add_argument("--firsts", type=int, default=5, help="first deploys of each")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    with dockers() as by_hand, ended_whole(running(Davit(home))) as davit:
        report(measure(Pushing(davit), by_hand, options.rounds, options.firsts))


if __name__ == "__main__":
    main()
