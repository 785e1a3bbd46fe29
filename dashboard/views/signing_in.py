"""Before and around the apps: signing in and out, the theme, files, the answer to a command line that wants to be logged in."""

from __future__ import annotations

import re

from flask import Response, g, request

from api import limits
from dashboard import assets, cookies
from dashboard.routing import Pages, Visit, go, host
from foundation.errors import DavitError, InvalidParams, NotFound
from state import accounts, invitations, logins, passwords, scopes, signatures, web_sessions
from state import set_up as first
from state.db import transaction
from state.two_factor import TwoFactorRequired

pages = Pages("signing-in")

SECOND_STEP_SECONDS = 300
"""How long after the password the two-factor code is taken."""
_HERE = re.compile(r"/(?![/\\])[^\x00-\x20\\]{0,1000}")
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "CrOS", "Linux")
_BROWSERS = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))


def destination(text: str) -> str:
    """Where to go afterwards: a path of ours, the list of apps for anything else."""
    return text if _HERE.fullmatch(text) else "/"


@pages.on("GET", "/static/<version>/<path:name>", needs="nothing")
def static(visit: Visit, version: str, name: str) -> Response:
    """Styles and scripts."""
    return assets.serve(version, name)


@pages.on("GET", "/sign-in", needs="nothing")
def show(visit: Visit) -> Response:
    """The sign-in page."""
    to = destination(request.args.get("to", "") or visit.text("to"))
    if visit.signed and not visit.problem:
        return go(to)
    step = visit.text("step") if isinstance(visit.problem, TwoFactorRequired) or visit.form.get("step") else ""
    return _page(visit, to, by_token="token" in request.args or "token" in visit.form, step=step)


def _page(visit: Visit, to: str, *, by_token: bool, step: str) -> Response:
    return visit.page("sign_in.html", to=to, by_token=by_token, step=step, is_set_up=first.done(visit.session))


@pages.on("POST", "/sign-in", needs="nothing", writes=False)
def sign_in(visit: Visit) -> Response:
    """Open a session by password (and two-factor code) or by token."""
    to = destination(visit.text("to"))
    try:
        with limits.guessing():
            return _by_token(visit, to) if visit.text("token") else _by_password(visit, to)
    except DavitError as problem:
        if problem.status == 401:
            problem = InvalidParams(_wrong(visit), status=403)
        visit.problem = problem
        return _page(visit, to, by_token=bool(visit.form.get("token")), step=g.get("step", ""))


def _wrong(visit: Visit) -> str:
    if visit.form.get("token") is not None:
        return "That token opens nothing: it is mistyped, has expired or was taken away."
    return "That address and password do not go together."


def _by_token(visit: Visit, to: str) -> Response:
    token = accounts.find_token(visit.session, visit.text("token"))  # before a writer's turn, which is not for strangers
    scopes.demand(token.scope, "global")  # a browser's session may do everything that its account may
    id = token.id
    visit.session.rollback()
    with transaction() as session:
        text, _ = web_sessions.start(session, accounts.bearer(session, id), browser(), host())
    return _opened(text, to)


def _by_password(visit: Visit, to: str) -> Response:
    step = visit.text("step")
    if step:
        account_id = _after_the_password(step)
    else:
        account_id = passwords.known(visit.text("email", 254), visit.form.get("password", "")[:1000])
    g.step = step or signatures.sign("second-step", {"account": account_id}, SECOND_STEP_SECONDS)
    with transaction() as session:
        account = logins.finish(session, account_id, visit.text("code", 64) or None)
        text, _ = web_sessions.start(session, account, browser(), host())
    return _opened(text, to)


def _after_the_password(step: str) -> str:
    """Whose second step it is."""
    try:
        return str(signatures.read("second-step", step)["account"])
    except NotFound:
        raise InvalidParams("That took too long; sign in again.") from None


def _opened(text: str, to: str) -> Response:
    answer = go(to)
    cookies.put(answer, cookies.SESSION, text, int(web_sessions.LIFETIME.total_seconds()))
    cookies.drop(answer, cookies.VISIT)
    return answer


def browser() -> str:
    """The browser that asks, as its owner recognises it: ``Firefox on Linux, 192.0.2.7``."""
    agent = request.headers.get("User-Agent", "")
    name = next((name for mark, name in _BROWSERS if mark in agent), "A browser")
    system = next((name.replace("Mac OS X", "macOS").replace("CrOS", "ChromeOS") for name in _SYSTEMS if name in agent), "")
    return f"{name}{' on ' + system if system else ''}, {limits.caller() or 'an unknown address'}"


@pages.on("POST", "/sign-out", needs="account")
def sign_out(visit: Visit) -> Response:
    """End this browser's session."""
    assert visit.signed is not None
    web_sessions.end(visit.session, visit.account, visit.signed.row.id)
    answer = go("/sign-in", "You are signed out.")
    cookies.drop(answer, cookies.SESSION)
    return answer


@pages.on("POST", "/theme", needs="nothing")
def theme(visit: Visit) -> Response:
    """Light, dark, or as the browser prefers."""
    answer = go(destination(visit.text("to")))
    chosen = visit.text("theme")
    cookies.put(answer, cookies.THEME, chosen if chosen in cookies.THEMES else "system", cookies.YEAR)
    return answer


@pages.on("GET", "/login/<secret>", needs="account")
def login_request(visit: Visit, secret: str) -> Response:
    """A command line wants to be logged in: who, and from where."""
    return visit.page("login_request.html", asked=logins.asked(secret), secret=secret)


@pages.on("POST", "/login/<secret>", needs="account", again=login_request)
def answer_login(visit: Visit, secret: str) -> Response:
    """Let it act as the visitor, or refuse."""
    asked = logins.asked(secret)
    if visit.text("answer") == "approve":
        logins.approve(visit.session, visit.account, asked)
        return visit.done("/", "The command line is logged in. You can go back to it.")
    logins.deny(visit.session, visit.account, asked)
    return visit.done("/", "The command line's request was refused.")




@pages.on("GET", "/set-up/<secret>", needs="nothing")
def set_up(visit: Visit, secret: str) -> Response:
    """The machine's owner makes the account that signs in here."""
    return visit.page("set_up.html", owner=first.whom(visit.session, secret), secret=secret)


@pages.on("POST", "/set-up/<secret>", needs="nothing", again=set_up)
def complete_set_up(visit: Visit, secret: str) -> Response:
    """Take address and password, and sign in."""
    if visit.form.get("password", "") != visit.form.get("again", ""):
        raise InvalidParams("The password was not typed the same twice.")
    account = first.complete(visit.session, secret, visit.text("email", 254), visit.form.get("password", ""))
    text, _ = web_sessions.start(visit.session, account, browser(), host())
    return _opened(text, "/")


@pages.on("GET", "/invitation/<secret>", needs="nothing")
def invitation(visit: Visit, secret: str) -> Response:
    """Somebody who was invited, or forgot, chooses a password."""
    return visit.page("invitation.html", invited=invitations.find(visit.session, secret), secret=secret)


@pages.on("POST", "/invitation/<secret>", does="POST /password-resets/<secret>/actions/finalize", again=invitation)
def accept_invitation(visit: Visit, secret: str) -> Response:
    """Take the password; signing in with it comes next."""
    if visit.form.get("password", "") != visit.form.get("again", ""):
        raise InvalidParams("The password was not typed the same twice.")
    account = invitations.accept(visit.session, secret, visit.form.get("password", ""))
    return go("/sign-in", f"Now sign in as {account.email} with that password.")
