"""How many calls an account may make."""

from __future__ import annotations

import pytest

from api import limits
from foundation.settings import settings
from tests.api.conftest import Api


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "buckets", limits.Buckets(clock, most=3))
    return clock


def test_every_call_counts_and_calls_come_back_evenly(api: Api, clock: Clock) -> None:
    full = settings().rate_limit
    assert full == 4500
    assert api.get("/account/rate-limits").json == {"remaining": full}
    for used in (1, 2, 3):
        assert api.get("/account").headers["RateLimit-Remaining"] == str(full - used)
    assert api.get("/nothing").headers["RateLimit-Remaining"]
    clock.seconds = 1.6
    assert api.get("/account/rate-limits").json == {"remaining": full - 1}
    clock.seconds = 7200
    assert api.get("/account/rate-limits").headers["RateLimit-Remaining"] == str(full)


def test_who_has_none_left_waits_and_nobody_else(api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_RATE_LIMIT", "2")
    settings.cache_clear()
    assert [api.get("/account").status_code for _ in range(3)] == [200, 200, 429]
    answer = api.get("/account")
    assert (answer.json["id"], answer.headers["RateLimit-Remaining"]) == ("rate_limit", "0")
    assert api.get("/account/rate-limits").json == {"remaining": 0}
    assert api.get("/account", as_="stranger").status_code == 200
    clock.seconds = 1801
    assert api.get("/account").status_code == 200


def test_strangers_may_not_keep_writers_waiting_without_end(api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_RATE_LIMIT", "2")
    settings.cache_clear()
    monkeypatch.setattr(limits, "strangers", limits.Buckets(clock, whose="Your address"))
    secret = dict.fromkeys(("password", "password_confirmation"), "long enough for one")
    for expected in (404, 404, 429):
        answer = api.post("/password-resets/nonsense/actions/finalize", secret, as_=None)
        assert answer.status_code == expected, answer.json
    assert answer.json["message"].startswith("Your address has made too many API calls")
    assert api.get("/account").status_code == 200


def test_buckets_do_not_fill_memory() -> None:
    buckets = limits.Buckets(Clock(), most=3)
    for number in range(10):
        buckets.take(str(number))
    assert len(buckets._levels) == 3
