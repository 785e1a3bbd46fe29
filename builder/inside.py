"""The program that runs inside a build sandbox and works the classic buildpack API.

It is sent down the sandbox's standard input, before everything else, and run by the stack's Python with nothing but the
standard library; it must not import anything of Davit. What it reads there: one line of JSON (the order), then the streams
that the order names, each a tar in chunks. What it writes: the build output on standard error, and its report, one JSON
object a line, on standard output. Everything in here runs as the build's own user, so nothing here is a boundary:
the host believes no line of the report without checking it (builder.report).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
SCRIPTS = ("detect", "compile", "release", "report")
ARCHIVES = (".tgz", ".tar.gz", ".tbz", ".tar.bz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tar.zst", ".tar")
REGISTRY = re.compile(r"https://buildpack-registry\.s3(?:\.[a-z0-9-]+)?\.amazonaws\.com/buildpacks/([\w-]+)/([\w-]+)\.tgz$")
REGISTRY_URL = "https://buildpack-registry.s3.amazonaws.com/buildpacks/{}/{}.tgz"
NAME = re.compile(r"(?:urn:buildpack:)?([a-z0-9][\w-]*)/([\w-]+)$", re.IGNORECASE)
PROCFILE_LIMIT = 64 << 10
APP_JSON_LIMIT = 256 << 10
RELEASE_LIMIT = 64 << 10
CHUNK = 1 << 18


class Failed(Exception):
    """The build cannot go on; the sentence is for the person who pushed."""


# --- buildpack references -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Where a buildpack comes from.

    Attributes:
        kind: ``bundled``, ``stream`` (a directory of the host, sent along), ``git`` or ``archive``.
        location: the bundled name, the stream's name, or the URL without its fragment.
        ref: a branch, tag or commit; empty for the default branch.
        shown: how people are shown it; no password in it.
    """

    kind: str
    location: str
    ref: str
    shown: str


def parse_reference(text: str, bundled: Sequence[str], streams: Mapping[str, str]) -> Reference:
    """Understand a buildpack as people write it: a name, ``ns/name``, ``urn:buildpack:ns/name``, or a URL with ``#ref``.

    Args:
        bundled: names of the buildpacks that come with Davit.
        streams: buildpacks of the host that an administrator chose, ``file://…`` → the name of the stream that holds it.

    Raises:
        Failed: it is none of these, or a ``file://`` that nobody with the right to it chose.
    """
    text = text.strip()
    if text in streams:
        return Reference("stream", streams[text], "", text)
    own = text.removeprefix("urn:buildpack:").removeprefix("davit/").removeprefix("heroku/")
    if own in bundled:
        return Reference("bundled", own, "", text)
    url, _, ref = text.partition("#")
    _demand_readable(text)
    if registry := REGISTRY.match(url):
        namespace, name = registry.groups()
        if namespace == "heroku" and name in bundled:
            return Reference("bundled", name, "", f"heroku/{name}")
        return Reference("archive", url, "", f"{namespace}/{name}")
    if named := NAME.match(text):
        return Reference("archive", REGISTRY_URL.format(*named.groups()), "", "/".join(named.groups()))
    if url.startswith(("file:", "/", ".")):
        raise Failed(
            f"The buildpack {text} is a path on the host. Only an administrator may choose such a buildpack, with buildpacks:set."
        )
    if ref.startswith("-"):
        raise Failed(
            f"The buildpack {without_secrets(text)} has a ref that begins with “-”; a branch, tag or commit never does."
        )
    if re.match(r"https?://", url):
        kind = "archive" if urlsplit(url).path.endswith(ARCHIVES) else "git"
        return Reference(kind, url, ref, without_secrets(text))
    if re.match(r"(git|ssh|git\+ssh)://", url) or re.match(r"[\w.-]+@[\w.-]+:", url):
        return Reference("git", url, ref, without_secrets(text))
    known = ", ".join(bundled)
    raise Failed(
        f"“{without_secrets(text)}” is no buildpack that Davit knows. It takes a URL (https://….git#branch, https://….tgz) "
        f"or one of: {known}."
    )


def _demand_readable(text: str) -> None:
    try:
        urlsplit(text)
    except ValueError:
        raise Failed(
            f"The buildpack {text.partition(':')[0][:20]}://… is a URL that cannot be read: what stands for its host is no name "
            "and no address."
        ) from None


