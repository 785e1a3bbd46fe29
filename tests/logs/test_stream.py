"""The window of recent lines: written, read, filtered, tailed, and Redis going away in between."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis as redis_py
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Unavailable
from logs import stream
from logs.resp import Client, Refused
from logs.room import Room
from logs.sender import BATCH, LINES, Sender
from logs.stream import Line
from logs.window import BACKSTOP, RESERVE, SHARES, SLACK, WINDOW, aside, fair, key, trim
from tests.conftest import wait_until
from tests.logs.conftest import OwnRedis

AT = datetime(2026, 11, 23, 16, 0, 0, 123456, timezone.utc)


def line(text: str = "hello", source: str = "app", process: str = "web.1") -> Line:
    return Line(AT, source, process, text)


def say(redis: Any, app_id: str, lines: list[Line]) -> None:
    """Emit, and wait until the lines are there, however busy the machine is."""
    stream.emit(redis, app_id, lines)
    assert stream.flush(redis, 20)


def texts(found: list[tuple[str, Line]]) -> list[str]:
    return [line.text for _, line in found]


def test_display_format_is_heroku_s() -> None:
    assert stream.format_line(line()) == "2026-11-23T16:00:00.123456+00:00 app[web.1]: hello"
    whole_second_elsewhere = AT.replace(microsecond=0).astimezone(timezone(timedelta(hours=2)))
    assert (
        stream.format_line(Line(whole_second_elsewhere, "heroku", "router", "at=info"))
        == "2026-11-23T16:00:00.000000+00:00 heroku[router]: at=info"
    )


moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(timezone.utc))


@given(moments, st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=200))
def test_what_is_kept_is_what_was_said(at: datetime, text: str) -> None:
    said = Line(at, "app", "web.1", text)
    packed = stream.pack((at - stream._EPOCH) // stream._MICROSECOND, said.source, said.process, text.encode())
    assert stream._unpack(packed) == said


def test_lines_come_back_in_order_with_ids(client: Client, app_id: str) -> None:
    say(client, app_id, [line("one"), line("two")])
    say(client, app_id, [line("three", "heroku", "router")])
    found = stream.recent(client, app_id, 10)
    assert [said for _, said in found] == [line("one"), line("two"), line("three", "heroku", "router")]
    assert [id for id, _ in found] == sorted((id for id, _ in found), key=stream.order)
    assert texts(stream.recent(client, app_id, 1)) == ["three"]
    assert stream.recent(client, app_id, 0) == []
    assert stream.recent(client, "no-such-app", 10) == []


def test_one_text_of_several_lines_cannot_forge_another_process(client: Client, app_id: str) -> None:
    forged = "a\n2026-11-23T16:00:00.000000+00:00 heroku[router]: b\r\u2028\x00c"
    say(client, app_id, [line(forged)])
    shown = [stream.format_line(said) for _, said in stream.recent(client, app_id, 10)]
    assert len(shown) == 2
    assert all(text.startswith("2026-11-23T16:00:00.123456+00:00 app[web.1]: ") and len(text.splitlines()) == 1 for text in shown)


@pytest.mark.parametrize(
    ("source", "dyno", "expected"),
    [
        (None, None, ["w1", "w10", "wk", "rt", "api", "sh"]),
        ("app", None, ["w1", "w10", "wk", "api"]),
        ("heroku", None, ["rt", "sh"]),
        (None, "web", ["w1", "w10", "sh"]),
        (None, "web.1", ["w1", "sh"]),
        ("app", "web.1", ["w1"]),
        (None, "router", ["rt"]),
        (None, "we", []),
    ],
)
def test_filters(client: Client, app_id: str, source: str | None, dyno: str | None, expected: list[str]) -> None:
    say(
        client,
        app_id,
        [
            line("w1", process="web.1"),
            line("w10", process="web.10"),
            line("wk", process="worker.1"),
            line("rt", "heroku", "router"),
            line("api", "app", "api"),
            line("sh", "heroku", "web.1"),
        ],
    )
    assert texts(stream.recent(client, app_id, 100, source, dyno)) == expected
    assert texts(stream.tail(client, app_id, "0-0", source, dyno, timeout=0)) == expected


def test_the_window_keeps_the_last_1500_lines(client: Client, app_id: str) -> None:
    for start in range(0, 4000, 500):
        say(client, app_id, [line(str(n)) for n in range(start, start + 500)])
    found = texts(stream.recent(client, app_id, 5000))
    assert found == [str(n) for n in range(2500, 4000)]


def test_a_loud_dyno_takes_none_of_the_platform_s_lines_nor_the_router_s(client: Client, app_id: str) -> None:
    quiet = [line("Scaled to web@1", "app", "api"), line("Starting process", "heroku", "web.1"), line("at=info", "heroku", "router")]
    said = [(f"{said.text} {n}", said) for n in range(3) for said in quiet]
    for text, of in said:  # the first of them are put aside long before the last are said
        say(client, app_id, [of._replace(text=text)])
        say(client, app_id, [line(str(n)) for n in range(1500)])
    window = stream.recent(client, app_id, 1500)
    assert [text for text in texts(window) if not text.isdecimal()] == [text for text, _ in said], "in the order in which they came"
    assert len(window) == 1500 and texts(window)[-100:] == [str(n) for n in range(1400, 1500)]
    assert texts(stream.recent(client, app_id, 1500, "heroku")) == [text for text, of in said if of.source == "heroku"]
    assert texts(stream.recent(client, app_id, 2, dyno="router")) == ["at=info 1", "at=info 2"]
    assert texts(stream.recent(client, app_id, 100)) == [str(n) for n in range(1400, 1500)], "the last hundred are the last hundred"


def test_a_busy_router_leaves_what_dynos_print(client: Client, app_id: str) -> None:
    say(client, app_id, [line("job done", process="worker.1")])
    for start in range(0, 6000, 500):
        say(client, app_id, [line(str(n), "heroku", "router") for n in range(start, start + 500)])
    assert texts(stream.recent(client, app_id, 1500)) == ["job done", *(str(n) for n in range(4501, 6000))]
    assert texts(stream.recent(client, app_id, 5, dyno="worker")) == ["job done"]


def test_what_is_kept_of_an_app_is_bounded(client: Client, app_id: str) -> None:
    kinds = [line("p", "heroku", "web.1"), line("r", "heroku", "router"), line("o")]
    for _ in range(20):
        say(client, app_id, [kind for kind in kinds for _ in range(200)])
    lines = [int(client.execute_command("XLEN", name)) for name in (key(app_id), *aside(app_id))]
    assert lines[0] <= WINDOW + SLACK + BATCH and lines[1:] == [RESERVE] * 3
    stream.forget(client, app_id)
    assert not client.execute_command("EXISTS", key(app_id), *aside(app_id))


def test_a_client_that_comes_back_misses_nothing_that_was_put_aside(client: Client, app_id: str) -> None:
    say(client, app_id, [line("seen")])
    [(seen, _)] = stream.recent(client, app_id, 1)
    say(client, app_id, [line("Process exited", "heroku", "web.1")])
    say(client, app_id, [line(str(n)) for n in range(6000)])
    following = stream.follow(client, app_id, after_id=seen)
    entry = next(following)
    assert entry and entry[1].text == "Process exited"


entries = st.lists(st.sampled_from(SHARES), max_size=60)


@given(entries, st.integers(0, 20))
def test_the_window_is_fair(names: list[str], extra: int) -> None:
    said = [(name, n) for n, name in enumerate(name for name in names for _ in range(40 + extra))]
    shown = fair(said, lambda entry: entry[0])
    assert shown == sorted(shown, key=lambda entry: entry[1])
    assert len(shown) == min(len(said), WINDOW)
    for name in SHARES:
        own = [entry for entry in said if entry[0] == name]
        kept = [entry for entry in shown if entry[0] == name]
        assert kept == own[len(own) - len(kept) :], "the newest of each"
        assert len(kept) >= min(len(own), RESERVE)


def test_a_redis_that_runs_no_script_still_forgets_what_is_old(own_redis: OwnRedis, app_id: str) -> None:
    stream.connect(own_redis.url).execute_command("ACL", "SETUSER", "default", "-eval")
    client = stream.connect(own_redis.url)
    say(client, app_id, [line(str(n)) for n in range(6000)])
    assert texts(stream.recent(client, app_id, 1500)) == [str(n) for n in range(4500, 6000)]
    assert int(client.execute_command("XLEN", key(app_id))) <= BACKSTOP + 100


def test_a_filter_looks_through_the_whole_window(client: Client, app_id: str) -> None:
    say(client, app_id, [line("rare", process="clock.1"), *(line(str(n)) for n in range(1000))])
    assert texts(stream.recent(client, app_id, 5, dyno="clock")) == ["rare"]


def test_tail_wakes_up_for_a_new_line_and_skips_those_it_does_not_want(client: Client, app_id: str) -> None:
    say(client, app_id, [line("old")])
    after = stream.newest(client, app_id)
    found: list[tuple[str, Line]] = []
    reader = threading.Thread(target=lambda: found.extend(stream.tail(client, app_id, after, "app", "web", 20)))
    reader.start()
    say(client, app_id, [line("other", process="worker.1")])
    say(client, app_id, [line("wanted")])
    reader.join(20)
    assert texts(found) == ["wanted"]


def test_tail_gives_up_after_its_time(client: Client, app_id: str) -> None:
    assert stream.tail(client, app_id, "$", timeout=0.05) == []


def test_a_client_s_own_last_event_id_is_not_believed(client: Client, app_id: str) -> None:
    for id in ("", "x", "1-x", "$ COUNT", "-", "٣-٤", "9" * 100):
        assert stream.tail(client, app_id, id, timeout=0) == []


def test_follow_shows_the_window_then_what_comes_and_nothing_twice(client: Client, app_id: str) -> None:
    say(client, app_id, [line(str(n)) for n in range(10)])
    following = stream.follow(client, app_id, 3, quiet=0.05)
    shown = [entry[1].text for entry in itertools.islice(following, 3) if entry]
    assert next(following) is None
    say(client, app_id, [line("10"), line("11")])
    for entry in following:
        if entry:
            shown.append(entry[1].text)
        if len(shown) == 5:
            break
    assert shown == ["7", "8", "9", "10", "11"]


def test_follow_goes_on_after_the_id_that_a_client_saw_last(client: Client, app_id: str) -> None:
    say(client, app_id, [line("seen"), line("missed")])
    seen = stream.recent(client, app_id, 2)[0][0]
    following = stream.follow(client, app_id, 100, after_id=seen, quiet=0.05)
    entry = next(following)
    assert entry and entry[1].text == "missed"


@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"protocol": 3}, {"decode_responses": True}])
def test_redis_py_is_taken_as_well(redis_server: str, app_id: str, options: dict[str, object]) -> None:
    client = redis_py.from_url(redis_server, **options)
    say(client, app_id, [line("é"), line("two")])
    assert texts(stream.recent(client, app_id, 10)) == ["é", "two"]
    assert texts(stream.tail(client, app_id, "0-0")) == ["é", "two"]
    assert stream.tail(client, app_id, stream.newest(client, app_id), timeout=0.05) == []
    client.close()

    async def read() -> list[tuple[str, Line]]:
        waiting = redis.asyncio.from_url(redis_server, **options)
        try:
            assert await stream.atail(waiting, app_id, "9999999999999", timeout=0.05) == []
            return await stream.atail(waiting, app_id, "0-0", dyno="web")
        finally:
            await waiting.aclose()

    assert texts(asyncio.run(read())) == ["é", "two"]


def test_forget_removes_the_window(client: Client, app_id: str) -> None:
    say(client, app_id, [line()])
    stream.forget(client, app_id)
    assert stream.recent(client, app_id, 10) == []


def test_a_process_that_ends_right_after_emit_has_not_lost_its_line(client: Client, redis_server: str, app_id: str) -> None:
    say(client, app_id, [line("parent")])
    child = os.fork()
    if not child:  # as RQ's work horse: a fork that ends with os._exit
        say(client, app_id, [line("child")])
        os._exit(0)
    os.waitpid(child, 0)
    assert texts(stream.recent(stream.connect(redis_server), app_id, 10)) == ["parent", "child"]


def test_a_command_that_redis_refuses_loses_only_its_own_lines(client: Client, app_id: str) -> None:
    client.execute_command("SET", key(app_id), "not a stream")
    say(client, app_id, [line()])
    say(client, app_id + "b", [line("fine")])
    assert texts(stream.recent(client, app_id + "b", 10)) == ["fine"]
    with pytest.raises(Unavailable):
        stream.recent(client, app_id, 10)
    with pytest.raises(Refused):
        client.execute_command("NO-SUCH-COMMAND")


@pytest.mark.code("L12")
def test_lines_wait_while_redis_is_away_and_loss_is_counted(own_redis: OwnRedis, app_id: str) -> None:
    client = stream.connect(own_redis.url)
    say(client, app_id, [line("before")])
    own_redis.kill()
    for start in range(0, LINES + 700, 100):
        stream.emit(client, app_id, [line(str(n)) for n in range(start, start + 100)])
    with pytest.raises(Unavailable):
        stream.recent(client, app_id, 10)
    own_redis.start()
    assert stream.flush(client, 20)
    report, *kept = texts(stream.recent(client, app_id, 1500))
    assert kept == [str(n) for n in range(LINES + 700 - 1499, LINES + 700)]
    assert report.startswith("Error L12 (local buffer overflow): ")  # of the platform's share: what came after it did not push it out


def test_lines_wait_when_the_system_gives_no_thread_for_them(own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stream.connect(own_redis.url)
    sender = Sender(client, stream.append, stream.overflow, trim, Room(client))
    start, refused = threading.Thread.start, [RuntimeError("can't start new thread")]

    def begin(thread: threading.Thread) -> None:
        if thread.name == "log-sender" and refused:
            raise refused.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    sender.put("a", [b"1 app web.1 first"])
    assert not refused
    sender.put("a", [b"1 app web.1 second"])
    assert sender.flush(20)
    assert int(client.execute_command("XLEN", key("a"))) == 2


def test_the_report_of_loss_comes_first_when_redis_is_back(own_redis: OwnRedis) -> None:
    client = stream.connect(own_redis.url)
    own_redis.kill()
    sender = Sender(client, stream.append, stream.overflow, trim, Room(client))
    sender.put("a", [b"1 app web.1 %d" % n for n in range(LINES)])
    wait_until(lambda: sender.away, "the sender noticing")
    sender.put("a", [b"1 app web.1 new"])
    reports: list[bytes] = []
    sender._overflow = lambda count, since: reports.append(b"%d" % count) or stream.overflow(count, since)  # type: ignore[func-returns-value]
    own_redis.start()
    assert sender.flush(20)
    assert int(client.execute_command("XLEN", key("a"))) >= WINDOW
    assert b"1" in reports


def test_loss_reads_as_an_l12_line() -> None:
    said = stream._unpack(stream.overflow(17, 1_795_449_600.9))
    assert said is not None
    assert (said.source, said.process) == ("heroku", "logplex")
    assert said.text == "Error L12 (local buffer overflow): 17 messages dropped since 2026-11-23T16:00:00+00:00"


def test_a_redis_that_answers_nothing_holds_nobody_up(own_redis: OwnRedis, app_id: str) -> None:
    client = stream.connect(own_redis.url, timeout=0.3)
    say(client, app_id, [line("before")])
    own_redis.freeze()
    done = threading.Event()

    def talk() -> None:
        for n in range(200):
            stream.emit(client, app_id, [line(str(n))])
        done.set()

    threading.Thread(target=talk, daemon=True).start()
    try:
        assert done.wait(20)
    finally:
        own_redis.thaw()
    assert stream.flush(client, 20)
    found = texts(stream.recent(client, app_id, 1500))
    assert found[0] == "before"
    # a frozen Redis may have taken a batch whose answer never came: it can be there twice, but nothing is missing
    assert [text for n, text in enumerate(found) if text not in found[:n]] == ["before", *map(str, range(200))]


def test_passwords_and_databases_in_the_url(davit_home: object, own_redis: OwnRedis, app_id: str) -> None:
    stream.connect(own_redis.url).execute_command("CONFIG", "SET", "requirepass", "se/cr@t")
    url = own_redis.url.replace("unix://", "unix://:se%2Fcr%40t@") + "?db=3"
    client = stream.connect(url)
    say(client, app_id, [line("in")])
    assert texts(stream.recent(client, app_id, 10)) == ["in"]
    other = redis_py.Redis(unix_socket_path=str(own_redis.socket), password="se/cr@t", db=3)
    assert other.xlen(key(app_id)) == 1
    other.close()
    with pytest.raises(Refused):
        stream.connect(own_redis.url).execute_command("PING")
