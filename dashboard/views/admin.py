"""What an admin looks after: health, hosts, people, the audit log."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from flask import Response, request

from dashboard.live import live
from dashboard.routing import Pages, Visit
from foundation.errors import InvalidParams, NotFound
from state import accounts, activity, audit, audit_log, capacity, health, invitations, passwords, people, two_factor
from state.db import snapshot
from state.models import Account

pages = Pages("admin")

TABS = (("Health", "/admin"), ("People", "/admin/people"), ("Audit log", "/admin/audit"))
PAGE = 100


def _page(visit: Visit, tab: str, template: str, **values: Any) -> Response:
    return visit.page(template, tab=tab, tabs=TABS, **values)


@pages.on("GET", "/admin", does="GET /davit/health")
def show(visit: Visit) -> Response:
    """Is everything well?"""
    return _page(
        visit, "Health", "admin.html", groups=health.groups(visit.session), host=health.host(visit.session),
        counts=health.counts(visit.session), capacity=capacity.of(visit.session), open_pages=live.count,
    )  # fmt: skip


@pages.on("GET", "/admin/people", does="GET /davit/accounts")
def everybody(visit: Visit) -> Response:
    """Everybody who has an account."""
    return _people(visit)


def _people(visit: Visit, **more: object) -> Response:
    return _page(visit, "People", "admin_people.html", people=people.everybody(visit.session), **more)


@pages.on("POST", "/admin/people", does="POST /davit/accounts", again=everybody)
def add_person(visit: Visit) -> Response:
    """Make an account; without a password, its owner chooses one at the address that is shown."""
    name, admin = visit.text("name", 100) or None, visit.text("admin") == "yes"
    made = accounts.create(visit.session, visit.account, visit.text("email", 254), name=name, admin=admin)
    if password := visit.form.get("password"):
        passwords.assign(visit.session, visit.account, made, password)
        return visit.done("/admin/people", f"{made.email} can sign in now.")
    return _people(visit, invited=made, address=_invitation(made))


def _invitation(account: Account) -> str:
    return f"{request.host_url.rstrip('/')}{request.script_root}/invitation/{invitations.issue(account)}"


@pages.on("POST", "/admin/people/<user>/invite", does="POST /davit/accounts/<user>/invitations", again=everybody)
def invite(visit: Visit, user: str) -> Response:
    """An address at which somebody who forgot their password chooses another."""
    account = _found(visit, user)
    audit.record(visit.session, visit.account, "accounts:invite", email=account.email)
    return _people(visit, invited=account, address=_invitation(account))


@pages.on("POST", "/admin/people/<user>/remove", does="DELETE /davit/accounts/<user>", again=everybody)
def remove_person(visit: Visit, user: str) -> Response:
    """Remove an account that owns no app."""
    account = _found(visit, user)
    if account.id == visit.account.id:
        raise InvalidParams("You cannot remove the account that you are using.")
    email = account.email
    people.remove(visit.session, visit.account, account)
    return visit.done("/admin/people", f"{email} is removed.")


@pages.on("POST", "/admin/people/<user>/two-factor", does="DELETE /davit/accounts/<user>/two-factor", again=everybody)
def disable_two_factor(visit: Visit, user: str) -> Response:
    """Help somebody who has lost the device."""
    account = _found(visit, user)
    two_factor.disable(visit.session, visit.account, account)
    return visit.done("/admin/people", f"{account.email} signs in by password alone now.")


def _found(visit: Visit, user: str) -> Account:
    account = people.find(visit.session, user)
    if account is None:
        raise NotFound("Couldn't find that user.")
    return account


def _filter() -> audit_log.Filter:
    sent = request.args
    until = _day(sent.get("until", ""))
    return audit_log.Filter(
        sent.get("actor", "").strip()[:254], sent.get("action", "").strip()[:60], sent.get("app", "").strip()[:36],
        _day(sent.get("since", "")), until + timedelta(days=1) if until else None,
    )  # fmt: skip


def _day(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


@pages.on("GET", "/admin/audit", does="GET /davit/audit")
def audit_page(visit: Visit) -> Response:
    """Who changed what and when."""
    number = request.args.get("page", "1")
    page = int(number) if number.isascii() and number.isdigit() and 0 < len(number) < 5 else 1
    rows, more = audit_log.page(visit.session, _filter(), offset=(max(1, page) - 1) * PAGE, most=PAGE)
    kept = {name: value for name, value in request.args.items() if name in ("actor", "action", "app", "since", "until") and value}
    return _page(visit, "Audit log", "admin_audit.html", rows=rows, more=more, page=max(1, page), kept=kept, told=activity.told)


@pages.on("GET", "/admin/audit/export", does="GET /davit/audit")
def export(visit: Visit) -> Response:
    """The filtered log as CSV, or (``as=json``) one JSON object a line."""
    wanted, as_json = _filter(), request.args.get("as") == "json"
    body = _json_lines(wanted) if as_json else _csv_lines(wanted)
    answer = Response(body, content_type="application/x-ndjson" if as_json else "text/csv; charset=utf-8")
    answer.headers["Content-Disposition"] = f'attachment; filename="audit.{"jsonl" if as_json else "csv"}"'
    return answer


def _json_lines(wanted: audit_log.Filter) -> Iterator[str]:
    with snapshot() as session:
        for row in audit_log.every(session, wanted):
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _csv_lines(wanted: audit_log.Filter) -> Iterator[str]:
    yield "at,actor,action,app,app_id,details\r\n"
    with snapshot() as session:
        for row in audit_log.every(session, wanted):
            line = io.StringIO()
            cells = [*list(row.values())[:-1], json.dumps(row["details"], ensure_ascii=False)]
            csv.writer(line).writerow([_harmless(str(cell)) for cell in cells])
            yield line.getvalue()


def _harmless(cell: str) -> str:
    """A spreadsheet takes what begins like this for a formula (OWASP, CSV injection)."""
    return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
