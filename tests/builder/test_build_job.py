"""The build job from a commit to a serving release: real git, database, Redis and build program; the runtime process's
sandbox and its bringing up of releases are played by the test."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from builder import job, output, queue, repositories, setup, slot, worker
from builder.platform import Davit
from builder.sandbox import Ended, Inlet
from foundation.errors import Unavailable
from foundation.settings import settings
from state import accounts, apps, builds, config, db, notify, releases, setups, vault
from state.models import Account, App, AppSetup, Build, Formation, Release, Slug
from tests.builder.building import LocalSandbox, build_root
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

PACK = {"detect": "echo Test", "compile": "echo compiled", "release": "echo 'default_process_types: {web: serve, worker: work}'"}


@pytest.fixture
def davit(davit_home: Path, migrated_sqlite: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty Davit on SQLite; this process is its builder."""
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.setenv("REDIS_URL", redis_server)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (davit_home / "run").mkdir()
    for cached in (settings, db.engine, notify.redis_client):
        cached.cache_clear()
    redis.Redis.from_url(redis_server).flushdb()
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    vault.ensure_keys()
    yield davit_home
    db.engine().dispose()
    for cached in (settings, db.engine, notify.redis_client):
        cached.cache_clear()


class Pushed:
    """An app with commits, and builds of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with db.transaction() as session:
            self.account = accounts.create(session, None, "me@example.com", admin=True)
            self.app = apps.create(session, self.account, "hello")
        self.pack = home / "pack"
        self.set_pack(**PACK)
        self.repository = repositories.repositories().ensure(self.app.id)

    def set_pack(self, **scripts: str) -> None:
        (self.pack / "bin").mkdir(parents=True, exist_ok=True)
        for name, text in scripts.items():
            (self.pack / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")

    def commit(self, **files: str) -> str:
        env = {**os.environ, "GIT_DIR": str(self.repository), "GIT_INDEX_FILE": str(self.home / "index")}
        for kind in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{kind}_NAME": "x", f"GIT_{kind}_EMAIL": "x@x"}

        def git(*words: str, text: str | None = None) -> str:
            return subprocess.run(["git", *words], input=text, env=env, check=True, capture_output=True, text=True).stdout.strip()

        for name, content in files.items():
            git("update-index", "--add", "--cacheinfo", f"100644,{git('hash-object', '-w', '--stdin', text=content)},{name}")
        return git("commit-tree", git("write-tree"), "-m", "x")

    def build(self, commit: str, ref: str | None = "refs/heads/main", **more: object) -> str:
        with db.transaction() as session:
            app = session.get(App, self.app.id)
            account = session.get(Account, self.account.id)
            assert app and account
            more.setdefault("buildpacks", [f"file://{self.pack}"])
            row = builds.create(session, app, account, commit=commit, ref=ref, old_sha="0" * 40 if ref else None, **more)  # type: ignore[arg-type]
        return row.id

    def row(self, build_id: str) -> Build:
        with db.snapshot() as session:
            row = session.get(Build, build_id)
        assert row
        return row

    def run(self, build_id: str, *, program: tuple[str, ...] | None = None, sandbox: type[LocalSandbox] = LocalSandbox, **more: int) -> str:
        """Work the build as the worker does; returns what it printed."""

        @contextmanager
        def opened(build: str, app_id: str, app: str) -> Iterator[LocalSandbox]:
            with build_root() as root:
                one = sandbox(root, program) if program else sandbox(root)
                try:
                    yield one
                finally:
                    one.close()

        with db.snapshot() as session:
            row, app = session.get(Build, build_id), session.get(App, self.app.id)
        assert row and app
        with queue.held(build_id) as free:
            assert free
            job.BuildJob(row, app, open=opened, **more).run()
        return self.output(build_id)

    def output(self, build_id: str) -> str:
        return b"".join(part for part in output.follow(build_id) if part).decode(errors="replace")


@pytest.fixture
def pushed(davit: Path) -> Pushed:
    return Pushed(davit)


@pytest.fixture
def runtime(pushed: Pushed) -> Iterator[Callable[..., None]]:
    """Plays the runtime process: pending releases succeed, or as told."""
    verdict: list[tuple[str, str] | None] = [None]
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.02):
            with db.snapshot() as session:
                pending = releases.next_pending(session, pushed.app.id)
            if pending is None:
                continue
            with db.transaction() as session:
                row = session.get(Release, pending.id)
                assert row
                if releases.RELEASE_TYPE in row.process_types:
                    printed = settings().home / "releases" / row.id / "output"
                    printed.parent.mkdir(parents=True, exist_ok=True)
                    printed.write_bytes(b"migrating\nno such table\n")
                if verdict[0] is None:
                    releases.succeed(session, row)
                else:
                    releases.fail(session, row, *verdict[0])

    thread = threading.Thread(target=serve)
    thread.start()

    def fail_with(kind: str, message: str) -> None:
        verdict[0] = (kind, message)

    yield fail_with
    stop.set()
    thread.join()


def ref(pushed: Pushed, name: str = "refs/heads/main") -> str:
    return repositories.repositories().current(pushed.app.id, name.encode()).decode()


def test_buildpack_url_names_no_directory_of_the_host_not_even_for_an_administrator(
    pushed: Pushed, runtime: Callable[..., None]
) -> None:
    """Who may set config vars is not asked whether they may read this host's files."""
    with db.transaction() as session:
        app, account = session.get(App, pushed.app.id), session.get(Account, pushed.account.id)
        assert app and account and account.is_admin
        config.change(session, account, app, {"BUILDPACK_URL": f"file://{pushed.pack}"})
    build_id = pushed.build(pushed.commit(Procfile="web: mine\n"), buildpacks=[])
    printed = pushed.run(build_id)
    assert "is a directory of the host: only an administrator may choose it, as the app's buildpack" in printed
    assert pushed.row(build_id).status == "failed" and "compiled" not in printed


