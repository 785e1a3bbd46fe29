"""How many pushes are under way at once: in all, and of one account; everything else is answered meanwhile."""

from __future__ import annotations

import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.builder.git_doors import App, Door, Doors, Result, opened
from tests.builder.git_packs import push as push_of
from tests.builder.git_packs import request
from tests.builder.test_receive_http import honest
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

MOST, OF_ONE = 3, 2


@pytest.fixture(scope="module")
def narrow() -> Iterator[Doors]:
    """Doors that take three pushes at once, two of them of one account."""
    with opened(MOST) as made:
        yield made


@pytest.fixture(params=["http", "ssh"])
def door(narrow: Doors, request: pytest.FixtureRequest) -> Door:
    return Door(narrow, request.param)


class Waiting:
    """Pushes that wait until they are let go; those of one user.

    A push that has ended for its client has its place a little longer, until the repository is tidy: so a push whose place is
    still another's is tried again.
    """

    def __init__(self, door: Door, user: str, number: int) -> None:
        self.pushes: list[tuple[App, subprocess.Popen[bytes]]] = []
        for _ in range(number):
            app = door.app(user)
            app.commit(f"say begun\nwait {app.name}")
            wait_until(lambda app=app: self._begins(app), "a push having its place")  # type: ignore[misc]

    def _begins(self, app: App) -> bool:
        process = app.pushing()
        assert process.stdout is not None
        seen = b""
        while data := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            seen += data
            if b"begun" in seen:
                self.pushes.append((app, process))
                return True
        process.wait()
        assert b"under way already" in seen, seen
        return False

    def end(self) -> None:
        for app, process in self.pushes:
            app.let(app.name)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output


def _untouched(app: App) -> bool:
    """Whether nothing of a push to it was taken."""
    return not app.incoming() and not any(path.is_file() for path in (app.repositories.path(app.name) / "objects").rglob("*"))


@pytest.mark.row("too-many-pushes")
def test_one_accounts_pushes_fill_its_part_and_the_other_is_answered(door: Door) -> None:
    hers, one_more, his = Waiting(door, "alice", OF_ONE), door.app(), door.app("bob")
    try:
        refused = one_more.push()
        assert not refused and "push again when one has ended" in refused.text
        assert_says("too-many-pushes", refused.text)
        assert _untouched(one_more)
        wait_until(lambda: "hello" in his.push().text, "his push")
        first = hers.pushes[0][0]
        assert first.git("ls-remote", "davit") and first.git("fetch", "davit")
        assert his.git("clone", "-q", door.url(his.name, "bob"), str(his.work / "clone"))
        theirs = Waiting(door, "bob", MOST - OF_ONE)
        full = his.push("davit", "main:other")
        theirs.end()
        assert not full and f"{MOST} pushes are under way already" in full.text
        assert_says("too-many-pushes", full.text)
    finally:
        hers.end()
    wait_until(lambda: bool(one_more.push()), "a push when others have ended")


def test_a_push_that_others_overtook_since_its_advertisement_is_refused_in_gits_words(narrow: Doors) -> None:
    """Git shows an HTTP answer's text only for the advertisement."""
    door = Door(narrow, "http")
    hers, late = Waiting(door, "alice", OF_ONE), door.app()
    port = int((narrow.home / "http.port").read_text())
    try:
        new, data = honest()
        answer = request(port, f"/{late.name}.git/git-receive-pack", push_of(new, data))
        assert answer.status == 200 and b"push again when one has ended" in answer.body
        assert b"ng refs/heads/main too many pushes" in answer.body
        assert request(port, f"/{late.name}.git/git-receive-pack", b"0000").status == 200  # git's probe before a large push
        assert _untouched(late)
    finally:
        hers.end()


def test_who_is_refused_beside_many_others_is_told_the_same(narrow: Doors) -> None:
    """So many are refused in git's words at once; one more is not read at all."""
    door = Door(narrow, "http")
    hers, late = Waiting(door, "alice", OF_ONE), door.app()
    port = int((narrow.home / "http.port").read_text())
    new, data = honest()
    try:
        with ExitStack() as stack:

            def is_not_read() -> bool:
                stack.enter_context(_silent(late, "git-receive-pack"))
                answer = request(port, f"/{late.name}.git/git-receive-pack", push_of(new, data))
                assert b"You have 2 pushes under way already" in answer.body
                return answer.status == 503

            wait_until(is_not_read, "a refusal without git's words")
    finally:
        hers.end()


@contextmanager
def _silent_fetch(app: App) -> Iterator[None]:
    """A client of the app's owner that fetches and never says what."""
    if app.door.which == "ssh":
        port = (app.home / "ssh.port").read_text()
        words = [*app.door.ssh(app.user), "-p", port, "git@127.0.0.1", f"git-upload-pack {app.name}.git"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            yield
            process.kill()
        return
    with _silent(app, "git-upload-pack"):
        yield


@contextmanager
def _silent(app: App, service: str) -> Iterator[None]:
    """A client that asks over HTTP and does not go on."""
    with socket.create_connection(("127.0.0.1", int((app.home / "http.port").read_text()))) as connection:
        secret = b64encode(f"x:{app.user}-token".encode()).decode()
        connection.sendall(
            f"POST /{app.name}.git/{service} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {secret}\r\n"
            f"Content-Type: application/x-{service}-request\r\nContent-Length: 1000\r\n\r\n0011".encode()
        )
        yield


@pytest.mark.row("too-many-fetches")
def test_slow_fetches_of_one_account_leave_room_for_others_and_one_too_many_is_told(door: Door) -> None:
    hers, his = door.app(), door.app("bob")
    for one in (hers, his):
        wait_until(lambda one=one: bool(one.push()), "a push")  # type: ignore[misc]

    def fetch(app: App) -> Result:
        return app.git("fetch", "davit", check=False)

    with ExitStack() as stack:

        def fill(app: App) -> bool:
            stack.enter_context(_silent_fetch(app))
            return not fetch(app)

        wait_until(lambda: fill(hers), "one fetch too many")
        assert_says("too-many-fetches", fetch(hers).text)
        assert his.git("ls-remote", "davit") and his.git("clone", "-q", door.url(his.name, "bob"), str(his.work / "clone"))
        hers.commit("say hello again")
        wait_until(lambda: bool(hers.push()), "a push of who fetches too much")
        wait_until(lambda: fill(his), "all places taken")
        assert_says("too-many-fetches", fetch(his).text)
    wait_until(lambda: bool(fetch(hers)), "a fetch when others have ended")
