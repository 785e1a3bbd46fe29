"""The vocabulary of the git tests: a real git client, working copies, and the two doors it knocks at.

Import the fixtures (``doors``, ``door``) where they are used.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.repositories import Repositories
from tests.conftest import wait_until

ROOT = Path(__file__).parents[2]
LIMIT = 8 << 20
"""Bytes that the test servers take in one pack."""

_names = itertools.count(1)


def clean_environment(**more: str) -> dict[str, str]:
    """A git client's environment that knows nothing of this machine's user."""
    person = {f"GIT_{role}_{what}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {
        "PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "PYTHONPATH": str(ROOT), **person, **more,
    }  # fmt: skip


@dataclass
class Result:
    """What a git command said and how it ended."""

    status: int
    text: str

    def __bool__(self) -> bool:
        return self.status == 0


class Doors:
    """Both doors of one home, each in a process of its own.

    Args:
        most: pushes that each takes at once.
    """

    def __init__(self, home: Path, most: int = 24) -> None:
        self.home, self.most = home, most
        self.repositories = Repositories(home / "repos")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("alice", "bob", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", home / name], check=True)

    def start(self, which: str) -> None:
        """Start a door and wait until it listens."""
        (self.home / f"{which}.port").unlink(missing_ok=True)
        self.processes[which] = subprocess.Popen(
            [sys.executable, "-m", "tests.builder.git_server", which, str(self.home), str(LIMIT), str(self.most)],
            env=clean_environment(), cwd=ROOT, stdin=subprocess.DEVNULL, stderr=(self.home / f"{which}.log").open("ab"),
        )  # fmt: skip
        wait_until((self.home / f"{which}.port").exists, f"the {which} door listening")

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Door:
    """One transport, as alice uses it."""

    doors: Doors
    which: str

    def url(self, app: str, user: str = "alice") -> str:
        port = (self.doors.home / f"{self.which}.port").read_text()
        if self.which == "http":
            return f"http://{user}:{user}-token@127.0.0.1:{port}/{app}.git"
        return f"ssh://git@127.0.0.1:{port}/{app}.git"

    def environment(self, user: str = "alice") -> dict[str, str]:
        return clean_environment(GIT_SSH_COMMAND=" ".join(self.ssh(user)))

    def ssh(self, user: str = "alice") -> list[str]:
        """The ssh command line up to its options."""
        settings = ("IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        return ["ssh", "-F", "none", "-i", str(self.doors.home / user), *(word for one in settings for word in ("-o", one))]

    def app(self, user: str = "alice") -> App:
        """A new app of alice's, and a working copy with one commit on main."""
        return App(self, f"{user}-{next(_names)}", user)


class App:
    """An app of ``user``'s and the working copy that is pushed to it."""

    def __init__(self, door: Door, name: str, user: str = "alice") -> None:
        self.door = door
        self.user = user
        self.name = name
        self.home = door.doors.home
        self.repositories = door.doors.repositories
        self.work = self.home / "work" / name
        self.work.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("remote", "add", "davit", door.url(name, user))
        self.commit("say hello")

    def git(self, *words: str, user: str | None = None, check: bool = True, cwd: Path | None = None, **more: str) -> Result:
        env = {**self.door.environment(user or self.user), **more}
        # Into a file: ssh makes a pipe that it shares with git non-blocking, and git then loses what does not fit.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(["git", *words], cwd=cwd or self.work, env=env, stdout=output, stderr=output, timeout=60)
            output.seek(0)
            result = Result(done.returncode, output.read().decode(errors="replace"))
        assert not check or result, result.text
        return result

    def commit(self, script: str = "say hello", **files: str) -> str:
        """Commit a build script (and files); returns the commit."""
        for name, text in {"script": script, **files}.items():
            (self.work / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a commit")
        return self.head()

    def head(self, name: str = "HEAD") -> str:
        return self.git("rev-parse", name).text.strip()

    def push(self, *words: str, user: str | None = None, **more: str) -> Result:
        return self.git("push", *(words or ("davit", "main")), user=user, check=False, **more)

    def pushing(self, *words: str) -> subprocess.Popen[bytes]:
        """A push that goes on by itself."""
        return subprocess.Popen(
            ["git", "push", *(words or ("davit", "main"))],
            cwd=self.work, env=self.door.environment(self.user), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def refs(self) -> dict[str, str]:
        """The refs on the server."""
        return {name.decode(): sha.decode() for name, sha in self.repositories.refs(self.name).items()}

    def objects(self) -> list[str]:
        """Every object in the app's repository on the server, reachable or not."""
        done = subprocess.run(
            ["git", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"],
            env={**clean_environment(), "GIT_DIR": str(self.repositories.path(self.name))}, capture_output=True, check=True,
        )  # fmt: skip
        return sorted(done.stdout.decode().split())

    def incoming(self) -> list[str]:
        """What has not been decided for the app."""
        return sorted(path.name for path in self.repositories.incoming.glob(f"{self.name}.*"))

    def let(self, name: str) -> None:
        """Let a script go on that waits for the file NAME."""
        (self.home / name).touch()


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with opened() as made:
        yield made


@contextmanager
def opened(most: int = 24) -> Iterator[Doors]:
    """Both doors of a new home; ``most`` pushes at once, as many clones, and four threads more."""
    home = Path(tempfile.mkdtemp(prefix="dvg", dir="/tmp"))
    made = Doors(home, most)
    try:
        for which in ("http", "ssh"):
            made.start(which)
        yield made
        for which in made.processes:
            log = (home / f"{which}.log").read_text()
            assert "Traceback" not in log, log
    finally:
        made.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["http", "ssh"])
def door(doors: Doors, request: pytest.FixtureRequest) -> Door:
    return Door(doors, request.param)
