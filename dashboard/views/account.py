"""One's own account: name, password, second factor, browsers, tokens, keys."""

from __future__ import annotations

from datetime import timedelta

from flask import Response
from markupsafe import Markup

from dashboard.routing import Pages, Visit
from foundation.errors import InvalidParams
from state import accounts, authorizations, passwords, people, two_factor, web_sessions

pages = Pages("account")

LIFETIMES = {"month": timedelta(days=30), "year": timedelta(days=365), "ever": None}
"""What a new token can be good for."""


@pages.on("GET", "/account", needs="account")
def show(visit: Visit) -> Response:
    """The account and what opens it."""
    return _page(visit)


def _page(visit: Visit, **more: object) -> Response:
    assert visit.signed is not None
    return visit.page(
        "account.html", sessions=web_sessions.all_of(visit.session, visit.account), present=visit.signed.row.id,
        tokens=authorizations.all_of(visit.session, visit.account), kept=accounts.owner_token(visit.session),
        keys=accounts.keys(visit.session, visit.account), **more,
    )  # fmt: skip


@pages.on("POST", "/account/name", does="PATCH /account", again=show)
def rename(visit: Visit) -> Response:
    """Change what one is called."""
    people.rename(visit.session, visit.account, visit.account, visit.text("name", 100) or None)
    return visit.done("/account", "Saved.")


@pages.on("POST", "/account/password", does="PATCH /account", again=show)
def set_password(visit: Visit) -> Response:
    """Change the password; other browsers are signed out."""
    assert visit.signed is not None
    new = visit.form.get("new", "")
    if new != visit.form.get("again", ""):
        raise InvalidParams("The new password was not typed the same twice.")
    passwords.change(visit.session, visit.account, visit.form.get("password") or None, new, keep=visit.signed.row)
    return visit.done("/account", "The password is changed, and your other browsers are signed out.")


@pages.on("POST", "/account/two-factor", does="POST /account/two-factor", again=show)
def begin_two_factor(visit: Visit) -> Response:
    """Show the secret for an authenticator app; who only found the browser open must not lock its owner out."""
    if visit.account.password_hash is not None:
        passwords.confirm(visit.session, visit.account, visit.form.get("password") or None)
    enrolment = two_factor.begin(visit.session, visit.account)
    return _page(visit, enrolment=enrolment, picture=qr_code(enrolment.uri))


def qr_code(text: str) -> Markup:
    """``text`` as a picture that a phone reads (ISO/IEC 18004)."""
    import segno  # 1 MiB that only this page needs

    code = segno.make(text, error="m")
    path = "".join(f"M{x} {y}h1v1h-1z" for y, row in enumerate(code.matrix) for x, dark in enumerate(row) if dark)
    size = len(code.matrix)
    return Markup(  # noqa: S704 - numbers only
        f'<svg viewBox="-4 -4 {size + 8} {size + 8}" width="200" height="200" role="img" aria-label="QR code">'
        f'<rect x="-4" y="-4" width="{size + 8}" height="{size + 8}" fill="#fff"/><path d="{path}" fill="#000"/></svg>'
    )


@pages.on("POST", "/account/two-factor/confirm", does="POST /account/two-factor/actions/confirm", again=show)
def confirm_two_factor(visit: Visit) -> Response:
    """Turn it on; the recovery codes are shown this once."""
    return _page(visit, recovery=two_factor.confirm(visit.session, visit.account, visit.text("code", 20)))


@pages.on("POST", "/account/two-factor/recovery-codes", does="POST /account/recovery-codes", again=show)
def renew_recovery_codes(visit: Visit) -> Response:
    """New recovery codes, shown this once; the old ones open nothing any more."""
    return _page(visit, recovery=two_factor.recovery_codes(visit.session, visit.account, visit.text("code", 64) or None))


@pages.on("POST", "/account/two-factor/disable", does="DELETE /account/two-factor", again=show)
def disable_two_factor(visit: Visit) -> Response:
    """Turn it off."""
    two_factor.disable(visit.session, visit.account, visit.account, visit.text("code", 64) or None)
    return visit.done("/account", "Two-factor authentication is off.")


@pages.on("POST", "/account/sessions/<id>/end", does="DELETE /oauth/sessions/<session>", again=show)
def end_session(visit: Visit, id: str) -> Response:
    """Sign a browser out."""
    row = web_sessions.end(visit.session, visit.account, id)
    return visit.done("/account", f"{row.description} is signed out.")


@pages.on("POST", "/account/sessions/end", does="DELETE /oauth/sessions", again=show)
def end_other_sessions(visit: Visit) -> Response:
    """Sign every other browser out."""
    assert visit.signed is not None
    web_sessions.end_all(visit.session, visit.account, keep=visit.signed.row)
    return visit.done("/account", "All other browsers are signed out.")


@pages.on("POST", "/account/tokens", does="POST /oauth/authorizations", again=show)
def create_token(visit: Visit) -> Response:
    """Make an API token, shown this once."""
    lifetime = LIFETIMES.get(visit.text("lifetime"), LIFETIMES["year"])
    description = visit.text("description", 255) or "made in the dashboard"
    text, _ = accounts.issue_token(visit.session, visit.account, description, lifetime=lifetime)
    return _page(visit, token=text)


@pages.on("POST", "/account/tokens/<id>/remove", does="DELETE /oauth/authorizations/<authorization>", again=show)
def remove_token(visit: Visit, id: str) -> Response:
    """Take a token away."""
    authorizations.remove(visit.session, visit.account, id)
    return visit.done("/account", "The token opens nothing any more.")


@pages.on("POST", "/account/keys", does="POST /account/keys", again=show)
def add_key(visit: Visit) -> Response:
    """Let the holder of an SSH key push."""
    accounts.add_key(visit.session, visit.account, visit.form.get("key", ""))
    return visit.done("/account", "The key is added.")


@pages.on("POST", "/account/keys/<id>/remove", does="DELETE /account/keys/<path:key>", again=show)
def remove_key(visit: Visit, id: str) -> Response:
    """Take an SSH key away."""
    accounts.remove_key(visit.session, visit.account, id)
    return visit.done("/account", "The key is removed.")

