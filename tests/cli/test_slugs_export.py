"""``davit slugs:export``: a real slug and a real (small) stack become files that readers of their own take apart."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cli.host import slugs
from foundation.errors import DavitError
from slugs import osvimage, rofs
from slugs.store import Store
from state import accounts, apps, db, releases, vault
from state.models import Slug
from tests.e2e.errors_page import assert_says
from tests.runtime import rootfs
from tests.state.conftest import forget_caches

pytestmark = [pytest.mark.root]
_EXPORT = """
import signal, sys
from pathlib import Path
from cli.host import slugs
from foundation.errors import DavitError
from foundation.settings import settings
home, stack, digest, form, target, loader, builder = sys.argv[1:]
what = slugs.Export("shop", 3, digest, "", {"web": "/usr/bin/python3 -m http.server $PORT", "clock": "a | b"}, {"MODE": "plain", "OPTIONS": "-a -b", "PORT": "1"})
try:
    slugs.export(settings(), what, form, Path(target), stack=Path(stack), loader=Path(loader) if loader else None, builder=Path(builder) if builder else None, say=print)
except DavitError as error:
    print("error:", error.message); sys.exit(1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, str]]:
    """A DAVIT_HOME with one slug, a stack image, the slug's digest."""
    home = tmp_path_factory.mktemp("home")
    (home / "slugs").mkdir()
    stack = rootfs.build(tmp_path_factory.mktemp("stack"))
    made = rootfs.app_image(tmp_path_factory.mktemp("slug"), {"index.html": "hello\n", ".heroku/x": "y"})
    yield home, stack, Store(home / "slugs").put(made).digest


