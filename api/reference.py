"""docs/api.md, written from what is served: ``python -m api.reference``."""

from __future__ import annotations

from pathlib import Path

from api.routing import Operation
from api.shapes import EMPTY, Json, Shape, resources
from api.web import operations

PATH = Path(__file__).resolve().parent.parent / "docs" / "api.md"

_BEFORE = """\
# The API

Davit serves the Heroku Platform API v3: the same paths, the same bodies, the same errors. Clients that let their base URL
be set work with it; `GET /schema` lists what the Davit that you ask serves. What the Platform API has and this list has not
answers `501 not_implemented`.

- **Authorization**: `Authorization: Bearer TOKEN`, or Basic with the token as password. `davit auth:token` prints yours.
- **Scopes**: a token is for `global` (everything) unless it was made for less: `identity` (who you are), `read` and `write`
  (apps, but neither config vars nor releases, nor what tells of them: the activity, webhooks; nor running code, which
  reaches config vars), `read-protected`, `write-protected`. An app's log is read with `read`, as on Heroku, where who
  watches an app has just that: the log says which config vars were set (`Set NAME config vars`), never to what.
  What a token's scope does not open answers `403 forbidden`; git takes `write-protected`.
- **Limit**: 4,500 calls an hour for each account (`DAVIT_RATE_LIMIT`), refilled evenly; `RateLimit-Remaining` says what is left.
- **Errors**: `{"id": "not_found", "message": "Couldn't find that app.", "url": "https://…/errors/not_found"}`; the URL says what
  the id means and what to do, as [errors](errors.md) does. Some say in `resource` what was not found: `app`, `session`.
- **Lists** come in pages of 200: `Range: name ..; max=1000, order=desc` asks for another part; an answer with status 206 has a
  `Next-Range` header to send back as `Range`.
- **Streams** (logs, build output) are read at URLs that the API gives. Such a URL is a secret: whoever has it may read that
  stream until it expires (an hour for logs, a day for output). Logs come as server-sent events when
  `Accept: text/event-stream` asks for them, with `Last-Event-ID` to go on after a break, and as plain lines otherwise.
- A field that is not known is ignored, and the answer's `Warning-Message` names it. JSON is compressed for who takes gzip.
- Every answer has a `Request-Id`, and every `GET` an `ETag` that `If-None-Match` answers with 304. `If-Match` with that `ETag`
  on a change of the same path (`PATCH /apps/{app}/config-vars`, say) has it refused with 412 when something changed meanwhile.
- A `DELETE` may be repeated: of what is gone it answers 404, and changes nothing.
- *Takes* names the fields of the body, **those in bold** must be there; *gives* the answer of a call that succeeds, which has
  exactly the properties that [the end of this page](#what-is-answered) lists. `GET /schema` says both in JSON Schema.

*Who may* is one of: `nothing` (no credentials; for streams the URL itself is the secret), `login` (a token, or e-mail address
and password), `account` (a token), `admin` (an admin's token), or a permission on the app. The owner of an app and admins
have all four: **view** (see the app, its releases and logs), **deploy** (push, build, roll back, read config vars),
**operate** (run, scale, restart, configure), **manage** (rename, destroy, change who may do what). Who may not even view an
app gets the same 404 as for one that does not exist.

Endpoints marked † are Davit's own.

"""


def _row(operation: Operation) -> str:
    path = operation.path.replace("<path:", "<").replace("<", "{").replace(">", "}")
    mark = " †" if operation.ours else ""
    cells = f"`{operation.method} {path}`{mark}", operation.needs, operation.summary, _takes(operation), _gives(operation.gives)
    return f"| {' | '.join(cells)} |"


def _takes(operation: Operation) -> str:
    names = [f"**{name}**" if field.needed else name for name, field in operation.takes.known.items()]
    return ", ".join([*names, *(["any name"] if operation.takes.rest else [])])


def _gives(shape: Shape) -> str:
    if shape.media_type != "application/json":
        return shape.media_type
    if "not" in shape.schema:
        return "nothing, it only refuses"
    what = shape.name or ("an object" if not shape.many else "objects")
    if shape.schema.get("maxItems") == 0:
        what = "an empty list"
    elif shape.schema == EMPTY.schema:
        what = "an empty object"
    return f"a list of {what}" if shape.many else what


_FORMATS = {"date-time": "time", "uuid": "uuid", "email": "e-mail address", "uri": "URL"}


def _type(schema: Json) -> str:
    if "enum" in schema:
        return " or ".join("null" if word is None else str(word) for word in schema["enum"])
    words = []
    for kind in schema.get("type", ["anything"]):
        if kind == "object" and schema.get("properties"):
            words.append("{" + ", ".join(schema["properties"]) + "}")
        elif kind == "array":
            words.append(f"list of {_type(schema['items'])}")
        else:
            words.append(_FORMATS.get(schema.get("format", ""), kind) if kind == "string" else kind)
    return " or ".join(words)


def _resource(shape: Shape) -> str:
    properties = shape.schema.get("properties")
    if not properties:
        return f"| {shape.name} | any name: {_type(shape.schema['additionalProperties'])} |"
    return f"| {shape.name} | " + ", ".join(f"`{name}` {_type(inner)}" for name, inner in sorted(properties.items())) + " |"


def _group(operation: Operation) -> str:
    words = [word for word in operation.path.split("/") if word]
    if words[:2] == ["apps", "<app>"]:
        return f"apps: {words[2]}" if len(words) > 2 else "apps"
    return words[0] if words else "about"


def render() -> str:
    """The page."""
    groups: dict[str, list[str]] = {}
    for operation in operations():
        groups.setdefault(_group(operation), []).append(_row(operation))
    parts = [
        f"## {name}\n\n| endpoint | who may | what it does | takes | gives |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
        for name, rows in sorted(groups.items())
    ]
    shapes = "\n".join(_resource(shape) for shape in sorted(resources(), key=lambda shape: shape.name))
    parts.append(f"## What is answered\n\n| resource | properties |\n|---|---|\n{shapes}\n")
    return _BEFORE + "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(render())
