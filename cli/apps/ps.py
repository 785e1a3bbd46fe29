"""ps, ps:scale, ps:restart, ps:stop, ps:type, ps:isolation, ps:resize, ps:migrate, ps:usage, ps:sleep, ps:wait."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import quote

import click

from cli import output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError

_CHANGE = re.compile(r"(?P<type>[\w-]+?)(?P<operator>[=+-])(?P<quantity>\d+)(?::(?P<size>[\w-]+))?")
_ISOLATION = re.compile(r"(?P<type>[\w-]+)=(?P<isolation>[\w-]+)")
_PATIENCE = 300
"""Seconds that dynos may take to come up otherwise."""
_MOVE_SECONDS = 610
"""More than the API takes to answer that a dyno has moved, or has not."""
_SIZE = re.compile(r"(?P<type>[\w-]+)=(?P<size>[\w-]+)")


@command("ps")
@on_app
@click.argument("types", nargs=-1)
@json_option
def ps(app: Target, types: tuple[str, ...], as_json: bool) -> None:
    """List an app's dynos."""
    dynos = [dyno for dyno in app.get("/dynos") if not types or dyno["type"] in types]
    if as_json:
        return output.print_json(dynos)
    if not dynos:
        return click.echo(f"No dynos on {hexed(app.app)}")
    one_off = [dyno for dyno in dynos if dyno["type"] == "run"]
    if one_off:
        output.header(f"run: one-off processes ({len(one_off)})")
        for dyno in one_off:
            click.echo(f"{_line(dyno)}: {output.plain(dyno['command'])}")
        click.echo()
    for type in dict.fromkeys(dyno["type"] for dyno in dynos if dyno not in one_off):
        rows = [dyno for dyno in dynos if dyno["type"] == type]
        output.header(f"{type} ({rows[0]['size']}): {output.plain(rows[0]['command'])} ({len(rows)})")
        for dyno in rows:
            click.echo(_line(dyno))
        click.echo()


def _line(dyno: dict[str, Any]) -> str:
    isolation = "" if dyno["isolation"] == "container" else f", {dyno['isolation']}"
    return f"{dyno['name']} ({dyno['size']}{isolation}): {dyno['state']} {output.ago(dyno['updated_at'])}"


@command("ps:scale", context_settings={"ignore_unknown_options": True})
@on_app
@click.argument("changes", nargs=-1, metavar="web=2 worker+1:standard-2x...")
@json_option
def scale(app: Target, changes: tuple[str, ...], as_json: bool) -> None:
    """Show or change how many dynos of each process type there are."""
    if not changes:
        rows = app.get("/formation")
        if as_json:
            return output.print_json(rows)
        if not rows:
            raise DavitError(f"No process types on {app.app}: push some code first.")
        return click.echo(" ".join(f"{row['type']}={row['quantity']}:{row['size']}" for row in rows))
    updates = [_change(text) for text in changes]
    with action("Scaling dynos") as step:
        rows = app.client.patch(f"{app.path}/formation", {"updates": updates})
        named = {update["type"] for update in updates}
        now = ", ".join(f"{row['type']} at {row['quantity']}:{row['size']}" for row in rows if row["type"] in named)
        step.result = f"done, now running {now}"
    if as_json:
        output.print_json(rows)


def _change(text: str) -> dict[str, str]:
    match = _CHANGE.fullmatch(text)
    if match is None:
        if (sized := _SIZE.fullmatch(text)) and not sized["size"].isdigit():
            raise DavitError(
                f"{text} is not a number of dynos; write {sized['type']}=2, {sized['type']}+1 or {sized['type']}=2:standard-1x."
            )
        raise DavitError(f"{text} is not understood; write it like web=2, worker+1 or web=2:standard-1x.")
    sign = "" if match["operator"] == "=" else match["operator"]
    update = {"type": match["type"], "quantity": sign + match["quantity"]}
    return {**update, "size": match["size"]} if match["size"] else update


