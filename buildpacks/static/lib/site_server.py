"""Serves a static site: files by WhiteNoise (ETag, 304, ranges, compressed copies), the rest by static.json.

WhiteNoise looks at the directory once, at start, so no request can name a file that was not there; what begins with a dot
and the app's own configuration is never served.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from whitenoise import WhiteNoise

HOME = Path(os.environ.get("HOME", "/app"))
DOTTED = re.compile(r"(^|/)\.(?!well-known(/|$))")
CONFIGURATION = re.compile(r"^/?((static\.json|Staticfile|Procfile|app\.json)$|node_modules/)")
FOR_EVER = re.compile(r"^/?(_next/static|_app/immutable)/")
"""Folders in which the builders that make them never put another file under a name that they have used."""
HASHED = re.compile(r"[.\-_]([0-9a-zA-Z]{8,64})\.((?:js|css|mjs)(?:\.map)?|woff2?|png|jpe?g|gif|svg|webp|avif|ico|map|wasm)$")
HEX_LENGTHS = (8, 10, 12, 16, 20, 24, 32, 40, 64)
YEAR = 31_536_000


class Site(WhiteNoise):
    """WhiteNoise with the cache times and redirects of a site."""

    def __init__(self, application: Callable[..., Iterable[bytes]], root: Path, settings: dict[str, Any]) -> None:
        self.inside = os.path.join(os.path.realpath(root), "")
        self.is_repository = settings.get("root") == "."
        self.guarded = bool(settings.get("basic_auth"))
        self.headers_by_pattern = [(pattern_of(path), dict(values)) for path, values in (settings.get("headers") or {}).items()]
        super().__init__(
            application, root=str(root), index_file=True, max_age=60, allow_all_origins=False, charset=str(settings.get("encoding", "utf-8")).lower(),
            immutable_file_test=lambda path, url: never_changes(url),
            add_headers_function=self._more_headers,
        )  # fmt: skip

    def add_file_to_dictionary(self, url: str, path: str, stat_cache: Any = None) -> None:
        inside = os.path.realpath(path).startswith(self.inside)  # a link may lead anywhere
        hidden = DOTTED.search(url) or (self.is_repository and CONFIGURATION.search(url))
        if inside and not hidden:
            super().add_file_to_dictionary(url, path, stat_cache=stat_cache)

    def _more_headers(self, headers: Any, path: str, url: str) -> None:
        headers["X-Content-Type-Options"] = "nosniff"
        if self.guarded and headers.get("Cache-Control"):  # "public" lets a shared cache give it to who knows no password
            headers["Cache-Control"] = headers["Cache-Control"].replace("public", "private")
        for pattern, values in self.headers_by_pattern:
            if pattern.fullmatch(url):
                for name, value in values.items():
                    headers[str(name)] = str(value)


def never_changes(url: str) -> bool:
    """Whether the name of a file says what is in it, so that it may be kept for ever.

    A name that only looks like that is served from browsers' caches when the file is another, and no deploy mends it; one that is
    not recognised costs a question. So a digest must look like none of the words and numbers that people write: letters and
    digits change at least twice, in lower case hexadecimal (webpack, Parcel), upper case base32 (esbuild, Angular: scripts and
    styles) or base64 with both cases (Rollup, Vite).
    """
    if FOR_EVER.match(url):
        return True
    match = HASHED.search(url)
    if match is None:
        return False
    digest, kind = match[1], match[2]
    if len(re.findall(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)", digest)) < 2:
        return False
    if re.fullmatch(r"[0-9a-f]+", digest):
        return len(digest) in HEX_LENGTHS
    if re.fullmatch(r"[A-Z2-7]{8}", digest):
        return kind.startswith(("js", "css", "mjs"))
    return (len(digest) == 8 or len(digest) >= 16) and bool(re.search(r"[a-z]", digest)) and bool(re.search(r"[A-Z]", digest))


def pattern_of(path: str) -> re.Pattern[str]:
    """static.json's ``/assets/**`` (any depth) and ``*`` (one part)."""
    parts = re.split(r"(\*\*|\*)", path if path.startswith("/") else f"/{path}")
    return re.compile("".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts))


