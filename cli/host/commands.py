"""The commands for the host: up, down, status, doctor, backup, restore, config:rotate-keys, install, stack:build, stack:export.

Thin: what they do is in the modules beside this one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from foundation.settings import Settings, settings

_SIGNS = {"ok": ("green", "ok"), "warn": ("yellow", "warn"), "fail": ("red", "FAIL")}


def _settings() -> Settings:
    """What the Davit on this host is set to, also where systemd alone has been told."""
    from cli.host import keeper

    return keeper.take_up()


@click.command()
@click.option("--detach", "-d", is_flag=True, help="Start in the background, return when everything answers.")
def up(detach: bool) -> None:
    """Start Davit on this machine."""
    from cli.host import updown

    ours = _settings()
    updown.up(ours, click.echo, detach=detach)
    click.echo(f"Davit is up. Apps: {ours.app_url('NAME')}  API and git: {ours.api_url}")
    click.echo(f"Dashboard: {updown.dashboard(ours)}")


@click.command()
def dashboard() -> None:
    """Print where the dashboard is: before its first sign-in, a link for the owner to set it up with (good once, for a day)."""
    from cli.host import updown

    click.echo(updown.dashboard(_settings()))


@click.command()
@click.option("--keep-apps", is_flag=True, help="Leave dynos and HAProxy, so that apps serve on.")
def down(keep_apps: bool) -> None:
    """Stop Davit and, unless told otherwise, the apps."""
    from cli.host import updown

    updown.down(_settings(), click.echo, keep_apps=keep_apps)


@click.command()
@click.option("--pids", is_flag=True, help="Only the process ids, one a line: Davit's own, HAProxy's, Redis's; not the apps'.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(pids: bool, as_json: bool) -> None:
    """Show Davit's processes; exit status 1 when not all of them run."""
    from cli.host import keeper
    from cli.host import status as survey

    kept_by = keeper.adopt()
    rows = survey.survey(settings(), kept_by)
    if pids:
        for pid in (pid for row in rows for pid in row.pids):
            click.echo(pid)
    elif as_json:
        click.echo(json.dumps([row.as_json() for row in rows], indent=2))
    elif not rows:
        click.echo(f"Davit is not running in {settings().home}; `davit up` starts it.")
    else:
        _table(rows)
        if words := survey.redis_words(settings()):
            click.echo(words)
        if kept_by is not None:
            click.echo(f"Kept by {kept_by.name}. {kept_by.told}".rstrip())
    if not survey.whole(rows, kept_by):
        sys.exit(1)


def _table(rows: list) -> None:  # type: ignore[type-arg]
    from cli.host.status import ago

    click.echo(f"{'PROCESS':<11} {'STATE':<8} {'PID':>8} {'SINCE':>6} {'RESTARTS':>8} {'MEMORY':>10}")
    for row in rows:
        since, restarts = ago(row.since), "" if row.restarts is None else row.restarts
        size = f"{row.memory / 2**20:.1f} MiB" if row.pids or row.state != "running" else ""
        click.echo(f"{row.process:<11} {row.state:<8} {row.pid or '':>8} {since:>6} {restarts:>8} {size:>10}".rstrip())
    click.echo(f"{'':<11} {'':<8} {'':>8} {'':>6} {'together':>8} {sum(row.memory for row in rows) / 2**20:>6.1f} MiB")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(as_json: bool) -> None:
    """Look at what Davit needs of this machine and say what to do; exit status 1 when something essential is missing."""
    from cli.host import doctor as checks
    from cli.host import keeper

    keeper.adopt()
    points = checks.examine(settings())
    if as_json:
        click.echo(json.dumps([vars(point) for point in points], indent=2))
    for point in () if as_json else points:
        colour, sign = _SIGNS[point.level]
        click.echo(f"{click.style(f'{sign:<4}', fg=colour)}  {point.name:<16} {point.message} {point.remedy}".rstrip())
    if any(point.level == "fail" for point in points):
        sys.exit(1)


@click.command("stack:build")
@click.option("--vm", is_flag=True, help="only what microVMs need: QEMU and their kernel")
def stack_build(vm: bool) -> None:
    """Build the stack anew; running apps move to it at their next release."""
    from runtime import stacks

    ours = _settings()
    root, mirror = ours.stacks, ours.mirror
    if not vm:
        built = stacks.build(root, mirror=mirror, progress=click.echo)
        click.echo(f"Built {built.name} {built.version}.")
    if vm or (root / "microvm-kernel" / "current").exists():
        from runtime.microvm import kernel

        kernel.install_qemu(click.echo)
        stacks.ensure(root, mirror=mirror, progress=click.echo)
        click.echo(f"Made the kernel {kernel.build(root, mirror, click.echo).version} for microVMs.")


