"""The pages, one module for each part of the dashboard."""

from __future__ import annotations

from dashboard.views import (
    account,
    admin,
    apps,
    deploy,
    events,
    logs,
    metrics,
    overview,
    pipelines,
    resources,
    run,
    settings,
    signing_in,
)

PARTS = (
    signing_in.pages, account.pages, apps.pages, pipelines.pages, overview.pages, deploy.pages, resources.pages,
    metrics.pages, logs.pages,
    run.pages, settings.pages, admin.pages, events.pages,
)  # fmt: skip
"""Everything that is served."""
