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


def test_what_cannot_be_taken_away_costs_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(number: int) -> None:
        raise ValueError("netlink says what nobody expects")

    async def left(number: int) -> None:
        pass

    async def story() -> None:
        instance: Any = SimpleNamespace(veth=lambda number: f"dvnone{number}")
        network: Any = SimpleNamespace(forget=refuse)
        pool = Pool(instance, network, tmp_path, tmp_path, warm=0, disk=1 << 20, left=left)
        pool.free(pool.reserve())
        await pool.close()
        assert not pool._used

    asyncio.run(story())
    assert "netlink says what nobody expects" in caplog.text and "Task exception" not in caplog.text
