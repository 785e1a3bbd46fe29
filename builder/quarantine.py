"""Where a push's objects stay until it is decided: an object directory of their own beside the repository.

Nothing of a push is in the app's repository before a ref is about to point at it, so that refusing a push is removing a
directory, whatever came in, whoever else is pushing the same, and whenever the power goes. It is C git's idea
(tmp-objdir.c, "quarantine" in git-receive-pack(1)), carried on through the build: ``INCOMING/APP_ID.receiving-*`` while
the pack comes in, held by a lock on the directory, and ``INCOMING/APP_ID.BUILD_ID`` for as long as its build goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from builder import git
from foundation import disk
from foundation.errors import DiskFull, InvalidParams

log = logging.getLogger("builder.quarantine")

ZERO = b"0" * 40
"""The object id that stands for "no such ref" in the git protocol."""

_SLIPS = (
    "badDate", "badDateOverflow", "badEmail", "badName", "badTimezone", "missingEmail", "missingNameBeforeEmail",
    "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "zeroPaddedDate", "zeroPaddedFilemode",
)  # fmt: skip
STRICTNESS = "--strict=" + ",".join(f"{slip}=ignore" for slip in _SLIPS)
"""What git fsck knows is checked, but for slips in author lines and modes that much-copied old histories are full of and
that hurt nobody."""

THREADS = min(2, os.cpu_count() or 1)
"""Deltas are resolved on two processors, while the client waits; each more would hold another base and its result in memory."""
CHUNK = 65536


class PackRefused(InvalidParams):
    """The objects of a push cannot be taken. ``word`` is the short reason for git's own report line."""

    id = "push_refused"

    def __init__(self, message: str, word: str) -> None:
        super().__init__(message)
        self.word = word


class PackTooLarge(PackRefused):
    id, status = "push_too_large", 413


class PackTooSlow(PackRefused):
    id, status = "too_slow", 408


class RepositoryFull(PackRefused):
    id, status = "repository_full", 413


class TooManyRefs(PackRefused):
    id = "too_many_refs"


@dataclass(frozen=True)
class Move:
    """A ref's way from one object id to another (40 zeros: none); all bytes, as git names them."""

    ref: bytes
    old: bytes
    new: bytes


