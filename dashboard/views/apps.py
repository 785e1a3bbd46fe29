"""The list of apps, and a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flask import Response, request

from api import links
from dashboard import metrics, watching
from dashboard.routing import Pages, Visit
from foundation.settings import settings
from state import apps, glance, pipelines, transfers
from state.glance import Glance
from state.models import AppTransfer, Pipeline, PipelineCoupling

pages = Pages("apps")

PAGE = 50
"""Apps on a page."""


@pages.on("GET", "/", does="GET /apps")
def index(visit: Visit) -> Response:
    """Every app that the visitor may see, with what each is doing."""
    text = request.args.get("q", "").strip()[:30]
    number = request.args.get("page", "1")
    page = max(1, int(number)) if number.isascii() and number.isdigit() and len(number) < 6 else 1
    found, count = glance.search(
        visit.session, visit.account, text, everything=True, alone=not text, offset=(page - 1) * PAGE, most=PAGE
    )
    coupled = _coupled(visit) if page == 1 and not text else []
    seen = {row.app.id: row for row in glance.of(visit.session, [*found, *(row.app for row in coupled)])}
    return visit.page(
        "apps.html", glances=[seen[app.id] for app in found], count=count, q=text, page=page, offset=(page - 1) * PAGE,
        offers=_offers(visit), groups=_groups(visit, coupled, seen) if page == 1 and not text else [],
        sparks=metrics.sparks([app.id for app in found]), seen=watching.every(visit.session),
    )  # fmt: skip


def _coupled(visit: Visit) -> list[PipelineCoupling]:
    """The apps in pipelines that the visitor may see."""
    rows = pipelines.visible_couplings(visit.session, visit.account)
    allowed = apps.permissions_on(visit.session, visit.account, [row.app for row in rows])
    return [row for row in rows if allowed[row.app_id]]


def _groups(
    visit: Visit, coupled: Sequence[PipelineCoupling], seen: Mapping[str, Glance]
) -> list[tuple[Pipeline, list[tuple[str, Glance]]]]:
    """Every pipeline that the visitor may see, with its apps by stage."""
    return [
        (pipeline, [(stage, seen[row.app_id]) for stage in pipelines.STAGES for row in coupled
                    if row.pipeline_id == pipeline.id and row.stage == stage])
        for pipeline in pipelines.visible(visit.session, visit.account)
    ]  # fmt: skip


def _offers(visit: Visit) -> list[AppTransfer]:
    """Apps that the visitor is offered."""
    rows = transfers.all_of(visit.session, visit.account)
    return [row for row in rows if row.recipient_id == visit.account.id and row.state == "pending"]


@pages.on("POST", "/offers/<transfer>", does="PATCH /account/app-transfers/<transfer>", again=index)
def answer_offer(visit: Visit, transfer: str) -> Response:
    """Take an app that is offered, or decline."""
    row = transfers.find(visit.session, visit.account, transfer)
    name = row.app.name
    if visit.text("answer") != "accept":
        transfers.answer(visit.session, visit.account, row, "declined")
        return visit.done("/", f"You declined {name}.")
    transfers.answer(visit.session, visit.account, row, "accepted")
    return visit.done(f"/apps/{name}", f"{name} is yours now.")


@pages.on("GET", "/new", needs="account")
def new(visit: Visit) -> Response:
    """Ask for a name."""
    return visit.page("new_app.html", domain=settings().domain)


@pages.on("POST", "/new", does="POST /apps", again=new)
def create(visit: Visit) -> Response:
    """Make an app."""
    app = apps.create(visit.session, visit.account, visit.text("name") or None)
    return visit.done(f"/apps/{app.name}", f"{app.name} is there. Now push some code to it.")


def addresses(name: str) -> dict[str, str]:
    """Where git finds an app and where this Davit is, as the visitor reached it."""
    base = links.base_url()
    return {"git_url": f"{base}/{name}.git", "api_url": base}
