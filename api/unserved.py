"""What clients may ask of Heroku and this version does not serve: 501 and why, rather than 404 or 405."""

from __future__ import annotations

import re

_ENDPOINTS = """
DELETE: /account /teams/*/allowed-addon-services/* /teams/*/invitations/* /teams/*/members/* /users/*
DELETE GET: /addon-attachments/* /review-apps/* /spaces/*/peerings/*
DELETE GET PATCH: /addons/*/webhooks/* /apps/*/addons/* /spaces/* /spaces/*/vpn-connections/* /teams/*
DELETE GET PATCH: /teams/apps/*/collaborators/* /telemetry-drains/*
DELETE GET PATCH POST: /pipelines/*/review-app-config
DELETE PATCH: /enterprise-accounts/*/members/* /teams/*/identity-providers/*
GET: /account/credits/* /account/delinquency /account/invoices /account/invoices/* /addon-region-capabilities
GET: /addon-services /addon-services/* /addon-services/*/plans /addon-services/*/plans/*
GET: /addon-services/*/region-capabilities /addons/* /addons/*/addon-attachments /addons/*/log-drains
GET: /addons/*/webhook-deliveries /addons/*/webhook-deliveries/* /addons/*/webhook-events /addons/*/webhook-events/*
GET: /apps/*/addon-attachments/* /apps/*/oci-images/* /apps/*/review-app /apps/*/telemetry-drains /enterprise-accounts
GET: /enterprise-accounts/*/archives /enterprise-accounts/*/archives/*/* /enterprise-accounts/*/events
GET: /enterprise-accounts/*/usage/daily /enterprise-accounts/*/usage/monthly /generations /generations/*
GET: /pipelines/*/latest-builds /pipelines/*/latest-deployments /pipelines/*/latest-releases /pipelines/*/review-apps
GET: /pipelines/*/test-runs /pipelines/*/test-runs/* /plans/* /regions/*/addon-region-capabilities
GET: /spaces/*/inbound-rulesets /spaces/*/inbound-rulesets/* /spaces/*/members /spaces/*/nat /spaces/*/peering-info
GET: /spaces/*/peerings /spaces/*/telemetry-drains /spaces/*/topology /teams/*/addons /teams/*/apps
GET: /teams/*/available-generations /teams/*/delinquency /teams/*/features /teams/*/features/* /teams/*/invoices
GET: /teams/*/invoices/* /teams/*/members/*/apps /teams/*/permissions /teams/*/pipeline-couplings /teams/*/spaces
GET: /teams/*/usage/daily /teams/*/usage/monthly /teams/invitations/* /teams/permissions /test-runs/*/test-cases
GET: /test-runs/*/test-nodes /users/*/sms-number
GET PATCH: /addons/*/config /enterprise-accounts/* /pipelines/*/stage/*/config-vars /spaces/*/members/*
GET PATCH: /teams/*/preferences /teams/apps/* /test-runs/* /users/*/preferences
GET PATCH POST PUT: /teams/*/members
GET POST: /account/credits /addons/*/webhooks /apps/*/oci-images /enterprise-accounts/*/members
GET POST: /enterprise-accounts/*/teams /spaces/*/vpn-connections /teams/*/allowed-addon-services
GET POST: /teams/*/identity-providers /teams/apps/*/collaborators
GET PUT: /account/invoice-address /spaces/*/inbound-ruleset /teams/*/invitations
POST: /actions/addon-attachments/resolve /actions/addons/resolve /addon-attachments /addons/*/actions/deprovision
POST: /addons/*/actions/provision /apps/*/addons /review-apps /spaces /spaces/*/peerings/*/actions/accept
POST: /spaces/*/transfer /teams /teams/apps /teams/invitations/*/accept /telemetry-drains /test-runs
POST: /users/*/sms-number/actions/confirm /users/*/sms-number/actions/recover
PUT: /addons/*/log-drains/*
"""
"""Methods: paths, of the links of the public schema; a ``*`` is a name or an id."""
_PATHS = [
    (frozenset(methods.split()), re.compile(re.escape(path).replace(r"\*", "[^/]+")))
    for methods, _, paths in (line.partition(":") for line in _ENDPOINTS.strip().splitlines())
    for path in paths.split()
]


_BESIDE = [
    re.compile(shape)
    for shape in (
        "/(?:client/v11|postgres/v0|redis/v0|data)/.+", "/spaces/[^/]+/(?:dynos|hosts|log-drain|peerings)",
        "/(?:apps|teams)/[^/]+/usage", "/teams/[^/]+/apps/[^/]+/usage", "/pipelines/[^/]+/repo(?:/.+)?",
    )
]  # fmt: skip
"""Paths that the ``heroku`` command asks and the public schema does not have."""
_REASONS = [
    (re.compile(shape), reason)
    for shape, reason in (
        ("/(?:client/v11|postgres/v0|redis/v0|data)/|.*(?:addon|/plans\\b)|.*/usage$", "there are no add-ons yet"),
        ("/spaces|/teams/[^/]+/spaces", "there are no private spaces"),
        (".*telemetry-drains", "it sends logs on, to drains, and no telemetry"),
        (".*/(?:test-runs|stage)\\b", "it does not run tests yet"),
        (".*/review-app|/pipelines/[^/]+/repo", "there are no review apps yet"),
        ("/teams|/enterprise-accounts", "there are no teams; apps are shared with collaborators"),
        ("/apps/[^/]+/oci-images", "it takes no container images yet"),
    )
]
"""The beginning of a path: why it is not served; the first that fits."""


def refusal(method: str, path: str) -> str | None:
    """The sentence for who asks for what Heroku has and this version has not; None when Heroku has not got it either."""
    if any(method in methods and shape.fullmatch(path) for methods, shape in _PATHS):
        asked = "is part of the Platform API"
    elif any(shape.fullmatch(path) for shape in _BESIDE):
        asked = "is a question of the heroku command"
    else:
        return None
    reason = next((f": {reason}" for shape, reason in _REASONS if shape.match(path)), "")
    return f"{method} {path} {asked}, and this version of Davit does not serve it{reason}. GET /schema lists what it serves."
