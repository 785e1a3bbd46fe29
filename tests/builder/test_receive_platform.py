"""The git doors' own platform against the real database, queue and output file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builder import output
from builder.platform import Davit, Pusher
from builder.queue import queue
from foundation.errors import Forbidden, NotFound, Unauthorized
from state import accounts, apps, builds, db
from state.models import Account, Build, Collaborator
from tests.state.conftest import database  # noqa: F401

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def people() -> dict[str, Account]:
    with db.transaction() as session:
        return {name: accounts.create(session, None, f"{name}@example.com") for name in ("alice", "bob", "carol")}


def pusher(account: Account) -> Pusher:
    return Pusher(account.id, account.email)


def test_tokens_and_keys_say_who_it_is(people: dict[str, Account], tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", tmp_path / "key"], check=True)
    public = (tmp_path / "key.pub").read_text()
    with db.transaction() as session:
        token, _ = accounts.issue_token(session, people["alice"], "test")
        accounts.add_key(session, people["alice"], public)
    assert Davit().by_token(token) == pusher(people["alice"])
    assert Davit().by_key(" ".join(public.split()[:2])) == pusher(people["alice"])
    assert Davit().by_key("ssh-ed25519 AAAA") is None
    with pytest.raises(Unauthorized):
        Davit().by_token("nonsense\udc80")


def test_absent_and_foreign_apps_are_the_same_and_a_viewer_is_told(people: dict[str, Account]) -> None:
    with db.transaction() as session:
        app = apps.create(session, people["alice"], "hers")
        session.add(Collaborator(app_id=app.id, account_id=people["carol"].id, permissions=["view"]))
    assert Davit().app(pusher(people["alice"]), "hers").app_id == app.id
    sentences = set()
    for name in ("hers", "nosuch"):
        with pytest.raises(NotFound) as error:
            Davit().app(pusher(people["bob"]), name)
        sentences.add(error.value.message)
    assert len(sentences) == 1
    with pytest.raises(Forbidden):
        Davit().app(pusher(people["carol"]), "hers")


def test_a_build_is_asked_for_queued_followed_and_its_outcome_told(people: dict[str, Account]) -> None:
    platform, alice = Davit(), pusher(people["alice"])
    with db.transaction() as session:
        apps.create(session, people["alice"], "hers")
    target = platform.app(alice, "hers")
    kept: list[str] = []
    build_id = platform.build(alice, target, commit="1" * 40, ref="refs/heads/main", old="0" * 40, keep=kept.append)
    assert kept == [build_id] and platform.standing(build_id) == "pending"
    platform.start(target.app_id)
    assert build_id in queue().job_ids
    queue().empty()
    end = output.Output(build_id)
    end.say("-----> Building")
    chunks = platform.follow(build_id)
    assert next(chunks) == b"-----> Building\n"
    with db.transaction() as session:
        builds.fail(session, build_id, "release phase failed", "It said no.")
    end.finish(output.Outcome("failed", "release phase failed", "It said no."))
    end.close()
    assert b"".join(chunk or b"" for chunk in chunks) == b""
    assert platform.outcome(build_id).reason == "release phase failed" and not platform.outcome(build_id).succeeded
    assert platform.standing("no-such-build") is None


def test_no_build_is_asked_for_when_its_commit_cannot_be_kept(people: dict[str, Account]) -> None:
    platform, alice = Davit(), pusher(people["alice"])
    with db.transaction() as session:
        apps.create(session, people["alice"], "hers")
    target = platform.app(alice, "hers")

    def keep(build_id: str) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        platform.build(alice, target, commit="1" * 40, ref="refs/heads/main", old="0" * 40, keep=keep)
    with db.snapshot() as session:
        assert session.query(Build).count() == 0
