"""What is read and written for people: terminal colours, .env files, charts."""

from __future__ import annotations

import ast
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dashboard
from dashboard import ansi, charts, dotenv, log_lines, watching
from foundation.errors import InvalidParams
from logs.stream import Line
from state import activity
from state.models import AuditEvent


def test_colours_become_classes_and_nothing_else_gets_through() -> None:
    assert ansi.render("a \x1b[31mred\x1b[0m b") == 'a <span class="a1">red</span> b'
    assert ansi.render("\x1b[1;92mok\x1b[22m ok") == '<span class="a10 ab">ok</span><span class="a10"> ok</span>'
    assert ansi.render("<script>\x1b]0;title\x07&\x1b[2J\x1b[10;10Hx") == "&lt;script&gt;&amp;x"
    assert ansi.render("user\u202eexe.txt\x00\x08") == "userexe.txt"


def test_a_carriage_return_writes_its_line_anew() -> None:
    assert ansi.render("10%\r60%\r100%\ndone\r\n") == "100%\ndone\n"


@pytest.mark.parametrize(("codes", "ink"), [("38;5;196", "a9"), ("38;2;0;80;0", "a2"), ("38;5;7", "a7"), ("97", "a15")])
def test_many_colours_become_the_nearest_of_sixteen(codes: str, ink: str) -> None:
    assert ansi.render(f"\x1b[{codes}mx") == f'<span class="{ink}">x</span>'


@given(st.text(), st.text())
def test_output_in_pieces_is_output_at_once(one: str, two: str) -> None:
    first, pen = ansi.pieces(f"\x1b[1;31m{one}\n".replace("\r", ""))
    second, _ = ansi.pieces(two.replace("\r", ""), ansi.parse(str(pen)))
    assert first + second == ansi.render(f"\x1b[1;31m{one}\n{two}".replace("\r", ""))


@given(st.text())
def test_no_output_makes_an_element_of_its_own(text: str) -> None:
    html = str(ansi.render(text + "<b>\x1b[31;44m<i>"))
    assert "<b>" not in html and "<i>" not in html and html.count("<") == 2 * html.count("</span>")


@given(st.text(max_size=40))
def test_a_pen_from_a_client_is_a_pen(text: str) -> None:
    ansi.pieces("x", ansi.parse(text))


def test_a_log_line_is_one_element() -> None:
    line = Line(datetime(2026, 11, 23, 16, 0, tzinfo=timezone.utc), "app", 'web.1"><img', "a <b>\x1b[32m</div>")
    html = str(log_lines.render([("1-0", line)], f"{int(line.at.timestamp() * 1000)}-0"))
    assert html.count("<div") == 1 and "<img" not in html and "<b>\x1b" not in html and "&lt;/div&gt;" in html


def test_an_env_file_is_read_as_shells_and_libraries_do() -> None:
    text = """
    # a comment
    PLAIN=value
    export SPACED = some words  # and a comment
    EMPTY=
    SINGLE='as $it is \\n'
    DOUBLE="two\\nlines \\"quoted\\""
    MANY="one
    two"
    HASH=a#b
    URL=postgres://u:p@host/db?x=1&y=2
    PLAIN=last
    """
    assert dotenv.parse(text) == {
        "PLAIN": "last", "SPACED": "some words", "EMPTY": "", "SINGLE": "as $it is \\n", "DOUBLE": 'two\nlines "quoted"',
        "MANY": "one\n    two", "HASH": "a#b", "URL": "postgres://u:p@host/db?x=1&y=2",
    }  # fmt: skip


@pytest.mark.parametrize(("text", "line"), [("A=1\nnonsense", "Line 2"), ('A=1\n\nB="open\nC=2', "Line 3")])
def test_a_bad_line_is_named(text: str, line: str) -> None:
    with pytest.raises(InvalidParams, match=line):
        dotenv.parse(text)


