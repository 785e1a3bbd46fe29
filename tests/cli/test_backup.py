"""``davit backup`` and ``davit restore``: what comes back, on both databases, and what is refused."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from builder.repositories import Repositories
from cli.host import backup
from cli.host import home as home_made
from foundation.errors import DavitError
from foundation.settings import settings
from slugs.store import Store
from state import accounts, apps, config, db, releases
from state.models import Account, App, Slug
from tests.builder.git_doors import clean_environment
from tests.runtime import rootfs
from tests.state.conftest import database, forget_caches  # noqa: F401

SECRET = {"SECRET": "hunter2hunter2"}


def silent(line: str) -> None:
    pass


@pytest.fixture
def elsewhere(database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:  # noqa: F811
    """Calling it makes this process another, empty Davit's, on the same kind of database."""
    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))

    def move() -> Path:
        if database == "postgresql":
            make: Callable[[], str] = request.getfixturevalue("postgres_server")
            monkeypatch.setenv("DATABASE_URL", make())
        monkeypatch.setenv("DAVIT_HOME", str(home))
        forget_caches()
        return home

    yield move
    shutil.rmtree(home)


def git(*words: str, cwd: Path) -> str:
    done = subprocess.run(["git", *words], cwd=cwd, env=clean_environment(), capture_output=True, check=True, text=True)
    return done.stdout.strip()


def pushed(work: Path, repository: Path, *, shallow: bool = False) -> str:
    """Two commits, a branch and a tag in an app's repository; with ``shallow`` only the second commit."""
    git("init", "-q", "-b", "main", cwd=work)
    for name in ("first", "second"):
        (work / name).write_text(name)
        git("add", "-A", cwd=work)
        git("commit", "-qm", name, cwd=work)
    git("tag", "v1", cwd=work)
    git("branch", "side", "HEAD" if shallow else "HEAD~1", cwd=work)
    source = work
    if shallow:
        source = work / "clone"
        git("clone", "-q", "--depth=1", "--no-single-branch", f"file://{work}", str(source), cwd=work)
        git("checkout", "-q", "main", cwd=source)
    git("-c", "receive.shallowUpdate=true", "fetch", "-q", "--update-shallow", str(source), "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", cwd=repository)
    return git("rev-parse", "HEAD", cwd=work)


def a_day(home: Path, work: Path) -> str:
    """An app with config vars, a release with a slug, and a repository; the slug's digest."""
    image = rootfs.app_image(work, {"index.html": "hello\n"})
    digest = Store(home / "slugs").put(image).digest
    with db.transaction() as session:
        accounts.ensure_owner(session)
        owner = accounts.create(session, None, "ann@example.com")
        app = apps.create(session, owner, "bright-bay")
        config.change(session, owner, app, SECRET)
        slug = Slug(app_id=app.id, digest=digest, size=1, stack="davit-13", stack_version="1", process_types={"web": "run"}, default_config={})
        session.add(slug)
        session.flush()
        release = releases.create(session, app, owner, kind="deploy", description="Deploy x", slug=slug)
        output = home / "releases" / release.id / "output"
        output.parent.mkdir(parents=True)
        output.write_text("it migrated\n")
        (home / "builds" / "b").mkdir(parents=True)
        (home / "builds" / "b" / "output").write_text("it built\n")
        (home / "builds" / "b" / "workspace.img").write_text("scratch")
        (home / "caches").mkdir()
        (home / "caches" / "x.img").write_text("cache")
        app_id = app.id
    (work / "work").mkdir()
    pushed(work / "work", Repositories(home / "repos").ensure(app_id))
    return digest


def facts() -> dict[str, object]:
    """What this process's Davit knows of the app."""
    with db.snapshot() as session:
        app = session.scalars(select(App).where(App.name == "bright-bay")).one()
        newest = releases.newest(session, app.id)
        assert newest is not None and newest.slug is not None and newest.slug.digest is not None
        Store(settings().home / "slugs").verify(newest.slug.digest)
        store = Repositories(settings().home / "repos")
        token = accounts.owner_token_file().read_text()
        return {
            "config": config.read(app), "version": newest.version, "refs": store.refs(app.id), "head": store.deployed_branch(app.id),
            "output": (settings().home / "releases" / newest.id / "output").read_text(), "token": token,
            "owner": accounts.find_token(session, token.strip()).account.email,
            "log": git("log", "--format=%H", "main", cwd=store.path(app.id)),
            "modes": {name: (settings().home / name).stat().st_mode & 0o777 for name in ("keys/config.keys", "owner-token", "keys", "repos")},
        }  # fmt: skip


