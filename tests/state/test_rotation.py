"""A new key for what is sealed: whole, for running processes, and after being killed at any step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import LargeBinary, inspect, select, update

from foundation.clock import now
from foundation.errors import DavitError
from state import accounts, apps, config, db, releases, rotation, vault
from state.models import App, AppSetup, AuditEvent, Base, LogDrain, OAuthClient, Release, SecondFactor, SniEndpoint, Webhook

SECRET = {"SECRET": "hunter2hunter2"}


def silent(line: str) -> None:
    pass


def fill() -> None:
    """At least one row of every table with a sealed column."""
    with db.transaction() as session:
        owner = accounts.create(session, None, "ann@example.com")
        app = apps.create(session, owner, "bright-bay")
        config.change(session, owner, app, SECRET)
        session.add(SecondFactor(account_id=owner.id, secret=vault.seal(SECRET)))
        session.add(OAuthClient(account_id=owner.id, name="c", redirect_uri="https://example.com", secret=vault.seal(SECRET)))
        session.add(Webhook(app_id=app.id, url="https://example.com", include=[], level="sync", credentials=vault.seal(SECRET)))
        session.add(LogDrain(app_id=app.id, token="d.1", url=vault.seal(SECRET)))
        session.add(SniEndpoint(app_id=app.id, name="a", certificate_chain="", private_key=vault.seal(SECRET)))
        session.add(AppSetup(app_id=app.id, account_id=owner.id, source_url="", overrides=vault.seal(SECRET)))


def everything() -> list[tuple[str, dict[str, str]]]:
    """What is sealed, in the clear."""
    with db.snapshot() as session:
        return [
            (f"{table.__tablename__}.{column}.{id}", vault.reveal(sealed))
            for table, column in vault.SEALED
            for id, sealed in session.execute(select(table.id, getattr(table, column)).order_by(table.id))
        ]


def keys() -> list[bytes]:
    return vault.key_file().read_bytes().split()


def forget_what_the_process_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "_loaded", None)


def test_no_sealed_column_is_forgotten() -> None:
    """Bytes in a table are sealed; who adds a column of bytes for something else says so here."""
    columns = {
        (mapper.class_, attribute.key)
        for mapper in Base.registry.mappers
        for attribute in inspect(mapper).column_attrs
        if isinstance(attribute.columns[0].type, LargeBinary)
    }
    assert columns == set(vault.SEALED)


def test_every_secret_is_encrypted_anew_and_nothing_else_changes(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    with db.snapshot() as session:
        touched = list(session.execute(select(App.updated_at)))
        tables = {table for table, _ in vault.SEALED if session.query(table).count()}
    assert tables == {table for table, _ in vault.SEALED}, "fill() forgot one"
    before, old = everything(), keys()
    assert rotation.rotate(silent) == len(before)
    forget_what_the_process_knew(monkeypatch)
    assert everything() == before
    assert len(keys()) == 1 and keys() != old
    assert vault.key_file().stat().st_mode & 0o777 == 0o600
    with db.snapshot() as session:
        assert list(session.execute(select(App.updated_at))) == touched
        assert session.query(AuditEvent).filter_by(action="config:rotate-keys").one().details == {"values": len(before)}


def test_many_rows_are_changed_in_small_transactions(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    fill()
    with db.transaction() as session:
        owner = session.scalars(select(App)).one().owner
        for number in range(4):
            apps.create(session, owner, f"bright-bay-{number}")
    before = everything()
    assert rotation.rotate(silent) == len(before)
    forget_what_the_process_knew(monkeypatch)
    assert everything() == before


class Killed(BaseException):
    """Nothing in Davit catches it."""


def kill_at(nth: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The ``nth`` of the moments before and after every step ends the procedure; the answer counts the moments."""
    seen = [0]

    def moment() -> None:
        seen[0] += 1
        if seen[0] == nth:
            raise Killed

    def around(place: Any, name: str) -> None:
        real = getattr(place, name)

        def step(*args: Any) -> Any:
            moment()
            answer = real(*args)
            moment()
            return answer

        monkeypatch.setattr(place, name, step)

    for place, name in ((vault, "_write_keys"), (rotation, "_reseal_batch"), (rotation, "_fresh"), (rotation, "_finished"), (rotation, "_is_done")):
        around(place, name)
    return lambda: seen[0]


