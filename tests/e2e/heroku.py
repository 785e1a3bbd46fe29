"""The real ``heroku`` command as a person has it, pointed at a Davit of the tests.

One start costs about 1.5 s of CPU. So most commands go through the command's own batch mode (``heroku repl``, which its MCP
server uses): one process, one line a command. What a start of its own is about (terminals, pipes, exit status, git) gets one.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.conftest import PATIENCE
from tests.e2e import seen
from tests.e2e.terminal import Terminal
from tests.e2e.world import DAVIT, App, Davit

CLIENT = Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "heroku"
"""Where ``make setup`` installs it."""
PROGRAMS = CLIENT / "node_modules" / ".bin"
SECONDS = 60
"""How long the batch mode may say nothing on an idle machine; a busy one gets PATIENCE times as long."""
QUOTED = "'\"'\"'"
"""A single quote within single quotes, for a shell."""
_BEGIN, _END = "<<<BEGIN RESULTS>>>\n", "<<<END RESULTS>>>\n"
_FAILED = re.compile(r"<<<ERROR>>>\n(.*?)\n<<<END ERROR>>>\n", re.DOTALL)


@lru_cache(maxsize=1)
def manifest() -> dict[str, dict[str, Any]]:
    """The command's own list of its commands, by id."""
    return dict(json.loads((CLIENT / "node_modules" / "heroku" / "oclif.manifest.json").read_text())["commands"])


@lru_cache(maxsize=1)
def _ids() -> dict[str, str]:
    names = {alias: id for id, command in manifest().items() for alias in command["aliases"]}
    topics = {"create": "apps:create", "destroy": "apps:destroy", "info": "apps:info", "rename": "apps:rename", "open": "apps:open"}
    topics |= {"rollback": "releases:rollback", "stack": "apps:stacks", "scale": "ps:scale", "restart": "ps:restart"}
    return names | topics | {id: id for id in manifest()}


@dataclass
class Done:
    """How a command ended.

    Attributes:
        refusal: the sentence that it failed with; None when all went well.
        out, err: what it printed.
    """

    command: str
    out: str
    err: str
    refusal: str | None

    @property
    def json(self) -> Any:
        """What ``--json`` printed."""
        return json.loads(self.out)


@dataclass
class Ledger:
    """Which commands were called and how they ended: what docs/heroku-cli.md is written from."""

    worked: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def note(self, words: tuple[str, ...], refusal: str | None) -> None:
        """A command has ended."""
        id = _ids().get(words[0])
        assert id is not None, f"the heroku command has no command {words[0]}"
        if refusal is None:
            self.worked.add(id)
        else:
            self.refused[id] = refusal


LEDGER = Ledger()


