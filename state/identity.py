"""Which database belongs to which DAVIT_HOME: neither means anything without the other.

A home with another database is a heap of slugs that no release names and of dynos that no row knows: whoever starts on it ends
and removes all of them. So both hold one identity, made at the first start: the only row of ``homes``, and the file
``DAVIT_HOME/identity``. Where one of them has none (a kill between the two, a dump or a home of before there were identities),
what both hold decides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from foundation import disk
from foundation.errors import DavitError, Unavailable
from foundation.settings import Settings, settings
from state import db, vault
from state.models import Home, new_id

_SAMPLE = 20
"""Apps of which one has to be readable with a home's keys."""


class WrongDatabase(DavitError):
    """The database is not this home's; nothing was changed."""

    id, status = "wrong_database", 500


@dataclass(frozen=True)
class _Database:
    """What a database says of itself, and of a home.

    Attributes:
        identity: of its home; None where it has none yet.
        apps: it has some.
        knows: it knows the home's owner-token, or the home's keys open its config vars.
        stranger: its tables are another program's.
    """

    identity: str | None = None
    apps: bool = False
    knows: bool = False
    stranger: bool = False


def check(wanted: Settings) -> None:
    """Refuse a database that is not the home's. Nothing is written, nor is SQLite's file made.

    Args:
        wanted: what is to be started; not always this process's own settings.

    Raises:
        WrongDatabase: it is another home's or another program's, or knows nothing of what the home holds.
        Unavailable: it does not answer.
    """
    if wanted.database_url.startswith("sqlite") and not disk.is_written(Path(make_url(wanted.database_url).database or "")):
        _refuse(wanted, _Database())
        return
    try:
        engine = db.make_engine(wanted.database_url)
        try:
            with engine.connect() as connection:
                found = _look(connection, wanted.home)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        why = str(getattr(error, "orig", None) or "it is no address of a database").strip().splitlines()[0]
        raise Unavailable(f"{_named(wanted)} cannot be read ({why}); start it, or correct DATABASE_URL.") from error
    _refuse(wanted, found)


def unite() -> None:
    """Give the home and its migrated database one identity, where they have not.

    Raises:
        WrongDatabase: as :func:`check`.
    """
    with db.snapshot() as session:
        if _of_home(settings().home) == _look(session.connection(), settings().home).identity is not None:
            return
    with db.alone() as session:
        mine, found = _of_home(settings().home), _look(session.connection(), settings().home)
        _refuse(settings(), found)
        if mine is not None and found.identity is not None:
            return  # another start was quicker
        # A home without anything in it that has an identity may have another database still, which is not to fit any more.
        identity = found.identity or (mine if found.knows else None) or new_id()
        if found.identity is None:
            session.add(Home(id=identity))
            session.flush()
        disk.write(_file(settings().home), identity.encode() + b"\n")


def confirm() -> None:
    """For a process that removes what no row names: the home and the database that it has are one another's.

    Raises:
        WrongDatabase: they are not. Unavailable: the database does not answer.
    """
    rows = db.ask("SELECT id FROM homes")
    if _of_home(settings().home) != (rows[0][0] if rows else None):
        raise WrongDatabase(_anothers(settings()))


def _file(home: Path) -> Path:
    return home / "identity"


def _of_home(home: Path) -> str | None:
    path = _file(home)
    return path.read_text().strip() if disk.is_written(path) else None


def _look(connection: Connection, home: Path) -> _Database:
    """Also of a database with an older schema."""
    tables = set(inspect(connection).get_table_names())
    if not {"apps", "tokens", "releases"} <= tables:
        return _Database(stranger=bool(tables))
    identity = connection.scalar(text("SELECT id FROM homes")) if "homes" in tables else None
    sealed = [bytes(config) for (config,) in connection.execute(text("SELECT config FROM apps LIMIT :most"), {"most": _SAMPLE})]
    return _Database(identity, bool(sealed), _knows_token(connection, home) or vault.opens(home, sealed))


def _knows_token(connection: Connection, home: Path) -> bool:
    path = home / "owner-token"
    if not disk.is_written(path):
        return False
    digest = hashlib.sha256(path.read_bytes().strip()).hexdigest()
    return bool(connection.scalar(text("SELECT count(*) FROM tokens WHERE sha256 = :digest"), {"digest": digest}))


def _refuse(wanted: Settings, found: _Database) -> None:
    mine = _of_home(wanted.home)
    if found.stranger:
        raise WrongDatabase(
            f"{_named(wanted)} holds tables of another program, and nothing was changed. Davit needs a database of its own: "
            "make one (createdb davit), and name it in DATABASE_URL."
        )
    if (found.knows and (mine is None or found.identity is None)) or (mine is not None and mine == found.identity):
        return
    held = _held(wanted.home)
    if found.identity is None and not found.apps and held:
        raise WrongDatabase(
            f"DAVIT_HOME ({wanted.home}) holds {held} of another database than {_named(wanted)}, which has no apps; nothing was "
            "changed. Set DATABASE_URL as it was, or start with an empty DAVIT_HOME."
        )
    if found.identity is not None or found.apps:
        raise WrongDatabase(_anothers(wanted))


def _anothers(wanted: Settings) -> str:
    return (
        f"{_named(wanted)} is not the database of DAVIT_HOME ({wanted.home}) but another Davit's; nothing was changed. "
        "Set DATABASE_URL and DAVIT_HOME as they were, or make a new database (createdb) for a new DAVIT_HOME."
    )


def _held(home: Path) -> str:
    """What would be lost, in words: ``3 repositories and 7 slugs``."""
    kinds = {"repositories": "repos/*.git", "slugs": "slugs/[0-9a-f]*.*", "builds": "builds/*"}
    counts = {kind: sum(1 for _ in home.glob(pattern)) for kind, pattern in kinds.items()}
    words = [f"{count} {kind if count > 1 else _ONE[kind]}" for kind, count in counts.items() if count]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_ONE = {"repositories": "repository", "slugs": "slug", "builds": "build"}


def _named(wanted: Settings) -> str:
    """A database as its owner knows it, without a password."""
    try:
        url = make_url(wanted.database_url)
    except SQLAlchemyError:
        return "The database of DATABASE_URL"
    if url.get_backend_name() == "sqlite":
        return f"SQLite's {url.database}"
    return f"The database {url.database} at {url.host or 'this host'} (DATABASE_URL)"
