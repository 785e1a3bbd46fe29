"""The database: one engine a process, write transactions, read snapshots, migrations.

SQLite runs in WAL mode: readers never wait, writers queue (``BEGIN IMMEDIATE``, so that two writers wait for each other
instead of failing half-way). What is committed is on the disk (``synchronous=FULL``: one fdatasync a commit), but for what
:func:`transaction` is told to be of the moment. PostgreSQL is told that a snapshot is one (REPEATABLE READ).
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from foundation.errors import Conflict, DiskFull, Unavailable
from foundation.settings import settings
from state import outbox
from state.models import App

log = logging.getLogger("state")

LASTING, MOMENTARY = "FULL", "NORMAL"
"""SQLite's ``synchronous`` for a commit that is on the disk when it returns, and for one that gets there with the next such."""
BUSY_SECONDS = 20
"""How long a SQLite writer waits for its turn."""
_PATIENCE = {
    "connect_timeout": 5, "tcp_user_timeout": 20_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3
}  # fmt: skip
"""How long a PostgreSQL that cannot be reached is waited for (libpq's words); a URL may say otherwise."""


def make_engine(url: str) -> Engine:
    """An engine for ``url``: ``sqlite:///PATH`` or ``postgresql://…`` (``postgres://`` as Heroku writes it, too)."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    if parsed.get_backend_name() == "postgresql":
        waits = {name: value for name, value in _PATIENCE.items() if name not in parsed.query}
        parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, connect_args=waits, pool_pre_ping=True, pool_size=5, max_overflow=60)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, pool_size=5, max_overflow=60)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: the driver's own comes too late to be IMMEDIATE
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("write"):  # a setting of the connection, which another transaction may have left otherwise
        connection.exec_driver_sql(f"PRAGMA synchronous={MOMENTARY if options.get('momentary') else LASTING}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("write") else "BEGIN")


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The process's engine, for ``settings().database_url``."""
    return make_engine(settings().database_url)


def _after_fork() -> None:
    if engine.cache_info().currsize:
        engine().dispose(close=False)  # the parent's connections are the parent's


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def transaction(*, momentary: bool = False) -> Iterator[Session]:
    """A session that writes: commits at the end of the block, rolls back on an exception.

    Args:
        momentary: it says what a power cut makes untrue anyway, as that a dyno is up, or what is found out again after one.
            Its commit need not wait for SQLite's disk; it gets there with the next that does, in order.

    Raises:
        DiskFull: the database has no room to write; nothing was changed.
        Unavailable: others kept it busy for :data:`BUSY_SECONDS`, or were in the way, and nothing was changed; or it does not
            answer.
        Conflict: others made the same meanwhile, or removed what it belongs to; nothing was changed.

    What :func:`after_commit` was given runs after the commit, in order, and never when it was rolled back.
    """
    options = {"write": True, "momentary": momentary}
    with _in_sentences(), Session(engine().execution_options(**options), expire_on_commit=False) as session, _committed(session):
        if _is_postgresql():
            session.execute(_SHARED)
        yield session


@contextmanager
def _in_sentences() -> Iterator[None]:
    """What the driver says to a database that is full, busy or away, or has what others made meanwhile, becomes a sentence."""
    try:
        yield
    except StaleDataError as error:
        raise Conflict("What this changes was removed in the same moment, so nothing was changed; look again.") from error
    except DBAPIError as error:
        if _for_want_of_room(error):
            raise DiskFull() from error
        if _for_want_of_a_turn(error):
            raise _busy() from error
        if _in_each_others_way(error):
            raise Unavailable("Others changed the same in the same moment, so nothing was changed; try again.") from error
        if _for_want_of_an_answer(error):
            log.warning("the database does not answer: %s", error.orig)
            raise Unavailable("The database does not answer at the moment; try again.") from error
        if _is_there_already(error):
            log.warning("refused for a row that is there: %s", _constraint(error))
            raise Conflict("Somebody made the same in the same moment, so nothing was changed; look again.") from error
        if _belongs_to_nothing(error):
            log.warning("refused for a row that is gone: %s", _constraint(error))
            raise Conflict("What this belongs to was removed in the same moment, so nothing was changed; look again.") from error
        raise