def test_all_of_it_comes_back(
    elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    home_made.prepare(settings())
    before, url = facts(), settings().database_url
    assert before["config"] == SECRET and len(before["refs"]) == 3  # type: ignore[arg-type]
    file = tmp_path / "davit.tar"
    backup.backup(settings(), file, silent)
    assert file.stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path).count(file.name) == 1
    with tarfile.open(file) as archive:
        names = archive.getnames()
    assert not [name for name in names if "workspace" in name or "caches" in name or name.startswith(("run", "repos/"))], names
    assert not list(davit_home.glob(".backup-*"))
    home = elsewhere()
    backup.restore(settings(), file, silent)
    assert facts() == before
    assert not (home / backup.DRAFT).exists()
    monkeypatch.setenv("DATABASE_URL", url)
    forget_caches()
    with pytest.raises(DavitError, match="but another Davit's; nothing was changed"):  # a copy, with the original's database
        home_made.prepare(settings())


def test_what_was_restored_starts_as_a_davit_of_its_own(elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path) -> None:
    a_day(davit_home, tmp_path)
    home_made.prepare(settings())
    before, identity = facts(), (davit_home / "identity").read_text()
    backup.backup(settings(), tmp_path / "davit.tar", silent)
    home = elsewhere()
    backup.restore(settings(), tmp_path / "davit.tar", silent)
    home_made.prepare(settings())  # as `davit up` does
    assert facts() == before and (home / "identity").read_text() != identity


def test_a_backup_of_before_there_were_identities_gets_one(elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path) -> None:
    a_day(davit_home, tmp_path)
    backup.backup(settings(), tmp_path / "davit.tar", silent)
    home = elsewhere()
    backup.restore(settings(), tmp_path / "davit.tar", silent)
    assert not (home / "identity").exists()
    home_made.prepare(settings())
    assert (home / "identity").exists() and facts()["config"] == SECRET


