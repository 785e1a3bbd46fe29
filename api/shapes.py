"""What is answered: the properties of each resource and their types, as ``GET /schema`` publishes them (JSON Schema, draft 04).

An endpoint says which of these it gives. They are exact: every property is always there, and no other is. In the order of
:mod:`api.serialize`, which writes them; the tests of the API hold each answer against its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": ["string"]}
ID: Json = {"type": ["string"], "format": "uuid"}
AT: Json = {"type": ["string"], "format": "date-time"}
EMAIL: Json = {"type": ["string"], "format": "email"}
URL: Json = {"type": ["string"], "format": "uri"}
FLAG: Json = {"type": ["boolean"]}
WHOLE: Json = {"type": ["integer"]}
NUMBER: Json = {"type": ["number"]}
NULL: Json = {"type": ["null"]}
_APP_NAME: Json = {"type": ["string"], "pattern": "^[a-z][a-z0-9-]{1,28}[a-z0-9]$"}


def maybe(what: Json) -> Json:
    """That, or null."""
    return {**what, "type": [*what["type"], "null"], **({"enum": [*what["enum"], None]} if "enum" in what else {})}


def among(*words: str) -> Json:
    """One of these words."""
    return {"type": ["string"], "enum": list(words)}


def things(what: Json) -> Json:
    """A list of these."""
    return {"type": ["array"], "items": what}


def thing(properties: Json | None = None, **named: Json) -> Json:
    """An object with exactly these properties."""
    known = {**(properties or {}), **named}
    made: Json = {"type": ["object"], "properties": known, "additionalProperties": False}
    return {**made, "required": sorted(known)} if known else made  # draft 04 takes no empty list


def by_name(what: Json) -> Json:
    """An object of whatever names, each with such a value."""
    return {"type": ["object"], "additionalProperties": what}


_NAMED = thing(id=ID, name=TEXT)
_APP = thing(id=ID, name=_APP_NAME)
_USER = thing(id=ID, email=EMAIL)
_TIMES = {"created_at": AT, "updated_at": AT}
_JUST_ID = thing(id=ID)


@dataclass(frozen=True)
class Shape:
    """What an endpoint gives.

    Attributes:
        name: the resource, by the public schema's name; none for what is no resource.
        schema: its schema.
        many: whether the endpoint gives a list of them.
        media_type: of the answer.
    """

    name: str
    schema: Json
    many: bool = False
    media_type: str = "application/json"

    def target(self) -> Json:
        """A link's targetSchema."""
        one = {"$ref": f"#/definitions/{self.name}"} if self.name else self.schema
        return things(one) if self.many else one


_known: dict[str, Shape] = {}


def _resource(name: str, properties: Json) -> Shape:
    _known[name] = Shape(name, thing(properties))
    return _known[name]


def many(shape: Shape) -> Shape:
    """A list of them."""
    return Shape(shape.name, shape.schema, many=True)


def plain(schema: Json) -> Shape:
    """An answer that is no resource."""
    return Shape("", schema)


def stream(media_type: str) -> Shape:
    """Something else than JSON."""
    return Shape("", TEXT, media_type=media_type)


def resources() -> Iterator[Shape]:
    """Every resource."""
    return iter(_known.values())


EMPTY = plain(thing())
NEVER = plain({"not": {}})
"""No success: the endpoint is there to say something, in an error."""
NONE_YET = plain({**things({}), "maxItems": 0})
"""A list that is empty, because there is nothing of the kind."""
PAGE = stream("text/html")
LINES = stream("text/plain")
TARBALL = stream("application/gzip")
UPGRADE = stream("application/octet-stream")
"""Not HTTP any more: the connection becomes something else."""

