"""The host's own buildpacks (``file://``): what is sent of them, and that reading one runs nothing of it."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from builder import buildpacks
from builder.buildpacks import BuildpackError


def git(place: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *identity, *words], cwd=place, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    place = tmp_path / "pack"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "detect").write_text("#!/bin/sh\necho first\n")
    (place / "bin" / "detect").chmod(0o755)
    (place / "naïve name").write_text("x")
    (place / "link").symlink_to("bin/detect")
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-qm", "first")
    git(place, "tag", "-am", "v1", "v1")
    (place / "bin" / "detect").write_text("#!/bin/sh\necho second\n")
    git(place, "commit", "-qam", "second")
    return place


def read(text: str) -> dict[str, tarfile.TarInfo | bytes]:
    with buildpacks.local_archive(text) as archive:
        whole = io.BytesIO(b"".join(archive))
    with tarfile.open(fileobj=whole) as tar:
        found = {member.name.removeprefix("./"): member for member in tar.getmembers() if not member.isdir()}
        return found | {
            f"{name}:content": file.read() for name, member in found.items() if member.isreg() and (file := tar.extractfile(member))
        }


@pytest.mark.parametrize(("ref", "says"), [("v1", b"first"), ("main", b"second"), ("HEAD", b"second"), ("sha", b"first")])
def test_a_repository_is_read_at_a_branch_tag_or_commit(pack: Path, ref: str, says: bytes) -> None:
    ref = git(pack, "rev-parse", "v1^{commit}") if ref == "sha" else ref
    found = read(f"file://{pack}#{ref}")
    assert says in found["bin/detect:content"]  # type: ignore[operator]
    detect, link = found["bin/detect"], found["link"]
    assert isinstance(detect, tarfile.TarInfo) and detect.mode == 0o755
    assert isinstance(link, tarfile.TarInfo) and link.issym() and link.linkname == "bin/detect"
    assert found["naïve name:content"] == b"x"


def test_a_bare_repository_and_a_plain_directory_are_read_too(pack: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(pack), "bare.git")
    assert b"second" in read(f"file://{tmp_path}/bare.git")["bin/detect:content"]  # type: ignore[operator]
    plain = read(f"file://{pack}")
    assert b"second" in plain["bin/detect:content"] and not any(name.startswith(".git/") for name in plain)  # type: ignore[operator]


def test_nothing_that_a_repository_configures_is_run(pack: Path, tmp_path: Path) -> None:
    """A filter, fsmonitor, a pager, hooks: any of them would be a program of the repository's owner, run as Davit."""
    proof = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {proof}\ncat\n")
    program.chmod(0o755)
    (pack / ".gitattributes").write_text("* filter=evil export-subst\n")
    git(pack, "add", ".")
    git(pack, "commit", "-qm", "attributes")
    for name in ("filter.evil.smudge", "filter.evil.process", "core.fsmonitor", "core.sshCommand", "core.pager", "tar.tar.command"):
        git(pack, "config", name, str(program))
    for hook in ("post-checkout", "reference-transaction"):
        (pack / ".git" / "hooks" / hook).write_text(program.read_text())
        (pack / ".git" / "hooks" / hook).chmod(0o755)
    assert b"second" in read(f"file://{pack}#main")["bin/detect:content"]  # type: ignore[operator]
    assert not proof.exists()


@pytest.mark.parametrize("ref", ["nowhere", "HEAD~9", "v1:bin"])
def test_a_ref_that_is_not_there_is_a_sentence(pack: Path, ref: str) -> None:
    with pytest.raises(BuildpackError, match=f"has no “{ref}”"):
        read(f"file://{pack}#{ref}")


def test_what_is_no_repository_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BuildpackError, match="is no git repository"):
        read(f"file://{tmp_path}#main")


def test_a_damaged_repository_is_a_sentence(pack: Path) -> None:
    for file in (pack / ".git" / "objects").rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            file.write_bytes(b"damaged")
    with pytest.raises(BuildpackError, match="could not be read"):
        read(f"file://{pack}#main")


def test_many_complaints_of_tar_do_not_hang_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "tar"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' '\\n' >&2\necho it is broken >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(BuildpackError, match=r"could not be read"):
        read(f"file://{tmp_path}")
