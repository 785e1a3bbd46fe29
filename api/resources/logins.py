"""Logging in by the browser: a command line asks, a person answers on a page, the command line hears the answer."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from html import escape
from typing import Any

from flask import Response, request

from api import limits, shapes, streams
from api.fields import Fields, Text
from api.routing import Call, Reply, Resource
from foundation.errors import DavitError, Unauthorized
from state import logins, passwords
from state.db import snapshot, transaction

resource = Resource("logins")

_PERSON = Fields(email=Text(most=254), password=Text(most=1000), code=Text(most=40), answer=Text())
_HEARD = shapes.plain({"anyOf": [shapes.thing(access_token=shapes.TEXT), shapes.thing(error=shapes.TEXT)]})
LOOK_SECONDS = 1.0
"""From one look for the answer to the next."""


@resource.on(
    "POST", "/auth", needs="nothing", writes=False, ours=True,
    takes=Fields(description=Text(most=1000, line=True)),
    gives=shapes.plain(shapes.thing(browser_url=shapes.TEXT, cli_url=shapes.TEXT, token=shapes.TEXT)),
)  # fmt: skip
def ask(call: Call) -> Reply:
    """A command line asks to be logged in: where a person answers (browser_url), where it hears the answer (cli_url)."""
    description = call.body.text("description") or "A command line"
    secrets = logins.ask(description, limits.caller() or "an unknown address")
    urls = {"browser_url": f"/auth/browser/{secrets.browser}", "cli_url": "/auth/cli", "token": secrets.waiting}
    return Reply(urls, 201)


@resource.on("GET", "/auth/cli", needs="nothing", ours=True, gives=_HEARD)
def hear(call: Call) -> Response:
    """The answer, as soon as there is one: access_token, or error. The Authorization header has the token of POST /auth."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("Send the token that POST /auth gave as `Authorization: Bearer TOKEN`.")
    asked = logins.waiting(secret.strip())
    address = limits.caller() or "an unknown address"
    return streams.respond(_answer(asked), "application/json", address, heartbeat=b" ", of=streams.logins)


def _answer(asked: logins.Request) -> Iterator[bytes | None]:
    deadline = time.monotonic() + logins.REQUEST_SECONDS
    while time.monotonic() < deadline:
        with snapshot() as session:
            answered = logins.is_answered(session, asked)
        if answered:
            with transaction() as session:
                made = logins.collect(session, asked)
            yield _json({"access_token": made[0]} if made else {"error": "The login was refused."})
            return
        yield None
        time.sleep(LOOK_SECONDS)
    yield _json({"error": "Nobody answered in the browser within ten minutes; run the command again."})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@resource.on("GET", "/auth/browser/<secret>", needs="nothing", ours=True, gives=shapes.PAGE)
def page(call: Call, secret: str) -> Response:
    """The page on which a person answers."""
    return _page(200, _form(logins.asked(secret)))


@resource.on(
    "POST", "/auth/browser/<secret>", needs="nothing", writes=False, form=True, ours=True,
    takes=_PERSON, gives=shapes.PAGE,
)  # fmt: skip
def answer(call: Call, secret: str) -> Response:
    """The person's answer: a form with email, password, code (where the account has two-factor authentication) and answer.

    It takes the password rather than a cookie, so no other site can send it in a person's name.
    """
    asked = logins.asked(secret)
    email, code = call.body.text("email") or "", call.body.text("code") or None
    try:
        with limits.guessing():
            account_id = passwords.known(email, call.body.text("password") or "")
        with transaction() as session:
            known = logins.finish(session, account_id, code)
            decide = logins.deny if call.body.text("answer") == "deny" else logins.approve
            decide(session, known, asked)
    except DavitError as problem:
        return _page(problem.status, _form(asked, problem.message))
    return _page(200, "<p>Done. You can close this page and go back to the command line.</p>")


def _form(asked: logins.Request, problem: str = "") -> str:
    alert = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return f"""\
<p>“{escape(asked.description)}”, from {escape(asked.source)}, wants to act as you.
Allow it only if you have just asked for it.</p>
{alert}<form method="post">
<label>E-mail address <input name="email" type="email" autocomplete="username" required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<label>Two-factor code, if you use one <input name="code" autocomplete="one-time-code" inputmode="numeric"></label>
<button name="answer" value="allow">Log the command line in</button>
<button name="answer" value="deny">Refuse it</button>
</form>"""


_STYLE = "body{font:16px/1.5 system-ui;max-width:30rem;margin:3rem auto;padding:0 1rem}label,button{display:block;margin:.8rem 0}"


_STYLES_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLES_HASH}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Content-Security-Policy (CSP level 3): the page's own style, by its hash, and nothing else inline or from elsewhere."""


def _page(status: int, body: str) -> Response:
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Log in to Davit</title><style>{_STYLE}</style><h1>Log in to Davit</h1>\n{body}\n</html>\n"
    )
    response = Response(html, status, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response