def test_it_goes_through_pipes(elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path) -> None:
    a_day(davit_home, tmp_path)
    before = facts()
    words = [sys.executable, "-m", "cli.main"]
    root = Path(__file__).parents[2]
    made = subprocess.run([*words, "backup", "-"], cwd=root, env=os.environ, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    elsewhere()
    done = subprocess.run([*words, "restore", "-"], cwd=root, env=os.environ, input=made.stdout, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert facts() == before


def test_what_is_written_meanwhile_does_not_tear_it(elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path) -> None:
    """Apps are made as fast as it goes while the backup is taken: what came back is what was there at one moment."""
    a_day(davit_home, tmp_path)
    over, made = threading.Event(), []

    def write() -> None:
        while not over.is_set():
            with db.transaction() as session:
                owner = session.scalars(select(Account).where(Account.email == "ann@example.com")).one()
                apps.create(session, owner, f"app-{len(made)}")
                session.execute(text("UPDATE accounts SET name = :name WHERE id = :id"), {"name": str(len(made)), "id": owner.id})
            made.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        file = tmp_path / "davit.tar"
        for _ in range(3):
            backup.backup(settings(), file, silent)
    finally:
        over.set()
        writer.join(60)
    elsewhere()
    backup.restore(settings(), file, silent)
    with db.snapshot() as session:
        owner = session.scalars(select(Account).where(Account.email == "ann@example.com")).one()
        count = len(list(session.scalars(select(App.id).where(App.name.like("app-%")))))
        assert count == int(owner.name or 0) + 1 > 0


def test_nothing_is_overwritten(database: str, davit_home: Path, tmp_path: Path) -> None:  # noqa: F811
    a_day(davit_home, tmp_path)
    before = facts()
    backup.backup(settings(), tmp_path / "davit.tar", silent)
    with pytest.raises(backup.BackupFailed, match=r"There is a Davit in .* already"):
        backup.restore(settings(), tmp_path / "davit.tar", silent)
    assert facts() == before


def test_a_database_that_is_not_empty_is_left_alone(
    elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    backup.backup(settings(), tmp_path / "davit.tar", silent)
    url = settings().database_url
    elsewhere()
    monkeypatch.setenv("DATABASE_URL", url)
    forget_caches()
    with pytest.raises(backup.BackupFailed, match=r"is not empty|There is a Davit in .* already"):
        backup.restore(settings(), tmp_path / "davit.tar", silent)


def full(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """The disk is full whenever something is to get one of these names."""
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if Path(target).name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)


@pytest.fixture
def saved(elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A backup, and another Davit's empty home, in which this process is."""
    a_day(davit_home, tmp_path)
    home_made.prepare(settings())
    backup.backup(settings(), tmp_path / "davit.tar", silent)
    return tmp_path / "davit.tar", elsewhere()


LATE = {"sqlite": "so nothing was restored", "postgresql": "only the database was filled: .*createdb"}


def files_in(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_a_restore_that_fails_late_puts_nothing_in_its_place(
    database: str, saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    file, home = saved
    for name in ("slugs", "owner-token", "davit.db") if database == "sqlite" else ("owner-token",):
        with monkeypatch.context() as patch:
            full(patch, name)
            with pytest.raises(DavitError, match=LATE[database]):
                backup.restore(settings(), file, silent)
        assert files_in(home) == []
    if database == "sqlite":
        backup.restore(settings(), file, silent)  # into the same home: nothing is in its way
        assert facts()["config"] == SECRET


def test_what_cannot_be_taken_back_is_named(database: str, saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    file, home = saved
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if Path(target).name == "owner-token" or path == home / "keys":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(DavitError, match=r"only a part is there \((the database, )?keys\): restore again, into .*an empty DAVIT_HOME"):
        backup.restore(settings(), file, silent)
    assert (home / "keys" / "config.keys").exists()


def test_a_database_that_refuses_its_new_identity_is_a_sentence(
    database: str, elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    home_made.prepare(settings())
    with db.engine().begin() as connection:
        if database == "sqlite":
            connection.execute(text("CREATE TRIGGER no BEFORE UPDATE ON homes BEGIN SELECT RAISE(ABORT, 'not now'); END"))
        else:
            connection.execute(text("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$"))
            connection.execute(text("CREATE TRIGGER no BEFORE UPDATE ON homes FOR EACH ROW EXECUTE FUNCTION no()"))
    backup.backup(settings(), tmp_path / "davit.tar", silent)
    home = elsewhere()
    with pytest.raises(backup.BackupFailed, match="not now") as refused:
        backup.restore(settings(), tmp_path / "davit.tar", silent)
    assert ("only the database was filled" in refused.value.message) == (database == "postgresql")
    assert files_in(home) == []


def test_what_is_restored_belongs_to_whom_the_home_belongs(
    database: str, saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    file, home = saved
    apart = tmp_path / "apart"
    apart.mkdir()
    if database == "sqlite":  # its file may be on another disk
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{apart}/davit.db")
        forget_caches()
    os.chown(home, 12345, 12345)
    backup.restore(settings(), file, silent)
    assert {path.stat().st_uid for path in [*home.rglob("*"), *apart.iterdir()]} == {12345}
    assert [path.name for path in apart.iterdir()] == (["davit.db"] if database == "sqlite" else [])


def test_a_database_that_is_away_is_a_sentence(davit_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:hunter2@127.0.0.1:1/davit")
    forget_caches()
    with pytest.raises(backup.BackupFailed, match="that DATABASE_URL names cannot be read") as refused:
        backup.restore(settings(), tmp_path / "davit.tar", silent)
    assert "hunter2" not in refused.value.message
    forget_caches()


def test_half_an_archive_changes_nothing(elsewhere: Callable[[], Path], davit_home: Path, tmp_path: Path) -> None:
    a_day(davit_home, tmp_path)
    file = tmp_path / "davit.tar"
    backup.backup(settings(), file, silent)
    whole = file.read_bytes()
    home = elsewhere()
    with tarfile.open(file) as archive:
        last = archive.getmembers()[-1].offset
    for cut in (whole[:1000], whole[: len(whole) // 2], whole[:last], b"no archive at all" * 100, b""):
        file.write_bytes(cut)
        with pytest.raises(backup.BackupFailed, match="is no backup of Davit's"):
            backup.restore(settings(), file, silent)
        assert not any(path.is_file() for path in home.rglob("*"))
    file.write_bytes(whole)
    backup.restore(settings(), file, silent)
    assert facts()["config"] == SECRET


def _with(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "kind"), [
    ("keys/../../up", tarfile.REGTYPE), ("/etc/up", tarfile.REGTYPE), ("run/x", tarfile.REGTYPE), ("keys/link", tarfile.SYMTYPE),
    ("keys/link", tarfile.LNKTYPE), ("keys/device", tarfile.CHRTYPE),
])  # fmt: skip
def test_an_archive_of_somebody_elses_writes_nowhere(
    davit_home: Path, tmp_path: Path, name: str, kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    forget_caches()
    file = tmp_path / "davit.tar"
    file.write_bytes(_with(name, kind))
    with pytest.raises(backup.BackupFailed, match="no backup"):
        backup.restore(settings(), file, silent)
    assert not any(path.is_file() or path.is_symlink() for path in davit_home.rglob("*"))
    forget_caches()


def test_another_kind_of_database_is_named(
    database: str, davit_home: Path, tmp_path: Path, postgres_server: Callable[[], str], monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    a_day(davit_home, tmp_path)
    file = tmp_path / "davit.tar"
    backup.backup(settings(), file, silent)
    if database == "sqlite":
        monkeypatch.setenv("DATABASE_URL", postgres_server())
    else:
        monkeypatch.delenv("DATABASE_URL")
    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    monkeypatch.setenv("DAVIT_HOME", str(home))
    forget_caches()
    with pytest.raises(DavitError, match="DATABASE_URL"):
        backup.restore(settings(), file, silent)
    assert not any(path.is_file() for path in home.rglob("*"))
    shutil.rmtree(home)


def test_a_file_that_cannot_be_written_is_one_sentence_and_nothing_is_left(database: str, davit_home: Path, tmp_path: Path) -> None:  # noqa: F811
    a_day(davit_home, tmp_path)
    with pytest.raises(DavitError, match=r"could not be written: No such file"):
        backup.backup(settings(), tmp_path / "nowhere" / "davit.tar", silent)
    with pytest.raises(DavitError, match="disk is full"):
        backup.backup(settings(), Path("/dev/full"), silent)


def test_a_home_without_a_davit_is_one_sentence(davit_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    forget_caches()
    with pytest.raises(backup.BackupFailed, match="There is no Davit in"):
        backup.backup(settings(), tmp_path / "davit.tar", silent)
    forget_caches()


def test_a_password_of_the_database_is_in_no_command_line() -> None:
    for url in ("postgres://ann:hunter2@host:5432/davit?sslmode=require", "postgresql://ann@host:5432/davit?sslmode=require&password=hunter2"):
        bare, env = backup._libpq(url)
        assert bare == "postgresql://ann@host:5432/davit?sslmode=require" and env["PGPASSWORD"] == "hunter2"


def test_repositories_of_shallow_clones_and_without_a_ref_come_back(tmp_path: Path) -> None:
    work, fresh = tmp_path / "work", Repositories(tmp_path / "fresh")
    work.mkdir()
    store = Repositories(tmp_path / "repos")
    tip = pushed(work, store.ensure("shallow"), shallow=True)
    store.ensure("empty")
    assert (store.path("shallow") / "shallow").exists() and not store.write_bundle("empty", tmp_path / "none")
    assert store.write_bundle("shallow", tmp_path / "bundle")
    fresh.read_bundle("shallow", tmp_path / "bundle", head=b"refs/heads/main", shallow=store.path("shallow") / "shallow")
    fresh.read_bundle("empty", None, head=b"refs/heads/master", shallow=None)
    assert fresh.refs("shallow") == store.refs("shallow") and fresh.current("shallow", b"refs/heads/main").decode() == tip
    assert git("log", "--format=%H", "main", cwd=fresh.path("shallow")) == tip
    assert git("fsck", "--connectivity-only", cwd=fresh.path("shallow")) == ""
    assert fresh.refs("empty") == {} and fresh.deployed_branch("empty") == b"refs/heads/master"
