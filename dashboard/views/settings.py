"""What an app is set to: config vars, domains, buildpacks, people, maintenance, its name, its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from flask import Response, request
from sqlalchemy.orm import Session
from werkzeug.datastructures import MultiDict

from api import serialize, streams
from builder import buildpacks
from dashboard import dotenv, frame, lookups
from dashboard.routing import Pages, Visit, go, host
from foundation import outbound
from foundation.clock import now
from foundation.errors import InvalidParams, NotFound
from state import (
    apps,
    audit,
    config,
    domains,
    drains,
    endpoints,
    features,
    guard,
    own_names,
    payloads,
    signatures,
    transfers,
    webhooks,
)
from state.db import transaction
from state.meanwhile import ChangedMeanwhile
from state.models import Account, App, LogDrain, SniEndpoint, Webhook

pages = Pages("settings")

_SHOWN_TO = {"drains": "operate", "name": "manage", "destroy": "manage"}
"""What it takes to see a section, where it takes more than to see the page; the transfer is for :func:`transfers.may_offer`."""
BLANKS = 3
"""Empty rows for new config vars."""
SECTIONS = (
    ("config", "Config vars"), ("domains", "Domains"), ("certificates", "Certificates"), ("buildpacks", "Buildpacks"),
    ("people", "Collaborators"), ("drains", "Log drains"), ("webhooks", "Webhooks"),
    ("maintenance", "Maintenance"), ("features", "Features"), ("name", "Name"), ("transfer", "Transfer"), ("destroy", "Destroy"),
)  # fmt: skip
"""Each is a template, ``settings_ID.html``."""
SOON = timedelta(days=14)
"""A certificate that ends within this time is marked."""
USUAL = ("view", "deploy", "operate")
"""What a new collaborator may do unless something else is chosen."""


@pages.on("GET", "/apps/<app>/settings", does="GET /apps/<app>")
def show(visit: Visit) -> Response:
    """Everything that can be set; values of config vars are not among it."""
    return _page(visit, revealed=None)


def _page(visit: Visit, revealed: dict[str, str] | None, **more: object) -> Response:
    values = config.read(visit.app) if "deploy" in visit.may else {}
    marks = {name: config.mark(visit.app, name, value) for name, value in values.items()}
    kept = _kept(visit, marks)
    seen = {id for id, _ in SECTIONS if _SHOWN_TO.get(id, "view") in visit.may}
    if not transfers.may_offer(visit.account, visit.app):
        seen.discard("transfer")
    sections = [(id, words) for id, words in SECTIONS if id in seen]
    return frame.page(
        visit, "Settings", "settings.html", names=list(values), marks=marks, revealed=revealed, kept=kept, sections=sections,
        domains=domains.all_of(visit.session, visit.app), people=apps.collaborators(visit.session, visit.app),
        permissions=apps.PERMISSIONS, usual=USUAL, target=_target(visit), offered=_offered(visit),
        guarded=guard.applies(visit.session, visit.account, visit.app), webhooks=_webhooks(visit),
        includes=payloads.INCLUDES, drains=_drains(visit), certificates=_certificates(visit), soon=now() + SOON,
        deliveries=webhooks.deliveries(visit.session, visit.app)[:10], features=_features(visit),
        told_in=_told_in(dict(sections)), buildpacks=_buildpacks(visit), **more,
    )  # fmt: skip


@dataclass(frozen=True)
class _Kept:
    """What a refused form of config vars had in it: new values and ticked removals by name, rows of new ones, a pasted file."""

    values: Mapping[str, str]
    removed: frozenset[str]
    rows: Sequence[tuple[str, str]]
    dotenv: str


def _kept(visit: Visit, marks: Mapping[str, str]) -> _Kept:
    """What was typed is there to be sent again; but for what somebody else changed meanwhile, which wants another look."""
    form: MultiDict[str, str] = visit.form if visit.problem else MultiDict()
    seen = _seen(visit)
    stale = {name for name, mark in marks.items() if form.get("seen") and seen.get(name) != mark}
    free = [name for name in marks if name not in stale]
    sent = zip(form.getlist("new-name"), form.getlist("new-value"), strict=False)
    rows = [(name, value) for name, value in sent if (name.strip() or value) and name.strip() not in stale]
    return _Kept(
        {name: form[f"value.{name}"] for name in free if f"value.{name}" in form},
        frozenset(name for name in free if form.get(f"remove.{name}")), rows + [("", "")] * (BLANKS - len(rows)),
        dotenv.without(form.get("dotenv", ""), stale),
    )  # fmt: skip


def _told_in(sections: Mapping[str, str]) -> str:
    """The section that a message is about, which is shown there; empty for none of those that are shown."""
    sent = request.path.partition("/settings/")[2].partition("/")[0]
    named = request.args.get("at", "") if request.method == "GET" else {"reveal": "config"}.get(sent, sent)
    return named if named in sections else ""


def _features(visit: Visit) -> list[tuple[features.Feature, bool, bool]]:
    """Each feature of apps, whether it is on, and whether the visitor may switch it."""
    found = []
    for one, row in features.of_app(visit.session, visit.app):
        needed = {"operate", "manage"} if one.name == features.GUARD else {"operate"}
        found.append((one, row.enabled if row else one.usual, not one.fixed and needed <= visit.may))
    return found


def _webhooks(visit: Visit) -> list[tuple[Webhook, str]]:
    """The app's webhooks, each with its address: in full for those who may operate it."""
    rows = webhooks.all_of(visit.session, visit.app)
    return [(row, row.url if "operate" in visit.may else webhooks.origin(row)) for row in rows]