@pytest.mark.row("slug-large")
def test_a_large_slug_draws_a_warning_and_is_released(pushed: Pushed, runtime: Callable[..., None]) -> None:
    printed = pushed.run(pushed.build(pushed.commit(Procfile="web: mine\n")), warn_from=1 << 20)
    assert_says("slug-large", printed)
    assert "!     The slug is 1 MB" in printed and "deployed to Davit" in printed


def test_a_build_becomes_a_release_and_then_the_ref_moves(pushed: Pushed, runtime: Callable[..., None]) -> None:
    commit = pushed.commit(Procfile="web: mine\n")
    build_id = pushed.build(commit)
    printed = pushed.run(build_id)
    assert printed.splitlines() == [
        "-----> Building on the Davit-13 stack",
        f"-----> Using buildpack: file://{pushed.pack}",
        "-----> Test app detected",
        "compiled",
        "-----> Discovering process types",
        "       Procfile declares types -> web",
        "       Default types for buildpack -> worker",
        "-----> Compressing...",
        "       Done: 1.2M",
        "-----> Launching...",
        "       Released v1" if "Released v1\n" in printed else "       Released v2",
        "       http://hello.localhost:8080/ deployed to Davit",
    ]
    row = pushed.row(build_id)
    assert (row.status, row.phase) == ("succeeded", "done") and ref(pushed) == commit
    with db.snapshot() as session:
        slug = session.get(Slug, row.slug_id)
        release = session.get(Release, row.release_id)
    assert slug and release and slug.process_types == {"web": "mine", "worker": "work"}
    assert release.description == f"Deploy {commit[:8]}" and slug.commit == commit
    ended = output.outcome(build_id)
    assert ended and (ended.status, ended.version, ended.url) == ("succeeded", release.version, "http://hello.localhost:8080/")


def test_what_is_said_of_a_unikernels_line_knows_the_config_vars(pushed: Pushed, runtime: Callable[..., None]) -> None:
    with db.transaction() as session:
        account, app = session.get_one(Account, pushed.account.id), session.get_one(App, pushed.app.id)
        config.change(session, account, app, {"SET": "1"})
        for type in ("web", "clock"):
            session.add(Formation(app_id=app.id, type=type, quantity=0, size="basic", isolation="osv"))
    printed = pushed.run(pushed.build(pushed.commit(Procfile="web: python3 a.py ${SET:?}\nclock: python3 a.py ${UNSET:?}\n")))
    assert "clock runs on OSv. The command wants UNSET, which is not set." in printed and "web runs on OSv" not in printed


def test_a_failed_build_changes_nothing(pushed: Pushed, runtime: Callable[..., None]) -> None:
    pushed.set_pack(compile="echo no; exit 1")
    build_id = pushed.build(pushed.commit(file="x"))
    printed = pushed.run(build_id)
    row = pushed.row(build_id)
    assert (row.status, row.failure_kind, row.release_id) == ("failed", "build failed", None)
    assert " !     Failed to compile the app: bin/compile" in printed and "Push rejected" in printed
    assert ref(pushed) == "0" * 40
    ended = output.outcome(build_id)
    assert ended and ended.status == "failed" and ended.message == row.failure


@pytest.mark.parametrize("kind", ["release phase failed", "app did not start"])
def test_a_release_that_does_not_come_up_refuses_the_push(pushed: Pushed, runtime: Callable[..., None], kind: str) -> None:
    runtime(kind, "It was not to be.")
    build_id = pushed.build(pushed.commit(Procfile="web: x\nrelease: y\n"))
    printed = pushed.run(build_id)
    row = pushed.row(build_id)
    assert (row.status, row.failure_kind, row.failure) == ("failed", kind, "It was not to be.")
    assert "-----> Running release command...\nmigrating\nno such table\n" in printed and ref(pushed) == "0" * 40


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"Procfile": "we.b: x\n"}, "names the process type"),
        ({"app.json": "{"}, "app.json is not valid JSON"),
        ({"Procfile": "x" * 70_000}, "larger than 64 KB"),
    ],
)
def test_files_that_cannot_be_used_fail_the_build_with_their_sentence(
    pushed: Pushed, files: dict[str, str], sentence: str
) -> None:
    build_id = pushed.build(pushed.commit(**files))
    pushed.run(build_id)
    assert sentence in (pushed.row(build_id).failure or "")


