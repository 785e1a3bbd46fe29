"""``davit up`` and ``davit down``: the two stories, told step by step."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cli.host import doctor, environment, home, keeper, logfiles, processes, procfile, ready, record, supervisor, waiting
from foundation.errors import DavitError
from foundation.programs import run
from foundation.settings import Settings

log = logging.getLogger("davit")

CHECKOUT = Path(__file__).resolve().parents[2]

BEGIN_SECONDS = 180
"""Until the supervisor says that it is there: half a second, but on a busy host, or a disk that has never read those files."""
STOP_SECONDS, EACH_SECONDS = 120.0, 3.0
"""How long stopping takes at the most, and how much longer for each dyno: a tenth of a second of an idle processor."""

Say = Callable[[str], None]


class UpError(DavitError):
    """Davit cannot be started, or not be stopped, here."""

    id, status = "cannot_start", 500


def up(settings: Settings, say: Say, *, detach: bool) -> None:
    """Start Davit; in the foreground this process becomes the supervisor.

    Raises:
        UpError: something essential is missing; the sentence says what to do.
        NotReady: a process did not answer.
    """
    _as_root("davit up")
    already = record.running_supervisor(settings.run)
    if already is not None:
        say(f"Davit is already running in {settings.home} (process {already}).")
        return
    _kept_by_none(settings)
    _essential(settings)
    home.prepare(settings)
    _stack(settings, say)
    variables = environment.build(settings, os.environ)
    argv = [sys.executable, "-m", "cli.host.supervisor"]
    if not detach:
        say(f"Dashboard: {dashboard(settings)}")
        say(f"Davit starts in {settings.home}; Ctrl-C stops it, apps serve on (`davit down` stops them, too).")
        os.chdir(CHECKOUT)
        os.execve(argv[0], [*argv, "--foreground"], variables)  # noqa: S606 - no shell on purpose
    _detached(argv, variables, settings)
    ready.wait(list(procfile.wanted(CHECKOUT, variables)), settings)


def _as_root(command: str) -> None:
    if os.geteuid() != 0:
        raise UpError(f"`{command}` must run as root, because dynos need namespaces and mounts: try `sudo {command}`.")


def _kept_by_none(settings: Settings) -> None:
    """Two who keep the same processes would fight over sockets and ports, and what one of them stops the other starts again."""
    kept_by = keeper.find(settings)
    if kept_by is not None:
        where = f"The Davit in {settings.home} is kept by {kept_by.name}"
        raise UpError(f"{where}, so `davit up` and `davit down` leave it alone. {kept_by.stop}")


def _essential(settings: Settings) -> None:
    """Refuse to start on what would fail anyway, with the doctor's words."""
    failed = [point for point in doctor.examine(settings, essential=True) if point.level == "fail"]
    if failed:
        raise UpError(
            "\n".join(["Davit cannot start here:", *(f"  {point.name}: {point.message} {point.remedy}" for point in failed)])
        )


def _stack(settings: Settings, say: Say) -> None:
    """Make sure that there is a stack to run slugs on; building it takes a few minutes, once."""
    from runtime import stacks

    stacks.ensure(settings.stacks, mirror=settings.mirror, progress=say)


def _detached(argv: list[str], variables: dict[str, str], settings: Settings) -> None:
    log = settings.home / "log" / "supervisor.log"
    logfiles.rotate(log)
    with log.open("ab") as output:
        begins = output.tell()
        process = subprocess.Popen(
            argv, env=variables, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + BEGIN_SECONDS
    while record.running_supervisor(settings.run) != process.pid:
        if process.poll() is not None:
            raise UpError("\n".join(["Davit's supervisor did not start:", *logfiles.last_lines(log, since=begins)]))
        if time.monotonic() > deadline:
            process.terminate()  # it ends what it may have begun in this instant
            process.wait()
            said = logfiles.last_lines(log, since=begins)
            raise UpError("\n".join([f"Davit's supervisor did not begin within {BEGIN_SECONDS} seconds:", *said]))
        time.sleep(0.02)


def dashboard(settings: Settings) -> str:
    """Where the dashboard is; as long as the owner has no password, the link that sets it up.

    Raises:
        UpError: this user may not read DAVIT_HOME, or nothing was set up yet.
    """
    from state import db, set_up

    if not os.access(settings.home / "owner-token", os.R_OK):
        raise UpError(f"That is for the owner of {settings.home}, once Davit was up: try `sudo davit dashboard`.")
    with db.snapshot() as session:
        secret = set_up.secret(session)
    if secret is None:
        return f"{settings.api_url}/dashboard/"
    return f"{settings.api_url}/dashboard/set-up/{secret}\n(this link sets it up for you; it works once, for a day)"


def down(settings: Settings, say: Say, *, keep_apps: bool) -> None:
    """Stop Davit; returns when its processes are gone. Nothing to stop is fine.

    Args:
        keep_apps: leave dynos and HAProxy, so that apps serve on.

    Raises:
        UpError: not root, or another than ``davit up`` keeps its processes.
    """
    _as_root("davit down")
    if not settings.run.is_dir():
        say(f"Davit is not running in {settings.home}.")
        return
    _kept_by_none(settings)
    pid = record.running_supervisor(settings.run)
    if pid is not None:
        say("Stopping Davit's processes.")
        with waiting.told(say, lambda: waiting.processes(settings.run), supervisor.PATIENCE):
            processes.stop([pid], 3 * supervisor.PATIENCE)
    supervisor.end(record.read(settings.run).living())  # of a supervisor that was killed
    if keep_apps:
        say("Davit is down; apps serve on. `davit up` takes them over again, `davit down` stops them.")
        return
    _stop_apps(settings, say)
    say("Davit is down.")


def _stop_apps(settings: Settings, say: Say) -> None:
    """HAProxy first, so that clients are refused at once rather than kept waiting for dynos that end."""
    from router.service import REQUEST_SECONDS
    from runtime.life import GRACE_SECONDS

    variables = environment.build(settings, os.environ)

    def stop(module: str, seconds: float) -> None:
        run([sys.executable, "-m", module, "stop"], env=variables, cwd=CHECKOUT, timeout=seconds)

    say("Stopping the router.")
    with waiting.told(say, lambda: ["the requests that it still answers"], REQUEST_SECONDS):
        stop("router", STOP_SECONDS)
    say("Stopping apps.")
    names = _app_names()
    with waiting.told(say, lambda: waiting.dynos(settings.run, names), GRACE_SECONDS):
        stop("runtime", STOP_SECONDS + EACH_SECONDS * waiting.left(settings.run))
    processes.stop(processes.haproxies(settings.home), 5.0)


def _app_names() -> dict[str, str]:
    """Names by id; none where the database does not answer, which keeps nobody from stopping."""
    from state import db

    try:
        return {id: name for id, name in db.ask("SELECT id, name FROM apps")}
    except Exception as error:
        log.debug("apps are called by their ids: %s", error)
        return {}
