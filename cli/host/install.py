"""``davit install``: systemd keeps Davit's processes instead of ``davit up``'s supervisor. Told step by step."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cli.host import doctor, environment, home, procfile, ready, record, revision
from foundation import disk
from foundation.errors import DavitError
from foundation.programs import ProgramFailed, run
from foundation.settings import Settings, from_environment
from hosts import units
from state import identity

CHECKOUT = Path(__file__).resolve().parents[2]
UNITS = Path("/etc/systemd/system")
USER = "davit"
COMMAND = Path("/usr/local/bin/davit")
PATIENCE = 600.0
"""Seconds that the processes may take to answer: a small virtual machine without acceleration takes minutes."""

_ENVIRONMENT_FILE = re.compile(r"^EnvironmentFile=(.+)$", re.M)

Say = Callable[[str], None]


class CannotInstall(DavitError):
    """systemd units cannot be installed here."""

    id, status = "cannot_install", 500


def install(file: Path, user: str | None, say: Say, *, start: bool) -> None:
    """Write units, enable them, and start them when asked; what is so already is left as it is.

    What runs is restarted when its settings, its unit or Davit's code have changed since it was started: all but Redis, unless
    the change is Redis's own.

    Args:
        file: settings, ``NAME=VALUE`` a line; an empty one is made where there is none.
        user: owns DAVIT_HOME and runs all processes but ``runtime``; made where there is none. None: who owns it already, and
            ``davit`` where it is not there yet.

    Raises:
        CannotInstall: not root, no systemd, or ``davit up`` runs.
        SettingError: a setting cannot be used.
        WrongDatabase: DATABASE_URL names a database that is not this home's.
    """
    if os.geteuid() != 0:
        raise CannotInstall("`davit install` must run as root, because it writes systemd units: try `sudo davit install`.")
    if not Path("/run/systemd/system").is_dir():
        raise CannotInstall("This machine was not started by systemd; `davit up` starts Davit without it.")
    _settings_file(file)
    variables = read_environment(file)
    settings = from_environment(variables)
    if start and record.running_supervisor(settings.run) is not None:
        raise CannotInstall(f"`davit up` runs the Davit in {settings.home}: `davit down --keep-apps` first, and apps serve on.")
    if start:
        identity.check(settings)
    user = user or owner(settings.home)
    _make_user(user, settings.home, say)
    if warning := as_root(user, settings.home):
        say(warning)
    _compile()
    texts = compose(file, variables, settings, user)
    changed = write(texts, UNITS)
    if not COMMAND.exists():
        COMMAND.symlink_to(CHECKOUT / "bin" / "davit")
    if changed:
        say(f"Wrote {', '.join(changed)}.")
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "--quiet", "enable", *(name for name in texts if name != units.PREPARE)], timeout=120)
    if gone := unwanted(texts, UNITS):
        run(["systemctl", "--quiet", "disable", *gone], timeout=120)
    if start:
        _start(settings, variables, texts, say)
    elif _is_prepared() and revision.stale(revision.current(UNITS, variables, settings, CHECKOUT)):
        say("Davit runs on as it was; `davit install --start` puts the change in force, and apps serve on meanwhile.")


def _start(settings: Settings, variables: Mapping[str, str], texts: Mapping[str, str], say: Say) -> None:
    _put_in_force(settings, variables, say)
    _prepared()
    run(["systemctl", "start", units.TARGET], timeout=2 * PATIENCE)
    _remove(unwanted(texts, UNITS), say)
    # the worker listens nowhere, and what it said of itself may have been said by its predecessor
    names = [name for name in procfile.wanted(CHECKOUT, environment.build(settings, variables)) if name != "worker"]
    try:
        ready.wait(names, settings, PATIENCE)
    except ready.NotReady:
        late = [name for name in names if not ready.answers(name, settings)]
        told = _journal("--lines=8", *(word for name in late for word in ("--unit", f"davit-{name}")))
        raise CannotInstall(f"Davit does not answer ({', '.join(late) or 'it did just now'}); its last words:\n{told}") from None
    say(f"Davit runs. Apps: {settings.app_url('NAME')}  API and git: {settings.api_url}")


def _put_in_force(settings: Settings, variables: Mapping[str, str], say: Say) -> None:
    """Restart what runs with other settings, units or code than those that are here; the database is migrated in between."""
    stale = revision.stale(revision.current(UNITS, variables, settings, CHECKOUT))
    if not stale or not _is_prepared():
        return
    say("Restarting Davit, for its settings or its code have changed; apps serve on.")
    # what fails in this is told by those who look afterwards
    run(["systemctl", "try-restart", *revision.restarted(stale)], timeout=3 * PATIENCE, check=False)


def _is_prepared() -> bool:
    return run(["systemctl", "--quiet", "is-active", units.PREPARE], check=False).returncode == 0


def _remove(names: Collection[str], say: Say) -> None:
    """Units of processes that this Davit has no longer: an own Redis, say, where REDIS_URL names another."""
    for name in names:
        run(["systemctl", "stop", name], timeout=120)
        (UNITS / name).unlink()
        say(f"Removed {name}.")
    if names:
        run(["systemctl", "daemon-reload"])  # else systemd goes on knowing them


def _prepared() -> None:
    """The target would start without what could not be prepared, and nobody would hear why."""
    try:
        run(["systemctl", "start", units.PREPARE], timeout=3 * PATIENCE)
    except ProgramFailed:
        told = _journal("--lines=20", "--unit", units.PREPARE)
        raise CannotInstall(f"Davit could not be made ready to start; its last words:\n{told}") from None


def _journal(*words: str) -> str:
    done = run(["journalctl", "--no-pager", "--output=cat", "--boot", *words], check=False)
    return done.stdout.decode(errors="replace").strip()


def prepare(settings: Settings, file: Path, say: Say) -> None:
    """Before the processes start: home, keys, database, stack, and a note of what this was done for.

    Args:
        file: the settings' file.

    Raises:
        CannotInstall: something essential is missing.
    """
    found = revision.current(UNITS, read_environment(file), settings, CHECKOUT)  # first: what changes from here on is news
    failed = [point for point in doctor.examine(settings, essential=True) if point.level == "fail"]
    if failed:
        raise CannotInstall(
            "\n".join(["Davit cannot start here:", *(f"  {point.name}: {point.message} {point.remedy}" for point in failed)])
        )
    home.prepare(settings)
    from runtime import stacks

    stacks.ensure(settings.stacks, mirror=settings.mirror, progress=say)
    if place := os.environ.get("RUNTIME_DIRECTORY"):  # systemd.exec(5)
        revision.note(found, Path(place))


def compose(file: Path, variables: Mapping[str, str], settings: Settings, user: str) -> dict[str, str]:
    """The units, by file name; settings are not in them but in ``file``."""
    whole = environment.build(settings, variables)
    search = whole["PATH"]
    wanted = procfile.wanted(CHECKOUT, whole)
    processes = {name: [shutil.which(argv[0], path=search) or argv[0], *argv[1:]] for name, argv in wanted.items()}
    kept = {name: whole[name] for name in ("PATH", "LANG", "PYTHONUNBUFFERED", "PYTHONNOUSERSITE", "MALLOC_ARENA_MAX")}
    return units.compose(units.Installation(CHECKOUT, settings.home, user, file, kept, processes))


def write(texts: Mapping[str, str], directory: Path) -> list[str]:
    """Write units; the names of those that were not so already."""
    changed = []
    for name, text in texts.items():
        path = directory / name
        if not path.exists() or path.read_text() != text:
            disk.write(path, text.encode(), mode=0o644)
            changed.append(name)
    return changed


def unwanted(texts: Mapping[str, str], directory: Path) -> list[str]:
    """Davit's own units in ``directory`` that are not among ``texts``."""
    found = [path for path in directory.glob("davit-*.service") if path.name not in texts]
    return sorted(path.name for path in found if f"PartOf={units.TARGET}" in path.read_text())


