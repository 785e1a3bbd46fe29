"""apps:transfer, transfers: apps change hands."""

from __future__ import annotations

from urllib.parse import quote

import click

from cli import hosts, output
from cli.output import action, command, hexed, json_option
from cli.target import Target, on_app


@command("apps:transfer")
@on_app
@click.argument("recipient")
def apps_transfer(app: Target, recipient: str) -> None:
    """Offer an app to somebody, who accepts or declines."""
    with action(f"Initiating transfer of {hexed(app.app)} to {recipient}") as step:
        app.client.post("/account/app-transfers", {"app": app.app, "recipient": recipient})
        step.result = "email or tell them: `davit transfers:accept " + app.app + "`"


@command("transfers")
@json_option
def transfers(as_json: bool) -> None:
    """List the transfers that you made or were offered."""
    rows = hosts.connect().get("/account/app-transfers")
    if as_json:
        return output.print_json(rows)
    output.table(
        [(row["app"]["name"], row["owner"]["email"], row["recipient"]["email"], row["state"]) for row in rows],
        ("App", "Owner", "Recipient", "State"),
    )


def _answer(app: str, state: str, verb: str) -> None:
    with action(f"{verb} {app}"):
        hosts.connect().patch(f"/account/app-transfers/{quote(app, safe='')}", {"state": state})


@command("transfers:accept")
@click.argument("app")
def transfers_accept(app: str) -> None:
    """Take an app that you were offered."""
    _answer(app, "accepted", "Accepting")


@command("transfers:decline")
@click.argument("app")
def transfers_decline(app: str) -> None:
    """Decline an app that you were offered."""
    _answer(app, "declined", "Declining")


@command("transfers:cancel")
@click.argument("app")
def transfers_cancel(app: str) -> None:
    """Take an offer back."""
    with action(f"Cancelling the transfer of {app}"):
        hosts.connect().delete(f"/account/app-transfers/{quote(app, safe='')}")