@command("ps:type")
@on_app
@click.argument("types", nargs=-1, metavar="[SIZE | TYPE=SIZE...]")
def type_(app: Target, types: tuple[str, ...]) -> None:
    """Show or change the dyno sizes."""
    rows = app.get("/formation")
    if types:
        if len(types) == 1 and "=" not in types[0]:
            updates = [{"type": row["type"], "size": types[0]} for row in rows]
        else:
            updates = []
            for text in types:
                match = _SIZE.fullmatch(text)
                if match is None:
                    raise DavitError(f"{text} is not understood; write it like standard-1x or web=standard-2x.")
                updates.append({"type": match["type"], "size": match["size"]})
        with action(f"Scaling dynos on {hexed(app.app)}"):
            rows = app.client.patch(f"{app.path}/formation", {"updates": updates})
    output.table([(row["type"], row["size"], row["quantity"]) for row in rows], ("process", "type", "qty"))


@command("ps:isolation")
@on_app
@click.argument("changes", nargs=-1, metavar="[TYPE=container|microvm|osv...]")
@json_option
def isolation(app: Target, changes: tuple[str, ...], as_json: bool) -> None:
    """Show or change what stands between dynos and everything else: a container, a microVM with its own kernel, a unikernel.

    Every host runs containers. MicroVMs need QEMU and a kernel: `davit stack:build --vm`, as root on the host, brings both.
    Unikernels need QEMU and a kernel of OSv's that the host's owner names (DAVIT_OSV_KERNEL). What cannot run is refused with
    what it lacks, and the dynos stay as they are.
    """
    rows = app.get("/formation")
    if changes:
        updates = [_isolated(text) for text in changes]
        with action(f"Changing the isolation of {', '.join(update['type'] for update in updates)} on {hexed(app.app)}"):
            app.client.patch(f"{app.path}/formation", {"updates": updates})
            rows = _until_so(app, {update["type"]: ("isolation", update["isolation"]) for update in updates})
    if as_json:
        return output.print_json(rows)
    output.table([(row["type"], row["isolation"], row["quantity"]) for row in rows], ("process", "isolation", "qty"))


def _isolated(text: str) -> dict[str, Any]:
    match = _ISOLATION.fullmatch(text)
    if match is None:
        raise DavitError(f"{text} is not understood; write it like web=microvm.")
    return {"type": match["type"], "isolation": match["isolation"].lower()}


