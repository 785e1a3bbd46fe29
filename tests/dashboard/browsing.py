"""Chromium as tests use it: the distribution's, headless, with a fresh profile and no business of its own on the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import BrowserContext, Page, sync_playwright

AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 60_000
"""Milliseconds that anything on a page may take: the machine may be busy."""


@dataclass
class Browser:
    """A running Chromium."""

    chromium: Chromium

    def person(self, base: str, **options: Any) -> Page:
        """A page of somebody with a profile of their own; ``page.goto("/dashboard/")`` is below ``base``."""
        context: BrowserContext = self.chromium.new_context(base_url=base, viewport=options.pop("viewport", SIZE), **options)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        return page


SIZE: Any = {"width": 1200, "height": 800}


@contextmanager
def launched() -> Iterator[Browser]:
    """Start and end it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS), timeout=PATIENCE)
        try:
            yield Browser(chromium)
        finally:
            chromium.close()


@lru_cache(maxsize=1)
def _axe() -> str:
    return AXE.read_text()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page, one sentence for each element; run beside the page's policy, by the debugger."""
    debugger = page.context.new_cdp_session(page)
    try:
        debugger.send("Runtime.evaluate", {"expression": _axe()})
        wanted = "axe.run().then(found => JSON.stringify(found.violations))"
        answer = debugger.send("Runtime.evaluate", {"expression": wanted, "awaitPromise": True})
    finally:
        debugger.detach()
    found = json.loads(answer["result"]["value"])
    return [f"{rule['id']}: {node['html'][:200]} ({node['failureSummary'][:200]})" for rule in found for node in rule["nodes"]]


def sign_in(page: Page, email: str, password: str) -> None:
    """Sign in as a person would."""
    page.goto("/dashboard/sign-in")
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/dashboard/")