class Quarantine:
    """An object directory that sees the repository's objects, and that the repository does not see.

    Args:
        repository: the app's bare repository.
        path: this quarantine's directory.
    """

    def __init__(self, repository: Path, path: Path) -> None:
        self.repository = repository
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, incoming: Path, app_id: str, repository: Path) -> Quarantine:
        """A new one, locked for as long as this process lives and :meth:`close` is not called."""
        incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        quarantine = cls(repository, incoming / f"{app_id}.receiving-{secrets.token_hex(8)}")
        quarantine.path.mkdir(mode=0o700)
        quarantine._lock = os.open(quarantine.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(quarantine._lock, fcntl.LOCK_EX)
        (quarantine.path / "pack").mkdir()
        return quarantine

    # Receiving

    def environment(self) -> dict[str, str]:
        """The environment of a git process that works inside the quarantine."""
        env = git.environment(self.repository, objects=self.path, alternates=[self.repository / "objects"])
        if self.shallow_file.exists():
            # What git receive-pack does: roots of the pusher's shallow clone count as roots here, for this process.
            env["GIT_SHALLOW_FILE"] = str(self.shallow_file)
        return env

    @property
    def shallow_file(self) -> Path:
        """The repository's shallow roots and those that came with this push; absent when there are none."""
        return self.path / "shallow"

    def note_shallow(self, roots: Sequence[bytes]) -> None:
        """Take the pusher's shallow roots (its ``shallow`` lines) into account."""
        self._write_shallow(set(shallow_roots(self.repository)) | set(roots))

    def index(
        self, read: Callable[[int], bytes] | int, limit: int, tick: Callable[[], None], waited: Callable[[float], None]
    ) -> None:
        """Take a pack in: index it, complete a thin one, check every object.

        Args:
            read: the pack's bytes: a descriptor that git reads itself, or a function that returns at most n bytes,
                none at the end.
            limit: bytes that the pack may have.
            tick: called about once a second while git works on its own.
            waited: told for how many seconds git, which reads by itself, has waited for more; it may raise.

        Raises:
            PackTooLarge: it has more.
            PackRefused: it is broken, hostile, or there is no room for it.
        """
        words = ("index-pack", "--stdin", "--fix-thin", STRICTNESS, f"--threads={THREADS}", f"--max-input-size={limit}")
        stdin = read if isinstance(read, int) else subprocess.PIPE
        with git.running(
            self.environment(), *words, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:  # fmt: skip
            assert process.stderr is not None
            last_words = _LastWords(process.stderr)
            if not isinstance(read, int):
                _pump(read, process)
            while True:
                try:
                    status = process.wait(1)
                    break
                except subprocess.TimeoutExpired:
                    tick()
                    if isinstance(read, int) and _sleeps(process.pid):
                        waited(1)
            said = last_words.text()
        if status != 0:
            raise _refusal(status, said, limit)

    def settle_shallow(self, tips: Sequence[bytes]) -> None:
        """Forget the roots that came with this push and are none here, because their parents are: whoever deploys a clone of
        depth 1 must not cut the app's repository off its history.

        Args:
            tips: what the push is about to have refs point at.
        """
        if not self.shallow_file.exists():
            return
        named, known = set(self.shallow_file.read_bytes().split()), set(shallow_roots(self.repository))
        needed = known | self._without_parents(named - known)
        if needed == named:
            return
        self._write_shallow(needed)
        if not self.check_connected(tips):  # a parent that no ref reaches may lack parents itself
            self._write_shallow(named)

    def _without_parents(self, roots: set[bytes]) -> set[bytes]:
        """Those that are here and have a parent that is not."""
        if not roots:
            return set()
        env = {**self.environment(), "GIT_SHALLOW_FILE": ""}  # none: parents as they stand in the commits
        told = git.run(
            env, "rev-list", "--no-walk=unsorted", "--parents", "--ignore-missing", "--stdin", input=_lines(roots)
        ).stdout
        parents = {words[0]: words[1:] for words in map(bytes.split, told.splitlines())}
        every = {parent for some in parents.values() for parent in some}
        said = git.run(env, "cat-file", "--batch-check", input=_lines(every)).stdout if every else b""
        missing = {line.split()[0] for line in said.splitlines() if line.endswith(b" missing")}
        return {root for root, some in parents.items() if missing & set(some)}

    def _write_shallow(self, roots: set[bytes]) -> None:
        if roots:
            self.shallow_file.write_bytes(_lines(roots))
        else:
            self.shallow_file.unlink(missing_ok=True)

    def check_connected(self, tips: Sequence[bytes]) -> bool:
        """Whether everything that ``tips`` need is here (or in the repository, below one of its refs)."""
        done = git.run(
            self.environment(), "rev-list", "--objects", "--quiet", "--stdin", "--not", "--all",
            input=_lines(tips), check=False,
        )  # fmt: skip
        return done.returncode == 0

    def is_commit(self, sha: bytes) -> bool:
        """Whether ``sha`` is a commit (not a tag, tree or blob)."""
        done = git.run(self.environment(), "cat-file", "--batch-check=%(objecttype)", input=sha + b"\n", check=False)
        return done.stdout.strip() == b"commit"

    # Deciding

    def keep_for(self, app_id: str, build_id: str, deploy: Move, along: Sequence[Move] = ()) -> None:
        """Give the quarantine to a build: it now outlasts this process, and goes when the build is decided.

        Args:
            deploy: the move that waits for the build.
            along: moves of the same atomic push, to be made in the same breath.
        """
        moves = [[part.decode("utf-8", "surrogateescape") for part in (m.ref, m.old, m.new)] for m in (deploy, *along)]
        (self.path / "moves.json").write_text(json.dumps(moves))
        target = self.path.with_name(f"{app_id}.{build_id}")
        self.path.rename(target)
        self.path = target
        # before the build's row says that there is something to build; for ext4 it is one write
        disk.sync(target / "moves.json", target / "pack", target, target.parent)

    @property
    def kept(self) -> bool:
        """Whether a build has it."""
        return ".receiving-" not in self.path.name

    @property
    def moves(self) -> list[Move]:
        """The moves that wait for the build, the deployed branch first; empty while the push is still coming in, and where a
        power cut took them (the build's row knows the first)."""
        try:
            found = json.loads((self.path / "moves.json").read_text())
        except (FileNotFoundError, ValueError):
            return []
        return [Move(*(part.encode("utf-8", "surrogateescape") for part in move)) for move in found]

    def admit(self) -> None:
        """Put the objects into the repository (hard links: at once, and the quarantine stays whole).

        An index goes last: without it git does not see its pack. Both are on disk before a ref can name them.
        """
        target = self.repository / "objects" / "pack"
        for file in sorted((self.path / "pack").glob("pack-*"), key=lambda path: path.suffix == ".idx"):
            with contextlib.suppress(FileExistsError):  # the same pack, received twice: packs are named by their content
                os.link(file, target / file.name)
        disk.sync(target)
        if self.shallow_file.exists():
            roots = set(shallow_roots(self.repository)) | set(self.shallow_file.read_bytes().split())
            disk.write(self.repository / "shallow", _lines(roots), mode=0o644)

    def close(self) -> None:
        """Let go: what no build has is removed."""
        if not self.kept:
            self.discard()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove it with all that is in it."""
        for _ in range(3):  # a git process that was left behind may still be making a file
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
            time.sleep(0.05)
        log.warning("a quarantine could not be removed", extra={"path": self.path})

    def abandoned(self) -> bool:
        """Whether the process that made it is gone (or has let go)."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)


def shallow_roots(repository: Path) -> list[bytes]:
    """Commits whose parents the repository does not have, because it was pushed from a shallow clone."""
    try:
        return (repository / "shallow").read_bytes().split()
    except FileNotFoundError:
        return []


def _lines(ids: Iterable[bytes]) -> bytes:
    """Object ids as git reads them from a file, and from its standard input."""
    return b"".join(one + b"\n" for one in sorted(ids))


def _sleeps(pid: int) -> bool:
    """Whether all threads of a process wait, for what it reads say; one that computes or is at the disk does not (proc(5))."""
    try:
        stats = [(task / "stat").read_text(errors="replace") for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


def _pump(read: Callable[[int], bytes], process: subprocess.Popen[bytes]) -> None:
    """Feed the process until there is no more, or it wants no more."""
    assert process.stdin is not None
    try:
        while data := read(CHUNK):
            process.stdin.write(data)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has said why, and its exit status tells


class _LastWords:
    """The end of what a process writes to a pipe, read as it comes so that the process never waits."""

    KEPT = 4096

    def __init__(self, pipe: IO[bytes]) -> None:
        self._tail = b""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self._pipe.fileno(), self.KEPT):
                self._tail = (self._tail + data)[-self.KEPT :]

    def text(self) -> str:
        self._thread.join(10)
        return self._tail.decode(errors="replace").strip()


def _refusal(status: int, said: str, limit: int) -> PackRefused:
    """index-pack's failure as a sentence for the pusher."""
    lines = [line.partition(": ")[2] for line in said.splitlines() if line.startswith(("fatal: ", "error: "))]
    last = next((line for line in lines if line.startswith("object ")), lines[-1] if lines else "")
    lower = said.lower()
    if "maximum allowed size" in lower:
        return too_large(limit)
    if "no space left" in lower or "disk quota" in lower:
        return no_room()
    if "out of memory" in lower or "unable to create thread" in lower:
        return PackRefused(
            f"Your push changes a file so large that comparing its versions takes more than {git.MEMORY >> 20} MiB of memory. "
            "Have git keep its versions whole, and push again: git config core.bigFileThreshold 16m && git repack -adF",
            "too large to unpack",
        )  # fmt: skip
    if "early eof" in lower or "unexpected disconnect" in lower:
        return PackRefused("Your push broke off before all of it had arrived.", "unexpected end")
    if "requires a git repository" in lower or "not a git repository" in lower:
        log.error("an app's repository is damaged: git says %s", said)
        return PackRefused(
            "The app's repository on this server is damaged, which is no fault of your push's. Its owner finds what git says in "
            "the log; a backup has it whole.",
            "the repository is damaged",
        )  # fmt: skip
    if status < 0:
        return PackRefused("Your push takes too long to check; push it in smaller parts.", "took too long to check")
    return PackRefused(f"Your push was not taken: git says “{last or 'the pack is broken'}”.", _word(last) or "index-pack failed")


def no_room() -> PackRefused:
    """The refusal of a push for want of disk space."""
    return PackRefused(DiskFull("your push was not taken").message, "disk full")


def too_large(limit: int) -> PackTooLarge:
    """The refusal of a push with more than ``limit`` bytes."""
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    return PackTooLarge(
        f"Your push is larger than the {size} that this Davit takes at once. Leave large files out of git, "
        "or ask its owner to raise DAVIT_PUSH_LIMIT.",
        "larger than the limit",
    )


def repository_full(limit: int) -> RepositoryFull:
    """The refusal of a push for which an app's repository of at most ``limit`` bytes has no room."""
    return RepositoryFull(
        f"With your push the app's repository would be larger than the {limit >> 20} MiB that this Davit keeps for an app. "
        "Delete branches and tags that you do not need (git push davit --delete NAME), or ask its owner to raise "
        "DAVIT_REPOSITORY_LIMIT.",
        "the repository is full",
    )


def too_many_refs(count: int, limit: int) -> TooManyRefs:
    """The refusal of a push after which an app would have ``count`` refs of at most ``limit``."""
    return TooManyRefs(
        f"With your push the app would have {count} branches and tags; this Davit keeps {limit} for an app. Push fewer, delete "
        "some (git push davit --delete NAME), or ask its owner to raise DAVIT_REPOSITORY_REFS.",
        "too many refs",
    )


def _word(text: str) -> str:
    """One printable line for git's report."""
    return "".join(c for c in text if c.isprintable())[:200]