@contextmanager
def unless_taken(sentence: str) -> Iterator[None]:
    """For a flush of a name that was free a moment ago: somebody else's, from the same moment, is told as any that is taken.

    Raises:
        Conflict: the sentence; the transaction is to be left, because nothing more can be done in it.
    """
    try:
        yield
    except IntegrityError as error:
        if not _is_there_already(error):
            raise
        raise Conflict(sentence, id="invalid_params", status=422) from error


@contextmanager
def _committed(session: Session) -> Iterator[None]:
    """Begin, commit and run what was put off until then."""
    outbox.act_as(session, None)
    with session.begin():
        session.connection()  # begin now: what is computed in the block belongs to it, also before its first statement
        yield
    for action in session.info.pop("after", []):
        try:
            action()
        except Exception:
            log.exception("an action after a commit failed")


_WRITERS = 7031416
_SHARED = text(f"SELECT pg_advisory_xact_lock_shared({_WRITERS})")
_EXCLUSIVE = text(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _is_postgresql() -> bool:
    return engine().dialect.name == "postgresql"


@contextmanager
def alone() -> Iterator[Session]:
    """A write transaction while no other is under way; when the block is left it is on the disk, and so are all before it.

    On SQLite every writer is alone; on PostgreSQL the others hold a shared advisory lock, which this one takes for itself.

    Raises:
        Unavailable: others did not come to an end within :data:`BUSY_SECONDS`, or the database does not answer.
    """
    with _in_sentences(), engine().execution_options(write=True).connect() as connection:
        session = Session(connection, expire_on_commit=False)
        with _committed(session):
            if _is_postgresql():
                session.execute(text(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'"))
                session.execute(text("SET LOCAL synchronous_commit = on"))
                session.execute(_EXCLUSIVE)
            yield session


def _for_want_of_room(error: DBAPIError) -> bool:
    """SQLite's SQLITE_FULL; PostgreSQL's disk_full (SQLSTATE 53100)."""
    return "disk is full" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "53100"


def _for_want_of_a_turn(error: DBAPIError) -> bool:
    """SQLite's SQLITE_BUSY; PostgreSQL's lock_not_available (SQLSTATE 55P03)."""
    return "database is locked" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "55P03"


def _in_each_others_way(error: DBAPIError) -> bool:
    """PostgreSQL's deadlock_detected and serialization_failure (SQLSTATE 40P01 and 40001)."""
    return getattr(error.orig, "sqlstate", None) in ("40P01", "40001")


def _is_there_already(error: DBAPIError) -> bool:
    """A unique constraint's refusal: SQLite's words; PostgreSQL's unique_violation (SQLSTATE 23505)."""
    return "UNIQUE constraint failed" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "23505"


def _belongs_to_nothing(error: DBAPIError) -> bool:
    """A foreign key's refusal: SQLite's words; PostgreSQL's foreign_key_violation (SQLSTATE 23503)."""
    return "FOREIGN KEY constraint failed" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "23503"


def _constraint(error: DBAPIError) -> str:
    """What refused it, without the values, which PostgreSQL's message has."""
    diagnosis = getattr(error.orig, "diag", None)
    return str(error.orig) if diagnosis is None else str(diagnosis.constraint_name)


def _for_want_of_an_answer(error: DBAPIError) -> bool:
    """A PostgreSQL that is not there, or went away meanwhile: the connection exceptions (SQLSTATE class 08), admin_shutdown,
    crash_shutdown and cannot_connect_now (57P01 to 57P03). What the client library found out by itself has no SQLSTATE."""
    if error.connection_invalidated:
        return True
    if not _is_postgresql() or not isinstance(error, OperationalError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith("08") or state in ("57P01", "57P02", "57P03")


def _busy() -> Unavailable:
    return Unavailable(f"The database was busy for {BUSY_SECONDS} seconds; try again.")


@contextmanager
def snapshot() -> Iterator[Session]:
    """A session that reads one consistent state; objects stay readable after the block.

    Raises:
        Unavailable: the database does not answer.
    """
    # in READ COMMITTED, PostgreSQL's default, each statement would have a state of its own
    reading = engine().execution_options(isolation_level="REPEATABLE READ") if _is_postgresql() else engine()
    with _in_sentences(), Session(reading, expire_on_commit=False) as session:
        yield session


def ask(question: str, **values: str | datetime) -> list[tuple[Any, ...]]:
    """Rows of a ``SELECT``, read by the database's driver alone.

    For those who look again every few seconds: a process's first query by way of SQLAlchemy copies some ten megabytes of
    pages that it shares with the others until then.

    Args:
        question: SQL that both databases understand, with ``:name`` for each of ``values``.

    Raises:
        Unavailable: the database does not answer.
    """
    url = settings().database_url
    try:
        return _ask_sqlite(url, question, values) if url.startswith("sqlite") else _ask_by_engine(question, values)
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise Unavailable(f"The database does not answer: {error}") from error


def _ask_sqlite(url: str, question: str, values: Mapping[str, str | datetime]) -> list[tuple[Any, ...]]:
    given = {name: _as_stored(value) for name, value in values.items()}
    with closing(sqlite3.connect(url.partition(":///")[2], timeout=BUSY_SECONDS)) as connection:
        return connection.execute(question, given).fetchall()


def _ask_by_engine(question: str, values: Mapping[str, str | datetime]) -> list[tuple[Any, ...]]:
    raw = engine().raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute(_NAMED.sub(r"%(\1)s", question), values)
        return [tuple(row) for row in cursor.fetchall()]
    except engine().dialect.loaded_dbapi.Error as error:
        raw.invalidate()
        raise Unavailable(f"The database does not answer: {error}") from error
    finally:
        raw.close()


_NAMED = re.compile(r":([a-z_]+)")


def _as_stored(value: str | datetime) -> str:
    """As SQLAlchemy's ``DateTime`` writes it into SQLite."""
    return value.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, datetime) else value


def lock_app(session: Session, app_id: str) -> None:
    """Changes to one app wait for each other from here to the end of the transaction (on SQLite all writers do anyway)."""
    session.execute(select(App.id).where(App.id == app_id).with_for_update())


class _Microseconds(FunctionElement[int]):
    """A moment as a number, since 1970."""

    type = BigInteger()
    inherit_cache = True


@compiles(_Microseconds)
def _on_postgresql(element: _Microseconds, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST(extract(epoch FROM {compiler.process(element.clauses, **options)}) * 1000000 AS BIGINT)"


@compiles(_Microseconds, "sqlite")
def _on_sqlite(element: _Microseconds, compiler: SQLCompiler, **options: Any) -> str:
    moment = compiler.process(element.clauses, **options)  # as _as_stored writes it
    return f"(strftime('%s', {moment}) * 1000000 + substr({moment}, 21))"


def sum_of(moments: Any) -> ColumnElement[int]:
    """Of a column of moments, a number that is another one as soon as any of them is.

    The newest would not do: on PostgreSQL a transaction may commit after one whose moments are later, and clocks are set back.
    """
    return func.sum(number_of(moments))


def number_of(moment: Any) -> ColumnElement[int]:
    """Of a column of moments, a number for each that is small enough for any number of rows to have a sum within 64 bits."""
    return _Microseconds(moment) % 1_000_000_007  # microseconds: by chance nothing is changed just so much later


def after_commit(session: Session, action: Callable[[], object]) -> None:
    """Run ``action`` once the session's transaction is in force (nudges, log lines)."""
    session.info.setdefault("after", []).append(action)


def upgrade(to: str = "head") -> None:
    """Bring the database to the newest schema; safe to call at every start and by several processes at once.

    Processes of the version before may be at work meanwhile, and until they are replaced: a migration adds, and takes away only
    what that version did not know any more (:data:`state.models.LEAVING`).
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine().execution_options(write=True).connect() as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7031415)")
        config.attributes["connection"] = connection
        command.upgrade(config, to)
