"""What reaches a bench of the settings of whoever starts them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import __main__ as benches


def test_a_bench_hears_of_the_kernel_that_unikernels_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DAVIT_OSV_KERNEL", "DAVIT_OSV_MODULES", "DAVIT_BUILD_SLOTS"):
        monkeypatch.setenv(name, "/mine")
    with benches.environment_for(benches.BENCHES["vms"], tmp_path, False) as environment:
        assert (environment["DAVIT_OSV_KERNEL"], environment["DAVIT_OSV_MODULES"]) == ("/mine", "/mine")
        assert "DAVIT_BUILD_SLOTS" not in environment
