"""What a terminal is given of strangers' text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cli.apps.streams import Harmless, harmless

PARTS = st.sampled_from(
    ["plain", "\n", "ü", "\x1b[31m", "\x1b[0m", "\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;aGk=\x1b\\", "\x1b", "\x9b1A", "\r", "\x1bc"]
)


def test_colours_stay_and_nothing_else_steers() -> None:
    assert harmless("a\x1b[31mred\x1b[2J\x1b]0;title\x07\r") == "a\x1b[31mred\x1b[0m"


@given(st.lists(PARTS, max_size=12), st.data())
def test_pieces_show_what_the_whole_shows(parts: list[str], data: st.DataObject) -> None:
    """However the stream is cut; but for the colours that each piece ends for itself."""
    sent = "".join(parts).encode()
    shown, way = Harmless(), ""
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        way += shown.feed(sent[:size])
        sent = sent[size:]
    way += shown.feed(b"", last=True)
    whole = "\n".join(map(harmless, "".join(parts).split("\n")))
    assert way.replace("\x1b[0m", "") == whole.replace("\x1b[0m", "")
