"""200 dynos of a tiny app on one machine: ``python -m bench.crowd [--dynos 200]``.

Two apps (a process type has 100 dynos at the most) grow in steps; at 10, 100 and 200 dynos a third app gets its only dyno,
five times: how long from ``PATCH /formation`` to its first 200 through the router, and what it takes. Then all of them at
once from nothing, and away again; nothing may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from bench.idle import dyno_cgroups, groups, memory
from bench.parts import ended_whole
from bench.tables import Figure, mib, ms, report, table
from tests.e2e.conftest import running
from tests.e2e.residue import residue
from tests.e2e.world import App, Davit, tiny

PATIENCE = 300.0
TIMES = 5


class Crowd:
    """Two apps that grow, and one that gets one dyno more.

    Args:
        davit: it runs.
        dynos: of both apps together in the end.
    """

    def __init__(self, davit: Davit, dynos: int) -> None:
        self.davit = davit
        self.half = dynos // 2
        self.client = davit.client()
        self.apps = [davit.create() for _ in range(3)]
        for app in self.apps:
            app.deploy(tiny("first"))
        self.first, self.second, self.extra = self.apps
        self.scale(self.second, 0)
        self.scale(self.extra, 0)

    def ask(self, app: App, count: int) -> None:
        """Want so many dynos."""
        answer = self.client.patch(f"/apps/{app.name}/formation", json={"updates": [{"type": "web", "quantity": count}]})
        answer.raise_for_status()

    def wait(self, app: App, count: int) -> None:
        """Until so many dynos are up and no others are there."""
        deadline = time.monotonic() + PATIENCE
        pause = 0.005 if count <= 10 else 0.05
        while True:
            states = [dyno["state"] for dyno in self.client.get(f"/apps/{app.name}/dynos").raise_for_status().json()]
            if states == ["up"] * count:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{count} dynos were not up within {PATIENCE:g} s: {states}\n{self.davit.logs()}")
            time.sleep(pause)

    def scale(self, app: App, count: int) -> float:
        """Seconds from asking to so many dynos up."""
        began = time.monotonic()
        self.ask(app, count)
        self.wait(app, count)
        return time.monotonic() - began

    def one_more(self) -> tuple[float, float, float]:
        """Seconds to the first 200 of one dyno more; by how much Davit's processes grow; what its cgroup takes."""
        before = sum(memory(self.davit).values())
        began = time.monotonic()
        self.ask(self.extra, 1)
        while self._status() != 200:
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"One more dyno did not answer within {PATIENCE:g} s.\n{self.davit.logs()}")
            time.sleep(0.002)
        took = time.monotonic() - began
        grown = sum(memory(self.davit).values()) - before
        taken = statistics.median(group.total for group in groups(self.davit))
        self.scale(self.extra, 0)
        return took, grown, taken

    def _status(self) -> int:
        with contextlib.suppress(httpx.HTTPError):
            return self.extra.get().status_code
        return 0

    def at(self, count: int, took: float) -> list[str]:
        """The table's line for so many dynos."""
        found = [self.one_more() for _ in range(TIMES)]
        seconds, grown, taken = (statistics.median(values) for values in zip(*found, strict=True))
        self.seconds = seconds
        line = [str(count), ms(took), ms(seconds), mib(grown), mib(taken), mib(sum(memory(self.davit).values()))]
        print("  " + "   ".join(line), flush=True)
        return line


def measure(davit: Davit, dynos: int) -> list[Figure]:
    """Grow, at once, away."""
    crowd = Crowd(davit, dynos)
    head = ("dynos", "grown in", "one more: first 200", "Davit's PSS grows", "its cgroup", "Davit's PSS in all")
    print("  " + "   ".join(head), flush=True)
    few = min(10, crowd.half)
    rows = [crowd.at(few, crowd.scale(crowd.first, few))]
    at_few = crowd.seconds
    rows.append(crowd.at(crowd.half, crowd.scale(crowd.first, crowd.half)))
    rows.append(crowd.at(2 * crowd.half, crowd.scale(crowd.second, crowd.half)))
    print(f"\n{table(head, rows)}", flush=True)
    began = time.monotonic()
    for app in (crowd.first, crowd.second):
        crowd.scale(app, 0)
    while dyno_cgroups(davit):
        time.sleep(0.02)
    away = time.monotonic() - began
    began = time.monotonic()
    for app in (crowd.first, crowd.second):
        crowd.ask(app, crowd.half)
    for app in (crowd.first, crowd.second):
        crowd.wait(app, crowd.half)
    took = time.monotonic() - began
    began = time.monotonic()
    for app in crowd.apps:
        app.cli("apps:destroy", "--confirm", app.name)
    until_nothing_left(davit)
    gone = time.monotonic() - began
    count = 2 * crowd.half
    print(f"scaled to 0, the last gone after {away:.2f} s; {count} destroyed, nothing left, after {gone:.2f} s", flush=True)
    return [
        Figure("crowd", f"{count} dynos at once, from none to all up", ms(took), f"each {ms(took / count)}"),
        Figure("crowd", f"one more at {count}: first 200", ms(crowd.seconds), f"at {few}: {ms(at_few)}", crowd.seconds / at_few),
        Figure("crowd", "all destroyed, nothing left", ms(gone)),
    ]


def until_nothing_left(davit: Davit) -> None:
    """Until nothing of any app is there.

    Raises:
        RuntimeError: something still is, after all patience.
    """
    deadline = time.monotonic() + PATIENCE
    left: list[str] = ["?"]
    while left:
        if time.monotonic() > deadline:
            raise RuntimeError("left behind: " + "; ".join(left))
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):  # a cgroup that goes while it is looked at
            left = list(residue(davit))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dynos", type=int, default=200, help="an even number, 200 at the most")
    options = parser.parse_args()
    with ended_whole(running(Davit(Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))))) as davit:
        report(measure(davit, options.dynos))


if __name__ == "__main__":
    main()
