"""Whatever is in the environment and the arguments arrives in the guest as it is: checked against the guest's own rules."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slugs import osvline
from tests.slugs import osv_parsers as osv

SCRIPT = "/etc/davit/run"
TRAPS = st.sampled_from(
    [
        '"',
        "\\",
        "$",
        "$HOME",
        "?=",
        "=",
        "\n",
        "\t",
        " ",
        "'",
        ";",
        "&",
        "&!",
        "!",
        "é",
        "☃",
        "--env=A=b",
        "\\n",
        "\r",
        "\x7f",
        "\x01",
    ]
)
TEXTS = st.lists(
    st.one_of(TRAPS, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)), max_size=6
).map("".join)
NAMES = st.one_of(
    st.from_regex(r"[A-Z_][A-Z0-9_]{0,10}", fullmatch=True),
    st.from_regex(r"DAVIT_[A-Z0-9]{1,3}", fullmatch=True),
    st.sampled_from(["DAVIT_W0", "DAVIT_SITE", "DAVIT_SIGNALS", "DAVIT_DYNO", "site", "signals", "dyno", "_0"]),
)
ENVIRONMENTS = st.dictionaries(NAMES, TEXTS, max_size=6)


def booted(boot: osvline.Boot) -> tuple[list[list[bytes]], dict[bytes, bytes], dict[bytes, list[bytes]]]:
    return osv.boot(boot.line, {SCRIPT.encode(): boot.script})


@given(ENVIRONMENTS, st.lists(TEXTS, max_size=5))
@example({"DAVIT_W0": "mine", "B": "$x"}, [])
@example({"A": "cost $5", "B": "a?=b", "C": "", "D": "ü$A", "E": "$A"}, ["", "$HOME", "--env=X=1", "a b", "é"])
@settings(max_examples=150, deadline=None)
def test_environment_and_arguments_arrive_intact(environment: dict[str, str], arguments: list[str]) -> None:
    boot = osvline.compose(
        ["--verbose", osvline.option("cwd", "/a b\\c")],
        environment,
        ["/bin/app", *arguments],
        script=SCRIPT,
        last=(".last", "web.1"),
        limit=1 << 20,
    )
    run, found, options = booted(boot)
    assert run == [[b"/bin/app", *(argument.encode() for argument in arguments), b""]]
    assert {name: value for name, value in found.items() if not name.startswith(b".")} == {
        name.encode(): value.encode() for name, value in environment.items()
    }
    assert found[b".last"] == b"web.1"
    assert options[b"cwd"] == [b"/a b\\c"] and b"verbose" in options


@given(TEXTS.filter(bool))
@settings(max_examples=100, deadline=None)
def test_an_option_arrives_intact(value: str) -> None:
    words, rest = osv.loader_words(f"{osvline.option('env', value)} /app".encode())
    assert (words, rest) == ([b"--env=" + value.encode()], b"/app")


def test_a_long_environment_goes_into_the_script_and_not_on_the_line() -> None:
    environment = {f"NAME_{number}": f'{number} value with spaces, "quotes" and \\ ' + "x" * 5000 for number in range(150)}
    boot = osvline.compose([], environment, ["/app"], script=SCRIPT)
    assert len(boot.line) < 100
    assert booted(boot)[1] == {name.encode(): value.encode() for name, value in environment.items()}


def test_only_what_cannot_be_quoted_needs_room_on_the_line() -> None:
    boot = osvline.compose([], {"LONG": "x" * 10_000 + "$y", "SAME": "$y", "ALSO": "abc$y"}, ["/app"], script=SCRIPT)
    assert boot.line == b'--env=.0=$y runscript "/etc/davit/run"'
    assert booted(boot)[1][b"LONG"] == b"x" * 10_000 + b"$y"


def test_more_than_the_line_takes_is_refused_with_a_sentence() -> None:
    with pytest.raises(osvline.LineTooLong, match="a unikernel takes 3600"):
        osvline.compose([], {"A": "$" + "x" * 4000}, ["/app"], script=SCRIPT)


def test_commands_beside_the_app() -> None:
    before = [osvline.Command(["/libhttpserver-api.so"]), osvline.Command(["/agent.so", "7 7"], beside=False)]
    boot = osvline.compose([], {}, ["/app"], script=SCRIPT, before=before)
    assert booted(boot)[0] == [[b"/libhttpserver-api.so", b"&!"], [b"/agent.so", b"7 7", b";"], [b"/app", b""]]


def test_a_name_may_have_dashes_and_points() -> None:
    """A buildpack's default, which a container takes."""
    environment = {"FOO-BAR": "costs $5", "FOO.BAR-": "a?=b"}
    assert booted(osvline.compose([], environment, ["/app"], script=SCRIPT))[1].items() >= {
        b"FOO-BAR": b"costs $5", b"FOO.BAR-": b"a?=b",
    }.items()  # fmt: skip


NO_VARIABLE = "cannot be an environment variable of a unikernel: correct its name"


@pytest.mark.parametrize(("environment", "why"), [
    ({"A=B": "x"}, NO_VARIABLE), ({"": "x"}, NO_VARIABLE), ({"A B": "x"}, NO_VARIABLE), ({"A": "\0"}, "The value of 'A' has a NUL"),
])  # fmt: skip
def test_what_can_be_no_variable_is_refused(environment: dict[str, str], why: str) -> None:
    with pytest.raises(osvline.VariableRefused, match=why):
        osvline.compose([], environment, ["/app"], script=SCRIPT)


def test_the_oracle_knows_the_documented_examples() -> None:
    """The traps that were measured on a real kernel."""
    assert osv.boot(b"--env=MSG=a\\ b /app", {})[1] == {b"MSG": b"a b"}
    assert osv.boot(b'/app "a b" c;/next &!', {})[0] == [[b"/app", b"a b", b"c", b";"], [b"/next", b"&!"]]
    assert osv.boot(b"/app 'a b'", {})[0] == [[b"/app", b"'a", b"b'", b""]]
    assert osv.boot(b'/app "cost $5"', {})[0] == [[b"/app", b"cost ", b""]]
    assert osv.boot(b"--env=P=8 /app $P x$P", {})[0] == [[b"/app", b"8", b"x8", b""]]
    for wrong in (b"--opt= /app", b'/app "\xc3\xa9"', b'/app "open'):
        with pytest.raises(osv.Refused):
            osv.boot(wrong, {})
