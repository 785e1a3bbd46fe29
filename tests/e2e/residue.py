"""What a Davit that serves nothing may not hold: what builds, pushes and dynos leave in its home, its cgroups and its tables."""

from __future__ import annotations

import glob
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from tests.e2e.world import Davit, eventually


def assert_nothing_left(davit: Davit, seconds: float = 45) -> None:
    """Once no app is there, nothing of any may be."""
    try:
        eventually(lambda: not list(residue(davit)), "nothing is left", seconds)
    except AssertionError:
        raise AssertionError("left behind: " + "; ".join(residue(davit)) + "\n" + davit.logs()) from None


def residue(davit: Davit) -> Iterator[str]:
    """One phrase for each thing; nothing when no app runs, builds or is being pushed to."""
    home = davit.home
    for folder in ("run/dynos", "repos/incoming", "slugs/incoming"):
        yield from (f"file {path}" for path in (home / folder).glob("*"))
    for pattern in ("repos/*.git", "repos/.*", "caches/*", "slugs/.put-*", "builds/*/workspace*"):
        yield from (f"file {path}" for path in glob.glob(f"{home}/{pattern}"))
    for pattern in ("cache-*", "sandbox-*", ".template-*"):
        yield from (f"file {path}" for path in glob.glob(f"{home}/run/{pattern}"))
    yield from rows_unfinished(davit)
    yield from (f"cgroup {group}" for group in _dyno_cgroups(davit))


def rows_unfinished(davit: Davit) -> Iterator[str]:
    """What the database says is under way."""
    database = home_database(davit)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        for table, condition in (("builds", "status = 'pending'"), ("releases", "status = 'pending'"), ("apps", "destroying")):
            for row in connection.execute(f"SELECT id, updated_at FROM {table} WHERE {condition}"):
                yield f"{table} row {row}"
        for row in connection.execute("SELECT name, state FROM dynos WHERE app_id NOT IN (SELECT id FROM apps)"):
            yield f"dynos row {row}"


def home_database(davit: Davit) -> Path:
    """The SQLite file."""
    return davit.home / "davit.db"


def _dyno_cgroups(davit: Davit) -> list[Path]:
    """The cgroups of dynos: two levels below the instance's own, in any hierarchy. (``Path.glob`` fails at what vanishes.)"""
    number = instance(davit)
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")] if number is not None else []
    return sorted(Path(group) for root in roots for group in glob.glob(f"{root}/davit{number}/*/*/"))


def instance(davit: Davit) -> int | None:
    """The instance number that this Davit has claimed on the machine."""
    for claim in Path("/run/davit/instances").glob("[0-9]*"):
        with suppress(FileNotFoundError):  # another Davit's, which gave its number back in this moment
            if claim.read_text() == str(davit.home):
                return int(claim.name)
    return None
