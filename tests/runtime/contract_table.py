"""Which words of the drivers' contract hold for which driver, and in which run a test shows it: the table of docs/isolation.md.

``python -m tests.runtime.contract_table`` writes it; :mod:`tests.runtime.test_contract` says when it is not what it should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.reference import with_generated
from tests.runtime.contract import DriverContract, LifeContract, SharedKernelContract

PAGE = Path(__file__).parents[2] / "docs" / "isolation.md"
ALWAYS, PROOF, KERNEL, IMITATION = "always", "`make test-vms`", "with a kernel", "always, with an imitation"
_CONTRACTS = (LifeContract, DriverContract, SharedKernelContract)
_MODULES = {
    "container": {"test_container": ALWAYS},
    "microvm": {"test_microvm": ALWAYS},
    "osv": {"test_osv_driver": IMITATION, "test_osv_kernel": KERNEL},
}
"""Driver → where its tests are → in which run these are, unless they are slow ones."""


def table() -> str:
    """As Markdown."""
    rows = ["| what holds | container | microvm | osv |", "|---|---|---|---|"]
    columns = {driver: _shown(modules) for driver, modules in _MODULES.items()}
    for contract in _CONTRACTS:
        for name, test in vars(contract).items():
            if name.startswith("test_"):
                cells = [_cell(test, name, runs, reasons) for runs, reasons in columns.values()]
                rows.append(f"| {name.removeprefix('test_').replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _shown(modules: dict[str, str]) -> tuple[dict[Any, set[str]], dict[str, str]]:
    """In which runs each test is, and why what is left out is."""
    runs: dict[Any, set[str]] = {}
    reasons: dict[str, str] = {}
    for module, run in modules.items():
        for tests in _classes(import_module(f"tests.runtime.{module}")):
            reasons.update(getattr(tests, "left_out", {}))
            slow = any(mark.name == "slow" for mark in getattr(tests, "pytestmark", []))
            for name in dir(tests):
                if name.startswith("test_") and callable(test := getattr(tests, name)):
                    runs.setdefault(test, set()).add(PROOF if slow else run)
    return runs, reasons


def _classes(module: Any) -> Iterator[type]:
    return (value for name, value in vars(module).items() if name.startswith("Test") and isinstance(value, type))


def _cell(test: Any, name: str, runs: dict[Any, set[str]], reasons: dict[str, str]) -> str:
    if shown := runs.get(test):
        return "; ".join(sorted({ALWAYS} if ALWAYS in shown else shown))
    return f"no: {reasons[name]}" if name in reasons else "not promised: the host's kernel is not shared"


if __name__ == "__main__":
    PAGE.write_text(with_generated(PAGE.read_text(), table()))
