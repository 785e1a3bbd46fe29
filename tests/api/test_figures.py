"""GET /apps/APP/formation/TYPE/metrics and /apps/APP/dyno-usage: Davit's own; what was measured of a process type, what dynos use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from foundation import wire
from metrics import dynos
from metrics.dynos import Sample
from state import db
from tests.api.conftest import Api, Neighbour, give_code


def test_figures_of_a_process_type(api: Api) -> None:
    give_code(api.app_id)
    place = f"/apps/{api.app_id}/formation/web/metrics"
    assert api.get(place).json == {"type": "web", "start_time": None, "step": None, "quota": None}
    dynos.write(api.home, api.app_id, {"web": Sample(1, 100, 200, 0.0, 0)})
    found = api.get(place, as_="viewer").json
    assert found["step"] == 60 and found["quota"] == 200
    assert [value for value in found["memory_bytes"]["mean"] if value is not None] == [100]
    assert len(api.get(f"{place}?seconds=86400").json["cpu_cores"]["cores"]) == 145


def test_figures_are_for_those_who_may_see_the_app(api: Api) -> None:
    give_code(api.app_id)
    assert api.get(f"/apps/{api.app_id}/formation/web/metrics", as_="stranger").status_code == 404


@pytest.mark.parametrize("seconds", ["", "x", "0", "59", "604801", "1e3", "-60", "١٢٠"])
def test_an_impossible_span_is_refused(api: Api, seconds: str) -> None:
    give_code(api.app_id)
    answer = api.get(f"/apps/{api.app_id}/formation/web/metrics", query_string={"seconds": seconds})
    assert answer.status_code == 422 and "seconds" in answer.json["message"]


def test_what_dynos_use_now_is_asked_of_who_runs_them(api: Api, neighbour: Callable[..., Neighbour]) -> None:
    place = "/apps/timely/dyno-usage"
    assert api.get(place).status_code == 503, "nobody is there who could tell"
    used = {"memory": 30, "disk": 4, "cpu": 1.5, "pids": 2, "uptime": None}
    told = {"web.10": used, "web.2": {**used, "uptime": 75.0}, "clock.1": used}
    held: list[int] = []

    def stats(call: wire.Call) -> dict[str, object]:
        held.append(db.engine().pool.checkedout())  # type: ignore[attr-defined]
        return {"dynos": told}

    runtime = neighbour(api.home / "run" / "runtime.sock", {"stats": stats})
    found = api.get(place, as_="viewer").json
    assert [row["name"] for row in found] == ["clock.1", "web.2", "web.10"]
    assert found[1] == {"name": "web.2", "memory": 30, "disk": 4, "cpu": 1.5, "processes": 2, "uptime": 75.0}
    assert runtime.calls == [("stats", {"app_id": api.app_id})] and held == [0], "nothing of the database waits for the runtime"
    part = api.get(place, headers={"Range": "name ..; max=2"})
    assert part.status_code == 206 and [row["name"] for row in part.json] == ["clock.1", "web.10"]
    assert api.get(place, as_="stranger").status_code == 404
