"""The words that end-to-end tests are written in: a Davit of their own, apps, pushes, requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import PATIENCE
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DAVIT = ROOT / "bin" / "davit"
STACKS = Path(os.environ.get("DAVIT_CACHE", "/var/cache/davit")) / "stacks"


@dataclass
class Push:
    """How a ``git push`` ended and what the pusher saw."""

    status: int
    output: str

    @property
    def accepted(self) -> bool:
        return self.status == 0


@dataclass
class Davit:
    """A whole Davit, started by ``davit up`` as a person would.

    Attributes:
        home: its DAVIT_HOME.
        http, api, ssh: its ports on the loopback.
    """

    home: Path
    http: int = field(default_factory=free_port)
    api: int = field(default_factory=free_port)
    ssh: int = field(default_factory=free_port)
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What its commands are started with."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("DAVIT_", "GIT_")) or key == "GIT_SSL_CAINFO"
        }
        return kept | {
            "DAVIT_HOME": str(self.home),
            "DAVIT_STACKS": str(STACKS),
            "DAVIT_RATE_LIMIT": "1000000",  # tests ask more often than people
            "DAVIT_HTTP": f"127.0.0.1:{self.http}",
            "DAVIT_API": f"127.0.0.1:{self.api}",
            "DAVIT_SSH": f"127.0.0.1:{self.ssh}",
            "DAVIT_EXEC": f"127.1.{self.http >> 8}.{self.http & 255}:80",  # heroku knows no other port: an address of its own
            "HOME": str(self.home / "person"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            **self.extra,
        }

    def cli(
        self, *words: str, check: bool = True, input: str | None = None, cwd: Path | None = None, timeout: float = 30 * PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run ``davit WORDS``."""
        done = subprocess.run(
            [DAVIT, *words], env=self.environment, capture_output=True, text=True, input=input, cwd=cwd, timeout=timeout,
            stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (
                f"davit {' '.join(words)} → {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done

    def logs(self) -> str:
        """The last lines of each process's log: what a failing test needs."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted((self.home / "log").glob("*.log"))
        )

    def start(self) -> None:
        """``davit up --detach``."""
        (self.home / "person").mkdir(parents=True, exist_ok=True)
        (self.home / "person" / ".gitconfig").write_text(
            "[user]\nname = Ann\nemail = ann@example.com\n[init]\ndefaultBranch = main\n"
        )
        self.cli("up", "--detach", timeout=60 * PATIENCE)

    def stop(self) -> None:
        """``davit down``."""
        self.cli("down", timeout=60 * PATIENCE)

    def pids(self) -> dict[str, list[int]]:
        """The pids of Davit's own processes, by process."""
        rows = json.loads(self.cli("status", "--json", check=False).stdout)
        return {row["process"]: row["pids"] for row in rows}

    @property
    def token(self) -> str:
        """The owner's token."""
        return (self.home / "owner-token").read_text().strip()

    def client(self, token: str | None = None) -> httpx.Client:
        """An HTTP client of the API, which holds each answer against what is published."""
        from tests.e2e import seen

        headers = {"Accept": "application/vnd.heroku+json; version=3", "Authorization": f"Bearer {token or self.token}"}
        hooks = {"response": [seen.check]}
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.api}", headers=headers, timeout=60, trust_env=False, event_hooks=hooks
        )

    def create(self, name: str | None = None) -> App:
        """A new app with an empty checkout."""
        out = self.cli("apps:create", *([name] if name else []), "--json", cwd=self.home).stdout
        return App(self, json.loads(out)["name"], Path(tempfile.mkdtemp(prefix="co", dir=self.home / "person")))