def without_secrets(url: str) -> str:
    """The URL as everybody may see it who sees the app: user, password and query, which may be a key, are left out; pure."""
    scheme, mark, rest = url.partition("://")
    if not mark:  # git@host:path has no password
        return url
    rest, ref_mark, ref = rest.partition("#")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}{ref_mark}{ref}"


def _without_keys(line: str, arguments: Sequence[str]) -> str:
    """What git says, without what may be a key in the URLs that it names: those that it was given, and any other."""
    for given in (one for one in arguments if "://" in one):
        for known in (given, re.sub(r"://[^/?#]*@", "://", given, count=1)):  # git leaves user and password out of some lines
            line = line.replace(known, without_secrets(given))
    return re.sub(r"\w[\w+.-]*://[^\s'\"]+", lambda found: without_secrets(found[0]), line)


def listed(text: str) -> list[str]:
    """The buildpacks in a ``.buildpacks`` file: one a line; blank lines and lines that begin with ``#`` say nothing."""
    lines = (line.strip() for line in text.lstrip("\ufeff").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


# --- .slugignore ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ignore:
    """A line of .slugignore, read as git reads one of .gitignore (dir.c, wildmatch.c)."""

    matcher: re.Pattern[bytes]
    only_directories: bool
    anchored: bool
    """Whether it is about the whole path; else about the last part of it."""

    def covers(self, path: bytes, directory: bool) -> bool:
        """Whether it names this relative path (no slash at its end)."""
        if self.only_directories and not directory:
            return False
        return self.matcher.fullmatch(path if self.anchored else path.rpartition(b"/")[2]) is not None


def read_ignore(line: bytes) -> Ignore | None:
    """A line's rule; None for comments, empty lines, and negation, which .slugignore has not (as on Heroku)."""
    pattern = line.removesuffix(b"\r")
    if pattern.startswith((b"#", b"!")):
        return None
    pattern = re.sub(rb"\A((?:\\.|[^\\])*?) *\Z", rb"\1", pattern, flags=re.S)  # spaces at the end, but for an escaped one
    only_directories = pattern.endswith(b"/")
    pattern = pattern[:-1] if only_directories else pattern
    expression = _expression(pattern.removeprefix(b"/"))
    if not pattern or expression is None:
        return None
    return Ignore(re.compile(expression, re.S), only_directories, b"/" in pattern)


def _expression(pattern: bytes) -> bytes | None:
    """A pattern as a regular expression: ``*``, ``?`` and ``[]`` match no ``/``; only ``**`` as a whole part does.

    Returns:
        None when the pattern is broken off (``[a``, a backslash at the end): then it matches nothing.
    """
    made, at = b"", 0
    while at < len(pattern):
        one = pattern[at : at + 1]
        if one == b"*":
            stars = re.compile(rb"\*+").match(pattern, at)
            assert stars is not None
            alone = pattern[at - 1 : at] in (b"", b"/") and len(stars[0]) > 1
            at = stars.end()
            if alone and pattern[at : at + 1] == b"/":
                made, at = made + b"(?:.*/)?", at + 1
            else:
                made += b".*" if alone and at == len(pattern) else b"[^/]*"
        elif one == b"?":
            made, at = made + b"[^/]", at + 1
        elif one == b"[":
            found = _bracket(pattern, at + 1)
            if found is None:
                return None
            made, at = made + found[0], found[1]
        else:
            at += one == b"\\"
            if at == len(pattern):
                return None
            made, at = made + re.escape(pattern[at : at + 1]), at + 1
    return made


_CLASSES: dict[str, Callable[[str], bool]] = {
    "alnum": str.isalnum, "alpha": str.isalpha, "blank": lambda c: c in " \t", "cntrl": lambda c: c < " " or c == "\x7f",
    "digit": str.isdigit, "graph": lambda c: "!" <= c <= "~", "lower": str.islower, "print": lambda c: " " <= c <= "~",
    "punct": lambda c: "!" <= c <= "~" and not c.isalnum(), "space": lambda c: c in " \t\n\v\f\r", "upper": str.isupper,
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}  # fmt: skip


def _bracket(pattern: bytes, at: int) -> tuple[bytes, int] | None:
    """``[a-z]`` from behind its ``[``: the expression, and where it ends; None when it is broken off."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    before, first = None, True  # what may begin a range
    while True:
        if at >= len(pattern):
            return None
        one = pattern[at]
        if one == ord("]") and not first:
            break
        first = False
        if one == ord("-") and before is not None and pattern[at + 1 : at + 2] not in (b"", b"]"):
            at += 1 + (pattern[at + 1 : at + 2] == b"\\")
            if at >= len(pattern):
                return None
            members.update(range(before, pattern[at] + 1))
            before = None
        elif pattern.startswith(b"[:", at) and (end := pattern.find(b"]", at + 2)) != at + 2 and pattern[end - 1 : end] == b":":
            test = _CLASSES.get(pattern[at + 2 : end - 1].decode("latin-1"))
            if test is None:
                return None
            members.update(code for code in range(128) if test(chr(code)))
            at, before = end, None
        else:
            at += one == ord("\\")
            if at >= len(pattern):
                return None
            members.add(pattern[at])
            before = pattern[at]
        at += 1
    inside = (set(range(256)) - members if negated else members) - {ord("/")}
    return (b"[" + b"".join(b"\\x%02x" % code for code in sorted(inside)) + b"]" if inside else b"(?!)"), at + 1


def ignored(lines: Sequence[bytes], paths: Sequence[bytes]) -> list[bytes]:
    """The paths that a .slugignore removes.

    Args:
        lines: its lines. As .gitignore without negation.
        paths: relative paths, those of directories with a trailing ``/``.
    """
    rules = [rule for rule in map(read_ignore, lines) if rule]
    return [path for path in paths if any(rule.covers(path.rstrip(b"/"), path.endswith(b"/")) for rule in rules)]


def remove_ignored(build: Path) -> int:
    """Apply .slugignore to a tree, and return how many files and directories went."""
    try:
        lines = (build / ".slugignore").read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError:
        return 0
    removed = 0
    for directory, subdirectories, files in os.walk(build):
        relative = "" if directory == str(build) else os.path.relpath(directory, build) + "/"
        links = [name for name in subdirectories if (Path(directory) / name).is_symlink()]  # to git they are files
        names = [f"{relative}{name}/" for name in subdirectories if name not in links]
        names += [f"{relative}{name}" for name in [*links, *files]]
        for path in map(os.fsdecode, ignored(lines, [os.fsencode(name) for name in names])):
            target = build / path.rstrip("/")
            if path.endswith("/"):
                shutil.rmtree(target, ignore_errors=True)
                subdirectories.remove(target.name)
            elif target.name != ".slugignore":
                target.unlink(missing_ok=True)
            removed += 1
    return removed


# --- the build ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """Where things are. On Heroku and here: /app, /cache and /tmp; tests use a directory of their own."""

    app: Path = Path("/app")
    cache: Path = Path("/cache")
    tmp: Path = Path("/tmp")  # noqa: S108 - the sandbox's own
    out: Path = Path("/tmp/davit-slug")  # noqa: S108 - the sandbox's own


@dataclass
class Buildpack:
    """A buildpack as it lies in the sandbox: a private, writable copy."""

    reference: Reference
    root: Path
    stack: str

    @property
    def shown(self) -> str:
        return self.reference.shown


@dataclass
class Build:
    """One build: the order, where it happens, where its streams come from and its report goes to."""

    order: dict[str, Any]
    streams: BinaryIO
    report: BinaryIO
    paths: Paths
    exports: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """The whole build; its end is a report of ``done`` or ``failed``."""
        try:
            self._prepare()
            self._receive()
            self._check_out()
            buildpacks = self._choose()
            names = self._compile(buildpacks)
            self._finish(buildpacks, names)
        except Failed as failure:
            self._tell("failed", message=str(failure))
        except OSError as error:
            self._tell("failed", message=self._sentence(error))

    def _tell(self, event: str, **values: object) -> None:
        self.report.write(json.dumps({"event": event, **values}).encode() + b"\n")
        self.report.flush()

    def _step(self, step: str, buildpack: str = "") -> None:
        self._tell("step", step=step, buildpack=buildpack)

    def _sentence(self, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The build ran out of disk: it may use {self.order.get('disk', '?')} MB, and all of it is full."
        if error.errno == errno.EAGAIN:
            return "The build ran out of processes: something in it started as many as a build may have, and did not end them."
        return f"The build could not go on: {error.strerror or error} ({error.filename or 'no file'})."

    # --- what comes in ---

    def _prepare(self) -> None:
        token = os.urandom(4).hex()
        self.build = self.paths.tmp / f"build_{token}"
        self.environment_directory = self.paths.tmp / f"env_{token}"
        self.buildpacks_directory = self.paths.tmp / "buildpacks"
        for directory in (self.build, self.environment_directory, self.buildpacks_directory, self.paths.cache, self.paths.app):
            directory.mkdir(parents=True, exist_ok=True)
        for name, value in self.order["config"].items():
            if "/" not in name and "\0" not in name and name not in ("", ".", ".."):
                (self.environment_directory / name).write_bytes(value.encode(errors="surrogateescape"))
        self.base = {
            "PATH": PATH,
            "HOME": str(self.paths.app),
            "LANG": "C.UTF-8",
            "SOURCE_VERSION": self.order["source_version"],
            "REQUEST_ID": self.order["request_id"],
            "CURL_CONNECT_TIMEOUT": "30",
            "CURL_TIMEOUT": "600",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new",
            # every tool that brings its own list of authorities is shown the host's instead (proxies that inspect TLS)
            "SSL_CERT_FILE": CERTIFICATES,
            "REQUESTS_CA_BUNDLE": CERTIFICATES,
            "PIP_CERT": CERTIFICATES,
            "NODE_EXTRA_CA_CERTS": CERTIFICATES,
            **self.order["environment"],
        }

    def _receive(self) -> None:
        self._step("checkout")
        targets = {"source": self.build, "bundled": self.paths.tmp / "bundled"}
        for name in self.order["streams"]:
            target = targets.get(name, self.paths.tmp / "streams" / name)
            target.mkdir(parents=True, exist_ok=True)
            self._unpack(chunks(self.streams), target, name)

    def _unpack(self, parts: Iterator[bytes], target: Path, name: str) -> None:
        with tempfile.TemporaryFile(dir=self.paths.tmp) as complaints:
            tar = subprocess.Popen(
                ["tar", "--extract", "--file=-", "--no-same-owner", f"--directory={target}"],
                stdin=subprocess.PIPE, stdout=complaints, stderr=complaints, env=self.base, start_new_session=True,
            )  # fmt: skip
            assert tar.stdin is not None
            broken = False
            for part in parts:
                if not broken:
                    try:
                        tar.stdin.write(part)
                    except BrokenPipeError:
                        broken = True  # the rest is still read: what follows it on the stream has to be found
            with contextlib.suppress(BrokenPipeError):
                tar.stdin.close()
            if tar.wait() != 0:
                if shutil.disk_usage(self.paths.tmp).free < 1 << 20:
                    raise OSError(errno.ENOSPC, "No space left on device")
                complaints.seek(0)
                words = complaints.read(4096).decode(errors="replace").strip().splitlines()
                what = "source" if name == "source" else "buildpack"
                raise Failed(f"The {what} could not be unpacked: {words[0] if words else 'the archive is damaged'}.")

    def _check_out(self) -> None:
        if url := self.order.get("source_url"):
            self._fetch_source(url)
        elif self.order.get("source_uploaded"):
            self._drop_single_directory(self.build)
        if self.order["submodules"]:
            self._step("submodules")
            self._fetch_submodules()
        for leftover in (".git", ".gitmodules"):
            remove(self.build / leftover)
        if not any(self.build.iterdir()):
            raise Failed("There is nothing to build: the commit that was pushed holds no files.")
        if removed := remove_ignored(self.build):
            say(f"-----> Removed {removed} path{'s' * (removed != 1)} matched by .slugignore")

    def _fetch_source(self, url: str) -> None:
        """A tarball; or, when the path ends in .git, the newest commit of a repository's main branch or (``#…``) another."""
        base, _, ref = url.partition("#")
        if not urlsplit(base).path.endswith(".git"):
            self._fetch_archive(url, self.build, "source")
            self._drop_single_directory(self.build)
            return
        if ref.startswith("-"):
            raise Failed("The source's ref begins with “-”; a branch, tag or commit never does.")
        self._git(["init", "--quiet"], self.build, "source")
        self._git(["remote", "add", "origin", base], self.build, "source")
        # not every server can give only the newest commit: then all that leads to it is fetched
        if self._try_git(["fetch", "--quiet", "--depth=1", base, ref or "HEAD"], self.build) != 0:
            self._git(["fetch", "--quiet", base, ref or "HEAD"], self.build, "source")
        self._git(["checkout", "--quiet", "--detach", "FETCH_HEAD"], self.build, "source")
        self._git(["submodule", "--quiet", "update", "--init", "--recursive"], self.build, "source")

    def _fetch_submodules(self) -> None:
        for path in [path for path, url, _ in self.order["submodules"] if not url]:
            say(f" !     {printable(path)} is a submodule that .gitmodules does not name: its directory stays empty.")
            say(" !     Where it is a repository of its own by mistake, delete its .git and add its files to yours.")
        named = [module for module in self.order["submodules"] if module[1]]
        if named:
            say("-----> Fetching git submodules")
        for path, url, commit in named:
            indent(f"{printable(path)} ({printable(without_secrets(url))})")
            if url.startswith(("./", "../")):
                raise Failed(
                    f"The submodule {path} has the relative URL {url}, and what was pushed has no address that it is relative to."
                    " Write the whole URL into .gitmodules."
                )
            if not re.match(r"(https?|git|ssh)://|[\w.-]+@[\w.-]+:", url):
                shown = without_secrets(url)
                raise Failed(f"The submodule {path} has the URL {shown}; a build can fetch only https, http, git and ssh URLs.")
            self._git_at(url, commit, self._inside_build(path), f"submodule {path}")

    def _inside_build(self, path: str) -> Path:
        target = (self.build / path).resolve()
        if not target.is_relative_to(self.build.resolve()) or target == self.build.resolve():
            raise Failed(f"The submodule path {path} leads out of the app.")
        return target

    def _git_at(self, url: str, commit: str, target: Path, what: str) -> None:
        """Put one commit of a repository, with its submodules, into ``target``."""
        target.mkdir(parents=True, exist_ok=True)
        self._git(["init", "--quiet"], target, what)
        self._git(["remote", "add", "origin", url], target, what)  # what URLs of submodules within may be relative to
        # a server may refuse a commit by name, or a shallow fetch of it: then everything is fetched
        if self._try_git(["fetch", "--quiet", "--depth=1", url, commit], target) != 0:
            self._git(["fetch", "--quiet", "--tags", url, "+refs/heads/*:refs/remotes/origin/*"], target, what)
        self._git(["checkout", "--quiet", "--detach", commit], target, what)
        self._git(["submodule", "--quiet", "update", "--init", "--recursive"], target, what)
        for found in [*target.rglob(".git")]:
            remove(found)

    def _try_git(self, arguments: Sequence[str], directory: Path) -> int:
        argv = ["git", "-c", "protocol.file.allow=never", "-c", "advice.detachedHead=false", *arguments]
        return subprocess.run(
            argv, cwd=directory, env=self.base, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.DEVNULL
        ).returncode

    def _git(self, arguments: Sequence[str], directory: Path, what: str) -> None:
        argv = ["git", "-c", "protocol.file.allow=never", "-c", "advice.detachedHead=false", *arguments]
        done = subprocess.run(argv, cwd=directory, env=self.base, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE)
        if done.returncode != 0:
            reasons = [
                line
                for line in done.stderr.decode(errors="replace").splitlines()
                if line.startswith(("fatal:", "error:", "remote:"))
            ]
            for line in reasons:
                indent(_without_keys(line, arguments))
            raise Failed(f"The {what} could not be fetched: git {arguments[0]} failed; as the output has it.")

    # --- buildpacks ---

    def _choose(self) -> list[Buildpack]:
        texts = self.order["buildpacks"] or self._buildpacks_of_source()
        if not texts:
            return []
        if len(texts) > 20:
            raise Failed(f"{len(texts)} buildpacks are set; a build works through 20 at the most.")
        references = [parse_reference(text, self.order["bundled"], self.order["file_buildpacks"]) for text in texts]
        if len(references) == 1:
            say(f"-----> Using buildpack: {references[0].shown}")
        else:
            say("-----> Using buildpacks:")
            for number, reference in enumerate(references, 1):
                indent(f"{number}. {reference.shown}")
        return [self._fetch(reference, number) for number, reference in enumerate(references)]

    def _buildpacks_of_source(self) -> list[str]:
        chosen = self.build / ".buildpacks"
        if not chosen.is_file() or chosen.is_symlink():
            return []
        return listed(chosen.read_bytes()[:65536].decode(errors="replace"))

    def _fetch(self, reference: Reference, number: int) -> Buildpack:
        self._step("fetch", reference.shown)
        root = self.buildpacks_directory / str(number)
        if reference.kind in ("bundled", "stream"):
            home = self.paths.tmp / ("bundled" if reference.kind == "bundled" else "streams")
            shutil.copytree(home / reference.location, root, symlinks=True)
        elif reference.kind == "archive":
            self._fetch_archive(reference.location, root, f"buildpack {reference.shown}")
        else:
            self._clone(reference, root)
        if not (root / "bin").is_dir():
            self._drop_single_directory(root)
        if not (root / "bin" / "detect").is_file() and not (root / "bin" / "compile").is_file():
            raise Failed(f"{reference.shown} is no buildpack: it has neither bin/detect nor bin/compile.")
        for script in SCRIPTS:  # many public buildpacks are published without the executable bit
            with contextlib.suppress(FileNotFoundError):
                (root / "bin" / script).chmod(0o755)
        return Buildpack(reference, root, self._stack_for(reference, root))

    def _stack_for(self, reference: Reference, root: Path) -> str:
        """The value of STACK: our own name for those who know it, the alias that public buildpacks know for the rest."""
        own: str = self.order["stack"]
        if reference.kind == "bundled":
            return own
        try:
            knows = re.search(
                rf'^\s*id\s*=\s*["\']{re.escape(own)}["\']', (root / "buildpack.toml").read_text(errors="replace"), re.MULTILINE
            )
        except OSError:
            knows = None
        return own if knows else self.order["stack_alias"]

    def _clone(self, reference: Reference, root: Path) -> None:
        what = f"buildpack {reference.shown}"
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", reference.ref):
            self._git_at(reference.location, reference.ref, root, what)
            return
        branch = ["--branch", reference.ref] if reference.ref else []
        shallow = ["clone", "--quiet", "--depth=1", *branch, "--", reference.location, str(root)]
        if self._try_git(shallow, self.buildpacks_directory) != 0:
            # an abbreviated commit, or a server without shallow clones
            remove(root)
            self._git(["clone", "--quiet", "--", reference.location, str(root)], self.buildpacks_directory, what)
            if reference.ref:
                self._git(["checkout", "--quiet", "--detach", reference.ref], root, f"ref {reference.ref} of {what}")
        self._git(["submodule", "--quiet", "update", "--init", "--recursive"], root, what)

    def _fetch_archive(self, url: str, target: Path, what: str) -> None:
        target.mkdir(parents=True, exist_ok=True)
        archive = self.paths.tmp / f"download_{os.urandom(4).hex()}"
        config = f'url = "{url}"\noutput = "{archive}"\n'
        argv = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--location",
            "--retry",
            "3",
            "--connect-timeout",
            "30",
            "--max-time",
            "600",
        ]
        argv += ["--proto", "=http,https", "--proto-redir", "=http,https", "--config", "-"]
        done = subprocess.run(argv, input=config.encode(), env=self.base, stdout=2, stderr=subprocess.PIPE)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().splitlines()
            raise Failed(f"The {what} could not be downloaded: {reason[-1] if reason else 'no reason given'}.")
        if checksum := self.order.get("source_checksum") if what == "source" else None:
            self._verify(archive, checksum)
        with archive.open("rb") as file:
            argv = ["tar", "--extract", "--file", str(archive), "--no-same-owner", "--directory", str(target)]
            unpacked = subprocess.run(argv, stdin=file, env=self.base, stdout=2, stderr=subprocess.PIPE)
        archive.unlink()
        if unpacked.returncode != 0:
            raise Failed(f"The {what} could not be unpacked: it is no tar archive, or it is damaged.")

    def _verify(self, archive: Path, checksum: str) -> None:
        import hashlib

        digest = hashlib.sha256()
        with archive.open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
        if checksum.lower().removeprefix("sha256:") != digest.hexdigest():
            raise Failed("The source is not what its checksum says; upload it again.")

    def _drop_single_directory(self, root: Path) -> None:
        """An archive that holds one directory means that directory."""
        entries = list(root.iterdir())
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink():
            return
        inner = root.with_name(root.name + "_inner")
        entries[0].rename(inner)
        root.rmdir()
        inner.rename(root)

    # --- detect, compile, release ---

    def _compile(self, chosen: list[Buildpack]) -> list[str]:
        """Work the buildpacks in their order; fills ``chosen`` when detection chose, returns the names they gave the app."""
        names = []
        if not chosen:
            say("-----> Determining which buildpack to use for this app")
            buildpack, name = self._detect_any()
            chosen.append(buildpack)
            self._compile_one(buildpack, name)
            return [name]
        for buildpack in chosen:
            self._step("detect", buildpack.shown)
            detected = self._detect(buildpack, complain=True)
            if detected is None:
                raise Failed(f"App not compatible with buildpack: {buildpack.shown}. Its bin/detect said no.")
            names.append(detected)
            self._compile_one(buildpack, detected)
        return names

    def _detect_any(self) -> tuple[Buildpack, str]:
        for number, location in enumerate(self.order["bundled"]):
            root = self.paths.tmp / "bundled" / location
            buildpack = Buildpack(Reference("bundled", location, "", location), root, self.order["stack"])
            self._step("detect", location)
            name = self._detect(buildpack, complain=False)
            if name is not None:
                return self._fetch(buildpack.reference, number), name
        present = sorted(entry.name + "/" * entry.is_dir() for entry in self.build.iterdir())
        indent("No buildpack matches this app. What each looks for in the root of the repository:")
        for location, looks_for in self.order["bundled"].items():
            indent(f"  {location:10} {looks_for}")
        indent(f"The root of this repository holds: {printable(', '.join(present[:12]))}{', …' if len(present) > 12 else ''}")
        raise Failed(
            "No buildpack matches this app. Add one of the files that they look for, "
            "or name a buildpack with `davit buildpacks:set`."
        )

    def _detect(self, buildpack: Buildpack, complain: bool) -> str | None:
        if not (buildpack.root / "bin" / "detect").is_file():
            return buildpack.shown if complain else None
        status, printed = self._script(
            buildpack, "detect", [self.build], stderr=2 if complain else subprocess.DEVNULL, limit=4096
        )
        if status != 0:
            if complain and printed.strip():
                say(printed.decode(errors="replace").rstrip())
            return None
        lines = [
            line
            for line in printable(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode(errors="replace"))).split("\n")
            if line.strip()
        ]
        return lines[0].strip()[:100] if lines else buildpack.shown

    def _compile_one(self, buildpack: Buildpack, name: str) -> None:
        self._tell("detected", buildpack=buildpack.shown, name=name)
        say(f"-----> {name} app detected")
        self._step("compile", buildpack.shown)
        if not (buildpack.root / "bin" / "compile").is_file():
            raise Failed(f"The buildpack {buildpack.shown} has no bin/compile.")
        status, _ = self._script(buildpack, "compile", [self.build, self.paths.cache, self.environment_directory])
        if status != 0:
            raise Failed(self._why_compile_failed(buildpack, status))
        if not self.build.is_dir():
            raise Failed(f"The buildpack {buildpack.shown} removed the directory that it was to build in.")
        self._source_export(buildpack)

    def _why_compile_failed(self, buildpack: Buildpack, status: int) -> str:
        if shutil.disk_usage(self.paths.tmp).free < 1 << 20:
            return self._sentence(OSError(errno.ENOSPC, ""))
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        what = self.detected_shown(buildpack)
        return f"Failed to compile {what}: bin/compile of {buildpack.shown} {how}; what it printed is in the build's output."

    @staticmethod
    def detected_shown(buildpack: Buildpack) -> str:
        return "the app" if buildpack.reference.kind != "bundled" else f"the {buildpack.reference.location} app"

    def _source_export(self, buildpack: Buildpack) -> None:
        """What the buildpack's ``export`` sets is for the buildpacks after it; it is bash, so bash evaluates it."""
        export = buildpack.root / "export"
        if not export.is_file():
            return
        with tempfile.TemporaryFile(dir=self.paths.tmp) as result:
            script = 'set -a; . "$1" >&2; exec env -0'
            argv = ["bash", "-c", script, "export", str(export)]
            self._wait(subprocess.Popen(
                argv, cwd=buildpack.root, env=self._environment(buildpack), stdin=subprocess.DEVNULL, stdout=result,
                stderr=2, start_new_session=True,
            ))  # fmt: skip
            result.seek(0)
            entries = result.read(1 << 20).split(b"\0")
        if entries[-1] != b"" or len(entries) < 2:
            indent(
                f"The file export of {buildpack.shown} could not be evaluated; the buildpacks after it do not see what it sets."
            )
            return
        pairs = (entry.decode(errors="surrogateescape").partition("=") for entry in entries if b"=" in entry)
        own = self._environment(buildpack)
        changed = {name: value for name, _, value in pairs if own.get(name) != value}
        self.exports.update(
            {name: value for name, value in changed.items() if name not in ("_", "SHLVL", "PWD", "OLDPWD", "STACK")}
        )

    def _release(self, buildpack: Buildpack) -> bytes:
        self._step("release", buildpack.shown)
        if not (buildpack.root / "bin" / "release").is_file():
            return b""
        status, printed = self._script(buildpack, "release", [self.build, self.paths.cache], limit=RELEASE_LIMIT)
        if status != 0:
            raise Failed(f"bin/release of the buildpack {buildpack.shown} ended with status {status}.")
        return printed

    def _environment(self, buildpack: Buildpack) -> dict[str, str]:
        return {**self.base, **self.exports, "STACK": buildpack.stack}

    def _script(
        self, buildpack: Buildpack, name: str, arguments: Sequence[Path], *, stderr: int = 2, limit: int = 0
    ) -> tuple[int, bytes]:
        """Run a buildpack's script; with ``limit`` its standard output is kept, up to so many bytes, instead of shown.

        What it prints goes to a descriptor, never through a pipe of ours: a process that it leaves behind cannot
        keep the build waiting.
        """
        argv = [str(buildpack.root / "bin" / name), *map(str, arguments)]
        with tempfile.TemporaryFile(dir=self.paths.tmp) if limit else contextlib.nullcontext(None) as kept:
            try:
                process = subprocess.Popen(
                    argv, cwd=buildpack.root, env=self._environment(buildpack), stdin=subprocess.DEVNULL,
                    stdout=kept or 2, stderr=stderr, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
                    raise
                raise Failed(
                    f"bin/{name} of the buildpack {buildpack.shown} cannot be run: {error.strerror}. Is its first line right?"
                ) from None
            status = self._wait(process)
            if kept is None:
                return status, b""
            kept.seek(0)
            return status, kept.read(limit)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes]) -> int:
        """Wait for a script, then end what it left in its session."""
        status = process.wait()
        with contextlib.suppress(OSError):
            os.killpg(process.pid, 9)
        return status

    # --- what goes out ---

    def _finish(self, buildpacks: Sequence[Buildpack], names: Sequence[str]) -> None:
        release = self._release(buildpacks[-1])
        self._step("pack")
        self._make_readable(self.build)
        self.paths.out.mkdir(parents=True, exist_ok=True)
        procfile, app_json = self._file("Procfile", PROCFILE_LIMIT), self._file("app.json", APP_JSON_LIMIT)
        self.build.rename(self.paths.out / "app")
        self._tell(
            "done",
            release=encoded(release),
            procfile=encoded(procfile),
            app_json=encoded(app_json),
            buildpacks=[buildpack.shown for buildpack in buildpacks],
            names=names,
        )

    def _file(self, name: str, limit: int) -> bytes | None:
        path = self.build / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise Failed(f"{name} is larger than {limit >> 10} KB.")
        return content

    def _make_readable(self, tree: Path) -> None:
        """Read-only directories (Go's module cache) and unreadable files would stop the sealing."""
        argv = ["find", str(tree), "!", "-type", "l", "(", "!", "-perm", "-u+r", "-o", "-type", "d", "!", "-perm", "-u+rwx", ")"]
        subprocess.run([*argv, "-exec", "chmod", "u+rwX", "{}", "+"], env=self.base, stdin=subprocess.DEVNULL, stdout=2, stderr=2)


