"""What an API call and a command cost: ``python -m bench.api``.

A real gunicorn on SQLite with 10, 1,000 and 10,000 apps: the median of GET /apps (first page), GET /users/~/apps as somebody
with three of the apps, GET /apps/NAME; p50, p99 and requests a second of GET /apps (first and last page, and as a collaborator on
three of them), GET /apps/NAME/dynos (20 of them) and PATCH /apps/NAME/config-vars (which makes a release each time); and the wall
time of ``davit apps``, beside ``python -c pass`` and
``git --version`` in the same run. Memory (PSS) of the web process after all that.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.tables import FIGURES, Figure, hand_over, ms

ROOT = Path(__file__).parents[1]


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    """The median duration."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


Spread = tuple[float, float, float]
GROWN = 1.3
"""How much more a page of 200 may cost with ten times as many apps before it has grown: more than two runs differ by."""


def spread(action: Callable[[], object], rounds: int) -> Spread:
    """Median and 99th percentile in milliseconds, and calls a second, one after the other."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000, statistics.quantiles(times, n=100)[98] * 1000, rounds / sum(times)


BUSY, DYNOS = "app-00005", 20
"""The app that is asked for its dynos, and how many it has."""
PAGE = 200
"""Apps on a page, unless a client asks for more."""


def populate(count: int) -> str:
    """Apps up to ``count``, all of the owner's but that a second account works on three; returns that account's token."""
    from sqlalchemy import func, insert, select

    from state import accounts, apps, db, vault
    from state.models import Account, App, Domain, Dyno, new_id

    with db.transaction() as session:
        owner = session.scalar(select(Account).where(Account.is_admin))
        assert owner
        have = session.scalar(select(func.count()).select_from(App)) or 0
        sealed = vault.seal({})
        rows = [(new_id(), f"app-{n:05}") for n in range(have, count)]
        values = [{"id": id, "name": name, "owner_id": owner.id, "config": sealed, "stack": "davit-13"} for id, name in rows]
        session.execute(insert(App), values)
        session.execute(insert(Domain), [{"app_id": id, "hostname": f"{name}.localhost", "kind": "heroku"} for id, name in rows])
        busy = session.scalar(select(App).where(App.name == BUSY))
        if busy and not session.scalar(select(func.count()).select_from(Dyno)):
            one = {"app_id": busy.id, "type": "web", "size": "basic", "command": "x", "state": "up", "release_version": 1}
            session.execute(insert(Dyno), [{**one, "id": new_id(), "name": f"web.{n}"} for n in range(1, DYNOS + 1)])
        email = f"friend{count}@example.com"
        friend = accounts.create(session, owner, email)
        for app in session.scalars(select(App).order_by(App.name.desc()).limit(3)):
            apps.add_collaborator(session, owner, app, email)
        return accounts.issue_token(session, friend, "bench")[0]


class Web:
    """gunicorn as the Procfile starts it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.env = {**os.environ, "DAVIT_HOME": str(home), "DAVIT_API": f"127.0.0.1:{self.port}", "DAVIT_RATE_LIMIT": "100000000"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--worker-class", "api.door.Worker", "--threads", "64",
             "--bind", self.env["DAVIT_API"],
             "--no-control-socket", "--config", "python:api.server", "app:app"],
            cwd=ROOT, env=self.env, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError):
                self.get("/", "")
                break
            time.sleep(0.05)

    def get(self, path: str, token: str, part: str = "") -> bytes:
        """A GET on a connection of its own; ``part`` of a list, as Range says it."""
        return self.call("GET", path, token, part=part)

    def call(self, method: str, path: str, token: str, body: bytes | None = None, part: str = "") -> bytes:
        """A call on a connection of its own.

        Raises:
            RuntimeError: it was refused.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Authorization": f"Bearer {token}", **({"Range": part} if part else {})}
        connection.request(method, path, body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {data[:200]!r}")
        return data

    def pss(self) -> float:
        """MiB of the server and its worker."""
        total = 0
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in [str(self.process.pid), *children]:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024


def own_home() -> Path:
    """A DAVIT_HOME with an owner and nothing else, in force for this process."""
    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    for name in [name for name in os.environ if name.startswith("DAVIT_") or name in ("DATABASE_URL", "REDIS_URL")]:
        if name != FIGURES:
            del os.environ[name]
    os.environ["DAVIT_HOME"] = str(home)
    from state import accounts, db, vault

    (home / "run").mkdir()
    db.upgrade()
    vault.ensure_keys()
    with db.transaction() as session:
        accounts.ensure_owner(session)
    return home


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    home = own_home()
    owner = (home / "owner-token").read_text().strip()
    web = Web(home)
    try:
        print(f"web process, nothing asked yet: {web.pss():.1f} MiB PSS\n")
        print(
            "| apps | GET /apps | GET /users/~/apps (3 of them) | GET /apps/NAME | davit apps | python -c pass | git --version |"
        )
        print("|---|---|---|---|---|---|---|")
        calls: list[tuple[int, dict[str, Spread]]] = []
        commands: list[tuple[int, float]] = []
        for count in (10, 1_000, 10_000):
            friend = populate(count)
            times = [
                milliseconds(lambda: web.get("/apps", owner), rounds),
                milliseconds(lambda token=friend: web.get("/users/~/apps", token), rounds),  # type: ignore[misc]
                milliseconds(lambda: web.get(f"/apps/{BUSY}", owner), rounds),
                milliseconds(lambda: run([ROOT / "bin" / "davit", "apps"], web.env), max(5, rounds // 5)),
                milliseconds(lambda: run([sys.executable, "-c", "pass"], web.env), max(5, rounds // 5)),
                milliseconds(lambda: run(["git", "--version"], web.env), max(5, rounds // 5)),
            ]
            print(f"| {count:,} | " + " | ".join(f"{one:.1f} ms" for one in times) + " |", flush=True)
            spreads = {name: spread(action, 4 * rounds) for name, action in _calls(web, owner, friend, count).items()}
            calls.append((count, spreads))
            commands.append((count, times[3]))
        print("\np50 / p99 / requests a second, one client:\n")
        names = list(calls[0][1])
        print("| apps | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
        for count, row in calls:
            cells = [f"{p50:.1f} ms / {p99:.1f} ms / {rate:.0f}" for p50, p99, rate in row.values()]
            print(f"| {count:,} | " + " | ".join(cells) + " |")
        print(f"\nweb process after that: {web.pss():.1f} MiB PSS")
        hand_over(figures(calls, commands))
    finally:
        web.process.terminate()
        web.process.wait()
        shutil.rmtree(home)


def figures(calls: list[tuple[int, dict[str, Spread]]], commands: list[tuple[int, float]]) -> list[Figure]:
    """Each call at the most apps, beside the same where a page was full for the first time; the command at each size."""
    (full, base), (most, last) = next(call for call in calls if call[0] >= PAGE), calls[-1]
    rows = []
    for name, (p50, p99, rate) in last.items():
        value = f"{ms(p50 / 1000)} / {ms(p99 / 1000)} / {rate:.0f}"
        ratio, grows = p50 / base[name][0], name.startswith("GET /apps,")
        beside = f"at {full:,}: {ms(base[name][0] / 1000)}"
        what = f"{name} at {most:,} apps: p50, p99, calls a second"
        goal = {"goal": "does not grow", "met": ratio <= GROWN} if grows else {}
        rows.append(Figure("api", what, value, beside, ratio, **goal))
    return rows + [
        Figure("api", f"davit apps at {count:,} apps", ms(wall / 1000), goal="≤ 300 ms", met=wall <= 300)
        for count, wall in commands
    ]


def _calls(web: Web, owner: str, friend: str, count: int) -> dict[str, Callable[[], object]]:
    """The calls whose spread is measured; every PATCH changes a value, and so makes a release."""
    numbers = itertools.count(time.time_ns())
    last = f"name app-{max(0, count - PAGE):05}..; max={PAGE}"

    def patch() -> bytes:
        return web.call("PATCH", f"/apps/{BUSY}/config-vars", owner, f'{{"A": "{next(numbers)}"}}'.encode())

    return {
        "GET /apps, first page": lambda: web.get("/apps", owner),
        "GET /apps, last page": lambda: web.get("/apps", owner, last),
        "GET /apps, as a collaborator": lambda: web.get("/apps", friend),
        f"GET /apps/NAME/dynos, {DYNOS} of them": lambda: web.get(f"/apps/{BUSY}/dynos", owner),
        "PATCH config-vars": patch,
    }


def run(argv: list[str | Path], env: dict[str, str]) -> None:
    """Run a program, its output thrown away."""
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
