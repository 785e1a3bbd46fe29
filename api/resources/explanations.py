"""What an error means and what to do about it: the page that the ``url`` of every error leads to."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from flask import Response

from api import shapes
from api.routing import Call, Resource
from foundation.errors import NotFound

resource = Resource("errors")

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
_ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


@lru_cache(maxsize=1)
def explained() -> dict[str, tuple[str, str]]:
    """By the error's id: what it means, what to do. Nothing where Davit was installed without its pages."""
    try:
        text = _PAGE.read_text()
    except OSError:
        return {}
    ids = text.partition("\n## Ids\n")[2]
    return {id: (_plain(meaning), _plain(remedy)) for id, meaning, remedy in _ROW.findall(ids)}


def _plain(cell: str) -> str:
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", cell)


@resource.on("GET", "/errors/<error>", needs="nothing", ours=True, gives=shapes.stream("text/plain"))
def show(call: Call, error: str) -> Response:
    """What an error's id means, and what to do."""
    if error not in explained():
        raise NotFound("There is no error of that name.")
    meaning, remedy = explained()[error]
    answer = Response(f"{error}\n\nWhat it means: {meaning}.\nWhat to do: {remedy}.\n", content_type="text/plain; charset=utf-8")
    answer.headers["Cache-Control"] = "public, max-age=3600"
    return answer
