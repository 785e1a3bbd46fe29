"""Every page in a real browser: axe-core finds nothing, nothing sticks out, a keyboard is enough, a script is not needed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from state import apps, db
from state.models import App, Dyno
from tests.api.conftest import use_home
from tests.cli.living import Davit, serving
from tests.conftest import wait_until
from tests.dashboard import scenery
from tests.dashboard.browsing import PATIENCE, Browser, sign_in, violations
from tests.dashboard.rooms import NAMES, ONCE, Visitors

expect.set_options(timeout=PATIENCE)
PHONE = {"width": 390, "height": 844}
TABLET = {"width": 850, "height": 1000}
"""Just wide enough for lists to be tables."""
BROKEN_PATTERNS = """() => [...document.querySelectorAll("[pattern]")].map((field) => field.pattern).filter((text) => {
    try { new RegExp(text, "v"); return false; } catch { return true; }
})"""
"""The fields' patterns that browsers ignore (HTML: they are compiled with the flag v)."""


@pytest.fixture
def davit(davit_home: Path, migrated_sqlite: Path, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Davit]:
    """A Davit full of apps."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch, REDIS_URL=redis_server)
    from state import vault

    vault.ensure_keys()
    scenery.fill(more=60)
    with serving(davit_home, tmp_path, redis_server) as served:
        yield served


def _ann(chromium: Browser, davit: Davit, **options: object) -> Page:
    page = chromium.person(davit.url, **options)
    sign_in(page, "ann@example.com", scenery.PASSWORD)
    return page


STOPS = """() => {
    const stops = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")].filter(
        (stop) => stop.tabIndex >= 0 && !stop.disabled && stop.type !== "hidden" && stop.checkVisibility({ visibilityProperty: true }));
    window.unreached = new Set(stops);
    window.unseen = [];
    document.addEventListener("focusin", ({ target }) => {
        window.unreached.delete(target);
        if (!target.matches(":focus-visible")) window.unseen.push(target.outerHTML.slice(0, 100));
    });
    window.unreached.delete(document.activeElement);
    return stops.length;
}"""
LEFT = """() => [
    ...[...window.unreached].filter((stop) => stop.isConnected).map((stop) => stop.outerHTML.slice(0, 100)), ...window.unseen]"""


def _unreached(page: Page) -> list[str]:
    """What Tab, pressed again and again, does not come to or does not show, though it is there to be used."""
    for _ in range(page.evaluate(STOPS)):
        page.keyboard.press("Tab")
    for _ in range(20):  # panes that can be scrolled are stops, too, and the window itself
        if not (left := page.evaluate(LEFT)):
            break
        page.keyboard.press("Tab")
    return list(left)


def _sticks_out(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@pytest.mark.parametrize(("scheme", "size"), [("light", None), ("dark", PHONE)])
def test_axe_finds_nothing_on_any_page_in_light_and_dark_and_nothing_sticks_out_of_a_phone_or_tablet(
    davit: Davit, chromium: Browser, scheme: str, size: dict[str, int] | None
) -> None:
    wrong = []
    options = {"color_scheme": scheme, **({"viewport": size} if size else {})}
    visitors = Visitors(chromium, davit.url, **options)
    said: list[str] = []
    name = ""
    for page in (visitors.ann, visitors.viewer):
        page.on("console", lambda message: said.append(f"{name}: {message.text}") if message.type == "error" else None)
    for name in (*NAMES, *ONCE):
        page = visitors.enter(name)
        wrong += [f"{name}: {sentence}" for sentence in violations(page)]
        wrong += [f"{name}: the pattern {text} is none" for text in page.evaluate(BROKEN_PATTERNS)]
        if size is None:
            wrong += [f"{name}: the key Tab does not come to {stop}" for stop in _unreached(page)]
        if size and _sticks_out(page):
            wrong.append(f"{name} is wider than a phone")
        if size:
            page.set_viewport_size(TABLET)
            if _sticks_out(page):
                wrong.append(f"{name} is wider than a tablet")
            page.set_viewport_size(PHONE)
    wrong += [f"console: {text}" for text in said if not text.startswith(("error: ", "refused: ", "viewer-forbidden: "))]
    visitors.leave()
    assert not wrong, "\n".join(wrong)


def test_a_keyboard_is_enough(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("/")
    page.keyboard.type("storefr")
    expect(page.locator("#list tbody tr")).to_have_count(1)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "storefront":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="storefront")).to_be_visible()
    page.goto("/dashboard/apps/storefront/resources")
    page.get_by_role("button", name="Restart all…").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    assert not violations(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Restart all…")).to_be_focused()
    page.locator("details.menu summary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Dark")).to_be_visible()
    assert not violations(page)
    page.get_by_role("button", name="Dark").focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.locator("details.menu summary").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Sign out").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("E-mail address")).to_be_focused()


def test_a_keyboard_is_enough_to_get_in(davit: Davit, chromium: Browser) -> None:
    visitors = Visitors(chromium, davit.url)
    page = visitors.enter("set-up")
    _types(page, "first@example.com", scenery.PASSWORD, scenery.PASSWORD)
    expect(page.get_by_role("heading", name="Apps", exact=True)).to_be_visible()
    page.context.clear_cookies()
    page = visitors.enter("sign-in-code")
    with db.snapshot() as session:
        code = scenery.code_of(session, "careful@example.com")
    _types(page, code)
    expect(page.get_by_role("link", name="storefront").first).to_have_count(0)
    expect(page.get_by_role("heading", name="No apps yet")).to_be_visible()
    page = visitors.enter("login-request")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Log it in":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("The command line is logged in")
    visitors.leave()


def _types(page: Page, *words: str) -> None:
    """Fill one field after the other, from the one that has the focus, and send the form."""
    for number, word in enumerate(words):
        if number:
            page.keyboard.press("Tab")
        page.keyboard.type(word)
    page.keyboard.press("Enter")


def test_a_script_is_not_needed(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit, java_script_enabled=False)
    page.get_by_label("Search apps by name").fill("store")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="storefront").click()
    page.get_by_role("link", name="Resources").click()
    page.locator("#q-worker").fill("3")
    page.get_by_role("button", name="Scale").click()
    expect(page.locator("#q-worker")).to_have_value("3")
    page.locator("summary", has_text="Restart all…").click()
    page.get_by_role("button", name="Restart all", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("being replaced")
    page.goto("/dashboard/apps/storefront/logs?dyno=worker")
    expect(page.locator(".l").first).to_contain_text("app[worker.1]")
    page.goto("/dashboard/apps/storefront/settings")
    page.get_by_role("button", name="Reveal values").click()
    expect(page.get_by_label("Value of GREETING")).to_have_value("hello")
    page.get_by_label("New domain").fill("shop.example.com")
    page.get_by_role("button", name="Add domain").click()
    expect(page.locator("#domains")).to_contain_text("shop.example.com. CNAME storefront.localhost.")


def test_ten_thousand_log_lines_stay_light(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/apps/storefront/logs")
    expect(page.locator("#count")).to_contain_text("301 lines")
    page.evaluate(
        """() => {
            const line = '<div class="l" data-s="app" data-p="web.1"><i>00:00:00</i> <b>app[web.1]</b> a line like any other</div>';
            for (let n = 0; n < 60; n++) document.dispatchEvent(new CustomEvent("log", { detail: line.repeat(200) }));
        }"""
    )
    expect(page.locator("#count")).to_contain_text("10,101 lines")
    assert page.locator("#lines .block").count() <= 51
    rendered = page.evaluate("[...document.querySelectorAll('#lines .block')].filter(b => b.firstElementChild.checkVisibility({contentVisibilityAuto: true})).length")
    assert rendered < 6, "only what is in sight is laid out"
    page.get_by_role("button", name="Pause").click()
    page.evaluate("document.dispatchEvent(new CustomEvent('log', { detail: '<div class=\"l\" data-s=\"app\" data-p=\"web.1\">held</div>' }))")
    expect(page.locator("#waiting")).to_contain_text("new lines are waiting")
    expect(page.locator("#lines")).not_to_contain_text("held")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#lines")).to_contain_text("held")
    page.get_by_role("button", name="Pause").click()
    page.evaluate(
        """() => {
            const line = '<div class="l" data-s="app" data-p="web.1">more than is held</div>';
            for (let n = 0; n < 51; n++) document.dispatchEvent(new CustomEvent("log", { detail: line.repeat(200) }));
        }"""
    )
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#lines [data-left]")).to_have_text("… 200 lines that came in the pause are left out here.")


def test_a_log_shows_its_end_on_a_phone_and_stays_there(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit, viewport=PHONE)
    page.goto("/dashboard/apps/storefront/logs")
    expect(page.locator("#count")).to_contain_text("301 lines")
    expect(page.locator(".l").last).to_be_in_viewport()
    for number in range(3):
        line = f'<div class="l" data-s="app" data-p="web.1">{"a long line " * 20}, number {number}</div>'
        page.evaluate("line => document.dispatchEvent(new CustomEvent('log', { detail: line }))", line)
        expect(page.locator(".l").last).to_contain_text(f"number {number}")
        expect(page.locator(".l").last).to_be_in_viewport()
    page.get_by_label("Search in the log").fill("served item 10")
    expect(page.locator("#count")).to_contain_text("5 of 304 lines")
    expect(page.locator(".l:visible").first).to_be_in_viewport()
    page.get_by_label("Process").select_option("web")
    expect(page.get_by_role("link", name="Download")).to_have_attribute("href", re.compile(r"\?dyno=web&source=&q=served\+item\+10$"))


def test_news_that_come_while_a_question_is_open_wait_for_the_answer(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/pipelines/project")
    expect(page.locator("body")).to_have_attribute("data-connected", "yes")
    with page.expect_response("**/pipelines/*"):
        page.evaluate("htmx.trigger(document.body, 'live:apps'); document.querySelector('[data-opens^=promote]').click()")
    dialog = page.get_by_role("dialog")
    expect(page.locator("#stages")).to_have_attribute("data-late", "live:apps")
    expect(dialog).to_contain_text("is released on live")
    with page.expect_response("**/pipelines/*"):
        dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#stages[data-late]")).to_have_count(0)


AWAY = """() => {
    window.asked = 0;
    Object.defineProperty(document, "hidden", { configurable: true, get: () => { window.asked++; return true; } });
}"""
BACK = """() => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => false });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_pipeline_that_changed_while_nobody_looked_is_loaded_when_somebody_does(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/pipelines/project")
    expect(page.locator("body")).to_have_attribute("data-connected", "yes")
    page.evaluate(AWAY)
    with db.transaction() as session:
        app = session.scalar(select(App).where(App.name == "staged"))
        assert app
        apps.set_maintenance(session, app.owner, app, True)
    wait_until(lambda: page.evaluate("window.asked > 0"), "the news, which the page sees in the background")
    expect(page.locator("#stages")).not_to_contain_text("Maintenance")
    page.evaluate(BACK)
    expect(page.locator("#stages")).to_contain_text("Maintenance")


def test_news_take_nothing_out_of_the_hands_and_follow_an_app_that_is_renamed(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/apps/storefront/resources")
    page.get_by_role("button", name="Restart web.2").focus()
    with page.expect_response("**/apps/storefront/resources"):
        page.evaluate("document.querySelector('#dynos').dataset.old = 'yes'; htmx.trigger(document.body, 'live:app')")
    expect(page.locator("#dynos[data-old]")).to_have_count(0)
    expect(page.get_by_role("button", name="Restart web.2")).to_be_focused()

    page.goto("/dashboard/apps/empty")
    expect(page.locator("body")).to_have_attribute("data-connected", "yes")
    pressed = """() => new Promise((told) => {
        const button = document.querySelector("[data-copy]");
        navigator.clipboard.writeText = () => Promise.reject(new Error("not allowed"));
        document.execCommand = () => false;
        new MutationObserver(() => told(button.textContent)).observe(button, { childList: true });
        button.click();
    })"""
    assert page.evaluate(pressed) == "Not copied"
    page.locator("#source-url").fill("https://example.com/project.git")
    page.locator("#main").focus()
    with db.transaction() as session:
        app = session.scalar(select(App).where(App.name == "empty"))
        assert app
        apps.set_maintenance(session, app.owner, app, True)
    expect(page.locator("#state")).to_contain_text("Maintenance")
    expect(page.locator("#first-push")).to_have_attribute("data-late", "live:app")
    expect(page.locator("#source-url")).to_have_value("https://example.com/project.git")
    with db.transaction() as session:
        app = session.scalar(select(App).where(App.name == "empty"))
        assert app
        apps.rename(session, app.owner, app, "no-longer-empty")
    page.get_by_role("status").get_by_role("link", name="Look again").click()
    expect(page.get_by_role("heading", name="no-longer-empty")).to_be_visible()
    assert page.url.endswith("/apps/no-longer-empty")
    expect(page.locator("body")).to_have_attribute("data-connected", "yes")
    with db.transaction() as session:
        app = session.scalar(select(App).where(App.name == "no-longer-empty"))
        assert app
        apps.destroy(session, app.owner, app)
    expect(page.get_by_role("heading", name="Nothing is here")).to_be_visible()


def test_an_open_page_asks_ever_less_often_while_it_fails_and_not_at_all_when_it_may_not(davit: Davit, chromium: Browser) -> None:
    def let(*permissions: str) -> None:
        with db.transaction() as session:
            app = session.scalar(select(App).where(App.name == "storefront"))
            assert app
            apps.add_collaborator(session, app.owner, app, "viewer@example.com", ["view", *permissions])

    let("operate")
    page = chromium.person(davit.url)
    sign_in(page, "viewer@example.com", scenery.PASSWORD)
    page.route("**/state", lambda route: route.fulfill(status=503))
    page.clock.install()
    page.goto("/dashboard/apps/storefront/run")
    expect(page.locator("body")).to_have_attribute("data-connected", "yes")
    page.clock.pause_at(time.time() + 3600)
    page.evaluate("window.failed = 0; document.addEventListener('htmx:responseError', () => { window.failed++; })")
    page.evaluate("htmx.trigger(document.body, 'live:app')")

    def failed(count: int) -> None:
        wait_until(lambda: page.evaluate("window.failed") == count, f"{count} answers that failed")

    failed(1)
    page.clock.run_for(3000)
    failed(2)
    page.clock.run_for(5000)
    page.evaluate("fetch('/dashboard/apps/storefront/state')")  # what was asked before it has been answered, too
    assert page.evaluate("window.failed") == 2
    page.clock.run_for(1000)
    failed(3)
    page.clock.resume()
    let()
    expect(page.get_by_role("main")).to_contain_text("operate")
    expect(page.get_by_label("Command")).to_have_count(0)


def test_buildpacks_are_ordered_by_buttons_and_by_dragging(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/apps/storefront/settings")
    for name in ("heroku/python", "heroku/nodejs", "heroku/static"):
        page.get_by_label("Add a buildpack").fill(name)
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator("#buildpacks")).to_contain_text(name)
    names = page.locator("#buildpacks li .grow")
    page.get_by_role("button", name="Move heroku/static up").click()
    expect(names).to_have_text(["heroku/python", "heroku/static", "heroku/nodejs"])
    page.locator("#buildpacks li").nth(2).drag_to(page.locator("#buildpacks li").nth(0))
    expect(names).to_have_text(["heroku/nodejs", "heroku/python", "heroku/static"])


def test_who_mistypes_what_destroys_is_told_so(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/apps/storefront/settings")
    page.get_by_label("Type storefront to confirm").fill("storefrnt")
    page.keyboard.press("Enter")
    refusal = page.locator("#at-destroy").get_by_role("alert")
    expect(refusal).to_have_text("To destroy storefront, type its name.")
    expect(refusal).to_be_focused()
    expect(refusal).to_be_in_viewport()


def test_a_terminal_opens_inside_a_running_dyno(davit: Davit, chromium: Browser) -> None:
    page = _ann(chromium, davit)
    page.goto("/dashboard/apps/storefront/resources")
    page.get_by_role("link", name="Terminal in web.2").click()
    expect(page.get_by_label("Where")).to_have_value("web.2")
    expect(page.get_by_label("Size")).to_be_disabled()
    with db.snapshot() as session:
        id = session.scalar(select(Dyno.id).join(App, App.id == Dyno.app_id).where(App.name == "storefront", Dyno.name == "web.2"))
    page.get_by_label("Command").fill("sh")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#terminal-state")).to_contain_text("Connected to sh in web.2")
    expect(page.locator(".xterm-helper-textarea")).to_be_focused()
    assert not violations(page)
    page.keyboard.press("Shift+Tab")
    expect(page.locator(".xterm-helper-textarea")).not_to_be_focused()
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type("echo inside=$INSIDE; exit 3\n")
    expect(page.locator("#terminal-state")).to_contain_text("sh in web.2 ended with status 3")
    expect(page.locator(".xterm-accessibility-tree")).to_contain_text(f"inside={id}")
    with db.transaction() as session:
        session.delete(session.get(Dyno, id))
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#trouble")).to_contain_text("Couldn't find that process (web.2)")
