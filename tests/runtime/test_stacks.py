"""The stack is what apps and buildpacks count on; versions appear whole, stay whole, and go when nobody needs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.programs import run
from foundation.settings import from_environment
from runtime import stack_builder, stacks
from runtime.library import Library
from slugs import image, tarball
from tests.conftest import wait_until

CACHED = Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "stacks"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# -- What is in the stack (the one that all tests of this machine share) --


@pytest.fixture(scope="module")
def stack() -> stacks.Stack:
    found = stacks.ensure(CACHED)
    return stacks.build(CACHED) if stacks.outdated(found) else found


@pytest.fixture(params=["run", "build"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inside(stack: stacks.Stack, variant: str, script: str, tmp_path: Path) -> str:
    """What a shell script prints that runs with the variant as its root, on the host's /dev."""
    mounts = f"mount --bind /dev {tmp_path}/dev && mount -t proc proc {tmp_path}/proc"
    enter = f"{mounts} && exec chroot {tmp_path} /usr/bin/env -i PATH=$P LC_ALL=C.UTF-8 sh -euc \"$0\""
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin"
    command = [*tarball.mounted_command(getattr(stack, variant), tmp_path), "sh", "-c", enter, script]
    return run(command, env={**os.environ, "P": path}).stdout.decode()


@needs_root
def test_every_mount_point_is_there(stack: stacks.Stack, variant: str, tmp_path: Path) -> None:
    files = "/etc/resolv.conf /etc/hosts /etc/hostname /sbin/davit-init /etc/ssl/certs/ca-certificates.crt"
    script = "for d in /app /cache /davit /proc /sys /dev /tmp; do test -d $d; test ! -L $d; done; "
    script += f"for f in {files}; do test -f $f; test ! -L $f; done; stat -c '%u %g %a' /app /tmp"
    assert inside(stack, variant, script, tmp_path) == "1000 1000 755\n0 0 1777\n"


@needs_root
def test_the_dyno_user_lives_in_app(stack: stacks.Stack, variant: str, tmp_path: Path) -> None:
    assert inside(stack, variant, "getent passwd 1000; getent group 1000", tmp_path) == (
        "dyno:x:1000:1000:Dyno:/app:/bin/bash\ndyno:x:1000:\n"
    )


@needs_root
def test_what_apps_count_on_runs(stack: stacks.Stack, variant: str, tmp_path: Path) -> None:
    script = (
        "python3 -c 'import ssl, sqlite3, venv, ctypes, zlib, lzma, bz2; print(1)'; python --version; git --version;"
        "curl --version; bash --version;"
        "zip -v; unzip -v; file --version; openssl version; ip -V; ps --version; zstd --version; xz --version;"
        "locale -a | grep -q C.utf8; test -e /usr/share/zoneinfo/Europe/Berlin; test -e /etc/services"
    )
    assert "Python 3.13" in inside(stack, variant, script, tmp_path)


@needs_root
def test_what_buildpacks_count_on_runs(stack: stacks.Stack, tmp_path: Path) -> None:
    script = (
        "uv --version; node --version; npm --version; ruby --version; erb --version; jq --version; gcc --version; make --version;"
        "shasum --version; perl -v; bzip2 --help; pkg-config --version; test -e /usr/include/python3.13/Python.h;"
        "for l in libpq openssl libffi yaml-0.1 libxml-2.0 sqlite3 zlib; do pkg-config --exists $l; done;"
        "cat /etc/apt/sources.list /etc/apt/sources.list.d/* | grep trixie"
    )
    told = inside(stack, "build", script, tmp_path)
    assert told.startswith("uv ")
    assert "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] " in told


@needs_root
def test_the_run_variant_has_no_compiler(stack: stacks.Stack, tmp_path: Path) -> None:
    assert inside(stack, "run", "command -v gcc make node uv || echo none", tmp_path) == "none\n"


@needs_root
def test_nothing_of_the_building_host_is_inside(stack: stacks.Stack, variant: str, tmp_path: Path) -> None:
    script = (
        "cat /etc/hostname /etc/resolv.conf; ls /etc/machine-id /var/lib/dbus/machine-id /etc/ssh/ssh_host_* 2>/dev/null || true;"
        "ls -A /root /tmp /run /var/log /var/cache /var/lib/apt/lists | grep -v ':$' || true;"
        "ls /usr/sbin/policy-rc.d 2>/dev/null || true;"
        "grep -ril proxy /etc/apt || true; find /usr/share/man /usr/share/locale -type f 2>/dev/null | head -3"
    )
    assert inside(stack, variant, script, tmp_path).split() == []


