"""The reference in docs/ says what the commands say."""

from __future__ import annotations

import subprocess
import sys

from cli import reference


def test_the_reference_of_the_commands_is_current() -> None:
    # in a process of its own: click keeps the help option that a command was first asked with, and other tests ask otherwise
    said = subprocess.run([sys.executable, "-m", "cli.reference", "-"], capture_output=True, text=True, check=True).stdout
    assert reference.PATH.read_text() == said, "run `python -m cli.reference`"
