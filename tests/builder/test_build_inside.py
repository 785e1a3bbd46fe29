"""The classic buildpack API as the build program works it: tiny buildpacks that write down what they were given."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from builder import inside
from tests.builder.building import Built, build_root, processes_below, run_inside, tar_of

GREETING = {"bin/detect": "#!/bin/bash\necho Greeting\n", "bin/compile": "#!/bin/bash\necho compiled\n"}


@pytest.fixture
def root() -> Iterator[Path]:
    with build_root() as path:
        yield path
        assert not processes_below(path)


def pack(**scripts: str) -> bytes:
    """A buildpack of bash scripts; detect says “Test” unless given."""
    files = {f"bin/{name}": f"#!/bin/bash\n{text}\n" for name, text in {"detect": "echo Test", "compile": ":", **scripts}.items()}
    return tar_of(files, dict.fromkeys(files, 0o755))


def build(root: Path, *packs: bytes, source: Mapping[str, str | bytes] | None = None, **more: object) -> Built:
    streams = {f"pack{number}": content for number, content in enumerate(packs)}
    return run_inside(
        root, tar_of(source or {"file": "x"}), streams=streams, buildpacks_set=[f"file://{name}" for name in streams], **more
    )


def failure(built: Built) -> str:
    assert built.end["event"] == "failed", built.output
    return str(built.end["message"])


def test_the_scripts_get_their_arguments_and_the_buildpack_as_working_directory(root: Path) -> None:
    built = build(
        root,
        pack(
            compile='echo "pwd=$PWD self=$(cd "$(dirname "$0")/.." && pwd) build=$1 cache=$2 env=$3"; touch written-here; ls "$1"',
            release='echo "--- {}"; echo "$# $PWD" >&2',
        ),
    )
    assert built.end["event"] == "done", built.output
    words = dict(word.split("=", 1) for line in built.output.splitlines() if line.startswith("pwd=") for word in line.split())
    assert words["pwd"] == words["self"] == str(root / "tmp" / "buildpacks" / "0")
    assert words["build"].startswith(str(root / "tmp" / "build_")) and words["cache"] == str(root / "cache")
    assert "\nfile\n" in built.output


def test_the_environment_is_minimal_and_config_vars_are_only_files(root: Path) -> None:
    config = {"SECRET": "line one\nline 'two'\n", "EMPTY": "", "PATH": "/nowhere", "../escape": "x"}
    built = build(
        root,
        pack(
            compile='env | cut -d= -f1 | sort | tr "\\n" " "; echo; for f in "$3"/*; do echo "$(basename "$f")=$(base64 -w0 "$f")"; done; echo "$HOME $STACK $SOURCE_VERSION"'
        ),
        config=config,
    )
    names = next(line for line in built.output.splitlines() if "SOURCE_VERSION" in line).split()
    assert not {"SECRET", "EMPTY", "GIT_DIR", "VIRTUAL_ENV", "DAVIT_PATHS"} & set(names)
    assert set(names) >= {"PATH", "HOME", "STACK", "SOURCE_VERSION", "REQUEST_ID", "SSL_CERT_FILE"}
    assert (
        "SECRET=bGluZSBvbmUKbGluZSAndHdvJwo=" in built.output
        and "EMPTY=\n" in built.output
        and "PATH=L25vd2hlcmU=" in built.output
    )
    assert "escape" not in built.output
    assert f"{root}/app heroku-24 0123456789abcdef0123456789abcdef01234567" in built.output


def test_a_buildpack_that_names_our_stack_is_told_it(root: Path) -> None:
    knowing = tar_of(
        {
            "bin/detect": "#!/bin/sh\n",
            "bin/compile": '#!/bin/sh\necho "stack=$STACK"\n',
            "buildpack.toml": '[[stacks]]\nid = "davit-13"\n',
        }
    )
    assert "stack=davit-13" in build(root, knowing).output


def test_scripts_without_the_executable_bit_run(root: Path) -> None:
    assert build(root, tar_of(GREETING)).end["event"] == "done"


def test_a_buildpack_one_directory_deep_is_found(root: Path) -> None:
    assert build(root, tar_of({f"some-pack-1.0/{name}": text for name, text in GREETING.items()})).end["event"] == "done"


def test_each_build_has_a_writable_private_copy_that_lives_until_release(root: Path) -> None:
    writing = pack(compile='echo "web: kept" > state', release='echo "default_process_types:"; sed "s/^/  /" state')
    assert build(root, writing).content("release") == "default_process_types:\n  web: kept\n"


def test_exports_are_evaluated_for_the_buildpacks_after_and_only_the_last_release_counts(root: Path) -> None:
    first = pack(
        compile='printf "%s\\n" "export TOOL=\\"\\$(echo a b)\\"" "export PATH=/first:\\$PATH" "f() { :; }; export -f f" "PLAIN=1" > export; echo "1:${TOOL-unset}"',
        release='echo "default_process_types: {web: first}"',
    )
    second = pack(compile='echo "2:$TOOL:$PLAIN:${PATH%%:*}"; type -t f', release='echo "default_process_types: {web: second}"')
    built = build(root, first, second)
    assert "1:unset" in built.output and "2:a b:1:/first\nfunction\n" in built.output
    assert built.content("release") == "default_process_types: {web: second}\n"
    assert built.end["buildpacks"] == ["file://pack0", "file://pack1"]


def test_an_export_that_ends_its_shell_is_said_and_not_fatal(root: Path) -> None:
    built = build(root, pack(compile="echo 'exit 0' > export"), pack())
    assert built.end["event"] == "done" and "could not be evaluated" in built.output


def test_an_explicit_buildpack_that_does_not_fit_fails_the_build_with_what_it_printed(root: Path) -> None:
    built = build(root, pack(detect='echo "no such file here" >&2; exit 1'))
    assert "App not compatible with buildpack: file://pack0" in failure(built) and "no such file here" in built.output


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("exit 0", "file://pack0"),
        ("printf 'One\\nTwo\\n'", "One"),
        ("printf '\\e[1mBold\\e[0m\\n'", "Bold"),
        ("printf 'A\\rB'", "A?B"),
    ],
)
def test_whatever_detect_prints_there_is_one_plain_name(root: Path, script: str, name: str) -> None:
    assert f"-----> {name} app detected\n" in build(root, pack(detect=script)).output


def test_a_failing_compile_names_buildpack_and_status(root: Path) -> None:
    assert "bin/compile of file://pack0 ended with status 7" in failure(build(root, pack(compile="exit 7")))


def test_a_failing_release_fails_the_build(root: Path) -> None:
    assert "bin/release of the buildpack file://pack0 ended with status 3" in failure(build(root, pack(release="exit 3")))


def test_release_is_optional_and_its_stderr_is_only_shown(root: Path) -> None:
    assert build(root, pack()).content("release") == ""
    built = build(root, pack(release="echo noise >&2; echo '--- {}'"))
    assert built.content("release") == "--- {}\n" and "noise" in built.output


def test_output_passes_as_bytes_and_stderr_counts_as_output(root: Path) -> None:
    built = build(root, pack(compile="printf '  a\\\\b \\rprogress'; printf '\\xc3\\xa9\\n' >&2"))
    assert "  a\\b \rprogressé\n" in built.output


def test_a_background_process_that_holds_the_output_does_not_keep_the_build_waiting(root: Path) -> None:
    built = build(
        root,
        pack(
            detect="sleep 600 & echo Held",
            compile="sleep 600 & setsid sleep 600 & disown -a",
            release="sleep 600 & echo '--- {}'",
        ),
    )
    assert built.end["event"] == "done" and "-----> Held app detected" in built.output


def test_a_script_that_kills_its_process_group_ends_only_itself(root: Path) -> None:
    assert "was ended by signal 9" in failure(build(root, pack(compile="kill -9 0")))


def test_a_script_that_cannot_be_run_is_named(root: Path) -> None:
    broken = tar_of({"bin/detect": "#!/no/such/shell\n", "bin/compile": ""})
    assert "bin/detect of the buildpack file://pack0 cannot be run" in failure(build(root, broken))


def test_a_directory_that_is_no_buildpack_is_said(root: Path) -> None:
    assert "is no buildpack" in failure(build(root, tar_of({"README": "x"})))


def test_a_buildpack_may_replace_everything_in_the_build_directory(root: Path) -> None:
    source = {"front/index.html": "x", "front/.hidden": "y", "back/file": "z"}
    built = build(
        root,
        pack(compile='cd "$1" && mv front /tmp/$$ && rm -rf "$1"/* && mv /tmp/$$/{.,}[!.]* "$1"/ && rmdir /tmp/$$'),
        source=source,
    )
    assert sorted(path.name for path in built.app.iterdir()) == [".hidden", "index.html"]


def test_a_buildpack_that_removes_the_build_directory_itself_gets_a_sentence(root: Path) -> None:
    assert "removed the directory" in failure(build(root, pack(compile='rm -rf "$1"')))


def test_the_procfile_is_read_after_compile(root: Path) -> None:
    assert (
        build(root, pack(compile='echo "web: made" > "$1/Procfile"'), source={"Procfile": "web: old"}).content("procfile")
        == "web: made\n"
    )


def test_read_only_directories_become_readable_for_the_sealing(root: Path) -> None:
    built = build(root, pack(compile='mkdir "$1/ro" && touch "$1/ro/file" && chmod 000 "$1/ro/file" && chmod 555 "$1/ro"'))
    assert (built.app / "ro").stat().st_mode & 0o700 == 0o700 and (built.app / "ro" / "file").stat().st_mode & 0o400


def test_symlinks_odd_names_and_modes_survive(root: Path) -> None:
    names = {"new\nline": "a", "caf\udce9": "b", "link": "->/etc/passwd", "dangling": "->../../nowhere"}
    built = build(root, pack(), source=names)
    assert built.end["event"] == "done", built.output
    assert (built.app / "new\nline").read_text() == "a" and (built.app / "caf\udce9").read_text() == "b"
    assert (built.app / "link").is_symlink() and (built.app / "dangling").is_symlink()


def test_slugignore_is_applied_before_compile_and_only_to_the_source(root: Path) -> None:
    source = {
        ".slugignore": "*.psd\n/docs\nnode_modules/\n# x\n!keep.psd\n",
        "a.psd": "",
        "sub/b.psd": "",
        "docs/x": "",
        "sub/docs/y": "",
        "keep": "",
    }
    built = build(root, pack(compile='find "$1" -type f -printf "%P\\n"; touch "$1/made.psd"'), source=source)
    listed = set(built.output.splitlines())
    assert {"keep", "sub/docs/y"} <= listed and not {"a.psd", "sub/b.psd", "docs/x"} & listed
    assert (built.app / "made.psd").exists()


PARTS = ("a", "b", "ab", ".a", "b.a", "a-", "]", "a b", "é")
TREE = [f"{one}{rest}".encode() for one in PARTS for rest in ("", *(f"/{two}{last}" for two in PARTS for last in ("", "/a", "/b/ab")))]


def covered(patterns: list[bytes]) -> set[bytes]:
    """The files of TREE that go: named themselves, or in a directory that is."""
    names = {path: [path[: at + 1] for at, byte in enumerate(path) if byte == ord("/")] + [path] for path in TREE}
    gone = set(inside.ignored(patterns, sorted({name for parts in names.values() for name in parts})))
    return {path for path, parts in names.items() if gone & set(parts)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ignoring")
    subprocess.run(["git", "init", "-q", place], check=True)
    return place


def git_ignores(checkout: Path, patterns: list[bytes]) -> set[bytes]:
    """The same, asked of git."""
    (checkout / ".gitignore").write_bytes(b"\n".join(patterns) + b"\n")
    command = ["git", "-C", checkout, "-c", f"core.excludesFile={os.devnull}", "check-ignore", "--no-index", "-z", "--stdin"]
    asked = subprocess.run(command, input=b"\0".join(TREE), capture_output=True)
    assert asked.returncode in (0, 1), asked.stderr
    return set(asked.stdout.split(b"\0")) - {b""}


@pytest.mark.parametrize(
    "pattern",
    ["/a/*", "a/*/a", "**/ab", "**/a/b", "a/**", "a/**/ab", "/**", "**", "***/a", "*/", "/a", "a/", "b.?", "[a-b]", "[!a]", "[^]a]",
     "[]]", "[[:alpha:]]", "[[:punct:]]*", "[a", "a\\", "\\a", "a b", "a\\ ", "a ", " a", "a\r", "/", "//", "#a", "\\#a", "?", "[é]", "*-"],
)  # fmt: skip
def test_slugignore_means_what_gitignore_means(checkout: Path, pattern: str) -> None:
    assert covered([pattern.encode()]) == git_ignores(checkout, [pattern.encode()])


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab*/?[]-!^:\\. é", min_size=1, max_size=7).filter(lambda line: line[0] != "!"), min_size=1, max_size=3))
def test_no_slugignore_removes_what_git_would_not_ignore(checkout: Path, lines: list[str]) -> None:
    patterns = [line.encode() for line in lines]
    ours, gits = covered(patterns), git_ignores(checkout, patterns)
    assert ours <= gits
    # git takes ** for a whole part when only letters are in front of it, against its own documentation
    assert ours == gits or any(re.search(r"[^/*]\*\*", line) for line in lines)


def test_a_link_to_a_directory_is_no_directory_to_slugignore(root: Path) -> None:
    source = {".slugignore": "kept/\n/a/*.txt\n", "real/x": "", "kept": "->real", "a/one.txt": "", "a/b/two.txt": ""}
    listed = set(build(root, pack(compile='find "$1" -printf "%P\\n"'), source=source).output.splitlines())
    assert {"kept", "real/x", "a/b/two.txt"} <= listed and "a/one.txt" not in listed


def test_an_empty_commit_is_said(root: Path) -> None:
    assert "There is nothing to build" in failure(run_inside(root, tar_of({})))


def test_no_buildpack_matches_says_what_each_looks_for_and_what_is_there(root: Path) -> None:
    built = run_inside(root, tar_of({"README.md": "x", "src/thing.zig": "x"}))
    assert "No buildpack matches this app" in failure(built)
    assert "requirements.txt" in built.output and "package.json" in built.output and "README.md, src/" in built.output


def test_a_buildpacks_file_chooses_and_an_explicit_choice_beats_it(root: Path) -> None:
    source = {".buildpacks": "# mine\r\n\nheroku/procfile\r\n", "Procfile": "web: x"}
    assert "-----> Using buildpack: heroku/procfile\n" in run_inside(root, tar_of(source)).output
    built = build(root, pack(), source=source)
    assert "-----> Using buildpack: file://pack0\n" in built.output


def test_a_buildpacks_file_cannot_name_directories_of_the_host(root: Path) -> None:
    assert "Only an administrator" in failure(run_inside(root, tar_of({".buildpacks": "file:///etc"})))


def test_a_failed_build_is_reported_before_its_end_and_leaves_no_result(root: Path) -> None:
    built = build(root, pack(compile="exit 1"))
    assert not built.app.exists() and [event["event"] for event in built.events].count("failed") == 1


# --- references ---


@pytest.mark.parametrize(
    ("text", "kind", "location", "ref"),
    [
        ("python", "bundled", "python", ""),
        ("heroku/python", "bundled", "python", ""),
        ("davit/static", "bundled", "static", ""),
        ("urn:buildpack:heroku/nodejs", "bundled", "nodejs", ""),
        ("https://buildpack-registry.s3.amazonaws.com/buildpacks/heroku/python.tgz", "bundled", "python", ""),
        ("https://buildpack-registry.s3.amazonaws.com/buildpacks/some/pack.tgz", "archive", "https://buildpack-registry.s3.amazonaws.com/buildpacks/some/pack.tgz", ""),
        ("heroku/ruby", "archive", "https://buildpack-registry.s3.amazonaws.com/buildpacks/heroku/ruby.tgz", ""),
        ("https://example.com/pack.git#v1", "git", "https://example.com/pack.git", "v1"),
        ("https://example.com/pack", "git", "https://example.com/pack", ""),
        ("git@example.com:me/pack.git#main", "git", "git@example.com:me/pack.git", "main"),
        ("ssh://git@example.com/pack", "git", "ssh://git@example.com/pack", ""),
        ("https://example.com/pack.tar.gz?token=1", "archive", "https://example.com/pack.tar.gz?token=1", ""),
        ("https://example.com/pack.tgz", "archive", "https://example.com/pack.tgz", ""),
    ],
)  # fmt: skip
def test_references_are_understood(text: str, kind: str, location: str, ref: str) -> None:
    found = inside.parse_reference(text, ["python", "nodejs", "static"], {})
    assert (found.kind, found.location, found.ref) == (kind, location, ref)


@pytest.mark.parametrize(
    "text", ["file:///srv/pack", "/srv/pack", "./pack", "ruby", "ext::sh -c id", "https://x/y#--upload-pack=id", "", "-x", "https://[", "git://[x", "ssh://[x]/p", "http://\u2100.com/#v1"]
)
def test_what_is_no_reference_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(inside.Failed):
        inside.parse_reference(text, ["python"], {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@example.com/x.git#v1", "https://example.com/x.git#v1"),
        ("https://example.com/x.tgz?key=secret", "https://example.com/x.tgz"),
        ("https://secret@example.com/x.git?key=secret#v1", "https://example.com/x.git#v1"),
        ("ssh://git:secret@example.com/x.git", "ssh://example.com/x.git"),
        ("git+ssh://git:secret@[::1]:22/x@y#v1", "git+ssh://[::1]:22/x@y#v1"),
        ("git://me:secret@example.com?secret", "git://example.com"),
        ("git@example.com:me/x.git#v1", "git@example.com:me/x.git#v1"),
    ],
)  # fmt: skip
def test_keys_in_urls_are_not_shown(text: str, shown: str) -> None:
    assert inside.parse_reference(text, [], {}).shown == shown
    with pytest.raises(inside.Failed) as refused:
        inside.parse_reference("ftp://me:secret@example.com/x?secret", [], {})
    assert "secret" not in str(refused.value)


# --- fetching ---


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A web server with a git repository (its commits by name) and archives."""
    served = tmp_path_factory.mktemp("web")
    work = tmp_path_factory.mktemp("work")

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=work, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    commits = {}
    for name in ("old", "tagged", "main"):
        (work / "bin").mkdir(exist_ok=True)
        (work / "bin" / "detect").write_text("#!/bin/sh\necho Fetched\n")
        (work / "bin" / "compile").write_text(f'#!/bin/sh\necho "version {name}"\n')
        git("add", "-A")
        git("commit", "-qm", name)
        commits[name] = git("rev-parse", "HEAD")
        if name == "tagged":
            git("tag", "v1")
    subprocess.run(["git", "clone", "-q", "--bare", work, served / "pack.git"], check=True)
    # one that has the other within it, at an address relative to its own
    (work / ".gitmodules").write_text('[submodule "lib"]\n\tpath = lib\n\turl = ../pack.git\n')
    git("add", ".gitmodules")
    git("update-index", "--add", "--cacheinfo", f"160000,{commits['tagged']},lib")
    git("commit", "-qm", "outer")
    commits["outer"] = git("rev-parse", "HEAD")
    subprocess.run(["git", "clone", "-q", "--bare", work, served / "outer.git"], check=True)
    for name in ("pack.git", "outer.git"):
        subprocess.run(["git", "--git-dir", served / name, "update-server-info"], check=True)
    with tarfile.open(served / "pack.tgz", "w:gz") as tar:
        for name, text in GREETING.items():
            info = tarfile.TarInfo(f"pack-1/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    (served / "broken.tgz").write_bytes(b"no archive")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", commits
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("ref", "version"), [("", "main"), ("#main", "main"), ("#v1", "tagged"), ("#old", "old"), ("#short", "old")]
)
def test_a_git_buildpack_is_fetched_at_branch_tag_or_commit(
    root: Path, web: tuple[str, dict[str, str]], ref: str, version: str
) -> None:
    url, commits = web
    named = {"#old": "#" + commits["old"], "#short": "#" + commits["old"][:10]}.get(ref, ref)
    built = run_inside(root, tar_of({"x": "x"}), buildpacks_set=[f"{url}/pack.git{named}"])
    assert f"version {version}\n" in built.output, built.output


