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

PAGE, PIPELINES = 50, 20
"""Apps and pipelines on a page."""


@pages.on("GET", "/", does="GET /apps")
def index(visit: Visit) -> Response:
    """Every app that the visitor may see, with what each is doing."""
    text = request.args.get("q", "").strip()[:30]
    number = request.args.get("page", "1")
    page = max(1, int(number)) if number.isascii() and number.isdigit() and len(number) < 6 else 1
    found, count = glance.search(
        visit.session, visit.account, text, everything=True, alone=not text, offset=(page - 1) * PAGE, most=PAGE
    )
    every = pipelines.visible(visit.session, visit.account) if not text else []
    shown = every[(page - 1) * PIPELINES : page * PIPELINES]
    coupled = pipelines.visible_couplings(visit.session, visit.account, shown) if shown else []
    seen = {row.app.id: row for row in glance.of(visit.session, [*found, *(row.app for row in coupled)])}
    glances = [seen[app.id] for app in found]
    return visit.page(
        "apps.html", glances=glances, alone=[("", one) for one in glances], count=count, q=text, page=page,
        offset=(page - 1) * PAGE, more=page * PAGE < count or page * PIPELINES < len(every), offers=_offers(visit),
        groups=_groups(shown, coupled, seen), sparks=metrics.sparks(list(seen)),
        seen=watching.every(visit.session, [visit.account.id])[visit.account.id],
    )  # fmt: skip


def _groups(
    shown: Sequence[Pipeline], coupled: Sequence[PipelineCoupling], seen: Mapping[str, Glance]
) -> list[tuple[Pipeline, list[tuple[str, Glance]]]]:
    """Each pipeline with its apps by stage."""
    rows: dict[str, list[tuple[str, Glance]]] = {pipeline.id: [] for pipeline in shown}
    for row in sorted(coupled, key=lambda row: pipelines.STAGES.index(row.stage)):
        rows[row.pipeline_id].append((row.stage, seen[row.app_id]))
    return [(pipeline, rows[pipeline.id]) for pipeline in shown]


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
