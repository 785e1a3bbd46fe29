"""App transfers: an owner offers an app, the recipient accepts or declines."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from foundation.errors import Conflict, Forbidden, InvalidParams, NotFound
from state import apps, audit, notify, people
from state.models import Account, App, AppTransfer, Collaborator

ANSWERS = ("accepted", "declined")
NOT_FOUND = "Couldn't find that app transfer."


def may_offer(account: Account, app: App) -> bool:
    """Whether the app is the account's to give away: its owner's, and an administrator's."""
    return app.owner_id == account.id or account.is_admin


def offer(session: Session, account: Account, app: App, recipient: str) -> AppTransfer:
    """Offer the app to another account.

    Raises:
        Forbidden: it is not the caller's to give away.
        NotFound: nobody has this address.
        InvalidParams: the recipient owns it already.
        Conflict: it is offered to somebody already.
    """
    if not may_offer(account, app):
        raise Forbidden(f"Only the owner of {app.name} can transfer it.")
    other = people.find(session, recipient)
    if other is None:
        raise NotFound(f"There is no account for {recipient}.")
    if other.id == app.owner_id:
        raise InvalidParams(f"Field recipient: {other.email} owns {app.name} already.")
    if pending(session, app):
        raise Conflict(f"{app.name} is offered to somebody already; take that back first.", status=422)
    row = AppTransfer(app_id=app.id, owner_id=app.owner_id, recipient_id=other.id)
    session.add(row)
    session.flush()
    session.refresh(row)
    audit.record(session, account, "apps:transfer", app, recipient=other.email)
    return row


def pending(session: Session, app: App) -> AppTransfer | None:
    """The offer of the app that waits for an answer, whoever made it."""
    return session.scalar(select(AppTransfer).where(AppTransfer.app_id == app.id, AppTransfer.state == "pending").limit(1))


def all_of(session: Session, account: Account) -> list[AppTransfer]:
    """The transfers that the account has made or was offered, oldest first."""
    query = select(AppTransfer).where(or_(AppTransfer.owner_id == account.id, AppTransfer.recipient_id == account.id))
    return list(session.scalars(query.order_by(AppTransfer.created_at, AppTransfer.id)))


def find(session: Session, account: Account, identity: str) -> AppTransfer:
    """One of the account's transfers, by id or by the app's name; an administrator's are all that wait for an answer, too. An
    app's name is that of the one that waits, before all that were answered.

    Raises:
        NotFound: it has none such.
    """
    named = [row for row in reversed(all_of(session, account)) if identity in (row.id, row.app.name)]
    if account.is_admin:
        waiting = select(AppTransfer).where(AppTransfer.state == "pending").join(App, App.id == AppTransfer.app_id)
        named += session.scalars(waiting.where(or_(AppTransfer.id == identity, App.name == identity)).limit(1))
    if not named:
        raise NotFound(NOT_FOUND)
    return min(named, key=lambda row: row.state != "pending")  # the newest of each kind comes first


def answer(session: Session, account: Account, row: AppTransfer, state: str) -> None:
    """Accept or decline; with an acceptance the app changes hands, and who gave it goes on as a collaborator.

    Raises:
        InvalidParams: the answer is neither.
        Forbidden: it was offered to somebody else.
        Conflict: it was answered before.
    """
    if state not in ANSWERS:
        raise InvalidParams("Field state must be accepted or declined.")
    if row.recipient_id != account.id:
        raise Forbidden("Only who was offered the app can answer.")
    if row.state != "pending":
        raise Conflict(f"That transfer was {row.state} already.", status=422)
    row.state = state
    if state == "accepted":
        _hand_over(session, row)
    session.flush()
    audit.record(session, account, "apps:transfer-accepted" if state == "accepted" else "apps:transfer-declined", row.app)


def _hand_over(session: Session, row: AppTransfer) -> None:
    app = row.app
    query = select(Collaborator).where(Collaborator.app_id == app.id, Collaborator.account_id == row.recipient_id)
    theirs = session.scalar(query)
    if theirs:
        session.delete(theirs)
    giver = session.get(Account, app.owner_id)
    app.owner_id = row.recipient_id
    session.flush()
    session.refresh(app, ["owner"])
    if giver is not None:
        apps.add_collaborator(session, row.recipient, app, giver.email)
    notify.announce(session, app.id, f"Transferred to {row.recipient.email}")


def take_back(session: Session, account: Account, row: AppTransfer) -> None:
    """Withdraw an offer; the recipient declines by it, too.

    Raises:
        Forbidden: it is neither the account's offer nor one to it.
        Conflict: it was answered already.
    """
    if account.id not in (row.owner_id, row.recipient_id) and not account.is_admin:
        raise Forbidden("Only who offered the app, or was offered it, can take the offer back.")
    if row.state != "pending":
        raise Conflict(f"That transfer was {row.state} already.", status=422)
    session.delete(row)
    audit.record(session, account, "apps:transfer-cancel", row.app)
