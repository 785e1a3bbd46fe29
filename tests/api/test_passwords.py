"""Hashing a password takes its time, and nobody who writes into the database waits for it."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api import limits
from foundation.settings import settings
from state import accounts, audit, db, invitations, passwords, throttle
from state.models import Account, AuditEvent
from tests.api.conftest import Api
from tests.e2e.errors_page import assert_says

FIRST, SECOND = "correct horse battery", "correct horse staple"


class Watched:
    """The real hasher; while it works, somebody else writes into the database and must not have to wait for the end of it."""

    def __init__(self) -> None:
        self.real, self.waited, self.asked = passwords._hasher(), 0, 0

    def _meanwhile(self, work: Callable[[], Any]) -> Any:
        self.asked += 1
        written = threading.Event()

        def write() -> None:
            with db.transaction() as session:
                audit.record(session, None, "test:meanwhile")
            written.set()

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        if not written.wait(60 if self.waited == 0 else 0):
            self.waited += 1
        return work()

    def hash(self, password: str) -> str:
        text: str = self._meanwhile(lambda: self.real.hash(password))
        return text

    def verify(self, known: str, password: str) -> bool:
        fits: bool = self._meanwhile(lambda: self.real.verify(known, password))
        return fits


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    hasher = Watched()
    monkeypatch.setattr(passwords, "_hasher", lambda: hasher)
    monkeypatch.setattr(throttle, "passwords", throttle.WrongGuesses("password", most=3))
    monkeypatch.setattr(db, "BUSY_SECONDS", 20)
    yield hasher
    assert hasher.waited == 0, "a password was hashed while the database was held"


def test_every_way_to_give_a_password_lets_others_write(either_api: Api, watched: Watched) -> None:
    api = either_api
    assert api.patch("/account", {"password": FIRST}).status_code == 200
    assert watched.asked == 1
    assert api.patch("/account", {"password": FIRST, "new_password": SECOND}).status_code == 200
    assert watched.asked == 3
    assert api.patch("/account", {"password": FIRST, "new_password": SECOND}).status_code == 422, "the present one is another"
    assert api.post("/account/two-factor", {"password": SECOND}).status_code == 201
    assert api.post("/davit/accounts", {"email": "new@example.com", "password": FIRST}, as_="admin").status_code == 201
    made = api.post("/oauth/authorizations", {"description": "x"}, as_=None, auth=("new@example.com", FIRST))
    assert made.status_code == 201, made.json
    assert watched.asked == 7
    with db.snapshot() as session:
        account = session.query(Account).filter_by(email="viewer@example.com").one()
        secret = invitations.issue(account)
    reset = api.post(f"/password-resets/{secret}/actions/finalize", {"password": FIRST, "password_confirmation": FIRST}, as_=None)
    assert reset.status_code == 200 and watched.asked == 8, reset.json
    with db.snapshot() as session:
        changes = session.query(AuditEvent).filter_by(action="accounts:password").count()
        made_once = session.query(Account).filter_by(email="new@example.com").count()
    assert (changes, made_once) == (4, 1), "what was begun twice was done once"


def test_a_wrong_present_password_is_counted_once_and_then_not_looked_at(api: Api, watched: Watched) -> None:
    assert api.patch("/account", {"password": FIRST}).status_code == 200
    answers = [api.patch("/account", {"password": "wrong", "new_password": SECOND}).status_code for _ in range(5)]
    assert answers == [422, 422, 422, 429, 429] and watched.asked == 4
    throttle.passwords.forget()
    for _ in range(5):
        assert api.post("/account/two-factor", {"password": FIRST}).status_code == 201, "a right one is not counted"


def test_guesses_at_the_same_time_are_no_more_than_those_in_turn(api: Api, watched: Watched) -> None:
    assert api.patch("/account", {"password": FIRST}).status_code == 200
    start, codes = threading.Barrier(8), []

    def guess(number: int) -> None:
        client = api.flask.test_client()
        start.wait(60)
        answer = client.patch(
            "/account", json={"password": f"wrong {number}", "new_password": SECOND}, headers={"Authorization": f"Bearer {api.people.owner}"}
        )
        codes.append(answer.status_code)

    guessing = [threading.Thread(target=guess, args=(number,)) for number in range(8)]
    for one in guessing:
        one.start()
    for one in guessing:
        one.join(120)
    assert sorted(codes) == [422, 422, 422, 429, 429, 429, 429, 429]


def test_a_stranger_whose_password_is_looked_at_holds_no_connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    real, held = passwords._hashed, []

    def hashed(question: tuple[str, str], turns: threading.BoundedSemaphore) -> str | None:
        held.append(db.engine().pool.checkedout())  # type: ignore[attr-defined]
        return real(question, turns)

    monkeypatch.setattr(passwords, "_hashed", hashed)
    assert api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong")).status_code == 401
    page = api.post("/auth", {}, as_=None).json["browser_url"]
    answer = api.call("POST", page, data={"email": "nobody@example.com", "password": "wrong", "answer": "approve"}, as_=None)
    assert answer.status_code == 401 and held == [0, 0]
    taken = [limits.guesses.take("127.0.0.1") for _ in range(limits.GUESSES_EACH)]
    assert api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong")).status_code == 429
    behind_a_proxy = {"X-Forwarded-For": "192.0.2.7"}
    asked = api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong"), headers=behind_a_proxy)
    assert asked.status_code == 401, "who a proxy on this machine names is somebody else"
    for give_back in taken:
        give_back()
    assert api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong")).status_code == 401


def test_guesses_are_counted_by_the_hour_by_whichever_way_they_come(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_RATE_LIMIT", "2")
    settings.cache_clear()
    monkeypatch.setattr(limits, "sign_ins", limits.Buckets(lambda: 0.0, whose="Your address", what="tried to sign in too often"))
    page = api.post("/auth", {}, as_=None).json["browser_url"]
    data = {"email": "nobody@example.com", "password": "wrong", "answer": "approve"}

    def by_basic() -> Any:
        return api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong"))

    assert by_basic().status_code == 401
    assert api.call("POST", page, data=data, as_=None).status_code == 401
    for answer in (by_basic(), api.call("POST", page, data=data, as_=None)):
        assert answer.status_code == 429
        assert_says("calls-exhausted", html.unescape(answer.text))


def test_a_password_that_changes_meanwhile_is_looked_at_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.patch("/account", {"password": FIRST}).status_code == 200
    real, changed = passwords._hashed, []

    def hashed(question: tuple[str, str], turns: threading.BoundedSemaphore) -> str | None:
        if question[1] == FIRST and not changed:
            changed.append(1)
            with db.transaction() as session:
                account = session.query(Account).filter_by(email="owner@example.com").one()
                account.password_hash = real((passwords._NEW, SECOND), turns)
        return real(question, turns)

    monkeypatch.setattr(passwords, "_hashed", hashed)
    assert api.patch("/account", {"password": FIRST, "new_password": "correct horse bridge"}).status_code == 422
    with db.snapshot() as session:
        assert passwords.authenticate(session, "owner@example.com", SECOND)
        assert accounts.count(session)
