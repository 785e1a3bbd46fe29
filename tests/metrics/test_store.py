"""Figures: what router and runtime recorded comes out as the lines of charts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import dynos, histogram, requests, ring
from metrics.dynos import Sample
from metrics.requests import Requests
from metrics.store import Store

MIB = 1 << 20


def answered(home: Path, *answers: tuple[int, float], app: str = "app") -> None:
    (home / "metrics" / app).mkdir(parents=True, exist_ok=True)
    counter = Requests(home)
    for status, seconds in answers:
        counter.count(app, status, seconds)
    counter.write()


def test_requests_by_status_and_time(tmp_path: Path) -> None:
    answered(tmp_path, *[(200, 0.02)] * 90, *[(404, 0.02)] * 5, *[(503, 2.0)] * 5, (101, 60.0))
    figures = Store(tmp_path).figures("app", "web", 3600)
    assert figures is not None and figures.step == 60
    by_name = {line.name: line.values for line in figures.statuses}
    shares = {name: max(values) for name, values in by_name.items() if max(values)}
    assert set(shares) == {"2xx", "4xx", "5xx"}
    assert shares["2xx"] / shares["5xx"] == pytest.approx(18), "a switched protocol counts nowhere"
    p50, p95, p99 = ([value for value in line.values if value is not None][-1] for line in figures.response)
    assert 0.015 < p50 < 0.025 and 0.015 < p95 < 0.03 and 1.5 < p99 < 2.9


def test_requests_are_of_web_only(tmp_path: Path) -> None:
    answered(tmp_path, (200, 0.1))
    assert Store(tmp_path).figures("app", "worker", 3600) is None


def test_apps_that_the_runtime_does_not_know_get_no_files(tmp_path: Path) -> None:
    counter = Requests(tmp_path)
    counter.count("gone", 200, 0.1)
    counter.write()
    assert not (tmp_path / "metrics").exists()


def test_dynos_of_a_type_together(tmp_path: Path) -> None:
    for memory in (100 * MIB, 300 * MIB):
        dynos.write(tmp_path, "app", {"worker": Sample(2, memory, 1024 * MIB, 3.0, 1)})
    figures = Store(tmp_path).figures("app", "worker", 3600, time.time() + 60)
    assert figures is not None and figures.quota == 1024 * MIB
    mean, most = (max(value for value in line.values if value is not None) for line in figures.memory)
    assert (mean, most) in ((200 * MIB, 300 * MIB), (300 * MIB, 300 * MIB)), "in one step, or in two"
    assert sum(value for value in figures.restarts[0].values if value) == 2
    assert not figures.requests


def test_strange_process_types_stay_inside_the_directory(tmp_path: Path) -> None:
    dynos.write(tmp_path, "app", {"../../evil/..": Sample(1, MIB)})
    assert [path.parent for path in tmp_path.rglob("dynos.*")] == [tmp_path / "metrics" / "app"]
    assert Store(tmp_path).figures("app", "../../evil/..", 3600) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_the_runtime_makes_belongs_to_the_homes_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    dynos.write(tmp_path, "app", {"web": Sample(1)})
    assert {path.stat().st_uid for path in (tmp_path / "metrics").rglob("*")} == {1234}


def test_a_destroyed_app_leaves_none(tmp_path: Path) -> None:
    dynos.write(tmp_path, "app", {"web": Sample(1)})
    dynos.forget(tmp_path, "app")
    assert not (tmp_path / "metrics" / "app").exists()


def test_lists_show_apps_that_were_asked(tmp_path: Path) -> None:
    answered(tmp_path, (200, 0.1), (500, 0.1), app="busy")
    answered(tmp_path, app="quiet")
    found = Store(tmp_path).requests(["busy", "quiet", "unknown"])
    assert set(found) == {"busy"}
    values, errors = found["busy"]
    assert errors == 0.5 and max(value for value in values if value is not None) > 0


def test_a_minute_that_has_just_begun_makes_no_drop_and_no_spike_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "metrics/app").mkdir(parents=True)
    minute = 1_700_000_040.0
    zeros = [0] * (len(requests.CLASSES) + histogram.BUCKETS - 1)
    for at, count in ((minute - 120, 600), (minute - 60, 600), (minute + 1, 100)):
        ring.add(requests.path(tmp_path, "app"), requests.SHAPE, at, [count, *zeros], requests.merge)
    for now in (minute, minute + 1, minute + 59):
        figures = Store(tmp_path).figures("app", "web", 3600, now)
        assert figures is not None and list(figures.requests[0].values)[-2:] == [10, 10]
        assert list(Store(tmp_path).requests(["app"], now)["app"][0])[-2:] == [10, 10]


def test_what_has_just_begun_is_shown_where_there_is_nothing_else(tmp_path: Path) -> None:
    answered(tmp_path, (200, 0.1))
    assert Store(tmp_path).figures("app", "web", 3600) is not None
    assert Store(tmp_path).requests(["app"])


def test_a_week_is_condensed(tmp_path: Path) -> None:
    (tmp_path / "metrics/app").mkdir(parents=True)
    now = 1_700_000_000.0
    zeros = [0] * (len(requests.CLASSES) + histogram.BUCKETS - 1)
    for hours in range(0, 167):
        ring.add(requests.path(tmp_path, "app"), requests.SHAPE, now - hours * 3600, [3600, *zeros], requests.merge)
    figures = Store(tmp_path).figures("app", "web", 7 * 86400, now)
    assert figures is not None and figures.step == 1800
    values = figures.requests[0].values
    assert len(values) <= 360 and sum(values) * 1800 == pytest.approx(167 * 3600, rel=0.02)


@given(st.lists(st.floats(0.0001, 40), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_percentile_is_near_the_true_one(times: list[float], share: float) -> None:
    counts = [0] * histogram.BUCKETS
    for seconds in times:
        counts[histogram.bucket(seconds)] += 1
    found = histogram.percentile(counts, share)
    import math

    true = sorted(times)[max(0, math.ceil(share * len(times) - 1e-9) - 1)]
    assert found is not None and true / 1.4143 - 0.001 <= found <= true * 1.4143 + 0.001


@given(st.floats(0, 1e6))
def test_every_time_has_a_bucket_whose_bounds_hold_it(seconds: float) -> None:
    number = histogram.bucket(seconds)
    lower, upper = histogram.bounds(number)
    assert 0 <= number < histogram.BUCKETS
    assert lower <= seconds * 1.0001 and (seconds <= upper * 1.0001 or number == histogram.BUCKETS - 1)
