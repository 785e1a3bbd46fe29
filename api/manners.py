"""What holds for every answer: Heroku's error form, Request-Id, ETag and 304, caching, the size of a body."""

from __future__ import annotations

import gzip
import json
import logging
import re
import uuid
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from api.body import LIMIT
from api.links import base_url
from api.resources.explanations import explained
from api.unserved import refusal
from foundation.errors import DavitError
from foundation.settings import settings
from state.two_factor import TwoFactorRequired

log = logging.getLogger("web")

SQUEEZED_FROM = 1400
"""Bytes that fit into one packet are sent as they are."""
_IDS = re.compile(r"[A-Za-z0-9,_.-]{1,300}")


def install(flask: Flask) -> None:
    """Teach the app its manners."""
    flask.before_request(_name_request)
    flask.after_request(_finish)
    flask.register_error_handler(DavitError, _refuse)
    flask.register_error_handler(HTTPException, _refuse_http)
    flask.register_error_handler(Exception, _apologize)


def _name_request() -> None:
    given = request.headers.get("Request-Id", "")
    g.request_id = ",".join(([given] if _IDS.fullmatch(given) else []) + [str(uuid.uuid4())])


def error(id: str, message: str, status: int) -> Response:
    """Heroku's error form; ``url`` leads to what the id means."""
    response = jsonify(_told(id, message))
    response.status_code = status
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="davit"'
    return response


def _told(id: str, message: str) -> dict[str, str]:
    told = {"id": id, "message": message}
    return {**told, "url": f"{base_url()}/errors/{id}"} if id in explained() else told


def _refuse(problem: DavitError) -> Response:
    if problem.status >= 500:
        log.warning("request failed: %s", problem.message, extra={"request": g.get("request_id", "-"), "id": problem.id})
    answer = error(problem.id, problem.message, problem.status)
    further: dict[str, Any] = {}
    if problem.resource:  # `heroku logout` goes on only when it reads that what is missing is the session
        further["resource"] = problem.resource
    if isinstance(problem, TwoFactorRequired) and problem.app_name:
        further["app"] = {"name": problem.app_name}
    if further:
        answer.set_data(json.dumps({**_told(problem.id, problem.message), **further}))
    return answer


def _refuse_http(problem: HTTPException) -> Response:
    if isinstance(problem, RequestEntityTooLarge):
        return error("request_entity_too_large", f"The request body is larger than {LIMIT // 1024} KiB.", 413)
    if problem.code in (404, 405) and (words := refusal(request.method, request.path)):
        return error("not_implemented", words, 501)
    if problem.code == 404:
        return error("not_found", "There is no such endpoint; GET /schema lists those that there are.", 404)
    if problem.code == 405:
        return error("method_not_allowed", f"{request.path} cannot be asked with {request.method}.", 405)
    return error("bad_request", problem.description or "The request cannot be read.", problem.code or 400)


def _apologize(problem: Exception) -> Response:
    log.error("request crashed", exc_info=problem, extra={"request": g.get("request_id", "-"), "rule": str(request.url_rule)})
    return error("internal_error", "Something went wrong inside Davit; its log has the details under this Request-Id.", 500)


def _squeeze(response: Response) -> None:
    """Compress what is worth it for who takes it (RFC 9110, 8.4); only JSON: pages hold what others must not guess (BREACH)."""
    if response.is_streamed or response.mimetype != "application/json" or "Content-Encoding" in response.headers:
        return
    response.vary.add("Accept-Encoding")
    if request.accept_encodings["gzip"] and len(data := response.get_data()) > SQUEEZED_FROM:
        response.set_data(gzip.compress(data, 5, mtime=0))
        response.headers["Content-Encoding"] = "gzip"


def _finish(response: Response) -> Response:
    if response.status_code == HTTPStatus.PERMANENT_REDIRECT:  # `/apps//x` is `/apps/x`: the library says so on a page
        response.set_data(b"")
        del response.headers["Content-Type"]
    response.headers["Request-Id"] = g.get("request_id", "-")
    response.headers["RateLimit-Remaining"] = str(g.get("rate_limit", settings().rate_limit))
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "private, no-cache" if request.method == "GET" else "no-store")
    response.vary.update(("Authorization", "Accept", "Range"))
    if request.method in ("GET", "HEAD") and response.status_code in (200, 206) and not response.is_streamed:
        response.add_etag(weak=True)
        status = response.status_code
        response.make_conditional(request, accept_ranges=False)
        if response.status_code not in (status, 304):  # our Range is Heroku's, not RFC 9110's
            response.status_code = status
    if "warning" in g:
        response.headers["Warning-Message"] = g.warning
    _squeeze(response)
    return response
