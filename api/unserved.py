"""Endpoints of the Platform API that this version does not serve: they answer 501 rather than 404."""

from __future__ import annotations

import re

_WORDS = (
    "account|actions|addon-attachments|addon-services|addons|app-setups|app-transfers|apps|buildpacks|credits|dyno-sizes|"
    "enterprise-accounts|filters|invoices|keys|oauth|organizations|password-resets|permanent-domains|pipeline-builds|"
    "pipeline-couplings|pipeline-deployments|pipeline-promotions|pipeline-releases|pipeline-transfers|pipelines|plans|"
    "regions|review-apps|saml|schema|sources|spaces|stacks|teams|telemetry-drains|test-runs|test-nodes|users|vpcs"
)
_OF_APP = (
    "acm|addon-attachments|addons|allowed-addon-services|archive|available-dyno-sizes|available-stacks|build-cache|builds|"
    "buildpack-installations|collaborators|config-vars|domains|dynos|features|formation|formations|identity-provider|"
    "log-drains|log-sessions|oci-images|permissions|pipeline-couplings|pre-authorizations|process-tier|releases|review-app|"
    "slugs|sni-endpoints|sources|ssl-endpoints|telemetry-drains|transfers|vpn-connections|webhook-deliveries|"
    "webhook-events|webhooks"
)
_KNOWN = re.compile(rf"/apps/[^/]+/(?:{_OF_APP})(?:/.*)?|/(?!apps/)(?:{_WORDS})(?:/.*)?", re.DOTALL)


def is_known(path: str) -> bool:
    """Whether the Platform API has something at ``path``."""
    return _KNOWN.fullmatch(path) is not None
