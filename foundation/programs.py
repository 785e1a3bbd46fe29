"""One way to run a program and wait for it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import IO, Any

from foundation.errors import DavitError


class ProgramFailed(DavitError):
    """A program that Davit runs could not be started, failed, or took too long.

    Attributes:
        returncode: its exit status; negative for a signal; None when it never started or ran out of time.
        stderr: what it wrote there, decoded leniently.
    """

    id, status = "program_failed", 500

    def __init__(self, message: str, *, returncode: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr


def run(
    argv: Sequence[str | PathLike[str]],
    *,
    input: bytes | None = None,
    stdin: int | IO[bytes] | None = None,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: str | PathLike[str] | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, capturing what it prints.

    Args:
        argv: the program and its arguments; never holds a secret (command lines are public on a host).
        input: bytes for its standard input; nothing (/dev/null) by default.
        stdin: a file for its standard input instead of ``input``.
        timeout: seconds, after which it is killed.
        env: its whole environment; this process's by default.
        check: raise when its exit status is not 0.
        pass_fds: descriptors it inherits.

    Raises:
        ProgramFailed: it is missing, took too long, or (with ``check``) failed; the sentence ends with its last words.
    """
    words = [str(word) for word in argv]
    source: dict[str, Any] = {"input": input} if input is not None else {"stdin": stdin or subprocess.DEVNULL}
    try:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            words, **source, capture_output=True, timeout=timeout, env=env, cwd=cwd, pass_fds=pass_fds
        )
    except FileNotFoundError:
        raise ProgramFailed(f"The program {words[0]} is not installed; `davit doctor` says how to get it.") from None
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{shlex.join(words[:3])} … did not finish within {timeout:g} seconds.") from None
    if check and done.returncode != 0:
        stderr = done.stderr.decode(errors="replace").strip()
        last = stderr.splitlines()[-1] if stderr else "it printed no reason"
        raise ProgramFailed(
            f"{shlex.join(words[:3])} failed with status {done.returncode}: {last}",
            returncode=done.returncode,
            stderr=stderr,
        )
    return done
