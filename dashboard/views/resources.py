"""Process types and how many dynos of each; restarts."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from flask import Response

from dashboard import frame
from dashboard.routing import Pages, Visit
from foundation import wire
from foundation.clock import now
from foundation.errors import DavitError
from foundation.settings import settings
from state import capacity, formation, isolations, releases, sizes, sleep
from state.models import Formation

pages = Pages("resources")

PATIENCE = 1.0
"""Seconds that the runtime has to tell for how long kernels have been up."""


@pages.on("GET", "/apps/<app>/resources", does="GET /apps/<app>/formation")
def show(visit: Visit) -> Response:
    """The scaler, and the dynos that there are."""
    dynos = formation.dynos(visit.session, visit.app)
    kernels: dict[str, datetime] = {}
    if any(dyno.isolation == isolations.OSV for dyno in dynos):
        kernels = visit.apart(partial(_kernels, visit.app.id))
        dynos = formation.dynos(visit.session, visit.app)
    base = releases.current(visit.session, visit.app.id)
    return frame.page(
        visit, "Resources", "resources.html", rows=formation.all_of(visit.session, visit.app),
        commands=base.process_types if base else {}, dynos=dynos, kernels=kernels, sizes=sizes.SIZES.values(),
        capacity=capacity.of(visit.session, visit.app.id), most=formation.MOST, isolations=isolations.ISOLATIONS,
        filled=lambda row, name: _filled(visit, row, name), allowed=settings().dynos_allow,
        patience=sleep.spoken(settings().sleep_after), sleeps=sleep.told(visit.session, visit.app, settings().sleep_after),
    )  # fmt: skip


def _kernels(app_id: str) -> dict[str, datetime]:
    """When the kernels of the app's dynos started, of those that tell; none where the runtime does not answer at once."""
    try:
        told = wire.call(settings().run / "runtime.sock", "stats", {"app_id": app_id}, timeout=PATIENCE).result["dynos"]
    except DavitError:
        return {}
    return {name: now() - timedelta(seconds=used["uptime"]) for name, used in told.items() if used["uptime"] is not None}


FIELDS = ("quantity", "size", "isolation")


def _filled(visit: Visit, row: Formation, name: str) -> str:
    """What a field of the scaler holds: what was typed into a form that was refused, unless somebody else changed it since."""
    present = str(getattr(row, name))
    typed, seen = visit.text(f"{name}.{row.type}", 40), visit.text(f"seen.{name}.{row.type}", 40)
    return typed if typed and seen == present else present


@pages.on("POST", "/apps/<app>/resources", does="PATCH /apps/<app>/formation", again=show)
def scale(visit: Visit) -> Response:
    """Change quantities and sizes, all or none."""
    types = dict.fromkeys(type for key in visit.form if (type := _type_of(key)))
    updates = [update for type in types if (update := _update(visit, type))]
    if updates:
        formation.scale(visit.session, visit.account, visit.app, updates)
    return visit.done(f"/apps/{visit.app.name}/resources", "Scaled." if updates else "Nothing has changed.")


def _type_of(key: str) -> str:
    field, _, type = key.partition(".")
    return type if field in FIELDS else ""


def _update(visit: Visit, type: str) -> dict[str, Any] | None:
    """What the visitor changed, with what the page said it was; None when that is nothing."""
    seen = {name: text for name in FIELDS if (text := visit.text(f"seen.{name}.{type}", 40))}
    typed = {name: text for name in FIELDS if (text := visit.text(f"{name}.{type}", 40))}
    wanted = {name: text for name, text in typed.items() if text != seen.get(name)}
    live = {"live": True} if "size" in wanted and visit.text("live", 10) else {}
    return {"type": type, "seen": seen, **wanted, **live} if wanted else None


@pages.on("POST", "/apps/<app>/sleep", does="PATCH /apps/<app>", again=show)
def set_sleep(visit: Visit) -> Response:
    """Whether it may be put to sleep when nobody asks it anything."""
    visit.need("operate")
    chosen, seen = visit.text("sleep", 10), visit.text("seen", 10)
    changed = chosen != seen and sleep.choose(visit.session, visit.account, visit.app, chosen, seen=seen or None)
    return visit.done(f"/apps/{visit.app.name}/resources", "Saved." if changed else "Nothing has changed.")


@pages.on("POST", "/apps/<app>/restart", does="DELETE /apps/<app>/dynos", again=show)
def restart(visit: Visit) -> Response:
    """Replace dynos: all, of one type, or one."""
    target = visit.text("target", 80) or None
    formation.restart(visit.session, visit.account, visit.app, target)
    what = f"{target} is" if target else "All dynos are"
    return visit.done(f"/apps/{visit.app.name}/resources", f"{what} being replaced.")
