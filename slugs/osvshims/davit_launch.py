"""``python -m davit_launch SCRIPT|-m MODULE|-c CODE [ARGUMENT…]``: what Python would do with these words itself.

On OSv Python takes a script that it is given by path for a terminal (isatty says so of every file) and reads commands from it
one by one; run from here, the script is a script.
"""

from __future__ import annotations

import os
import runpy
import sys


def main(words: list[str]) -> None:
    """Run what ``words`` say, in /app."""
    if "OSV_VERSION" in os.environ and os.getcwd() == "/":  # noqa: PTH109
        os.chdir("/app")  # Capstan has no word for the directory
    if words[:1] == ["-m"]:
        sys.argv[:] = words[1:]
        _first(os.getcwd())  # noqa: PTH109
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[:1] == ["-c"]:
        sys.argv[:] = ["-c", *words[2:]]
        _first("")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})  # noqa: S102
    else:
        sys.argv[:] = words
        _first(os.path.dirname(os.path.realpath(words[0])))  # noqa: PTH120
        runpy.run_path(words[0], run_name="__main__")


def _first(place: str) -> None:
    """What Python looks into first, in this module's place; with -P or PYTHONSAFEPATH it has none."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = place


if __name__ == "__main__":
    main(sys.argv[1:])
