"""Git receive: what a push does, whichever door it came through.

The protocol is dulwich's; the objects go to C git (memory: dulwich holds a pack's objects, index-pack streams them), into a
quarantine; the refs that deploy wait for a build, whose output goes to the pusher as it comes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dulwich.errors import GitProtocolError, HangupException
from dulwich.protocol import Protocol as GitProtocol
from dulwich.protocol import extract_capabilities
from dulwich.refs import check_ref_format
from dulwich.repo import Repo
from dulwich.server import Backend, BackendRepo, ReceivePackHandler

from builder.platform import Outcome, Platform, Pusher, Target
from builder.quarantine import (
    ZERO,
    Move,
    PackRefused,
    PackTooLarge,
    PackTooSlow,
    Quarantine,
    no_room,
    repository_full,
    shallow_roots,
    too_large,
)
from builder.repositories import DEPLOYED, HIDDEN, FetchFirst, Repositories
from foundation.errors import NO_ROOM, DavitError
from foundation.pace import TooSlow

log = logging.getLogger("builder.receive")

COMMANDS = 20_000
"""Refs (and shallow roots, and push options) that one push may name: they are held in memory."""
KEEPALIVE = 5.0
"""Seconds of silence after which an empty packet goes out, as C git's receive.keepAlive."""
PROGRESS, FATAL = 2, 3
"""Sideband channels (gitprotocol-pack(5)): text for the person, and the last words before hanging up."""

_ID = re.compile(rb"[0-9a-f]{40}")


class PusherGone(Exception):
    """The pusher's connection broke; what was begun goes on."""


class Incoming(Protocol):
    """The client's bytes, as its door reads them."""

    def exactly(self, size: int) -> bytes:
        """``size`` bytes, fewer only at the end; never reads further."""

    def pack(self) -> Callable[[int], bytes] | int:
        """Where the pack comes from: a function (at most n bytes, none at the end) or a descriptor."""

    def waited(self, seconds: float) -> None:
        """Git, which reads the pack itself, has waited for so long for the client.

        Raises:
            TooSlow: too little comes.
        """

    def drain(self) -> None:
        """Read on without keeping anything, so that a client that is still sending gets to read what it was told."""

    @property
    def declared(self) -> int | None:
        """Bytes that the client said it would send, when it said."""


@dataclass
class Plan:
    """What a push's commands come to, before any object is looked at.

    Attributes:
        refused: ref → the short reason for git's report.
        deploy: the move that waits for a build.
        others: the moves that wait for none.
        sentences: what the person is told.
    """

    refused: dict[bytes, bytes] = field(default_factory=dict)
    deploy: Move | None = None
    others: list[Move] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def plan(moves: Sequence[Move], deployed_branch: bytes) -> Plan:
    """Sort a push's commands.

    Args:
        moves: the commands in the client's order.
        deployed_branch: the branch that was deployed last.
    """
    made = Plan()
    times = Counter(move.ref for move in moves)
    changing = {move.ref for move in moves if move.new not in (ZERO, move.old)}
    deploys = next((ref for ref in DEPLOYED if ref in changing), None)
    for move in moves:
        reason = b"multiple updates for one ref" if times[move.ref] > 1 else _reason_against(move, deployed_branch)
        if reason:
            made.refused[move.ref] = reason
        elif move.ref == deploys:
            made.deploy = move
        else:
            made.others.append(move)
    made.sentences = list(_sentences(made))
    return made


def _reason_against(move: Move, deployed_branch: bytes) -> bytes | None:
    if not move.ref.startswith(b"refs/") or not check_ref_format(move.ref):  # type: ignore[arg-type]
        return b"funny refname"
    if move.ref.startswith(HIDDEN):
        return b"deny updating a hidden ref"
    if move.new == ZERO and move.ref == deployed_branch and move.old != ZERO:
        return b"deletion of the deployed branch prohibited"
    return None


def _sentences(made: Plan) -> Iterable[str]:
    if any(reason.startswith(b"deletion") for reason in made.refused.values()):
        yield "The branch that is deployed cannot be deleted."
    stored = [_branch(move.ref) for move in made.others if move.ref.startswith(b"refs/heads/") and move.new != ZERO]
    passed_over = [name for name in stored if name in ("main", "master")]
    if passed_over and made.deploy:
        yield f"{passed_over[0]} was stored and not deployed: {_branch(made.deploy.ref)} goes first when a push moves both."
    elsewhere = [name for name in stored if name not in ("main", "master")]
    if elsewhere:
        names = ", ".join(elsewhere[:3]) + (f" and {len(elsewhere) - 3} more" if len(elsewhere) > 3 else "")
        were = "was" if len(elsewhere) == 1 else "were"
        yield f"{names} {were} not deployed: only main and master are. To deploy one: git push davit {elsewhere[0]}:main"


