"""The windows of all apps together never take the queue's room in Redis, and what is lost by a full one is told."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st

from foundation.clock import now
from logs import stream
from logs.lines import LIMIT
from logs.resp import Client, Refused
from logs.room import HIGH, LATE, Memory, Room, level, memory
from logs.sender import LINES
from logs.stream import Line
from logs.window import BYTES, RESERVE_BYTES, SLACK_BYTES, aside, key
from tests.conftest import wait_until
from tests.logs.conftest import Logs, OwnRedis

BOUND = 8 << 20


@pytest.fixture
def small_redis(davit_home: Path) -> Iterator[OwnRedis]:
    """A Redis with room for 8 MiB, which refuses what is beyond."""
    redis = OwnRedis(davit_home)
    redis.start("--maxmemory", str(BOUND), "--maxmemory-policy", "noeviction")
    yield redis
    redis.kill()


@pytest.fixture
def client(small_redis: OwnRedis) -> Iterator[Client]:
    client = connected(small_redis)
    yield client
    client.close()


def connected(redis: OwnRedis) -> Client:
    """A client whose lines are added as `logs` adds them."""
    client = stream.connect(redis.url)
    stream.sender(client, HIGH)
    return client


def say(redis: Any, app_id: str, *texts: str, source: str = "app", process: str = "web.1") -> None:
    stream.emit(redis, app_id, [Line(now(), source, process, text) for text in texts], wait=0)
    assert stream.flush(redis, 30)


def texts(redis: Any, app_id: str, **filters: Any) -> list[str]:
    return [line.text for _, line in stream.recent(redis, app_id, 1500, **filters)]


def used(redis: Any) -> int:
    found = memory(redis.execute_command("INFO", "memory"))
    assert found is not None
    return found.used


def size(redis: Any, app_id: str) -> int:
    """Memory of the app's lines."""
    return sum(redis.execute_command("MEMORY", "USAGE", name, "SAMPLES", 0) or 0 for name in (key(app_id), *aside(app_id)))


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(0, 20_000))
def test_only_the_largest_are_shortened_and_all_have_room(sizes: list[int], room: int) -> None:
    found = level(sizes, room)
    left = [min(size, found) for size in sizes]
    assert sum(left) <= room
    assert sum(sizes) > room or left == sizes, "nobody is shortened without need"
    assert left == sizes or sum(left) > room - len(sizes), "and nobody more than needed"


def test_what_redis_says_of_its_memory_is_read_from_either_client(small_redis: OwnRedis, client: Client) -> None:
    for told in (client.execute_command("INFO", "memory"), redis_py.Redis.from_url(small_redis.url).info("memory")):
        found = memory(told)
        assert found is not None and found.bound == BOUND and 0 < found.used < BOUND
    assert memory(b"used_memory:5\r\n") == Memory(5, 0), "a managed one may not tell its bound"
    assert memory(Refused("NOPERM")) is None


def test_long_lines_make_a_window_shorter_and_leave_the_platform_s(client: Client, app_id: str) -> None:
    say(client, app_id, "State changed", source="heroku")
    for n in range(8):
        say(client, app_id, *(f"{n * 100 + i} ".ljust(LIMIT, "x") for i in range(100)))
    kept = [int(client.execute_command("MEMORY", "USAGE", name, "SAMPLES", 0) or 0) for name in (key(app_id), *aside(app_id))]
    assert kept[0] <= BYTES + SLACK_BYTES + (2 << 20) and max(kept[1:]) <= RESERVE_BYTES
    shown = texts(client, app_id)
    numbers = [int(text.split()[0]) for text in shown[1:]]
    assert shown[0] == "State changed"
    assert numbers == list(range(numbers[0], 800)) and len(numbers) > 150, "the newest, none left out"
    assert texts(client, app_id, dyno="web.1")[0] == "State changed"
    assert [line.text for _, line in stream.recent(client, app_id, 700)] == shown, "however few are asked for"


