"""The wire between processes: answers, errors, descriptors, and what a hang-up ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from foundation import wire
from foundation.errors import Conflict, DavitError, Unavailable
from foundation.wire import Call
from tests.conftest import wait_until


class Peer:
    """A server in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hangups: list[str] = []
        self.cancelled: list[str] = []
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._ready.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        handlers = {
            "echo": self._echo,
            "give": self._give,
            "take": self._take,
            "refuse": self._refuse,
            "break": self._break,
            "hold": self._hold,
        }
        server = wire.Server(self.path, handlers)
        await server.start()
        self._ready.set()
        await self._stop.wait()
        server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _echo(self, call: Call) -> dict[str, Any]:
        return call.params

    async def _give(self, call: Call) -> dict[str, Any]:
        reader, writer = os.pipe()
        os.write(writer, b"from the other side")
        os.close(writer)
        call.reply_fds.append(reader)
        return {}

    async def _take(self, call: Call) -> dict[str, Any]:
        for fd in call.fds:
            os.write(fd, b"written there")
            os.close(fd)
        return {"count": len(call.fds)}

    async def _refuse(self, call: Call) -> None:
        raise Conflict("That is taken.")

    async def _break(self, call: Call) -> None:
        raise RuntimeError("a secret detail")

    async def _hold(self, call: Call) -> None:
        call.at_hangup(lambda: self.hangups.append(call.params["name"]))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.append(call.params["name"])
            raise


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    directory = Path(tempfile.mkdtemp(prefix="dvw", dir="/tmp"))
    made = Peer(directory / "peer.sock")
    yield made
    made.stop()
    shutil.rmtree(directory)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(params=st.dictionaries(st.text(), json_values, max_size=5))
def test_what_is_sent_arrives(peer: Peer, params: dict[str, Any]) -> None:
    assert wire.call(peer.path, "echo", params).result == params


def test_letters_of_all_scripts_take_their_bytes_and_no_more(peer: Peer) -> None:
    params = {"text": "é" * 60_000, "half": "\ud800"}
    assert wire.call(peer.path, "echo", params).result == params


def test_a_connection_takes_one_call_after_the_other(peer: Peer) -> None:
    with wire.Connection(peer.path) as connection:
        assert [connection.call("echo", {"n": n}).result["n"] for n in range(100)] == list(range(100))


def test_descriptors_travel_both_ways(peer: Peer) -> None:
    (received,) = wire.call(peer.path, "give").fds
    assert os.read(received, 100) == b"from the other side"
    os.close(received)
    reader, writer = os.pipe()
    assert wire.call(peer.path, "take", fds=[writer]).result == {"count": 1}
    os.close(writer)
    assert os.read(reader, 100) == b"written there" and os.read(reader, 100) == b""
    os.close(reader)


def test_an_error_keeps_its_sentence_id_and_status(peer: Peer) -> None:
    with pytest.raises(DavitError) as caught:
        wire.call(peer.path, "refuse")
    assert (caught.value.message, caught.value.id, caught.value.status) == ("That is taken.", "conflict", 409)


def test_a_failure_inside_is_told_without_its_details(peer: Peer) -> None:
    with pytest.raises(DavitError, match="failed inside Davit") as caught:
        wire.call(peer.path, "break")
    assert "secret" not in caught.value.message


def test_an_unknown_call_is_named(peer: Peer) -> None:
    with pytest.raises(DavitError, match="no call named “fly”"):
        wire.call(peer.path, "fly")


def test_a_caller_who_goes_away_ends_its_call_and_what_hangs_on_it(peer: Peer) -> None:
    with pytest.raises(Unavailable, match="did not answer"):
        wire.call(peer.path, "hold", {"name": "impatient"}, timeout=0.2)
    wait_until(lambda: "impatient" in peer.hangups and "impatient" in peer.cancelled, "the hang-up")


def test_a_nudge_is_heard_and_nobody_listening_is_no_error(peer: Peer) -> None:
    wire.nudge(peer.path, "hold", {"name": "nudged"})
    wait_until(lambda: "nudged" in peer.hangups, "the nudge")
    wire.nudge(peer.path.with_name("nobody.sock"), "echo")


def test_nobody_listening_is_said(peer: Peer) -> None:
    with pytest.raises(Unavailable, match="nobody process is not running"):
        wire.call(peer.path.with_name("nobody.sock"), "echo")
    with pytest.raises(Unavailable, match="nobody process is not running"):
        asyncio.run(wire.acall(peer.path.with_name("nobody.sock"), "echo"))


def test_a_message_that_is_too_large_is_refused_before_it_is_sent(peer: Peer) -> None:
    with pytest.raises(DavitError, match="too large"):
        wire.call(peer.path, "echo", {"text": "x" * wire.PACKET})


def test_only_the_owner_can_open_the_socket(peer: Peer) -> None:
    assert peer.path.stat().st_mode & 0o777 == 0o600


def test_asyncio_code_calls_too(peer: Peer) -> None:
    assert asyncio.run(wire.acall(peer.path, "echo", {"a": 1})) == {"a": 1}


def test_many_callers_at_once_are_all_answered(peer: Peer) -> None:
    answers: list[int] = []
    ask: Callable[[int], None] = lambda n: answers.append(wire.call(peer.path, "echo", {"n": n}).result["n"])  # noqa: E731
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(50))
