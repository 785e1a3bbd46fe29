"""What a dyno finds in its environment, and how its command is started (pure).

Heroku's boot order (Dev Center, "Dynos and the dyno manager"; buildpack API): config vars and PORT, DYNO, HOME first,
then ``.profile.d/*.sh`` by name, then ``.profile``, then the command by bash.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.driver import Limits
from state.sizes import MIB, Size

PORT = 8080
"""What web dynos are told to listen on: each has a network namespace of its own, so all can have the same."""

PATH = "/usr/local/bin:/usr/bin:/bin"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

BOOT = """\
cd /app
for davit_profile in .profile.d/*.sh; do
  if [ -r "$davit_profile" ]; then . "$davit_profile"; fi
done
if [ -r .profile ]; then . ./.profile; fi
unset davit_profile
exec /bin/bash -c "$1"
"""
"""Sourced scripts may use unset variables and top-level ``return``: no ``set -eu`` here."""


def command(line: str) -> list[str]:
    """The argv that boots a dyno and runs ``line``, a Procfile command, by bash."""
    return ["/bin/bash", "-c", BOOT, "boot", line]


def compose(
    size: Size, name: str, config: Mapping[str, str], defaults: Mapping[str, str], *, port: int | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a dyno.

    Args:
        size: decides WEB_CONCURRENCY's and others' idea of the memory (MEMORY_AVAILABLE, DYNO_RAM: MB).
        name: ``web.1``, as DYNO.
        config: the release's config vars; they override ``defaults`` (the buildpacks' own).
        port: PORT for a web dyno.
        extra: of a one-off's request (TERM, COLUMNS, …); override config vars.
    """
    env = {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": CA_BUNDLE,
        "NODE_EXTRA_CA_CERTS": CA_BUNDLE,
        "MEMORY_AVAILABLE": str(size.memory),
        "DYNO_RAM": str(size.memory),
        **defaults,
        **config,
        **extra,
        "HOME": "/app",
        "DYNO": name,
    }
    if port is not None:
        env["PORT"] = str(port)
    return env


def limits(size: Size, cores: int) -> Limits:
    """What a size means to the kernel.

    The RAM of the size is where R14 begins; the kernel ends a dyno at twice that (R15), as on Heroku.
    """
    return Limits(
        memory=size.memory * MIB,
        memory_max=2 * size.memory * MIB,
        cpu_shares=size.cpu_shares,
        cpu_quota=float(cores),
        pids=size.pids,
        disk=size.disk * MIB,
    )
