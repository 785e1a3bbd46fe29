"""A Davit full of apps in every state, straight in its database: what pages are looked at with."""

from __future__ import annotations

import base64
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.authority import Authority
from foundation.clock import now
from foundation.settings import settings
from logs import stream
from metrics import dynos, histogram, requests, ring
from state import (
    accounts,
    apps,
    config,
    crashes,
    db,
    domains,
    drains,
    endpoints,
    formation,
    passwords,
    pipelines,
    releases,
    two_factor,
    vault,
    webhooks,
)
from state.models import Account, App, AuditEvent, Build, Dyno, Release, SecondFactor, Slug

PASSWORD = "correct horse battery"
LONG = "a-very-long-name-of-an-app-30x"
OUTPUT = (
    "-----> Building on the davit-13 stack\n-----> Python app detected\n"
    "       \x1b[32mUsing Python 3.13.5\x1b[0m\n       Installing requirements with uv\n"
    "       \x1b[33mwarning:\x1b[0m <script>alert(1)</script> & friends are only text\n"
    "       progress 10%\r       progress 60%\r       progress 100%\n"
)


def account(session: Session, email: str, *, admin: bool = False) -> Account:
    """An account that can sign in with PASSWORD."""
    row = accounts.create(session, None, email, admin=admin)
    passwords.assign(session, row, row, PASSWORD)
    return row


def _with_second_factor(session: Session, row: Account) -> None:
    enrolment = two_factor.begin(session, row)
    at = time.time() - two_factor.STEP_SECONDS  # a code is taken once: the present one is for signing in
    two_factor.confirm(session, row, _code(enrolment.secret, at), at)


def _code(secret: str, at: float) -> str:
    totp = TOTP(base64.b32decode(secret), 6, SHA1(), two_factor.STEP_SECONDS, enforce_key_length=False)
    return totp.generate(int(at)).decode()


def code_of(session: Session, email: str) -> str:
    """What the authenticator app of somebody shows now."""
    row = session.scalar(select(SecondFactor).join(Account, Account.id == SecondFactor.account_id).where(Account.email == email))
    assert row
    return _code(vault.reveal(row.secret)["totp"], time.time())


def deployed(session: Session, app: App, by: Account, *, commit: str, types: dict[str, str] | None = None, **more: Any) -> Release:
    """The app's next release, with code, that has come up."""
    types = types or {"web": "gunicorn app:app --workers 4", "worker": "python work.py"}
    slug = Slug(
        app_id=app.id, digest="sha256:" + commit * 64, size=41_000_000, stack="davit-13", process_types=types, commit=commit * 40,
        buildpack_provided_description="Python", stack_version="13.5-4",
    )  # fmt: skip
    session.add(slug)
    session.flush()
    build = Build(
        app_id=app.id, account_id=by.id, status="succeeded", phase="done", commit=commit * 40, stack="davit-13",
        created_at=now() - timedelta(seconds=9), finished_at=now(), slug_id=slug.id,
    )  # fmt: skip
    session.add(build)
    release = releases.create(session, app, by, kind="deploy", description=f"Deploy {commit * 8}", slug=slug)
    session.flush()
    build.release_id = release.id
    releases.succeed(session, release)
    output_of(build.id, OUTPUT, done=True)
    return release


def output_of(build_id: str, text: str, *, done: bool) -> Path:
    """What a build printed."""
    place = settings().home / "builds" / build_id
    place.mkdir(parents=True, exist_ok=True)
    (place / "output").write_text(text)
    if done:
        (place / "output.done").write_text('{"status": "succeeded"}')
    return place / "output"


def dyno(
    session: Session, app: App, name: str, state: str, release: Release | None = None, size: str = "basic", **more: Any
) -> Dyno:
    """A dyno as the runtime would write it."""
    row = Dyno(
        app_id=app.id, name=name, type=name.partition(".")[0], size=size, command="gunicorn app:app", state=state,
        release_id=release.id if release else None, release_version=release.version if release else 0, started_at=now(), **more,
    )  # fmt: skip
    session.add(row)
    return row


