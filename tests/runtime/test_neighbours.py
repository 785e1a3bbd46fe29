"""No dyno fills the one table of neighbours that the kernel has for all of them, HAProxy and the host: real bridge, real packets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_dyno_has_one_neighbour_whatever_it_calls_and_both_know_each_other_without_asking() -> None:
    words = ["unshare", "--net", sys.executable, "-m", "tests.runtime.neighbours"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "the host knows both": True, "another dyno": 113, "the resolver": "answered", "neighbours": True,
        "a connection too many": 113, "those before": True,
        "the host still does": True, "one has gone": True, "those that another process finds": True,
        "the next has none": "113", "they are forgotten": True, "no other's are": 1, "the next has its own": "answered",
        "strays": [0, 1, 0],
    }  # fmt: skip
