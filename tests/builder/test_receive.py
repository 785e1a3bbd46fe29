"""What a push does, with the real git client, on both transports."""

from __future__ import annotations

from tests.builder.git_doors import Door, Doors, door, doors  # noqa: F401


def test_first_push_is_built_streamed_and_moves_the_ref(door: Door) -> None:
    app = door.app()
    app.commit("say first line\nsay second line")
    pushed = app.push()
    assert pushed
    assert "remote: -----> Building" in pushed.text and "remote: second line" in pushed.text
    assert "[new branch]" in pushed.text
    assert app.refs == {"refs/heads/main": app.head()}
    assert app.incoming() == []


def test_failed_build_refuses_the_ref_and_leaves_nothing(door: Door) -> None:
    app = door.app()
    assert app.push()
    good, before = app.head(), app.objects()
    app.commit("say oh no\nfail build failed")
    pushed = app.push()
    assert not pushed
    assert "! [remote rejected] main -> main (build failed)" in pushed.text
    assert app.refs == {"refs/heads/main": good}
    assert app.objects() == before and app.incoming() == []