def fill(*, more: int = 0) -> None:
    """Everything; ``more`` further apps without code."""
    with db.transaction() as session:
        ann, bob = account(session, "ann@example.com", admin=True), account(session, "bob@example.com")
        lengthy = account(session, "a.person.with.a.very.long.address@subdomain.of.a.very.long.example.com")
        serving = _serving(session, ann, bob)
        viewer = account(session, "viewer@example.com")
        apps.add_collaborator(session, ann, session.get(App, serving), viewer.email, ["view"])  # type: ignore[arg-type]
        accounts.create(session, None, "newcomer@example.com")
        _with_second_factor(session, account(session, "careful@example.com"))
        crashed = apps.create(session, bob, "crashing")
        release = deployed(session, crashed, bob, commit="c")
        row = dyno(session, crashed, "web.1", "crashed", release, exit_status=1, crashes=4)
        for _ in range(4):
            crashes.record(session, row, 1)
        _under_way(session, ann)
        _failed(session, ann, lengthy)
        for name, quantity in (("sleeping", 1), ("stopped", 0), ("maintained", 1)):
            app = apps.create(session, ann, name)
            release = deployed(session, app, ann, commit="e")
            formation.scale(session, ann, app, [{"type": "web", "quantity": quantity}])
            if name == "sleeping":
                app.asleep_at = now()
            elif quantity:
                dyno(session, app, "web.1", "up", release)
            apps.set_maintenance(session, ann, app, name == "maintained")
        apps.create(session, ann, "empty")
        long = apps.create(session, ann, LONG)
        deployed(session, long, lengthy, commit="9", types={"web": "x" * 300, "a-process-type-with-quite-a-long-name": "run"})
        project = pipelines.create(session, ann, "project")
        for name, stage in (("staged", "staging"), ("live", "production")):
            app = apps.create(session, ann, name)
            release = deployed(session, app, ann, commit="5" if stage == "staging" else "4")
            dyno(session, app, "web.1", "up", release)
            pipelines.couple(session, ann, project, app, stage)
        for number in range(more):
            apps.create(session, ann, f"team-{number:04d}")  # behind those that have something to show
    _log(serving, 300)
    figures(serving)


def wire(name: str) -> None:
    """Give an app what others are connected to it by, and the machine a stack, so that pictures show sections with something in."""
    with db.transaction() as session:
        app = session.scalar(select(App).where(App.name == name))
        assert app
        apps.set_buildpacks(session, app.owner, app, ["heroku/nodejs", "heroku/python"])
        drains.add(session, app.owner, app, "syslog+tls://logs.example.com:6514")
        wish = webhooks.check("https://hooks.example.com/davit", ["api:release", "api:build"], "notify")
        webhooks.create(session, app.owner, app, wish)
        _in_the_past(session, app)
    place = settings().stacks / "davit-13" / "current"
    place.mkdir(parents=True)
    (place / "stack.json").write_text('{"version": "13.5-4"}')


def _serving(session: Session, ann: Account, bob: Account) -> str:
    app = apps.create(session, ann, "storefront")
    config.change(session, ann, app, {"SECRET_KEY": "do-not-show-me", "DATABASE_URL": "postgres://u:p@db.example.com/shop"})
    deployed(session, app, ann, commit="a")
    changed = config.change(session, bob, app, {"SECRET_KEY": "nor-me" + "-" + "x" * 200, "GREETING": "hello"})
    assert changed
    releases.succeed(session, changed)
    release = deployed(session, app, bob, commit="b", types={"web": "gunicorn shop:app", "worker": "python work.py", "clock": "c"})
    formation.scale(session, ann, app, [{"type": "web", "quantity": 2, "size": "standard-2x"}, {"type": "worker", "quantity": 1}])
    for name, size in (("web.1", "standard-2x"), ("web.2", "standard-2x"), ("worker.1", "basic")):
        dyno(session, app, name, "up", release, size)
    apps.add_collaborator(session, ann, app, bob.email, ["view", "deploy"])
    _in_the_past(session, app)
    domain = domains.add(session, ann, app, "www.example.com")
    text = Authority(settings().home / "an-authority.pem").issue(("www.example.com", "*.a-name-that-is-rather-long.example.com")).decode()
    at = text.index("-----BEGIN PRIVATE")
    endpoints.bind(session, ann, app, domain, endpoints.add(session, ann, app, text[:at], text[at:]).name)
    return app.id


