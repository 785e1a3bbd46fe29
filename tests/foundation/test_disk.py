"""Files that outlive a power cut (tests/builder/test_power_lost.py has one), and what an older Davit's left empty."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest
from cryptography import x509

from builder.sshserver import ensure_host_key
from foundation import disk
from foundation.authority import Authority
from foundation.settings import settings
from state import signatures


def test_a_file_is_replaced_whole_readable_by_whom_it_says_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    disk.write(path, b"old")
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o600
    if os.geteuid() == 0:
        os.chown(path, 12345, 12346)
    disk.write(path, b"new", mode=0o644)
    figures = path.stat()
    assert path.read_bytes() == b"new" and figures.st_mode & 0o777 == 0o644
    assert os.geteuid() != 0 or (figures.st_uid, figures.st_gid) == (12345, 12346)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        disk.write(tmp_path / "taken", b"x")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize("write", [disk.write, disk.write_first])
def test_who_may_read_it_does_not_depend_on_who_started_davit(tmp_path: Path, write: Callable[..., None]) -> None:
    before = os.umask(0o077)
    try:
        write(tmp_path / "file", b"x", mode=0o444)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o444


def test_a_file_system_that_syncs_no_directories_is_borne() -> None:
    with pytest.raises(OSError, match="Invalid argument"), open("/proc/version") as file:
        os.fsync(file.fileno())
    disk.sync(Path("/proc"))
    with pytest.raises(OSError, match="Invalid argument"):
        disk.sync(Path("/proc/version"))


def test_drafts_of_killed_processes_go_and_new_ones_stay(tmp_path: Path) -> None:
    names = [".config.keys.0123456789ab.new", ".other.new", "kept.new", ".new"]
    for name in names:
        (tmp_path / name).touch()
    for name in names[:1] + names[2:]:
        os.utime(tmp_path / name, (0, 0))
    disk.sweep(tmp_path, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new", ".other.new", "kept.new"]


def test_the_first_of_several_decides_and_an_empty_file_was_none(tmp_path: Path) -> None:
    path = tmp_path / "key"
    disk.write_first(path, b"first")
    disk.write_first(path, b"second")
    assert path.read_bytes() == b"first" and disk.is_written(path)
    os.truncate(path, 0)
    assert not disk.is_written(path) and not disk.is_written(tmp_path / "none")
    disk.write_first(path, b"third")
    assert path.read_bytes() == b"third" and list(tmp_path.iterdir()) == [path]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fsync, rename = [], os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        calls.append("content" if stat.S_ISREG(os.fstat(descriptor).st_mode) else os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        calls.append(str(target))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    disk.write(tmp_path / "file", b"x")
    (tmp_path / "draft").write_bytes(b"y")
    disk.give_name(tmp_path / "draft", tmp_path / "file")
    assert calls == ["content", str(tmp_path / "file"), str(tmp_path)] * 2


def test_keys_that_a_power_cut_emptied_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_HOME", str(tmp_path))
    settings.cache_clear()
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("ca.pem", "tls.pem", "ssh", "url.key"):
        (keys / name).touch()
    try:
        signatures.ensure_key()
    finally:
        settings.cache_clear()
    assert len((keys / "url.key").read_bytes()) == 32, "nothing may be signed with an empty key"
    authority = Authority(keys / "ca.pem")
    authority.ensure(keys / "tls.pem", ["davit.example"])
    assert x509.load_pem_x509_certificate((keys / "tls.pem").read_bytes()).issuer == authority.certificate.subject
    ensure_host_key(keys / "ssh")
    assert asyncssh.read_private_key(str(keys / "ssh")).get_algorithm() == "ssh-ed25519"
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
