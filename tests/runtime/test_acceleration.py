"""What is found out about KVM, remembered and doubted."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path

import pytest

from runtime.acceleration import AGAIN_SECONDS, Acceleration, find_out

KEY = {"qemu": "7.2.0", "kernel": "1"}


class Attempts:
    """Test boots that end as it is said."""

    def __init__(self, *ends: str | None) -> None:
        self.ends = list(ends)

    async def __call__(self) -> str | None:
        return self.ends.pop(0)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """It is there; nothing is said of whether it works."""
    (tmp_path / "kvm").touch()
    return tmp_path / "kvm"


def test_without_the_device_nothing_is_booted(tmp_path: Path) -> None:
    found = asyncio.run(find_out("machines", tmp_path / "known", KEY, Attempts(), tmp_path / "none"))
    assert found == Acceleration(False, "there is no /dev/kvm")
    assert str(found) == "emulated and slow (TCG): there is no /dev/kvm"


def test_a_boot_says_it_and_is_asked_once(tmp_path: Path, device: Path, caplog: pytest.LogCaptureFixture) -> None:
    once = Attempts(None)
    with caplog.at_level(logging.INFO, "runtime"):
        for _ in range(2):
            assert asyncio.run(find_out("machines", tmp_path / "known", KEY, once, device)) == Acceleration(True)
    assert [record.message for record in caplog.records] == ["machines run with KVM"] * 2  # every start of Davit says it


@pytest.mark.parametrize("other", [{"qemu": "8.0.0"}, {"kernel": "2"}])
def test_another_qemu_or_kernel_is_tried_anew(tmp_path: Path, device: Path, other: dict[str, str]) -> None:
    boots = Attempts("it stops", None)
    assert not asyncio.run(find_out("machines", tmp_path / "known", KEY, boots, device)).kvm
    assert asyncio.run(find_out("machines", tmp_path / "known", {**KEY, **other}, boots, device)).kvm


def test_a_no_is_doubted_after_an_hour(tmp_path: Path, device: Path) -> None:
    known, boots = tmp_path / "known", Attempts("it stops", None)
    for _ in range(2):
        assert asyncio.run(find_out("machines", known, KEY, boots, device)) == Acceleration(False, "it stops")
    written = json.loads(known.read_text())
    known.write_text(json.dumps({**written, "at": time.time() - AGAIN_SECONDS}))
    assert asyncio.run(find_out("machines", known, KEY, boots, device)).kvm, "the host may only have been busy"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "null"])
def test_what_cannot_be_read_is_found_out_anew(tmp_path: Path, device: Path, damage: str) -> None:
    (tmp_path / "known").write_text(damage)
    assert asyncio.run(find_out("machines", tmp_path / "known", KEY, Attempts(None), device)).kvm
