"""What a sandbox reports is read as a stranger's bytes: the report, release YAML, app.json."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import appjson, report


def line(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


DONE = {"event": "done", "release": "", "procfile": None, "app_json": None, "buildpacks": ["python"], "names": ["Python"]}


def test_events_are_read_across_any_cut_of_the_bytes() -> None:
    data = line(event="step", step="compile", buildpack="python") + line(**DONE)
    for cut in range(len(data)):
        reader = report.Reader()
        events = reader.feed(data[:cut]) + reader.feed(data[cut:])
        assert [type(event) for event in events] == [report.Step, report.Done]


@pytest.mark.parametrize(
    "data",
    [
        b"not json\n",
        b"[]\n",
        b'"done"\n',
        line(event="unknown"),
        line(**{**DONE, "more": 1}),
        line(**{**DONE, "names": ["x"] * 21}),
        line(**{**DONE, "procfile": 7}),
        line(event="failed", message="x" * 20_001),
        line(**DONE) + line(**DONE),
        line(event="failed", message="x") + line(**DONE),
        b"[" * 100_000 + b"\n",
        b"x" * (report.LINE_LIMIT + 1),
        line(event="step", step="detect", buildpack="x") * (report.LINES_LIMIT + 1),
    ],
)
def test_a_report_that_is_none_of_ours_ends_the_build_with_a_sentence(data: bytes) -> None:
    with pytest.raises(report.ReportError):
        report.Reader().feed(data)


@given(st.binary(max_size=500))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    try:
        report.Reader().feed(data)
    except report.ReportError:
        pass


@pytest.mark.parametrize(
    "printed", [b"", b"---", b"---\n", b"--- {}\n", b"{}", b"addons: []\n", b"---\ndefault_process_types:\n"]
)
def test_release_output_that_says_nothing_is_legal_in_all_its_forms(printed: bytes) -> None:
    assert report.parse_release(printed, "x") == report.BuildpackRelease()


def test_release_output_gives_types_and_config_vars() -> None:
    printed = b"---\naddons: [heroku-postgresql]\nconfig_vars:\n  A: 1\n  B-C: true\ndefault_process_types:\n  web: npm start\n"
    assert report.parse_release(printed, "x") == report.BuildpackRelease({"web": "npm start"}, {"A": "1", "B-C": "true"})


@pytest.mark.parametrize(
    "printed",
    [
        b"- a\n",
        b"text",
        b"a: b: c",
        b"\xff\xfe\x00",
        b"default_process_types: [web]\n",
        b"default_process_types:\n  web: [a]\n",
        b"config_vars:\n  A: {b: c}\n",
        b"config_vars:\n  A=B: c\n",
        b"config_vars:\n  1: c\n",
        b"config_vars:\n  '': c\n",
        b"config_vars:\n  .site: c\n",
        b'config_vars:\n  A: "a\\0b"\n',
        b'config_vars:\n  A: "\\ud800"\n',
        b"config_vars: {A: 0x" + b"f" * 4000 + b"}\n",
        b"!!python/object/apply:os.system ['true']\n",
        b"[" * 30_000,
        b"config_vars: {A: !!bool x}\n",
        b"config_vars: !!timestamp x\n",
        b"a: &a [x,x]\n"
        + b"".join(b"%c: &%c [*%c,*%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 120))
        + b"default_process_types: {web: *z}\n",
    ],
)
def test_release_output_that_cannot_be_used_is_an_error_that_names_the_buildpack(printed: bytes) -> None:
    with pytest.raises(report.ReleaseError, match="the-pack"):
        report.parse_release(printed, "the-pack")


@given(st.binary(max_size=200))
def test_no_release_output_fails_otherwise(printed: bytes) -> None:
    try:
        report.parse_release(printed, "x")
    except report.ReleaseError:
        pass


def test_app_json_gives_health_checks_and_ignores_the_rest() -> None:
    content = json.dumps(
        {"name": "x", "addons": [1], "healthchecks": {"web": [{"path": "/up", "attempts": 5, "uptime": 3}]}}
    ).encode()
    check = appjson.healthchecks(content)["web"][0]
    assert (check.path, check.attempts, check.timeout, check.type) == ("/up", 5, 5, "startup")


def test_checks_that_nobody_makes_are_named() -> None:
    written = {"web": [{"path": "/up"}, {"path": "/alive", "type": "liveness"}], "worker": {"path": "/jobs"}}
    first, second = appjson.not_asked(appjson.healthchecks(json.dumps({"healthchecks": written}).encode()))
    assert "liveness check of /alive" in first
    assert "/jobs" in second and "worker is not the web process type" in second


@pytest.mark.parametrize("value", [[{"path": "/up"}], {"path": "/up"}, {"web": {"path": "/up"}}, {"web": [{"path": "/up"}]}])
def test_one_check_may_be_written_without_list_or_type(value: object) -> None:
    assert appjson.healthchecks(json.dumps({"healthchecks": value}).encode())["web"][0].path == "/up"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "not valid JSON .line 1"),
        (b"\xff", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b'{"healthchecks": {"web": [{"path": "up"}]}}', r"healthchecks\.web\.0: the path must begin with /"),
        (b'{"healthchecks": {"web": [{"attempts": 0}]}}', r"healthchecks\.web\.0\.attempts"),
        (b'{"healthchecks": {"web": [{"timeout": "5"}]}}', r"healthchecks\.web\.0\.timeout"),
        (b'{"healthchecks": {"web": [{"wait": NaN}]}}', "not valid JSON"),
        (b'{"healthchecks": 5}', "healthchecks"),
    ],
)
def test_a_wrong_app_json_is_an_error_that_names_the_place(content: bytes, sentence: str) -> None:
    with pytest.raises(appjson.AppJsonError, match=sentence):
        appjson.healthchecks(content)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["web", "path", "healthchecks", "x"]), v, max_size=3),
        max_leaves=8,
    )
)
def test_no_app_json_fails_otherwise(value: object) -> None:
    try:
        appjson.healthchecks(json.dumps({"healthchecks": value}).encode())
    except appjson.AppJsonError as error:
        assert error.message.endswith(".")


def test_what_the_error_quotes_of_app_json_is_short_and_printable() -> None:
    for value in ({"\x1b[31m" * 100: [{"attempts": 0}]}, {"web": [{"type": "\x1b]0;" + "x" * 10_000}]}):
        with pytest.raises(appjson.AppJsonError) as caught:
            appjson.healthchecks(json.dumps({"healthchecks": value}).encode())
        assert len(caught.value.message) < 500 and caught.value.message.isprintable()
