"""``python -m logs``: dynos print into FIFOs, their lines are in the app's window; whoever dies in between."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foundation import wire
from foundation.errors import DavitError
from logs import stream
from logs.window import key
from runtime.dynodir import DynoDirectory, Record, boot_id
from tests.conftest import wait_until
from tests.logs.conftest import Logs, OwnRedis

NOISE = "import os\nwhile True: os.write(1, b'noise noise noise noise noise noise noise noise noise noise\\n' * 1000)"


def test_stdout_and_stderr_arrive_with_the_dyno_s_name(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id, "worker.2")
    dyno.run("sh", "-c", "echo out; echo err >&2; printf 'no end'").wait()
    found = logs.wait_for(app_id, lambda lines: len(lines) == 3)
    assert set(found) == {"out", "err", "no end"}
    lines = stream.recent(logs.client, app_id, 10)
    assert {(line.source, line.process) for _, line in lines} == {("app", "worker.2")}
    assert logs.lines(app_id, dyno="worker") == found


def test_order_is_kept(logs: Logs, app_id: str) -> None:
    logs.dyno(app_id).run("seq", "1400").wait()
    assert logs.wait_for(app_id, lambda lines: len(lines) >= 1400) == [str(n) for n in range(1, 1401)]


def test_a_dyno_that_was_there_before_is_found(davit_home: Path, redis_server: str, app_id: str) -> None:
    logs = Logs(davit_home, redis_server)
    try:
        logs.dyno(app_id).write(b"early\n")
        logs.start()
        assert logs.wait_for(app_id, bool) == ["early"]
    finally:
        logs.close()


@pytest.mark.parametrize("order", ["meta last", "meta first", "meta written in place"])
def test_a_directory_may_be_made_in_any_order(logs: Logs, app_id: str, order: str) -> None:
    directory = logs.home / "run/dynos" / "d1"
    directory.mkdir()
    meta = directory / "meta.json"
    text = f'{{"app_id": "{app_id}", "process": "web.1"}}'
    if order == "meta first":
        meta.write_text(text)
    wire.call(logs.home / "run/logs.sock", "ping")  # a moment for the news of the directory alone
    os.mkfifo(directory / "stdout")
    os.mkfifo(directory / "stderr")
    fd = os.open(directory / "stdout", os.O_RDWR)
    try:
        os.write(fd, b"here\n")
        if order == "meta written in place":
            with meta.open("w") as file:
                file.write(text[:10])
                file.flush()
                file.write(text[10:])
        elif order == "meta last":
            (directory / "m").write_text(text)
            (directory / "m").rename(meta)
        assert logs.wait_for(app_id, bool) == ["here"]
    finally:
        os.close(fd)


@pytest.mark.root
def test_as_another_user_it_reads_what_the_runtime_makes_as_root(davit_home: Path, own_redis: OwnRedis, app_id: str) -> None:
    user = "daemon"
    own_redis.socket.chmod(0o666)
    dynos = davit_home / "run/dynos"
    dynos.mkdir(parents=True)
    for path in (davit_home, davit_home / "run", dynos):
        shutil.chown(path, user, user)
    logs = Logs(davit_home, own_redis.url, user)
    fds: tuple[int, ...] = ()
    try:
        logs.start()
        directory = DynoDirectory(dynos / "d1")
        directory.create(Record("d1", app_id, "web.1", 1, "/x", boot_id()))
        fds = directory.make_fifos(0x10010000)
        os.write(fds[0], b"hello\n")
        assert logs.wait_for(app_id, bool) == ["hello"]
        directory.end()
        wait_until(lambda: not (directory.path / "stdout").exists(), "the FIFOs being taken away")
    finally:
        for fd in fds:
            os.close(fd)
        logs.close()


def test_other_directories_do_no_harm(logs: Logs, app_id: str) -> None:
    root = logs.home / "run/dynos"
    (root / "file").write_text("x")
    for name, meta in {
        "a": "{",
        "b": "[]",
        "c": '{"app_id": 1, "process": null}',
        "d": '{"app_id": "x", "process": "web.1"}',
    }.items():
        (root / name).mkdir()
        (root / name / "meta.json").write_text(meta)
    (root / "d" / "stdout").symlink_to("/etc/passwd")
    (root / "d" / "stderr").write_text("not a FIFO")
    logs.dyno(app_id).write(b"fine\n")
    assert logs.wait_for(app_id, bool) == ["fine"]
    assert logs.lines("x") == []


def test_an_ended_dyno_is_read_to_the_end_and_its_fifos_go(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    dyno.run("sh", "-c", "seq 1000; printf last >&2").wait()
    dyno.end()
    wait_until(lambda: dyno.collected, "the FIFOs being taken away")
    found = logs.wait_for(app_id, lambda lines: len(lines) == 1001)
    assert [text for text in found if text != "last"] == [str(n) for n in range(1, 1001)]
    assert dyno.directory.exists()
    (dyno.directory / "later").touch()
    other = logs.dyno(app_id)
    other.write(b"other\n")
    logs.wait_for(app_id, lambda lines: "other" in lines)


def test_a_dyno_that_ended_while_the_collector_was_away(davit_home: Path, redis_server: str, app_id: str) -> None:
    logs = Logs(davit_home, redis_server)
    try:
        dyno = logs.dyno(app_id)
        dyno.write(b"last words")
        dyno.end()
        logs.start()
        wait_until(lambda: dyno.collected, "the FIFOs being taken away")
        assert logs.wait_for(app_id, bool) == ["last words"]
    finally:
        logs.close()


def test_a_directory_that_vanishes_is_let_go(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    dyno.write(b"seen\nunfinished")
    logs.wait_for(app_id, bool)
    assert logs.process
    descriptors = Path(f"/proc/{logs.process.pid}/fd")

    def open_fifos() -> int:
        count = 0
        for fd in descriptors.iterdir():
            with contextlib.suppress(OSError):
                count += fd.readlink().is_relative_to(dyno.directory)
        return count

    assert open_fifos() == 2
    for name in ("stdout", "stderr", "meta.json"):
        (dyno.directory / name).unlink()
    dyno.directory.rmdir()
    wait_until(lambda: open_fifos() == 0, "the FIFOs being closed")
    logs.wait_for(app_id, lambda lines: "unfinished" in lines)


def test_kill_and_restart_loses_and_repeats_nothing_that_waited(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    dyno.write(b"".join(b"%d\n" % n for n in range(100)))
    logs.wait_for(app_id, lambda lines: len(lines) == 100)
    logs.kill()
    dyno.write(b"".join(b"%d\n" % n for n in range(100, 1400)))  # nobody reads: the FIFO keeps them
    logs.start()
    assert logs.wait_for(app_id, lambda lines: len(lines) >= 1400) == [str(n) for n in range(1400)]


def test_killed_while_lines_flow_nothing_is_repeated_and_a_moment_is_missing_at_most(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    writer = dyno.run(sys.executable, "-c", "import os,time\nfor n in range(1000): os.write(1, b'%d\\n' % n); time.sleep(0.001)")
    logs.wait_for(app_id, lambda lines: len(lines) > 100)
    logs.kill()
    logs.start()
    writer.wait(60)
    numbers = [int(text) for text in logs.wait_for(app_id, lambda lines: "999" in lines)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 900


@pytest.mark.code("L10")
def test_a_flood_is_counted_in_its_own_app_s_log_and_others_are_heard(logs: Logs, app_id: str) -> None:
    noisy = logs.dyno(app_id, "web.1")
    quiet_app = app_id + "quiet"
    quiet = logs.dyno(quiet_app, "web.1")
    flood = noisy.run(sys.executable, "-c", NOISE)
    report = re.compile(
        r"Error L10 \(output buffer overflow\): (\d+) messages dropped since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 \(web\.1 "
    )

    def reported() -> bool:
        return any(report.match(text) for text in logs.lines(app_id, source="heroku", dyno="logplex"))

    wait_until(reported, "the loss being reported")
    for n in range(20):
        quiet.write(b"%d\n" % n)
        logs.wait_for(quiet_app, lambda lines, n=n: lines[-1:] == [str(n)])  # type: ignore[misc]
    assert logs.lines(quiet_app) == [str(n) for n in range(20)]
    assert flood.poll() is None
    flood.kill()
    flood.wait()
    noisy.end()
    wait_until(lambda: noisy.collected, "the FIFOs being taken away")


def test_a_flood_never_stops_its_writer_for_good_and_every_line_is_accounted_for(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    total = 300_000
    writer = dyno.run("seq", str(total))
    writer.wait(60)
    dyno.end()
    wait_until(lambda: dyno.collected, "the FIFOs being taken away")

    def accounted_for() -> int:
        added = int(dict(_pairs(logs.client.execute_command("XINFO", "STREAM", key(app_id))))[b"entries-added"])
        reports = [re.search(r"(\d+) messages", text) for text in logs.lines(app_id, source="heroku")]
        return added - len(reports) + sum(int(found[1]) for found in reports if found)

    wait_until(lambda: accounted_for() >= total, "every line being there or counted")
    assert accounted_for() == total


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def test_long_lines_are_cut_and_bytes_without_a_line_end_do_not_pile_up(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    dyno.write(b"x" * 25_000 + b"\n")
    found = logs.wait_for(app_id, lambda lines: len(lines) == 3)
    assert [len(text) for text in found] == [10_000, 10_000, 5_000]


def test_while_redis_is_away_lines_wait_and_dynos_go_on(logs_with_own_redis: Logs, own_redis: OwnRedis, app_id: str) -> None:
    logs = logs_with_own_redis
    dyno = logs.dyno(app_id)
    dyno.write(b"before\n")
    logs.wait_for(app_id, bool)
    own_redis.kill()
    dyno.run("seq", "--format", "%0200.0f", "8000").wait(60)  # 1.6 MB: more than the FIFO holds, so it is read on
    dyno.write(b"during\n")
    own_redis.start()
    found = logs.wait_for(app_id, lambda lines: "during" in lines)
    assert [int(text) for text in found[:-1]] == list(range(8001 - 1499, 8001))
    dyno.write(b"after\n")
    logs.wait_for(app_id, lambda lines: "after" in lines)


def test_sigterm_hands_over_what_was_read(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    dyno.write(b"whole\npart")
    logs.wait_for(app_id, bool)
    assert logs.stop() == 0
    assert logs.lines(app_id) == ["whole", "part"]


def test_two_collectors_do_not_share_one_home(logs: Logs) -> None:
    second = subprocess.run([sys.executable, "-m", "logs"], env=logs.environment, timeout=30, capture_output=True)
    assert second.returncode == 1
    assert b"another logs process" in second.stderr
    assert wire.call(logs.home / "run/logs.sock", "ping").result == {}


def test_the_socket_answers_calls_and_says_what_it_does_not_know(logs: Logs) -> None:
    path = logs.home / "run/logs.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with wire.Connection(path) as connection:
        assert connection.call("ping").result == {}
        assert connection.call("watch", {"directory": "/nowhere/else"}).result == {}
        with pytest.raises(DavitError, match="no call named"):
            connection.call("nonsense")
        connection._socket.send(b"not json")
        assert b"bad_request" in connection._socket.recv(1000)
        connection._socket.send(b'{"call": [], "params": {}}')
        assert b"bad_request" in connection._socket.recv(1000)


def test_without_inotify_dynos_are_found_by_looking(
    davit_home: Path, redis_server: str, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from logs import inotify
    from logs.collector import Collector

    def refuse(self: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify.Inotify, "__init__", refuse)
    logs = Logs(davit_home, redis_server)
    collector = Collector(davit_home / "run/dynos", logs.client, davit_home / "run/logs.sock")
    thread = threading.Thread(target=collector.run)
    thread.start()
    try:
        dyno = logs.dyno(app_id)
        dyno.write(b"found\n")
        assert logs.wait_for(app_id, bool) == ["found"]
        dyno.end()
        wait_until(lambda: dyno.collected, "the FIFOs being taken away")
    finally:
        collector.stop()
        thread.join(20)
        collector.close()
        logs.close()


def test_idle_it_does_nothing(logs: Logs, app_id: str) -> None:
    dyno = logs.dyno(app_id)
    dyno.write(b"x\n")
    logs.wait_for(app_id, bool)
    assert logs.process
    status = Path(f"/proc/{logs.process.pid}/status")

    def switches() -> int:
        return sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", status.read_text()))

    def still() -> bool:
        before = switches()
        time.sleep(0.5)
        return switches() - before <= 2

    wait_until(still, "the process resting")
