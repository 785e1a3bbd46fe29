"""The proof: what Davit asks of a kernel, asked of those of the distributions that it promises to run on.

Containers, their network and builds, with the tests that prove them here; then an app that is pushed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import STACKS
from tests.hosts.machine import ROOT
from tests.kernels.guest import Guest, kernel

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(7200)]
BOUND = 6600.0
"""Seconds; an emulated machine is about ten times slower."""
TESTS = (
    "tests/slugs", "tests/runtime/test_container.py", "tests/runtime/test_reach.py", "tests/runtime/test_forging.py",
    "tests/runtime/test_scratch.py", "tests/builder/test_build_sandbox.py",
)  # fmt: skip
HURRIED = ("tests/builder/test_build_sandbox.py::test_harm_ends_in_a_failed_build_and_the_next_build_is_as_if_nothing_had_been",)
"""Tests that give something so few seconds that an emulated machine needs more."""
JOB = """
cd /tmp
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DAVIT_STACKS=@stacks@
export DAVIT_TEST_SLOWNESS=6
git clone -q @source@ davit
ln -s @python@ davit/.venv
cd davit
uname -r
bin/davit doctor
.venv/bin/python -m pytest -p no:cacheprovider -v --color=no -m 'not slow' @tests@
tests=$?
export DAVIT_HOME=/tmp/home PATH=$PATH:/tmp/davit/bin
cp -a examples/static /tmp/app
cd /tmp/app && git init -q -b main && git add -A && git -c user.name=Ann -c user.email=ann@example.com commit -q -m first
davit up --detach && davit apps:create first-app && davit git:remote -a first-app && git push davit main &&
    curl -sS -f -o /dev/null -w 'the app answers %{http_code}\\n' -H 'Host: first-app.localhost' http://127.0.0.1:8080/
pushed=$?
davit logs -a first-app -n 30
davit down
status=$((tests | pushed))
"""


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_dynos_and_builds_on_the_kernel_of(suite: str, tmp_path: Path) -> None:
    deselected = " ".join(f"--deselect={test}" for test in HURRIED)
    words = {"stacks": STACKS, "source": ROOT, "python": (ROOT / ".venv").resolve(), "tests": f"{' '.join(TESTS)} {deselected}"}
    job = JOB
    for name, value in words.items():
        job = job.replace(f"@{name}@", str(value))
    assert Guest(tmp_path, kernel(suite), job).run(BOUND) == 0
