"""A user's day in the browser, with everything real: git, builds, dynos, the router, Chromium."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browsing import PATIENCE, Browser, sign_in
from tests.e2e.conftest import running
from tests.e2e.world import App, Davit, Push, tiny

expect.set_options(timeout=PATIENCE)
PASSWORD = "correct horse battery"
PROCFILE = "web: python3 -u app.py\nworker: python3 -u work.py\n"


def _files(version: str) -> dict[str, str]:
    """A tiny app that answers with ``version`` and does not start while BROKEN is set."""
    source = tiny(version)["app.py"]
    guarded = 'import os, sys\nif os.environ.get("BROKEN"):\n    sys.exit("I was told to break")\n' + source
    worker = "import time\nprint('working', flush=True)\ntime.sleep(3600)\n"
    return {"app.py": guarded, "Procfile": PROCFILE, "work.py": worker}


@pytest.fixture
def davit() -> Iterator[Davit]:
    """A Davit that nobody has set up yet."""
    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    with running(Davit(home)) as world:
        yield world
    shutil.rmtree(home, ignore_errors=True)


def test_a_day(davit: Davit, chromium: Browser) -> None:
    link = davit.cli("dashboard").stdout.split()[0]
    base = f"http://127.0.0.1:{davit.api}"
    page = chromium.person(base)
    _set_up(page, link)
    _all_is_well(page)
    app = _create(davit, page)
    _push_while_the_page_looks_on(page, app)
    _scale(page, app)
    _set_a_config_var_and_roll_back(page, app)
    _read_the_log(page, app)
    _run_a_command(page)
    _share(page, chromium.person(base), base)
    _break(page, app)
    _destroy(page, app)


def _set_up(page: Page, link: str) -> None:
    page.goto(link)
    page.get_by_label("Your e-mail address").fill("ann@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Set up").click()
    expect(page.get_by_role("heading", name="No apps yet")).to_be_visible()


def _all_is_well(page: Page) -> None:
    page.get_by_role("link", name="Admin").click()
    processes = page.get_by_role("region", name="Processes")
    expect(processes.get_by_text("Good")).to_have_count(7)
    page.get_by_role("link", name="Apps", exact=True).click()


def _create(davit: Davit, page: Page) -> App:
    page.get_by_role("link", name="New app").first.click()
    page.get_by_label("Name").fill("daily")
    page.get_by_role("button", name="Create app").click()
    expect(page.get_by_text("No code yet")).to_be_visible()
    remote = page.get_by_text("git remote add davit http").inner_text()
    app = App(davit, "daily", Path(tempfile.mkdtemp(prefix="co", dir=davit.home / "person")))
    assert remote == f"git remote add davit http://127.0.0.1:{davit.api}/daily.git"
    expect(page.get_by_text("git push davit main")).to_be_visible()
    app.cli("git:remote")
    return app


def _push_while_the_page_looks_on(page: Page, app: App) -> None:
    _tab(page, "Deploy")
    pushed: list[Push] = []
    app.commit(_files("first"))
    pusher = threading.Thread(target=lambda: pushed.append(app.push()))
    pusher.start()
    page.get_by_role("table", name="Builds").get_by_role("link").first.click()
    output = page.get_by_role("log", name="Build output")
    expect(output).to_contain_text("Released v2")
    expect(page.get_by_text("Succeeded")).to_be_visible()
    pusher.join(120)
    assert pushed and pushed[0].accepted, pushed
    seen = [line.rstrip() for line in output.inner_text().splitlines() if line.strip()]
    heard = [line.removeprefix("remote: ").rstrip() for line in pushed[0].output.splitlines() if line.startswith("remote: ")]
    assert heard == seen
    expect(page.locator("#state")).to_have_text("Serving")
    app.assert_serves("first")


def _scale(page: Page, app: App) -> None:
    _tab(page, "Resources")
    page.locator("#q-web").fill("2")
    expect(page.locator("#ram-words")).to_contain_text("would be promised 1.0 GiB")
    page.locator("#q-worker").fill("1")
    page.get_by_role("button", name="Scale").click()
    dynos = page.get_by_role("table", name="Dynos")
    for name in ("web.1", "web.2", "worker.1"):
        expect(dynos.get_by_role("row", name=name)).to_contain_text("up")
    assert len(app.dynos()) == 3


def _tab(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="App").get_by_role("link", name=name, exact=True).click()


def _set_a_config_var_and_roll_back(page: Page, app: App) -> None:
    _tab(page, "Settings")
    page.get_by_label("Name of a new config var").first.fill("GREETING")
    page.get_by_label("Its value").first.fill("hello-from-config")
    page.get_by_role("button", name="Save config vars").click()
    expect(page.get_by_role("status").first).to_contain_text("v3 is on its way")
    assert "hello-from-config" not in page.content()
    page.get_by_role("button", name="Reveal values").click()
    expect(page.get_by_label("Value of GREETING")).to_have_value("hello-from-config")
    _tab(page, "Deploy")
    releases = page.get_by_role("table", name="Releases")
    expect(releases.get_by_role("row", name=re.compile("^v3 Current"))).to_be_visible()
    app.assert_serves("first hello-from-config")
    releases.get_by_role("link", name="Roll back to v2").click()
    expect(page.locator("#rollback")).to_contain_text("− config var GREETING")
    page.get_by_role("button", name="Roll back to v2").click()
    expect(page.get_by_role("heading", name="Release v4")).to_be_visible()
    expect(page.locator("#release-head")).to_contain_text("Current")
    assert "hello" not in app.get().text


def _read_the_log(page: Page, app: App) -> None:
    _tab(page, "Logs")
    expect(page.locator("body")).to_have_attribute("data-connected", "yes")
    app.get("/a-path-to-look-for")
    expect(page.locator("#lines")).to_contain_text("/a-path-to-look-for")
    page.get_by_label("Search in the log").fill("a-path-to-look-for")
    expect(page.locator("#count")).to_contain_text("1 of")
    page.get_by_label("Search in the log").fill("")
    page.get_by_label("Process").select_option("worker")
    expect(page.locator("#lines .l:visible").last).to_contain_text("worker")


def _run_a_command(page: Page) -> None:
    _tab(page, "Run")
    page.get_by_label("Command").fill("bash")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#terminal-state")).to_contain_text("Connected to run.")
    page.keyboard.type("echo answer=$((40+2)); exit 3\n")
    expect(page.locator("#terminal-state")).to_contain_text("ended with status 3")
    expect(page.locator(".xterm-accessibility-tree")).to_contain_text("answer=42")
    page.get_by_label("Where").select_option("web.1")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#terminal-state")).to_contain_text("Connected to bash in web.1")
    page.keyboard.type("echo beside=$DYNO; exit 4\n")
    expect(page.locator("#terminal-state")).to_contain_text("bash in web.1 ended with status 4")
    expect(page.locator(".xterm-accessibility-tree")).to_contain_text("beside=web.1")


def _share(page: Page, guest: Page, base: str) -> None:
    page.get_by_role("link", name="Admin").click()
    page.get_by_role("link", name="People").click()
    page.get_by_label("E-mail address").fill("bob@example.com")
    page.get_by_role("button", name="Make account").click()
    address = page.get_by_role("region", name="Invitation").inner_text().strip()
    guest.goto(address)
    guest.get_by_label("Password", exact=True).fill(PASSWORD)
    guest.get_by_label("Password again").fill(PASSWORD)
    guest.get_by_role("button", name="Save password").click()
    sign_in(guest, "bob@example.com", PASSWORD)
    expect(guest.get_by_role("heading", name="No apps yet")).to_be_visible()
    page.goto("/dashboard/apps/daily/settings")
    page.get_by_label("E-mail address of an account here").fill("bob@example.com")
    for permission in ("deploy", "operate"):
        page.get_by_role("checkbox", name=permission).uncheck()
    page.get_by_role("button", name="Add collaborator").click()
    guest.goto("/dashboard/")
    guest.get_by_role("link", name="daily").click()
    expect(guest.get_by_role("link", name="Logs", exact=True)).to_be_visible()
    expect(guest.get_by_role("link", name="Run", exact=True)).to_have_count(0)
    _tab(guest, "Resources")
    expect(guest.get_by_role("button", name="Scale")).to_have_count(0)
    _tab(guest, "Settings")
    expect(guest.get_by_role("button", name="Reveal values")).to_have_count(0)
    expect(guest.get_by_role("heading", name="Destroy the app")).to_have_count(0)
    refused = guest.goto("/dashboard/apps/daily/run")
    assert refused and refused.status == 403
    guest.context.close()


def _break(page: Page, app: App) -> None:
    page.goto("/dashboard/apps/daily/settings")
    page.get_by_text("Paste a .env file").click()
    page.get_by_label("Lines of NAME=VALUE").fill("# breaks it\nBROKEN=yes\n")
    page.get_by_role("button", name="Save config vars").click()
    _tab(page, "Overview")
    failed = page.get_by_role("listitem").filter(has_text="v5: Set BROKEN config vars")
    expect(failed).to_contain_text("Failed")
    failed.get_by_role("link").click()
    expect(page.get_by_role("alert")).to_be_visible()
    _tab(page, "Logs")
    expect(page.locator("#lines")).to_contain_text("I was told to break")
    app.assert_serves("first")


def _destroy(page: Page, app: App) -> None:
    _tab(page, "Settings")
    button = page.get_by_role("button", name="Destroy daily")
    page.get_by_label("Type daily to confirm").fill("dail")
    button.click()
    expect(page.get_by_role("alert")).to_have_text("To destroy daily, type its name.")
    page.get_by_label("Type daily to confirm").fill("daily")
    button.click()
    expect(page.get_by_role("heading", name="No apps yet")).to_be_visible()
    assert app.get().status_code == 404
