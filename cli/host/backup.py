"""``davit backup`` and ``davit restore``: everything that must survive, in one tar archive.

The archive holds the database, the keys, the owner's token, what was pushed, the slugs, and what builds and release commands
printed. It is taken while Davit runs: the database first, as it is at one moment, then what it speaks of, which others add to
but do not change. What can be made anew (stacks, build caches, unikernels' roots) is not in it; nor is what lives for a day.

    database.sqlite | database.dump    SQLite's file, or pg_dump's custom format
    keys/… owner-token identity        as in DAVIT_HOME; what is restored gets an identity of its own
    slugs/… builds/ID/… releases/ID/… metrics/…
    repositories/APP_ID/bundle         git-bundle(1), and beside it what a bundle does not hold: HEAD, shallow
    whole                              the last entry: who finds it has read all of it
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from builder.repositories import Repositories
from cli.host.home import make_directories
from foundation import disk
from foundation.errors import NO_ROOM, DavitError, DiskFull
from foundation.programs import run
from foundation.settings import Settings
from slugs.store import Store
from state.db import engine
from state.models import new_id

Say = Callable[[str], None]

SQLITE, POSTGRESQL, WHOLE = "database.sqlite", "database.dump", "whole"
TREES = ("keys", "slugs", "builds", "releases", "metrics")
"""Directories of DAVIT_HOME that are in a backup as they are; there they are complete before the database names them."""
FILES = ("owner-token", "identity")
_SCRATCH = ("workspace.img",)
"""What a build works in while it goes on."""
DRAFT = "restoring"
"""Below DAVIT_HOME, what a restore has read so far."""
DUMP_SECONDS = 24 * 3600


class BackupFailed(DavitError):
    """A backup could not be made, or not be restored; nothing was changed but what the sentence names."""

    id, status = "backup_failed", 500


def backup(settings: Settings, target: Path, say: Say) -> None:
    """Write the archive; Davit may run meanwhile.

    Args:
        target: the file, there and whole (0600) when this returns, or not there; ``-`` is standard output.
        say: told what is done, step by step.

    Raises:
        BackupFailed: there is no Davit in DAVIT_HOME, or this user may not read it. ProgramFailed, DiskFull.
    """
    if not (settings.home / "keys" / "config.keys").exists():
        raise BackupFailed(f"There is no Davit in {settings.home} that this user may read; run this as the owner of DAVIT_HOME.")
    try:
        with _draft(target) as stream, tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _Backup(settings, archive, say).write()
    except OSError as error:
        raise _in_words(error, "no backup was made", f"{target} could not be written") from error
    except sqlite3.Error as error:
        raise BackupFailed(f"The database could not be copied: {error}.") from error


class _Backup:
    def __init__(self, settings: Settings, archive: tarfile.TarFile, say: Say) -> None:
        self.home, self.settings, self.archive, self.say = settings.home, settings, archive, say

    def write(self) -> None:
        """The way of a backup."""
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=self.home) as scratch:
            with Store(self.home / "slugs").steady():  # what the database names now is there until it is read
                self._database(Path(scratch))
                self._trees()
            self._repositories(Path(scratch))
        self._bytes(WHOLE, b"")

    def _database(self, scratch: Path) -> None:
        if self.settings.database_url.startswith("sqlite"):
            copy = scratch / SQLITE
            _copy_sqlite(_sqlite_file(self.settings), copy)
        else:
            copy = scratch / POSTGRESQL
            url, env = _libpq(self.settings.database_url)
            run([_program("pg_dump"), "--format=custom", f"--file={copy}", f"--dbname={url}"], env=env, timeout=DUMP_SECONDS)
        self._file(copy, copy.name)
        copy.unlink()
        self.say("The database is in it.")

    def _trees(self) -> None:
        for name in FILES:
            self._file(self.home / name, name)
        for name in TREES:
            found = [self._file(path, str(path.relative_to(self.home))) for path in _files(self.home / name)]
            self.say(f"{name}: {sum(found)} files.")

    def _repositories(self, scratch: Path) -> None:
        store = Repositories(self.home / "repos")
        found = sorted(store.root.glob("*.git"))
        for path in found:
            app_id, bundle = path.name.removesuffix(".git"), scratch / "bundle"
            try:
                if store.write_bundle(app_id, bundle):
                    self._file(bundle, f"repositories/{app_id}/bundle")
                self._file(path / "shallow", f"repositories/{app_id}/shallow")
                self._bytes(f"repositories/{app_id}/HEAD", store.deployed_branch(app_id))
            except (OSError, DavitError):
                if path.exists():  # else its app was destroyed meanwhile
                    raise
        self.say(f"Git repositories: {len(found)}.")

    def _file(self, path: Path, name: str) -> bool:
        """Add a file; one that is gone meanwhile, or grows while it is read, does no harm."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            entry = self.archive.gettarinfo(arcname=name, fileobj=file)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            self.archive.addfile(entry, file)
        return True

    def _bytes(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o600
        self.archive.addfile(entry, io.BytesIO(content))


def restore(settings: Settings, source: Path, say: Say) -> None:
    """Make a DAVIT_HOME of an archive. Nothing is ever overwritten: there must be no Davit in it yet.

    All is read, checked and unpacked beside its place first; what is whole is put there by renaming, or nothing of it is. Only a
    PostgreSQL that was filled stays so when the rest fails.

    Args:
        source: the archive; ``-`` is standard input.

    Raises:
        BackupFailed: there is something already, or that is no (whole) archive for this database. ProgramFailed, DiskFull.
    """
    home = settings.home
    make_directories(home)
    _refuse_to_overwrite(settings)
    draft, filled = home / DRAFT, False
    shutil.rmtree(draft, ignore_errors=True)  # of a restore that was killed
    try:
        draft.mkdir(mode=0o700)
        _unpack(source, draft)
        _suits(settings, draft)
        say("The archive is whole.")
        _unbundle(draft, say)
        if (draft / POSTGRESQL).exists():
            _fill_postgresql(settings, draft / POSTGRESQL)
            filled = True
        _renew_identity(draft)
        _give_to_owner(home)
        _into_place(settings, draft)
    except (OSError, SQLAlchemyError) as error:
        left = _left(settings, filled)
        raise _in_words(error, left, f"{source} could not be restored into {home}, {left}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_to_overwrite(settings: Settings) -> None:
    if there := _there(settings):
        raise BackupFailed(
            f"There is a Davit in {settings.home} already ({', '.join(there)}). Restore into a DAVIT_HOME that is empty: "
            "stop it (`davit down`) and move that one out of the way."
        )
    try:
        full = not settings.database_url.startswith("sqlite") and bool(inspect(engine()).get_table_names())
    except SQLAlchemyError as error:
        raise BackupFailed(
            f"The database that DATABASE_URL names cannot be read ({_reason(error)}): start it, or correct DATABASE_URL."
        ) from error
    if full:
        raise BackupFailed("The database that DATABASE_URL names is not empty; restore into a new one (createdb).")


def _there(settings: Settings) -> list[str]:
    """What of a Davit is in its place."""
    there = [name for name in FILES if (settings.home / name).exists()]
    if settings.database_url.startswith("sqlite") and _sqlite_file(settings).exists():
        there.append(str(_sqlite_file(settings)))
    return there + [name for name in (*TREES, "repos") if any(_files(settings.home / name))]


def _left(settings: Settings, filled: bool) -> str:
    """What a restore that failed has changed, and what is to be done then."""
    left = [*(["the database"] if filled else []), *_there(settings)]
    if not left:
        return "nothing was restored"
    only = "only the database was filled" if left == ["the database"] else f"only a part is there ({', '.join(left)})"
    fresh = ["an empty database (dropdb, createdb)"] if filled else []
    return f"{only}: restore again, into {' and '.join([*fresh, 'an empty DAVIT_HOME'])}"


def _unpack(source: Path, draft: Path) -> None:
    last = ""
    try:
        with _opened(source) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                path, content = draft / _checked(entry), archive.extractfile(entry)
                assert content is not None
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode & 0o777)
                with os.fdopen(fd, "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    file.flush()
                    os.fsync(fd)
                last = entry.name
    except tarfile.TarError as error:
        raise BackupFailed(f"{source} is no backup of Davit's, or not all of one: {error}.") from None
    if last != WHOLE:
        raise BackupFailed(f"{source} is no backup of Davit's, or not all of one: its end is missing.")


def _checked(entry: tarfile.TarInfo) -> str:
    parts = PurePosixPath(entry.name).parts
    known = (SQLITE, POSTGRESQL, WHOLE, *FILES, *TREES, "repositories")
    if not entry.isreg() or not parts or parts[0] not in known or ".." in parts:
        raise BackupFailed(f"That is no backup of Davit's: it holds {entry.name[:200]!r}.")
    return entry.name


def _suits(settings: Settings, draft: Path) -> None:
    """The archive's database is of the kind that DATABASE_URL names."""
    wanted = SQLITE if settings.database_url.startswith("sqlite") else POSTGRESQL
    if not (draft / wanted).exists():
        kind = {SQLITE: "PostgreSQL's", POSTGRESQL: "SQLite's"}[wanted]
        remedy = {SQLITE: "set DATABASE_URL to an empty database of PostgreSQL's", POSTGRESQL: "unset DATABASE_URL"}[wanted]
        raise BackupFailed(f"The backup holds a database of {kind}, and this Davit would use another kind: {remedy}.")


def _unbundle(draft: Path, say: Say) -> None:
    """Make the repositories beside their bundles."""
    store = Repositories(draft / "repos")
    found = sorted((draft / "repositories").glob("*"))
    for place in found:
        bundle, shallow = place / "bundle", place / "shallow"
        store.read_bundle(
            place.name, bundle if bundle.exists() else None,
            head=(place / "HEAD").read_bytes(), shallow=shallow if shallow.exists() else None,
        )  # fmt: skip
    say(f"Git repositories: {len(found)}.")


def _fill_postgresql(settings: Settings, dump: Path) -> None:
    """All of the database, or (should it fail) nothing."""
    url, env = _libpq(settings.database_url)
    words = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", f"--dbname={url}"]
    run([_program("pg_restore"), *words, dump], env=env, timeout=DUMP_SECONDS)


def _renew_identity(draft: Path) -> None:
    """What is restored is a Davit of its own: neither it nor what was backed up starts with the other's database."""
    fresh = new_id()
    if (draft / SQLITE).exists():
        renewed = _name_in_sqlite(draft / SQLITE, fresh)
    else:
        with engine().execution_options(write=True).begin() as connection:
            renewed = inspect(connection).has_table("homes")
            if renewed:
                renewed = connection.execute(text("UPDATE homes SET id = :id"), {"id": fresh}).rowcount > 0
    if renewed:  # else it is a database of before there were identities, and its first start makes one
        disk.write(draft / "identity", fresh.encode() + b"\n")
    else:
        (draft / "identity").unlink(missing_ok=True)


def _name_in_sqlite(path: Path, identity: str) -> bool:
    try:
        with closing(sqlite3.connect(path)) as database, database:
            there = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'homes'").fetchone()[0]
            return bool(there) and database.execute("UPDATE homes SET id = ?", (identity,)).rowcount > 0
    except sqlite3.Error as error:
        raise BackupFailed(f"The backup's database cannot be read: {error}.") from error


def _into_place(settings: Settings, draft: Path) -> None:
    """All of it, or nothing. The database's file comes last: what it names is there before it."""
    moves = [(draft / name, settings.home / name) for name in (*TREES, *FILES, "repos") if (draft / name).exists()]
    done: list[tuple[Path, Path]] = []
    with _beside_its_place(settings, draft) as database:
        try:
            for fresh, place in moves + database:
                if place.is_dir():
                    shutil.rmtree(place)  # empty: nothing is overwritten
                if (fresh, place) in database:
                    os.sync()
                fresh.rename(place)
                done.append((fresh, place))
        except BaseException:
            for fresh, place in reversed(done):
                with suppress(OSError):
                    place.rename(fresh)
            raise
    os.sync()


@contextmanager
def _beside_its_place(settings: Settings, draft: Path) -> Iterator[list[tuple[Path, Path]]]:
    """SQLite's file, which may belong on another disk than the home, where one renaming puts it into its place."""
    if not (draft / SQLITE).exists():
        yield []
        return
    place = _sqlite_file(settings)
    beside = place.with_name(f".{place.name}.{DRAFT}")
    try:
        shutil.move(draft / SQLITE, beside)
        _give(beside, settings.home.stat())
        yield [(beside, place)]
    finally:
        beside.unlink(missing_ok=True)


def _give_to_owner(home: Path) -> None:
    """All of it belongs to whom the home belongs."""
    owner = home.stat()
    for path in home.rglob("*"):
        _give(path, owner)


def _give(path: Path, owner: os.stat_result) -> None:
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _sqlite_file(settings: Settings) -> Path:
    return Path(settings.database_url.partition(":///")[2])


def _copy_sqlite(path: Path, copy: Path) -> None:
    """The database as it is at one moment; who writes meanwhile does not wait."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as live, closing(sqlite3.connect(copy)) as fresh:
        live.backup(fresh)
        fresh.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it


def _program(name: str) -> str:
    if shutil.which(name) is None:
        raise BackupFailed(f"{name} is not installed, without which PostgreSQL cannot be read: apt-get install postgresql-client")
    return name


def _libpq(address: str) -> tuple[str, dict[str, str]]:
    """The database's address without its password, which is in no command line, and the environment that has it."""
    url = make_url(address.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql")
    secret = url.password or url.query.get("password")
    env = {**os.environ, **({"PGPASSWORD": str(secret)} if secret else {})}
    bare = url.difference_update_query(["password"])
    bare = bare._replace(password=None)
    return bare.render_as_string(hide_password=False), env


def _files(root: Path) -> Iterator[Path]:
    """The regular files below; drafts of what is being written (their names begin with a dot) are none yet."""
    for directory, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "incoming")
        for name in sorted(files):
            path = Path(directory, name)
            if not name.startswith(".") and name not in _SCRATCH and path.is_file() and not path.is_symlink():
                yield path


@contextmanager
def _draft(target: Path) -> Iterator[BinaryIO | IO[bytes]]:
    """The file under a name of its own until it is whole and on the disk; or standard output, a pipe, a tape."""
    if str(target) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if target.exists() and not target.is_file():
        with target.open("wb") as device:
            yield device
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
        disk.give_name(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _opened(source: Path) -> Iterator[BinaryIO | IO[bytes]]:
    if str(source) == "-":
        yield sys.stdin.buffer
    else:
        with source.open("rb") as file:
            yield file


def _in_words(error: OSError | SQLAlchemyError, consequence: str, what: str) -> DavitError:
    if isinstance(error, SQLAlchemyError):
        return BackupFailed(f"{what}: {_reason(error).rstrip('.')}.")
    if error.errno in NO_ROOM:
        return DiskFull(consequence)
    where = f" ({error.filename})" if error.filename else ""
    return BackupFailed(f"{what}: {error.strerror or error}{where}.")


def _reason(error: SQLAlchemyError) -> str:
    """The database's own words."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