class Heroku:
    """A person's heroku command, in a home of its own.

    Args:
        token: HEROKU_API_KEY; the owner's by default, none when empty.
        app: the app that commands are about unless they say otherwise (HEROKU_APP).
        afar: the URL by which the Davit is reached as one on another machine; its own address by default.

    Attributes:
        answers: how many answers to all of them were held against the published schema.
    """

    answers: ClassVar[int] = 0

    def __init__(self, davit: Davit, *, token: str | None = None, app: App | None = None, afar: str = "", **extra: str) -> None:
        self.davit, self._afar = davit, afar
        self.home = Path(tempfile.mkdtemp(prefix="hk", dir=davit.home / "person"))
        shutil.copy(davit.home / "person" / ".gitconfig", self.home)
        self.cwd = app.checkout if app else self.home
        if afar:
            self.davit_here("login", afar, input=davit.token)
        self.environment = self._environment(davit.token if token is None else token) | extra
        if app:
            self.environment["HEROKU_APP"] = app.name
        (self.home / "recorder.cjs").write_text(seen.RECORDER)
        self._record = self.home / "seen"
        self.environment |= {"NODE_OPTIONS": f"--require {self.home / 'recorder.cjs'}", "DAVIT_SEEN": str(self._record)}
        self._session: _Session | None = None

    def _environment(self, token: str) -> dict[str, str]:
        """What ``davit heroku:env`` prints, read by a shell, and what keeps the tests to themselves."""
        exports = (self.davit_here if self._afar else self.davit.cli)("heroku:env").stdout
        script = f"set -a; eval '{exports.replace(chr(39), QUOTED)}'; env -0"
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TZ", "TMPDIR")}
        kept |= {"HOME": str(self.home), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        printed = subprocess.run(["sh", "-c", script], env=kept, capture_output=True, text=True, check=True).stdout
        given = dict(line.split("=", 1) for line in printed.split("\0") if "=" in line)
        if not token:
            del given["HEROKU_API_KEY"]
        else:
            given["HEROKU_API_KEY"] = token
        return given | {
            "NO_COLOR": "1", "HEROKU_NETRC_WRITE": "true", "HEROKU_SKIP_NEW_VERSION_CHECK": "true",
            "NODE_COMPILE_CACHE": str(CLIENT / ".compiled"), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
        }  # fmt: skip

    def davit_here(self, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
        """Run the ``davit`` command of this person, whose machine has no Davit of its own and trusts the one afar."""
        own = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config"), "DAVIT_HOME": str(self.home / "none"), "DAVIT_API": "127.0.0.1:1"}
        trusted = {"SSL_CERT_FILE": str(self.davit.home / "keys" / "ca.pem")}
        done = subprocess.run(
            [DAVIT, *words], env=self.davit.environment | own | trusted, input=input, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def __call__(self, *words: str, check: bool = True) -> Done:
        """Run a command in batch mode; fails the test when the command does, unless ``check`` is false.

        The batch mode's parser knows only long options, and drops values that look like numbers.
        """
        if self._session is None:
            self._session = _Session(self.environment, self.cwd)
        done = self._session.ask(words)
        return self._judged(words, done, check)

    def refused(self, *words: str) -> str:
        """Run a command in batch mode that must fail; the sentence that it fails with."""
        done = self(*words, check=False)
        assert done.refusal is not None, f"heroku {done.command} was not refused: {done.out}{done.err}"
        return done.refusal

    def start(
        self, *words: str, check: bool = True, input: str | None = None, timeout: float = 180, cwd: Path | None = None,
        **extra: str,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command in a process of its own."""
        done = subprocess.run(
            [PROGRAMS / "heroku", *words], env=self.environment | extra, cwd=cwd or self.cwd, capture_output=True, text=True,
            input=input, stdin=subprocess.DEVNULL if input is None else None, timeout=timeout,
        )  # fmt: skip
        refusal = None if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"
        self._judged(words, Done(shlex.join(words), done.stdout, done.stderr, refusal), check)
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a command that goes on until it is stopped; the caller notes how it went and ends it."""
        return subprocess.Popen(
            [PROGRAMS / "heroku", *words], env=self.environment, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def terminal(self, *words: str, rows: int = 40, columns: int = 100) -> Terminal:
        """Start a command in a terminal; the caller notes how it went."""
        return Terminal([PROGRAMS / "heroku", *words], self.environment, self.cwd, rows, columns)

    def git(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run git as this person."""
        done = subprocess.run(
            ["git", *words], env=self.environment, cwd=self.cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
        assert not check or done.returncode == 0, f"git {shlex.join(words)} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def answered(self, method: str, path: str) -> list[int]:
        """With which status codes commands of this person were answered so far to requests of this kind, in their order."""
        lines = seen.recorded(self._record)
        return [line["status"] for line in lines if (line["method"], line["path"]) == (method, path)]

    def _judged(self, words: tuple[str, ...], done: Done, check: bool) -> Done:
        LEDGER.note(words, done.refusal)
        told = f"heroku {done.command}: {done.refusal}\n{done.out}\n{done.err}\n{self.davit.logs() if done.refusal else ''}"
        assert not check or done.refusal is None, told
        return done

    def close(self) -> None:
        """End the batch mode's process."""
        if self._session:
            self._session.close()

    def __enter__(self) -> Heroku:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        self.close()
        if kind is None:
            Heroku.answers += seen.check_recorded(self._record, urlsplit(self.environment["HEROKU_HOST"]).netloc)


class _Session:
    """One ``heroku repl`` in its mode for programs: results and failures come between markers."""

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        self._process = subprocess.Popen(
            [PROGRAMS / "heroku", "repl"], env={**environment, "HEROKU_MCP_MODE": "true"}, cwd=cwd, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._shown: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._until("heroku > ")
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        while chunk := os.read(self._process.stdout.fileno(), 65536):
            self._shown.put(chunk)
        self._shown.put(b"")

    def _until(self, mark: str) -> str:
        seen = b""
        while mark.encode() not in seen:
            chunk = self._shown.get(timeout=PATIENCE * SECONDS)
            assert chunk, f"heroku repl has ended: {seen.decode()}{self._read_errors()}"
            seen += chunk
        return seen.decode()

    def _read_errors(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        self._errors.seek(0)
        self._errors.truncate()
        return text

    def ask(self, words: tuple[str, ...]) -> Done:
        assert self._process.stdin is not None
        line = " ".join(words[:1] + tuple(shlex.quote(word) for word in words[1:]))
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        shown = self._until(_END)
        if not shown.partition(_END)[2].endswith("heroku > "):
            self._until("heroku > ")
        err = self._read_errors()
        failure = _FAILED.search(err)
        return Done(
            line, shown.partition(_BEGIN)[2].partition(_END)[0], _FAILED.sub("", err), failure[1].strip() if failure else None
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._errors.close()
