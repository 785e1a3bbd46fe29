"""systemd units for the lines of Davit's Procfile. Pure: texts by file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TARGET = "davit.target"
PREPARE = "davit-prepare.service"
REDIS = "davit-redis.service"
OUTLIVES_PREPARE = frozenset({"redis"})
"""Waits for what is made ready, and goes on when that is made ready again: no setting but DAVIT_HOME concerns it, and the log's
window is in its memory."""
RUNTIME_DIRECTORY = "davit-prepare"
"""Below /run, root's alone, and there exactly as long as what was made ready holds: so nothing else may be in it."""
ROOT_NEEDED = frozenset({"runtime"})
LEAVES_ALIVE = frozenset({"runtime", "router"})
"""What they started (dynos, HAProxy) outlives them."""
LOW_PORTS = frozenset({"router", "web", "ssh"})
AFTER = {"web": ("redis",), "worker": ("redis", "runtime"), "runtime": ("redis", "logs", "router"), "router": ("redis",)}


@dataclass(frozen=True)
class Installation:
    """What units are made from.

    Attributes:
        checkout: where Davit is.
        home: DAVIT_HOME.
        user: who owns it, and whom processes run as that need no root.
        environment_file: settings; read by systemd, so no secret is in a unit.
        environment: what else processes find in their environment; nothing secret.
        processes: name → argv.
    """

    checkout: Path
    home: Path
    user: str
    environment_file: Path
    environment: Mapping[str, str]
    processes: Mapping[str, Sequence[str]]


def compose(made: Installation) -> dict[str, str]:
    """All units, by file name."""
    units = {TARGET: _target(made), PREPARE: _prepare(made)}
    return units | {f"davit-{name}.service": _service(made, name, argv) for name, argv in made.processes.items()}


def _target(made: Installation) -> str:
    wanted = " ".join(f"davit-{name}.service" for name in made.processes)
    return f"[Unit]\nDescription=Davit\nWants={wanted}\nAfter=network-online.target\nWants=network-online.target\n\n" + (
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _prepare(made: Installation) -> str:
    davit = [str(made.checkout / "bin" / "davit")]
    return "\n".join(
        [
            "[Unit]",
            "Description=Davit: home, database and stack made ready",
            "After=network-online.target",
            f"PartOf={TARGET}",
            "",
            "[Service]",
            "Type=oneshot",
            "RemainAfterExit=yes",
            *_context(made),
            f"RuntimeDirectory={RUNTIME_DIRECTORY}",
            "RuntimeDirectoryMode=0700",
            f"ExecStart={_line([*davit, 'install', '--prepare', '--environment', str(made.environment_file)])}",
            "TimeoutStartSec=30min",
            "",
        ]
    )


def _service(made: Installation, name: str, argv: Sequence[str]) -> str:
    """One process. The memory that a restart loses is none of the apps': whatever runs goes on.

    systemd ends what requires ``davit-prepare`` before it restarts that, and starts it again afterwards (systemd.unit(5)): so the
    processes of one version never work on what another has made ready.
    """
    root = name in ROOT_NEEDED
    after = " ".join([PREPARE, *(f"davit-{other}.service" for other in AFTER.get(name, ()) if other in made.processes)])
    lines = [
        "[Unit]",
        f"Description=Davit: {name}",
        f"After={after}",
        f"{'Wants' if name in OUTLIVES_PREPARE else 'Requires'}={PREPARE}",
        f"PartOf={TARGET}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        *_context(made),
        f"ExecStart={_line(argv)}",
        "Restart=always",
        "RestartSec=1",
        f"KillMode={'process' if name in LEAVES_ALIVE else 'control-group'}",
        "TimeoutStopSec=30",
        "LimitNOFILE=1048576",
        "TasksMax=infinity",
    ]
    if not root:
        lines += [f"User={made.user}", "NoNewPrivileges=yes"]
        lines += ["AmbientCapabilities=CAP_NET_BIND_SERVICE"] if name in LOW_PORTS else []
    return "\n".join([*lines, "", "[Install]", f"WantedBy={TARGET}", ""])


def _context(made: Installation) -> list[str]:
    variables = [f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(made.environment.items())]
    return [f"WorkingDirectory={made.checkout}", *variables, f"EnvironmentFile={made.environment_file}"]


def _line(argv: Sequence[str]) -> str:
    return " ".join(_quoted(word, command=True) for word in argv)


def _quoted(word: str, command: bool = False) -> str:
    """A word as systemd.syntax(7) reads it: ``%`` starts a specifier, ``$`` (in a command) a variable."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if command:
        escaped = escaped.replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(c in escaped for c in " \t'\"\\;") else escaped
