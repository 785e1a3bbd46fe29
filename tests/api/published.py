"""What ``GET /schema`` publishes, as the tests of the API use it: each answer is held against it, and requests are drawn from it.

``platform-schema.json`` holds the definitions of the resources that are served, resolved, from the MIT-licensed schema of
the Platform API (its patterns for Heroku's own host names left out, and the list of Amazon's regions).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, MapAdapter, RequestRedirect, Rule

from api import schema
from api.resources.explanations import explained
from api.routing import Operation
from api.web import VERSION, operations

Json = dict[str, Any]

PLATFORM: dict[str, Json] = json.loads((Path(__file__).parent / "platform-schema.json").read_text())
_FORMATS = jsonschema.FormatChecker(["uuid"])
_NULL_HERE = {("oauth-token", "grant"), ("oauth-token", "session")}
"""Properties that the public schema does not call nullable and that Heroku, too, answers with null."""


@lru_cache(maxsize=1)
def document() -> Json:
    """What is served at /schema."""
    return schema.document(operations(), VERSION)


@lru_cache(maxsize=1)
def links() -> dict[tuple[str, str], Json]:
    """Every link by method and href."""
    return {(link["method"], link["href"]): link for one in document()["definitions"].values() for link in one["links"]}


def link_of(operation: Operation) -> Json:
    """The link that describes an endpoint."""
    return links()[operation.method, schema.href(operation.path)]


@lru_cache(maxsize=256)
def _validator(method: str, href: str) -> jsonschema.Draft4Validator:
    target = links()[method, href]["targetSchema"]
    return jsonschema.Draft4Validator({**target, "definitions": document()["definitions"]}, format_checker=_FORMATS)


@lru_cache(maxsize=1)
def _routes() -> MapAdapter:
    rules = [Rule(one.path, methods=[one.method], endpoint=number) for number, one in enumerate(operations())]
    return Map(rules, strict_slashes=False).bind("localhost")


def operation_at(method: str, path: str) -> Operation | None:
    """The endpoint that answers; None when there is none."""
    try:
        number, _ = _routes().match(path, method)
    except (HTTPException, RequestRedirect):
        return None
    return operations()[number]


@dataclass(frozen=True)
class Seen:
    """An answer as a client got it; ``body`` as it came, compressed perhaps, and None where it is not to be read."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def mimetype(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0]

    @property
    def value(self) -> Any:
        """The JSON in it."""
        assert self.body is not None
        return json.loads(gzip.decompress(self.body) if self.headers.get("Content-Encoding") == "gzip" else self.body)


def assert_as_published(seen: Seen) -> None:
    """An answer that is a success is what its endpoint publishes: every property, no other, each of its type; and what the
    public schema says of that resource. One that is an error has the error form.
    """
    operation = operation_at(seen.method, seen.path)
    if seen.status >= 400:
        assert_error(seen, operation)
    if not 200 <= seen.status < 300:
        return
    assert operation is not None, seen
    gives = operation.gives
    events = gives.media_type == "text/plain" and seen.mimetype == "text/event-stream"
    assert seen.mimetype == gives.media_type or events, (operation, seen.mimetype)
    if seen.body is None or seen.method == "HEAD" or gives.media_type != "application/json":
        return
    problems = [error.message for error in _validator(operation.method, schema.href(operation.path)).iter_errors(seen.value)]
    assert not problems, (operation.method, operation.path, problems)
    for one in seen.value if gives.many else [seen.value]:
        assert_shaped(one, gives.name)


def assert_error(seen: Seen, operation: Operation | None) -> None:
    """``{"id", "message", "url"}``, and ``app`` or ``resource`` where there is something to say; a page stays a page."""
    if operation is not None and operation.gives.media_type == "text/html" and seen.mimetype == "text/html":
        return
    assert seen.mimetype == "application/json", seen
    if seen.body is None or seen.method == "HEAD":
        return
    value = seen.value
    assert {"id", "message", "url"} <= set(value) <= {"id", "message", "url", "app", "resource"}, seen
    assert value["id"] in explained() and value["url"].endswith(f"/errors/{value['id']}"), seen
    assert isinstance(value["message"], str) and value["message"].strip(), seen
    assert isinstance(value.get("resource", ""), str) and set(value.get("app", {"name": ""})) == {"name"}, seen


