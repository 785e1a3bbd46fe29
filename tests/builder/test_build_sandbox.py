"""Builds that mean harm, in the real sandbox of a real runtime process: each ends with a sentence, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builder import job
from foundation import wire
from foundation.errors import DavitError
from foundation.settings import settings
from state import apps, db
from state.models import Account, App
from tests.api.conftest import Neighbour, neighbour
from tests.builder.test_build_job import PACK, Pushed, davit
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
STACKS = Path(os.environ.get("DAVIT_STACKS") or "/var/cache/davit/stacks")
REPOSITORY = Path(__file__).parents[2]

__all__ = ["davit", "neighbour"]


class Sandboxed(Pushed):
    """An app whose builds run in sandboxes of ``runtime``, a real runtime process."""

    runtime: subprocess.Popen[bytes]

    def start(self) -> None:
        self.runtime = subprocess.Popen([sys.executable, "-m", "runtime"], cwd=REPOSITORY)
        wait_until(lambda: self._answers() or self.runtime.poll() is not None, "the runtime process answering")

    def _answers(self) -> bool:
        try:
            return bool(wire.call(settings().run / "runtime.sock", "ping", {}, timeout=30).result)
        except DavitError:
            return False

    def kill(self) -> None:
        self.runtime.kill()
        self.runtime.wait()


@pytest.fixture
def sandboxed(davit: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandboxed]:
    """An app whose builds run in containers with 300 MB of memory and 200 MB of disk."""
    if not (STACKS / "davit-13" / "current").exists():
        pytest.fail(f"There is no stack in {STACKS}; `make setup` builds it.")
    for name, value in {
        "DAVIT_STACKS": str(STACKS),
        "DAVIT_BUILD_MEMORY": "300",
        "DAVIT_BUILD_DISK": "200",
        "DAVIT_BUILD_TIMEOUT": "240",
    }.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    pushed = Sandboxed(davit)
    try:
        pushed.start()
        yield pushed
    finally:
        pushed.runtime.terminate()
        pushed.runtime.wait(30)
        subprocess.run([sys.executable, "-m", "runtime", "stop"], cwd=REPOSITORY, check=True, timeout=240)


def build(pushed: Pushed, **scripts: str) -> tuple[str, str]:
    """The failure's sentence and the output of a build with these scripts."""
    pushed.set_pack(**{**PACK, **scripts})
    build_id = pushed.build(pushed.commit(Procfile="web: x\n"))
    job.build(build_id)
    return pushed.row(build_id).failure or "", pushed.output(build_id)


HARM = {
    "memory": ("exec /usr/bin/python3 -c 'x=[bytearray(1<<20) for _ in range(2000)]'", ""),
    "disk": ('head -c 400000000 /dev/urandom > "$1/big"', "out of disk"),
    "fork bomb": ("bomb() { bomb | bomb & }; bomb; sleep 3; /bin/true || exit 1; exit 1", ""),
    "kills everything": ("kill -9 -1; sleep 60", "was ended from inside"),
    "kills its group": ("kill -9 0", "signal 9"),
    "hangs": ("trap '' TERM; sleep 600", "longer than 1 minute"),
}


