"""A person's terminal: a program that runs in a pseudo-terminal, which is looked at and typed into."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Terminal:
    """A program in a terminal of its own.

    Args:
        argv, environment, cwd: the program.
        rows, columns: the size of the window.

    Attributes:
        seen: everything that was shown so far.
    """

    def __init__(self, argv: Sequence[str | Path], environment: Mapping[str, str], cwd: Path, rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self.seen = ""
        self.process = subprocess.Popen(
            [str(word) for word in argv], env={**environment, "TERM": "xterm"}, cwd=cwd, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the kernel tells the program."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def expect(self, text: str, seconds: float = 30) -> str:
        """Look until ``text`` is shown; returns what came before it, and forgets all that."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"“{text}” was not shown within {seconds:g} s: {self.seen!r}"
            if not self._look(0.2):
                assert text in self.seen, f"the program ended without showing “{text}”: {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before

    def _look(self, seconds: float) -> bool:
        if select.select([self._master], [], [], seconds)[0]:
            try:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
            except OSError:
                return False  # EIO: nobody has the other end any more
        return True

    def wait(self, seconds: float = 30) -> int:
        """The program's exit status, when it has ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._look(0.05)
        return self.process.wait(1)

    def close(self) -> None:
        """Close the window, as a person does; the program ends with it."""
        os.close(self._master)
        self.process.wait(30)
