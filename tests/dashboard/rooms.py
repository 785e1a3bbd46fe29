"""Every page, with the way to it in the scenery: what is checked and photographed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page
from sqlalchemy import select

from state import db, invitations, logins, signatures
from state.models import Account, App, Build, Domain
from tests.dashboard.browsing import Browser, sign_in
from tests.dashboard.scenery import LONG, PASSWORD

PAGES = {
    "sign-in": "/sign-in",
    "sign-in-token": "/sign-in?token",
    "apps": "/",
    "apps-none-found": "/?q=zebra",
    "new": "/new",
    "new-pipeline": "/pipelines/new",
    "pipeline": "/pipelines/project",
    "overview": "/apps/storefront",
    "overview-crashed": "/apps/crashing",
    "overview-empty": "/apps/empty",
    "overview-long": f"/apps/{LONG}",
    "activity": "/apps/storefront/activity",
    "deploy": "/apps/storefront/deploy",
    "deploy-empty": "/apps/empty/deploy",
    "builds": "/apps/storefront/builds",
    "releases": "/apps/storefront/releases",
    "build-failed": "/apps/failing/builds/BUILD",
    "build-under-way": "/apps/deploying/builds/BUILD",
    "release": "/apps/storefront/releases/v3",
    "resources": "/apps/storefront/resources",
    "resources-empty": "/apps/empty/resources",
    "metrics": "/apps/storefront/metrics",
    "metrics-empty": "/apps/empty/metrics",
    "logs": "/apps/storefront/logs",
    "run": "/apps/storefront/run",
    "settings": "/apps/storefront/settings",
    "account": "/account",
    "admin": "/admin",
    "admin-people": "/admin/people",
    "admin-audit": "/admin/audit",
    "error": "/apps/nothing-here",
}


VIEWED = {
    "viewer-overview": "/apps/storefront",
    "viewer-deploy": "/apps/storefront/deploy",
    "viewer-resources": "/apps/storefront/resources",
    "viewer-settings": "/apps/storefront/settings",
}
"""Pages as somebody sees them who may only look."""


def address(path: str) -> str:
    """The path with the id of the app's build in it."""
    if "BUILD" not in path:
        return path
    with db.snapshot() as session:
        id = session.scalar(select(Build.id).join(App, App.id == Build.app_id).where(App.name == path.split("/")[2]))
    return path.replace("BUILD", str(id))


def _newcomer() -> Account:
    with db.snapshot() as session:
        account = session.scalar(select(Account).where(Account.email == "newcomer@example.com"))
    assert account
    return account


def _set_up(page: Page) -> None:
    page.goto(f"/dashboard/set-up/{signatures.sign('set-up', {'account': _newcomer().id}, 3600)}")


def _invitation(page: Page) -> None:
    page.goto(f"/dashboard/invitation/{invitations.issue(_newcomer())}")


def _second_factor(page: Page) -> None:
    page.goto("/dashboard/sign-in")
    page.get_by_label("E-mail address").fill("careful@example.com")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Two-factor code").wait_for()


def _login_request(page: Page) -> None:
    page.goto(f"/dashboard/login/{logins.ask('heroku-cli login from a-laptop', '192.0.2.7').browser}")


def _enrolment(page: Page) -> None:
    page.goto("/dashboard/account")
    page.locator("#confirm-password").fill(PASSWORD)
    page.get_by_role("button", name="Set up").click()
    page.get_by_label("QR code").wait_for()


def _revealed(page: Page) -> None:
    page.goto("/dashboard/apps/storefront/settings")
    page.get_by_role("button", name="Reveal values").click()
    page.get_by_label("Value of SECRET_KEY").wait_for()


WAYS: dict[str, Callable[[Page], None]] = {
    "set-up": _set_up, "invitation": _invitation, "sign-in-code": _second_factor, "login-request": _login_request,
    "account-two-factor": _enrolment, "settings-revealed": _revealed,
}  # fmt: skip
"""Pages that no address alone leads to."""


def _domain(page: Page) -> None:
    with db.snapshot() as session:
        id = session.scalar(select(Domain.id).where(Domain.hostname == "www.example.com"))
    page.goto(f"/dashboard/apps/storefront/settings/domains/{id}")