class Rest:
    """What no file answers: redirects, clean URLs, routes, the 404 page."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.files: WhiteNoise | None = None
        self.clean = bool(settings.get("clean_urls"))
        self.routes = [(pattern_of(path), str(target)) for path, target in (settings.get("routes") or {}).items()]
        self.redirects = {
            str(path): (str(rule.get("url", "/")), int(rule.get("status", 301)))
            for path, rule in (settings.get("redirects") or {}).items()
            if isinstance(rule, dict)
        }
        page = root / str(settings.get("error_page", "404.html"))
        inside = page.resolve().is_relative_to(root.resolve())
        self.not_found = page.read_bytes() if inside and page.is_file() else NOT_FOUND

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._page(environ, start, "405 Method Not Allowed", b"<!doctype html><title>405</title><h1>Method not allowed</h1>", [("Allow", "GET, HEAD")])
        if path in self.redirects:
            location, status = self.redirects[path]
            return self._page(environ, start, f"{status} Moved", b"", [("Location", location)])
        if (found := self._other_file(path)) is not None and self.files is not None:
            return self.files.serve(found, environ, start)
        return self._page(environ, start, "404 Not Found", self.not_found, [])

    def _other_file(self, path: str) -> Any:
        if self.files is None:
            return None
        if self.clean and (found := self.files.files.get(path.rstrip("/") + ".html")):
            return found
        for pattern, target in self.routes:
            if pattern.fullmatch(path):
                url = "/" + target.lstrip("/")
                # WhiteNoise keeps an index page under its directory's URL, and a redirect under its own
                return self.files.files.get(url.removesuffix("index.html")) or self.files.files.get(url)
        return None

    @staticmethod
    def _page(environ: dict[str, Any], start: Callable[..., Any], status: str, body: bytes, more: list[tuple[str, str]]) -> Iterable[bytes]:
        start(status, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body))), ("Cache-Control", "no-cache"), *more])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


NOT_FOUND = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Page not found</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:32em;margin:20vh auto;padding:0 1em}</style>
<h1>Page not found</h1><p>There is nothing at this address.</p></html>
"""


def target_of(environ: dict[str, Any]) -> str:
    """Path and query as they were asked for; a proxy may be asked with the whole URL (RFC 9112, 3.2.2)."""
    asked = str(environ.get("RAW_URI", "/"))
    if asked.startswith("/"):
        return asked
    parts = urlsplit(asked)
    return f"/{parts.path.lstrip('/')}{'?' + parts.query if parts.query else ''}"


class HttpsOnly:
    """``https_only``: plain requests are sent to the same address with https."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_X_FORWARDED_PROTO", "https") == "https":
            return self.application(environ, start)
        location = f"https://{environ.get('HTTP_HOST', '')}{target_of(environ)}"
        start("301 Moved Permanently", [("Location", location), ("Content-Length", "0")])
        return []


class OneHost:
    """``canonical_host``: what comes by another name is sent to that one."""

    def __init__(self, application: Callable[..., Iterable[bytes]], host: str) -> None:
        self.application, self.host = application, host

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_HOST", "").partition(":")[0].lower() == self.host.partition(":")[0].lower():
            return self.application(environ, start)
        location = f"{environ.get('HTTP_X_FORWARDED_PROTO', 'http')}://{self.host}{target_of(environ)}"
        start("301 Moved Permanently", [("Location", location), ("Content-Length", "0")])
        return []


class Guarded:
    """``basic_auth``: only who has the user and password of the config vars is answered (RFC 7617)."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        user, password = os.environ.get("BASIC_AUTH_USERNAME"), os.environ.get("BASIC_AUTH_PASSWORD")
        if not user or not password:
            sys.exit("static.json asks for basic_auth: set the config vars BASIC_AUTH_USERNAME and BASIC_AUTH_PASSWORD.")
        self.expected = f"{user}:{password}".encode()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            said = base64.b64decode(given.strip(), validate=True) if scheme.lower() == "basic" else b""
        except ValueError:
            said = b""
        if hmac.compare_digest(said, self.expected):
            return self.application(environ, start)
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else UNAUTHORIZED
        kind = ("Content-Type", "text/html; charset=utf-8")
        challenge = ("WWW-Authenticate", 'Basic realm="Restricted", charset="UTF-8"')
        start("401 Unauthorized", [challenge, kind, ("Content-Length", str(len(UNAUTHORIZED))), ("Cache-Control", "no-store")])
        return [body]


UNAUTHORIZED = b"<!doctype html><title>401</title><h1>Please sign in</h1>"


def make() -> Callable[..., Iterable[bytes]]:
    settings = json.loads((HOME / ".heroku" / "static" / "site.json").read_text())
    root = HOME / settings["root"]
    rest = Rest(root, settings)
    rest.files = Site(rest, root, settings)
    site: Callable[..., Iterable[bytes]] = rest.files
    if settings.get("basic_auth"):
        site = Guarded(site)
    if settings.get("canonical_host"):
        site = OneHost(site, str(settings["canonical_host"]))
    return HttpsOnly(site) if settings.get("https_only") else site


application = make()