@click.command("slugs:export")
@click.argument("app")
@click.option(
    "--format",
    "form",
    type=click.Choice(["heroku", "capstan", "osv-image", "qcow2", "zfs"]),
    default="heroku",
    show_default=True,
    help="heroku: slug tarball; capstan: package; osv-image, qcow2: a disk that boots by itself; zfs: a writable one.",
)
@click.option(
    "--output", "-o", "target", type=click.Path(path_type=Path), help="The file to write; named after the app by default."
)
@click.option("--release", "version", type=int, help="A release's number; the current one by default.")
@click.option("--type", "process", default="web", show_default=True, help="The process type that a unikernel starts.")
@click.option(
    "--loader", type=click.Path(path_type=Path), help="OSv's boot disk (loader.img, osv-loader), for osv-image and qcow2."
)
@click.option("--builder", type=click.Path(path_type=Path), help="OSv's ZFS builder kernel, for zfs.")
def slugs_export(
    app: str, form: str, target: Path | None, version: int | None, process: str, loader: Path | None, builder: Path | None
) -> None:
    """Write an app's slug as a file for elsewhere, without its config vars."""
    from cli.host import slugs

    ours = _settings()
    what = slugs.find(app, version)
    target = target or Path(f"{what.app}-v{what.version}.{slugs.FORMATS[form]}")

    def say(note: str) -> None:
        click.echo(f" !     {note}", err=True)

    slugs.export(ours, what, form, target, process=process, loader=loader, builder=builder, say=say)
    click.echo(f"Wrote {target} ({target.stat().st_size / 2**20:.1f} MB).")


@click.command("stack:export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def stack_export(file: Path) -> None:
    """Write the newest stack into an archive, which new hosts can fetch instead of building their own."""
    from runtime import stacks

    digest = stacks.export(stacks.current(_settings().stacks), file)
    click.echo(f"Wrote {file}.\nSHA-256: {digest}")


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
def backup(file: Path) -> None:
    """Write everything that must survive into FILE: database, keys, git repositories, slugs (`-` is standard output).

    For the owner of DAVIT_HOME, on the host, while Davit runs or not. Whoever has the file has every secret: it is 0600, keep
    it so, or encrypt it.
    """
    from cli.host import backup as backups

    backups.backup(_settings(), file, lambda line: click.echo(line, err=True))
    if str(file) != "-":
        click.echo(f"Wrote {file} ({file.stat().st_size / 2**20:.1f} MB). It holds every secret of this Davit.")


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
def restore(file: Path) -> None:
    """Make an empty DAVIT_HOME of what `davit backup` wrote (`-` is standard input); then `davit up` starts it.

    With DATABASE_URL the database that it names must be there, and empty.
    """
    from cli.host import backup as backups

    ours = _settings()
    backups.restore(ours, file, lambda line: click.echo(line, err=True))
    click.echo(f"Restored into {ours.home}; `davit up` starts it.")


@click.command("config:rotate-keys")
def rotate_keys() -> None:
    """Encrypt config vars and every other secret in the database with a new key, and forget the old one.

    For the owner of DAVIT_HOME, on the host; Davit may run meanwhile or not. When it is interrupted everything stays readable:
    run it again. A backup of the database from before needs the keys from before.
    """
    from state import rotation

    _settings()
    count = rotation.rotate(click.echo)
    click.echo(f"Done: {count} {'value is' if count == 1 else 'values are'} encrypted with the new key.")


@click.command("install")
@click.option(
    "--environment", "file", type=click.Path(path_type=Path), default=Path("/etc/davit/davit.env"), show_default=True,
    help="The file of settings, NAME=VALUE a line.",
)  # fmt: skip
@click.option("--user", help="Who owns DAVIT_HOME and runs what needs no root; its owner by default, davit where it is new.")
@click.option("--start", is_flag=True, help="Start it, and return when everything answers.")
@click.option("--prepare", is_flag=True, hidden=True)
def install(file: Path, user: str | None, start: bool, prepare: bool) -> None:
    """Have systemd run Davit: a unit for each of its processes, from now on and after every boot."""
    from cli.host import install as units

    if prepare:
        units.prepare(settings(), file, click.echo)
    else:
        units.install(file, user, click.echo, start=start)