def test_an_archive_with_one_directory_in_it_is_a_buildpack(root: Path, web: tuple[str, dict[str, str]]) -> None:
    assert run_inside(root, tar_of({"x": "x"}), buildpacks_set=[f"{web[0]}/pack.tgz"]).end["event"] == "done"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none.git", "could not be fetched"),
        ("pack.git#none", "could not be fetched"),
        ("none.tgz", "could not be downloaded"),
        ("broken.tgz", "could not be unpacked"),
    ],
)
def test_a_buildpack_that_cannot_be_had_fails_the_build_with_a_sentence(
    root: Path, web: tuple[str, dict[str, str]], path: str, sentence: str
) -> None:
    assert sentence in failure(run_inside(root, tar_of({"x": "x"}), buildpacks_set=[f"{web[0]}/{path}"]))


@pytest.mark.parametrize("path", ["none.git?key=the-key", "none.tgz?key=the-key", "none.git?key='the-key#v1", "pack.git?key=the-key"])
def test_keys_in_a_buildpacks_url_are_not_in_what_everybody_reads_of_the_build(
    root: Path, web: tuple[str, dict[str, str]], path: str
) -> None:
    url = web[0].replace("://", "://me:the-password@")
    built = run_inside(root, tar_of({"x": "x"}), buildpacks_set=[f"{url}/{path}"])
    said = failure(built) + built.output
    assert "the-password" not in said and "the-key" not in said, said
    modules = [["lib", f"{url}/{path}", "0" * 40]]
    built = run_inside(root, tar_of({"Procfile": "web: x"}), submodules=modules)
    said = failure(built) + built.output
    assert "the-password" not in said and "the-key" not in said, said


