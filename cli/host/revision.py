"""What a Davit that systemd keeps was started from: its units, its settings, its code.

systemd starts a process again when it dies, and never because a file has changed. So ``davit-prepare``, before which no process
starts, notes what it found, and ``davit install`` compares that with what is there now. The note holds digests of settings, among
which are secrets: it lies in a directory of root's that systemd removes as soon as what was made ready holds no longer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cli.host import home
from foundation.settings import Settings
from hosts import units

NOTE = "revision.json"
PLACE = Path("/run") / units.RUNTIME_DIRECTORY

Revision = Mapping[str, str]
"""A digest of everything that a process is started from, by the name of its unit."""


def current(directory: Path, variables: Mapping[str, str], settings: Settings, checkout: Path) -> Revision:
    """What the processes would be started from now.

    Args:
        directory: where the units are.
        variables: the settings as they stand in the file.
        settings: what they mean.
        checkout: where Davit is.
    """
    common = json.dumps([sorted(variables.items()), code(checkout)])
    own = {units.REDIS: home.redis_configuration(settings.run)}
    found = {}
    for path in sorted(directory.glob("davit-*.service")):
        text = path.read_text()
        if path.name == units.PREPARE or f"PartOf={units.TARGET}" in text:
            found[path.name] = hashlib.sha256(json.dumps([text, own.get(path.name, common)]).encode()).hexdigest()
    return found


def code(checkout: Path) -> str:
    """A digest of what the processes load: Davit's rooms, and which packages are installed beside them."""
    rooms = [path.parent for path in checkout.glob("*/__init__.py") if path.parent.name != "tests"]
    files = [path for room in rooms for path in room.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    files += [path for name in ("app.py", "requirements.lock", ".venv/.ready") if (path := checkout / name).exists()]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(checkout)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def note(revision: Revision, place: Path) -> None:
    """Write down what is made ready now; nobody but its owner may read it."""
    descriptor = os.open(place / NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(revision), file)


def stale(revision: Revision, place: Path = PLACE) -> list[str]:
    """The units of ``revision`` that were not started from it; all of them where nothing is noted."""
    try:
        noted = json.loads((place / NOTE).read_text())
    except (OSError, ValueError):
        noted = {}
    return [name for name, digest in revision.items() if noted.get(name) != digest]


def restarted(names: Iterable[str]) -> list[str]:
    """The units to restart for these to be in force; systemd restarts with ``davit-prepare`` all that requires it."""
    return sorted({name if name == units.REDIS else units.PREPARE for name in names})