@needs_root
def test_what_is_compiled_on_the_one_finds_its_libraries_on_the_other(stack: stacks.Stack, tmp_path: Path) -> None:
    folder = "/usr/lib/$(uname -m)-linux-gnu"
    links = f"cd {folder}; for l in *.so; do readlink -f $l; done | xargs -n1 basename"
    linked = inside(stack, "build", links, tmp_path).split()
    there = set(inside(stack, "run", f"ls {folder}", tmp_path).split())
    # Tools of compilers, Debian's own node, and the administration sides of Kerberos and GnuTLS; the rest must be there.
    tools = ("libbfd", "libopcodes", "libgettext", "preloadable", "libnode", "libc.", "libm.", "libncurses")
    tools += ("libgssrpc", "libk", "libgnutls-")
    assert [name for name in linked if name not in there and not name.startswith(tools)] == []


def test_its_description_names_every_package(stack: stacks.Stack) -> None:
    described = stack.description
    assert described["version"] == stack.version
    assert described["packages"]["run"].items() <= described["packages"]["build"].items()
    assert "gcc" in described["packages"]["build"] and "gcc" not in described["packages"]["run"]


# -- Versions --


def a_version(root: Path, version: str, words: bytes = b"image") -> stacks.Stack:
    """A version of a stack whose images are a few bytes."""
    sealed = root / "davit-13" / version
    sealed.mkdir(parents=True)
    for variant in ("run", "build"):
        (sealed / f"{variant}.erofs").write_bytes(words)
        (sealed / variant).mkdir()
    described = stack_builder.describe("davit-13", version, "13.8", "erofs", sealed, [sealed / "run", sealed / "build"])
    (sealed / "stack.json").write_text(json.dumps(described))
    link = root / "davit-13" / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    return stacks.find(root, version)


def test_without_a_stack_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(stacks.StackError, match="davit stack:build"):
        stacks.current(tmp_path)
    assert stacks.versions(tmp_path) == []
    assert stacks.collect(tmp_path, set) == []


def test_the_newest_is_current_and_all_are_found(tmp_path: Path) -> None:
    old, new = a_version(tmp_path, "13.9-20260101000000"), a_version(tmp_path, "13.10-20260201000000")
    assert stacks.current(tmp_path) == new
    assert stacks.versions(tmp_path) == [old, new]
    assert stacks.find(tmp_path, old.version).run.read_bytes() == b"image"


def test_a_stack_of_another_recipe_is_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_version(tmp_path, "13.8-1")
    assert not stacks.outdated(made)
    monkeypatch.setattr(stack_builder, "RUN_PACKAGES", (*stack_builder.RUN_PACKAGES, "cowsay"))
    assert stacks.outdated(made)


def test_a_truncated_image_is_noticed_when_it_is_used(tmp_path: Path) -> None:
    made = a_version(tmp_path, "13.8-1")
    made.build.write_bytes(b"imag")
    with pytest.raises(stacks.StackError, match="damaged"):
        stacks.current(tmp_path)


def test_a_changed_byte_is_noticed_by_verify(tmp_path: Path) -> None:
    made = a_version(tmp_path, "13.8-1")
    stacks.verify(made)
    made.run.write_bytes(b"imagf")
    assert stacks.current(tmp_path) == made
    with pytest.raises(stacks.StackError, match=r"run image.*damaged"):
        stacks.verify(made)


def test_collecting_keeps_the_current_version_and_those_in_use(tmp_path: Path) -> None:
    for number in range(1, 5):
        a_version(tmp_path, f"13.8-{number}")
    assert stacks.collect(tmp_path, lambda: {"13.8-2"}) == ["13.8-1", "13.8-3"]
    assert [found.version for found in stacks.versions(tmp_path)] == ["13.8-2", "13.8-4"]
    assert not list((tmp_path / "davit-13").glob(".removing*"))


def test_versions_that_nothing_uses_go_an_hour_after_a_newer_one(tmp_path: Path) -> None:
    home, shared = {"DAVIT_HOME": str(tmp_path)}, {"DAVIT_STACKS": f"{tmp_path}/shared"}
    for chosen in (from_environment(home), from_environment(home | shared)):
        root, library = chosen.stacks, Library(chosen)
        assert library.collect_stacks(set) == [], "there is none yet"
        old, _ = a_version(root, "13.8-1"), a_version(root, "13.8-2")
        assert library.collect_stacks(set) == [], "a release may be about to begin with the older one"
        os.utime(root / "davit-13" / "current", (0, 0), follow_symlinks=False)
        assert library.collect_stacks(lambda: {"13.8-1"}) == [] and old.run.exists()
        assert library.collect_stacks(set) == (["13.8-1"] if root == tmp_path / "stacks" else [])


