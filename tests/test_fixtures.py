"""The fixtures that every room's tests stand on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import redis
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from state import db
from state.models import Account
from tests.conftest import LONG, PostgresCluster, longest_first

CHECKOUT = Path(__file__).parents[1]


def test_redis_answers_on_its_socket(redis_server: str) -> None:
    with redis.Redis.from_url(redis_server) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}


def test_every_database_is_a_fresh_one(postgres_server: Callable[[], str]) -> None:
    first, second = postgres_server(), postgres_server()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE mark (x int)")
    with psycopg.connect(second) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'mark'").fetchone() == (0,)


def test_every_migrated_database_is_a_fresh_one(postgres_server: PostgresCluster, migrated_sqlite: Path) -> None:
    for url in (postgres_server.migrated(), postgres_server.migrated(), f"sqlite:///{migrated_sqlite}"):
        engine = db.make_engine(url)
        with Session(engine) as session:
            assert session.scalar(select(func.count()).select_from(Account)) == 0
            if engine.dialect.name == "postgresql":
                session.add(Account(email="ann@example.com"))
                session.commit()
        engine.dispose()


def test_the_home_is_private_and_its_path_short(davit_home: Path) -> None:
    assert davit_home.stat().st_mode & 0o777 == 0o700
    assert len(str(davit_home)) < 30


def test_a_process_of_that_home_is_a_leftover(davit_home: Path, leftovers: Callable[[Path], list[str]]) -> None:
    assert leftovers(davit_home) == []
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, "DAVIT_HOME": str(davit_home)})
    try:
        assert [f"process {process.pid} (sleep 60)"] == leftovers(davit_home)
    finally:
        process.kill()
        process.wait()


def test_a_mount_below_that_home_is_a_leftover(davit_home: Path, leftovers: Callable[[Path], list[str]]) -> None:
    target = davit_home / "inside"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "davit", target], check=True)
    try:
        assert leftovers(davit_home) == [f"mount {target}"]
    finally:
        subprocess.run(["umount", target], check=True)


def test_files_are_begun_longest_first_and_stay_whole() -> None:
    names = ["a.py::1", "tests/e2e/b.py::1", "c.py::1", "a.py::2", "tests/e2e/test_microvms.py::1", "c.py::2", "d.py::1"]
    items: Any = [SimpleNamespace(nodeid=name) for name in names]
    longest_first(items)
    assert [item.nodeid for item in items] == [names[4], names[1], names[0], names[3], names[2], names[5], names[6]]


def test_what_is_called_long_is_there() -> None:
    files = [str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "tests").rglob("test_*.py")]
    assert [name for name in LONG if not any(file.startswith(name) for file in files)] == []
