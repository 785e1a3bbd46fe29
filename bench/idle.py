"""What Davit takes with no app, and what each dyno adds beyond its own process: ``python -m bench.idle``.

Davit's processes are those of ``davit status``, HAProxy and Redis included; their memory is the proportional set size, as
other tools' is in the comparison. What a dyno adds is: by how much those processes grow with it, its init (tini), and the
kernel memory that its cgroup shows (which includes what the kernel keeps for the app's own process).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.parts import ended_whole
from bench.tables import Figure, mib, report, table
from tests.e2e.conftest import running
from tests.e2e.residue import instance
from tests.e2e.world import App, Davit, eventually, tiny

SETTLED = 10.0
MANY = 20
MIB = 1 << 20
DOCKER = 111 * MIB
"""PSS of dockerd and containerd, measured once on the reference machine."""


def memory(davit: Davit) -> dict[str, int]:
    """PSS of Davit's processes, by process, in bytes."""
    rows = json.loads(davit.cli("status", "--json").stdout)
    return {row["process"]: row["memory"] for row in rows}


@dataclass(frozen=True)
class Group:
    """One dyno's cgroup: bytes in all, bytes of the kernel's, PSS of its init, PSS of the other processes."""

    total: int
    kernel: int
    init: int
    own: int

    @classmethod
    def read(cls, path: Path) -> Group:
        """Of cgroup v1 or v2.

        Args:
            path: in the hierarchy of the memory controller.
        """
        pids = sorted(int(pid) for file in path.rglob("cgroup.procs") for pid in file.read_text().split())
        sizes = {pid: pss(pid) for pid in pids}
        init = sizes.pop(pids[0], 0) if pids else 0
        return cls(_number(path, "memory.current", "memory.usage_in_bytes"), _kernel(path), init, sum(sizes.values()))


def _number(path: Path, *names: str) -> int:
    return next((int((path / name).read_text()) for name in names if (path / name).exists()), 0)


def _kernel(path: Path) -> int:
    if (path / "memory.kmem.usage_in_bytes").exists():
        return _number(path, "memory.kmem.usage_in_bytes")
    words = dict(line.split() for line in (path / "memory.stat").read_text().splitlines())
    return int(words.get("kernel", 0))


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def dyno_cgroups(davit: Davit) -> list[Path]:
    """The dynos' directories in the hierarchy of the memory controller."""
    name = f"davit{instance(davit)}"
    roots = [root / name for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if (root / name).is_dir()]
    try:
        return [path for path in sorted(roots[0].glob("*/*")) if path.is_dir()] if roots else []
    except FileNotFoundError:  # one went while it was looked at
        return dyno_cgroups(davit)


def groups(davit: Davit) -> list[Group]:
    """The cgroups of all dynos that run."""
    return [Group.read(path) for path in dyno_cgroups(davit)]


def up(davit: Davit, app: App, count: int) -> None:
    """Scale, and wait until so many dynos are up."""
    app.cli("ps:scale", f"web={count}")
    eventually(lambda: [dyno["state"] for dyno in app.dynos()] == ["up"] * count, f"{count} dynos are up", 120)


def measure(davit: Davit, settled: float) -> list[Figure]:
    """Start, wait, count."""
    time.sleep(settled)
    empty = memory(davit)
    print(table(("process", "PSS with no app"), [[name, mib(size)] for name, size in empty.items()]), flush=True)
    app = davit.create()
    app.deploy(tiny("first"))
    found = {}
    for count in (1, MANY):
        up(davit, app, count)
        time.sleep(settled / 2)
        found[count] = memory(davit)
    dynos = groups(davit)
    grown = (sum(found[MANY].values()) - sum(found[1].values())) / (MANY - 1)
    init = statistics.median(dyno.init for dyno in dynos)
    kernel = statistics.median(dyno.kernel for dyno in dynos)
    own = statistics.median(dyno.own for dyno in dynos)
    rows = [
        ["Davit's processes grow by", mib(grown)],
        *([f"  {name}", mib((found[MANY][name] - found[1][name]) / (MANY - 1))] for name in found[1]),
        ["its init (PSS)", mib(init)],
        ["kernel memory of its cgroup", mib(kernel)],
        ["for comparison: its own process (PSS)", mib(own)],
    ]
    print(f"\n{table((f'each of {MANY} dynos adds', ''), rows)}", flush=True)
    app.cli("apps:destroy", "--confirm", app.name)
    whole, each = sum(empty.values()), grown + init + kernel
    no_app = "Davit's processes with no app (PSS)"
    beyond = "what a dyno adds beyond its own process"
    return [
        Figure("idle", no_app, mib(whole), "dockerd 111 MiB", whole / DOCKER, "≤ 200 MiB", whole <= 200 * MIB),
        Figure("idle", beyond, mib(each), f"its process {mib(own)}", each / own, "≤ 5 MiB", each <= 5 * MIB),
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settled", type=float, default=SETTLED, help="seconds of rest before Davit's memory is read")
    options = parser.parse_args()
    with ended_whole(running(Davit(Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))))) as davit:
        report(measure(davit, options.settled))


if __name__ == "__main__":
    main()