def test_no_web_process_deploys_with_a_remedy(pushed: Pushed, runtime: Callable[..., None]) -> None:
    pushed.set_pack(release="echo '--- {}'")
    build_id = pushed.build(pushed.commit(Procfile="worker: x\n"))
    printed = pushed.run(build_id)
    assert pushed.row(build_id).status == "succeeded" and "There is no web process type" in printed


def test_output_beyond_the_limit_is_dropped_and_the_build_goes_on(
    pushed: Pushed, runtime: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LIMIT", 100_000)
    pushed.set_pack(compile="yes | head -c 30000000; echo end")
    build_id = pushed.build(pushed.commit(Procfile="web: x\n"))
    printed = pushed.run(build_id)
    assert pushed.row(build_id).status == "succeeded"
    assert "… output truncated." in printed and len(printed) < 110_000 and "Launching" in printed


def test_a_build_that_takes_too_long_is_ended_with_what_hung(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_BUILD_TIMEOUT", "2")
    settings.cache_clear()
    pushed.set_pack(compile="sleep 600 & sleep 600")
    build_id = pushed.build(pushed.commit(file="x"))
    pushed.run(build_id)
    failure = pushed.row(build_id).failure or ""
    assert "longer than 2 seconds" in failure and f"bin/compile of file://{pushed.pack} had been running" in failure


def test_a_build_is_cancelled_while_it_runs(pushed: Pushed) -> None:
    pushed.set_pack(compile="echo under way; sleep 600")
    build_id = pushed.build(pushed.commit(file="x"))

    def cancel() -> None:
        wait_until(
            lambda: (
                b"under way" in (output.directory(build_id) / "output").read_bytes()
                if (output.directory(build_id) / "output").exists()
                else False
            ),
            "the build running",
        )
        with db.transaction() as session:
            row, app, account = (
                session.get(Build, build_id),
                session.get(App, pushed.app.id),
                session.get(Account, pushed.account.id),
            )
            assert row and app and account
            builds.request_cancel(session, account, app, row)

    thread = threading.Thread(target=cancel)
    thread.start()
    pushed.run(build_id)
    thread.join()
    row = pushed.row(build_id)
    assert (row.status, row.failure_kind) == ("failed", "cancelled")


def test_a_build_that_ends_without_a_report_is_said(pushed: Pushed) -> None:
    pushed.set_pack(compile="kill -9 $PPID; sleep 600")
    build_id = pushed.build(pushed.commit(file="x"))
    pushed.run(build_id)
    assert "was ended from inside (status 137)" in (pushed.row(build_id).failure or "")


def test_out_of_memory_is_recognised(pushed: Pushed) -> None:
    class Small(LocalSandbox):
        def wait(self) -> Ended:
            return Ended(super().wait().status, oom=True)

    pushed.set_pack(compile="exit 137")
    build_id = pushed.build(pushed.commit(file="x"))
    pushed.run(build_id, sandbox=Small)
    assert "ran out of memory" in (pushed.row(build_id).failure or "")


def test_the_runtime_process_may_end_a_build_that_takes_too_long_first(pushed: Pushed) -> None:
    class Ending(LocalSandbox):
        def wait(self) -> Ended:
            return Ended(super().wait().status, timed_out=True)

    pushed.set_pack(compile="kill -9 $PPID; sleep 600")
    build_id = pushed.build(pushed.commit(file="x"))
    pushed.run(build_id, sandbox=Ending)
    assert "took longer than 25 minutes, the most it may take" in (pushed.row(build_id).failure or "")


FORGED = [
    """print('{"event": "done"}', flush=True)""",
    """print('x' * (1 << 21), flush=True)""",
    """print('{"event":"done","release":"%%%","procfile":null,"app_json":null,"buildpacks":[],"names":[]}', flush=True)""",
    """import sys; sys.stdout.write('{"event":"step","step":"compile","buildpack":"x"}\\n' * 5000)""",
]


@pytest.mark.parametrize("body", FORGED)
def test_a_forged_report_fails_the_build_with_a_sentence(pushed: Pushed, body: str) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    pushed.run(build_id, program=("/usr/bin/python3", "-c", body))
    row = pushed.row(build_id)
    assert row.status == "failed" and "inside Davit" not in (row.failure or "") and row.failure


def test_a_push_that_another_one_overtook_is_refused_before_it_is_built(pushed: Pushed, runtime: Callable[..., None]) -> None:
    first, second = pushed.commit(Procfile="web: one\n"), pushed.commit(Procfile="web: two\n")
    late = pushed.build(second)
    pushed.run(pushed.build(first))
    pushed.run(late)
    assert pushed.row(late).failure_kind == "fetch first" and ref(pushed) == first


def test_a_build_interrupted_while_releasing_is_finished_and_not_built_again(
    pushed: Pushed, runtime: Callable[..., None]
) -> None:
    commit = pushed.commit(Procfile="web: x\n")
    build_id = pushed.build(commit)
    with db.transaction() as session:
        app, account = session.get(App, pushed.app.id), session.get(Account, pushed.account.id)
        assert app and account
        slug = Slug(app_id=app.id, digest="sha256:0", size=1, stack="davit-13")
        session.add(slug)
        session.flush()
        builds.begin(session, build_id)
        builds.releasing(
            session, build_id, slug, releases.create(session, app, account, kind="deploy", description="x", slug=slug)
        )
    printed = pushed.run(build_id)
    assert pushed.row(build_id).status == "succeeded" and ref(pushed) == commit and "Building on" not in printed


def test_a_build_of_an_app_that_was_destroyed_ends_quietly(pushed: Pushed) -> None:
    job.build("00000000-0000-0000-0000-000000000000")


def test_followers_get_every_byte_in_order_and_partial_lines_at_once(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    out = output.Output(build_id)
    following = output.follow(build_id)
    for text in (b"no line end", b" yet\n", b"\xff\x00"):
        out.pass_through(text)
        assert next(part for part in following if part) == text
    assert next(following) is None  # a quiet second
    out.finish(output.Outcome("failed"))
    out.close()
    assert list(following) == []


def test_followers_wait_for_the_last_lines_of_a_build_whose_row_says_already_how_it_ended(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    with queue.held(build_id):
        following = output.follow(build_id)
        with db.transaction() as session:
            builds.succeed(session, build_id)
        assert [next(following), next(following)] == [None, None]  # the commit woke it; then quiet seconds, as of a slow disk
        out = output.Output(build_id)
        out.indented("Released v2")
        out.finish(output.Outcome("succeeded"))
        out.close()
    assert b"".join(part or b"" for part in following) == b"       Released v2\n"


def test_followers_end_when_who_worked_on_the_build_is_gone_without_its_last_lines(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    with queue.held(build_id), db.transaction() as session:
        builds.succeed(session, build_id)
    assert [part for part in output.follow(build_id) if part] == []


def test_followers_stay_while_the_database_is_away(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    out = output.Output(build_id)
    following = output.follow(build_id)

    def away() -> Any:
        raise Unavailable("The database does not answer at the moment; try again.")

    with monkeypatch.context() as patched:
        patched.setattr(output, "snapshot", away)
        patched.setattr(db, "snapshot", away)
        assert next(following) is None
        out.heading("Launching...")
        assert next(part for part in following if part) == b"-----> Launching...\n"
        out.finish(output.Outcome("succeeded"))
        assert list(following) == [] and Davit().outcome(build_id).succeeded
        patched.setattr(output, "outcome", lambda build_id: None)
        patched.setattr(output, "AWAY_SECONDS", 0)
        with pytest.raises(Unavailable):
            list(output.follow(build_id))
    out.close()


def test_followers_end_when_the_build_is_gone(pushed: Pushed) -> None:
    assert list(output.follow("00000000-0000-0000-0000-000000000000")) == []


# --- the queue ---


def test_followers_end_by_the_row_where_a_power_cut_emptied_the_outcome(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    printed = output.Output(build_id)
    printed.heading("Building")
    printed.finish(output.Outcome("succeeded"))
    printed.close()
    assert output.outcome(build_id) == output.Outcome("succeeded")
    os.truncate(output.directory(build_id) / "output.done", 0)
    with db.transaction() as session:
        builds.succeed(session, build_id)
    assert output.outcome(build_id) is None
    assert pushed.output(build_id) == "-----> Building\n"


def test_builds_of_one_app_wait_for_each_other(pushed: Pushed) -> None:
    first, second = (pushed.build(pushed.commit(file=name)) for name in "ab")
    queue.enqueue_next(pushed.app.id)
    queue.enqueue_next(pushed.app.id)
    assert queue.queue().job_ids == [first] and pushed.row(second).phase == "waiting"


def test_accounts_take_turns(pushed: Pushed) -> None:
    """Somebody with many apps does not go before somebody with one."""
    with db.transaction() as session:
        other = accounts.create(session, pushed.account, "you@example.com")
        owners = [session.get(Account, pushed.account.id)] * 3 + [other]
        rows = [builds.create(session, apps.create(session, owner), owner, commit="a" * 40) for owner in owners if owner]
    mine, yours = [row.id for row in rows[:3]], rows[3].id
    for row in rows:
        queue.enqueue_next(row.app_id)
    assert queue.queue().job_ids == [*mine, yours]
    assert queue.put_first(bounded=False)
    assert queue.queue().pop_job_id() == mine[0]  # nobody is at work: who came first
    assert queue.put_first(bounded=False)  # before the process of the first has begun
    assert queue.queue().job_ids == [yours, *mine[1:]]
    with db.transaction() as session:
        builds.begin(session, mine[0])
        builds.fail(session, mine[0], "build failed", "x")
    queue.queue().remove(yours)
    queue.queue().push_job_id(yours)
    assert queue.put_first(bounded=False)  # nobody is at work, with one slot: whose last build is the longest ago
    assert queue.queue().job_ids == [yours, *mine[1:]]


def test_an_account_whose_releases_are_on_their_way_up_is_passed_over(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Release commands that take an hour stop their owner's builds, not everybody's."""
    monkeypatch.setattr(queue, "MOST_RISING_OF_ONE", 1)
    with db.transaction() as session:
        owner, other = session.get(Account, pushed.account.id), accounts.create(session, pushed.account, "you@example.com")
        assert owner
        first, second, theirs = (
            builds.create(session, apps.create(session, who), who, commit="a" * 40) for who in (owner, owner, other)
        )
    for row in (second, theirs):
        queue.enqueue_next(row.app_id)
    with db.transaction() as session:
        session.get(Build, first.id).phase = "releasing"  # type: ignore[union-attr]
    assert queue.put_first(bounded=True) and queue.queue().pop_job_id() == theirs.id
    assert not queue.put_first(bounded=True) and queue.queue().job_ids == [second.id]
    queue.tell_of_wait(second.id)
    told = next(output.follow(second.id))
    assert told and b"Waiting for other releases and postdeploy commands of me@example.com: 1 are on their way" in told


def _set_up(pushed: Pushed, owner: Account) -> AppSetup:
    """A setup whose first step is in the queue."""
    with db.transaction() as session:
        account = session.get(Account, owner.id)
        assert account
        source = setups.Source("http://127.0.0.1:9/it.tgz")
        row = setups.create(session, account, source, name=None, stack="davit-13", env={}, buildpacks=[])
    setup.enqueue(row.id)
    return row


@pytest.fixture
def other(pushed: Pushed) -> Account:
    with db.transaction() as session:
        return accounts.create(session, pushed.account, "you@example.com")


def _taken(bounded: bool = False) -> list[str]:
    """The jobs in the order in which a worker takes them, each over at once."""
    order = []
    while queue.queue().count and queue.put_first(bounded):
        job_id = queue.queue().pop_job_id()
        assert job_id
        order.append(job_id)
        with db.transaction() as session:
            if build := session.get(Build, job_id):
                builds.begin(session, job_id)
                build.status, build.phase = "failed", "done"
            elif row := session.get(AppSetup, job_id.removeprefix("setup-")):
                setups.fail(session, row, "x")
    return order


def test_setups_that_wait_are_taken_in_turns_with_builds(pushed: Pushed, other: Account) -> None:
    """Setups are no pending builds, and wait in the same queue."""
    commit = pushed.commit(file="x")
    first = [_set_up(pushed, pushed.account) for _ in range(2)]
    with db.transaction() as session:
        account = session.get(Account, pushed.account.id)
        assert account
        mine = [builds.create(session, apps.create(session, account), account, commit=commit) for _ in range(2)]
    for row in mine:
        queue.enqueue_next(row.app_id)
    theirs = _set_up(pushed, other)
    assert queue.queue().count == 5
    assert _taken() == [f"setup-{first[0].id}", f"setup-{theirs.id}", f"setup-{first[1].id}", *(row.id for row in mine)]


def test_jobs_of_what_is_gone_hold_up_nobody(pushed: Pushed) -> None:
    """An app that was destroyed takes its rows along, and leaves its jobs in the queue."""
    gone = ["00000000-0000-0000-0000-000000000001", "setup-00000000-0000-0000-0000-000000000002"]
    row = _set_up(pushed, pushed.account)
    for one in gone:
        queue.queue().push_job_id(one)
    assert queue.put_first(bounded=True)
    assert _taken() == [*gone, f"setup-{row.id}"]
    for one in gone:
        queue.queue().push_job_id(one)
    assert _taken(bounded=True) == gone


def test_running_postdeploy_commands_count_as_releases_on_their_way_up(
    pushed: Pushed, other: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST_RISING_OF_ONE", 1)
    running, second, theirs = (_set_up(pushed, who) for who in (pushed.account, pushed.account, other))
    with db.transaction() as session:
        session.get(AppSetup, running.id).phase = "running"  # type: ignore[union-attr]
    queue.queue().remove(f"setup-{running.id}")
    assert queue.put_first(bounded=True) and queue.queue().pop_job_id() == f"setup-{theirs.id}"
    assert not queue.put_first(bounded=True) and queue.queue().job_ids == [f"setup-{second.id}"]
    build_id = pushed.build(pushed.commit(file="x"))
    queue.enqueue_next(pushed.app.id)
    queue.tell_of_wait(build_id)
    told = next(output.follow(build_id))
    assert told and b"Waiting for other releases and postdeploy commands of me@example.com: 1 are on their way" in told


def _rising(pushed: Pushed, what: str, number: int) -> list[str]:
    """Jobs of one account, all in the queue, whose worker ended while their releases came up or their postdeploy commands ran."""
    if what == "setups":
        ids = [_set_up(pushed, pushed.account).id for _ in range(number)]
        with db.transaction() as session:
            for id in ids:
                session.get(AppSetup, id).phase = "running"  # type: ignore[union-attr]
        return [f"setup-{id}" for id in ids]
    with db.transaction() as session:
        account = session.get(Account, pushed.account.id)
        assert account
        rows = [builds.create(session, apps.create(session, account), account, commit="a" * 40) for _ in range(number)]
    for row in rows:
        queue.enqueue_next(row.app_id)
    with db.transaction() as session:
        for row in rows:
            session.get(Build, row.id).phase = "releasing"  # type: ignore[union-attr]
    return [row.id for row in rows]


@pytest.mark.parametrize("what", ["builds", "setups"])
def test_what_came_up_when_the_worker_ended_does_not_wait_for_itself(
    pushed: Pushed, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The next worker has all of an account's releases in its queue again, as many as may be on their way up."""
    jobs = _rising(pushed, what, queue.MOST_RISING_OF_ONE)
    assert queue.put_first(bounded=False) and queue.put_first(bounded=True)
    assert _taken(bounded=True) == jobs
    monkeypatch.setattr(queue, "MOST_RISING_OF_ONE", 1)
    first, second = _rising(pushed, what, 2)
    assert queue.put_first(bounded=True) and queue.queue().pop_job_id() == first
    assert not queue.put_first(bounded=True) and queue.queue().job_ids == [second]


def test_a_postdeploy_command_has_no_build_slot(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many that sleep as there are slots would stop everybody's builds for an hour."""
    row = _set_up(pushed, pushed.account)
    with db.transaction() as session:
        fresh = session.get(AppSetup, row.id)
        assert fresh
        fresh.phase, fresh.postdeploy = "postdeploy", "sleep 3600"
    freed, had = os.pipe2(os.O_NONBLOCK)
    seen: list[tuple[bool, str]] = []

    def runs(app_id: str, command: str) -> tuple[int, str]:
        with db.snapshot() as session:
            seen.append((slot.is_free(freed), session.get(AppSetup, row.id).phase))  # type: ignore[union-attr]
        return 0, ""

    monkeypatch.setattr(setup, "run", runs)
    monkeypatch.setattr(slot.os, "kill", lambda pid, number: None)  # the worker, which is woken by it, is the test's parent
    slot.hold(had)
    setup.step(row.id)
    os.close(freed)
    assert seen == [(True, "running")]


@pytest.mark.parametrize("bounded", [False, True])
def test_a_database_that_is_away_stops_the_queue_only_where_it_matters_whose_turn_it_is(
    pushed: Pushed, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    def away(*words: object) -> None:
        raise Unavailable("The database does not answer.")

    for _ in range(2):
        _set_up(pushed, pushed.account)
    monkeypatch.setattr(builds, "next_slot", away)
    assert queue.put_first(bounded=bounded) is not bounded


def test_a_worker_that_may_not_take_everything_waits_at_an_empty_queue_without_asking(
    pushed: Pushed, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST_RISING_OF_ONE", 0)
    one, stop = worker.Worker(1), threading.Event()

    def takes() -> None:
        while not stop.is_set():
            one._take()

    waiting = threading.Thread(target=takes, daemon=True)
    waiting.start()
    try:
        with redis.Redis.from_url(redis_server) as client:
            wait_until(lambda: any(other["cmd"] == "brpoplpush" for other in client.client_list()), "a blocking call")
            row = _set_up(pushed, pushed.account)
            wait_until(lambda: not any(other["cmd"] == "brpoplpush" for other in client.client_list()), "the end of the call")
    finally:
        stop.set()
        waiting.join()
    assert queue.queue().job_ids == [f"setup-{row.id}"] and not one.builds


def test_a_worker_works_all_setups_that_wait(pushed: Pushed) -> None:
    rows = [_set_up(pushed, pushed.account) for _ in range(3)]
    process = subprocess.Popen([sys.executable, "-m", "builder.worker"], stderr=subprocess.DEVNULL)

    def over() -> bool:
        with db.snapshot() as session:
            return {setups.find(session, pushed.account, row.id).status for row in rows} == {"failed"}

    try:
        wait_until(over, "the end of three setups whose source is not there", 60)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("where", ["wait", "succeed"])
def test_a_database_that_goes_away_while_the_release_comes_up_fails_no_push(
    pushed: Pushed, runtime: Callable[..., None], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The release goes live without the build; a build that failed would have thrown its commit away."""
    room = releases if where == "wait" else builds
    real, times = getattr(room, where), iter(range(2))

    def away(*words: Any, **more: Any) -> Any:
        if next(times, None) is not None:
            raise Unavailable("The database does not answer at the moment; try again.")
        return real(*words, **more)

    monkeypatch.setattr(room, where, away)
    commit = pushed.commit(Procfile="web: mine\n")
    build_id = pushed.build(commit)
    printed = pushed.run(build_id)
    assert "deployed to Davit" in printed and "nothing was changed" not in printed
    assert (pushed.row(build_id).status, ref(pushed)) == ("succeeded", commit)


def test_a_release_whose_commit_was_not_confirmed_is_found_again(
    pushed: Pushed, runtime: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = job.BuildJob._make_release_of

    def lost(self: job.BuildJob, *words: Any) -> str:
        real(self, *words)
        raise Unavailable("The database does not answer at the moment; try again.")

    monkeypatch.setattr(job.BuildJob, "_make_release_of", lost)
    build_id = pushed.build(pushed.commit(Procfile="web: mine\n"))
    assert "deployed to Davit" in pushed.run(build_id)
    assert pushed.row(build_id).status == "succeeded"


def test_what_redis_lost_is_sent_again(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "LOST_AFTER", queue.timedelta(0))
    build_id = pushed.build(pushed.commit(file="x"))
    queue.enqueue_next(pushed.app.id)
    notify.redis_client().flushdb()
    queue.recover()
    assert queue.queue().job_ids == [build_id]


@contextmanager
def _full(bytes_of_room: int | None = None) -> Iterator[None]:
    """A Redis with that room left (less than none: as much has to go first), or with none whatever is taken away."""
    client = notify.redis_client()
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", 1 if bytes_of_room is None else used + bytes_of_room)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def test_lines_of_logs_make_room_for_a_build(pushed: Pushed) -> None:
    client = notify.redis_client()
    for n in range(400):
        client.execute_command("XADD", f"logs:app-{n % 4}", "*", "line", b"1 app web.1 " + b"x" * 10_000)
    build_id = pushed.build(pushed.commit(file="x"))
    with _full(-1 << 20):
        queue.enqueue_next(pushed.app.id)
        assert queue.queue().job_ids == [build_id]
        assert all(0 < client.xlen(f"logs:app-{n}") < 100 for n in range(4))
    assert not (output.directory(build_id) / "output").exists()


@pytest.mark.row("redis-full")
def test_a_build_that_a_full_redis_does_not_take_is_told_so_and_sent_when_there_is_room(
    pushed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "LOST_AFTER", queue.timedelta(0))
    build_id = pushed.build(pushed.commit(file="x"))
    with _full():
        queue.enqueue_next(pushed.app.id)
        queue.recover()
        assert queue.queue().job_ids == []
    said = (output.directory(build_id) / "output").read_text()
    assert_says("redis-full", said.strip().removeprefix("!").strip())
    queue.recover()
    assert queue.queue().job_ids == [build_id]


@pytest.mark.row("redis-full")
def test_a_build_is_told_that_redis_is_away(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    monkeypatch.setenv("REDIS_URL", f"unix://{pushed.home / 'nobody.sock'}")
    for cached in (settings, notify.redis_client):
        cached.cache_clear()
    queue.enqueue_next(pushed.app.id)
    assert_says("redis-full", (output.directory(build_id) / "output").read_text().strip().removeprefix("!").strip())


def test_a_full_redis_keeps_the_worker_neither_from_living_nor_from_looking_after_builds(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    for _ in range(queue.ATTEMPTS):
        with db.transaction() as session:
            builds.begin(session, build_id)
    with _full():
        worker.Worker(1)._look_out()
    assert pushed.row(build_id).status == "failed", "it was interrupted twice"
    notify.worker_is_here()
    notify.redis_client().expire("davit:worker", 5)
    with _full():
        worker.Worker(1)._look_out()
    assert int(notify.redis_client().ttl("davit:worker")) > 5


@pytest.fixture
def hanging(davit: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A Redis that takes connections and answers nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(davit / "hanging.sock"))
        listener.listen(100)
        monkeypatch.setenv("REDIS_URL", f"unix://{davit / 'hanging.sock'}")
        for cached in (settings, notify.redis_client):
            cached.cache_clear()
        monkeypatch.setattr(notify, "PATIENCE", 0.3)
        monkeypatch.setattr(notify, "RESPITE", 3600.0)
        yield listener


def test_a_redis_that_hangs_holds_up_no_build(hanging: socket.socket) -> None:
    out = output.Output("00000000-0000-0000-0000-000000000000")
    for _ in range(300):
        out.pass_through(b"more\n")
    notify.publish("release:00000000-0000-0000-0000-000000000000")
    following = output.follow(out.build_id)
    assert next(following) == b"more\n" * 300
    out.finish(output.Outcome("failed"))
    out.close()
    assert list(following) == []
    assert len(_calls(hanging)) == 1, "it was waited for once"


def test_a_redis_that_hung_is_asked_again_later(hanging: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "RESPITE", 0.0)
    notify.publish("build:x")
    notify.publish("build:x")
    assert notify.subscribe("build:x") is None
    assert len(_calls(hanging)) == 3


def _calls(listener: socket.socket) -> list[str]:
    """Those who called, and were not answered."""
    listener.setblocking(False)
    calls = []
    with contextlib.suppress(BlockingIOError):
        while True:
            calls.append(str(listener.accept()))
    return calls


def test_an_interrupted_build_is_taken_up_again_once(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    with db.transaction() as session:
        builds.begin(session, build_id)
    queue.recover()
    assert queue.queue().job_ids == [build_id]
    notify.redis_client().flushdb()
    with db.transaction() as session:
        builds.begin(session, build_id)
    queue.recover()
    row = pushed.row(build_id)
    assert row.status == "failed" and "interrupted twice" in (row.failure or "") and output.outcome(build_id)


def test_a_build_that_somebody_works_on_is_left_alone(pushed: Pushed) -> None:
    build_id = pushed.build(pushed.commit(file="x"))
    with db.transaction() as session:
        builds.begin(session, build_id)
    with queue.held(build_id):
        queue.recover()
    assert queue.queue().job_ids == []


@pytest.mark.parametrize("what", ["fork", "pipe2"])
def test_a_host_that_begins_no_process_costs_no_build(pushed: Pushed, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def refuse(*words: Any) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    build_id = pushed.build(pushed.commit(file="x"))
    queue.enqueue_next(pushed.app.id)
    monkeypatch.setattr(worker, "AGAIN_SECONDS", 0)
    monkeypatch.setattr(os, what, refuse)
    one = worker.Worker(2)
    one._take()
    waiting = queue.queue()
    assert one.builds == {} and waiting.job_ids == [build_id]
    assert waiting.connection.llen(waiting.intermediate_queue_key) == 0


def test_the_worker_picks_builds_up_and_leaves_no_process_behind(pushed: Pushed) -> None:
    """The whole worker process; a runtime process that hangs up on it fails the build with a sentence."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(settings().run / "runtime.sock"))
    listener.listen()
    threading.Thread(target=_hang_up_on_everybody, args=(listener,), daemon=True).start()
    worker = subprocess.Popen([sys.executable, "-m", "builder.worker"], cwd=Path(__file__).parents[2])
    try:
        for name in "ab":
            build_id = pushed.build(pushed.commit(file=name))
            queue.enqueue_next(pushed.app.id)
            wait_until(lambda: pushed.row(build_id).status != "pending", "the build ending")  # noqa: B023
            assert "runtime" in (pushed.row(build_id).failure or "")
        wait_until(lambda: not _children(worker.pid), "the build's process being reaped")
    finally:
        worker.terminate()
        assert worker.wait(10) == 0
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _hang_up_on_everybody(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_a_build_ends_with_its_worker_and_is_taken_up_by_the_next(pushed: Pushed) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a runtime process that never answers
    listener.bind(str(settings().run / "runtime.sock"))
    listener.listen()
    build_id = pushed.build(pushed.commit(file="x"))
    children: list[int] = []
    for attempt in (1, 2):
        worker = subprocess.Popen([sys.executable, "-m", "builder.worker"], cwd=Path(__file__).parents[2])
        try:
            wait_until(lambda: pushed.row(build_id).attempts == attempt, "the build under way")  # noqa: B023
            children += _children(worker.pid)
        finally:
            worker.kill()
            worker.wait()
    wait_until(lambda: not [pid for pid in children if _alive(pid)], "the builds' processes ending with their parent")
    listener.close()

    def given_up() -> bool:
        queue.recover()
        return "interrupted twice" in (pushed.row(build_id).failure or "")

    wait_until(given_up, "the build is given up")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_is_written_to_a_closed_standard_input_reaches_nobody() -> None:
    """A descriptor that is closed under its writer becomes the next file that anybody opens."""
    read, write = os.pipe()
    successor, other = os.pipe()
    inlet = Inlet(write)
    failure: list[OSError] = []

    def fill() -> None:
        try:
            inlet.write(b"x" * (1 << 20))
        except OSError as error:
            failure.append(error)

    writer = threading.Thread(target=fill)
    writer.start()
    select.select([read], [], [])  # it has begun, and nobody reads: soon it waits
    inlet.close()
    os.dup2(other, write)
    os.set_blocking(successor, False)
    writer.join(30)
    assert not writer.is_alive() and isinstance(failure[0], BrokenPipeError)
    with pytest.raises(BlockingIOError):
        os.read(successor, 1)
    for descriptor in (read, successor, other, write):
        os.close(descriptor)
