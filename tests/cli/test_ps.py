"""What `davit ps:isolation` and `ps:resize` wait for; the API is an imitation, because the order of what it answers is the subject."""

from __future__ import annotations

from typing import Any

import pytest

from cli.apps import ps
from foundation.errors import DavitError


class Answers:
    """An app whose dyno is what these say, one look after the other; the last stays."""

    def __init__(self, *dynos: tuple[str, str], failure: str | None = None) -> None:
        self.dynos, self.failure = list(dynos), failure

    def get(self, path: str) -> list[dict[str, Any]]:
        if path == "/formation":
            return [{"type": "web", "failure": self.failure}]
        state, isolation = self.dynos.pop(0) if len(self.dynos) > 1 else self.dynos[0]
        return [{"type": "web", "name": "web.1", "state": state, "isolation": isolation}]


def wait(*dynos: tuple[str, str], failure: str | None = None) -> list[tuple[str, str]]:
    """Wait until it is a microVM; the answers that are left."""
    app = Answers(*dynos, failure=failure)
    ps._until_so(app, {"web": ("isolation", "microvm")})  # type: ignore[arg-type]
    return app.dynos


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ps.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ps, "_PATIENCE", 0.5)


def test_one_that_sleeps_or_has_crashed_as_it_was_is_waited_for() -> None:
    up = ("up", "microvm")
    assert wait(("idle", "container"), ("starting", "microvm"), up) == [up]
    assert wait(("crashed", "container"), ("starting", "microvm"), up) == [up]
    assert wait(("up", "container"), up) == [up]
    assert wait(("idle", "microvm")) == [("idle", "microvm")], "it has fallen asleep again"
    with pytest.raises(DavitError, match=r"web\.1 is not up after"):
        wait(("idle", "container"))


def test_one_that_crashes_as_what_it_is_to_be_is_told() -> None:
    with pytest.raises(DavitError, match=r"web\.1 has crashed as microvm; `davit logs` shows why"):
        wait(("crashed", "container"), ("starting", "microvm"), ("crashed", "microvm"))
    with pytest.raises(DavitError, match="stays container"):
        wait(("up", "container"), failure="web did not come up as microvm, so it stays container.")
