"""What makes `davit install --start` restart what runs: other settings, other units, other code; and what does not."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.host import install, revision
from foundation.settings import from_environment
from hosts import units
from runtime.instance import INSTANCES, Instance

EVERYTHING = {
    f"davit-{name}.service" for name in ("prepare", "redis", "logs", "router", "runtime", "worker", "ssh", "web")
}  # fmt: skip


@dataclass
class Installed:
    """A Davit as `davit install` leaves it: units, settings, a checkout; and what was noted when it was made ready."""

    place: Path

    @property
    def file(self) -> Path:
        return self.place / "davit.env"

    @property
    def checkout(self) -> Path:
        return self.place / "checkout"

    def install(self) -> None:
        """Write the units, as the command does."""
        variables = install.read_environment(self.file)
        install.write(install.compose(self.file, variables, from_environment(variables), "davit"), self.place / "units")

    def current(self) -> revision.Revision:
        variables = install.read_environment(self.file)
        return revision.current(self.place / "units", variables, from_environment(variables), self.checkout)

    def stale(self) -> set[str]:
        return set(revision.stale(self.current(), self.place / "noted"))


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    made = Installed(tmp_path)
    for name in ("units", "noted", "checkout/state", "checkout/tests", "checkout/docs"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("state/__init__.py", "state/apps.py", "tests/__init__.py", "tests/test_apps.py", "docs/apps.md", "app.py"):
        (made.checkout / name).write_text("one = 1\n")
    made.file.write_text(f"DAVIT_HOME={tmp_path}/home\nDATABASE_URL=postgresql://x:s3cret@y/z\n")
    made.install()
    revision.note(made.current(), tmp_path / "noted")
    return made


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_what_is_as_it_was_is_left_alone(installed: Installed) -> None:
    installed.install()
    append(installed.file, "# of no importance\n\n")
    append(installed.checkout / "docs/apps.md", "more\n")
    append(installed.checkout / "tests/test_apps.py", "two = 2\n")
    (installed.checkout / "state/__pycache__").mkdir()
    (installed.checkout / "state/__pycache__/apps.cpython-313.pyc").write_text("compiled")
    assert installed.stale() == set()


@pytest.mark.parametrize("line", ["DAVIT_BOOT_TIMEOUT=120", "DAVIT_DOMAIN=apps.test", "DATABASE_URL=postgresql://x:other@y/z"])
def test_a_changed_setting_concerns_all_but_redis(installed: Installed, line: str) -> None:
    append(installed.file, f"{line}\n")
    installed.install()
    assert installed.stale() == EVERYTHING - {units.REDIS}
    assert revision.restarted(installed.stale()) == [units.PREPARE]


def test_a_setting_that_was_taken_out_is_a_change(installed: Installed) -> None:
    installed.file.write_text(f"DAVIT_HOME={installed.place}/home\n")
    assert installed.stale() == EVERYTHING - {units.REDIS}


@pytest.mark.parametrize("change", ["state/apps.py", "state/fresh.py", "app.py", "requirements.lock", ".venv/.ready"])
def test_a_new_version_concerns_all_but_redis(installed: Installed, change: str) -> None:
    path = installed.checkout / change
    path.parent.mkdir(exist_ok=True)
    path.write_text("one = 2\n")
    assert installed.stale() == EVERYTHING - {units.REDIS}


def test_a_module_that_was_removed_is_a_change(installed: Installed) -> None:
    (installed.checkout / "state/apps.py").unlink()
    assert installed.stale() == EVERYTHING - {units.REDIS}


def test_redis_is_restarted_for_what_concerns_it(installed: Installed) -> None:
    append(installed.file, f"DAVIT_HOME={installed.place}/elsewhere\n")
    installed.install()
    assert installed.stale() == EVERYTHING
    assert revision.restarted(installed.stale()) == [units.PREPARE, units.REDIS]
    assert revision.restarted({units.REDIS}) == [units.REDIS]


def test_where_nothing_is_noted_everything_is_restarted(installed: Installed) -> None:
    """A Davit that an older version started; and what a note was cut short in says nothing."""
    noted = installed.place / "noted" / revision.NOTE
    noted.write_text(noted.read_text()[:20])
    assert installed.stale() == EVERYTHING
    noted.unlink()
    assert installed.stale() == EVERYTHING


def test_units_of_others_are_none_of_ours(installed: Installed) -> None:
    (installed.place / "units" / "davit-firewall.service").write_text("[Unit]\n")
    assert installed.stale() == set()


def test_digests_of_secrets_are_for_root_alone(installed: Installed) -> None:
    assert (installed.place / "noted" / revision.NOTE).stat().st_mode & 0o777 == 0o600
    prepare = (installed.place / "units" / units.PREPARE).read_text()
    assert "RuntimeDirectory=davit-prepare\nRuntimeDirectoryMode=0700\n" in prepare


def test_what_systemd_removes_holds_nothing_of_the_running_dynos() -> None:
    for place in (INSTANCES, Instance.numbered(0).directory):
        assert revision.PLACE not in (place, *place.parents)


def test_the_code_of_this_checkout_is_looked_at_whole(tmp_path: Path) -> None:
    before = revision.code(install.CHECKOUT)
    for name in ("app.py", "requirements.lock"):
        shutil.copy(install.CHECKOUT / name, tmp_path)
    for room in (
        "api",
        "builder",
        "cli",
        "dashboard",
        "foundation",
        "hosts",
        "logs",
        "metrics",
        "router",
        "runtime",
        "slugs",
        "state",
    ):
        shutil.copytree(install.CHECKOUT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    if (mark := install.CHECKOUT / ".venv/.ready").exists():
        (tmp_path / ".venv").mkdir()
        shutil.copy(mark, tmp_path / ".venv")
    same = revision.code(tmp_path)
    (tmp_path / "dashboard" / "templates").mkdir(exist_ok=True)
    (tmp_path / "dashboard" / "templates" / "new.html").write_text("x")
    assert revision.code(tmp_path) != same
    assert same == before


def test_it_is_said_when_everything_runs_as_root_because_root_made_the_home(tmp_path: Path) -> None:
    """As after getting started, whose commands root gives."""
    said = install.as_root(install.owner(tmp_path), tmp_path)
    assert (said is None) == (tmp_path.owner() != "root")
    said = install.as_root("root", tmp_path)
    assert said and "run as root" in said and "\n" not in said
    assert (f"run as root, because {tmp_path} is root's." in said) == (tmp_path.owner() == "root")
    assert f"davit install --user davit && chown -R davit: {tmp_path}" in said
    assert install.as_root(install.owner(tmp_path / "new"), tmp_path / "new") is None


def test_what_systemd_knew_of_a_removed_unit_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    (tmp_path / "davit-redis.service").write_text("[Unit]\n")

    def run(words: list[str], **_: object) -> None:
        """systemctl's place: a real one would stop this machine's."""
        asked.append((*words[1:], str(sorted(path.name for path in tmp_path.iterdir()))))

    monkeypatch.setattr(install, "UNITS", tmp_path)
    monkeypatch.setattr(install, "run", run)
    install._remove(["davit-redis.service"], lambda line: None)
    assert asked == [("stop", "davit-redis.service", "['davit-redis.service']"), ("daemon-reload", "[]")]
    install._remove([], lambda line: None)
    assert len(asked) == 2