def _drains(visit: Visit) -> list[tuple[LogDrain, str]]:
    """The app's drains, each with its address without a password; they are for those who may operate it."""
    if "operate" not in visit.may:
        return []
    return [(row, drains.parse(drains.url_of(row)).shown) for row in drains.all_of(visit.session, visit.app)]


def _certificates(visit: Visit) -> list[tuple[SniEndpoint, endpoints.Certificate]]:
    """The app's own certificates and what they say."""
    rows = endpoints.all_of(visit.session, visit.app)
    return [(row, endpoints.describe(row.certificate_chain)) for row in rows]


def _buildpacks(visit: Visit) -> list[tuple[str, str]]:
    """The app's buildpacks, each with what the form sends for it; a password in a URL is in neither."""
    return [(str(serialize.buildpack(name, in_full=False)["name"]), _mark(visit.app, name)) for name in visit.app.buildpacks]


def _mark(app: App, buildpack: str) -> str:
    return signatures.mark("buildpack", f"{app.id}\0{buildpack}")


def _offered(visit: Visit) -> str:
    """Whom the app is offered to."""
    row = transfers.pending(visit.session, visit.app)
    return row.recipient.email if row else ""


def _target(visit: Visit) -> str:
    """What a custom domain's CNAME record has to say."""
    return own_names.of_app(visit.app.name)


def _back(visit: Visit, section: str, message: str) -> Response:
    return visit.done(f"/apps/{visit.app.name}/settings?at={section}#at-{section}", message)


@pages.on("POST", "/apps/<app>/settings/reveal", does="GET /apps/<app>/config-vars", again=show)
def reveal(visit: Visit) -> Response:
    """Show the values of config vars; who did so is on record."""
    values = config.read(visit.app)
    audit.record(visit.session, visit.account, "config:reveal", visit.app, names=sorted(values))
    return _page(visit, revealed=values)


@pages.instead_of(show)
def show_config_again(visit: Visit) -> Response:
    """The page after a refusal; where values were revealed they are again, as they are now, and as they were typed."""
    if visit.form.get("shown") != "yes" or "deploy" not in visit.may:
        return show(visit)  # type: ignore[no-any-return]
    values = config.read(visit.app)
    visit.session.rollback()
    with transaction() as session:
        account, app = _again(visit, session)
        audit.record(session, account, "config:reveal", app, names=sorted(values))
    seen = _seen(visit)
    typed = {
        name: text for name, text in _typed(visit).items()
        if text is not None and name in values and seen.get(name) == config.mark(visit.app, name, values[name])
    }  # fmt: skip
    return _page(visit, revealed={**values, **typed})


