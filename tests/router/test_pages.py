"""The pages' words."""

from __future__ import annotations

import json

import pytest

from router import pages
from router.codes import BAD_EXPECT, BAD_METHOD, CODES, HEADER_TIMEOUT, NO_SUCH_APP, Code


@pytest.mark.parametrize("code", [*CODES.values(), NO_SUCH_APP, BAD_EXPECT, BAD_METHOD, HEADER_TIMEOUT], ids=lambda code: code.code)
def test_a_page_names_what_is_there(code: Code) -> None:
    """No placeholder is left, and nothing is pointed to that only the other form has."""
    said = json.loads(pages.body(code).replace("\x01", "id").replace("\x02", "app"))["message"]
    for text in (said, pages.html(code)):
        assert "APP" not in text and "below" not in text
