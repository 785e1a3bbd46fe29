"""``python -m tests.dashboard.photos``: every page into docs/screenshots, in light, in dark and as a phone shows it.

For whoever changes a page to look at. WebP, because the whole set then takes little room in the repository.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.conftest import _stop, wait_until
from tests.dashboard import scenery
from tests.dashboard.browsing import launched
from tests.dashboard.rooms import NAMES, ONCE, STATES, Visitors

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "docs" / "screenshots"
QUALITY = 55
LONGEST = 6000
"""Pixels of a picture's height at the most: of all pages only the audit log's hundred rows are longer, on a phone."""
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 760}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 760}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


def take(page: Page, path: Path) -> None:
    """One picture of the whole page; of the window when a dialog is open in it."""
    asked = page.locator("dialog[open]").count()
    height = min(LONGEST, int(page.evaluate("asked => asked ? innerHeight : document.documentElement.scrollHeight", asked)))
    width = page.evaluate("document.documentElement.clientWidth")
    debugger = page.context.new_cdp_session(page)
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    wanted = {"format": "webp", "quality": QUALITY, "captureBeyondViewport": True, "clip": clip}
    path.write_bytes(base64.b64decode(debugger.send("Page.captureScreenshot", wanted)["data"]))
    debugger.detach()


def main() -> None:
    """Serve the scenery, look at it."""
    home = Path(tempfile.mkdtemp(prefix="dvf", dir="/tmp"))
    (home / "run").mkdir()
    redis_path = home / "run" / "redis.sock"
    os.environ.update(DAVIT_HOME=str(home), REDIS_URL=f"unix://{redis_path}")
    command = ["redis-server", "--port", "0", "--unixsocket", str(redis_path), "--save", "", "--dir", str(home)]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(redis_path.exists, "redis-server listening")
        _serve_and_take(home, f"unix://{redis_path}")
    finally:
        _stop(redis, signal.SIGTERM)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _beside(home: Path, ssh: str) -> Iterator[None]:
    """What the admin's page asks whether it is there. Only the door for git over SSH is the real one: a router or a worker would
    take the scenery in hand."""
    from state import notify
    from tests.api.conftest import Neighbour

    def work() -> None:
        while not over.wait(notify.WORKER_SECONDS / 3):
            notify.worker_is_here()

    over = threading.Event()
    notify.worker_is_here()
    worker = threading.Thread(target=work)
    worker.start()
    neighbours = [Neighbour(home / "run" / f"{name}.sock", {"ping": lambda call: None}) for name in ("router", "logs")]
    door = subprocess.Popen([sys.executable, "-m", "builder.ssh"], cwd=ROOT, env={**os.environ, "DAVIT_SSH": ssh})
    try:
        yield
    finally:
        _stop(door, signal.SIGTERM)
        for one in neighbours:
            one.close()
        over.set()
        worker.join()


def _serve_and_take(home: Path, redis_url: str) -> None:
    from state import db, vault
    from tests.cli.living import serving
    from tests.ports import free_port

    vault.ensure_keys()
    db.upgrade()
    scenery.fill(more=200)
    scenery.wire("storefront")
    wanted = sys.argv[1:] or [*NAMES, *STATES, *ONCE]
    PLACE.mkdir(exist_ok=True)
    ssh = f"127.0.0.1:{free_port()}"
    with _beside(home, ssh), serving(home, home, redis_url, DAVIT_SSH=ssh) as davit, launched() as browser:
        for look, options in LOOKS.items():
            visitors = Visitors(browser, davit.url, **options)
            for name in wanted:
                page = visitors.enter(name)
                page.wait_for_timeout(150)
                take(page, PLACE / f"{name}-{look}.webp")
                print(f"{name} {look}", flush=True)
            visitors.leave()


if __name__ == "__main__":
    main()
