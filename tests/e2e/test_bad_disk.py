"""A disk without room: pushes and builds are refused with a sentence, apps serve on, and when there is room all is well again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.e2e.errors_page import assert_says
from tests.e2e.residue import assert_nothing_left
from tests.e2e.world import App, Davit, eventually, tiny


@contextlib.contextmanager
def room(davit: Davit, megabytes: float) -> Iterator[None]:
    """Leave no more room than this on the disk of DAVIT_HOME."""
    ballast = davit.home / "ballast"
    with ballast.open("wb") as file:
        while (surplus := _free(davit) - int(megabytes * 2**20)) > 0:
            file.seek(0, os.SEEK_END)
            os.posix_fallocate(file.fileno(), file.tell(), max(4096, surplus * 9 // 10))
    try:
        yield
    finally:
        ballast.unlink()


def _free(davit: Davit) -> int:
    figures = os.statvfs(davit.home)
    return figures.f_bavail * figures.f_frsize


@pytest.fixture
def app(strict: Davit) -> Iterator[App]:
    """An app that serves “first”."""
    made = strict.create()
    made.deploy(tiny("first"))
    yield made
    made.cli("apps:destroy", "--confirm", made.name)
    assert_nothing_left(strict)


@pytest.mark.row("disk-full-push")
def test_a_push_onto_a_full_disk_is_refused_and_the_next_one_works(app: App) -> None:
    app.commit({**tiny("second"), "large": os.urandom(4 << 20)})
    with room(app.davit, 1):
        push = app.push_refused()
        assert_says("disk-full-push", push.output)
        app.assert_serves("first")
    push = app.push()
    assert push.accepted, push.output
    app.assert_serves("second")


@pytest.mark.row("disk-full-push")
def test_not_even_a_byte_of_room(app: App) -> None:
    app.commit(tiny("second"))
    with room(app.davit, 0):
        push = app.push()
        assert not push.accepted
        assert_says("disk-full-push", push.output)
        app.assert_serves("first")
    push = app.push()
    assert push.accepted, push.output
    app.assert_serves("second")


@pytest.mark.row("disk-full-build")
@pytest.mark.parametrize("megabytes", [8, 40])
def test_a_disk_that_fills_up_during_a_build_refuses_the_push(app: App, megabytes: int) -> None:
    """8 MB: what the build writes finds no room; 40 MB: it does, and the slug made of it does not."""
    app.use_buildpack('head -c 25000000 /dev/urandom > "$1/large"; sync')
    app.commit(tiny("second"))
    with room(app.davit, megabytes):
        push = app.push_refused()
        assert_says("disk-full-build", push.output)
        assert "inside Davit" not in push.output
        app.assert_serves("first")
    app.use_buildpack("true")
    app.commit()
    push = app.push()
    assert push.accepted, push.output
    eventually(lambda: "second" in app.get().text, "the next push serves")
