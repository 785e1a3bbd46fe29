"""The pool of slots without what it needs of the host."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundation.errors import Unavailable
from runtime.slots import Pool


def test_a_slot_that_cannot_be_made_is_told_and_leaves_its_number_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(number: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def left(number: int) -> None:
        pass

    async def story() -> None:
        instance: Any = SimpleNamespace(uids=lambda number: number << 16, veth=lambda number: f"dvnone{number}")
        network: Any = SimpleNamespace(connect=refuse, forget=lambda number: None)
        pool = Pool(instance, network, tmp_path, tmp_path, warm=2, disk=1 << 20, left=left)
        await pool.open(set())
        with pytest.raises(Unavailable, match="No place for a dyno could be made on this host: Too many open files"):
            await pool.take(1 << 20)
        await pool.close()
        assert not pool._used and not pool._ready

    asyncio.run(story())
    assert "no warm slot" in caplog.text and "Task exception" not in caplog.text


@pytest.mark.parametrize("cable", ["dvnone{}", "lo"])
def test_what_cannot_be_taken_away_costs_no_number_and_leaves_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cable: str
) -> None:  # fmt: skip
    """Also a cable that does not go by itself (``lo`` stands for it, which never does)."""
    expelled: list[int] = []

    def refuse(number: int) -> None:
        raise ValueError("netlink says what nobody expects")

    async def left(number: int) -> None:
        expelled.append(number)

    async def story() -> None:
        instance: Any = SimpleNamespace(veth=cable.format)
        network: Any = SimpleNamespace(disconnect=refuse, forget=refuse)
        pool = Pool(instance, network, tmp_path, tmp_path, warm=0, disk=1 << 20, left=left)
        number = pool.reserve()
        pool.free(number)
        await pool.close()
        assert expelled == [number] and not pool._used

    asyncio.run(story())
    assert caplog.text.count("was not taken away") == (2 if cable == "lo" else 1) and "Task exception" not in caplog.text


def test_a_number_from_which_the_firewall_was_not_taken_goes_to_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def left(number: int) -> None:
        raise ValueError("nft says what nobody expects")

    async def story() -> None:
        instance: Any = SimpleNamespace(veth=lambda number: f"dvnone{number}")
        network: Any = SimpleNamespace(forget=lambda number: None)
        pool = Pool(instance, network, tmp_path, tmp_path, warm=0, disk=1 << 20, left=left)
        number = pool.reserve()
        pool.free(number)
        await pool.close()
        assert pool._used == {number}

    asyncio.run(story())
    assert "nft says what nobody expects" in caplog.text and "Task exception" not in caplog.text
