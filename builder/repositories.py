"""The apps' bare git repositories: ``DAVIT_HOME/repos/APP_ID.git``, and beside them what has not been decided yet.

``repos/incoming/`` holds one quarantine (see :mod:`builder.quarantine`) for each push under way and each build that came
from a push. A ref that deploys moves only by :meth:`Repositories.move_ref`, called by the build job in the same breath as
the release's success; :meth:`Repositories.unpin` then removes the quarantine, as it does when the build failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dulwich.repo import Repo

from builder import git
from builder.quarantine import ZERO, Move, Quarantine, repository_full, too_many_refs
from foundation import clock, disk
from foundation.errors import Conflict, DavitError, InvalidParams, NotFound
from foundation.settings import Settings, settings

log = logging.getLogger("builder.repositories")

DEPLOYED = (b"refs/heads/main", b"refs/heads/master")
"""The branches that deploy; the first wins when a push moves both."""
HIDDEN = b"refs/davit/"
"""Refs that are Davit's own: never shown, never taken from a push."""
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""The tree without a file; git knows it without having it."""
PACKS = 20
"""Packs that a repository may have before they are put together."""
LOOSE_REFS = 50
"""Refs in files of their own that a repository may have before they are put into one."""
STALE_LOCK_SECONDS = 30
"""Age at which a lock of git's (``*.lock`` beside what it is for) is a killed process's, when no git of Davit's moves refs: what
moves thousands syncs each before it gives up the first lock."""
_REFS_LOCK = "davit-refs.lock"
"""Held shared by who reads or moves refs, a git itself included; exclusively by who packs them or removes locks of the dead."""
_LOCKED = ("HEAD", "packed-refs", "config", "shallow")
"""What git locks by such a file beside it, besides each ref."""
LEFT_OVER_SECONDS = 3600
"""Age at which what is half made has lost whoever made it: longer than git may take."""
_CONFIGURATION = b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
_ATTRIBUTES = b"* -export-ignore -export-subst\n"
"""git archive leaves out and rewrites what a tree's attributes tell it to; a checkout does neither."""
SUBMODULES = 200
"""Submodules that an app may have."""

_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_SHA = re.compile(r"[0-9a-f]{40}")


class FetchFirst(Conflict):
    """The branch has moved since the pusher last looked, to something that the push does not contain."""

    id = "fetch_first"

    def __init__(self, ref: bytes) -> None:
        name = ref.decode(errors="replace").removeprefix("refs/heads/")
        super().__init__(f"{name} was pushed by someone else in the meantime. Fetch first, then push again.")


