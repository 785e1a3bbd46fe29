"""How many pushes are under way at once: in all, and of one account; everything else is answered meanwhile."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from api import server
from foundation.settings import settings
from tests.builder.git_doors import App, Door, Doors, opened
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
    """Pushes that wait until they are let go; those of one user."""

    def __init__(self, door: Door, user: str, number: int) -> None:
        self.pushes: list[tuple[App, subprocess.Popen[bytes]]] = []
        for _ in range(number):
            app = door.app(user)
            app.commit(f"say begun\nwait {app.name}")
            self.pushes.append((app, app.pushing()))
        for _, process in self.pushes:  # each has its place once its build has spoken
            _until(process, b"begun")

    def end(self) -> None:
        for app, process in self.pushes:
            app.let(app.name)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output


def _until(process: subprocess.Popen[bytes], word: bytes) -> None:
    assert process.stdout is not None
    seen = b""
    while word not in seen:
        data = process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
        assert data, seen
        seen += data


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
        pushed = his.push()
        assert pushed and "hello" in pushed.text
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


def test_pushes_leave_all_threads_of_other_requests_alone() -> None:
    assert server.threads - settings().pushes == settings().web_threads