def test_nobody_waits_for_a_build_and_what_was_current_until_then_is_kept(tmp_path: Path) -> None:
    root, library = tmp_path / "stacks", Library(from_environment({"DAVIT_HOME": str(tmp_path)}))
    old, newer = a_version(root, "13.8-1"), a_version(root, "13.8-2")
    os.utime(root / "davit-13" / "current", (0, 0), follow_symlinks=False)
    with stacks.locked(root / "davit-13", lambda: None):
        assert library.collect_stacks(set) == []
        a_version(root, "13.8-3")
    assert library.collect_stacks(set) == [], "it is looked at again in an hour"
    assert old.run.exists() and newer.run.exists()


def test_the_command_lists_and_verifies(tmp_path: Path) -> None:
    a_version(tmp_path, "13.8-1")
    command = [sys.executable, "-m", "runtime.stacks"]
    assert "13.8-1 (current)" in run([*command, "list", "--root", tmp_path]).stdout.decode()
    (tmp_path / "davit-13/13.8-1/run.erofs").write_bytes(b"imagf")
    done = run([*command, "verify", "--root", tmp_path], check=False)
    assert done.returncode == 1 and b"damaged" in done.stderr and b"Traceback" not in done.stderr


# -- Building --


def test_the_second_builder_waits_and_takes_what_the_first_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    built = []

    class Slow(stack_builder.StackBuilder):
        def build(self) -> None:
            started.set()
            assert go_on.wait(20)
            built.append(a_version(tmp_path, f"13.8-{len(built)}"))

    monkeypatch.setattr(stack_builder, "StackBuilder", Slow)
    told: list[str] = []
    first = threading.Thread(target=lambda: stacks.build(tmp_path))
    second = threading.Thread(target=lambda: stacks.build(tmp_path, progress=told.append))
    first.start()
    assert started.wait(20)
    second.start()
    wait_until(lambda: told, "the second builder saying that it waits")
    go_on.set()
    first.join()
    second.join()
    assert len(built) == 1
    assert "waiting" in told[0]


@needs_root
def test_without_network_the_sentence_says_so_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_builder, "apt_options", lambda: ["Acquire::Retries=0"])
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    before = a_version(tmp_path, "13.8-1")
    with pytest.raises(stacks.StackError, match=r"cannot be reached.*DAVIT_MIRROR"):
        stacks.build(tmp_path, mirror="http://127.0.0.1:9/debian", progress=lambda line: None)
    assert stacks.current(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "davit-13").iterdir()) == [".lock", "13.8-1", "current"]


@needs_root
def test_too_little_disk_is_said_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_builder, "NEEDED", 1 << 60)
    with pytest.raises(stacks.StackError, match="free disk space"):
        stacks.build(tmp_path, progress=lambda line: None)


