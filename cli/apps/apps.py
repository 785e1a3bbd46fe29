"""apps, apps:create, apps:info, apps:rename, apps:destroy, open, maintenance."""

from __future__ import annotations

import sys
from typing import Any

import click

from cli import hosts, output, target
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app
from foundation.errors import DavitError


@command("apps")
@click.option("-A", "--all", "everything", is_flag=True, help="include apps of others (admins: every app)")
@json_option
def apps(everything: bool, as_json: bool) -> None:
    """List your apps."""
    client = hosts.connect()
    if as_json:
        return output.print_json(client.all("/apps" if everything else "/users/~/apps", "name"))
    listed = client.get("/davit/app-names" + ("?all=true" if everything else ""))
    if not listed["apps"]:
        return click.echo("You have no apps.")
    me = listed["account"]
    mine = [name for name, owner in listed["apps"] if owner == me]
    others = [(name, owner) for name, owner in listed["apps"] if owner != me]
    with output.paged():
        if mine:
            output.header(f"{me} Apps")
            click.echo("\n".join(mine) + "\n")
        if others:
            output.header("Collaborated Apps")
            output.table(others)
            click.echo()


@command("apps:create")
@click.argument("name", required=False)
@click.option("-r", "--remote", default=target.REMOTE, metavar="REMOTE", help="git remote to make, `davit` by default")
@click.option("-n", "--no-remote", is_flag=True, help="make no git remote")
@click.option("-b", "--buildpack", metavar="BUILDPACK", help="buildpack for the app")
@click.option("-s", "--stack", metavar="STACK", help="stack for the app")
@click.option("--region", metavar="REGION", help="region for the app")
@json_option
def create(
    name: str | None, remote: str, no_remote: bool, buildpack: str | None, stack: str | None, region: str | None, as_json: bool
) -> None:
    """Create an app, and a git remote for it in a checkout."""
    from cli.apps import git

    client = hosts.connect()
    wanted = {key: value for key, value in (("name", name), ("stack", stack), ("region", region)) if value}
    with action(f"Creating {hexed(name) if name else 'app'}") as step:
        row = client.post("/apps", wanted)
        step.result = f"done{'' if name else ', ' + hexed(row['name'])}"
    if buildpack:
        with action(f"Setting buildpack to {buildpack}"):
            client.put(f"/apps/{row['id']}/buildpack-installations", {"updates": [{"buildpack": buildpack}]})
    if not no_remote and git.in_checkout():
        if git.has_remote(remote):
            output.warn(f"The git remote {remote} stays as it is; make another with davit git:remote -a {row['name']} -r NAME.")
        else:
            git.point(remote, client, row["name"])
    if as_json:
        return output.print_json(row)
    click.echo(f"{row['web_url']} | {row['git_url']}")


@command("apps:info")
@on_app
@click.option("-s", "--shell", is_flag=True, help="output in shell key/value format")
@json_option
def info(app: Target, shell: bool, as_json: bool) -> None:
    """Show an app."""
    row = app.get("?extended=true")
    collaborators = app.get("/collaborators")
    dynos: dict[str, int] = {}
    for dyno in app.get("/dynos"):
        dynos[dyno["type"]] = dynos.get(dyno["type"], 0) + 1
    if as_json:
        return output.print_json({"app": row, "collaborators": collaborators, "dynos": dynos})
    others = [one["user"]["email"] for one in collaborators if one["role"] != "owner"]
    values: list[tuple[str, Any]] = [
        ("Collaborators", ", ".join(others) or None),
        ("Dynos", ", ".join(f"{type}: {count}" for type, count in dynos.items()) or None),
        ("Git URL", row["git_url"]),
        ("Maintenance", "on" if row["maintenance"] else None),
        ("Owner", row["owner"]["email"]),
        ("Region", row["region"]["name"]),
        ("Repo Size", output.size(row["repo_size"])),
        ("Slug Size", output.size(row["slug_size"])),
        ("Stack", row["stack"]["name"]),
        ("Web URL", row["web_url"]),
    ]
    if shell:
        for name, value in [("name", row["name"]), *values]:
            if value is not None:
                click.echo(f"{name.lower().replace(' ', '_')}={value}")
        return
    output.header(row["name"])
    output.pairs(values)


@command("apps:rename")
@on_app
@click.argument("name")
def rename(app: Target, name: str) -> None:
    """Give an app another name; the checkout's remotes follow."""
    from cli.apps import git

    old = app.get()["name"]
    with action(f"Renaming {old} to {name}"):
        row = app.client.patch(app.path, {"name": name})
    click.echo(f"{row['web_url']} | {row['git_url']}")
    for remote in git.remotes_of(old, app.client):
        git.point(remote, app.client, name)


@command("apps:destroy")
@on_app
@click.argument("name", required=False)
@click.option("-c", "--confirm", metavar="APP", help="the app's name, so that nothing is asked")
def destroy(app: Target, name: str | None, confirm: str | None) -> None:
    """Destroy an app for good; the checkout's remotes of it go with it."""
    _destroy(Target(name, app.client) if name else app, confirm)


def _destroy(app: Target, confirm: str | None) -> None:
    from cli.apps import git

    name = app.get()["name"]
    if confirm is None:
        output.warn(f"WARNING: This will delete {hexed(name)} including all its releases.")
        output.warn(f"To proceed, type {name} or re-run this command with --confirm {name}")
        confirm = click.prompt(">", prompt_suffix=" ", err=True)
    if confirm != name:
        raise DavitError(f"Confirmation {confirm} did not match {name}. Aborted.")
    with action(f"Destroying {hexed(name)} (including all its releases)"):
        app.client.delete(app.path)
        for remote in git.remotes_of(name, app.client):
            git.forget(remote)


@command("open")
@on_app
@click.argument("path", default="")
def open_app(app: Target, path: str) -> None:
    """Open an app in the browser."""
    url = app.get()["web_url"] + path.lstrip("/")
    click.echo(url)
    if sys.stdout.isatty():
        import webbrowser

        webbrowser.open(url)


@command("maintenance")
@on_app
def maintenance(app: Target) -> None:
    """Tell whether the maintenance page is shown."""
    click.echo("on" if app.get()["maintenance"] else "off")


@command("maintenance:on")
@on_app
def maintenance_on(app: Target) -> None:
    """Show the maintenance page instead of the app."""
    with action(f"Enabling maintenance mode for {hexed(app.app)}"):
        app.client.patch(app.path, {"maintenance": True})


@command("maintenance:off")
@on_app
def maintenance_off(app: Target) -> None:
    """Show the app again."""
    with action(f"Disabling maintenance mode for {hexed(app.app)}"):
        app.client.patch(app.path, {"maintenance": False})