def test_submodules_are_fetched_and_no_git_files_remain(root: Path, web: tuple[str, dict[str, str]]) -> None:
    url, commits = web
    modules = [["vendor/lib", f"{url}/pack.git", commits["tagged"]]]
    built = run_inside(root, tar_of({"Procfile": "web: x", ".gitmodules": "x"}), submodules=modules)
    assert "version tagged" in (built.app / "vendor/lib/bin/compile").read_text()
    assert not (built.app / ".gitmodules").exists() and not list(built.app.rglob(".git"))


def test_a_submodule_within_a_submodule_may_be_relative_to_it(root: Path, web: tuple[str, dict[str, str]]) -> None:
    url, commits = web
    built = run_inside(root, tar_of({"Procfile": "web: x"}), submodules=[["vendor", f"{url}/outer.git", commits["outer"]]])
    assert "version tagged" in (built.app / "vendor/lib/bin/compile").read_text(), built.output


def test_a_source_may_have_submodules_relative_to_it(root: Path, web: tuple[str, dict[str, str]]) -> None:
    show = pack(compile='cat "$1/lib/bin/compile"')
    built = run_inside(root, tar_of({}), source_url=f"{web[0]}/outer.git", buildpacks_set=["file://p"], streams={"p": show})
    assert "version tagged" in built.output


