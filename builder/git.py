"""How Davit runs C git: one environment, one set of limits, whatever is in the repository.

A repository's objects were chosen by a stranger. So no configuration but ours is read, no hook runs, no prompt opens,
and every git process has a ceiling on memory and processor time.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from foundation import programs

MEMORY = 512 << 20
"""Bytes of private memory (RLIMIT_DATA) that one git process may take. git needs both versions of a file in memory to
apply a delta, so this bounds the largest *changed* file that a client sends as a delta at about half of it; a file sent
whole is streamed, whatever its size."""
CPU_SECONDS = 900
"""Processor seconds that one git process may take: a pack of 1 GiB can inflate to a thousand times as much."""

CONFIG: Mapping[str, str] = {
    # Bounded memory: larger objects are streamed, caches and windows are small.
    "core.bigFileThreshold": "16m",
    "core.deltaBaseCacheLimit": "8m",
    "core.packedGitWindowSize": "1m",
    "core.packedGitLimit": "16m",
    "pack.windowMemory": "16m",
    "pack.deltaCacheSize": "8m",
    "pack.threads": "1",
    # Nothing of the host's or the repository's runs.
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "protocol.allow": "never",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "receive.autogc": "false",
    # The repositories belong to the user that runs Davit, which need not be the one that runs this process.
    "safe.directory": "*",
    # A ref is on the disk before its file has its name (packs are by default); see syncs_refs.
    "core.fsync": "reference",
    "tar.umask": "0022",
    "uploadpack.allowFilter": "true",
    "transfer.hideRefs": "refs/davit",
}


def environment(repository: Path, *, objects: Path | None = None, alternates: Sequence[Path] = ()) -> dict[str, str]:
    """The whole environment of a git process.

    Args:
        repository: the bare repository.
        objects: where new objects go, and the first place to look for objects; the repository's own by default.
        alternates: further object directories to read from.
    """
    values = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_DIR": str(repository),
        "GIT_CONFIG_COUNT": str(len(CONFIG)),
    }
    for number, (key, value) in enumerate(CONFIG.items()):
        values[f"GIT_CONFIG_KEY_{number}"], values[f"GIT_CONFIG_VALUE_{number}"] = key, value
    if objects is not None:
        values["GIT_OBJECT_DIRECTORY"] = str(objects)
    if alternates:
        values["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = ":".join(_quoted(path) for path in alternates)
    return values


def _quoted(path: Path) -> str:
    """A path as git's list of alternates wants it when it has a colon or a quote in it (git(1))."""
    text = str(path)
    if ":" not in text and not text.startswith('"'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def command(*words: str) -> list[str]:
    """The command line of ``git WORDS`` under the limits (prlimit(1): no code of ours runs between fork and exec)."""
    return ["prlimit", f"--data={MEMORY}", f"--cpu={CPU_SECONDS}", "--core=0", "git", *words]


def run(
    env: Mapping[str, str], *words: str, input: bytes | None = None, check: bool = True, timeout: float = CPU_SECONDS,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run ``git WORDS`` to its end; see :func:`foundation.programs.run`."""
    return programs.run(command(*words), env=env, input=input, check=check, timeout=timeout, pass_fds=pass_fds)


@lru_cache(maxsize=1)
def syncs_refs() -> bool:
    """Whether this host's git knows ``core.fsync`` (2.36; Ubuntu 22.04 has 2.34): an older one gives a ref's file its name, and
    packs refs, before anything of it is on the disk."""
    told = run({"PATH": os.environ.get("PATH", os.defpath)}, "version").stdout
    found = re.search(rb"(\d+)\.(\d+)", told)
    return found is not None and tuple(map(int, found.groups())) >= (2, 36)


@contextmanager
def running(
    env: Mapping[str, str],
    *words: str,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``git WORDS`` for the length of the block; killed when it is still there at the end."""
    process = subprocess.Popen(command(*words), env=dict(env), stdin=stdin, stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    pass  # what was buffered for it has nobody to read it
        process.wait()