def test_a_log_says_where_a_day_begins() -> None:
    noon = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)

    def told(*hours: int, after: str = "") -> list[str]:
        lines = [Line(noon + timedelta(hours=hour), "app", "web.1", "hello") for hour in hours]
        return re.findall(r"data-day>([^<]+)<|hello", str(log_lines.render([("1-0", line) for line in lines], after)))

    assert told(0, 1, 12, 13) == ["2026-11-23, UTC", "", "", "2026-11-24, UTC", "", ""]
    assert told(1, after=f"{int(noon.timestamp() * 1000)}-0") == [""] and told(12, after=f"{int(noon.timestamp() * 1000)}-0")[0]


def test_a_chart_says_in_words_what_it_shows_and_survives_gaps() -> None:
    start = datetime(2026, 11, 23, tzinfo=timezone.utc)
    picture = charts.chart("Memory", [("used", [None, 1.0, 2.0, None, 3.0])], start, 60, lambda value: f"{value:.0f} <MiB>", limit=4)
    assert "Memory. Now: used 3 &lt;MiB&gt;." in picture and picture.count("M") >= 2 and "<MiB>" not in picture
    marks = [(start + timedelta(seconds=seconds), f"v{number}: Deploy <b>") for number, seconds in ((3, 5), (4, 8), (5, 200))]
    told = charts.chart("Memory", [("used", [1.0] * 6)], start, 60, str, marks=marks)
    assert ">v3</text>" in told and ">v5</text>" in told and ">v4</text>" not in told, "words do not lie on each other"
    assert told.count("Deploy &lt;b&gt;") == 3
    assert [charts.nice_size(count) for count in (0, 3 << 20, 512 << 20, 600 << 20)] == [1, 4 << 20, 512 << 20, 1 << 30]
    hour = charts.chart("Memory", [("used", [1.0] * 61)], start, 60, str)
    times = re.findall(r'<text x="([\d.]+)" [^>]*>(\d\d:\d\d)</text>', hour)
    assert times[-1][1] == "01:00" and float(times[-1][0]) <= charts.WIDTH - 20, "the last is not cut"
    assert "nan" not in charts.chart("Nothing", [], start, 60, str)
    assert "The quota is 4 &lt;MiB&gt;." in picture and ">UTC</text>" in picture


@given(st.dictionaries(st.sampled_from(["app", "apps", "build", "log"]), st.from_regex(r"[0-9a-f:.-]{1,20}", fullmatch=True)))
def test_a_cursor_comes_back_as_it_was(seen: dict[str, str]) -> None:
    assert watching.parse(watching.cursor(seen)) == seen


def _recorded() -> dict[str, list[set[str]]]:
    """Every action that the code can write into the audit log, with the names of the details of each place that writes it."""
    found: dict[str, list[set[str]]] = {}
    root = Path(dashboard.__file__).parents[1]
    for path in [path for room in ("api", "builder", "cli", "dashboard", "logs", "router", "runtime", "state") for path in (root / room).rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "audit.record":
                chosen = call.args[2]
                for action in (chosen.body, chosen.orelse) if isinstance(chosen, ast.IfExp) else (chosen,):
                    assert isinstance(action, ast.Constant), f"{path}:{call.lineno} has to spell its action out"
                    found.setdefault(str(action.value), []).append({word.arg or "" for word in call.keywords})
    return found


def test_every_action_on_record_has_a_sentence_and_that_its_details() -> None:
    recorded = _recorded()
    assert len(recorded) > 60 and recorded.keys() == activity.SENTENCES.keys()
    for action, places in recorded.items():
        wanted = {name for _, name, _, _ in Formatter().parse(activity.SENTENCES[action]) if name}
        for details in places:
            assert wanted <= details, f"{action} is written without {wanted - details}"


def test_details_are_written_as_words() -> None:
    event = AuditEvent(actor="davit", action="config:set", details={"set": ["A", "B"], "removed": []})
    assert activity.told(event) == "Changed config vars (set: A, B; removed: none)"
    assert activity.told(AuditEvent(actor="davit", action="old:thing", details={"names": ["A"], "by": None})) == "old:thing (names A)"
    assert activity.told(AuditEvent(actor="davit", action="apps:rename", details={})) == "Renamed it from ?"
