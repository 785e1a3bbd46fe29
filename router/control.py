"""HAProxy's runtime API: one persistent connection to a generation's control socket, in interactive mode."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foundation.errors import Unavailable

_PROMPT = b"\n> "
LINE = 12_000
"""Bytes of a command line at the most; HAProxy reads it into one buffer (tune.bufsize)."""


class ControlFailed(Unavailable):
    """HAProxy's control socket does not answer."""

    id = "router_unavailable"


class Control:
    """Sends commands and reads answers, one at a time.

    Args:
        path: the control socket.
        preamble: commands to begin every connection with.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, path: Path, preamble: tuple[str, ...] = (), timeout: float = 10) -> None:
        self.path = path
        self.preamble = preamble
        self.timeout = timeout
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            ControlFailed: nobody listens.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.path), limit=2**28)
            self._streams = (reader, writer)
            writer.write(b"prompt\n")
            await asyncio.wait_for(reader.readuntil(_PROMPT), self.timeout)
            await asyncio.wait_for(self._talk(self.preamble), self.timeout)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            self.close()
            raise ControlFailed(f"HAProxy does not answer at {self.path.name}: {error}.") from None

    def close(self) -> None:
        """Hang up."""
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def run(self, *commands: str) -> list[str]:
        """Run commands and return their answers, stripped.

        Raises:
            ControlFailed: HAProxy is gone or does not answer in time.
        """
        async with self._lock:
            if self._streams is None:
                await self.open()
            try:
                return await asyncio.wait_for(self._talk(commands), self.timeout)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                self.close()
                raise ControlFailed(f"HAProxy did not answer a command: {error}.") from None

    async def _talk(self, commands: tuple[str, ...]) -> list[str]:
        assert self._streams is not None
        reader, writer = self._streams
        answers = []
        # a window of commands under way: the answers must not fill both directions at once
        for start in range(0, len(commands), 50):
            window = commands[start : start + 50]
            writer.write("".join(f"{command}\n" for command in window).encode())
            answers += [(await reader.readuntil(_PROMPT))[: -len(_PROMPT)].decode(errors="replace").strip() for _ in window]
        return answers
