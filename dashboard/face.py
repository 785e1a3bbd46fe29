"""The way in, as WSGI: ``/dashboard/…`` is the dashboard's, everything else goes on to the API.

This module is all that the web process loads before somebody opens the first page.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

PREFIX = "/dashboard"


class Face:
    """The dashboard in front of another WSGI application."""

    def __init__(self, otherwise: Application) -> None:
        self._otherwise = otherwise
        self._pages: Application | None = None
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == PREFIX or path.startswith(PREFIX + "/"):
            inside = {**environ, "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + PREFIX, "PATH_INFO": path[len(PREFIX) :] or "/"}
            return self._loaded()(inside, start_response)
        if environ["REQUEST_METHOD"] == "GET" and "text/html" in environ.get("HTTP_ACCEPT", "") and (to := _page_for(path)):
            start_response("303 See Other", [("Location", to), ("Content-Length", "0"), ("Vary", "Accept")])
            return [b""]
        return self._otherwise(environ, start_response)

    def _loaded(self) -> Application:
        with self._lock:
            if self._pages is None:
                from dashboard.web import create_app

                self._pages = create_app()
            return self._pages


def _page_for(path: str) -> str | None:
    """Where a browser that opens one of the API's addresses is sent: its first page, and a command line's login request."""
    if path == "/":
        return PREFIX + "/"
    secret = path.removeprefix("/auth/browser/")
    return f"{PREFIX}/login/{secret}" if secret != path and re.fullmatch(r"[\w.-]{1,2000}", secret) else None
