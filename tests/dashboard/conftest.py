"""The dashboard in this process for what needs no browser; behind gunicorn, with Chromium in front of it, for what does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from state import accounts, apps, db, vault, web_sessions
from state.models import Account, App
from tests.api.conftest import _forget, use_home
from tests.conftest import PostgresCluster
from tests.dashboard.browsing import Browser, launched

PEOPLE = ("owner", "admin", "stranger", "viewer", "deployer", "operator", "manager")


@dataclass
class Person:
    """Somebody with a browser that is signed in; ``get`` and ``post`` give Werkzeug's responses."""

    client: FlaskClient
    name: str
    secret: str = ""

    def get(self, path: str, **options: Any) -> TestResponse:
        """Look at a page."""
        return self.client.get(path, **options)

    def post(self, path: str, data: dict[str, Any] | None = None, *, page: str = "/new", **options: Any) -> TestResponse:
        """Send a form, with the anti-forgery token of ``page``."""
        token = re.search(r'name="csrf" value="([^"]+)"', self.get(page).text)
        assert token, page
        return self.client.post(path, data={"csrf": token[1], **(data or {})}, **options)


@dataclass
class Desk:
    """The dashboard, with an app ``timely`` and people around it, as in the API's tests."""

    flask: Flask
    home: Path
    app_id: str
    secrets: dict[str, str] = field(default_factory=dict)

    def somebody(self) -> Person:
        """A browser that nobody is signed in on."""
        return Person(self.flask.test_client(), "")

    def person(self, name: str) -> Person:
        """The browser of one of PEOPLE."""
        client = self.flask.test_client()
        client.set_cookie("davit_session", self.secrets[name])
        return Person(client, name, self.secrets[name])


@pytest.fixture
def desk(davit_home: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The dashboard on SQLite."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch)
    yield _furnished(davit_home)
    _forget()


@pytest.fixture
def desk_on_postgresql(davit_home: Path, postgres_server: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The dashboard on PostgreSQL."""
    use_home(davit_home, monkeypatch, DATABASE_URL=postgres_server.migrated())
    yield _furnished(davit_home)
    _forget()


def _furnished(davit_home: Path) -> Desk:
    vault.ensure_keys()
    (davit_home / "run").mkdir(exist_ok=True)
    from dashboard.web import create_app

    secrets: dict[str, str] = {}
    with db.transaction() as session:
        people: dict[str, Account] = {}
        for name in PEOPLE:
            people[name] = accounts.create(session, None, f"{name}@example.com", admin=name == "admin")
            secrets[name] = web_sessions.start(session, people[name], "a test")[0]
        app: App = apps.create(session, people["owner"], "timely")
        allowed = {"viewer": ["view"], "deployer": ["deploy"], "operator": ["operate"], "manager": ["manage"]}
        for name, permissions in allowed.items():
            apps.add_collaborator(session, people["owner"], app, f"{name}@example.com", permissions)
    return Desk(create_app(), davit_home, app.id, secrets)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium of one module's tests: Playwright keeps an event loop running in the thread until it ends, in which
    no other module could run one of its own."""
    with launched() as browser:
        yield browser