def assert_shaped(value: Any, name: str) -> None:
    """A resource has every property of the public schema's, each of its type; one that the public schema lacks passes."""
    definition = PLATFORM.get(name, {})
    nulls = {key for resource, key in _NULL_HERE if resource == name and value[key] is None}
    if name == "app-setup" and value["postdeploy"] and value["postdeploy"]["exit_code"] is None:
        nulls.add("postdeploy")  # Davit was restarted while the command ran: nobody knows how it ended, and none is made up
    known = {key: inner for key, inner in definition.get("properties", {}).items() if key not in nulls}
    jsonschema.Draft4Validator({**definition, "properties": known}, format_checker=_FORMATS).validate(value)
    if known:
        assert set(value) >= set(known), (name, set(known) - set(value))
    for key, inner in known.items():
        if isinstance(value[key], dict) and inner.get("properties"):
            assert set(value[key]) >= set(inner["properties"]), (name, key, set(inner["properties"]) - set(value[key]))


# Drawing requests

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
"""Any JSON."""
UNREADABLE = ["http://[", "https://[x]/", "git://[x", "ssh://[x", "http://\u2100.com/"]
"""What looks like a URL and is none that can be taken apart."""
_WORDS = st.sampled_from(["timely", "web", "v1", "+1", "true", "~", "a" * 300, "https://example.com/x.tgz", "global", "heroku/python", *UNREADABLE])
_TEXTS = st.text(max_size=30) | _WORDS


def bodies(link: Json) -> st.SearchStrategy[Any]:
    """Bodies for a link: as it says, the same with a field of any kind in it, and any object."""
    said = link.get("schema", {"type": ["object"]})
    fields = sorted(said.get("properties", {})) or ["A"]
    spoilt = st.builds(
        lambda body, name, value: {**body, name: value},
        _as_said(said).filter(lambda body: isinstance(body, dict)), st.sampled_from(fields), JUNK | st.sampled_from([2**70, -1, "\x00"]),
    )  # fmt: skip
    return _as_said(said) | spoilt | st.dictionaries(st.text(max_size=10), JUNK, max_size=3)


def _as_said(said: Json) -> st.SearchStrategy[Any]:
    if "enum" in said:
        return st.sampled_from(said["enum"])
    return st.one_of([_of_type(kind, said) for kind in said["type"]])


def _of_type(kind: str, said: Json) -> st.SearchStrategy[Any]:
    if kind == "object":
        needed = set(said.get("required", ()))
        known = {name: _as_said(inner) for name, inner in said.get("properties", {}).items()}
        named = st.fixed_dictionaries(
            {name: inner for name, inner in known.items() if name in needed},
            optional={name: inner for name, inner in known.items() if name not in needed},
        )  # fmt: skip
        if "additionalProperties" not in said:
            return named
        others = st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,8}", fullmatch=True), _as_said(said["additionalProperties"]), max_size=3)
        return st.builds(lambda these, those: {**those, **these}, named, others)
    if kind == "array":
        return st.lists(_as_said(said["items"]), max_size=min(3, said["maxItems"]))
    if kind == "integer":
        return st.integers(said.get("minimum"), said.get("maximum"))
    if kind == "string" and "pattern" in said:
        return st.from_regex(said["pattern"], fullmatch=True)
    if kind == "string":
        least, most = said.get("minLength", 0), said.get("maxLength", 30)
        return _TEXTS.filter(lambda text: least <= len(text) <= most)
    return {"boolean": st.booleans(), "null": st.none()}[kind]
