"""docs/errors.md and the tests agree on which rows there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from router.codes import CODES
from scripts.reference import written_codes
from tests.e2e.errors_page import PAGE, rows, says


def test_every_row_is_proven_by_a_test_and_every_test_names_a_row() -> None:
    proven = set(_marked())
    assert proven == set(rows()), f"no test proves {set(rows()) - proven}; the page lacks {proven - set(rows())}"


def test_every_code_on_the_page_is_proven_by_a_test() -> None:
    shown = set(re.findall(r"^\| (H\d\d) \| .* \| \d{3} \| ", PAGE.read_text(), re.MULTILINE))
    assert shown == set(CODES)
    written = set(re.findall(r"^\| ([RL]\d\d) \| Error ", PAGE.read_text(), re.MULTILINE))
    assert written == set(written_codes())
    shown |= written
    assert set(_marked("code")) == shown, f"no test proves {shown - set(_marked('code'))}"


def _marked(mark: str = "row") -> Iterator[str]:
    """The ids in ``@pytest.mark.row(…)`` (or another mark) of all tests; ``row(*TABLE)`` stands for a table's keys."""
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        text = path.read_text()
        if f"mark.{mark}(" not in text:
            continue
        tree = ast.parse(text)
        tables = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{mark}":
                for word in node.args:
                    if isinstance(word, ast.Starred):
                        yield from (ast.literal_eval(key) for key in tables[ast.unparse(word.value)].keys if key is not None)
                    else:
                        yield ast.literal_eval(word)


def test_a_sentence_is_found_in_what_git_shows_and_not_in_half_of_it() -> None:
    shown = "remote:  !     The build took longer than 20 seconds, the most it may take, and was ended while\nremote: bin/compile of x had been running for 9 seconds."
    assert says("build-hangs", shown)
    assert not says("build-hangs", "The build took longer than usual")
