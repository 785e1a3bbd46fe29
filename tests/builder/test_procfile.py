"""The Procfile parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.procfile import ProcfileError, parse

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,30}", fullmatch=True)
COMMANDS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=60).map(str.strip).filter(bool)


def test_types_keep_the_order_of_their_lines() -> None:
    assert list(parse(b"web: a\nworker: b\nclock: c\n").types.items()) == [("web", "a"), ("worker", "b"), ("clock", "c")]


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"web: gunicorn app:app", "gunicorn app:app"),
        (b"web:\tgunicorn app:app\t\n", "gunicorn app:app"),
        (b"\t web:   gunicorn app:app  \n", "gunicorn app:app"),
        (b"web: gunicorn app:app\r\nworker: x\r\n", "gunicorn app:app"),
        (b"\xef\xbb\xbfweb: gunicorn app:app\n", "gunicorn app:app"),
        (b"web:gunicorn app:app\n", "gunicorn app:app"),
        (b"web: FOO=bar sh -c 'a: b' # a comment is the shell's\n", "FOO=bar sh -c 'a: b' # a comment is the shell's"),
        ("web: gunicorn app:app\r\n".encode("utf-16"), "gunicorn app:app"),
    ],
)
def test_forms_that_editors_and_people_write_are_read(content: bytes, command: str) -> None:
    assert parse(content).types["web"] == command


def test_comments_and_blank_lines_say_nothing() -> None:
    parsed = parse(b"# web: no\n\n   \n  # x\nweb: yes\n")
    assert parsed.types == {"web": "yes"} and not parsed.warnings


def test_the_last_of_two_lines_for_a_type_wins_and_is_warned_of() -> None:
    parsed = parse(b"web: one\nworker: w\nweb: two\n")
    assert parsed.types == {"worker": "w", "web": "two"}
    assert "more than once" in parsed.warnings[0] and "line 3" in parsed.warnings[0]


def test_a_missing_colon_is_read_as_heroku_reads_it_and_warned_of() -> None:
    parsed = parse(b"web gunicorn app:app\n")
    assert parsed.types == {"web": "gunicorn app:app"} and "no colon" in parsed.warnings[0]


def test_a_type_without_command_is_left_out_with_a_warning() -> None:
    parsed = parse(b"web:\nworker: x\n")
    assert parsed.types == {"worker": "x"} and "without a command" in parsed.warnings[0]


@pytest.mark.parametrize("line", ["web.1: x", "wéb: x", "web/api: x", "my*type: x"])
def test_an_invalid_name_is_an_error_that_names_the_line(line: str) -> None:
    with pytest.raises(ProcfileError, match=r"Line 2 .* names the process type"):
        parse(f"worker: x\n{line}\n".encode())


def test_a_name_longer_than_the_database_takes_is_an_error() -> None:
    with pytest.raises(ProcfileError, match="64 characters"):
        parse(b"w" * 64 + b": x")


def test_bytes_that_are_no_text_are_an_error_that_names_the_line() -> None:
    with pytest.raises(ProcfileError, match="line 2 holds the byte 0xff"):
        parse(b"web: x\nworker: \xff\n")


def test_control_characters_are_an_error() -> None:
    with pytest.raises(ProcfileError, match="control character"):
        parse(b"web: x\x00y\n")


def test_an_empty_procfile_declares_nothing() -> None:
    assert parse(b"").types == {} and parse(b"\n\r\n").types == {}


@given(st.dictionaries(NAMES, COMMANDS, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_is_written_is_what_is_read(types: dict[str, str], end: str, mark: bool) -> None:
    text = "".join(f"{name}: {command}{end}" for name, command in types.items())
    assert parse(text.encode("utf-8-sig" if mark else "utf-8")).types == types


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise_than_with_a_sentence(content: bytes) -> None:
    try:
        parsed = parse(content)
    except ProcfileError as error:
        assert error.message.endswith(".")
    else:
        assert all(name and command for name, command in parsed.types.items())