def _branch(ref: bytes) -> str:
    return ref.removeprefix(b"refs/heads/").decode(errors="replace")


class _Only(Backend):
    """The one repository of a push, for dulwich."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo

    def open_repository(self, path: str) -> BackendRepo:
        return self.repo


class ReceivePack(ReceivePackHandler):
    """One `git push`, from the advertisement to the report.

    Args:
        repositories, platform: where things are kept, and the rest of Davit.
        pusher, target: who pushes to what; already allowed.
        incoming: the client's bytes.
        write: sends bytes to the client at once; OSError when it is gone.
        limit: bytes that the pack may have.
        stateless_rpc: HTTP: the advertisement is a request of its own (``advertise_refs``).
    """

    def __init__(
        self,
        repositories: Repositories,
        platform: Platform,
        pusher: Pusher,
        target: Target,
        incoming: Incoming,
        write: Callable[[bytes], object],
        *,
        limit: int,
        stateless_rpc: bool = False,
        advertise_refs: bool = False,
    ) -> None:
        def write_all(data: bytes) -> int:
            write(data)
            return len(data)

        self.repositories = repositories
        self.platform = platform
        self.pusher = pusher
        self.target = target
        self.incoming = incoming
        self.limit = limit
        self._gone = False
        self._spoke = time.monotonic()
        repo = Repo(str(repositories.ensure(target.app_id)))
        proto = GitProtocol(incoming.exactly, write_all)
        super().__init__(_Only(repo), [""], proto, stateless_rpc=stateless_rpc, advertise_refs=advertise_refs)

    def capabilities(self) -> list[bytes]:
        """What a client may ask for (gitprotocol-capabilities(5)).

        ``no-thin``: a changed file comes whole instead of as a delta against what is here, which would take both versions into
        memory (104 MiB in place of 13 for one of 50 MB); a whole file is streamed.
        """
        return [
            b"report-status", b"delete-refs", b"quiet", b"atomic", b"ofs-delta", b"side-band-64k", b"push-options",
            b"no-thin", b"object-format=sha1", b"agent=git/davit",
        ]  # fmt: skip

    def handle(self) -> None:
        """Serve the push.

        Raises:
            GitProtocolError: the client does not speak the protocol.
            PusherGone: the connection broke while the build went on.
        """
        if self.advertise_refs or not self.stateless_rpc:
            self._advertise()
        if self.advertise_refs:
            return
        try:
            moves, roots = self._read_commands()
        except HangupException:
            return
        except PackRefused as error:
            self._fatal(error.message)
            self.incoming.drain()
            return
        if moves:
            self._push(moves, roots)

    def refuse(self, error: DavitError) -> None:
        """Answer whatever the client wants with a refusal; its pack is not read.

        Raises:
            GitProtocolError: the client does not speak the protocol.
        """
        moves, _ = self._read_commands()
        if moves:
            self._tell(error.message)
            self._report(b"ok", moves, {move.ref: error.id.replace("_", " ").encode() for move in moves})

    # What the client asks

    def _advertise(self) -> None:
        refs = sorted(self.repositories.refs(self.target.app_id).items()) or [(b"capabilities^{}", ZERO)]
        capabilities = b" ".join(self.capabilities())
        for number, (name, sha) in enumerate(refs):
            self.proto.write_pkt_line(sha + b" " + name + (b"\0" + capabilities if number == 0 else b"") + b"\n")
        for root in shallow_roots(self.repositories.path(self.target.app_id)):
            self.proto.write_pkt_line(b"shallow " + root)
        self.proto.write_pkt_line(None)

    def _read_commands(self) -> tuple[list[Move], list[bytes]]:
        """The moves that the client wants, and the roots of its shallow clone."""
        moves: list[Move] = []
        roots: list[bytes] = []
        while line := self.proto.read_pkt_line():
            if self._client_capabilities is None and b"\0" in line:
                try:
                    line, capabilities = extract_capabilities(line)
                except ValueError:
                    raise GitProtocolError("Capabilities were sent twice.") from None
                self.set_client_capabilities(capabilities)
            words = line.rstrip(b"\n").split(b" ")
            if len(moves) + len(roots) >= COMMANDS:
                raise PackRefused(f"Your push names more than {COMMANDS} refs; push them in parts.", "too many refs")
            if len(words) == 2 and words[0] == b"shallow" and _is_id(words[1]):
                roots.append(words[1])
            elif len(words) == 3 and _is_id(words[0]) and _is_id(words[1]):
                moves.append(Move(words[2], words[0], words[1]))
            else:
                raise GitProtocolError(f"Invalid command from the client: {line[:200]!r}")
        if moves and self._client_capabilities is None:
            self.set_client_capabilities([])
        if moves and self.has_capability(b"push-options"):
            for _ in range(COMMANDS):  # there are none that Davit knows, so all are politely ignored
                if not self.proto.read_pkt_line():
                    break
        return moves, roots

    # What becomes of it

    def _push(self, moves: list[Move], roots: list[bytes]) -> None:
        """Decide the push and report."""
        made = plan(moves, self.repositories.deployed_branch(self.target.app_id))
        atomic = self.has_capability(b"atomic")
        for sentence in made.sentences:
            self._tell(sentence)
        results: dict[bytes, bytes] = dict(made.refused)
        sends_pack = any(move.new != ZERO for move in moves)
        wanted = [] if atomic and results else [*([made.deploy] if made.deploy else []), *made.others]
        unpacked = b"ok"
        try:
            self.repositories.check_refs(self.target.app_id, wanted)
            room = self.repositories.room(self.target.app_id) if wanted and sends_pack else 0
            with _room_or_refusal(), self.repositories.receiving(self.target.app_id) as quarantine:
                if wanted and sends_pack:
                    self._take_pack(quarantine, roots, room)
                    quarantine.settle_shallow([move.new for move in wanted if move.new != ZERO])
                    sends_pack = False
                results.update(self._decide(quarantine, made, wanted, atomic=atomic))
        except PackRefused as error:
            self._tell(error.message)
            unpacked = error.word.encode()
            results = {move.ref: b"unpacker error" for move in moves}
        self._report(unpacked, moves, results)
        if sends_pack:
            self.incoming.drain()
        self.repositories.tidy(self.target.app_id)

    def _take_pack(self, quarantine: Quarantine, roots: list[bytes], room: int) -> None:
        declared = self.incoming.declared
        if declared is not None and declared > self.limit + (1 << 20):
            raise too_large(self.limit)
        quarantine.note_shallow(roots)
        try:
            quarantine.index(self.incoming.pack(), min(self.limit, room), self._keep_alive, self.incoming.waited)
        except TooSlow as error:
            raise PackTooSlow(error.message, "too slow") from None
        except PackTooLarge:
            if room < self.limit:
                raise repository_full(self.repositories.bounds.size) from None
            raise

    def _decide(self, quarantine: Quarantine, made: Plan, wanted: list[Move], *, atomic: bool) -> dict[bytes, bytes]:
        """Each wanted ref's line in the report."""
        results = self._check_objects(quarantine, wanted)
        if made.deploy in wanted and made.deploy and made.deploy.ref not in results:
            results.update(self._check_deploy(quarantine, made.deploy))
        if atomic and (results or made.refused):
            return results  # the others' lines say that the atomic push failed
        good = [move for move in wanted if move.ref not in results]
        deploy = made.deploy if made.deploy in good else None
        others = [move for move in good if move is not deploy]
        if others and not (atomic and deploy):
            stored = self.repositories.store(self.target.app_id, quarantine, others, atomic=atomic)
            results.update({ref: b"ok" if moved else b"failed to update ref" for ref, moved in stored.items()})
            self._tell_of([move for move in others if stored[move.ref]])
        if deploy:
            along = others if atomic else []
            results.update(self._deploy(quarantine, deploy, along))
        return results

    def _check_objects(self, quarantine: Quarantine, wanted: list[Move]) -> dict[bytes, bytes]:
        """The refs that would point at something incomplete."""
        new = [move for move in wanted if move.new != ZERO]
        if not new or quarantine.check_connected([move.new for move in new]):
            return {}
        return {move.ref: b"missing necessary objects" for move in new if not quarantine.check_connected([move.new])}

    def _check_deploy(self, quarantine: Quarantine, deploy: Move) -> dict[bytes, bytes]:
        if not quarantine.is_commit(deploy.new):
            self._tell(f"{_branch(deploy.ref)} must be a commit to be deployed.")
            return {deploy.ref: b"not a commit"}
        try:
            self.repositories.check_turn(self.target.app_id, deploy.ref.decode(), deploy.old.decode(), deploy.new.decode())
        except FetchFirst as error:
            self._tell(error.message)
            return {deploy.ref: b"fetch first"}
        return {}

    def _deploy(self, quarantine: Quarantine, deploy: Move, along: list[Move]) -> dict[bytes, bytes]:
        """Have it built and released; says how that ended for the ref, and for those that move along with it."""
        try:
            build_id = self._ask_for_build(quarantine, deploy, along)
        except DavitError as error:
            self._tell(error.message)
            return {move.ref: b"not deployed" for move in (deploy, *along)}
        outcome = self._watch(build_id)
        if not outcome.succeeded:
            reason = " ".join(outcome.reason.split())[:200].encode() or b"build failed"
            return {deploy.ref: reason, **{move.ref: b"atomic push failed" for move in along}}
        return self._moved(build_id, deploy, along)

    def _ask_for_build(self, quarantine: Quarantine, deploy: Move, along: list[Move]) -> str:
        app_id = self.target.app_id
        try:
            return self.platform.build(
                self.pusher, self.target, commit=deploy.new.decode(), ref=deploy.ref.decode(), old=deploy.old.decode(),
                keep=lambda build_id: quarantine.keep_for(app_id, build_id, deploy, along),
            )  # fmt: skip
        except BaseException:
            quarantine.discard()  # nobody will ever ask for it
            raise

    def _moved(self, build_id: str, deploy: Move, along: list[Move]) -> dict[bytes, bytes]:
        """The build job has moved the refs. Only where nothing at all moved is that made up for: another push may well
        have moved the branch on since, and must not be undone."""
        app_id = self.target.app_id
        if self.repositories.current(app_id, deploy.ref) == deploy.old:
            try:
                self.repositories.move_ref(app_id, deploy.ref.decode(), deploy.old.decode(), deploy.new.decode(), build_id)
            except DavitError as error:
                log.warning("a released branch was not moved", extra={"app": self.target.name, "why": error.message})
        there = {move.ref: self.repositories.current(app_id, move.ref) == move.new for move in along}
        self._tell_of([move for move in along if there[move.ref]])
        return {deploy.ref: b"ok", **{ref: b"ok" if moved else b"failed to update ref" for ref, moved in there.items()}}

    def _tell_of(self, moved: list[Move]) -> None:
        """Have it on record who moved what does not deploy; the move stands whether that can be written or not."""
        if refs := {move.ref.decode(errors="replace"): move.new.decode() for move in moved if move.new != move.old}:
            try:
                self.platform.stored(self.pusher, self.target, refs)
            except DavitError as error:
                log.warning("moved refs are not in the audit log", extra={"app": self.target.name, "why": error.message})

    # What the client hears

    def _watch(self, build_id: str) -> Outcome:
        """Start the build, relay it to its end, and say how it ended."""
        try:
            self.platform.start(self.target.app_id)
            self._relay(build_id)
            return self.platform.outcome(build_id)
        except PusherGone:
            raise
        except Exception as error:
            expected = isinstance(error, DavitError)
            log.error("a build could not be followed: %s", error, extra={"build": build_id}, exc_info=not expected)
            self._tell("Davit lost sight of your build, which goes on. See how it ended with: davit releases")
            return Outcome(False, "lost sight of the build")

    def _relay(self, build_id: str) -> None:
        """Pass the build's output on until it ends, or until nobody listens: the build goes on all the same."""
        for chunk in self.platform.follow(build_id):
            if chunk:
                self._say(chunk)
            else:
                self._keep_alive()
            if self._gone:
                raise PusherGone

    def _tell(self, sentence: str) -> None:
        self._say(f" !     {sentence}\n".encode())

    def _say(self, text: bytes) -> None:
        # A client prints packets as C strings: it would drop what follows a NUL.
        if self.has_capability(b"side-band-64k"):
            self._send(lambda: self.proto.write_sideband(PROGRESS, text.replace(b"\0", b"")))

    def _keep_alive(self) -> None:
        if time.monotonic() - self._spoke >= KEEPALIVE and self.has_capability(b"side-band-64k"):
            self._send(lambda: self.proto.write_pkt_line(b"\x01"))  # an empty data packet, as receive.keepAlive sends

    def _fatal(self, sentence: str) -> None:
        if self._client_capabilities and self.has_capability(b"side-band-64k"):
            self._send(lambda: self.proto.write_sideband(FATAL, sentence.encode() + b"\n"))

    def _send(self, write: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            write()
            self._spoke = time.monotonic()
        except (GitProtocolError, OSError):
            self._gone = True

    def _report(self, unpacked: bytes, moves: Sequence[Move], results: Mapping[bytes, bytes]) -> None:
        if not self.has_capability(b"report-status"):
            return
        fallback = b"atomic push failed" if self.has_capability(b"atomic") else b"refused"
        lines = [(b"unpack", unpacked), *((move.ref, results.get(move.ref, fallback)) for move in moves)]
        self._send(lambda: self._report_status(lines))


@contextlib.contextmanager
def _room_or_refusal() -> Iterator[None]:
    """What fails for want of disk space is a refused push, not a broken connection."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room() from error


def _is_id(text: bytes) -> bool:
    return bool(_ID.fullmatch(text))
