"""DAVIT_HOME made ready: directories, keys, database, owner, the configuration of the embedded Redis."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from foundation import disk
from foundation.errors import DavitError
from foundation.settings import Settings

DIRECTORIES = ("keys", "repos", "builds", "caches", "slugs", "run", "log")
REDIS_MEMORY = "256mb"
"""A bound, because queues and the log windows must never take the machine; logs keep to three quarters of it (logs.room)."""
LONGEST = 50
"""Bytes of DAVIT_HOME's path: with a dyno's directory behind it, a socket's path may have 107 (unix(7))."""


class HomeError(DavitError):
    """DAVIT_HOME cannot be used."""

    id, status = "home_unusable", 500


def prepare(settings: Settings) -> None:
    """Make the home ready for the processes; idempotent.

    Raises:
        HomeError: it cannot be made or written.
        WrongDatabase: DATABASE_URL names a database that is not this home's; nothing was written.
    """
    from state import identity

    identity.check(settings)
    make_directories(settings.home)
    disk.sweep(settings.home, settings.home / "keys", settings.home / "keys" / "endpoints")
    if settings.redis_url is None:
        (settings.run / "redis.conf").write_text(redis_configuration(settings.run))
    _open_database()
    give_to_owner(settings.home)


def make_directories(home: Path) -> None:
    """The home (0700) and what is in it; an existing home keeps its owner."""
    if len(os.fsencode(home)) > LONGEST:
        raise HomeError(f"DAVIT_HOME ({home}) is too long a path for unix sockets; choose one of at most {LONGEST} bytes.")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        for name in DIRECTORIES:
            (home / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HomeError(f"DAVIT_HOME ({home}) cannot be made ready: {error.strerror}. Choose another directory.") from None


def give_to_owner(home: Path) -> None:
    """Where the home belongs to another user than root, what was just made in it belongs to that user, too."""
    owner = home.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    made = [home / name for name in DIRECTORIES] + [path for path in home.glob("*") if path.is_file()]
    for path in [*made, *(home / "keys").glob("*"), home / "run" / "redis.conf"]:
        if path.exists():
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def redis_configuration(run: Path) -> str:
    """redis.conf for the embedded server: a private unix socket, no TCP, nothing on disk (what it holds can be derived)."""
    return "\n".join(
        [
            "port 0",
            f"unixsocket {run / 'redis.sock'}",
            "unixsocketperm 700",
            f"dir {run}",
            "daemonize no",
            'save ""',
            "appendonly no",
            f"maxmemory {REDIS_MEMORY}",
            "maxmemory-policy noeviction",
            "databases 1",
            "loglevel notice",
            "",
        ]
    )


def _open_database() -> None:
    from state import accounts, db, domains, identity, signatures, vault

    vault.ensure_keys()
    signatures.ensure_key()
    db.upgrade()
    identity.unite()
    with db.transaction() as session:
        accounts.ensure_owner(session)
        domains.follow(session)


def main() -> None:
    """``python -m cli.host.home``: make DAVIT_HOME and the stack ready, for those who start the processes by other means."""
    from foundation.settings import settings
    from runtime import stacks

    try:
        prepare(settings())
        stacks.ensure(settings().stacks, mirror=settings().mirror, progress=lambda line: print(line, flush=True))
    except DavitError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