def test_a_submodule_that_gitmodules_does_not_name_is_said_so(root: Path) -> None:
    built = run_inside(root, tar_of({"Procfile": "web: x"}), submodules=[["embedded", "", "1" * 40]])
    assert "embedded is a submodule that .gitmodules does not name" in built.output
    assert "Fetching git submodules" not in built.output and built.app.is_dir()


def test_a_submodule_relative_to_what_was_pushed_says_what_to_do(root: Path) -> None:
    built = run_inside(root, tar_of({"Procfile": "web: x"}), submodules=[["lib", "../lib.git", "1" * 40]])
    assert "has the relative URL ../lib.git" in failure(built) and "Write the whole URL" in failure(built)


@pytest.mark.parametrize(
    "module", [["../out", "https://x/y"], ["lib", "../relative.git"], ["lib", "file:///etc"], ["lib", "ext::id"]]
)
def test_a_submodule_that_leads_elsewhere_is_refused(root: Path, module: list[str]) -> None:
    built = run_inside(root, tar_of({"Procfile": "web: x"}), submodules=[[*module, "0" * 40]])
    assert "submodule" in failure(built).lower()


@pytest.mark.parametrize(("ref", "version"), [("", "main"), ("#v1", "tagged")])
def test_a_source_that_is_a_repository_is_fetched(root: Path, web: tuple[str, dict[str, str]], ref: str, version: str) -> None:
    url = f"{web[0]}/pack.git{ref}"
    show = pack(compile='cat "$1/bin/compile"; ls -a "$1"')
    built = run_inside(root, tar_of({}), source_url=url, buildpacks_set=["file://p"], streams={"p": show})
    assert f"version {version}" in built.output and ".git\n" not in built.output


def test_a_repository_that_is_not_there_fails_with_a_sentence(root: Path, web: tuple[str, dict[str, str]]) -> None:
    assert "source" in failure(run_inside(root, tar_of({}), source_url=f"{web[0]}/none.git"))
    assert "ref" in failure(run_inside(root, tar_of({}), source_url=f"{web[0]}/pack.git#--upload-pack=x"))


def test_a_source_by_url_is_checked_and_unpacked(root: Path, web: tuple[str, dict[str, str]]) -> None:
    url = f"{web[0]}/pack.tgz"
    built = run_inside(root, tar_of({}), source_url=url, buildpacks_set=["file://p"], streams={"p": pack(compile='ls "$1"')})
    assert "bin\n" in built.output
    wrong = run_inside(root, tar_of({}), source_url=url, source_checksum="SHA256:" + "0" * 64)
    assert "checksum" in failure(wrong)
