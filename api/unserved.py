"""Endpoints of the Platform API that this version does not serve: they answer 501 rather than 404 or 405."""

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


def is_known(method: str, path: str) -> bool:
    """Whether the Platform API can be asked so."""
    return any(method in methods and shape.fullmatch(path) for methods, shape in _PATHS)
