"""``python -m bench``: what reaches a bench of the settings of whoever starts them all, and how one is interrupted."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bench import __main__ as benches
from bench.tables import FIGURES, Figure, hand_over

STUBBORN = """
import os, signal, sys, threading
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getppid(), signal.SIGINT)  # as Ctrl-C
    threading.Event().wait()
except KeyboardInterrupt:
    os.kill(os.getppid(), signal.SIGINT)  # once more, while it clears away
    os.kill(os.getppid(), signal.SIGTERM)
    Path(sys.argv[1]).write_text("own session" if os.getsid(0) == os.getpid() else "the terminal's")
"""


def test_a_bench_hears_of_the_kernel_that_unikernels_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DAVIT_OSV_KERNEL", "DAVIT_OSV_MODULES", "DAVIT_BUILD_SLOTS"):
        monkeypatch.setenv(name, "/mine")
    with benches.environment_for(benches.BENCHES["vms"], tmp_path, False) as environment:
        assert (environment["DAVIT_OSV_KERNEL"], environment["DAVIT_OSV_MODULES"]) == ("/mine", "/mine")
        assert "DAVIT_BUILD_SLOTS" not in environment


def test_a_bench_that_is_interrupted_may_clear_away_what_it_made(tmp_path: Path) -> None:
    """However impatient the person is: Ctrl-C reaches it once."""
    with pytest.raises(KeyboardInterrupt):
        benches.run([sys.executable, "-c", STUBBORN, str(tmp_path / "cleared")], os.environ, 600)
    assert (tmp_path / "cleared").read_text() == "own session"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_bench_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    ends = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); signal.pause()"
    assert benches.run([sys.executable, "-c", ends], os.environ, 0) == "it took more than 0 s and was interrupted"


def test_figures_measured_before_an_interruption_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(name: str, bench: object, figures: Path, quick: bool) -> None:
        if name == "idle":
            raise KeyboardInterrupt
        monkeypatch.setenv(FIGURES, str(figures))
        hand_over([Figure(name, "how long it took", "12 ms")])

    monkeypatch.setattr(benches, "work", work)
    monkeypatch.setattr(benches, "accelerations", lambda: ["microVMs: they run with KVM"])
    monkeypatch.setattr(benches.os, "geteuid", lambda: 0)
    monkeypatch.setattr("sys.argv", ["bench", "push", "idle", "logs"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert benches.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr().out
    assert "microVMs: they run with KVM" in told.partition("== push")[0], "on top"
    assert "how long it took | 12 ms" in told and "idle: interrupted" in told and "== logs" not in told


def test_how_virtual_machines_run_is_asked_of_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.host import doctor

    monkeypatch.setattr(doctor, "check_microvm", lambda ours: doctor.Point("microvm", "ok", f"with KVM, of {ours.stacks.name}"))
    monkeypatch.setattr(doctor, "check_osv", lambda ours: doctor.Point("OSv kernel", "ok", "emulated"))
    monkeypatch.delenv("DAVIT_OSV_KERNEL", raising=False)
    assert list(benches.accelerations()) == ["microVMs: with KVM, of stacks"]
    monkeypatch.setenv("DAVIT_OSV_KERNEL", "/mine")
    assert list(benches.accelerations())[1] == "unikernels: emulated"