def test_harm_ends_in_a_failed_build_and_the_next_build_is_as_if_nothing_had_been(
    sandboxed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (script, sentence) in HARM.items():
        if os.environ.get("ONLY", name) != name:
            continue
        monkeypatch.setenv("DAVIT_BUILD_TIMEOUT", "240" if name != "hangs" else "5")
        settings.cache_clear()
        failure, printed = build(sandboxed, compile=script)
        print(name, "→", failure, printed[-300:])
        assert failure and "inside Davit" not in failure, (name, printed)
        assert sentence.replace("1 minute", "5 seconds") in failure, (name, failure)
    failure, printed = build(sandboxed, compile="echo fine; exit 9")
    assert "fine\n" in printed and "status 9" in failure


def test_a_build_reaches_neither_the_host_nor_the_environment_of_davit(sandboxed: Pushed) -> None:
    redis, home = os.environ["REDIS_URL"].removeprefix("unix://"), os.environ["DAVIT_HOME"]
    script = f"""
        ls {redis} {home} 2>&1
        gateway=$(ip route | awk '/default/ {{print $3}}')
        for address in $gateway 127.0.0.1 169.254.169.254 10.0.0.1; do
            for port in 22 80 5000 6379 8080; do
                timeout 1 bash -c "echo > /dev/tcp/$address/$port" 2>/dev/null && echo "reached $address:$port"
            done
        done
        env | grep -iE 'redis|database|davit_home'
        id -u; grep CapEff /proc/self/status; exit 9
    """
    failure, printed = build(sandboxed, compile=script)
    assert "status 9" in failure
    assert "reached" not in printed and "REDIS" not in printed
    assert printed.count("No such file or directory") == 2 and "\n1000\n" in printed and "CapEff:\t0000000000000000" in printed


def test_what_is_sealed_hangs_where_every_kernel_can_mount_it_once_more(
    sandboxed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.15 what hangs in no mount tree cannot be: there, no build would succeed."""
    (runtime,) = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "python.* -m runtime"], capture_output=True
    ).stdout.split()
    place = settings().run / "sandbox-"

    def mounted() -> str:
        return "".join(line for line in Path(f"/proc/{int(runtime)}/mountinfo").read_text().splitlines() if f" {place}" in line)

    seen = []
    real = job.BuildJob._keep_cache

    def keep(self: job.BuildJob, sandbox: Any) -> None:
        seen.append(mounted())
        real(self, sandbox)

    with monkeypatch.context() as patched:
        patched.setattr(job.BuildJob, "_keep_cache", keep)
        _, printed = build(sandboxed, compile='echo x > "$2/kept"')
    assert "Done: " in printed and len(seen) == 1 and " overlay " in seen[0], printed
    wait_until(lambda: not mounted() and not list(settings().run.glob("sandbox-*")), "nothing of the sandbox left")


def test_a_cache_is_thrown_away_and_a_build_under_way_brings_it_not_back(
    sandboxed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def caches() -> list[Path]:
        return list((settings().home / "caches").glob("*"))

    def purge() -> None:
        wire.call(settings().run / "runtime.sock", "cache.purge", {"app_id": sandboxed.app.id})

    fills = 'ls -A "$2"; echo "end of cache"; echo x > "$2/kept"'
    build(sandboxed, compile=fills)
    assert len(caches()) == 1
    _, printed = build(sandboxed, compile=fills)
    assert "kept\nend of cache" in printed
    purge()
    purge()
    assert not caches()
    real = job.BuildJob._keep_cache

    def keep(self: job.BuildJob, sandbox: Any) -> None:
        purge()
        real(self, sandbox)

    with monkeypatch.context() as patched:
        patched.setattr(job.BuildJob, "_keep_cache", keep)
        _, printed = build(sandboxed, compile=fills)
    assert "Test app detected\nend of cache" in printed and not caches()
    build(sandboxed, compile=fills)
    assert len(caches()) == 1


def test_a_cache_that_cannot_be_mounted_costs_time_and_no_build(sandboxed: Pushed) -> None:
    (cache,) = [settings().home / "caches" / f"{sandboxed.app.id}.img"]
    counts = 'echo "cache: $(ls "$2" | tr "\\n" " ")end"; touch "$2/$(ls "$2" | wc -l)"'
    seen = []
    for content in (None, b"", bytes(4096), None, None):
        if content is not None:
            cache.write_bytes(content)
        failure, printed = build(sandboxed, compile=counts)
        assert "Done: " in printed, (failure, printed)
        seen.append(printed.partition("cache: ")[2].partition("end")[0].split())
    assert seen == [[], [], [], ["0"], ["0", "1"]], "the last of them has what the one before it left"


def _left() -> list[str]:
    """What is there of sandboxes besides caches that are kept."""
    home = settings().home
    patterns = ("caches/*.img.*", "slugs/incoming/*", "run/cache-*", "run/sandbox-*")
    return sorted(str(path.relative_to(home)) for pattern in patterns for path in home.glob(pattern))


def test_a_runtime_that_is_killed_while_it_writes_a_cache_leaves_nothing_of_it(
    sandboxed: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, left = settings().home / "caches", [[""], [""]]

    def cut() -> None:
        wait_until(lambda: list(caches.glob("*.img*")), "a cache being written")
        sandboxed.kill()
        (settings().home / "slugs" / "incoming" / "of-a-build-that-was-given-up.img").touch()
        left[0] = _left()
        sandboxed.start()
        left[1] = _left()

    real = job.BuildJob._keep_cache

    def keep(self: job.BuildJob, sandbox: Any) -> None:
        cutting = threading.Thread(target=cut)
        cutting.start()
        real(self, sandbox)
        cutting.join()

    monkeypatch.setattr(job.BuildJob, "_keep_cache", keep)
    for _ in range(3):  # where the cut comes too late, once more
        _, printed = build(sandboxed, compile='head -c 120000000 /dev/urandom > "$2/large"')
        assert left[1] == []
        if len(left[0]) == 4:
            break
        for path in caches.iterdir():
            path.unlink()
    assert len(left[0]) == 4, left
    assert "The build cache could not be kept" in printed and not list(caches.iterdir())


def test_the_cache_of_an_app_that_is_destroyed_while_it_is_built_does_not_come_back(
    sandboxed: Sandboxed, neighbour: Callable[..., Neighbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour(settings().run / "router.sock", {"sync": lambda call: None})  # an app goes once it has no routes
    real = job.BuildJob._keep_cache

    def is_gone() -> bool:
        with db.snapshot() as session:
            return session.get(App, sandboxed.app.id) is None

    def keep(self: job.BuildJob, sandbox: Any) -> None:
        with db.transaction() as session:
            app, account = session.get(App, sandboxed.app.id), session.get(Account, sandboxed.account.id)
            assert app and account
            apps.destroy(session, account, app)
        wait_until(is_gone, "the app's end")
        real(self, sandbox)

    monkeypatch.setattr(job.BuildJob, "_keep_cache", keep)
    sandboxed.set_pack(**{**PACK, "compile": 'echo x > "$2/kept"'})
    job.build(sandboxed.build(sandboxed.commit(Procfile="web: x\n")))
    wait_until(lambda: not _left(), "nothing of the sandbox left")
    assert not list((settings().home / "caches").glob("*"))


def test_the_cache_of_a_failed_build_is_not_kept(sandboxed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    build(sandboxed, compile='echo x > "$2/mark"; exit 1')
    _, printed = build(sandboxed, compile='ls -A "$2"; echo "end of cache"; exit 1')
    assert "Test app detected\nend of cache" in printed
    assert not list((settings().home / "caches").glob("*"))


@pytest.mark.row("slug-too-large")
def test_a_slug_beyond_the_limit_is_refused_and_nothing_of_it_stays(
    davit: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("DAVIT_SLUG_LIMIT", "1")
    sandboxed = request.getfixturevalue("sandboxed")
    failure, printed = build(sandboxed, compile='head -c 3000000 /dev/urandom > "$1/big"')
    assert_says("slug-too-large", failure)
    assert "larger than 1 MB" in printed and "nothing was changed" in printed
    assert not [path for path in (davit / "slugs").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20], (
        "nothing is left"
    )
