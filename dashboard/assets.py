"""Styles, scripts and icons: files of our own and vendored ones, with an address that changes with their content."""

from __future__ import annotations

import mimetypes
import zlib
from functools import lru_cache
from pathlib import Path

from flask import Response, request

from foundation.errors import NotFound

DIRECTORY = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}


@lru_cache(maxsize=64)
def _version(name: str) -> str:
    return f"{zlib.crc32((DIRECTORY / name).read_bytes()):08x}"


def url(name: str) -> str:
    """Where a page loads ``name`` (``davit.css``) from."""
    return f"{request.script_root}/static/{_version(name)}/{name}"


def serve(version: str, name: str) -> Response:
    """The file; kept by browsers for as long as they like, because another content has another address.

    Raises:
        NotFound: there is none of that name.
    """
    path = DIRECTORY / name
    if ".." in Path(name).parts or not path.is_file():
        raise NotFound("There is no such file.")
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    response = Response(path.read_bytes(), content_type=f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
    lasting = version == _version(name)
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
    return response