def _in_the_past(session: Session, app: App) -> None:
    """What happened so far, as if it were done a few minutes one after the other."""
    session.flush()
    for kind, minutes in ((Release, 11), (Build, 22), (AuditEvent, 7)):
        rows = session.scalars(select(kind).where(kind.app_id == app.id).order_by(kind.created_at.desc())).all()  # type: ignore[attr-defined]
        for number, row in enumerate(rows, 1):
            row.created_at -= timedelta(minutes=number * minutes)  # type: ignore[attr-defined]
            if isinstance(row, Build):
                row.finished_at = row.created_at + timedelta(seconds=9)


def _under_way(session: Session, ann: Account) -> None:
    app = apps.create(session, ann, "deploying")
    build = Build(app_id=app.id, account_id=ann.id, commit="d" * 40, stack="davit-13", phase="building", source_version="d" * 40)
    session.add(build)
    session.flush()
    output_of(build.id, OUTPUT, done=False)


def _failed(session: Session, ann: Account, by: Account) -> None:
    app = apps.create(session, ann, "failing")
    build = Build(
        app_id=app.id, account_id=by.id, status="failed", phase="done", commit="f" * 40, stack="davit-13", finished_at=now(),
        failure_kind="build failed", failure="Failed to compile: bin/compile of heroku/python ended with status 1; what it printed is in the build's output.",
    )  # fmt: skip
    session.add(build)
    session.flush()
    output_of(build.id, OUTPUT + " !     No matching distribution found for flsk==9.9\n", done=True)


def figures(app_id: str) -> None:
    """An hour of measurements: a wave of requests, a few errors, memory that grows. It goes on for a while beyond now, so that
    nothing breaks off while pages are looked at."""
    home, until = settings().home, time.time()
    for type in ("web", "worker"):
        (home / "metrics" / app_id).mkdir(parents=True, exist_ok=True)
        for minute in range(90):
            at = until - (59 - minute) * 60
            memory, quota = (300 + 4 * minute) << 20, 2048 << 20
            numbers = (4, 8, 4 * memory, 4 * quota, memory, 20 + 15 * math.sin(minute / 9), minute == 31)
            ring.add(dynos.path(home, app_id, type), dynos.SHAPE, at, numbers, dynos.merge)
            if type == "web":
                count = int(900 + 600 * math.sin(minute / 9))
                times = [0] * histogram.BUCKETS
                for share, seconds in ((0.6, 0.012), (0.3, 0.05), (0.1, 0.4 + 0.01 * minute)):
                    times[histogram.bucket(seconds)] += int(count * share)
                answers = [count - 40, 20, 15, 5 + (80 if 30 < minute < 34 else 0)]
                ring.add(requests.path(home, app_id), requests.SHAPE, at, [*answers, *times], requests.merge)


def _log(app_id: str, count: int) -> None:
    redis = stream.connect(settings().effective_redis_url)
    start = now() - timedelta(seconds=count)
    lines = [stream.Line(start, "heroku", "web.1", "State changed from starting to up")]
    for number in range(count):
        at = start + timedelta(seconds=number)
        if number % 3 == 0:
            text = f'at=info method=GET path="/items/{number}" host=storefront.localhost dyno=web.1 connect=0ms service=12ms status=200'
            lines.append(stream.Line(at, "heroku", "router", text))
        elif number % 3 == 1:
            lines.append(stream.Line(at, "app", "web.1", f"\x1b[32mINFO\x1b[0m served item {number} <b>not bold</b>"))
        else:
            lines.append(stream.Line(at, "app", "worker.1", f"job {number} done in 0.3 s"))
    stream.emit(redis, app_id, lines)
    stream.flush(redis)