@dataclass(eq=False)
class App:
    """An app and its checkout."""

    davit: Davit
    name: str
    checkout: Path

    def git(
        self, *words: str, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run git in the checkout."""
        done = subprocess.run(
            ["git", *words], cwd=self.checkout, env=self.davit.environment | dict(environment or {}), capture_output=True, text=True,
            errors="replace", timeout=300, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"git {' '.join(words)} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def write(self, files: Mapping[str, str | bytes | None]) -> None:
        """Write (or, for None, delete) files of the checkout."""
        for name, content in files.items():
            path = self.checkout / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content)

    def commit(self, files: Mapping[str, str | bytes | None] | None = None, *, example: str | None = None) -> None:
        """Commit files, or a whole example."""
        if not (self.checkout / ".git").exists():
            self.git("init", "-q")
            self.davit.cli("git:remote", "-a", self.name, cwd=self.checkout)
        if example:
            shutil.copytree(ROOT / "examples" / example, self.checkout, dirs_exist_ok=True)
        self.write(files or {})
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a change")

    def push(self, *words: str) -> Push:
        """``git push davit main``, or with other words."""
        done = self.git("push", "davit", *(words or ("main",)), check=False)
        return Push(done.returncode, done.stdout + done.stderr)

    def push_to(self, url: str, token: str) -> Push:
        """``git push URL main`` with this token and no other way to authenticate."""
        secret = b64encode(f"davit:{token}".encode()).decode()
        environment = {
            "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {secret}",
        }  # fmt: skip
        done = self.git("push", url, "main", check=False, environment=environment)
        return Push(done.returncode, done.stdout + done.stderr)

    def deploy(self, files: Mapping[str, str | bytes | None] | None = None, *, example: str | None = None) -> Push:
        """Commit and push; fails the test when the push is refused."""
        self.commit(files, example=example)
        push = self.push()
        assert push.accepted, push.output + self.davit.logs()
        return push

    def cli(self, *words: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """``davit WORDS -a NAME``."""
        verb, *rest = words
        return self.davit.cli(verb, "-a", self.name, *rest, check=check, input=input)

    def push_refused(self, *words: str) -> Push:
        """Push what is committed; it is refused, and neither the ref nor what serves has changed."""
        with self.davit.client() as client:
            before = client.get(f"/apps/{self.name}").raise_for_status().json()["released_at"]
            push = self.push(*words)
            assert not push.accepted and "[remote rejected] main -> main" in push.output, push.output
            assert client.get(f"/apps/{self.name}").json()["released_at"] == before
        stored = self.git("ls-remote", "davit", "main").stdout.split()
        assert not stored or stored[0] != self.git("rev-parse", "HEAD").stdout.strip()
        return push

    def use_buildpack(self, compile: str) -> None:
        """Choose a buildpack of the test's own whose bin/compile is this bash script."""
        root = self.davit.home / "person" / f"buildpack-{self.name}"
        (root / "bin").mkdir(parents=True, exist_ok=True)
        for script, text in (("detect", "echo Test"), ("compile", compile), ("release", "echo '--- {}'")):
            (root / "bin" / script).write_text(f"#!/bin/bash\n{text}\n")
            (root / "bin" / script).chmod(0o755)
        self.cli("buildpacks:set", f"file://{root}", check=False)  # it may be chosen already

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        """A request through the router, on a connection of its own."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(
            f"http://127.0.0.1:{self.davit.http}{path}",
            headers={"Host": f"{self.name}.localhost", **headers},
            timeout=90,
            trust_env=False,
        )

    def assert_serves(self, text: str, path: str = "/") -> None:
        """The app answers 200 with ``text`` in it, now."""
        answer = self.get(path)
        assert answer.status_code == 200 and text in answer.text, (
            f"{answer.status_code}: {answer.text[:500]}\n{self.davit.logs()}"
        )

    def dynos(self) -> list[dict[str, Any]]:
        """GET /apps/NAME/dynos."""
        with self.davit.client() as client:
            found: list[dict[str, Any]] = client.get(f"/apps/{self.name}/dynos").raise_for_status().json()
            return found

    def releases(self) -> list[dict[str, Any]]:
        """GET /apps/NAME/releases, oldest first."""
        with self.davit.client() as client:
            found: list[dict[str, Any]] = client.get(f"/apps/{self.name}/releases").raise_for_status().json()
            return sorted(found, key=lambda release: int(release["version"]))

    def config(self) -> dict[str, str]:
        """GET /apps/NAME/config-vars."""
        with self.davit.client() as client:
            found: dict[str, str] = client.get(f"/apps/{self.name}/config-vars").raise_for_status().json()
            return found

    def log(self) -> str:
        """``davit logs -n 1500``."""
        return self.cli("logs", "-n", "1500").stdout


def eventually(check: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Poll until ``check()`` is true; ``seconds`` are an idle machine's, a busy one gets PATIENCE times as many."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not check():
        assert time.monotonic() < deadline, f"did not happen within {PATIENCE * seconds:g} s: {what}"
        time.sleep(0.05)


TINY = {
    "Procfile": "web: python3 -u app.py\n",
    "app.py": """
import http.server, os, time
VERSION = "first"
class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(2)
        body = (VERSION + " " + os.environ.get("GREETING", "") + " " + os.environ["DYNO"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
print("listening", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Hello).serve_forever()
""",
}
"""An app of the standard library alone: nothing is installed, so a push takes a second."""


def tiny(version: str) -> dict[str, str]:
    """TINY that answers with ``version``."""
    return {**TINY, "app.py": TINY["app.py"].replace('"first"', repr(version))}
