"""Davit's web process is killed while pages are open in a real browser: every line is there once, every state is the newest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from foundation.clock import now
from logs import stream
from state import db, vault
from state.models import App, Build
from tests.api.conftest import use_home
from tests.cli.living import Davit, owner_app, serving
from tests.conftest import wait_until
from tests.dashboard import scenery
from tests.dashboard.browsing import PATIENCE, Browser, sign_in

expect.set_options(timeout=PATIENCE)


@pytest.fixture
def davit(davit_home: Path, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Davit]:
    """A Davit that answers."""
    use_home(davit_home, monkeypatch, REDIS_URL=redis_server)
    db.upgrade()
    vault.ensure_keys()
    with db.transaction() as session:
        scenery.account(session, "ann@example.com", admin=True)
    with serving(davit_home, tmp_path, redis_server) as served:
        yield served


class Writer:
    """A build that prints and a dyno that logs the same numbered lines, until told to stop."""

    def __init__(self, build_id: str, app_id: str, redis_url: str) -> None:
        self.output, self.app_id = scenery.output_of(build_id, "", done=False), app_id
        self.redis = stream.connect(redis_url)
        self.count, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with self.output.open("a") as file:
            while not self._end.wait(0.01):
                for piece in ("line ", f"{self.count}\n"):
                    file.write(piece)
                    file.flush()
                stream.emit(self.redis, self.app_id, [stream.Line(now(), "app", "web.1", f"line {self.count}")])
                self.count += 1

    def stop(self) -> list[str]:
        """End; returns every line."""
        self._end.set()
        self._thread.join(30)
        (self.output.parent / "output.done").write_text('{"status": "succeeded"}')
        return [f"line {number}" for number in range(self.count)]


def test_a_killed_web_process_loses_no_line_and_shows_none_twice(davit: Davit, redis_server: str, chromium: Browser) -> None:
    app_id = owner_app("built")
    with db.transaction() as session:
        app = session.get(App, app_id)
        assert app
        build = Build(app_id=app_id, account_id=app.owner_id, commit="a" * 40, stack="davit-13", phase="building")
        session.add(build)
    builds = chromium.person(davit.url)
    sign_in(builds, "ann@example.com", scenery.PASSWORD)
    logs = builds.context.new_page()
    writer = Writer(build.id, app_id, redis_server)
    builds.goto(f"/dashboard/apps/built/builds/{build.id}")
    logs.goto("/dashboard/apps/built/logs")
    _both_go_on(builds, logs, writer)
    davit.kill()
    told = logs.get_by_text("Not connected, trying again")
    expect(told).to_be_visible()
    before = writer.count
    wait_until(lambda: writer.count >= before + 20, "lines being printed while nobody serves")
    davit.start()
    _both_go_on(builds, logs, writer)
    expect(told).to_have_count(0)
    davit.kill()
    expected = writer.stop()
    with db.transaction() as session:
        row = session.get(Build, build.id)
        assert row
        row.status, row.phase, row.finished_at = "succeeded", "done", now()
    davit.start()
    expect(builds.locator("#build-head")).to_contain_text("Succeeded")
    expect(builds.locator("#build-output")).to_contain_text(f"{expected[-1]}\n")
    expect(logs.locator("#lines .l").last).to_contain_text(expected[-1])
    assert builds.locator("#build-output").inner_text().splitlines() == expected
    shown = logs.locator("#lines .l").all_text_contents()
    assert [text.rpartition("] ")[2].rpartition("web.1")[2].strip(" ]:") for text in shown] == expected


def _both_go_on(builds: Page, logs: Page, writer: Writer) -> None:
    """Both pages show what is printed from now on."""
    last = f"line {writer.count + 10}"
    expect(builds.locator("#build-output")).to_contain_text(f"{last}\n")
    expect(logs.locator("#lines")).to_contain_text(last)