@pages.on("POST", "/apps/<app>/settings/config", does="PATCH /apps/<app>/config-vars", again=show_config_again)
def set_config(visit: Visit) -> Response:
    """Change many config vars at once: rows, ticked removals, a pasted .env; one release for all of it."""
    updates: dict[str, str | None] = {**dotenv.parse(visit.form.get("dotenv", "")), **_typed(visit)}
    for name, value in zip(visit.form.getlist("new-name"), visit.form.getlist("new-value"), strict=False):
        if name.strip():
            updates[name.strip()] = value.replace("\r\n", "\n")
        elif value.strip():
            raise InvalidParams("A new config var has a value and no name; give it one.")
    seen = _seen(visit) if visit.form.get("seen") else None
    release = config.change(visit.session, visit.account, visit.app, updates, seen=seen)
    if release is None:
        return _back(visit, "config", "Nothing has changed.")
    return _back(visit, "config", f"Release v{release.version} is on its way with the new config vars.")


def _seen(visit: Visit) -> dict[str, str]:
    """The config vars of the page that the form was on, each with the mark of the value that it had."""
    prefix = "seen."
    return {key.removeprefix(prefix): mark for key, mark in visit.form.items() if key.startswith(prefix)}


def _typed(visit: Visit) -> dict[str, str | None]:
    """Which of the page's config vars the visitor changed, or (None) removes; what was left as it was is none of them."""
    shown, seen = visit.form.get("shown") == "yes", _seen(visit)
    changed: dict[str, str | None] = {}
    for name in seen or config.read(visit.app):
        value = visit.form.get(f"value.{name}")
        if visit.form.get(f"remove.{name}"):
            changed[name] = None
        elif value is not None and (shown or value):
            text = value.replace("\r\n", "\n")
            if config.mark(visit.app, name, text) != seen.get(name):
                changed[name] = text
    return changed


@pages.on("POST", "/apps/<app>/settings/domains", does="POST /apps/<app>/domains", again=show)
def add_domain(visit: Visit) -> Response:
    """Route a host name to the app."""
    row = domains.add(visit.session, visit.account, visit.app, visit.text("hostname", 300))
    return _back(visit, "domains", f"{row.hostname} leads to the app as soon as its DNS record does.")


@pages.on("POST", "/apps/<app>/settings/domains/<domain>/remove", does="DELETE /apps/<app>/domains/<domain>", again=show)
def remove_domain(visit: Visit, domain: str) -> Response:
    """Route it to the app no longer."""
    row = domains.remove(visit.session, visit.account, visit.app, domain)
    return _back(visit, "domains", f"{row.hostname} no longer leads to the app.")


@pages.on("GET", "/apps/<app>/settings/domains/<domain>", does="GET /apps/<app>/domains/<domain>")
def check_domain(visit: Visit, domain: str) -> Response:
    """Whether DNS leads a domain here; asked for on its own, because name servers take their time."""
    row = domains.find(visit.session, visit.app, domain)
    hostname, places = row.hostname, (_target(visit), host())
    with streams.looking_up(visit.session, visit.account.id):
        found, ours = lookups.addresses(hostname), lookups.addresses(places[0]) | lookups.addresses(places[1])
    told = {"found": sorted(found), "ours": sorted(ours), "right": bool(found & ours)}
    if "HX-Request" in request.headers:
        return visit.page("domain_state.html", **told)
    return frame.page(visit, "Settings", "domain.html", row=row, target=_target(visit), **told)


@pages.on("POST", "/apps/<app>/settings/buildpacks", does="PUT /apps/<app>/buildpack-installations", again=show)
def set_buildpacks(visit: Visit) -> Response:
    """The buildpacks of the next build, in the order of the form; ``move`` and ``remove`` change that order."""
    names = _marked(visit, "buildpack")
    if added := visit.text("new", 1000):
        names.append(buildpacks.check(added, admin=visit.account.is_admin))
    verb, _, number = visit.text("act", 40).partition(":")
    if number.isascii() and number.isdigit() and int(number) < len(names):
        at = int(number)
        name = names.pop(at)
        if verb != "remove":
            names.insert(max(0, at - 1) if verb == "up" else at + 1, name)
    seen = _marked(visit, "was") if visit.form.get("seen") else None
    apps.set_buildpacks(visit.session, visit.account, visit.app, names, seen=seen)
    words = "The next build uses these buildpacks." if names else "The next build looks for a buildpack that fits."
    return _back(visit, "buildpacks", words)


