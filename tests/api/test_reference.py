"""The reference in docs/ says what the code does."""

from __future__ import annotations

from api import reference


def test_the_api_reference_is_current() -> None:
    assert reference.PATH.read_text() == reference.render(), "run `python -m api.reference`"