ACCOUNT = _resource("account", {
    "allow_tracking": FLAG, "beta": FLAG, "country_of_residence": maybe(TEXT), "created_at": AT,
    "default_organization": NULL, "default_team": NULL, "delinquent_at": NULL, "email": EMAIL, "federated": FLAG, "id": ID,
    "identity_provider": NULL, "last_login": maybe(AT), "name": maybe(TEXT), "sms_number": NULL, "suspended_at": NULL,
    "two_factor_authentication": FLAG, "updated_at": AT, "verified": FLAG,
})  # fmt: skip
ACCOUNT_MADE = plain(thing({**ACCOUNT.schema["properties"], "access_token": thing(id=ID, token=TEXT, expires_in=NULL)}))
APP = _resource("app", {
    "acm": FLAG, "archived_at": maybe(AT), "asleep": FLAG, "build_stack": _NAMED, "buildpack_provided_description": maybe(TEXT),
    "create_status": among("complete"), "created_at": AT, "generation": _NAMED, "git_url": URL, "id": ID,
    "internal_routing": FLAG, "joined": FLAG, "locked": FLAG, "maintenance": FLAG, "name": _APP_NAME, "organization": NULL,
    "owner": _USER, "region": _NAMED, "released_at": maybe(AT), "repo_size": maybe(WHOLE), "sleep": maybe(TEXT),
    "sleeps": maybe(TEXT), "slug_size": maybe(WHOLE), "space": NULL, "stack": _NAMED, "team": NULL, "updated_at": AT,
    "web_url": URL,
})  # fmt: skip
_STATUS = among("failed", "pending", "succeeded")
_BUILDPACK = thing(name=TEXT, url=TEXT)
BUILD = _resource("build", {
    "app": _JUST_ID, "buildpacks": maybe(things(_BUILDPACK)), "created_at": AT, "failure": maybe(TEXT), "generation": TEXT,
    "id": ID, "output_stream_url": URL, "phase": maybe(TEXT), "release": maybe(_JUST_ID), "slug": maybe(_JUST_ID),
    "source_blob": thing(checksum=maybe(TEXT), url=TEXT, version=maybe(TEXT), version_description=NULL), "stack": TEXT,
    "status": _STATUS, "updated_at": AT, "user": _USER,
})  # fmt: skip
BUILDPACK_INSTALLATION = _resource("buildpack-installation", {"ordinal": WHOLE, "buildpack": _BUILDPACK})
COLLABORATOR = _resource("collaborator", {
    "app": _APP, "created_at": AT, "id": ID, "permissions": things(thing(name=TEXT, description=TEXT)),
    "role": among("owner", "collaborator"), "updated_at": AT, "user": thing(id=ID, email=EMAIL, federated=FLAG),
})  # fmt: skip
DOMAIN = _resource("domain", {
    "acm_status": NULL, "acm_status_reason": NULL, "app": _APP, "cname": maybe(TEXT), "created_at": AT, "hostname": TEXT,
    "id": ID, "kind": among("heroku", "custom"), "sni_endpoint": maybe(_NAMED), "status": TEXT, "updated_at": AT,
})  # fmt: skip
DYNO = _resource("dyno", {
    "app": _APP, "attach_url": maybe(TEXT), "command": TEXT, "created_at": AT, "exit_status": maybe(WHOLE), "id": ID,
    "isolation": TEXT, "name": TEXT, "release": thing(id=ID, version=WHOLE), "size": TEXT,
    "state": among("crashed", "down", "idle", "starting", "up"), "type": TEXT, "updated_at": AT,
})  # fmt: skip
DYNO_SIZE = _resource("dyno-size", {
    "architecture": TEXT, "compute": WHOLE, "cost": NULL, "dedicated": FLAG, "generation": _NAMED, "id": ID, "memory": NUMBER,
    "name": TEXT, "precise_dyno_units": NUMBER, "private_space_only": FLAG,
})  # fmt: skip
FORMATION = _resource("formation", {
    "app": _APP, "command": TEXT, "created_at": AT, "dyno_size": _NAMED, "failure": maybe(TEXT), "id": ID, "isolation": TEXT,
    "quantity": WHOLE, "size": TEXT, "type": TEXT, "updated_at": AT,
})  # fmt: skip
KEY = _resource("key", {
    **_TIMES, "comment": maybe(TEXT), "email": EMAIL, "fingerprint": TEXT, "id": ID, "public_key": TEXT,
})  # fmt: skip
_TOKEN = thing(expires_in=maybe(WHOLE), id=ID, token=TEXT)
_REFRESH = thing(expires_in=NULL, id=ID, token=TEXT)
OAUTH_AUTHORIZATION = _resource("oauth-authorization", {
    **_TIMES, "access_token": maybe(_TOKEN), "client": maybe(thing(id=ID, name=TEXT, redirect_uri=TEXT)), "description": TEXT,
    "grant": maybe(thing(code=TEXT, expires_in=WHOLE, id=ID)), "id": ID, "refresh_token": maybe(_REFRESH),
    "scope": things(TEXT), "session": NULL, "user": thing(id=ID, email=EMAIL, full_name=maybe(TEXT)),
})  # fmt: skip
OAUTH_CLIENT = _resource("oauth-client", {
    **_TIMES, "id": ID, "ignores_delinquent": NULL, "name": TEXT, "redirect_uri": TEXT, "secret": TEXT,
})  # fmt: skip
OAUTH_TOKEN = _resource("oauth-token", {
    **_TIMES, "access_token": _TOKEN, "authorization": _JUST_ID, "client": NULL, "grant": NULL, "id": ID,
    "refresh_token": _REFRESH, "session": NULL, "user": _JUST_ID,
})  # fmt: skip
OAUTH_SESSION = _resource("oauth-session", {**_TIMES, "description": TEXT, "expires_in": WHOLE, "host": TEXT, "id": ID})
RELEASE = _resource("release", {
    "addon_plan_names": things(TEXT), "app": _APP, "artifacts": things(thing(type=TEXT, id=ID)), "created_at": AT,
    "current": FLAG, "description": TEXT, "eligible_for_rollback": FLAG, "failure": maybe(TEXT), "id": ID,
    "output_stream_url": maybe(URL), "slug": maybe(_JUST_ID), "status": _STATUS, "updated_at": AT, "user": _USER,
    "version": WHOLE,
})  # fmt: skip
SLUG = _resource("slug", {
    "blob": thing(method=TEXT, url=TEXT), "buildpack_provided_description": maybe(TEXT), "checksum": maybe(TEXT),
    "commit": maybe(TEXT), "commit_description": maybe(TEXT), "created_at": AT, "deleted_at": maybe(AT), "id": ID,
    "process_types": by_name(TEXT), "size": maybe(WHOLE), "stack": _NAMED, "updated_at": AT,
})  # fmt: skip
_FEATURE = {
    **_TIMES, "description": TEXT, "display_name": TEXT, "doc_url": TEXT, "enabled": FLAG, "feedback_email": TEXT, "id": ID,
    "name": TEXT, "state": TEXT,
}  # fmt: skip
APP_FEATURE = _resource("app-feature", _FEATURE)
ACCOUNT_FEATURE = _resource("account-feature", _FEATURE)
APP_TRANSFER = _resource("app-transfer", {
    **_TIMES, "app": _APP, "id": ID, "owner": _USER, "recipient": _USER, "state": among("pending", "accepted", "declined"),
})  # fmt: skip
_OWNER = thing(id=ID, type=among("user"))
PIPELINE = _resource("pipeline", {**_TIMES, "generation": _NAMED, "id": ID, "name": TEXT, "owner": _OWNER})
PIPELINE_COUPLING = _resource("pipeline-coupling", {
    **_TIMES, "app": _JUST_ID, "id": ID, "pipeline": _NAMED,
    "stage": among("test", "review", "development", "staging", "production"),
})  # fmt: skip
PIPELINE_PROMOTION = _resource("pipeline-promotion", {
    **_TIMES, "id": ID, "pipeline": _JUST_ID, "source": thing(app=_JUST_ID, release=_JUST_ID),
    "status": among("pending", "completed"),
})  # fmt: skip
PIPELINE_PROMOTION_TARGET = _resource("pipeline-promotion-target", {
    "app": _JUST_ID, "error_message": maybe(TEXT), "id": ID, "pipeline_promotion": _JUST_ID, "release": maybe(_JUST_ID),
    "status": _STATUS,
})  # fmt: skip
PIPELINE_STACK = _resource("pipeline-stack", {"stack": _NAMED})
PIPELINE_TRANSFER = _resource("pipeline-transfer", {"new_owner": _OWNER, "pipeline": _JUST_ID, "previous_owner": _OWNER})
APP_WEBHOOK = _resource("app-webhook", {
    **_TIMES, "id": ID, "include": things(TEXT), "level": among("notify", "sync"), "url": TEXT,
})  # fmt: skip
_ATTEMPT = thing(
    code=maybe(WHOLE), created_at=AT, error_class=maybe(TEXT), id=ID, status=among("scheduled", "succeeded", "failed"),
    updated_at=AT,
)  # fmt: skip
APP_WEBHOOK_DELIVERY = _resource("app-webhook-delivery", {
    **_TIMES, "event": thing(id=ID, include=TEXT), "id": ID, "last_attempt": maybe(_ATTEMPT), "next_attempt_at": maybe(AT),
    "num_attempts": WHOLE, "status": among("pending", "scheduled", "retrying", "failed", "succeeded"),
    "webhook": thing(id=ID, level=TEXT),
})  # fmt: skip
APP_WEBHOOK_EVENT = _resource("app-webhook-event", {
    **_TIMES, "id": ID, "include": TEXT, "payload": {"type": ["object"]},
})  # fmt: skip
APP_SETUP = _resource("app-setup", {
    **_TIMES, "app": _APP, "build": maybe(thing(id=ID, output_stream_url=maybe(URL), status=_STATUS)),
    "failure_message": maybe(TEXT), "id": ID, "manifest_errors": things(TEXT),
    "postdeploy": maybe(thing(exit_code=maybe(WHOLE), output=TEXT)), "resolved_success_url": maybe(TEXT), "status": _STATUS,
})  # fmt: skip
REGION = _resource("region", {
    **_TIMES, "country": TEXT, "description": TEXT, "id": ID, "locale": TEXT, "name": TEXT, "private_capable": FLAG,
    "provider": thing(name=TEXT, region=TEXT),
})  # fmt: skip
STACK = _resource("stack", {**_TIMES, "default": FLAG, "id": ID, "name": TEXT, "state": TEXT})
LOG_SESSION = _resource("log-session", {**_TIMES, "id": ID, "logplex_url": URL})
LOG_DRAIN = _resource("log-drain", {**_TIMES, "addon": NULL, "app": _APP, "id": ID, "token": TEXT, "url": TEXT})
SNI_ENDPOINT = _resource("sni-endpoint", {
    **_TIMES, "app": _APP, "certificate_chain": TEXT, "display_name": NULL, "domains": things(ID), "id": ID, "name": TEXT,
    "ssl_cert": thing({
        "acm": FLAG, "ca_signed?": FLAG, "cert_domains": things(TEXT), "expires_at": AT, "id": ID, "issuer": TEXT,
        "self_signed?": FLAG, "starts_at": AT, "subject": TEXT,
    }),
})  # fmt: skip
CONFIG_VAR = Shape("config-var", by_name(TEXT))
_known["config-var"] = CONFIG_VAR
RATE_LIMIT = _resource("rate-limit", {"remaining": WHOLE})
SOURCE = _resource("source", {"source_blob": thing(get_url=URL, put_url=URL)})
PASSWORD_RESET = _resource("password-reset", {"created_at": AT, "user": _USER})