def export(
    place: tuple[Path, Path, str], form: str, target: Path, loader: Path | None = None, builder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    home, stack, digest = place
    argv = [sys.executable, "-c", _EXPORT, home, stack, digest, form, target, loader or "", builder or ""]
    return subprocess.run(argv, env={**os.environ, "DAVIT_HOME": str(home)}, capture_output=True, text=True, timeout=200)


def boot_disk(path: Path) -> Path:
    """Stands for OSv's loader.img: a boot sector and what follows it."""
    path.write_bytes(b"boot".ljust(510, b"\x90") + b"\x55\xaa" + bytes(1 << 20))
    return path


def test_herokus_tarball(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    done = export(place, "heroku", tmp_path / "slug.tar.gz")
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(tmp_path / "slug.tar.gz") as archive:
        assert archive.extractfile("./app/index.html").read() == b"hello\n"  # type: ignore[union-attr]


def test_capstans_package_runs_what_can_run_and_says_what_cannot(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    done = export(place, "capstan", tmp_path / "shop.mpm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clock is left out: The command pipes" in done.stdout
    assert "OPTIONS is left out: it has a blank, a quote, one of" in done.stdout
    with tarfile.open(tmp_path / "shop.mpm") as archive:
        run = yaml.safe_load(archive.extractfile("meta/run.yaml"))  # type: ignore[arg-type]
        names = set(archive.getnames())
        assert archive.extractfile("app/index.html").read() == b"hello\n"  # type: ignore[union-attr]
    assert list(run["config_set"]) == ["web"] and "davit_launch" in run["config_set"]["web"]["bootcmd"]
    assert run["config_set"]["web"]["env"]["PORT"] == "8080", "ours, not the buildpacks'"
    assert run["config_set"]["web"]["env"]["MODE"] == "plain" and "OPTIONS" not in run["config_set"]["web"]["env"]
    assert {"etc/davit/python/sitecustomize.py", "lib64/ld-linux-x86-64.so.2", "meta/package.yaml"} <= names


def test_a_disk_that_boots_by_itself(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    loader = boot_disk(tmp_path / "loader.img")
    done = export(place, "osv-image", tmp_path / "disk.img", loader)
    assert done.returncode == 0, done.stdout + done.stderr
    data = (tmp_path / "disk.img").read_bytes()
    line = data[512 : data.index(b"\0", 512)]
    assert line == b'--rootfs=rofs --power-off-on-abort --cwd=/app runscript "/etc/davit/run"'
    partition = osvimage.partition_of(io.BytesIO(data))
    assert partition is not None and partition.start == 2 << 20
    image = rofs.Image(io.BytesIO(data), partition.start)
    assert image.read(b"/app/index.html") == b"hello\n" and b'"http.server" "8080"' in image.read(b"/etc/davit/run")
    assert b'"--env=PORT=8080"' in image.read(b"/etc/davit/run")
    done = export(place, "qcow2", tmp_path / "disk.qcow2", loader)
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "disk.qcow2", tmp_path / "back"], check=True)
    back = (tmp_path / "back").read_bytes()
    assert back[: len(data)] == data and not back[len(data) :].strip(b"\0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "disk.img", "disk.qcow2", "loader.img"]


@pytest.mark.row("osv-builder")
def test_what_is_missing_is_said_and_nothing_is_left(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    (tmp_path / "elf").write_bytes(Path("/bin/true").read_bytes())
    (tmp_path / "text").write_text("no kernel")
    for form, loader, builder, why in (
        ("osv-image", None, None, "needs OSv's boot disk: --loader"),
        ("osv-image", tmp_path / "elf", None, "is a kernel, not a boot disk"),
        ("qcow2", tmp_path / "text", None, "is no boot disk"),
        ("zfs", None, None, "--builder PATH"),
        ("zfs", None, tmp_path / "text", "is no kernel (64-bit ELF)"),
        ("zfs", None, tmp_path / "none", "cannot be read"),
    ):
        done = export(place, form, tmp_path / "out", loader, builder)
        if builder is not None:
            assert_says("osv-builder", done.stdout + done.stderr)
        assert (done.returncode, why in done.stdout) == (1, True), done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elf", "text"]


def test_the_release_is_found_by_app_and_number(davit_home: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.setenv("REDIS_URL", redis_server)
    forget_caches()
    try:
        vault.ensure_keys()
        db.upgrade()
        with db.transaction() as session:
            owner = accounts.create(session, None, "ann@example.com")
            app = apps.create(session, owner, "shop")
            slug = Slug(
                app_id=app.id,
                digest="sha256:" + "a" * 64,
                stack="davit-13",
                process_types={"web": "run"},
                default_config={"A": "b"},
            )
            session.add(slug)
            session.flush()
            release = releases.create(session, app, owner, kind="deploy", description="Deploy", slug=slug)
            version = release.version
        found = slugs.find("shop", version)
        assert (found.app, found.version, found.digest, dict(found.process_types)) == (
            "shop",
            version,
            slug.digest,
            {"web": "run"},
        )
        for name, number, why in (
            ("none", None, "find the app"),
            ("shop", 99, "v99 of shop has none"),
            ("shop", None, "shop has none"),
        ):
            with pytest.raises(DavitError, match=why):
                slugs.find(name, number)
    finally:
        forget_caches()


def test_what_a_killed_export_left_beside_its_target_is_removed_by_the_next(tmp_path: Path) -> None:
    with slugs.scratch(tmp_path) as at_work:
        killed, others = tmp_path / ".davit-export-abcd_123", tmp_path / ".davit-export"
        for directory in (killed, others):
            directory.mkdir()
            (directory / "disk").touch()
        for directory in (at_work, killed, others):
            os.utime(directory, (0, 0))
        with slugs.scratch(tmp_path) as place:
            assert sorted(tmp_path.iterdir()) == sorted([others, at_work, place])
    assert list(tmp_path.iterdir()) == [others]


def test_what_an_export_had_made_when_it_was_killed_is_removed_by_the_next(
    place: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """Whatever its format, beside the target and where it mounts."""
    home, stack, digest = place
    out, mounts = tmp_path / "out", tmp_path / "mounts"
    for directory in (out, mounts):
        directory.mkdir()
    environment = {**os.environ, "DAVIT_HOME": str(home), "TMPDIR": str(mounts)}

    def run(code: str, form: str) -> int:
        argv = [sys.executable, "-c", code, home, stack, digest, form, out / "slug", "", ""]
        return subprocess.run(argv, env=environment, capture_output=True, timeout=200).returncode

    assert run(_EXPORT.replace("say=print", "say=lambda _: signal.raise_signal(signal.SIGKILL)"), "capstan") == -signal.SIGKILL
    left = [*out.iterdir(), *mounts.iterdir()]
    assert len(left) == 2
    for directory in left:
        os.utime(directory, (0, 0))
    assert run(_EXPORT, "capstan") == 0
    assert (list(out.iterdir()), list(mounts.iterdir())) == ([out / "slug"], [])
