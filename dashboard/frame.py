"""What all pages of one app have around them: its name, what it is doing, the tabs."""

from __future__ import annotations

from typing import Any

from flask import Response

from dashboard import watching
from dashboard.routing import Visit
from foundation.settings import settings
from state import glance

TABS = (
    ("Overview", "", "view"),
    ("Deploy", "/deploy", "view"),
    ("Resources", "/resources", "view"),
    ("Metrics", "/metrics", "view"),
    ("Logs", "/logs", "view"),
    ("Run", "/run", "operate"),
    ("Settings", "/settings", "view"),
)
"""Name, path below the app, and the permission without which a tab would show nothing."""


def page(visit: Visit, tab: str, template: str, **values: Any) -> Response:
    """A page of the app that the path names, under one of its tabs."""
    tabs = [(name, path) for name, path, permission in TABS if permission in visit.may]
    given = values.pop("glance", None)
    seen = watching.apps(visit.session, [visit.app.id])[visit.app.id]
    return visit.page(
        template, tab=tab, tabs=tabs, glance=given or glance.one(visit.session, visit.app), seen=seen,
        app_url=lambda app: settings().app_url(app.name), upload_limit=settings().push_limit << 20, **values,
    )  # fmt: skip
