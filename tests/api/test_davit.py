"""What an admin asks of Davit itself: health, hosts, the audit log."""

from __future__ import annotations

import pytest
import redis

from builder.platform import Davit, Pusher, Target
from foundation.settings import settings
from state import health, notify
from tests.api.conftest import Api


def test_health_says_of_everything_how_it_is(api: Api) -> None:
    found = api.get("/davit/health", as_="admin").json
    points = {point["name"]: point for group in found["groups"] for point in group["points"]}
    assert points["web"]["level"] == "ok"
    assert points["ssh"]["level"] == "bad" and found["level"] == "bad", "none listens in this test"
    assert {"runtime", "router", "logs", "redis", "worker", "builds", "database", "disk"} <= points.keys()
    assert found["counts"]["apps"] == 1


def test_the_worker_is_well_while_it_says_that_it_lives(api: Api, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server)
    settings.cache_clear()
    notify.redis_client.cache_clear()

    def level() -> str:
        groups = api.get("/davit/health", as_="admin").json["groups"]
        return next(point["level"] for group in groups for point in group["points"] if point["name"] == "worker")

    notify.redis_client().delete("davit:worker")
    assert level() == "bad"
    notify.worker_is_here()
    assert level() == "ok" and 0 < notify.redis_client().ttl("davit:worker") <= notify.WORKER_SECONDS


def test_health_says_how_full_redis_is(redis_server: str) -> None:
    client = redis.Redis.from_url(redis_server)
    words: dict[str, tuple[str, str]] = {}
    used = int(client.info("memory")["used_memory"])
    try:
        words["unbounded"] = health.redis_memory(client)
        client.config_set("maxmemory", used * 10)
        words["roomy"] = health.redis_memory(client)
        client.config_set("maxmemory-policy", "allkeys-lru")
        words["forgetful"] = health.redis_memory(client)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", used // 2)
        words["full"] = health.redis_memory(client)
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    assert {name: level for name, (level, _) in words.items()} == {
        "unbounded": "ok", "roomy": "ok", "forgetful": "warn", "full": "bad",
    }  # fmt: skip
    assert "without a bound" in words["unbounded"][1] and "% of" in words["roomy"][1]
    assert "noeviction" in words["forgetful"][1] and "more than logs may take" in words["full"][1]


def test_hosts_are_listed_with_their_load(api: Api) -> None:
    [host] = api.get("/davit/hosts", as_="admin").json
    assert host["cores"] >= 1 and len(host["load"]) == 3 and 0 < host["memory"]["available"] <= host["memory"]["total"]


def test_the_audit_log_is_filtered_and_comes_in_pages(api: Api) -> None:
    for number in range(3):
        api.patch("/apps/timely/config-vars", {"SECRET": f"very-secret-{number}"})
    answer = api.get("/davit/audit?action=config&app=timely&actor=owner", as_="admin", headers={"Range": "created_at ..; max=2, order=desc"})
    assert answer.status_code == 206
    rest = api.get("/davit/audit?action=config&app=timely", as_="admin", headers={"Range": answer.headers["Next-Range"]})
    assert rest.status_code == 200
    rows = [*answer.json, *rest.json]
    assert [row["action"] for row in rows] == ["config:set"] * 3 and rows == sorted(rows, key=lambda row: row["created_at"], reverse=True)
    assert rows[0]["actor"] == "owner@example.com" and rows[0]["app"]["name"] == "timely" and rows[0]["details"]["set"] == ["SECRET"]
    assert "very-secret" not in answer.text + rest.text
    assert api.get("/davit/audit?until=2020-01-01", as_="admin").json == []
    assert api.get("/davit/audit?since=2020-01-01T00:00:00Z&action=config", as_="admin").json
    assert "Parameter since" in api.get("/davit/audit?since=yesterday", as_="admin").json["message"]


def test_refs_that_do_not_deploy_are_on_record(api: Api) -> None:
    owner = api.get("/account").json["id"]
    pusher, target = Pusher(owner, "owner@example.com"), Target(api.app_id, "timely")
    strange = f"refs/tags/\u202e\x9b{'x' * 4000}"  # git takes it
    named = {"refs/heads/side": "a" * 40, "refs/tags/v1": "0" * 40, strange: "b" * 40}
    Davit().stored(pusher, target, {**named, **{f"refs/tags/t{n}": "b" * 40 for n in range(60)}})
    [row] = api.get("/davit/audit?action=refs", as_="admin").json
    assert row["actor"] == "owner@example.com" and row["app"]["name"] == "timely"
    refs = row["details"]["refs"]
    assert refs[:2] == [f"refs/heads/side at {'a' * 12}", "refs/tags/v1 deleted"]
    assert refs[2] == f"refs/tags/{'x' * 190} at {'b' * 12}" and refs[9:] == [f"refs/tags/t6 at {'b' * 12}", "and 53 more"]
