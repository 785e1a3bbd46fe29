"""releases, releases:info, releases:output, releases:retry, rollback."""

from __future__ import annotations

import shlex
from typing import Any

import click

from cli import output
from cli.apps.outcome import newest, no_wait_option, see_through
from cli.apps.streams import copy
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


@command("releases")
@on_app
@click.option("-n", "--num", default=15, show_default=True, type=click.IntRange(1, 1000), help="number of releases to show")
@json_option
def releases(app: Target, num: int, as_json: bool) -> None:
    """List an app's releases."""
    rows = newest(app, num)
    if as_json:
        return output.print_json(rows)
    current = next((f" - Current: v{row['version']}" for row in rows if row["current"]), "")
    output.header(f"{app.app} Releases{current}")
    notes = {"failed": " (release failed)", "pending": " (pending)"}
    output.table(
        [
            (
                f"v{row['version']}",
                row["description"] + notes.get(row["status"], ""),
                row["user"]["email"],
                output.ago(row["created_at"]),
            )
            for row in rows
        ]
    )


def _one(app: Target, release: str | None) -> Any:
    if release is None:
        rows = newest(app, 1)
        if not rows:
            raise DavitError(f"{app.app} has no releases.")
        return rows[0]
    from urllib.parse import quote

    return app.get(f"/releases/{quote(release, safe='')}")


@command("releases:info")
@on_app
@click.argument("release", required=False)
@click.option("-s", "--shell", is_flag=True, help="output the config vars in shell key/value format")
@json_option
def info(app: Target, release: str | None, shell: bool, as_json: bool) -> None:
    """Show a release: the newest, or v7."""
    row = _one(app, release)
    values = app.get(f"/releases/{row['version']}/config-vars")
    if as_json:
        return output.print_json({"release": row, "config": values})
    if shell:
        for name, value in sorted(values.items()):
            click.echo(f"{name}={shlex.quote(value)}")
        return
    output.header(f"Release v{row['version']}")
    output.pairs(
        [
            ("By", row["user"]["email"]),
            ("Change", row["description"]),
            ("Failure", row["failure"]),
            ("Status", row["status"]),
            ("Rollback", "eligible" if row["eligible_for_rollback"] else "not eligible"),
            ("When", output.ago(row["created_at"])),
        ]
    )
    click.echo()
    output.header(f"v{row['version']} Config vars")
    output.pairs(sorted(values.items()))


@command("releases:output")
@on_app
@click.argument("release", required=False)
def show_output(app: Target, release: str | None) -> None:
    """Show what a release's command printed."""
    row = _one(app, release)
    if not row["output_stream_url"]:
        return output.warn(f"Release v{row['version']} has no release output available.")
    copy(app.client, row["output_stream_url"])


@command("rollback")
@on_app
@click.argument("release", required=False)
@no_wait_option
def rollback(app: Target, release: str | None, no_wait: bool) -> None:
    """Roll back to an earlier release: v7, or the last one that worked before the present one."""
    if release is None:
        rows = [row for row in newest(app, 200) if row["eligible_for_rollback"] and not row["current"]]
        current = next((row["version"] for row in newest(app, 200) if row["current"]), 0)
        rows = [row for row in rows if row["version"] < current]
        if not rows:
            raise DavitError("There is no earlier release to roll back to.")
        target = rows[0]
    else:
        target = _one(app, release)
    with action(f"Rolling back {hexed(app.app)} to v{target['version']}") as step:
        made = app.client.post(f"{app.path}/releases", {"release": target["id"]})
        if not no_wait:
            see_through(app, made, advice="What ran before runs on, and its config vars are as they were.")
        step.result = f"done, v{made['version']}"
    output.warn("Rollback affects code and config vars; it doesn't add or remove addons.")
    output.warn(f"To undo, run: davit rollback v{made['version'] - 1}")


@command("releases:retry")
@on_app
@no_wait_option
def retry(app: Target, no_wait: bool) -> None:
    """Release the newest release's code again: its release command runs once more."""
    row = _one(app, None)
    if not row["slug"]:
        raise DavitError(f"v{row['version']} has no code to release again.")
    sent = {"slug": row["slug"]["id"], "description": f"Retry of v{row['version']}: {row['description']}"[:200]}
    with action(f"Retrying v{row['version']} on {hexed(app.app)}") as step:
        made = app.client.post(f"{app.path}/releases", sent)
        if not no_wait:
            see_through(app, made, advice="What ran before runs on.")
        step.result = f"done, v{made['version']}"
