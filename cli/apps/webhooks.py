"""webhooks: what happens to an app, told to a URL."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import click

from cli import output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app

_authorization = click.option("-t", "--authorization", help="what the Authorization header of each call holds")


def _path(app: Target, webhook: str) -> str:
    return f"{app.path}/webhooks/{quote(webhook, safe='')}"


@command("webhooks")
@on_app
@json_option
def webhooks(app: Target, as_json: bool) -> None:
    """List an app's webhooks."""
    rows = app.get("/webhooks")
    if as_json:
        return output.print_json(rows)
    if not rows:
        return click.echo(f"{app.app} has no webhooks\nUse davit webhooks:add to add one.")
    output.table(
        [(row["id"], row["url"], ",".join(row["include"]), row["level"]) for row in rows], ("ID", "URL", "Include", "Level")
    )


@command("webhooks:add")
@on_app
@click.option("-i", "--include", required=True, help="comma-separated: api:release, api:build, dyno, …")
@click.option("-l", "--level", type=click.Choice(["notify", "sync"]), default="notify", show_default=True)
@click.option("-u", "--url", required=True, help="what is called")
@click.option("-s", "--secret", help="signs what is sent; one is made, and shown once, when none is given")
@_authorization
def webhooks_add(app: Target, include: str, level: str, url: str, secret: str | None, authorization: str | None) -> None:
    """Have what happens to an app told to a URL."""
    sent: dict[str, Any] = {"include": [word.strip() for word in include.split(",")], "level": level, "url": url}
    sent |= {name: value for name, value in (("secret", secret), ("authorization", authorization)) if value}
    with action(f"Adding webhook to {hexed(app.app)}"):
        headers, _ = app.client.answer("POST", f"{app.path}/webhooks", sent)
    if made := headers.get("Heroku-Webhook-Secret"):  # it is told only now
        output.header("Webhooks Signing Secret")
        click.echo(made)


@command("webhooks:info")
@on_app
@click.argument("webhook")
@json_option
def webhooks_info(app: Target, webhook: str, as_json: bool) -> None:
    """Show a webhook."""
    row = app.client.get(_path(app, webhook))
    if as_json:
        return output.print_json(row)
    output.header(row["id"])
    output.pairs([("URL", row["url"]), ("Include", ", ".join(row["include"])), ("Level", row["level"])])


@command("webhooks:update")
@on_app
@click.argument("webhook")
@click.option("-i", "--include", help="comma-separated")
@click.option("-l", "--level", type=click.Choice(["notify", "sync"]))
@click.option("-u", "--url")
@click.option("-s", "--secret")
@_authorization
def webhooks_update(
    app: Target, webhook: str, include: str | None, level: str | None, url: str | None, secret: str | None,
    authorization: str | None,
) -> None:  # fmt: skip
    """Change a webhook."""
    words = [word.strip() for word in include.split(",")] if include else None
    given = {"include": words, "level": level, "url": url, "secret": secret, "authorization": authorization}
    with action(f"Updating webhook {webhook} for {hexed(app.app)}"):
        app.client.patch(_path(app, webhook), {name: value for name, value in given.items() if value is not None})


@command("webhooks:remove")
@on_app
@click.argument("webhook")
def webhooks_remove(app: Target, webhook: str) -> None:
    """Take a webhook away."""
    with action(f"Removing webhook {webhook} from {hexed(app.app)}"):
        app.client.delete(_path(app, webhook))


@command("webhooks:deliveries")
@on_app
@click.option("-s", "--status", help="only those that are pending, retrying, failed or succeeded")
@json_option
def webhooks_deliveries(app: Target, status: str | None, as_json: bool) -> None:
    """List what was, or is to be, sent."""
    rows = app.get("/webhook-deliveries" + (f"?{urlencode({'eq[status]': status})}" if status else ""))
    if as_json:
        return output.print_json(rows)
    output.table([(row["id"], row["event"]["include"], row["status"], row["num_attempts"]) for row in rows],
                 ("Delivery ID", "Include", "Status", "Attempts"))  # fmt: skip


@command("webhooks:events")
@on_app
@json_option
def webhooks_events(app: Target, as_json: bool) -> None:
    """List what the webhooks were told."""
    rows = app.get("/webhook-events")
    if as_json:
        return output.print_json(rows)
    output.table(
        [(row["id"], row["include"], output.when(row["created_at"])) for row in rows], ("Event ID", "Include", "Published")
    )


@command("webhooks:deliveries:info")
@on_app
@click.argument("delivery")
@json_option
def webhooks_deliveries_info(app: Target, delivery: str, as_json: bool) -> None:
    """Show a delivery: how often it was tried, and how that went."""
    row = app.get(f"/webhook-deliveries/{quote(delivery, safe='')}")
    if as_json:
        return output.print_json(row)
    last = row["last_attempt"] or {}
    output.header(row["id"])
    output.pairs([
        ("Event", row["event"]["id"]), ("Include", row["event"]["include"]), ("Webhook", row["webhook"]["id"]),
        ("Status", row["status"]),
        ("Attempts", str(row["num_attempts"])), ("Last answer", str(last.get("code") or last.get("error_class") or "")),
        ("Next attempt", row["next_attempt_at"] or ""),
    ])  # fmt: skip


@command("webhooks:events:info")
@on_app
@click.argument("event")
@json_option
def webhooks_events_info(app: Target, event: str, as_json: bool) -> None:
    """Show an event with its payload."""
    row = app.get(f"/webhook-events/{quote(event, safe='')}")
    if not as_json:
        output.header(row["id"])
    output.print_json(row if as_json else row["payload"])
