"""docs/errors.md as its tests read it: each row about bad input has an anchor, and shows the sentence that people see.

A row begins ``| <a id="no-buildpack"></a>`the sentence` | what it means | what to do |``. Where the sentence has a part that
differs from case to case it has ``…``; where there are several, separated by “or”, one of them is seen. A test names its
rows with ``@pytest.mark.row("no-buildpack")`` and asserts with ``assert_says("no-buildpack", output)``, so the page and the
program cannot drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
_ROW = re.compile(r'^\| <a id="(?P<id>[a-z0-9-]+)"></a>(?P<seen>.*?) \| (?P<meaning>.+?) \| (?P<remedy>.+?) \|$')
_HEAD = "| what you see |"


@lru_cache(maxsize=1)
def rows() -> dict[str, list[str]]:
    """The sentences of each row, by the row's id."""
    found = [(match["id"], re.findall(r"`([^`]+)`", match["seen"])) for match in map(_row, _lines())]
    assert len(dict(found)) == len(found), "two rows have the same id"
    return dict(found)


def _lines() -> Iterator[str]:
    """The rows of every table whose first column is what people see."""
    within = False
    for line in PAGE.read_text().splitlines():
        if line.startswith(_HEAD):
            within = True
        elif not line.startswith("|"):
            within = False
        elif within and not line.startswith("|---"):
            yield line


def _row(line: str) -> re.Match[str]:
    match = _ROW.fullmatch(line)
    assert match, f'no test can prove this row: it has no <a id="…"></a> in front of its sentence, or not three columns: {line}'
    return match


def says(row: str, text: str) -> bool:
    """Whether ``text`` (git's “remote:” and line ends left out) has one of the row's sentences."""
    plain = re.sub(r"\s+", " ", re.sub(r"^remote: ?", "", text, flags=re.M))
    return any(re.search(re.escape(sentence).replace("…", ".{0,400}?"), plain) for sentence in rows()[row])


def assert_says(row: str, text: str) -> None:
    """``text`` has the sentence that the page promises."""
    assert says(row, text), f"none of {rows()[row]} in:\n{text[-3000:]}"
