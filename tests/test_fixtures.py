"""The fixtures that every room's tests stand on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from state import db
from state.models import Account
from tests.conftest import PostgresCluster


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
