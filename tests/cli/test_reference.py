"""The reference in docs/ says what the commands say."""

from __future__ import annotations

import subprocess
import sys

from cli import reference


def test_the_reference_of_the_commands_is_current() -> None:
    # in a process of its own: click keeps the help option that a command was first asked with, and other tests ask otherwise
    said = subprocess.run([sys.executable, "-m", "cli.reference", "-"], capture_output=True, text=True, check=True).stdout
    assert reference.PATH.read_text() == said, "run `python -m cli.reference`"


def test_what_microvms_need_first_is_said_wherever_they_are_offered() -> None:
    """A host has neither QEMU nor their kernel of itself, and a unikernel does not grow while it runs."""
    build = "davit stack:build --vm"
    offered = (reference.PATH.parents[1] / "README.md").read_text()
    assert 0 < offered.index(build) < offered.index("web=microvm")
    told = {section.partition("\n")[0]: " ".join(section.split()) for section in reference.PATH.read_text().split("\n## ")}
    assert build in told["ps:isolation"] and "DAVIT_OSV_KERNEL" in told["ps:isolation"]
    assert "A unikernel has the memory that it was started with" in told["ps:resize"]
