"""The token bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from logs.budget import Budget


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 500)), max_size=60))
def test_never_more_than_burst_and_rate_allow(steps: list[tuple[float, int]]) -> None:
    now = start = 100.0
    budget = Budget(rate=20, burst=50, now=now)
    passed = 0
    for wait, wanted in steps:
        now += wait
        units = min(wanted, budget.left(now))
        budget.take(units)
        passed += units
        assert passed <= 50 + 20 * (now - start) + 1e-6


def test_an_empty_bucket_fills_again_and_a_share_fills_slower() -> None:
    budget = Budget(rate=10, burst=100, now=0)
    budget.take(100)
    assert budget.left(0) == 0
    assert budget.left(1) == 10
    assert budget.left(2, share=0.5) == 15
    assert budget.left(1000) == 100


def test_a_debt_is_paid_first() -> None:
    budget = Budget(rate=10, burst=10, now=0)
    budget.take(30)
    assert budget.left(1) == 0
    assert budget.left(3) == 10
