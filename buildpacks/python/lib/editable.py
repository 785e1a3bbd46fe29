"""Packages whose code stays where it is in the app (``-e .``).

What is installed of such a package is its directory's path, and the directory of a build is not that of a dyno.
"""

from __future__ import annotations

import re
from pathlib import Path

PATHS = ("*.pth", "*.egg-link", "__editable__*_finder.py", "*.dist-info/direct_url.json")


def settle(packages: Path, build: Path, home: Path) -> list[str]:
    """Let the environment name its directories as the running app finds them.

    Args:
        packages: the environment's site-packages.
        build: where the app is while it is built.
        home: where it is when it runs.

    Returns:
        The directories of ``build`` that a Python which runs now needs in its path instead.
    """
    needed: list[str] = []
    for pattern in PATHS:
        for file in packages.glob(pattern):
            text = file.read_text(errors="surrogateescape")
            if str(build) not in text:
                continue
            needed += _directories(file, text, str(build))
            file.unlink()  # may be a link to uv's own copy
            file.write_text(re.sub(rf"{re.escape(str(build))}(?![\w.-])", lambda _: str(home), text), errors="surrogateescape")
            for compiled in (packages / "__pycache__").glob(f"{file.stem}.*.pyc"):
                compiled.unlink()
    return list(dict.fromkeys(needed))


def _directories(file: Path, text: str, build: str) -> list[str]:
    if file.suffix == ".pth":
        return [line for line in text.splitlines() if line.startswith(build)]
    if file.suffix == ".py":  # setuptools' finder: a module's name and its directory or file
        return [str(Path(path).parent) for path in re.findall(rf"['\"]({re.escape(build)}(?:/[^'\"]*)?)['\"]", text)]
    return []


def of_repositories(content: bytes) -> bytes:
    """A requirements file in which packages of repositories are not editable: pip clones them to a place that is not the app's."""
    return re.sub(rb"(?m)^(\s*)(?:-e|--editable)[ \t=]+((?:git|hg|svn|bzr)\+)", rb"\1\2", content)
