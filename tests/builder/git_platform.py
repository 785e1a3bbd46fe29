"""A small platform in place of Davit's, for the git doors: builds are what a file in the commit says they are.

The file ``script`` holds one instruction a line: ``say TEXT``, ``partial TEXT`` (no newline), ``wait FILE`` (until it
exists in the home), ``quiet SECONDS`` (no output, only Nones), ``bytes HEX``, ``fail REASON``, ``die`` (the job dies
without having moved the ref), ``lose`` (who follows it loses sight of it). It does with the repositories what the build job does.
"""

from __future__ import annotations

import io
import json
import os
import queue
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from builder.platform import Outcome, Pusher, Target
from builder.repositories import FetchFirst, Repositories
from foundation.errors import Forbidden, NotFound, Unauthorized, Unavailable

NOT_FOUND = "Couldn't find that app."
FORBIDDEN = "You may not do that."


class ScriptedPlatform:
    """Accounts alice and bob; apps are named after their owner (``alice-…``); alice may only look at ``bobs-shared-…``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repositories = Repositories(home / "repos")
        self._turns: dict[str, threading.Lock] = {}
        self._lines: dict[str, queue.Queue[bytes | None]] = {}
        self._pending: dict[str, list[tuple[str, str, str, str]]] = {}
        self._last: dict[str, str] = {}
        self._lost: set[str] = set()

    def by_token(self, token: str) -> Pusher:
        if token not in ("alice-token", "bob-token"):
            raise Unauthorized("Invalid credentials provided.")
        name = token.partition("-")[0]
        return Pusher(name, f"{name}@example.com")

    def by_key(self, public_key: str) -> Pusher | None:
        if (self.home / "database-is-away").exists():
            raise Unavailable("The database does not answer at the moment; try again.")
        for name in ("alice", "bob"):
            if (self.home / f"{name}.pub").read_text().split()[1] == public_key.split()[1]:
                return Pusher(name, f"{name}@example.com")
        return None

    def app(self, pusher: Pusher, name: str) -> Target:
        if name.startswith("bobs-shared-") and pusher.account_id == "alice":
            raise Forbidden(FORBIDDEN)
        if not name.startswith(f"{pusher.account_id}-"):
            raise NotFound(NOT_FOUND)
        return Target(name, name)

    def build(self, pusher: Pusher, target: Target, *, commit: str, ref: str, old: str, keep: Callable[[str], None]) -> str:
        build_id = str(uuid.uuid4())
        self._write(build_id, status="pending", commit=commit)
        keep(build_id)
        self._lines[build_id] = queue.Queue()
        self._pending.setdefault(target.app_id, []).append((build_id, commit, ref, old))
        return build_id

    def stored(self, pusher: Pusher, target: Target, refs: Mapping[str, str]) -> None:
        with (self.home / "stored").open("a") as file:
            file.writelines(f"{pusher.account_id} {target.app_id} {name} {at}\n" for name, at in refs.items())

    def start(self, app_id: str) -> None:
        job = self._pending[app_id].pop(0)
        threading.Thread(target=self._job, args=(app_id, *job), daemon=True).start()

    def follow(self, build_id: str) -> Iterator[bytes | None]:
        lines = self._lines[build_id]
        while not (self._read(build_id)["status"] != "pending" and lines.empty()):
            if build_id in self._lost:
                raise Unavailable("The database does not answer at the moment; try again.")
            try:
                yield lines.get(timeout=0.05)
            except queue.Empty:
                yield None

    def outcome(self, build_id: str) -> Outcome:
        found = self._read(build_id)
        return Outcome(found["status"] == "succeeded", found.get("reason", ""))

    def standing(self, build_id: str) -> str | None:
        try:
            return self._read(build_id)["status"]
        except FileNotFoundError:
            return None

    def _job(self, app_id: str, build_id: str, commit: str, ref: str, old: str) -> None:
        turn = self._turns.setdefault(app_id, threading.Lock())
        if turn.locked():
            self._lines[build_id].put(b"-----> Waiting for another build of this app to finish\n")
        with turn:
            try:
                now = self.repositories.check_turn(app_id, ref, old, commit)
            except FetchFirst as error:
                self._finish(build_id, "failed", "fetch first", error.message)
                return
            reason = self._run(app_id, build_id, commit)
            if reason == "die":
                self._finish(build_id, "succeeded", "", "")
            elif reason:
                self._finish(build_id, "failed", reason, "")
            else:
                self.repositories.move_ref(app_id, ref, now, commit, build_id)
                self._finish(build_id, "succeeded", "", "")

    def _run(self, app_id: str, build_id: str, commit: str) -> str:
        process = self.repositories.archive(app_id, commit, build_id)
        assert process.stdout is not None
        with process, tarfile.open(fileobj=io.BytesIO(process.stdout.read())) as tar:
            files = {member.name: member for member in tar if member.isfile()}
            script = tar.extractfile(files["script"]).read().decode() if "script" in files else ""  # type: ignore[union-attr]
        lines = self._lines[build_id]
        lines.put(b"-----> Building\n")
        for line in script.splitlines():
            word, _, rest = line.partition(" ")
            if word in ("say", "partial"):
                lines.put(rest.encode() + (b"\n" if word == "say" else b""))
            elif word == "bytes":
                lines.put(bytes.fromhex(rest))
            elif word == "wait":
                deadline = time.monotonic() + 60
                while not (self.home / rest).exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
            elif word == "fail":
                return rest
            elif word == "die":
                return "die"
            elif word == "lose":
                self._lost.add(build_id)
        return ""

    def _finish(self, build_id: str, status: str, reason: str, message: str) -> None:
        if message:
            self._lines[build_id].put(f" !     {message}\n".encode())
        if reason != "" or status == "failed" or not (self.home / "keep").exists():
            self.repositories.unpin(build_id)  # before who pushed hears of it: tests look as soon as they have
        self._write(build_id, status=status, reason=reason)

    def _write(self, build_id: str, **values: str) -> None:
        directory = self.home / "builds"
        directory.mkdir(exist_ok=True)
        fresh = directory / f".{build_id}.{os.getpid()}"
        fresh.write_text(json.dumps(values))
        fresh.rename(directory / build_id)

    def _read(self, build_id: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.home / "builds" / build_id).read_text())
        return found
