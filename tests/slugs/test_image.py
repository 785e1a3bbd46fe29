"""What goes into an image comes out of it, and nothing that a hostile tree holds gets anywhere else."""

from __future__ import annotations

import marshal
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from foundation.errors import DavitError
from slugs import image, mounting
from tests.conftest import wait_until
from tests.slugs.conftest import OLD, make_tree

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]
every_format = pytest.mark.parametrize("form", image.FORMATS)
Look = Callable[[Path], AbstractContextManager[Path]]
STRANGER = 300_000


def owned_by(user: int, tree: Path) -> Path:
    for path in [tree, *tree.rglob("*")]:
        os.chown(path, user, user, follow_symlinks=False)
    return tree


@every_format
def test_a_tree_comes_back_as_it_was_and_belongs_to_the_dyno(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    (tree / "app/run").write_text("#!/bin/sh\n")
    (tree / "app/run").chmod(0o755)
    (tree / "app/link").symlink_to("hello.txt")
    image.seal(tree, tmp_path / "image", form=form)
    assert image.format_of(tmp_path / "image") == form
    with mounted(tmp_path / "image") as top:
        assert sorted(path.name for path in (top / "app").iterdir()) == ["Procfile", "hello.txt", "lib", "link", "run"]
        assert (top / "app/link").read_text() == "hello"
        assert (top / "app/lib/deep/module.py").read_text() == "x = 1\n" * 1000
        assert stat.S_IMODE((top / "app/run").stat().st_mode) == 0o755
        assert (top / "app/hello.txt").stat().st_mtime == OLD
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (top / "app").rglob("*")} == {(1000, 1000)}


@every_format
def test_the_same_tree_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    files = {f"{letter}/{number}": letter * number * 50 for letter in "abcdefgh" for number in range(20)}
    for name, backwards in (("one", False), ("two", True)):
        image.seal(make_tree(tmp_path / name, files, backwards), tmp_path / f"{name}.image", form=form)
    assert (tmp_path / "one.image").read_bytes() == (tmp_path / "two.image").read_bytes()
    (tmp_path / "two/app/a/1").write_text("another")
    image.seal(tmp_path / "two", tmp_path / "two.image", form=form)
    assert (tmp_path / "one.image").read_bytes() != (tmp_path / "two.image").read_bytes()