def test_binary_output_of_many_apps_leaves_the_queue_its_room(client: Client) -> None:
    apps = [str(uuid.uuid4()) for _ in range(6)]
    for n in range(30):
        for app_id in apps:
            say(client, app_id, *["\ufffd" * (LIMIT // 3)] * 40)
            assert queued(client, f"rq:job:{n}")
    wait_until(lambda: used(client) < BOUND * HIGH + (1 << 20), "the windows being shortened")
    sizes = [size(client, app_id) for app_id in apps]
    assert min(sizes) > max(sizes) / 4, "each has its part"
    assert not any("L12" in text for app_id in apps for text in texts(client, app_id)), "and nothing was lost on the way"


@pytest.mark.parametrize("scripts", [True, False])
def test_many_apps_share_what_there_is_and_the_quiet_ones_stay_whole(small_redis: OwnRedis, scripts: bool) -> None:
    if not scripts:
        stream.connect(small_redis.url).execute_command("ACL", "SETUSER", "default", "-eval")
    client = connected(small_redis)
    quiet, loud = [f"quiet-{n}" for n in range(20)], [f"loud-{n}" for n in range(30)]
    for app_id in quiet:
        say(client, app_id, *(f"{n} ".ljust(200, "q") for n in range(20)))
    for app_id in loud:
        say(client, app_id, "Scaled to web@1", source="heroku", process="api")
    for n in range(6):
        for app_id in loud:
            say(client, app_id, *(f"{n * 250 + i} ".ljust(200, "x") for i in range(250)))
    wait_until(lambda: used(client) < BOUND * HIGH + (1 << 20), "the windows being shortened")
    assert all(len(texts(client, app_id)) == 20 for app_id in quiet)
    lengths = [len(texts(client, app_id)) for app_id in loud]
    assert min(lengths) > 200 and max(lengths) < 1500, lengths
    for app_id in loud:
        newest = texts(client, app_id)
        assert newest[-1].split()[0] == "1499"
        assert not scripts or newest[0] == "Scaled to web@1", "what the platform said was put aside"


def test_ten_times_as_many_apps_have_a_tenth_each(client: Client) -> None:
    apps = [f"app-{n}" for n in range(300)]
    for part in range(3):
        for start in range(0, len(apps), 50):
            for app_id in apps[start : start + 50]:
                stream.emit(client, app_id, [Line(now(), "app", "web.1", f"{part} {i} ".ljust(200, "x")) for i in range(40)], wait=0)
            assert stream.flush(client, 30)
    wait_until(lambda: used(client) < BOUND * HIGH + (1 << 20), "the windows being shortened")
    assert all(texts(client, app_id)[-1].startswith("2 39 ") for app_id in apps)


def test_a_redis_that_something_else_fills_loses_no_line_while_lines_wait(client: Client, app_id: str) -> None:
    fill(client)
    stream.emit(client, app_id, [Line(now(), "app", "web.1", str(n)) for n in range(2000)], wait=0)
    assert not stream.flush(client, 0.5)
    empty(client)
    assert stream.flush(client, 30)
    assert texts(client, app_id) == [str(n) for n in range(500, 2000)]


def test_lines_that_a_full_redis_refuses_are_told_when_it_is_not(client: Client, app_id: str) -> None:
    fill(client)
    stream.emit(client, app_id, [Line(now(), "app", "web.1", str(n)) for n in range(LINES + 7)], wait=0)
    assert not stream.flush(client, 0.5)
    empty(client)
    assert stream.flush(client, 60)
    said = [line for _, line in stream.recent(client, app_id, 1500)]
    [report] = [line.text for line in said if line.process == "logplex"]
    assert report.startswith("Error L12 (local buffer overflow): 7 messages dropped since ")
    assert said[-1].text == str(LINES + 6)


class HasRoomAgain:
    """A Redis that is full for some lines of the first batch and has room for the others: what a real one is only now and then."""

    def __init__(self, client: Client, *refused: bytes) -> None:
        self.execute_command, self._client, self._refused = client.execute_command, client, refused

    def pipeline(self, transaction: bool = True) -> Any:
        refused, self._refused = self._refused, ()
        return FullFor(self._client, refused) if refused else self._client.pipeline(transaction)


class FullFor:
    """Its pipeline."""

    def __init__(self, client: Client, refused: Sequence[bytes]) -> None:
        self._client, self._refused = client, refused
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        full = Refused("OOM command not allowed when used memory > 'maxmemory'.")
        return [full if self._is_refused(command) else self._client.execute_command(*command) for command in self._commands]

    def _is_refused(self, command: Sequence[Any]) -> bool:
        return isinstance(command[-1], bytes) and command[-1].endswith(tuple(b" " + word for word in self._refused))


def test_lines_stay_in_order_though_room_is_made_in_the_middle_of_a_batch(client: Client, app_id: str) -> None:
    def say_to(redis: Any, *words: str) -> None:
        stream.sender(redis).put(app_id, [stream.pack(n, "app", "web.1", word.encode()) for n, word in enumerate(words)])
        assert stream.flush(redis, 30)

    redis = HasRoomAgain(client, b"one", b"two", b"five", b"seven", b"eight")
    say_to(redis, "one", "two", "three", "four", "five", "six", "seven", "eight")
    *said, report, seven, eight = texts(client, app_id)
    assert said == ["three", "four", "six"] and report.startswith("Error L12 (local buffer overflow): 3 messages dropped since ")
    assert (seven, eight) == ("seven", "eight"), "what nothing came after is not lost"


def test_a_line_that_is_refused_for_its_own_sake_is_counted(client: Client, app_id: str) -> None:
    client.execute_command("SET", key(app_id), "no stream")
    say(client, app_id, "one", "two")
    client.execute_command("DEL", key(app_id))
    say(client, app_id, "three")
    report, three = texts(client, app_id)
    assert report.startswith("Error L12 (local buffer overflow): 2 messages dropped since ") and three == "three"


def test_room_is_made_for_who_wants_some(client: Client) -> None:
    with pytest.raises(Refused, match="OOM"):
        for n in range(100_000):
            client.execute_command("XADD", key(f"app-{n % 5}"), "*", "line", stream.pack(n, "app", "web.1", b"x" * 2000))
    assert used(client) > BOUND * HIGH
    assert Room(client).make()
    assert used(client) < BOUND * HIGH
    asked = commands(client, "scan")
    assert Room(client).make() and commands(client, "scan") == asked, "who comes after that looks for nothing"
    assert client.execute_command("SET", "job", "x" * 1000) == b"OK"
    assert all(texts(client, f"app-{n}") for n in range(5))


def test_others_leave_it_to_the_process_logs_until_it_is_late(small_redis: OwnRedis, client: Client) -> None:
    other = stream.connect(small_redis.url)
    number = 0

    def add(lines: Client) -> None:
        nonlocal number
        number += 1
        say(lines, f"app-{number % 5}", *["x" * 2000] * 20)

    while used(client) < BOUND * (HIGH + LATE) / 2:
        add(other)
    assert commands(client, "scan") == 0
    wait_until(lambda: add(client) or used(client) < BOUND * HIGH, "the windows being shortened by `logs`")
    asked = commands(client, "scan")
    assert asked > 0
    while used(client) < BOUND * LATE and commands(client, "scan") == asked:
        add(other)
    wait_until(lambda: add(other) or commands(client, "scan") > asked, "the windows being shortened by another where `logs` says nothing")


def commands(redis: Any, name: str) -> int:
    """How often Redis was asked this."""
    told = redis.execute_command("INFO", "commandstats").decode()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in told.splitlines() if line.startswith(f"cmdstat_{name}:"))


def test_a_redis_without_a_bound_is_given_one(own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logs.room.UNBOUNDED", BOUND)
    monkeypatch.setattr("logs.room.VAIN_UNBOUNDED", 0.0)
    client = connected(own_redis)
    client.execute_command("SET", "something-else", "x" * BOUND)
    for n in range(20):
        say(client, f"app-{n}", *["x" * 1000] * 600)
    thread = stream.sender(client)._room._thread
    assert thread
    thread.join(30)
    say(client, "app-0", *["x" * 1000] * 600)
    wait_until(lambda: sum(size(client, f"app-{n}") for n in range(20)) < BOUND, "the windows being shortened")
    assert min(len(texts(client, f"app-{n}")) for n in range(20)) > 50


def test_the_collector_keeps_a_dyno_that_prints_binary_from_filling_redis(davit_home: Path, small_redis: OwnRedis) -> None:
    logs = Logs(davit_home, small_redis.url)
    logs.start()
    try:
        dynos = {f"app-{n}": logs.dyno(f"app-{n}") for n in range(4)}
        for _ in range(15):
            for dyno in dynos.values():
                dyno.write((b"\xff" * 9999 + b"\n") * 10)
        wait_until(lambda: all(_added(logs.client, app_id) == 150 for app_id in dynos), "150 lines of each", 60)
        assert all(texts(logs.client, app_id)[-1] == "?" * 9999 for app_id in dynos)
        assert queued(logs.client, "rq:job:1")
        assert used(logs.client) < BOUND * (HIGH + LATE) / 2
    finally:
        logs.close()


def _added(redis: Any, app_id: str) -> int:
    if not redis.execute_command("EXISTS", key(app_id)):
        return 0
    told = redis.execute_command("XINFO", "STREAM", key(app_id))
    return int(told[told.index(b"entries-added") + 1])


def queued(redis: Any, name: str) -> bool:
    """Whether a job is taken, by a Redis that is asked as the builder asks it."""
    for _ in range(3):
        try:
            return bool(redis.execute_command("SET", name, "x" * 500) == b"OK")
        except Refused:
            assert Room(redis).make()
    return False


def fill(redis: Any) -> None:
    """Have Redis refuse whatever takes memory, as when something else fills it."""
    redis.execute_command("CONFIG", "SET", "maxmemory", 1)


def empty(redis: Any) -> None:
    redis.execute_command("CONFIG", "SET", "maxmemory", BOUND)