def _marked(visit: Visit, field: str) -> list[str]:
    """The buildpacks whose marks a field has.

    Raises:
        ChangedMeanwhile: one is not among those that the app has now.
    """
    known = {_mark(visit.app, name): name for name in visit.app.buildpacks}
    sent = visit.form.getlist(field)
    if not known.keys() >= set(sent):
        raise ChangedMeanwhile(["the buildpacks"])
    return [known[mark] for mark in sent]


@pages.on("POST", "/apps/<app>/settings/people", does="POST /apps/<app>/collaborators", again=show)
def add_person(visit: Visit) -> Response:
    """Let somebody work on the app, or change what they may do."""
    wanted = [name for name in apps.PERMISSIONS if name == "view" or visit.form.get(f"may.{name}")]
    visit.guard()
    row = apps.add_collaborator(visit.session, visit.account, visit.app, visit.text("email", 254), wanted)
    visit.session.refresh(row)
    return _back(visit, "people", f"{row.account.email} may {', '.join(wanted)}.")


@pages.on("POST", "/apps/<app>/settings/people/<user>/remove", does="DELETE /apps/<app>/collaborators/<user>", again=show)
def remove_person(visit: Visit, user: str) -> Response:
    """End a collaboration: one's own, or anybody's with the permission manage."""
    if user not in (visit.account.email, visit.account.id):
        visit.need("manage")
        visit.guard()
    row = apps.remove_collaborator(visit.session, visit.account, visit.app, user)
    if row.account_id == visit.account.id and not visit.account.is_admin:
        return go("/", f"You no longer work on {visit.app.name}.")
    return _back(visit, "people", f"{row.account.email} no longer works on the app.")


@pages.on("POST", "/apps/<app>/settings/drains", does="POST /apps/<app>/log-drains", again=show, writes=False)
def add_drain(visit: Visit) -> Response:
    """Send the app's lines somewhere."""
    url = visit.text("drain", 2000)
    place = drains.parse(url)
    with streams.looking_up(visit.session, visit.account.id):
        outbound.check(domains.marked(place))
    with transaction() as session:
        account, app = _again(visit, session)
        drains.add(session, account, app, url)
    return _back(visit, "drains", f"Lines go to {place.shown}, too.")


@pages.on("POST", "/apps/<app>/settings/drains/<drain>/remove", does="DELETE /apps/<app>/log-drains/<path:drain>", again=show)
def remove_drain(visit: Visit, drain: str) -> Response:
    """Send nothing there any more."""
    drains.remove(visit.session, visit.account, visit.app, drain)
    return _back(visit, "drains", "The drain is removed.")


def _again(visit: Visit, session: Session) -> tuple[Account, App]:
    """The visitor and the app in a write transaction of our own."""
    assert visit.signed is not None
    account = visit.signed.within(session).account
    return account, apps.find(session, account, visit.app.id, "operate")


@pages.on("POST", "/apps/<app>/settings/certificates", does="POST /apps/<app>/sni-endpoints", again=show)
def add_certificate(visit: Visit) -> Response:
    """Serve domains with a certificate of one's own."""
    endpoints.add(visit.session, visit.account, visit.app, visit.form.get("chain", ""), visit.form.get("key", ""))
    return _back(visit, "certificates", "The certificate is added.")


@pages.on("POST", "/apps/<app>/settings/certificates/<id>", does="PATCH /apps/<app>/sni-endpoints/<endpoint>", again=show)
def renew_certificate(visit: Visit, id: str) -> Response:
    """Put another certificate in its place; its domains stay bound to it."""
    row = endpoints.find(visit.session, visit.app, id)
    endpoints.update(visit.session, visit.account, visit.app, row, visit.form.get("chain", ""), visit.form.get("key", ""))
    return _back(visit, "certificates", "The certificate is renewed.")


@pages.on("POST", "/apps/<app>/settings/domains/<domain>/certificate", does="PATCH /apps/<app>/domains/<domain>", again=show)
def bind_certificate(visit: Visit, domain: str) -> Response:
    """Serve a domain with one of the app's certificates, or with Davit's own."""
    row = domains.find(visit.session, visit.app, domain)
    endpoints.bind(visit.session, visit.account, visit.app, row, visit.text("endpoint", 60) or None)
    whose = "the certificate chosen" if row.sni_endpoint_id else "Davit's own certificate"
    return _back(visit, "domains", f"{row.hostname} is served with {whose}.")


