from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import yamltext
from foundation.errors import InvalidParams


def test_what_is_sound_is_read_as_pyyaml_reads_it() -> None:
    text = "base: &base {a: 1}\nmore: {<<: *base, b: [x, 2020-12-13, true, ~, 0x10]}\ntext: |\n  two\n  lines\n"
    assert yamltext.load(text, "It") == yaml.safe_load(text)
    assert yamltext.load("", "It") is None
    assert yamltext.load("[" * yamltext.DEPTH + "]" * yamltext.DEPTH, "It") == yaml.safe_load("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nhostname: 2020-13-45", "(line 2: “2020-13-45” cannot be read as timestamp)"),
        ("[!!bool x]", "(line 1: “x” cannot be read as bool)"),
        ("!!timestamp x", "(line 1: “x” cannot be read as timestamp)"),
        ("a: !!int ''", "(line 1: “” cannot be read as int)"),
        ("a: " + "1" * 5000, "cannot be read as int)"),
        ("a: 2001-12-14t21:59:43.10-99:30", "cannot be read as timestamp)"),
        ("a: [", "(line 1: "),
        ("a: *b", "(line 1: found undefined alias 'b')"),
        ("!!python/name:os.system x", "(line 1: could not determine a constructor for the tag"),
        ("a: \0", "(it has characters that no text has)"),
        ("a: \ud800", "(it has characters that no text has)"),
        ("\n" + "[" * 65, "(line 2: it is nested too deeply)"),
        ("[" * 100_000, "(line 1: it is nested too deeply)"),
        ("{a: " * 65, "(line 1: it is nested too deeply)"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_one_sentence(text: str, why: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        yamltext.load(text, "It")
    assert refused.value.message.startswith("It is no YAML (") and refused.value.message.endswith(").")
    assert why in refused.value.message and "\n" not in refused.value.message


def test_mappings_that_are_merged_into_more_and_more_end() -> None:
    lines = ["m0: &m0 {" + ", ".join(f"k{number}: 1" for number in range(10)) + "}"]
    lines += [f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 10)}]}}" for level in range(1, 12)]
    with pytest.raises(InvalidParams, match="its mappings have too many keys"):
        yamltext.load("\n".join(lines), "It")


@given(st.text(st.sampled_from("ab1-: \n[]{}!&*<>|'\"~.,?#%@\t0xeT"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    for prefix in ("", "!!int ", "!!timestamp ", "!!set "):
        try:
            yamltext.load(prefix + text, "It")
        except InvalidParams as refused:
            assert refused.message.startswith("It is no YAML (")
