"""An app's first page: where it is, what it does, what happened."""

from __future__ import annotations

from flask import Response

from dashboard import frame
from dashboard.routing import Pages, Visit
from dashboard.views.apps import addresses
from dashboard.views.metrics import in_short
from state import activity, domains, formation, glance

pages = Pages("overview")

MOST = 200
"""Of what happened, on the page that has more than the overview."""


@pages.on("GET", "/apps/<app>", does="GET /apps/<app>")
def show(visit: Visit) -> Response:
    """The overview."""
    seen = glance.one(visit.session, visit.app)
    return frame.page(
        visit, "Overview", "overview.html", glance=seen, items=activity.of(visit.session, visit.app, 15),
        rows=formation.all_of(visit.session, visit.app), dynos=formation.dynos(visit.session, visit.app),
        names=domains.all_of(visit.session, visit.app), figures=in_short(visit), **addresses(visit.app.name),
    )  # fmt: skip


@pages.on("GET", "/apps/<app>/state", does="GET /apps/<app>")
def state(visit: Visit) -> Response:
    """The badge that says what the app is doing; pages that show it load it anew when something changed."""
    return visit.page("state.html", glance=glance.one(visit.session, visit.app))


@pages.on("GET", "/apps/<app>/activity", does="GET /apps/<app>/activity")
def history(visit: Visit) -> Response:
    """More of what happened."""
    return frame.page(visit, "Overview", "activity.html", items=activity.of(visit.session, visit.app, MOST), most=MOST)