@pages.on("POST", "/apps/<app>/settings/certificates/<id>/remove", does="DELETE /apps/<app>/sni-endpoints/<endpoint>", again=show)
def remove_certificate(visit: Visit, id: str) -> Response:
    """Take a certificate away."""
    row = endpoints.find(visit.session, visit.app, id)
    endpoints.remove(visit.session, visit.account, visit.app, row)
    return _back(visit, "certificates", "The certificate is removed.")


@pages.on("POST", "/apps/<app>/settings/webhooks", does="POST /apps/<app>/webhooks", again=show, writes=False)
def add_webhook(visit: Visit) -> Response:
    """Have changes told to a URL; the secret that signs them is shown once."""
    wish = webhooks.check(visit.text("url", 2000), visit.form.getlist("include"), visit.text("level", 20))
    with streams.looking_up(visit.session, visit.account.id):
        outbound.check(domains.marked(wish.place))
    with transaction() as session:
        account, app = _again(visit, session)
        _, secret = webhooks.create(session, account, app, wish)
    return _page(visit, revealed=None, webhook_secret=secret)


@pages.on("POST", "/apps/<app>/settings/webhooks/<webhook>/remove", does="DELETE /apps/<app>/webhooks/<webhook>", again=show)
def remove_webhook(visit: Visit, webhook: str) -> Response:
    """Tell that URL nothing any more."""
    webhooks.remove(visit.session, visit.account, visit.app, webhooks.find(visit.session, visit.app, webhook))
    return _back(visit, "webhooks", "The webhook is removed.")


@pages.on("POST", "/apps/<app>/settings/maintenance", does="PATCH /apps/<app>", again=show)
def set_maintenance(visit: Visit) -> Response:
    """Show the maintenance page, or the app again."""
    visit.need("operate")
    on = visit.text("on") == "yes"
    apps.set_maintenance(visit.session, visit.account, visit.app, on)
    return _back(visit, "maintenance", "Visitors see the maintenance page." if on else "Visitors see the app again.")


@pages.on("POST", "/apps/<app>/settings/features/<feature>", does="PATCH /apps/<app>/features/<feature>", again=show)
def switch_feature(visit: Visit, feature: str) -> Response:
    """Switch a feature on or off."""
    on = visit.text("on") == "yes"
    if feature == features.GUARD:
        visit.need("manage")
        if not on:
            visit.guard()
    found, _ = features.switch(visit.session, visit.account, visit.app, feature, on)
    return _back(visit, "features", f"{found.title} is {'on' if on else 'off'}.")


@pages.on("POST", "/apps/<app>/settings/name", does="PATCH /apps/<app>", again=show)
def rename(visit: Visit) -> Response:
    """Give it another name."""
    visit.need("manage")
    visit.guard()
    apps.rename(visit.session, visit.account, visit.app, visit.text("name", 100))
    return _back(visit, "name", f"It is called {visit.app.name} now; set your git remote to the new address.")


@pages.on("POST", "/apps/<app>/settings/transfer", does="POST /account/app-transfers", again=show)
def offer(visit: Visit) -> Response:
    """Offer the app to somebody, who has to accept it."""
    visit.guard()
    row = transfers.offer(visit.session, visit.account, visit.app, visit.text("recipient", 254))
    return _back(visit, "transfer", f"{row.recipient.email} is offered the app and finds that on the page of apps.")


@pages.on("POST", "/apps/<app>/settings/transfer/take-back", does="DELETE /account/app-transfers/<transfer>", again=show)
def take_back(visit: Visit) -> Response:
    """Take the offer back."""
    row = transfers.pending(visit.session, visit.app)
    if row is None:
        raise NotFound(transfers.NOT_FOUND)
    transfers.take_back(visit.session, visit.account, row)
    return _back(visit, "transfer", "The offer is taken back.")


@pages.on("POST", "/apps/<app>/settings/destroy", does="DELETE /apps/<app>", again=show)
def destroy(visit: Visit) -> Response:
    """Destroy it, once its name was typed."""
    name = visit.app.name
    if visit.text("confirm") != name:
        raise InvalidParams(f"To destroy {name}, type its name.")
    visit.guard()
    apps.destroy(visit.session, visit.account, visit.app)
    return go("/", f"{name} is destroyed.")

