"""A home is started with its own database only, of either kind; what has no identity yet is judged by what it holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import inspect, text

from builder import janitor
from cli.host import doctor, home
from foundation.settings import settings
from runtime.process import Runtime
from slugs.store import Store
from state import accounts, apps, db, identity
from state.models import Account, Home, Token
from tests.cli.test_backup import a_day
from tests.e2e.errors_page import assert_says
from tests.state.conftest import database, forget_caches  # noqa: F401

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def turn(database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:  # noqa: F811
    """``turn(URL)`` sets DATABASE_URL; ``turn("new")`` has it name a database of the same kind that nobody has seen."""

    def make() -> str:
        if database == "postgresql":
            url: str = request.getfixturevalue("postgres_server")()
            return url
        return f"sqlite:///{tempfile.mkdtemp(prefix='dvi', dir=settings().home)}/new.db"

    def turn(url: str) -> None:
        monkeypatch.setenv("DATABASE_URL", make() if url == "new" else url)
        forget_caches()

    return turn


@pytest.fixture
def second_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """Calling it makes DAVIT_HOME an empty directory."""
    place = Path(tempfile.mkdtemp(prefix="dvi", dir="/tmp"))

    def move() -> Path:
        monkeypatch.setenv("DAVIT_HOME", str(place))
        forget_caches()
        return place

    yield move
    shutil.rmtree(place)


def files(root: Path) -> dict[str, bytes]:
    """What a home holds, but for what SQLite keeps."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and ".db" not in path.name}


def pair() -> tuple[str, str]:
    """The identity in the home, and the one in the database."""
    with db.snapshot() as session:
        (row,) = session.query(Home)
    return (settings().home / "identity").read_text().strip(), row.id


def counts() -> tuple[int, int, int]:
    with db.snapshot() as session:
        return session.query(Account).count(), session.query(Token).count(), session.query(Home).count()


def refused() -> str:
    with pytest.raises(identity.WrongDatabase) as caught:
        home.prepare(settings())
    return caught.value.message


@pytest.mark.row("wrong-database")
@pytest.mark.parametrize("older", [False, True])
def test_an_empty_database_is_refused_before_anything_is_written(
    turn: Callable[[str], None], davit_home: Path, tmp_path: Path, older: bool
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    if not older:  # as a Davit left it that knew of no identities
        home.prepare(settings())
    url, before = settings().database_url, files(davit_home)
    turn("new")
    assert_says("wrong-database", refused())
    assert files(davit_home) == before
    if settings().database_url.startswith("sqlite"):
        assert not Path(settings().database_url.removeprefix("sqlite:///")).exists()
    else:
        assert inspect(db.engine()).get_table_names() == []
    point = doctor.check_database(settings())
    assert point.level == "fail" and "1 repository, 1 slug and 1 build" in point.message
    turn(url)
    home.prepare(settings())
    mine, its = pair()
    assert mine == its and doctor.check_database(settings()).level == "ok"
    assert {name: text for name, text in files(davit_home).items() if name in before} == before


def test_those_who_start_the_processes_otherwise_read_the_same_sentence(
    turn: Callable[[str], None], davit_home: Path, tmp_path: Path
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    turn("new")
    done = subprocess.run([sys.executable, "-m", "cli.host.home"], cwd=CHECKOUT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert_says("wrong-database", done.stderr)


def test_files_stay_where_the_database_under_a_running_davit_is_anothers(
    turn: Callable[[str], None], davit_home: Path, tmp_path: Path
) -> None:  # fmt: skip
    digest = a_day(davit_home, tmp_path)
    os.utime(Store(davit_home / "slugs").path(digest), (0, 0))
    home.prepare(settings())
    turn("new")
    db.upgrade()
    with pytest.raises(identity.WrongDatabase):
        janitor.sweep()
    assert (davit_home / "builds" / "b" / "output").exists()
    drivers: Any = SimpleNamespace()
    running = Runtime(settings(), drivers, lambda slot: 0)
    for collect in (running._stacks_in_use, running._collect):
        with pytest.raises(identity.WrongDatabase):
            collect()
    assert Store(davit_home / "slugs").path(digest).exists()
    done = subprocess.run([sys.executable, "-m", "runtime"], cwd=CHECKOUT, env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "but another Davit's" in done.stdout + done.stderr


@pytest.mark.row("wrong-database")
@pytest.mark.parametrize("started", [False, True])
def test_two_homes_cannot_have_one_database(
    turn: Callable[[str], None], second_home: Callable[[], Path], started: bool
) -> None:  # fmt: skip
    home.prepare(settings())  # nobody has made an app yet
    url, before = settings().database_url, counts()
    second = second_home()
    if started:
        turn("new")
        home.prepare(settings())
    turn(url)
    assert_says("wrong-database", refused())
    assert counts() == before and started == (second / "identity").exists()


@pytest.mark.row("wrong-database")
def test_the_database_of_a_davit_of_before_is_no_other_homes(
    turn: Callable[[str], None], second_home: Callable[[], Path], davit_home: Path, tmp_path: Path
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    url, before = settings().database_url, counts()
    second_home()
    turn(url)
    assert_says("wrong-database", refused())
    assert counts() == before


@pytest.mark.row("wrong-database")
def test_another_programs_tables_are_left_alone(turn: Callable[[str], None]) -> None:
    turn("new")
    with db.engine().execution_options(write=True).begin() as connection:
        connection.execute(text("CREATE TABLE accounts (id integer)"))
    assert_says("wrong-database", refused())
    assert inspect(db.engine()).get_table_names() == ["accounts"]


@pytest.mark.parametrize("lost", ["file", "row"])
def test_what_one_of_the_two_lost_comes_from_the_other(
    turn: Callable[[str], None], davit_home: Path, tmp_path: Path, lost: str
) -> None:  # fmt: skip
    """As after a kill between the two in a home of before, with a dump from before there were identities, or an old backup."""
    a_day(davit_home, tmp_path)
    home.prepare(settings())
    before = pair()
    if lost == "file":
        (davit_home / "identity").unlink()
    else:
        with db.transaction() as session:
            session.query(Home).delete()
    home.prepare(settings())
    assert pair() == before


@pytest.mark.parametrize("lost", ["owner-token", "keys/config.keys"])
def test_the_token_or_the_keys_are_enough_to_know_a_home_of_before(
    turn: Callable[[str], None], davit_home: Path, tmp_path: Path, lost: str
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    (davit_home / lost).unlink()
    home.prepare(settings())
    assert len(set(pair())) == 1


def test_a_first_start_that_was_killed_between_the_two_is_made_good(turn: Callable[[str], None], davit_home: Path) -> None:
    (davit_home / "identity").write_text("half\n")
    home.prepare(settings())
    assert len(set(pair())) == 1


def test_a_database_that_was_tried_once_does_not_fit_later(turn: Callable[[str], None], davit_home: Path) -> None:
    """Its start was forgotten to be told DATABASE_URL, first while there was nothing to lose, and then when there was."""
    first = settings().database_url
    home.prepare(settings())
    turn("new")
    home.prepare(settings())
    with db.transaction() as session:
        accounts.ensure_owner(session)
        apps.create(session, session.query(Account).one())
    (davit_home / "repos" / "x.git").mkdir()
    turn(first)
    assert "but another Davit's" in refused()
