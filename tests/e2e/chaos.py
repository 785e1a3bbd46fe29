"""Everything that Davit does to a running app, one after the other, while a load watches: does a request ever fail?

The platform is reached as its users reach it: the Platform API over HTTP (Heroku's endpoints) and the real git client.

    report = asyncio.run(run(Platform.here(), Plan(deploys=50, kills=1)))
    print(report.table())

Beside the web dynos there is a worker that takes its time to end, and one kind of event is several at once.
Each event ends when what it asked for is in force: the newest release has succeeded, its dynos and no others are up, and
the app answers with it. The requests that were sent in the meantime count for that kind of event.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from foundation.settings import Settings, from_environment
from tests.e2e.load import Load, Tally

ROOT = Path(__file__).parents[2]
ANSWER = re.compile(rb"^(deploy=\w+ config=\w+) dyno=web\.\d+\n$")
PATIENCE = 120.0
"""Seconds that an event may take."""

PROCFILE = """web: python3 server.py
worker: trap 'sleep 10; exit 0' TERM; while true; do sleep 60 & wait; done
"""
SERVER = '''"""Answers with its deploy and its configuration; told to stop, it goes on for a second: nothing is cut off."""

import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DEPLOY = Path("DEPLOY").read_text().strip()
BODY = f"deploy={DEPLOY} config={os.environ.get('CHAOS', 'none')} dyno={os.environ['DYNO']}\\n".encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # HAProxy ends kept connections with a reset, which is no error of anybody's


server = Server(("0.0.0.0", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Timer(1, os._exit, (0,)).start())
server.serve_forever()
'''


class TookTooLong(Exception):
    """Something that Davit was asked for did not come into force in time."""


@dataclass
class Event:
    """Something that is done to the app: ``kind`` is the row of the table that it counts for."""

    kind: str
    act: Callable[[], Awaitable[None]]


@dataclass
class Row:
    """One kind of event: how often, how long each took, what the load saw, what went wrong besides."""

    kind: str
    seconds: list[float] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What :func:`watch` saw."""

    rows: dict[str, Row]

    @property
    def failed(self) -> int:
        """Requests that failed, all events together."""
        return sum(row.tally.failed for row in self.rows.values())

    @property
    def problems(self) -> list[str]:
        """Events that did not come to their end, one sentence each."""
        return [f"{row.kind}: {problem}" for row in self.rows.values() for problem in row.problems]

    def table(self) -> str:
        """For people: one line per kind of event, then the first failures of each."""
        lines = [
            f"| {'event':<24} | {'times':>5} | {'median s':>8} | {'requests':>8} | {'failed':>6} | "
            f"{'p50 ms':>7} | {'p99 ms':>7} | {'max ms':>7} | kinds",
            f"|{'-' * 26}|{'-' * 7}|{'-' * 10}|{'-' * 10}|{'-' * 8}|{'-' * 9}|{'-' * 9}|{'-' * 9}|------",
        ]
        for row in self.rows.values():
            tally = row.tally
            middle = sorted(row.seconds)[len(row.seconds) // 2] if row.seconds else 0.0
            kinds = ", ".join(f"{kind} {count}" for kind, count in tally.failures.most_common())
            lines.append(
                f"| {row.kind:<24} | {len(row.seconds):>5} | {middle:>8.2f} | {tally.sent:>8} | {tally.failed:>6} | "
                f"{tally.median * 1e3:>7.1f} | {tally.percentile(0.99) * 1e3:>7.1f} | {tally.percentile(1) * 1e3:>7.1f} | {kinds}"
            )
        for row in self.rows.values():
            lines += [f"{row.kind}: {at:.1f} s: {what}" for at, what in row.tally.samples[:5]]
        return "\n".join(lines + [f"NOT IN FORCE: {problem}" for problem in self.problems])


async def watch(
    load: Load, events: Sequence[Event], *, settle: float = 0.5, progress: Callable[[str], None] = lambda text: None
) -> Report:
    """Let the events happen under the load.

    Args:
        settle: seconds of load after each event that still count for it.
        progress: told each event as it begins.

    An event that fails (it took too long, the API refused it) is a problem in the report, and the next one has its turn.
    """
    rows: dict[str, Row] = {"steady": Row("steady")}
    loop = asyncio.get_running_loop()
    async with load.running():
        await asyncio.sleep(max(settle, 1.0))
        for number, event in enumerate(events, 1):
            row = rows.setdefault(event.kind, Row(event.kind))
            load.event = event.kind
            began = loop.time()
            progress(f"{number}/{len(events)} {event.kind}")
            try:
                await asyncio.wait_for(event.act(), PATIENCE)
            except Exception as error:
                row.problems.append(str(error) or type(error).__name__)
            row.seconds.append(loop.time() - began)
            await asyncio.sleep(settle)
    for kind, row in rows.items():
        row.tally = load.tally(kind)
    return Report(rows)


# The platform, as its users reach it


@dataclass
class Platform:
    """A running Davit.

    Args:
        settings: the settings that it runs with.
        token: an API token.
        command: how to run the davit command.
    """

    settings: Settings
    token: str
    command: tuple[str, ...] = (str(ROOT / "bin/davit"),)

    def __post_init__(self) -> None:
        # one client for all calls: making one takes 50 ms (certificates, which plain HTTP does not need), and the load would wait
        self._client = httpx.AsyncClient(base_url=self.settings.api_url, timeout=60, trust_env=False, verify=False)

    async def close(self) -> None:
        """Close the connections to the API."""
        await self._client.aclose()

    @classmethod
    def here(cls) -> Platform:
        """The Davit that this process's environment describes, as the owner of its DAVIT_HOME."""
        settings = from_environment(os.environ)
        return cls(settings, (settings.home / "owner-token").read_text().strip())

    def pids(self) -> list[int]:
        """Davit's own processes."""
        environment = {**os.environ, "DAVIT_HOME": str(self.settings.home)}
        done = subprocess.run([*self.command, "status", "--pids"], env=environment, capture_output=True, text=True, timeout=30)
        return [int(line) for line in done.stdout.split() if line.isdecimal()]

    async def api(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """One call of the Platform API; tried again while the API is not there.

        Raises:
            httpx.HTTPStatusError: it was refused.
            TookTooLong: the API did not come back.
        """
        end = time.monotonic() + PATIENCE
        every = {"Accept": "application/vnd.heroku+json; version=3", "Authorization": f"Bearer {self.token}", **(headers or {})}
        while True:
            try:
                answer = await self._client.request(method, path, json=body, headers=every)
                if answer.status_code < 500:
                    if answer.is_error:
                        raise httpx.HTTPStatusError(
                            f"{method} {path}: {answer.status_code} {answer.text[:300]}", request=answer.request, response=answer
                        )
                    return answer.json() if answer.content else None
                problem = f"{answer.status_code} {answer.text[:200]}"
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() > end:
                raise TookTooLong(f"{method} {path}: {problem}")
            await asyncio.sleep(0.2)


class App:
    """An app made for this run: a tree of its own, pushed by git, that answers with its deploy and configuration."""

    def __init__(self, platform: Platform, name: str) -> None:
        self.platform, self.name = platform, name
        self.path = f"/apps/{name}"
        self.tree = Path(tempfile.mkdtemp(prefix="dvchaos"))
        self.deploys = 0
        self.answer = ""
        self.quantity = 1

    def load(self, rate: float) -> Load:
        """The load on this app, through the router."""
        address = self.platform.settings.http.reachable
        host = f"{self.name}.{self.platform.settings.domain}:{address.port}"
        return Load((address.host, address.port), host, answer=ANSWER, rate=rate)

    async def create(self) -> None:
        """Make the app and its first deploy."""
        await self.platform.api("POST", "/apps", {"name": self.name})
        for name, text in {"Procfile": PROCFILE, "server.py": SERVER, "requirements.txt": ""}.items():
            (self.tree / name).write_text(text)
        await self._git("init", "--quiet", "--initial-branch=main")
        await self.deploy()
        await self._ask_for({"type": "worker", "quantity": 1})

    async def destroy(self) -> None:
        """Take the app and the tree away."""
        await self.platform.api("DELETE", self.path)
        shutil.rmtree(self.tree)

    async def deploy(self) -> None:
        """Change a line, push it."""
        self.deploys += 1
        (self.tree / "DEPLOY").write_text(f"{self.deploys}\n")
        await self._git("add", "--all")
        await self._git("commit", "--quiet", "--message", f"Deploy {self.deploys}")
        await self._git("push", "--quiet", f"{self.platform.settings.api_url}/{self.name}.git", "HEAD:refs/heads/main")
        await self.in_force(rf"deploy={self.deploys} config=\w+")

    async def configure(self) -> None:
        """Change a config var."""
        config = f"c{time.time_ns()}"
        await self.platform.api("PATCH", f"{self.path}/config-vars", {"CHAOS": config})
        await self.in_force(rf"deploy=\w+ config={config}")

    async def roll_back(self) -> None:
        """Go back to the release before the present one."""
        releases = await self.platform.api("GET", f"{self.path}/releases", headers={"Range": "version ..; order=desc,max=10"})
        current = max(release["version"] for release in releases)
        good = [release for release in releases if release.get("slug") and release["status"] == "succeeded"]
        target = max((release for release in good if release["version"] < current), key=lambda release: int(release["version"]))
        await self.platform.api("POST", f"{self.path}/releases", {"release": target["id"]})
        await self.in_force()

    async def scale(self, quantity: int) -> None:
        """Run so many web dynos."""
        self.quantity = quantity
        await self._ask_for({"type": "web", "quantity": quantity})
        await self.in_force(re.escape(self.answer))

    async def _ask_for(self, *updates: dict[str, Any]) -> None:
        await self.platform.api("PATCH", f"{self.path}/formation", {"updates": list(updates)})

    async def restart(self) -> None:
        """Restart every dyno."""
        before = {dyno["id"] for dyno in await self.dynos()}
        await self.platform.api("DELETE", f"{self.path}/dynos")
        await self.in_force(re.escape(self.answer), without=before)

    async def all_at_once(self) -> None:
        """What takes its time (the worker's restart), and before it is over what must not wait for that: config, scale, restart."""
        usual, config = self.quantity, f"c{time.time_ns()}"
        await self.platform.api("DELETE", f"{self.path}/formations/worker")
        await self.platform.api("PATCH", f"{self.path}/config-vars", {"CHAOS": "passing"})
        await self.platform.api("PATCH", f"{self.path}/config-vars", {"CHAOS": config})
        self.quantity = usual + 1
        await self._ask_for({"type": "web", "quantity": self.quantity})
        await self.platform.api("DELETE", f"{self.path}/dynos")
        await self.in_force(rf"deploy=\w+ config={config}")
        await self.scale(usual)

    async def dynos(self) -> list[dict[str, Any]]:
        """The web dynos that the API tells of."""
        found = await self.platform.api("GET", f"{self.path}/dynos")
        return [dyno for dyno in found if dyno["type"] == "web"]

    async def in_force(self, answer: str = ".*", *, without: Collection[str] = ()) -> None:
        """Wait until the newest release has succeeded, its dynos alone are up, and the app answers with it.

        Args:
            answer: a pattern of the right answer.
            without: ids of dynos that must be gone.
        """
        end = time.monotonic() + PATIENCE
        while state := await self._state(answer, without):
            if time.monotonic() > end:
                raise TookTooLong(state)
            await asyncio.sleep(0.1)

    async def _state(self, answer: str, without: Collection[str]) -> str:
        """Why the last change is not in force yet; empty when it is."""
        releases = await self.platform.api("GET", f"{self.path}/releases", headers={"Range": "version ..; order=desc,max=1"})
        newest = max(releases, key=lambda release: int(release["version"]))
        if newest["status"] != "succeeded":
            return f"release v{newest['version']} is {newest['status']}"
        dynos = await self.dynos()
        wrong = [
            f"{dyno['name']} v{dyno['release']['version']} {dyno['state']}"
            for dyno in dynos
            if dyno["state"] != "up" or dyno["release"]["version"] != newest["version"] or dyno["id"] in without
        ]
        if wrong or len(dynos) != self.quantity:
            return f"{len(dynos)} of {self.quantity} dynos, not right: {', '.join(wrong) or 'none'}"
        probe = self.load(rate=1)
        tally = await probe.send(1)
        if tally.failed or not re.fullmatch(answer, probe.latest):
            return f"the app answers {probe.latest or tally.samples}, not {answer}"
        self.answer = probe.latest
        return ""

    async def _git(self, *words: str) -> None:
        secret = base64.b64encode(f"davit:{self.platform.token}".encode()).decode()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_COUNT": "1",  # by the environment: a command line is public
            "GIT_CONFIG_KEY_0": f"http.{self.platform.settings.api_url}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {secret}",
            "GIT_TERMINAL_PROMPT": "0",
            "no_proxy": "*",
            **{f"GIT_{who}_{what}": "chaos@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        process = await asyncio.create_subprocess_exec(
            "git", *words, cwd=self.tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise TookTooLong(f"git {words[0]} failed with status {process.returncode}: {output.decode(errors='replace')[-600:]}")


# Killing Davit's processes


SUPERVISOR = "cli.host.supervisor"


def name_of(argv: Sequence[str]) -> str:
    """What a process of Davit's is, from its command line: ``router``, ``haproxy``, ``redis-server``, ``web``…"""
    words = [word for word in argv if word]
    if not words:
        return "unknown"
    if len(words) == 1 and " -m " in words[0]:  # setproctitle, once loaded, has a command line in one piece
        words = words[0].split()
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    if any("gunicorn" in word for word in words):
        return "web"
    title = re.match(r"(?:davit[:-] ?)(\w+)", words[0])  # a process that named itself
    if title:
        return title[1]
    names = [Path(word.split()[0]).name for word in words if not word.startswith("-")]
    first = names[0]
    if re.fullmatch(r"python[\d.]*", first) and len(names) > 1:
        first = names[1]
    return first.rstrip(":")


def processes(pids: Sequence[int]) -> dict[int, str]:
    """The names of those processes that exist."""
    found = {}
    for pid in pids:
        try:
            found[pid] = name_of(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"))
        except OSError:
            continue
    return found


async def kill(app: App, name: str) -> None:
    """kill -9 every process of that name; wait until as many as before are back and the app is as it was."""
    platform = app.platform
    before = processes(await asyncio.to_thread(platform.pids))
    victims = [pid for pid, found in before.items() if found == name]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if name == SUPERVISOR:  # what starts the others again is started again by a person, or by systemd
        await asyncio.to_thread(subprocess.run, [*platform.command, "up", "--detach"], capture_output=True, timeout=PATIENCE)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        now = processes(await asyncio.to_thread(platform.pids))
        back = [pid for pid, found in now.items() if found == name and pid not in victims]
        if len(back) >= len(victims):
            return await app.in_force(re.escape(app.answer))
        await asyncio.sleep(0.2)
    raise TookTooLong(f"{name} did not come back within {PATIENCE:g} seconds after kill -9")


@dataclass(frozen=True)
class Plan:
    """How often each kind of event happens; ``kills`` is rounds of kill -9 of every process in turn."""

    deploys: int = 50
    configs: int = 50
    rollbacks: int = 20
    scales: int = 10
    restarts: int = 10
    overlaps: int = 3
    kills: int = 1
    rate: float = 200

    def events(self, app: App, names: Sequence[str]) -> list[Event]:
        """The events in their order; each scale event goes up and down again.

        Args:
            names: Davit's processes, each to be killed in turn.
        """

        async def up_and_down() -> None:
            usual = app.quantity
            await app.scale(usual + 2)
            await app.scale(usual)

        return [
            *[Event("deploy", app.deploy)] * self.deploys,
            *[Event("config change", app.configure)] * self.configs,
            *[Event("rollback", app.roll_back)] * self.rollbacks,
            *[Event("scale up and down", up_and_down)] * self.scales,
            *[Event("ps:restart", app.restart)] * self.restarts,
            *[Event("all at once", app.all_at_once)] * self.overlaps,
            *[Event(f"kill -9 {name}", lambda name=name: kill(app, name)) for name in names] * self.kills,  # type: ignore[misc]
        ]


async def run(platform: Platform, plan: Plan, *, progress: Callable[[str], None] = lambda text: None) -> Report:
    """Make an app on a running Davit, let the plan happen to it under load, and take the app away again."""
    app = App(platform, f"chaos-{os.getpid()}")
    progress(f"making the app {app.name}")
    await app.create()
    try:
        found = set(processes(await asyncio.to_thread(platform.pids)).values())
        names = sorted(found, key=lambda name: (name == SUPERVISOR, name))
        return await watch(app.load(plan.rate), plan.events(app, names), progress=progress)
    finally:
        await app.destroy()
        await platform.close()
