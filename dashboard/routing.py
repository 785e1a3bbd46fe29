"""What a page needs of whoever asks for it. Where the API can do the same, the page needs what the API's endpoint needs.

    pages = Pages("resources")

    @pages.on("POST", "/apps/<app>/scale", does="PATCH /apps/<app>/formation", again=show)
    def scale(visit: Visit) -> Response: …

So a permission is written down once, in the API's routes; nothing here can do what the API cannot. A page is read in a
snapshot of the database; what changes something works in one write transaction, after the form was read and its
anti-forgery token checked. When an operation refuses, the page ``again`` is shown with the refusal and what was typed, to who
may see that page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from flask import Blueprint, Flask, Response, current_app, g, redirect, render_template, request
from sqlalchemy.orm import Session
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from api import limits, streams
from api.routing import Needs
from dashboard import cookies
from dashboard.signed_in import SignedIn, recognize
from foundation import pace
from foundation.errors import NO_ROOM, DavitError, DiskFull, Forbidden, NotFound
from foundation.settings import settings
from state import apps, guard, own_names, passwords, pipelines
from state.db import snapshot, transaction
from state.models import Account, App, Pipeline

T = TypeVar("T")
FORM_LIMIT = 1 << 20
"""Bytes of a form at the most (config vars together have 64 KB)."""


class SignInFirst(DavitError):
    """Nobody is signed in."""

    id, status = "unauthorized", 401


class Forged(DavitError):
    """A form came without the token that its page had."""

    id, status = "forged", 403


@lru_cache(maxsize=1)
def _endpoints() -> dict[str, Needs]:
    from api.web import operations

    return {f"{operation.method} {operation.path}": operation.needs for operation in operations()}


def needed_for(endpoint: str) -> Needs:
    """What the API asks of whoever calls an endpoint (``PATCH /apps/<app>/formation``).

    Raises:
        LookupError: the API has none such.
    """
    return _endpoints()[endpoint]


@dataclass
class Visit:
    """A request whose sender may make it, and what a view answers with.

    Attributes:
        problem: why the form that was sent was refused; None on a page that is shown for the first time.
        form: what was typed: empty for a page that is only looked at.
    """

    session: Session
    signed: SignedIn | None
    form: MultiDict[str, str]
    found: App | None = None
    problem: DavitError | None = None
    may: frozenset[str] = field(default_factory=frozenset)
    pipeline: Pipeline | None = None

    @property
    def account(self) -> Account:
        """Who looks."""
        assert self.signed is not None
        return self.signed.account

    @property
    def app(self) -> App:
        """The app that the path names."""
        assert self.found is not None
        return self.found

    def need(self, permission: str) -> None:
        """Go on only with this permission on the app.

        Raises:
            Forbidden: the visitor has not got it.
        """
        if permission not in self.may:
            raise Forbidden(f"You may not do that with {self.app.name}: it takes the permission “{permission}”.")

    def guard(self) -> None:
        """Before an act that the two-factor guard is for.

        Raises:
            TwoFactorRequired, Forbidden: it takes a code, in the form's field ``code``.
        """
        guard.demand(self.session, self.account, None, self.app, self.text("code", 64) or None)

    def text(self, name: str, most: int = 10_000) -> str:
        """A field of the form without the blanks around it; empty when it was not sent."""
        return self.form.get(name, "")[:most].replace("\x00", "").strip()

    def apart(self, wait: Callable[[], T]) -> T:
        """Wait for another process with nothing of the database in hand; afterwards it is looked anew who may see the app.

        Raises:
            Unauthorized, NotFound: the visitor may not any more, or the app has gone.
        """
        assert self.signed is not None
        app_id = self.app.id
        self.session.rollback()
        answer = wait()
        self.signed = self.signed.within(self.session)
        self.found = apps.find(self.session, self.account, app_id, "view")
        self.may = apps.permissions(self.session, self.account, self.found)
        return answer

    def page(self, template: str, **values: Any) -> Response:
        """Answer with a page."""
        status = self.problem.status if self.problem else 200
        html = render_template(template, visit=self, app=self.found, may=self.may, problem=self.problem, **values)
        return Response(html, status=status, content_type="text/html; charset=utf-8")

    def done(self, where: str, message: str = "") -> Response:
        """Answer a form: go to ``where`` (a path of ours), which says ``message`` once."""
        return go(where, message)


def go(where: str, message: str = "") -> Response:
    """A redirect to a page of ours that says ``message`` once."""
    answer = redirect(request.script_root + where, 303)
    assert isinstance(answer, Response)
    if message:
        cookies.set_flash(answer, message)
    return answer


View = Callable[..., Any]


@dataclass(frozen=True)
class Route:
    """How a page is served; see :meth:`Pages.on`."""

    method: str
    path: str
    needs: Needs | None
    does: str | None
    again: View | None
    writes: bool
    upload: bool

    @property
    def needed(self) -> Needs:
        """What it takes."""
        if self.does is not None:
            return needed_for(self.does)
        assert self.needs is not None
        return self.needs


class Pages(Blueprint):
    """A part of the dashboard; :meth:`on` is the only way to add a page."""

    def __init__(self, name: str) -> None:
        super().__init__(name, __name__)
        self.routes: list[Route] = []

    def on(
        self, method: str, path: str, *,
        needs: Needs | None = None, does: str | None = None, again: View | None = None, writes: bool = True,
        upload: bool = False,
    ) -> Callable[[View], View]:  # fmt: skip
        """Serve ``method path``.

        Args:
            needs: as for the API's endpoints, where the API has nothing of the kind.
            does: the API's endpoint that does the same; the page takes what that takes.
            again: for forms: the page that is shown when the operation refuses.
            writes: for forms: whether the view works in a write transaction; otherwise it opens its own, if any.
            upload: for forms: a file comes with it, as large as a push may be; only who may send it is read from.
        """
        if (needs is None) == (does is None):
            raise TypeError(f"{method} {path}: say either what it needs or which endpoint does the same.")
        route = Route(method, path, needs, does, again, writes and method == "POST", upload)
        self.routes.append(route)

        if again is not None:
            _route_of(again)

        def register(view: View) -> View:
            view.route = route  # type: ignore[attr-defined]
            self.add_url_rule(
                path, view.__name__, _serve(route, view), methods=[method], provide_automatic_options=False
            )
            return view

        return register

    def instead_of(self, page: View) -> Callable[[View], View]:
        """A view that is shown only after a refusal, in the place of ``page``; it takes what that takes."""

        def register(view: View) -> View:
            view.route = _route_of(page)  # type: ignore[attr-defined]
            return view

        return register


def _route_of(view: View) -> Route:
    route = getattr(view, "route", None)
    if not isinstance(route, Route):
        raise TypeError(f"{view.__name__} is no page: serve it with Pages.on, so that it is known what it takes.")
    return route


def _serve(route: Route, view: View) -> Callable[..., Response]:
    def served(**places: str) -> Response:
        if any("\x00" in value for value in places.values()):
            raise NotFound("There is nothing with a NUL character in its name.")
        form: MultiDict[str, str] = _form() if route.method == "POST" and not route.upload else MultiDict()
        with snapshot() as session:
            _refuse_an_apps_name(session)
            signed = recognize(session, request)
            g.signed = signed
            if route.upload:
                _admit(session, route.needed, signed, form, places)
            if route.method != "POST":
                return _answer(session, route, view, signed, form, places)
        if route.upload:
            request.max_content_length = (settings().push_limit << 20) + FORM_LIMIT
            sender = request.environ.get("gunicorn.socket")
            with streams.uploads.taken(signed.row.account_id if signed else ""), pace.demanded(sender):
                form = _form()
        _refuse_forged(signed, form)
        if signed is None and route.writes:
            limits.strangers.take(limits.caller())  # a writer keeps the others waiting, whatever comes of it

        def work() -> Response:
            with transaction() if route.writes else snapshot() as session:
                return _answer(session, route, view, signed.within(session) if signed else None, form, places)

        try:
            return passwords.apart(work) if route.writes else work()
        except DavitError as problem:
            if route.again is None or problem.status in (401, 404):
                raise
            return _show_again(route.again, signed, form, places, problem)

    served.route = route  # type: ignore[attr-defined]
    return served


def host() -> str:
    """The host name at which the browser asks."""
    return own_names.host_of(request.host)


def _refuse_an_apps_name(session: Session) -> None:
    """Neither show a form nor set a cookie where the browser would send it to an app as well."""
    if own_names.is_an_apps(session, host()):
        g.strange = True
        raise NotFound(
            f"{host()} is a name for apps, and an app must not be told who is signed in here. Open the dashboard at an address "
            "of Davit's own; whoever runs Davit sets that as DAVIT_NAMES."
        )


def _form() -> MultiDict[str, str]:
    """The form that was sent; its files are written down meanwhile."""
    try:
        return request.form
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull("your upload was not taken") from None
        raise


def _answer(
    session: Session, route: Route, view: View, signed: SignedIn | None, form: MultiDict[str, str], places: Mapping[str, str]
) -> Response:
    return _as_response(_call(_admit(session, route.needed, signed, form, places), view, places))


def _show_again(
    again: View, signed: SignedIn | None, form: MultiDict[str, str], places: Mapping[str, str], problem: DavitError
) -> Response:
    """The page with the refusal in it; to whom may not see that page, the refusal alone."""
    with snapshot() as session:
        try:
            visit = _admit(session, _route_of(again).needed, signed.within(session) if signed else None, form, places)
        except DavitError:
            raise problem from None
        visit.problem = problem
        return _as_response(_call(visit, again, places))


def _admit(
    session: Session, needs: Needs, signed: SignedIn | None, form: MultiDict[str, str], places: Mapping[str, str]
) -> Visit:
    if needs != "nothing" and signed is None:
        raise SignInFirst("Sign in to see that.")
    if needs == "admin" and not (signed and signed.account.is_admin):
        raise Forbidden("That takes an admin's account.")
    visit = Visit(session, signed, form)
    if needs in ("pipeline-view", "pipeline-manage"):
        assert signed is not None
        visit.pipeline = pipelines.find(session, signed.account, places["pipeline"], manage=needs == "pipeline-manage")
    if "app" in places:
        assert signed is not None
        visit.found = apps.find(session, signed.account, places["app"], needs if needs in apps.PERMISSIONS else "view")
        visit.may = apps.permissions(session, signed.account, visit.found)
    return visit


def _call(visit: Visit, view: View, places: Mapping[str, str]) -> Any:
    wanted = view.__code__.co_varnames[1 : view.__code__.co_argcount]
    return view(visit, **{name: value for name, value in places.items() if name in wanted})


def _as_response(answer: Any) -> Response:
    return answer if isinstance(answer, Response) else Response(answer, content_type="text/html; charset=utf-8")


def _refuse_forged(signed: SignedIn | None, form: MultiDict[str, str]) -> None:
    """Besides SameSite cookies: the token that only our own pages can know, and no foreign Origin."""
    sent = form.get("csrf") or request.headers.get("X-CSRF", "")
    if not is_from_here(request.headers.get("Origin")) or not cookies.is_ours(sent, signed):
        raise Forged("That form was not sent from a page of this dashboard, or the page was open for too long; reload it.")


def is_from_here(origin: str | None) -> bool:
    """Whether an Origin header, where there is one, names the address at which we were asked; one that cannot be read is none."""
    try:
        ours = request.host_url.rstrip("/")
    except ValueError:
        return False
    return origin is None or origin == ours


def this_page() -> str:
    """The path of the page that is shown; of the page with the form, where a form was answered with one."""
    rule, places = request.url_rule, request.view_args or {}
    if request.method != "POST":
        return request.full_path.rstrip("?")
    return _page_with(current_app.view_functions[rule.endpoint], places) if rule else "/"


def page_with_form() -> str | None:
    """The page with the form that is sent to this request's path; None where no form is."""
    adapter = current_app.create_url_adapter(request)
    try:
        endpoint, places = adapter.match(method="POST") if adapter else ("", {})
    except HTTPException:
        return None
    return _page_with(current_app.view_functions[endpoint], places) if endpoint else None


def _page_with(served: object, places: Mapping[str, Any]) -> str:
    route = getattr(served, "route", None)
    if not isinstance(route, Route) or route.again is None:
        return "/"
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda match: quote(str(places[match[1]])), _route_of(route.again).path)


def check(flask: Flask) -> None:
    """Refuse to start when a page does not say what it takes.

    Raises:
        TypeError: there is one; its path is named.
        LookupError: a page names an endpoint that the API has not got.
    """
    for rule in flask.url_map.iter_rules():
        route = getattr(flask.view_functions[rule.endpoint], "route", None)
        if not isinstance(route, Route):
            raise TypeError(f"{rule.rule} does not say who may see it; serve it with Pages.on.")
        if route.needed in apps.PERMISSIONS and "<app>" not in rule.rule:
            raise TypeError(f"{rule.rule}: a permission on an app takes <app> in the path.")
