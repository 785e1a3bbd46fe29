"""The ring file: of fixed size, merges halves of a step, forgets what is too old, believes no foreign bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import ring

SHAPE = ring.Shape("test", "IQ")
MINUTE, TEN_MINUTES = 60, 600
NOON = 1_700_000_400  # a whole ten minutes


def plus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


def recorded(path: Path, since: float, until: float) -> dict[int, ring.Numbers]:
    return {start: row for start, row in ring.read(path, SHAPE, since, until)[1] if row is not None}


def test_halves_of_a_step_make_a_whole(tmp_path: Path) -> None:
    for at, number in ((NOON, 1), (NOON + 59, 2), (NOON + 60, 5)):
        ring.add(tmp_path / "r", SHAPE, at, (number, number * 10), plus)
    assert recorded(tmp_path / "r", NOON, NOON + 3600) == {NOON: (3, 30), NOON + 60: (5, 50)}
    assert recorded(tmp_path / "r", NOON, NOON + 86400) == {NOON: (8, 80)}, "a long span is read from the coarse ring"


def test_the_file_never_grows(tmp_path: Path) -> None:
    for minute in range(0, 2000, 7):
        ring.add(tmp_path / "r", SHAPE, NOON + minute * 60, (1, 1), plus)
    assert (tmp_path / "r").stat().st_size == SHAPE.size


def test_what_is_too_old_is_not_shown_as_new(tmp_path: Path) -> None:
    ring.add(tmp_path / "r", SHAPE, NOON, (1, 1), plus)
    later = NOON + 360 * MINUTE
    assert recorded(tmp_path / "r", later - 3600, later) == {}
    ring.add(tmp_path / "r", SHAPE, later, (2, 2), plus)
    assert recorded(tmp_path / "r", later - 3600, later) == {later: (2, 2)}, "the place is the next round's"


@pytest.mark.parametrize("content", [b"", b"x", b"davit-ring-1\n\0\0\0", b"\xff" * 70_000])
def test_foreign_bytes_are_nothing_and_are_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    assert recorded(tmp_path / "r", NOON, NOON + 3600) == {}
    ring.add(tmp_path / "r", SHAPE, NOON, (1, 1), plus)
    assert recorded(tmp_path / "r", NOON, NOON + 3600) == {NOON: (1, 1)}


def test_where_there_is_no_directory_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ring.add(tmp_path / "gone" / "r", SHAPE, NOON, (1, 1), plus)
    assert ring.read(tmp_path / "gone" / "r", SHAPE, NOON, NOON + 60) == (60, [(NOON, None), (NOON + 60, None)])


@given(
    minutes=st.lists(st.integers(0, 300), max_size=20),
    span=st.integers(60, 7 * 86400),
)
def test_reading_gives_each_step_once_in_order(tmp_path_factory: pytest.TempPathFactory, minutes: list[int], span: int) -> None:
    path = tmp_path_factory.mktemp("ring") / "r"
    for minute in minutes:
        ring.add(path, SHAPE, NOON + minute * 60, (1, 1), plus)
    until = NOON + 301 * 60
    step, rows = ring.read(path, SHAPE, until - span, until)
    starts = [start for start, _ in rows]
    assert starts == sorted(set(starts)) and all(start % step == 0 for start in starts)
    shown = [minute for minute in minutes if starts[0] <= NOON + minute * 60]
    assert sum(row[0] for _, row in rows if row) == len(shown)