@pytest.fixture
def killed_builder(tmp_path: Path) -> Iterator[Path]:
    """A root where a builder was killed by SIGKILL while a program (a silent one) ran for it."""
    program = (
        "import sys; from pathlib import Path; from runtime import stack_builder, stacks\n"
        "stack_builder.mmdebstrap_command = lambda tree, *rest: ['sh', '-c', f'mkdir -p {tree}/etc; sleep 1000; true']\n"
        "stacks.build(Path(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(tmp_path.glob("davit-13/.building-*/run/etc")), "the program starting")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    yield tmp_path
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def processes_of(root: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes()
            if bytes(root) in command and b"pytest" not in command.replace(bytes(root), b""):
                found.append(int(path.parent.name))
    return found


@needs_root
def test_a_killed_builder_leaves_no_process_no_mount_and_no_stack(killed_builder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until(lambda: not processes_of(killed_builder), "the builder's programs ending with it")
    assert str(killed_builder) not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(stacks.StackError):
        stacks.current(killed_builder)
    assert list(killed_builder.glob("davit-13/.building-*"))

    def stop(self: stack_builder.StackBuilder) -> None:
        raise OSError("far enough")

    monkeypatch.setattr(stack_builder.StackBuilder, "_install_run_variant", stop)
    with pytest.raises(stacks.StackError, match="far enough"):
        stacks.build(killed_builder, progress=lambda line: None)
    assert [path.name for path in (killed_builder / "davit-13").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_root
def test_a_stack_is_built_from_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    made = stacks.build(tmp_path, progress=told.append)
    assert stacks.current(tmp_path) == made
    stacks.verify(made)
    assert any("packages set up" in line for line in told)
    assert image.format_of(made.run) == image.preferred_format()
    assert sorted(path.name for path in (tmp_path / "davit-13").iterdir()) == [".lock", made.version, "current"]
    (tmp_path / "inside").mkdir()
    assert inside(made, "run", "python --version", tmp_path / "inside").startswith("Python 3.13")


# -- The pure parts --


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


DEBIAN_12 = {"ID": "debian", "VERSION_CODENAME": "bookworm"}


def test_a_debian_host_lends_its_mirrors(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        "Types: deb deb-src\nURIs: https://security.example/debian-security\nSuites: bookworm-security\nComponents: main\n"
    )
    assert stack_builder.sources_for(None, apt, DEBIAN_12, None, lambda url: False) == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb https://security.example/debian-security trixie-security main",
    ]


def test_the_older_format_and_options_are_understood(apt: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb http://commented.example/debian bookworm main\n"
        "deb-src http://source.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian bookworm main contrib\n"
        "deb http://other.example/tool stable main\n"
    )
    assert stack_builder.host_mirrors(apt, DEBIAN_12) == ("http://mirror.example/debian", None)


def test_another_distribution_gets_the_default_mirror(apt: Path) -> None:
    (apt / "sources.list").write_text("deb http://ubuntu.example/ubuntu jammy main\n")
    jammy = {"ID": "ubuntu", "VERSION_CODENAME": "jammy"}
    default = stack_builder.default_mirror("my $mirror = 'http://m.example/debian';\n# http://other.example/debian\n")
    assert stack_builder.sources_for(None, apt, jammy, default, lambda url: True)[2] == (
        "deb http://m.example/debian-security trixie-security main"
    )
    assert stack_builder.sources_for(None, apt, jammy, None, lambda url: True) == []


def test_mmdebstrap_tells_its_default_mirror() -> None:
    assert stack_builder.default_mirror(stack_builder._program_text("mmdebstrap"))


@pytest.mark.parametrize("has_security", [True, False])
def test_a_chosen_mirror_serves_security_fixes_when_it_has_them(apt: Path, has_security: bool) -> None:
    asked: list[str] = []

    def is_there(url: str) -> bool:
        asked.append(url)
        return has_security

    lines = stack_builder.sources_for("http://m.example/debian/", apt, DEBIAN_12, None, is_there)
    assert asked == ["http://m.example/debian-security/dists/trixie-security/InRelease"]
    assert ("deb http://m.example/debian-security trixie-security main" in lines) is has_security


def test_progress_is_told_in_quarters() -> None:
    counter = stack_builder.PackageCount("the run variant")
    lines = ["Setting up early (1) ...", "0 upgraded, 8 newly installed, 0 to remove"]
    lines += [f"Setting up package{number} (1) ..." for number in range(10)]
    told = [line for line in map(counter.read, lines) if line]
    assert told == [f"  the run variant: {number} of 8 packages set up" for number in (2, 4, 6, 8)]


@given(st.lists(st.text(max_size=40) | st.sampled_from(["0 upgraded, 3 newly installed", "Get:1 x", "Setting up z"])))
def test_progress_survives_whatever_programs_print(lines: list[str]) -> None:
    counter = stack_builder.PackageCount("x")
    for line in lines:
        counter.read(line)


def test_failures_are_explained() -> None:
    assert "disk is full" in stack_builder.explain("It failed", ["tar: x: Cannot write: No space left on device"])
    assert "cannot be reached" in stack_builder.explain("It failed", ["E: Could not resolve 'mirror.example'"])
    told = stack_builder.explain("It failed", ["noise", "E: broken http://user:secret@mirror.example/x", "noise"])
    assert told == "It failed: E: broken http://mirror.example/x"


def test_proxies_reach_the_programs_and_nothing_else_does() -> None:
    proxies = {"http_proxy": "http://p:1", "HTTPS_PROXY": "http://p:2", "no_proxy": "x"}
    given_to = stack_builder.environment({**proxies, "DATABASE_URL": "secret"})
    assert given_to.items() >= proxies.items()
    assert "DATABASE_URL" not in given_to
