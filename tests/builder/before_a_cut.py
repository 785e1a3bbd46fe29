"""Does what a push and its neighbours do, in a Davit of its own, says what was told as done, and stands still: the power goes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys

from builder import output, repositories
from builder.quarantine import ZERO, Move
from foundation.authority import Authority
from foundation.settings import settings
from runtime import records
from state import accounts, apps, builds, config, db, releases, signatures, vault
from state.models import Account, App, Dyno, Slug
from tests.builder.git_doors import clean_environment


def main() -> None:
    """Standard output has one line of JSON when all of it is done."""
    home = settings().home
    (home / "run").mkdir()
    db.upgrade()
    vault.ensure_keys()
    signatures.ensure_key()
    Authority(home / "keys" / "ca.pem")
    with db.transaction() as session:
        accounts.ensure_owner(session)
        account = accounts.create(session, None, "me@example.com", admin=True)
        app = apps.create(session, account, "hello")
    commit, pack = _commit()
    build_id = _push(app.id, account.id, commit, pack)
    released = _release(app.id, account.id, build_id, commit)
    told = output.Output(build_id)
    told.finish(output.Outcome("succeeded", None, None, 2, None))
    told.close()
    waiting = _push(app.id, account.id, commit, pack, old=commit)
    records.insert(Dyno(app_id=app.id, release_id=released, type="web", name="web.1", size="eco", state="up", command="x"))
    with db.transaction() as session:  # the last thing that is told as done
        config.change(session, session.get(Account, account.id), session.get(App, app.id), {"NEW": "1"})  # type: ignore[arg-type]
    print(json.dumps({"app": app.id, "build": build_id, "waiting": waiting, "commit": commit}), flush=True)
    sys.stdin.read()


def _commit() -> tuple[str, bytes]:
    work = os.environ["WORK"]

    def git(*words: str, given: bytes | None = None) -> bytes:
        return subprocess.run(["git", *words], cwd=work, env=clean_environment(), input=given, capture_output=True, check=True).stdout

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "x")
    commit = git("rev-parse", "HEAD").decode().strip()
    return commit, git("pack-objects", "--stdout", "--revs", "-q", given=commit.encode() + b"\n")


def _push(app_id: str, account_id: str, commit: str, pack: bytes, old: str = ZERO.decode()) -> str:
    with repositories.repositories().receiving(app_id) as quarantine:
        quarantine.index(io.BytesIO(pack).read, 1 << 30, lambda: None, lambda _: None)
        with db.transaction() as session:
            app, account = session.get(App, app_id), session.get(Account, account_id)
            assert app and account
            build = builds.create(session, app, account, commit=commit, ref="refs/heads/main", old_sha=old)
            quarantine.keep_for(app_id, build.id, Move(b"refs/heads/main", old.encode(), commit.encode()))
    return build.id


def _release(app_id: str, account_id: str, build_id: str, commit: str) -> str:
    with db.transaction() as session:
        app, account = session.get(App, app_id), session.get(Account, account_id)
        assert app and account
        slug = Slug(
            app_id=app.id, digest="sha256:" + "0" * 64, size=1, stack="davit-13", stack_version="1", commit=commit,
            process_types={"web": "x"}, default_config={}, healthchecks={},
        )  # fmt: skip
        session.add(slug)
        session.flush()
        release = releases.create(session, app, account, kind="deploy", description="Deploy", slug=slug)
        builds.releasing(session, build_id, slug, release)
    records.begin_release(release.id, "1")
    records.succeed(release.id)
    repositories.move_ref(app_id, "refs/heads/main", ZERO.decode(), commit, build_id)
    with db.transaction() as session:
        builds.succeed(session, build_id)
    with contextlib.suppress(FileNotFoundError):
        repositories.unpin(build_id)
    return release.id


if __name__ == "__main__":
    main()
