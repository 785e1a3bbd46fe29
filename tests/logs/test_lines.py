"""Bytes become lines: the same ones, whatever pieces they arrive in, and never more than one line each."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from logs.lines import LIMIT, Splitter, clean, cut, split_text

PLENTY = 1 << 30

pieces = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\0", "é€😀\u2028".encode(), b"\x1b[31m", b"\xff"]),
        st.builds(
            lambda unit, times: unit * times,
            st.sampled_from([b"x", "é".encode(), "😀".encode(), b"\x80"]),
            st.integers(0, 25_000),
        ),
    ),
    max_size=12,
)


def lines_of(chunks: list[bytes], room: int = PLENTY) -> tuple[list[bytes], int]:
    splitter = Splitter()
    lines, dropped = [], 0
    for chunk in chunks:
        some, lost = splitter.feed(chunk, room)
        lines += some
        dropped += lost
    last = splitter.flush()
    return lines + ([last] if last is not None else []), dropped


@given(pieces)
def test_any_chunking_gives_the_same_lines(chunks: list[bytes]) -> None:
    assert lines_of(chunks) == lines_of([b"".join(chunks)])


@given(pieces)
def test_a_line_is_one_line_for_every_reader(chunks: list[bytes]) -> None:
    for line in lines_of(chunks)[0]:
        text = line.decode()  # valid UTF-8, or this raises
        assert len(text.splitlines()) <= 1
        assert "\0" not in text and "\r" not in text
        assert len(line) <= LIMIT


@given(pieces)
@example(["é".encode() * 25_000, b"\r", b"\n"])
def test_dropped_and_kept_lines_add_up(chunks: list[bytes]) -> None:
    everything, none = lines_of([b"".join(chunks)])
    assert none == 0
    for room in (0, 1, 3):
        kept, dropped = lines_of(chunks, room)
        assert len(kept) + dropped == len(everything)


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])), min_size=1, max_size=20))
def test_ordinary_text_comes_through_unchanged(texts: list[str]) -> None:
    raw = "".join(text + "\n" for text in texts).encode()
    assert [line.decode() for line in lines_of([raw])[0]] == texts


@given(st.binary(max_size=4 * LIMIT))
def test_cutting_loses_no_byte_and_keeps_the_limit(line: bytes) -> None:
    parts = cut(line)
    assert b"".join(parts) == line
    assert all(len(part) <= LIMIT for part in parts)
    assert all(len(part) > LIMIT - 4 for part in parts[:-1])


def test_a_character_is_not_cut_in_two() -> None:
    line = b"x" * (LIMIT - 1) + "€".encode() * 10
    assert "\ufffd" not in b"".join(map(clean, cut(line))).decode()


def test_a_line_of_exactly_the_limit_stays_whole() -> None:
    assert lines_of([b"x" * LIMIT + b"\n"])[0] == [b"x" * LIMIT]
    assert lines_of([b"x" * (LIMIT + 1) + b"\n"])[0] == [b"x" * LIMIT, b"x"]
    assert lines_of([b"x" * LIMIT + b"\r\n"])[0] == [b"x" * LIMIT]


def test_binary_data_is_no_longer_when_it_is_made_safe() -> None:
    assert lines_of([b"\xff" * (LIMIT - 1) + b"\n"])[0] == [b"?" * (LIMIT - 1)]
    assert [len(part) for part in lines_of([b"\xfe" * (2 * LIMIT + 5)])[0]] == [LIMIT, LIMIT, 15]
    assert all(len(part) <= LIMIT for part in split_text("\x85" * LIMIT))


def test_empty_lines_are_lines() -> None:
    assert lines_of([b"a\n\n\nb"])[0] == [b"a", b"", b"", b"b"]


def test_the_end_of_a_line_that_was_shown_in_part_is_not_a_line() -> None:
    splitter = Splitter()
    splitter.feed(b"Password: ", PLENTY)
    assert splitter.flush() == b"Password: "
    assert splitter.feed(b"\r\nnext\n\n", PLENTY) == ([b"next", b""], 0)


def test_colours_stay_and_breaks_do_not() -> None:
    assert clean(b"\x1b[32mok\x1b[0m\tdone\r") == b"\x1b[32mok\x1b[0m\tdone"
    assert clean(b"10%\r20%\r") == b"10% 20%"
    assert clean("a\u2028b\x85c\x0bd\x00e".encode()) == b"a b c d e"
    assert clean(b"\xff\xfe caf\xc3\xa9") == "\ufffd\ufffd café".encode()


def test_what_davit_itself_logs_is_cut_into_lines_too() -> None:
    assert split_text("one\ntwo\r\n") == [b"one", b"two"]
    assert split_text("") == [b""]
    assert [len(part) for part in split_text("x" * 25_000)] == [10_000, 10_000, 5_000]
    assert split_text("\ud800") == [b"?"]
