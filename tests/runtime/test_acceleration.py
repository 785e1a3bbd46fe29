"""What is found out about KVM, remembered and doubted."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.acceleration import AGAIN_SECONDS, Acceleration, find_out
from runtime.children import state
from tests.conftest import wait_until

KEY = {"qemu": "7.2.0", "kernel": "1"}


class Attempts:
    """Test boots that end as it is said."""

    def __init__(self, *ends: str | None) -> None:
        self.ends = list(ends)

    async def __call__(self, place: Path) -> str | None:
        assert not list(place.iterdir())
        (place / "monitor").touch()
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
    assert [record.message for record in caplog.records] == ["machines run with KVM"] * 2  # each time that one is wanted


def test_nothing_is_left_of_a_boot_also_when_the_one_before_was_killed(tmp_path: Path, device: Path) -> None:
    (tmp_path / "known.trial").mkdir()
    (tmp_path / "known.trial" / "monitor").touch()
    asyncio.run(find_out("machines", tmp_path / "known", KEY, Attempts("it stops"), device))
    assert not (tmp_path / "known.trial").exists()


def test_what_boots_ends_when_who_tries_is_killed() -> None:
    code = (
        "import subprocess, time; from runtime.acceleration import ending_with_us\n"
        "print(subprocess.Popen(ending_with_us(['/usr/bin/sleep', '600'], 600)).pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as tries:
        assert tries.stdout
        limiting = int(tries.stdout.readline())
        wait_until(lambda: _machine(limiting) is not None, "it boots")
        machine = _machine(limiting)
        assert machine is not None
        tries.kill()
    wait_until(lambda: state(machine) in ("", "Z"), "its end")


def _machine(limiting: int) -> int | None:
    """What is run for a limited time, once it is."""
    try:
        pids = [int(word) for word in Path(f"/proc/{limiting}/task/{limiting}/children").read_text().split()]
        return next((pid for pid in pids if b"sleep" in Path(f"/proc/{pid}/comm").read_bytes()), None)
    except OSError:
        return None


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