# --- small things ---------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line of build output."""
    rest = memoryview(text.encode(errors="replace") + b"\n")
    while rest:
        rest = rest[os.write(2, rest) :]


def indent(text: str) -> None:
    """A line of build output below a heading."""
    say(f"       {text}")


def printable(text: str) -> str:
    """Text of a stranger without what would move a terminal's cursor."""
    return "".join(char if char == "\n" or char.isprintable() else "?" for char in text)


def encoded(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def remove(path: Path) -> None:
    """Remove a file or a tree, whatever its modes."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        for directory, _, _ in os.walk(path):
            os.chmod(directory, 0o700)
        shutil.rmtree(path)


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The parts of one stream: each a line with its length in hexadecimal and so many bytes; length 0 ends the stream."""
    while size := int(stream.readline(20), 16):
        while size:
            part = stream.read(min(size, CHUNK))
            if not part:
                raise Failed("The stream from the host ended early.")
            size -= len(part)
            yield part


def main(stdin: BinaryIO, paths: Paths) -> None:
    """Read the order from ``stdin`` and build."""
    report = os.fdopen(os.dup(1), "wb")  # not inherited: what scripts print to 1 must not be taken for the report
    os.dup2(2, 1)
    os.umask(0o022)
    order = json.loads(stdin.readline())
    Build(order, stdin, report, paths).run()


if __name__ == "__main__":
    main(
        sys.stdin.buffer, Paths(**{name: Path(value) for name, value in json.loads(os.environ.get("DAVIT_PATHS", "{}")).items()})
    )
