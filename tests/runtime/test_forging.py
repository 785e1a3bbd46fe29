"""A dyno whose kernel is its own can put any address on its packets; none of them gets anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runtime.instance import Instance


def test_a_dyno_takes_no_neighbours_place_with_forged_packets() -> None:
    words = ["unshare", "--net", sys.executable, "-m", "tests.runtime.forging"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "heard from": [Instance.numbered(7).address(5)], "belongs": True,
        "the victim gets its own": True, "the forger gets it": False,
    }  # fmt: skip
