"""Every page, with an address in the scenery: what is checked and photographed."""

from __future__ import annotations

from sqlalchemy import select

from state import db
from state.models import App, Build
from tests.dashboard.scenery import LONG

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


def address(path: str) -> str:
    """The path with the id of the app's build in it."""
    if "BUILD" not in path:
        return path
    with db.snapshot() as session:
        id = session.scalar(select(Build.id).join(App, App.id == Build.app_id).where(App.name == path.split("/")[2]))
    return path.replace("BUILD", str(id))
