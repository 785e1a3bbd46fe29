"""The dashboard as a WSGI application: its parts, what every answer carries, how refusals look."""

from __future__ import annotations

import gzip
import logging
import uuid
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from flask import Flask, Request, Response, g, render_template, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import MapAdapter

from builder import sources
from dashboard import assets, cookies, routing, shown
from dashboard.routing import SignInFirst, go
from dashboard.views import PARTS
from foundation.errors import DavitError

log = logging.getLogger("web")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy (CSP level 3): nothing inline, nothing from elsewhere, in nobody's frame."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_PACKED = ("text/", "image/svg")
IN_MEMORY = 500 << 10
"""Bytes of an uploaded file that need no disk."""
LEAST_WORTH_PACKING = 1000
"""Bytes below which compression would not pay."""


class _Request(Request):
    def _get_file_stream(
        self, total_content_length: int | None, content_type: str | None, filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:  # fmt: skip
        """Where an uploaded file is while its form is read: on the disk that it is for. The system's place may be its memory."""
        sources.directory().mkdir(mode=0o700, exist_ok=True)
        return cast(IO[bytes], SpooledTemporaryFile(IN_MEMORY, dir=str(sources.directory())))


class _Flask(Flask):
    request_class = _Request

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        adapter = super().create_url_adapter(request)
        if adapter:
            adapter.websocket = False  # a page that wants an upgrade checks that itself, after who asks has been checked
        return adapter


def create_app() -> Flask:
    """The dashboard; mounted below a prefix that ``SCRIPT_NAME`` names.

    Raises:
        TypeError: a page does not say who may see it.
    """
    flask = _Flask("dashboard", static_folder=None, template_folder=str(Path(__file__).parent / "templates"))
    flask.config["MAX_FORM_MEMORY_SIZE"] = routing.FORM_LIMIT
    flask.config["MAX_CONTENT_LENGTH"] = routing.FORM_LIMIT
    flask.url_map.strict_slashes = False
    flask.jinja_env.trim_blocks = flask.jinja_env.lstrip_blocks = True
    flask.jinja_env.filters.update(shown.FILTERS)
    flask.jinja_env.globals.update(
        asset=assets.url, csrf=lambda: cookies.csrf(g.get("signed")), flash=cookies.flash, theme=cookies.theme,
        this_page=routing.this_page, signed=lambda: g.get("signed"),
    )  # fmt: skip
    flask.before_request(_name_request)
    flask.after_request(cookies.finish)
    flask.after_request(_finish)
    flask.register_error_handler(DavitError, _refuse)
    flask.register_error_handler(HTTPException, _refuse_http)
    flask.register_error_handler(Exception, _apologize)
    for part in PARTS:
        flask.register_blueprint(part)
    routing.check(flask)
    return flask


def _name_request() -> None:
    g.request_id = str(uuid.uuid4())


def _finish(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Request-Id"] = g.get("request_id", "-")
    response.headers.setdefault("Cache-Control", "no-store")
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    _pack(response)
    return response


def _pack(response: Response) -> None:
    """gzip what is text and long enough; never a stream, which has to arrive as it is written."""
    if response.is_streamed or "Content-Encoding" in response.headers or not (response.mimetype or "").startswith(_PACKED):
        return
    response.vary.add("Accept-Encoding")
    if "gzip" not in request.headers.get("Accept-Encoding", "") or (response.content_length or 0) < LEAST_WORTH_PACKING:
        return
    response.set_data(gzip.compress(response.get_data(), 5, mtime=0))
    response.headers["Content-Encoding"] = "gzip"


def _refuse(problem: DavitError) -> Response:
    if problem.status >= 500:
        log.warning("page failed: %s", problem.message, extra={"request": g.get("request_id", "-"), "id": problem.id})
    if isinstance(problem, SignInFirst) or problem.status == 401:
        return _to_sign_in()
    return _page_of(problem.status, problem.message, forged=isinstance(problem, routing.Forged))


def _to_sign_in() -> Response:
    """To the sign-in page and back; a fragment that is loaded into a page has the whole page go there."""
    from urllib.parse import quote

    if request.headers.get("HX-Request"):
        answer = Response(status=204)
        answer.headers["HX-Refresh"] = "true"
        return answer
    here = request.full_path.rstrip("?") if request.method == "GET" else ""
    return go("/sign-in" + (f"?to={quote(here)}" if here.strip("/") else ""))


def _refuse_http(problem: HTTPException) -> Response:
    if isinstance(problem, RequestEntityTooLarge):
        most = shown.size(request.max_content_length or routing.FORM_LIMIT)
        return _page_of(413, f"That is larger than the {most} that this form may have.")
    if problem.code == 405 and request.method == "GET" and (page := routing.page_with_form()):
        return go(page)  # the address of a form's answer, typed or gone back to
    if problem.code == 404:
        return _page_of(404, "There is no such page.")
    return _page_of(problem.code or 400, problem.description or "The request cannot be read.")


def _apologize(problem: Exception) -> Response:
    log.error("page crashed", exc_info=problem, extra={"request": g.get("request_id", "-"), "rule": str(request.url_rule)})
    return _page_of(500, "Something went wrong inside Davit; its log (web.log) has the details.")


def _page_of(status: int, message: str, *, forged: bool = False) -> Response:
    html = render_template("error.html", status=status, forged=forged, message=message, request_id=g.get("request_id", "-"))
    return Response(html, status=status, content_type="text/html; charset=utf-8")
