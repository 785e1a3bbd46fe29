"""The house as a whole: who may import whom, docs that agree with the code, nothing of any one machine in the tree."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from foundation.errors import DavitError
from foundation.settings import Settings
from router.codes import CODES
from scripts import reference

CHECKOUT = Path(__file__).parents[1]

BELOW = {
    "foundation": set(),
    "state": {"foundation"},
    "logs": {"foundation", "state"},
    "slugs": {"foundation", "state"},
    "metrics": {"foundation"},
    "router": {"foundation", "state", "logs", "metrics"},
    "runtime": {"foundation", "state", "logs", "slugs", "metrics"},
    "builder": {"foundation", "state", "logs", "slugs"},
    "api": {"foundation", "state", "logs", "slugs", "metrics", "builder", "runtime", "router"},
    "dashboard": {"foundation", "state", "logs", "slugs", "metrics", "builder", "runtime", "router", "api"},
    "hosts": {"foundation"},
    "cli": {"foundation", "state", "logs", "slugs", "builder", "runtime", "router", "api", "hosts"},
}
"""Room → the rooms that it may import: imports only go down. What is not listed talks over the wire."""


def _sources(room: str) -> Iterator[Path]:
    return (path for path in (CHECKOUT / room).rglob("*.py") if "__pycache__" not in path.parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and first name of every import, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


@pytest.mark.parametrize("room", BELOW)
def test_imports_only_go_down(room: str) -> None:
    allowed = BELOW[room] | {room}
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{line} imports {name}"
        for path in _sources(room)
        for line, name in _imports(path)
        if name in BELOW.keys() - allowed
    ]
    assert not wrong, "; ".join(wrong)


def test_the_settings_page_lists_what_the_code_reads() -> None:
    page = (CHECKOUT / "docs" / "settings.md").read_text()
    assert page == reference.with_generated(page, reference.settings_table()), "run `make docs`"


def test_docker_compose_passes_every_setting_on() -> None:
    settings = {setting.metadata["variable"] for setting in fields(Settings)}
    for name, service in yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"].items():
        given = service["environment"].keys()
        assert settings <= given, f"docker-compose.yml: {name} lacks {sorted(settings - given)}, which would be ignored silently"
        assert {word for word in given if word.startswith("DAVIT_")} <= settings


def test_the_errors_page_explains_every_code_that_an_apps_log_can_have() -> None:
    assert reference.written_codes().keys() == reference.REMEDIES.keys()
    assert all(code.developer for code in CODES.values())
    page = (CHECKOUT / "docs" / "errors.md").read_text()
    assert page == reference.with_generated(page, reference.codes_tables()), "run `make docs`"


def _error_classes(base: type[DavitError]) -> Iterator[type[DavitError]]:
    for error in base.__subclasses__():
        yield error
        yield from _error_classes(error)


def test_every_error_id_is_explained() -> None:
    for room in BELOW:
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            if not NO_MODULE.search(module.name):
                importlib.import_module(module.name)
    rows = re.findall(r"^\| `(\w+)` \|", (CHECKOUT / "docs" / "errors.md").read_text().partition("\n## Ids\n")[2], re.M)
    explained = set(rows)
    assert len(rows) == len(explained), f"docs/errors.md explains twice: {sorted({id for id in rows if rows.count(id) > 1})}"
    rooms = tuple(f"{room}." for room in BELOW)
    ids = {error.id for error in (DavitError, *_error_classes(DavitError)) if error.__module__.startswith(rooms)}
    ids |= set(re.findall(r'\berror\("(\w+)",', (CHECKOUT / "api" / "manners.py").read_text()))
    assert ids <= explained, f"docs/errors.md lacks {sorted(ids - explained)}"


NO_MODULE = re.compile(r"\.__main__$|^builder\.inside$|^state\.migrations\.")
"""Programs, and what Alembic or the sandbox runs: importing them runs them."""


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "-C", CHECKOUT, "ls-files", "-z"], capture_output=True, check=True).stdout
    return [CHECKOUT / name for name in listed.decode().split("\0") if name]


FOREIGN = re.compile(
    b"|".join(
        [
            rb"/[w]ork/",
            rb"/[f]arm/",
            rb"deb\.[d]ebian\.org",
            rb"[p]ypi\.org",
            rb"[p]ythonhosted",
            rb"registry\.[n]pmjs",
            rb"[y]arnpkg\.com",
        ]
    )
)
"""Written so that the pattern does not find itself."""


def test_no_path_of_a_machine_and_no_registry_host_is_in_the_tree() -> None:
    locks = (".lock", "package-lock.json")
    found = [
        f"{path.relative_to(CHECKOUT)}: {match[0].decode()}"
        for path in _tracked()
        if path.is_file() and not path.name.endswith(locks) and (match := FOREIGN.search(path.read_bytes()))
    ]
    assert not found, "; ".join(found)


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = []
    for page in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name} → {target}")
    assert not broken, "; ".join(broken)