def _until_so(app: Target, wanted: dict[str, tuple[str, str]]) -> Any:
    """Wait until the dynos of these types are what they are to be; returns the formation.

    Raises:
        DavitError: one did not come up so; what ran before runs on.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        rows = app.get("/formation")
        for row in rows:
            if row["type"] in wanted and row["failure"]:
                raise DavitError(row["failure"])
        dynos = [dyno for dyno in app.get("/dynos") if dyno["type"] in wanted]
        for dyno in dynos:
            key, value = wanted[dyno["type"]]
            if dyno["state"] == "crashed" and dyno[key] == value:
                raise DavitError(f"{dyno['name']} has crashed as {value}; `davit logs` shows why. It is started again and again.")
        late = [dyno["name"] for dyno in dynos if not _is_so(dyno, *wanted[dyno["type"]])]
        if not late:
            return rows
        if time.monotonic() > deadline:
            raise DavitError(f"{late[0]} is not up after {_PATIENCE // 60} minutes; `davit ps` and `davit logs` show how far.")
        time.sleep(0.2)


def _is_so(dyno: dict[str, Any], key: str, value: str) -> bool:
    """One that sleeps as something else is about to wake: whoever changes an app wakes it."""
    return dyno[key] == value and dyno["state"] in ("up", "idle")


@command("ps:resize")
@on_app
@click.argument("changes", nargs=-1, required=True, metavar="TYPE=SIZE...")
@click.option("--live", is_flag=True, help="Give running dynos the new size without a restart.")
def resize(app: Target, changes: tuple[str, ...], live: bool) -> None:
    """Change the dyno sizes; with --live running dynos grow or shrink where they are.

    Containers and microVMs do. A unikernel has the memory that it was started with: --live is refused for it; without --live it
    is started anew.
    """
    updates: list[dict[str, Any]] = []
    for text in changes:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise DavitError(f"{text} is not understood; write it like web=standard-2x.")
        updates.append({"type": match["type"], "size": match["size"], "live": live})
    with action(f"Resizing dynos on {hexed(app.app)}"):
        rows = app.client.patch(f"{app.path}/formation", {"updates": updates})
        labels = {row["type"]: row["size"] for row in rows}
        rows = _until_so(app, {update["type"]: ("size", labels[update["type"]]) for update in updates})
    output.table([(row["type"], row["size"], row["quantity"]) for row in rows], ("process", "type", "qty"))


@command("ps:migrate")
@on_app
@click.argument("dyno")
def migrate(app: Target, dyno: str) -> None:
    """Move a running microVM to another process, with all that it has in memory; requests wait meanwhile, none fails."""
    with action(f"Moving {dyno} on {hexed(app.app)}") as step:
        answer = app.client.call("POST", f"{app.path}/dynos/{quote(dyno, safe='')}/actions/migrate", timeout=_MOVE_SECONDS)
        stood, held = (f"{answer[name] * 1000:.0f} ms" for name in ("pause", "held"))
        step.result = f"done, it stood still for {stood}, and requests were held for {held}"


@command("ps:usage")
@on_app
@click.argument("types", nargs=-1)
@json_option
def usage(app: Target, types: tuple[str, ...], as_json: bool) -> None:
    """Show what each running dyno uses; with OSv's REST server, also for how long a unikernel's kernel has been up."""
    rows = [row for row in app.get("/dyno-usage") if not types or row["name"].rpartition(".")[0] in types]
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo(f"No dyno runs on {hexed(app.app)}")
    told = [
        (row["name"], output.size(row["memory"]), output.size(row["disk"]), f"{row['cpu']:.1f} s", row["processes"],
         "" if row["uptime"] is None else output.duration(row["uptime"]))
        for row in rows
    ]  # fmt: skip
    output.table(told, ("dyno", "memory", "disk", "cpu", "processes", "kernel up for"))


@command("ps:sleep")
@on_app
@click.argument("choice", required=False, type=click.Choice(["on", "off", "auto"]))
def sleep(app: Target, choice: str | None) -> None:
    """Show or say whether the app is stopped when nobody asks it anything, and started by the next request (auto: eco dynos)."""
    shown = app.get("")
    if choice:
        with action(f"Setting sleep of {hexed(app.app)} to {choice}"):
            shown = app.client.patch(app.path, {"sleep": choice})
    click.echo(f"sleep: {shown['sleep']}: {shown['sleeps']}" + (" (the app sleeps now)" if shown["asleep"] else ""))


_named = click.option("-d", "--dyno-name", "-p", "--process-type", "named", help="as the argument: a dyno or a process type")


@command("ps:restart")
@on_app
@click.argument("dyno", required=False)
@_named
def restart(app: Target, dyno: str | None, named: str | None) -> None:
    """Restart all dynos, those of a process type (web), or one (web.1)."""
    dyno = named or dyno
    what = f"dyno {dyno}" if dyno and "." in dyno else f"all {dyno} dynos" if dyno else "all dynos"
    with action(f"Restarting {what} on {hexed(app.app)}"):
        app.client.delete(app.path + _place(dyno))


@command("ps:stop")
@on_app
@click.argument("dyno", required=False)
@_named
def stop(app: Target, dyno: str | None, named: str | None) -> None:
    """Stop a dyno (run.1234), or those of a process type; the formation starts new ones in their place."""
    dyno = named or dyno
    if dyno is None:
        raise DavitError("Name the dyno to stop (web.1), or the process type (web).")
    with action(f"Stopping {dyno} {'dyno' if '.' in dyno else 'dynos'} on {hexed(app.app)}"):
        app.client.post(f"{app.path}{_place(dyno)}/actions/stop")


def _place(dyno: str | None) -> str:
    if dyno is None:
        return "/dynos"
    return f"/{'dynos' if '.' in dyno else 'formations'}/{quote(dyno, safe='')}"


@command("ps:wait")
@on_app
@click.option("-t", "--type", "type", metavar="TYPE", help="wait for one process type")
@click.option("-R", "--with-run", is_flag=True, help="wait for one-off dynos, too")
@click.option("-w", "--wait-interval", default=2, show_default=True, type=click.IntRange(1, 600), help="seconds between looks")
def wait(app: Target, type: str | None, with_run: bool, wait_interval: int) -> None:
    """Wait until every dyno runs the newest release."""
    newest = app.get("/releases", headers={"Range": "version ..; max=1, order=desc"})[0]["version"]
    with action(f"Waiting for every dyno to be running v{newest}"):
        while True:
            dynos = [dyno for dyno in app.get("/dynos") if (with_run or dyno["type"] != "run") and type in (None, dyno["type"])]
            if all(dyno["state"] == "up" and dyno["release"]["version"] >= newest for dyno in dynos):
                return
            time.sleep(wait_interval)
