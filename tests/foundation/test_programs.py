"""Running a program: its output, its failure in a sentence, its end in time."""

from __future__ import annotations

import pytest

from foundation import programs
from foundation.programs import ProgramFailed


def test_what_it_prints_is_there() -> None:
    assert programs.run(["sh", "-c", "cat; echo err >&2"], input=b"in").stdout == b"in"


def test_a_failure_ends_with_its_last_words() -> None:
    with pytest.raises(ProgramFailed, match=r"failed with status 3: what was wrong") as caught:
        programs.run(["sh", "-c", "echo first >&2; echo what was wrong >&2; exit 3"])
    assert caught.value.returncode == 3


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProgramFailed, match="no-such-program is not installed"):
        programs.run(["no-such-program"])


def test_one_that_hangs_is_ended() -> None:
    with pytest.raises(ProgramFailed, match=r"did not finish within 0\.2 seconds"):
        programs.run(["sleep", "60"], timeout=0.2)


def test_a_failure_that_is_expected_is_no_error() -> None:
    assert programs.run(["false"], check=False).returncode == 1
