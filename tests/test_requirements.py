"""requirements.lock is what Davit runs on, requirements-test.lock what only tests and checks need beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python 3.11 and later")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, str]:
    """Distribution → version that the lock installs here."""
    wanted = [Requirement(line) for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(one.name): str(one.specifier) for one in wanted if one.marker is None or one.marker.evaluate()}


def needed(lines: Iterable[str]) -> set[str]:
    """The distributions that these requirements need here, theirs among them."""
    found: set[str] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        one, extra = waiting.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(one.name)
        extras = one.extras or {""}
        if name in found and extras == {""}:
            continue
        found.add(name)
        waiting += [(Requirement(line), extra) for line in metadata.requires(name) or () for extra in extras]
    return found


def test_what_davit_runs_on_is_in_the_lock_of_its_own_and_nothing_else_is() -> None:
    assert set(pinned("requirements.lock")) == needed(PROJECT["dependencies"])


def test_what_the_tests_need_beside_it_is_in_theirs() -> None:
    tests = needed(PROJECT["optional-dependencies"]["dev"]) | needed(PROJECT["dependencies"])
    assert set(pinned("requirements.lock")) | set(pinned("requirements-test.lock")) >= tests


@pytest.mark.parametrize("file", ["requirements.lock", "requirements-test.lock"])
def test_each_line_is_one_exact_version_and_they_are_in_order(file: str) -> None:
    names = []
    for line in (ROOT / file).read_text().splitlines():
        assert re.match(r"[a-z0-9-]+==[^ ]+( ;.*)?$", line), line
        names.append(line.split("==")[0])
    assert names == sorted(names)


def test_what_both_pin_they_pin_alike() -> None:
    run, test = pinned("requirements.lock"), pinned("requirements-test.lock")
    assert {name: version for name, version in run.items() if test.get(name, version) != version} == {}