def _token(page: Page) -> None:
    page.goto("/dashboard/account")
    page.get_by_label("What it is for").fill("a laptop")
    page.get_by_role("button", name="Make token").click()
    page.get_by_label("New token").wait_for()


def _invited(page: Page) -> None:
    page.goto("/dashboard/admin/people")
    page.get_by_role("button", name="newcomer@example.com").first.click()
    page.get_by_label("Invitation").wait_for()


def _webhook_secret(page: Page) -> None:
    page.goto("/dashboard/apps/maintained/settings")
    page.locator("#hook").fill("https://203.0.113.9/hooks")
    page.get_by_role("button", name="Add webhook").click()
    page.get_by_label("Webhook secret").wait_for()


def _refused(page: Page) -> None:
    page.goto("/dashboard/new")
    page.locator("input[name=name]").evaluate("field => field.removeAttribute('pattern')")
    page.locator("input[name=name]").fill("Bad Name")
    page.get_by_role("button", name="Create app").click()
    page.get_by_role("alert").wait_for()


def _forbidden(page: Page) -> None:
    page.goto("/dashboard/apps/storefront/run")


ONCE: dict[str, Callable[[Page], None]] = {
    "domain": _domain, "account-token": _token, "admin-invited": _invited, "webhook-secret": _webhook_secret, "refused": _refused,
    "viewer-forbidden": _forbidden,
}  # fmt: skip
"""Pages that are seen once, or after a mistake."""


def _question(page: Page) -> None:
    page.goto("/dashboard/apps/storefront/resources")
    page.get_by_role("button", name="Restart all…").click()
    page.get_by_role("dialog").wait_for()


def _promotion(page: Page) -> None:
    page.goto("/dashboard/pipelines/project")
    page.get_by_role("button", name="Promote to production").click()
    page.get_by_role("dialog").wait_for()


def _mistyped(page: Page) -> None:
    page.goto("/dashboard/apps/storefront/settings")
    page.get_by_label("Type storefront to confirm").fill("storefrnt")
    page.get_by_role("button", name="Destroy storefront").click()
    page.get_by_role("alert").wait_for()


def _terminal(page: Page) -> None:
    page.goto("/dashboard/apps/storefront/run?dyno=web.2")
    page.get_by_label("Command").fill("sh")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Connected to sh in web.2").wait_for()
    page.keyboard.type("uname -s; echo $((40+2))\n")
    page.locator(".xterm-accessibility-tree").get_by_text("42", exact=True).wait_for()


def _menu(page: Page) -> None:
    page.goto("/dashboard/apps/storefront")
    page.locator("details.menu summary").click()


STATES: dict[str, Callable[[Page], None]] = {
    "dialog": _question, "dialog-promote": _promotion, "settings-refused": _mistyped, "run-terminal": _terminal, "menu": _menu,
}  # fmt: skip
"""Pages of above while something is open on them: photographed, and checked where tests open the same."""
NAMES = (*PAGES, *WAYS, *VIEWED)
_STRANGERS = ("sign", "set-up", "invitation")


class Visitors:
    """People in front of browsers that all look alike: nobody, the owner Ann, and one who may only look."""

    def __init__(self, chromium: Browser, base: str, **options: Any) -> None:
        self.stranger, self.ann, self.viewer = (chromium.person(base, **options) for _ in range(3))
        sign_in(self.ann, "ann@example.com", PASSWORD)
        sign_in(self.viewer, "viewer@example.com", PASSWORD)

    def enter(self, name: str) -> Page:
        """The page of this name, in the browser of who sees it."""
        page = self.stranger if name.startswith(_STRANGERS) else self.viewer if name.startswith("viewer-") else self.ann
        if way := {**WAYS, **ONCE, **STATES}.get(name):
            way(page)
        else:
            page.goto(f"/dashboard{address({**PAGES, **VIEWED}[name])}")
        return page

    def leave(self) -> None:
        """Close the browsers."""
        for page in (self.stranger, self.ann, self.viewer):
            page.context.close()