def read_environment(file: Path) -> dict[str, str]:
    """The settings in an EnvironmentFile, as systemd.exec(5) reads it (no continuation lines).

    Raises:
        CannotInstall: a line is not ``NAME=VALUE``.
    """
    values = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(("#", ";")):
            continue
        name, equals, value = text.partition("=")
        try:
            words = shlex.split(value, posix=True) if equals else []
        except ValueError:
            words = ["", ""]
        if not name.isidentifier() or not equals or len(words) > 1:
            raise CannotInstall(f"Line {number} of {file} is not NAME=VALUE.")
        values[name] = words[0] if words else ""
    return values


def installed_with() -> Path | None:
    """The file of settings that the units on this host name; None where there are none."""
    try:
        found = _ENVIRONMENT_FILE.search((UNITS / units.PREPARE).read_text())
    except OSError:
        return None
    return Path(found[1]) if found else None


def _settings_file(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text("# Settings of this Davit, NAME=VALUE a line; docs/settings.md lists them.\n")


def _compile() -> None:
    """The processes cannot keep compiled modules beside Davit's sources, and would compile them at each of their starts."""
    rooms = [path.parent for path in sorted(CHECKOUT.glob("*/__init__.py")) if path.parent.name != "tests"]
    places = [*map(str, rooms), str(CHECKOUT / "app.py")]
    run([sys.executable, "-m", "compileall", "-q", "-j", "0", *places], timeout=PATIENCE, check=False)


def owner(directory: Path) -> str:
    """Whose processes may work in this DAVIT_HOME: a `davit up` of before may have made it, as root."""
    return directory.owner() if directory.exists() else USER


def as_root(user: str, directory: Path) -> str | None:
    """What is said where all processes run as root for want of another owner of DAVIT_HOME; None where they do not."""
    if user != "root":
        return None
    given = f"chown -R {USER}: {shlex.quote(str(directory))}"
    steps = f"systemctl stop davit.target && davit install --user {USER} && {given} && davit install --start"
    why = f", because {directory} is root's" if owner(directory) == "root" else ""
    return f"All of Davit's processes run as root{why}. To have them run as {USER}: {steps}"


def _make_user(user: str, directory: Path, say: Say) -> None:
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        run(["useradd", "--system", "--user-group", "--home-dir", str(directory), "--shell", "/usr/sbin/nologin", user])
        account = pwd.getpwnam(user)
        say(f"Made the user {user}.")
    if not directory.exists():
        home.make_directories(directory)
        os.chown(directory, account.pw_uid, account.pw_gid)