@every_format
def test_strange_names_survive(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    words = ["new\nline", " -rf *", "q'u\"o`t\\e", "x" * 254, "größe", "{tree}", "%s$(id)"]
    strange = [b"\xff\xfe not utf-8", *(word.encode() for word in words)]
    for name in strange:
        (tree / "app" / os.fsdecode(name)).write_text("content")
    image.seal(tree, tmp_path / "image", form=form)
    with mounted(tmp_path / "image") as top:
        assert set(strange) <= {os.fsencode(path.name) for path in (top / "app").iterdir()}


@every_format
def test_symlinks_to_the_outside_stay_symlinks(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    for name, target in (("absolute", str(secret)), ("relative", "../../secret"), ("folder", "/etc"), ("loop", "loop")):
        (tree / "app" / name).symlink_to(target)
    image.seal(tree, tmp_path / "image", form=form)
    with mounted(tmp_path / "image") as top:
        assert all((top / "app" / name).is_symlink() for name in ("absolute", "relative", "folder", "loop"))
    assert b"of the host" not in (tmp_path / "image").read_bytes()


@every_format
def test_special_files_are_sealed_as_names_that_do_nothing(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    os.mkfifo(tree / "app/fifo")
    os.mknod(tree / "app/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(tree / "app/whiteout", stat.S_IFCHR | 0o666, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "app/socket"))
    image.seal(tree, tmp_path / "image", form=form)
    with mounted(tmp_path / "image") as top:
        assert (top / "app/hello.txt").read_text() == "hello"
        with pytest.raises(PermissionError):
            (top / "app/zero").open("rb")


@every_format
def test_what_the_owner_may_not_read_is_sealed_too(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    owned_by(STRANGER, tree)
    (tree / "app/hello.txt").chmod(0)
    (tree / "app/lib/deep/module.py").chmod(0)
    (tree / "app/lib/deep").chmod(0)
    (tree / "app/lib").chmod(0)
    image.seal(tree, tmp_path / "image", form=form, user=STRANGER)
    with mounted(tmp_path / "image") as top:
        assert (top / "app/hello.txt").read_text() == "hello"
        assert (top / "app/lib/deep/module.py").stat().st_size == 6000


def test_a_file_of_somebody_else_is_refused_rather_than_left_out(tree: Path, tmp_path: Path) -> None:
    owned_by(STRANGER, tree)
    os.chown(tree / "app/hello.txt", 0, 0)
    (tree / "app/hello.txt").chmod(0o600)
    with pytest.raises(image.SealFailed, match="could not be sealed"):
        image.seal(tree, tmp_path / "image", user=STRANGER)
    assert not (tmp_path / "image").exists()


@every_format
def test_hard_links_take_the_space_of_one_file(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    (tree / "app/first").write_bytes(os.urandom(500_000))
    for number in range(5):
        os.link(tree / "app/first", tree / f"app/link{number}")
    image.seal(tree, tmp_path / "image", form=form)
    assert (tmp_path / "image").stat().st_size < 700_000
    with mounted(tmp_path / "image") as top:
        assert len({(top / f"app/link{number}").stat().st_ino for number in range(5)}) == 1


@every_format
def test_attributes_that_overlayfs_would_obey_are_dropped(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    try:
        os.setxattr(tree / "app/lib", "trusted.overlay.opaque", b"y")
        os.setxattr(tree / "app/lib", "user.overlay.redirect", b"/etc")
    except OSError:
        pytest.skip("the file system of the temporary directory has no extended attributes")
    image.seal(tree, tmp_path / "image", form=form)
    with mounted(tmp_path / "image") as top:
        try:
            assert os.listxattr(top / "app/lib") == []
        except OSError as refused:
            assert refused.errno == 95  # EOPNOTSUPP: the image has no attributes at all


@every_format
def test_a_folder_of_many_files_and_a_long_way_down(form: str, tree: Path, tmp_path: Path, mounted: Look) -> None:
    (tree / "app/many").mkdir()
    for number in range(5000):
        (tree / f"app/many/file-{number}").touch()
    deep = tree / "app"
    for _ in range(200):
        deep = deep / "down"
    deep.mkdir(parents=True)
    image.seal(tree, tmp_path / "image", form=form)
    with mounted(tmp_path / "image") as top:
        assert len(os.listdir(top / "app/many")) == 5000
        assert (top / deep.relative_to(tree)).is_dir()


def test_a_tree_too_deep_for_the_kernel_ends_in_a_sentence(tree: Path, tmp_path: Path) -> None:
    here = os.open(tree / "app", os.O_RDONLY)
    for _ in range(3000):  # a path of 12,000 bytes
        os.mkdir("abc", dir_fd=here)
        below = os.open("abc", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        with pytest.raises(image.SealFailed):
            image.seal(tree, tmp_path / "image")
        assert not (tmp_path / "image").exists()
    finally:
        subprocess.run(["rm", "-rf", tree], check=True)


def test_anything_beside_app_at_the_top_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "etc").mkdir()
    with pytest.raises(image.SealFailed, match="nothing beside it"):
        image.seal(tree, tmp_path / "image")
    (tree / "etc").rmdir()
    (tree / "app").rename(tmp_path / "elsewhere")
    (tree / "app").symlink_to("/etc")
    with pytest.raises(image.SealFailed):
        image.seal(tree, tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_the_tree_may_be_an_open_descriptor_but_not_a_symlink(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "trap").symlink_to(tree)
    with pytest.raises(image.SealFailed, match="no directory"):
        image.seal(tmp_path / "trap", tmp_path / "image")
    descriptor = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        image.seal(Path(f"/proc/self/fd/{descriptor}"), tmp_path / "image")
    finally:
        os.close(descriptor)
    assert image.format_of(tmp_path / "image")


@every_format
def test_a_slug_beyond_the_limit_is_refused_with_a_remedy(form: str, tree: Path, tmp_path: Path) -> None:
    (tree / "app/noise").write_bytes(os.urandom(3 << 20))
    with pytest.raises(image.SlugTooLarge, match=r"larger than 1 MB.*slugignore"):
        image.seal(tree, tmp_path / "image", form=form, limit=1 << 20)
    assert not (tmp_path / "image").exists()


def test_a_file_that_only_claims_to_be_huge_is_refused_at_once(tree: Path, tmp_path: Path) -> None:
    with (tree / "app/hole").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(image.SlugTooLarge, match="claim to hold"):
        image.seal(tree, tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_the_sealing_process_sees_the_tree_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    os.chown(tree, STRANGER, STRANGER)
    questions = "ls /; id -u; id -G; cat /etc/passwd /proc/self/status; ls /tree; cat /usr/../../etc/shadow"
    out = os.open(tmp_path / "answers", os.O_RDWR | os.O_CREAT, 0o600)
    os.fchown(out, STRANGER, STRANGER)
    directory = os.open(tree, os.O_RDONLY)
    order = {
        "tree": directory, "image": out, "uid": STRANGER, "confine": True, "open_up": False, "limit": 1 << 20,
        "tree_limit": 1 << 30, "seconds": 5, "env": {"PATH": "/usr/bin"},
        "command": ["/usr/bin/sh", "-c", f"({questions}) > /image 2>&-; touch /tree/written /usr/written /written"],
    }  # fmt: skip
    sealer = Path(image.__file__).with_name("sealer.py")
    told = marshal.dumps(order).hex()
    subprocess.run([sys.executable, "-I", "-S", sealer, told], pass_fds=(directory, out), capture_output=True)
    answers = (tmp_path / "answers").read_text().split()
    assert answers == ["bin", "image", "lib", "lib64", "tree", "usr", str(STRANGER), str(STRANGER), "app"]
    assert not Path("/usr/written").exists()
    os.close(out)
    os.close(directory)


def test_an_image_comes_through_a_loop_device_where_it_must_and_frees_it(tree: Path, tmp_path: Path) -> None:
    image.seal(tree, tmp_path / "image", form="squashfs")
    target = tmp_path / "mounted"
    target.mkdir()

    def devices() -> list[str]:
        found = Path("/sys/block").glob("loop*/loop/backing_file")
        return [path.read_text() for path in found if str(tmp_path) in path.read_text()]

    mounting.mount(tmp_path / "image", target)
    try:
        assert len(devices()) == 1
        assert (target / "app/hello.txt").read_text() == "hello"
    finally:
        image.unmount(target)
    wait_until(lambda: not devices(), "freeing the loop device")


def test_mounting_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("no image")
    with pytest.raises(DavitError, match="could not be mounted"):
        image.mount(tmp_path / "image", tmp_path)


def test_unmounting_nothing_is_no_error(tmp_path: Path) -> None:
    image.unmount(tmp_path)
    image.unmount(tmp_path / "nowhere")


def test_the_probe_mounts_really_and_leaves_nothing(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    found = image._probe()
    assert found[image.preferred_format()]["mounts"]
    assert Path("/proc/self/mountinfo").read_text() == before


def test_mapped_owners_come_before_the_better_format() -> None:
    yes, no, plain = {"mounts": True, "idmaps": True}, {"mounts": False, "idmaps": False}, {"mounts": True, "idmaps": False}
    assert image.choose_formats({"erofs": yes, "squashfs": yes}) == ("erofs", "squashfs")
    assert image.choose_formats({"erofs": yes, "squashfs": plain}) == ("erofs",)
    assert image.choose_formats({"erofs": plain, "squashfs": yes}) == ("squashfs",)
    assert image.choose_formats({"erofs": plain, "squashfs": plain}) == ("erofs", "squashfs")
    assert image.choose_formats({"erofs": no, "squashfs": plain}) == ("squashfs",)
    with pytest.raises(DavitError, match="neither erofs nor squashfs"):
        image.choose_formats({"erofs": no})


def test_a_tree_that_one_format_cannot_hold_is_sealed_in_the_other(tree: Path, tmp_path: Path, mounted: Look) -> None:
    if len(image.usable_formats()) < 2:
        pytest.skip("this host works with one format only")
    (tree / "app" / ("x" * 255)).write_text("content")
    image.seal(tree, tmp_path / "image")
    with mounted(tmp_path / "image") as top:
        assert (top / "app" / ("x" * 255)).read_text() == "content"


def test_what_was_probed_counts_until_the_next_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_PROBED", tmp_path / "davit" / "found.json")
    assert image._remembered() is None
    image._remember({"erofs": {"mounts": True, "idmaps": True}})
    assert image._remembered() == {"erofs": {"mounts": True, "idmaps": True}}
    monkeypatch.setattr(image, "_boot", lambda: "another boot")
    assert image._remembered() is None


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("mkfs.erofs 1.4\n", ()),
        ("mkfs.erofs 1.5\nusage", ("-Eztailpacking",)),
        ("mkfs.erofs (erofs-utils) 1.8.6", ("-Eztailpacking",)),
    ],
)
def test_options_follow_the_version_of_mkfs(told: str, options: tuple[str, ...]) -> None:
    assert image.erofs_extras(told) == options