def test_killed_at_any_step_everything_is_readable_and_the_next_run_ends_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    before, nth, ended = everything(), 0, False
    while not ended:
        nth += 1
        old = keys()
        with monkeypatch.context() as patched:
            kill_at(nth, patched)
            try:
                rotation.rotate(silent)
                ended = True
            except Killed:
                pass
        forget_what_the_process_knew(monkeypatch)
        assert everything() == before, f"after the moment {nth}"
        rotation.rotate(silent)
        forget_what_the_process_knew(monkeypatch)
        assert everything() == before and len(keys()) == 1 and keys() != old, f"after the moment {nth}"
    assert nth > 40


@pytest.mark.parametrize("step", ["Made a new key", "Encrypted apps.config", "Encrypted app_setups.overrides"])
def test_a_process_that_is_killed_leaves_everything_readable(
    database: str, davit_home: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill()
    before = everything()
    program = (
        "import os, signal, sys\nfrom state import rotation\n"
        "rotation.rotate(lambda line: os.kill(os.getpid(), signal.SIGKILL) if line.startswith(sys.argv[1]) else None)"
    )
    ended = subprocess.run([sys.executable, "-c", program, step], cwd=Path(__file__).parents[2], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(keys()) == 2 and everything() == before
    rotation.rotate(silent)
    forget_what_the_process_knew(monkeypatch)
    assert everything() == before and len(keys()) == 1


def test_what_others_write_meanwhile_with_the_old_key_is_waited_for(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed before there was a new key, committed while the rotation is at its end: the old key must not go before."""
    fill()
    with db.snapshot() as session:
        app = session.scalars(select(App)).one()
    sealed, go, looked = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with db.transaction() as session:
            value = vault.seal(SECRET | {"LATE": "1"})
            sealed.set()
            assert go.wait(60)
            session.execute(update(App).where(App.id == app.id).values(config=value))

    real = rotation._begin

    def begin(say: Callable[[str], None]) -> None:
        writer.start()
        assert sealed.wait(60)
        real(say)
        threading.Thread(target=lambda: (looked.wait(1), go.set())).start()

    def finished(count: int) -> bool:
        looked.set()
        return real_finished(count)

    real_finished = rotation._finished
    writer = threading.Thread(target=other)
    monkeypatch.setattr(rotation, "_begin", begin)
    monkeypatch.setattr(rotation, "_finished", finished)
    rotation.rotate(silent)
    writer.join(60)
    forget_what_the_process_knew(monkeypatch)
    assert dict(everything())[f"apps.config.{app.id}"]["LATE"] == "1"
    assert len(keys()) == 1


def test_what_was_copied_with_the_old_key_behind_the_back_of_the_rotation_is_found(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill()
    with db.snapshot() as session:
        old = session.scalars(select(App)).one().config
    real, rounds = rotation._reseal, []

    def reseal(say: Callable[[str], None]) -> int:
        count = real(say)
        if not rounds:
            with db.transaction() as session:
                app = session.scalars(select(App)).one()
                releases.create(session, app, app.owner, kind="config", description="copied", config=old)
        rounds.append(count)
        return count

    monkeypatch.setattr(rotation, "_reseal", reseal)
    rotation.rotate(silent)
    assert rounds[1:] == [1]
    forget_what_the_process_knew(monkeypatch)
    assert everything()


def test_others_write_while_every_row_is_looked_at(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held alone is short: only what was written of late is looked at then."""
    monkeypatch.setattr(rotation, "BATCH", 2)
    monkeypatch.setattr(rotation, "LONGEST_WRITE", timedelta(0))
    fill()
    real_look, real_last = rotation._is_done, rotation._is_done_since
    seen: list[str] = []

    def write() -> None:
        with db.transaction() as session:
            releases.set_phase(session, "none", "boot")
        seen.append("others wrote")

    def look(table: Any, column: str) -> bool:
        writer = threading.Thread(target=write)

        def newest(sealed: bytes) -> bool:
            if writer.ident is None:
                writer.start()
                writer.join(60)
            return True

        with monkeypatch.context() as patched:
            patched.setattr(vault, "is_newest", newest)
            return real_look(table, column)

    def last(session: Any, table: Any, column: str, since: Any) -> bool:
        with monkeypatch.context() as patched:
            patched.setattr(vault, "is_newest", lambda sealed: seen.append("looked at alone") or True)
            return real_last(session, table, column, since)

    monkeypatch.setattr(rotation, "_is_done", look)
    monkeypatch.setattr(rotation, "_is_done_since", last)
    rotation.rotate(silent)
    assert seen == ["others wrote"] * len(vault.SEALED), seen
    assert len(keys()) == 1


def test_what_was_copied_with_the_old_key_behind_the_back_of_the_last_look_is_found(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that began with the old key ends when every row has been looked at, and before the others are kept out."""
    fill()
    with db.snapshot() as session:
        old = session.scalars(select(App)).one().config
    real, copied = rotation._is_done_since, []

    def looked_at_all(table: Any, column: str) -> bool:
        done = real_look(table, column)
        if (table, column) == vault.SEALED[-1] and not copied:
            copied.append(1)
            with db.transaction() as session:
                app = session.scalars(select(App)).one()
                releases.create(session, app, app.owner, kind="config", description="copied", config=old)
        return done

    found: list[bool] = []

    def since(session: Any, table: Any, column: str, moment: Any) -> bool:
        found.append(real(session, table, column, moment))
        return found[-1]

    real_look = rotation._is_done
    monkeypatch.setattr(rotation, "_is_done", looked_at_all)
    monkeypatch.setattr(rotation, "_is_done_since", since)
    rotation.rotate(silent)
    assert False in found and copied
    forget_what_the_process_knew(monkeypatch)
    assert everything()


def test_a_process_that_holds_the_keys_knows_the_new_one_and_what_it_had_read(database: str) -> None:
    fill()
    with db.snapshot() as session:
        read = session.scalars(select(Release).where(Release.version == 2)).one().config
    assert vault.reveal(read) == SECRET
    program = "from state import rotation\nrotation.rotate(lambda line: None)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], env=os.environ, check=True)
    assert vault.is_newest(vault.seal(SECRET)) and len(keys()) == 1
    assert vault.reveal(read) == SECRET, "read before, decrypted after"
    assert everything()


def test_a_damaged_value_keeps_the_old_keys_and_is_named(database: str) -> None:
    fill()
    with db.transaction() as session:
        row = session.scalars(select(LogDrain)).one()
        whole, row.url, row.updated_at = row.url, b"damaged", now()
    with pytest.raises(vault.VaultError, match=f"{row.id} of log_drains.url"):
        rotation.rotate(silent)
    assert len(keys()) == 2
    with db.transaction() as session:
        session.execute(update(LogDrain).values(url=whole))
    rotation.rotate(silent)
    assert len(keys()) == 1 and everything()


def test_two_rotations_do_not_meet(database: str) -> None:
    with vault.changing_keys(), pytest.raises(DavitError, match="at work"):
        rotation.rotate(silent)


def test_without_a_key_file_it_says_so(database: str) -> None:
    vault.key_file().unlink()
    with pytest.raises(vault.VaultError, match="missing"):
        rotation.rotate(silent)


def test_the_command_does_it_on_the_host(database: str) -> None:
    fill()
    before, old = everything(), keys()
    words = [sys.executable, "-m", "cli.main", "config:rotate-keys"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Done: {len(before)} values" in done.stdout
    assert keys() != old and everything() == before
    vault.key_file().unlink()
    done = subprocess.run(words, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Error: The key file") and len(done.stderr.splitlines()) == 1
