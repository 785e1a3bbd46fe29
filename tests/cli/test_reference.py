"""The reference in docs/ says what the commands say."""

from __future__ import annotations

from cli import reference


def test_the_reference_of_the_commands_is_current() -> None:
    assert reference.PATH.read_text() == reference.render(), "run `python -m cli.reference`"
