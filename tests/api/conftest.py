"""An API in this process on a database of its own, people to call it, and fake neighbours behind real sockets."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from foundation import settings as settings_module
from foundation import wire
from state import accounts, apps, db, notify, vault
from state.models import Release, Slug
from tests.api.published import Seen, assert_as_published


def use_home(home: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Make this process a process of the Davit in ``home``."""
    for name in list(os.environ):
        if name.startswith("DAVIT_") or name in ("DATABASE_URL", "REDIS_URL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DAVIT_HOME", str(home))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _forget()


def _forget() -> None:
    if db.engine.cache_info().currsize:
        db.engine().dispose()
    for cache in (settings_module.settings, db.engine, notify.redis_client):
        cache.cache_clear()


@dataclass
class People:
    """Tokens of people, by what they are to the app ``timely``."""

    owner: str
    admin: str
    stranger: str
    viewer: str
    deployer: str
    operator: str
    manager: str


@dataclass
class Api:
    """The API as tests use it: ``api.get("/account", as_=api.people.owner)``."""

    flask: Flask
    client: FlaskClient
    people: People
    app_id: str
    home: Path

    def call(self, method: str, path: str, json: Any = None, *, as_: str | None = "owner", **options: Any) -> Any:
        """Call as one of the people (by the name of the field of People), or as nobody (None).

        Whatever it is called for: what is answered must be what ``GET /schema`` says.
        """
        headers = dict(options.pop("headers", {}))
        if as_ is not None:
            headers.setdefault("Authorization", f"Bearer {getattr(self.people, as_, as_)}")
        answer = self.client.open(path, method=method, json=json, headers=headers, **options)
        body = None if answer.content_length is None else answer.data  # what is streamed is not read here
        assert_as_published(Seen(method, answer.request.path, answer.status_code, answer.headers, body))
        return answer

    def get(self, path: str, **options: Any) -> Any:
        return self.call("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        return self.call("POST", path, json, **options)

    def patch(self, path: str, json: Any = None, **options: Any) -> Any:
        return self.call("PATCH", path, json, **options)

    def put(self, path: str, json: Any = None, **options: Any) -> Any:
        return self.call("PUT", path, json, **options)

    def delete(self, path: str, **options: Any) -> Any:
        return self.call("DELETE", path, **options)


def _populate() -> tuple[People, str]:
    tokens: dict[str, str] = {}
    with db.transaction() as session:
        accounts.create(session, None, "admin@example.com", admin=True)
        everybody = {}
        for name in ("owner", "admin", "stranger", "viewer", "deployer", "operator", "manager"):
            email = f"{name}@example.com"
            account = accounts.create(session, None, email) if name != "admin" else None
            everybody[name] = account or _admin(session)
            tokens[name] = accounts.issue_token(session, everybody[name], "test")[0]
        app = apps.create(session, everybody["owner"], "timely")
        allowed = {"viewer": ["view"], "deployer": ["deploy"], "operator": ["operate"], "manager": ["manage"]}
        for name, permissions in allowed.items():
            apps.add_collaborator(session, everybody["owner"], app, f"{name}@example.com", permissions)
        return People(**tokens), app.id


def _admin(session: Any) -> Any:
    from sqlalchemy import select

    from state.models import Account

    return session.scalar(select(Account).where(Account.is_admin))


def _make(home: Path) -> Api:
    vault.ensure_keys()
    (home / "run").mkdir(exist_ok=True)
    people, app_id = _populate()
    from api.web import create_app

    flask = create_app()
    return Api(flask, flask.test_client(), people, app_id, home)


@pytest.fixture
def api(davit_home: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API on SQLite, with the app ``timely`` (release v1, no code) and people around it."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch)
    yield _make(davit_home)
    _forget()


@pytest.fixture(params=["sqlite", "postgresql"])
def either_api(
    request: pytest.FixtureRequest, davit_home: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Api]:
    """The API on each database."""
    if request.param == "sqlite":
        shutil.copy(migrated_sqlite, davit_home / "davit.db")
        use_home(davit_home, monkeypatch)
    else:
        use_home(davit_home, monkeypatch, DATABASE_URL=request.getfixturevalue("postgres_server").migrated())
    yield _make(davit_home)
    _forget()


def give_code(app_id: str, types: dict[str, str] | None = None, description: str = "Deploy 1234567") -> Release:
    """Make the app's next release one with code, as if a push had succeeded."""
    from state import releases
    from state.models import App

    with db.transaction() as session:
        app = session.get(App, app_id)
        assert app is not None
        slug = Slug(
            app_id=app_id, digest="sha256:" + "ab" * 32, size=1000, stack="davit-13",
            process_types=types or {"web": "python app.py", "worker": "python work.py"}, commit="12" * 20,
        )  # fmt: skip
        session.add(slug)
        session.flush()
        release = releases.create(session, app, app.owner, kind="deploy", description=description, slug=slug)
        releases.succeed(session, release)
        return release


Handler = Callable[[wire.Call], Any]


class Neighbour:
    """A process of Davit's on a real socket that answers what a test tells it to, and remembers what it was asked."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._loop = asyncio.new_event_loop()
        self._server = wire.Server(path, {name: self._remember(name, handler) for name, handler in handlers.items()})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(10)

    def _remember(self, name: str, handler: Handler) -> Any:
        async def answer(call: wire.Call) -> Any:
            self.calls.append((name, call.params))
            result = handler(call)
            return await result if asyncio.iscoroutine(result) else result

        return answer

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.start())
        self._ready.set()
        self._loop.run_forever()

    def close(self) -> None:
        """Stop answering."""

        async def stop() -> None:
            self._server.close()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def neighbour() -> Iterator[Callable[[Path, dict[str, Handler]], Neighbour]]:
    """Makes neighbours that are closed at the end of the test."""
    made: list[Neighbour] = []

    def make(path: Path, handlers: dict[str, Handler]) -> Neighbour:
        made.append(Neighbour(path, handlers))
        return made[-1]

    yield make
    for one in made:
        one.close()