@dataclass(frozen=True)
class Bounds:
    """What the repository of one app may have.

    Attributes:
        size: bytes on disk, with what waits for a build.
        refs: branches, tags and others.
    """

    size: int = 4 << 30
    refs: int = 2000

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Those of a Davit."""
        return cls(settings.repository_limit << 20, settings.repository_refs)


@dataclass(frozen=True)
class Submodule:
    """A submodule as a commit names it: hostile in every part but its shape."""

    path: str
    url: str
    sha: str


class Repositories:
    """The repositories under one directory.

    Args:
        root: ``DAVIT_HOME/repos``; made when something is first put there (by whom it belongs to, not by who only loads this).
        bounds: of each.
    """

    def __init__(self, root: Path, bounds: Bounds = Bounds()) -> None:
        self.root, self.bounds = root, bounds
        self.incoming = root / "incoming"

    # The repositories themselves

    def path(self, app_id: str) -> Path:
        """Where the app's repository is (or will be)."""
        if not _ID.fullmatch(app_id):
            raise ValueError(f"not an app id: {app_id!r}")
        return self.root / f"{app_id}.git"

    def ensure(self, app_id: str) -> Path:
        """The app's repository, made when there is none; any number of processes may do so at once."""
        path = self.path(app_id)
        if path.is_dir():
            _complete(path)
            return path
        fresh = self.root / f".{app_id}.{secrets.token_hex(6)}"
        try:
            git.run(git.environment(fresh), "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(fresh))
            (fresh / "info").mkdir()
            (fresh / "info" / "attributes").write_bytes(_ATTRIBUTES)
            disk.sync(*(place for place in fresh.rglob("*")), fresh)
            fresh.rename(path)
            disk.sync(self.root)
        except OSError:
            if not path.is_dir():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return path

    def remove(self, app_id: str) -> None:
        """Remove the app's repository and all that was coming in for it."""
        for quarantine in self._quarantines(app_id):
            quarantine.discard()
        shutil.rmtree(self.path(app_id), ignore_errors=True)

    def size(self, app_id: str) -> int:
        """Bytes that the app's repository takes on disk."""
        return _size([self.path(app_id)])

    def room(self, app_id: str) -> int:
        """Bytes that the app's repository may still grow by; what waits for a build counts.

        Raises:
            RepositoryFull: none.
        """
        for again in (True, False):
            room = self.bounds.size - _size([self.path(app_id), *(quarantine.path for quarantine in self._quarantines(app_id))])
            if room > 0:
                return room
            if again:
                self.tidy(app_id)
        raise repository_full(self.bounds.size)

    def check_refs(self, app_id: str, moves: Sequence[Move]) -> None:
        """Whether the app may have the refs that ``moves`` make; who makes none may always push.

        Raises:
            TooManyRefs: it would have too many.
        """
        there = self.refs(app_id).keys()
        made = {move.ref for move in moves if move.new != ZERO} - there
        after = len(made | there) - len({move.ref for move in moves if move.new == ZERO} & there)
        if made and after > self.bounds.refs:
            raise too_many_refs(after, self.bounds.refs)

    def refs(self, app_id: str) -> dict[bytes, bytes]:
        """Every ref that a client may see, and its object id."""
        with self._reading_refs(app_id) as repo:
            found = repo.refs.as_dict(b"refs")  # type: ignore[arg-type]
        named = {b"refs/" + bytes(name): bytes(sha) for name, sha in found.items()}
        return {name: sha for name, sha in named.items() if not name.startswith(HIDDEN)}

    def current(self, app_id: str, ref: bytes) -> bytes:
        """What ``ref`` points at; 40 zeros when it does not exist."""
        with self._reading_refs(app_id) as repo:
            try:
                return bytes(repo.refs[ref])  # type: ignore[index]
            except KeyError:
                return ZERO

    def deployed_branch(self, app_id: str) -> bytes:
        """The branch that was deployed last (HEAD)."""
        text = (self.ensure(app_id) / "HEAD").read_bytes().strip()
        return text.removeprefix(b"ref: ")

    # Pushes

    @contextlib.contextmanager
    def receiving(self, app_id: str) -> Iterator[Quarantine]:
        """A quarantine for a push; gone at the end of the block unless a build was given it."""
        repository = self.ensure(app_id)
        self._forget_empty_refs(app_id)
        with self._locked(app_id, fcntl.LOCK_SH):
            quarantine = Quarantine.create(self.incoming, app_id, repository)
        try:
            yield quarantine
        finally:
            quarantine.close()

    def store(self, app_id: str, quarantine: Quarantine, moves: Sequence[Move], *, atomic: bool) -> dict[bytes, bool]:
        """Move refs that wait for no build, all or (``atomic``) none; says which moved."""
        with self._locked(app_id, fcntl.LOCK_SH):
            if any(move.new != ZERO for move in moves):
                quarantine.admit()
            if any(move.old != ZERO for move in moves):
                self._mark_garbage(app_id)
            moved = self._update(app_id, moves, atomic=atomic)
            disk.sync(*{place for move in moves if (place := (self.path(app_id) / os.fsdecode(move.ref)).parent).is_dir()})
            return moved

    def _update(self, app_id: str, moves: Sequence[Move], *, atomic: bool) -> dict[bytes, bool]:
        moved = self._move(app_id, moves, atomic=atomic)
        self._sync_refs(app_id, [ref for ref, done in moved.items() if done])
        return moved

    def _sync_refs(self, app_id: str, refs: Iterable[bytes]) -> None:
        """Have refs that have just moved on the disk, where git does not see to it."""
        for ref in () if git.syncs_refs() else refs:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # deleted, perhaps for one of its directory's name
                disk.sync(self.path(app_id) / os.fsdecode(ref))

    def _move(self, app_id: str, moves: Sequence[Move], *, atomic: bool) -> dict[bytes, bool]:
        lines = [_transaction_line(move) for move in moves]
        if self._commit(app_id, b"".join(lines)):
            return {move.ref: True for move in moves}
        if self._break_locks(app_id, moves) and self._commit(app_id, b"".join(lines)):
            return {move.ref: True for move in moves}
        if atomic or len(moves) == 1:
            return {move.ref: False for move in moves}
        return {move.ref: self._commit(app_id, line) for move, line in zip(moves, lines, strict=True)}

    def _commit(self, app_id: str, lines: bytes) -> bool:
        """A transaction of git's: whether all of it came about."""
        return self._moving(app_id, "update-ref", "-z", "--stdin", input=lines).returncode == 0

    def _moving(self, app_id: str, *words: str, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a git that moves refs. It holds the lock itself: nobody takes its own from it, also when this process is killed."""
        with self._locked(app_id, fcntl.LOCK_SH, name=_REFS_LOCK) as held:
            return git.run(git.environment(self.path(app_id)), *words, input=input, check=False, pass_fds=[held])

    def _break_locks(self, app_id: str, moves: Sequence[Move]) -> bool:
        """Wait for who holds the locks that moving these refs needs, or take them from the dead; whether there were any."""
        repository = self.path(app_id)
        names = ["HEAD", "packed-refs", *(os.fsdecode(move.ref) for move in moves)]
        locks = [repository / f"{name}.lock" for name in names]
        found = [lock for lock in locks if lock.exists()]
        deadline = time.monotonic() + STALE_LOCK_SECONDS + 1
        while left := [lock for lock in found if lock.exists()]:
            self._remove_stale(app_id, left)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return bool(found)

    def _remove_stale(self, app_id: str, locks: Iterable[Path]) -> None:
        """Remove those that are too old to have a living owner, while no git moves refs; one process at a time, so that none
        takes what is new."""
        stale = [lock for lock in locks if _older(lock, STALE_LOCK_SECONDS)]
        if stale:
            with self._locked(app_id, fcntl.LOCK_EX, name=_REFS_LOCK):
                for lock in stale:
                    if _older(lock, STALE_LOCK_SECONDS):
                        log.warning("a lock that a killed process left was removed", extra={"app": app_id, "lock": lock.name})
                        lock.unlink(missing_ok=True)

    # Builds

    def archive(self, app_id: str, commit: str, build_id: str | None = None) -> subprocess.Popen[bytes]:
        """The commit's files as a tar stream on ``.stdout`` of the process that writes it.

        Every file as a checkout has it (``export-ignore`` and ``export-subst`` have no effect), submodules as empty
        directories. The caller reads to the end, waits, and checks ``returncode``: anything but 0 means that the stream
        is not whole.

        Args:
            build_id: the build whose push brought the commit; looked for in everything that is coming in when unknown.

        Raises:
            NotFound: the app has no such commit.
        """
        env, tree = self._reading(app_id, commit, build_id)
        # The archive of an empty commit would be a lone pax header, which Python's tarfile takes for a broken archive.
        return subprocess.Popen(
            git.command("archive", "--format=tar", tree if tree == EMPTY_TREE else commit),
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def submodules(self, app_id: str, commit: str, build_id: str | None = None) -> list[Submodule]:
        """The commit's submodules, in the order of their paths; the URL of one that .gitmodules does not name is empty.

        Raises:
            NotFound: the app has no such commit.
            DavitError: .gitmodules cannot be read, or holds something no honest one does.
        """
        env, _ = self._reading(app_id, commit, build_id)
        urls = self._submodule_urls(env, commit)
        found = []
        with git.running(env, "ls-tree", "-r", "-z", commit, stdout=subprocess.PIPE) as listing:
            assert listing.stdout is not None
            for entry in _records(listing.stdout.read):
                head, _, path = entry.partition(b"\t")
                mode, _, sha = head.decode().split(" ")
                name = os.fsdecode(path)
                if mode == "160000":
                    found.append(Submodule(name, urls.get(name, ""), sha))
            if listing.wait() != 0:
                raise DavitError("The commit's files cannot be listed.")
        if len(found) > SUBMODULES:
            raise InvalidParams(f"The app has {len(found)} submodules; {SUBMODULES} is the most.")
        return found

    def _submodule_urls(self, env: dict[str, str], commit: str) -> dict[str, str]:
        """Path → URL, from .gitmodules."""
        spec = f"{commit}:.gitmodules"
        size = git.run(env, "cat-file", "--batch-check=%(objecttype) %(objectsize)", input=spec.encode() + b"\n").stdout.split()
        if size[:1] != [b"blob"]:
            return {}
        if int(size[1]) > 1 << 20:
            raise InvalidParams("The file .gitmodules is larger than 1 MiB.")
        pattern = r"^submodule\..*\.(path|url)$"
        done = git.run(env, "config", "-z", "--no-includes", "--blob", spec, "--get-regexp", pattern, check=False)
        if done.returncode != 0 and (done.returncode != 1 or done.stderr):  # 1 and silence: it has no such entry
            raise InvalidParams("The file .gitmodules cannot be read: it is malformed.")
        values: dict[str, dict[str, str]] = {}
        for record in done.stdout.split(b"\0"):
            key, _, value = record.partition(b"\n")
            section, _, name = key.rpartition(b".")
            values.setdefault(os.fsdecode(section), {})[name.decode()] = os.fsdecode(value)
        pairs = {v["path"]: v["url"] for v in values.values() if "path" in v and "url" in v}
        for path, url in pairs.items():
            _check_submodule(path, url)
        return pairs

    def _reading(self, app_id: str, commit: str, build_id: str | None) -> tuple[dict[str, str], str]:
        """The environment that sees the commit, and the commit's tree."""
        if not _SHA.fullmatch(commit):
            raise NotFound(f"“{commit[:80]}” is not the name of a commit.")
        repository = self.path(app_id)
        suffix = f".{build_id}" if build_id else ""
        pinned = [q.path for q in self._quarantines(app_id) if q.kept and q.path.name.endswith(suffix)]
        env = git.environment(repository, alternates=pinned)
        if repository.is_dir():
            done = git.run(env, "rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}", check=False)
            if done.returncode == 0:
                return env, done.stdout.decode().strip()
        raise NotFound(f"The app has no commit {commit[:12]}.")

    def check_turn(self, app_id: str, ref: str, old: str, new: str) -> str:
        """Whether a push may still move ``ref``; asked when it comes in and again when its build's turn has come.

        A push is an answer to what the branch was when the pusher looked. Where it has moved since, it must contain
        what it is now, as for any push without force.

        Returns:
            What the ref is now: the ``old`` for :meth:`move_ref`.

        Raises:
            FetchFirst: it moved to something that ``new`` does not contain.
        """
        name = ref.encode()
        now = self.current(app_id, name)
        if now in (old.encode(), new.encode(), ZERO):
            return now.decode()
        pinned = [q.path for q in self._quarantines(app_id) if q.kept or not q.abandoned()]
        env = git.environment(self.path(app_id), alternates=pinned)
        contained = git.run(env, "merge-base", "--is-ancestor", now.decode(), new, check=False)
        if contained.returncode != 0:
            raise FetchFirst(name)
        return now.decode()

    def move_ref(self, app_id: str, ref: str, old: str, new: str, build_id: str | None = None) -> None:
        """Move the deployed branch: admit the build's objects, move the ref (and those of an atomic push), point HEAD at it.

        Does nothing when the ref is there already; may be repeated after a crash.

        Args:
            old: what it must be now (40 zeros: absent).

        Raises:
            Conflict: it is something else.
            DavitError: the objects are not there.
        """
        move = Move(ref.encode(), old.encode(), new.encode())
        for quarantine in self._quarantines(app_id):
            if quarantine.kept and (quarantine.path.name.endswith(f".{build_id}") if build_id else True):
                waiting = quarantine.moves
                if (waiting and (waiting[0].ref, waiting[0].new) == (move.ref, move.new)) or (build_id and not waiting):
                    break
        else:
            quarantine, waiting = None, []
        with self._locked(app_id, fcntl.LOCK_SH):
            if quarantine:
                quarantine.admit()
            if self.current(app_id, move.ref) != move.new:
                moved = self._update(app_id, [move, *waiting[1:]], atomic=True)[move.ref]
                # The release serves already: the deployed branch follows it, whatever became of the refs beside it.
                if not moved and not self._update(app_id, [move], atomic=True)[move.ref]:
                    raise Conflict(f"{ref} is not at {old[:12]}, or {new[:12]} is not there: it was not moved.")
                if move.old != ZERO:
                    self._mark_garbage(app_id)
            # After a power cut that took the rename, what removes the quarantine is gone as well: housekeeping moves the ref.
            if self.deployed_branch(app_id) != move.ref:
                self._point_head(app_id, ref)

    def _point_head(self, app_id: str, ref: str) -> None:
        if self._moving(app_id, "symbolic-ref", "HEAD", ref).returncode != 0:
            self._break_locks(app_id, [])
            git.run(git.environment(self.path(app_id)), "symbolic-ref", "HEAD", ref)
        disk.sync(self.path(app_id) / "HEAD")

    def unpin(self, build_id: str) -> None:
        """The build is decided: remove what its push brought (what was released is in the repository by now)."""
        if not _ID.fullmatch(build_id):
            raise ValueError(f"not a build id: {build_id!r}")
        for path in self.incoming.glob(f"*.{build_id}"):
            Quarantine(self.root / f"{path.name.partition('.')[0]}.git", path).discard()

    # Backups

    def write_bundle(self, app_id: str, file: Path) -> bool:
        """Write all that the app's refs reach into a bundle (git-bundle(1)), as they are at one moment, whatever goes on.

        Returns:
            Whether there is anything; of a repository without a ref there is no bundle.
        """
        with self._locked(app_id, fcntl.LOCK_SH):
            if not self.refs(app_id):
                return False
            git.run(git.environment(self.path(app_id)), "bundle", "create", "--quiet", str(file), "--all")
            return True

    def read_bundle(self, app_id: str, file: Path | None, *, head: bytes, shallow: Path | None) -> None:
        """Make the app's repository of what :meth:`write_bundle` wrote.

        Args:
            file: the bundle, if there was one.
            head: the branch that was deployed last.
            shallow: the roots that count as such though they have parents (gitrepository-layout(5)).
        """
        env = git.environment(self.ensure(app_id))
        if shallow is not None:
            shutil.copyfile(shallow, self.path(app_id) / "shallow")
        if file is not None:
            refs = [line.split(b" ", 1) for line in git.run(env, "bundle", "unbundle", str(file)).stdout.splitlines()]
            lines = [b"create " + ref + b"\0" + sha + b"\0" for sha, ref in refs if ref.startswith(b"refs/")]
            git.run(env, "update-ref", "-z", "--stdin", input=b"".join(lines))
            self._sync_refs(app_id, [ref for _, ref in refs if ref.startswith(b"refs/")])
        if head.strip():  # a Davit without syncs may have backed an empty one up
            git.run(env, "symbolic-ref", "HEAD", head.decode())

    # Housekeeping

    def housekeeping(self, standing: Callable[[str], str | None]) -> None:
        """Bring order in after a start: what crashes left behind, and packs that want to be put together.

        Args:
            standing: a build's status by its id, None when there is no such build.
        """
        for repository in sorted(self.root.glob("*.git")):
            with _one_that_fails_keeps_no_other():
                _complete(repository)  # which is not made anew when its app has just been destroyed
                disk.sweep(repository, repository / "info")
                self._forget_empty_refs(repository.name.removesuffix(".git"))
        for quarantine in self._quarantines():
            with _one_that_fails_keeps_no_other():
                self._settle(quarantine, standing)
        for stale in self.root.glob(".*"):
            if _older(stale, LEFT_OVER_SECONDS):
                shutil.rmtree(stale, ignore_errors=True)
        for repository in sorted(self.root.glob("*.git")):
            with _one_that_fails_keeps_no_other():
                self.tidy(repository.name.removesuffix(".git"))

    def _settle(self, quarantine: Quarantine, standing: Callable[[str], str | None]) -> None:
        """Remove a quarantine that nobody needs any more."""
        app_id, _, build_id = quarantine.path.name.partition(".")
        with contextlib.suppress(FileNotFoundError), self._locked(app_id, fcntl.LOCK_EX):
            # A quarantine is made and locked below the repository's lock: what is unlocked now has lost its process.
            if not quarantine.abandoned():
                return
        status = standing(build_id) if quarantine.kept else None
        if status == "pending":
            return
        if status == "succeeded":
            self._finish(app_id, quarantine, build_id)
        quarantine.discard()

    def _forget_empty_refs(self, app_id: str) -> None:
        """Remove refs that a power cut left without content, and with which git refuses every push: what such a one pointed at
        is known no more, so that it is as if it had not been pushed. Davit has its refs synced; others' tools may not."""
        refs = self.path(app_id) / "refs"
        if _empty_files(refs):
            with self._locked(app_id, fcntl.LOCK_EX):  # nobody moves one meanwhile
                for file in _empty_files(refs):
                    log.warning("a ref that a power cut emptied was removed", extra={"app": app_id, "ref": file.name})
                    file.unlink(missing_ok=True)

    def _finish(self, app_id: str, quarantine: Quarantine, build_id: str) -> None:
        """The release succeeded and then the power went: make the move that was due."""
        for move in quarantine.moves[:1]:
            try:
                now = self.check_turn(app_id, move.ref.decode(), move.old.decode(), move.new.decode())
                self.move_ref(app_id, move.ref.decode(), now, move.new.decode(), build_id)
            except DavitError as error:
                log.warning("a released branch could not be moved", extra={"app": app_id, "why": error.message})

    def tidy(self, app_id: str) -> None:
        """Put packs (and refs) together when there are many, and drop what no ref reaches any more; cheap when there is
        nothing to do."""
        repository = self.path(app_id)
        env = git.environment(repository)
        try:
            _remove_drafts(repository / "objects")
            self._pack_refs(app_id, repository, env)
            garbage = repository / "davit-garbage"
            if garbage.exists():
                with self._locked(app_id, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    # Exclusive, and nothing coming in: nobody relies on an object that no ref reaches.
                    if not self._quarantines(app_id):
                        git.run(env, "repack", "-a", "-d", "-q")
                        git.run(env, "prune", "--expire=now")
                        garbage.unlink(missing_ok=True)  # not before: a repack may fail for want of room, or be killed
            elif len(list((repository / "objects" / "pack").glob("*.pack"))) > PACKS:
                git.run(env, "repack", "--geometric=2", "-d", "-q")  # loses nothing, so it needs nobody to wait
        except BlockingIOError:
            pass  # somebody is pushing; there will be another time
        except DavitError as error:
            log.warning("a repository could not be tidied", extra={"app": app_id, "why": error.message})

    def _pack_refs(self, app_id: str, repository: Path, env: dict[str, str]) -> None:
        self._remove_stale(app_id, [*(repository / f"{name}.lock" for name in _LOCKED), *(repository / "refs").rglob("*.lock")])
        if git.syncs_refs() and sum(len(files) for _, _, files in os.walk(repository / "refs")) > LOOSE_REFS:
            with self._locked(app_id, fcntl.LOCK_EX, name=_REFS_LOCK) as held:
                git.run(env, "pack-refs", "--all", pass_fds=[held])

    @contextlib.contextmanager
    def _reading_refs(self, app_id: str) -> Iterator[Repo]:
        """The repository while no ref moves from its own file into the common one: dulwich, which reads both in turn, could
        find it in neither."""
        path = self.ensure(app_id)
        with self._locked(app_id, fcntl.LOCK_SH, name=_REFS_LOCK), contextlib.closing(Repo(str(path))) as repo:
            yield repo

    def _mark_garbage(self, app_id: str) -> None:
        (self.path(app_id) / "davit-garbage").touch()

    def _quarantines(self, app_id: str | None = None) -> list[Quarantine]:
        found = []
        for path in sorted(self.incoming.glob(f"{app_id}.*" if app_id else "*.*")):
            found.append(Quarantine(self.root / f"{path.name.partition('.')[0]}.git", path))
        return found

    @contextlib.contextmanager
    def _locked(self, app_id: str, how: int, *, name: str = "davit.lock") -> Iterator[int]:
        """Hold the repository: shared to bring something in, exclusively to throw something away; the lock's descriptor."""
        fd = os.open(self.path(app_id) / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield fd
        finally:
            os.close(fd)


@contextlib.contextmanager
def _one_that_fails_keeps_no_other() -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("housekeeping failed for one repository; it will be tried again")


def _complete(repository: Path) -> None:
    """Write anew what a power cut may have left empty in a repository that was made without syncs: it says the same in each."""
    heads = repository / "refs" / "heads"
    branch = "main" if (heads / "main").exists() or not (heads / "master").exists() else "master"
    for name, content in (
        ("HEAD", f"ref: refs/heads/{branch}\n".encode()), ("config", _CONFIGURATION), ("info/attributes", _ATTRIBUTES),
    ):  # fmt: skip
        if disk.is_empty(repository / name):  # not where there is none: the repository may just be removed
            log.warning("a repository's file that was empty is written anew", extra={"repository": repository.name, "file": name})
            disk.write(repository / name, content, mode=0o644)


def _remove_drafts(objects: Path) -> None:
    """What killed git processes were writing: as large as the repository, where it was a repack."""
    for pattern in ("pack/tmp_*", "pack/.tmp-*", "??/tmp_obj_*"):
        for draft in objects.glob(pattern):
            if _older(draft, LEFT_OVER_SECONDS):
                draft.unlink(missing_ok=True)


def _empty_files(directory: Path) -> list[Path]:
    found = []
    for place, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                if not name.endswith(".lock") and (path := Path(place, name)).stat().st_size == 0:
                    found.append(path)
    return found


def _older(path: Path, seconds: float) -> bool:
    """Whether a file is there and was last written so long ago."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime < clock.now().timestamp() - seconds
    return False


def _size(directories: Sequence[Path]) -> int:
    """Bytes that the files below take on disk, each counted once however many names it has."""
    sizes = {}
    for directory in directories:
        for place, folders, files in os.walk(directory):  # unlike Path.rglob it goes on where a directory has vanished
            for name in (*folders, *files):
                with contextlib.suppress(FileNotFoundError):  # a push or a repack goes on meanwhile
                    found = Path(place, name).lstat()
                    sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def _transaction_line(move: Move) -> bytes:
    if move.new == ZERO:
        return b"delete " + move.ref + b"\0" + (move.old if move.old != ZERO else b"") + b"\0"
    return b"update " + move.ref + b"\0" + move.new + b"\0" + move.old + b"\0"


def _records(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """NUL-terminated records of a stream, whatever its length."""
    rest = b""
    while data := read(65536):
        *whole, rest = (rest + data).split(b"\0")
        yield from whole


def _check_submodule(path: str, url: str) -> None:
    """Refuse what reaches outside the checkout or is an option instead of a URL (as git's fsck does)."""
    parts = path.split("/")
    if not path or path.startswith(("/", "-")) or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise InvalidParams(f"The submodule path {path[:200]!r} in .gitmodules is not allowed.")
    if not url or url.startswith("-") or any(ord(c) < 32 for c in url):
        raise InvalidParams(f"The URL of the submodule at {path[:200]!r} is not allowed.")


# What the other rooms use: this process's own repositories.


def repositories() -> Repositories:
    """The repositories of this process's Davit."""
    return Repositories(settings().home / "repos", Bounds.of(settings()))


def archive(app_id: str, commit: str, build_id: str | None = None) -> subprocess.Popen[bytes]:
    """See :meth:`Repositories.archive`."""
    return repositories().archive(app_id, commit, build_id)


def submodules(app_id: str, commit: str, build_id: str | None = None) -> list[tuple[str, str, str]]:
    """``(path, url, sha)`` of each; see :meth:`Repositories.submodules`."""
    return [(found.path, found.url, found.sha) for found in repositories().submodules(app_id, commit, build_id)]


def check_turn(app_id: str, ref: str, old: str, new: str) -> str:
    """See :meth:`Repositories.check_turn`."""
    return repositories().check_turn(app_id, ref, old, new)


def move_ref(app_id: str, ref: str, old: str, new: str, build_id: str | None = None) -> None:
    """See :meth:`Repositories.move_ref`."""
    repositories().move_ref(app_id, ref, old, new, build_id)


def unpin(build_id: str) -> None:
    """See :meth:`Repositories.unpin`."""
    repositories().unpin(build_id)


def size(app_id: str) -> int:
    """See :meth:`Repositories.size`."""
    return repositories().size(app_id)


def remove(app_id: str) -> None:
    """See :meth:`Repositories.remove`."""
    repositories().remove(app_id)
