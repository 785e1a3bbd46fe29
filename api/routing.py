"""One place that says who may call what: every route declares it, and nothing is served that does not.

    resource = Resource("domains")

    @resource.on("GET", "/apps/<app>/domains", needs="view", gives=many(DOMAIN))
    def index(call: Call) -> Reply: …

A call is authenticated in a snapshot of the database, its body is received before a write transaction opens (so that neither
a stranger nor a slow client holds the database), and its app is looked up, with the permission that the route declares,
in the very transaction that the view works in. Then the body is checked against what the route takes, and the view runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from flask import Blueprint, Flask, Response, g, jsonify, request
from sqlalchemy.orm import Session
from werkzeug.exceptions import RequestEntityTooLarge

from api import body, fields, limits, ranges
from api.credentials import Identity, identify
from api.fields import Fields
from api.shapes import Shape
from foundation.errors import BadRequest, DavitError, Forbidden, NotFound
from state import apps, guard, logins, passwords, pipelines, scopes, two_factor
from state.db import snapshot, transaction
from state.models import Account, App, Pipeline, Token
from state.pages import Page, Window
from state.scopes import Scope

Needs = Literal[
    "nothing", "login", "account", "admin", "view", "deploy", "operate", "manage", "pipeline-view", "pipeline-manage"
]
"""What a caller must show: ``nothing`` (public, or the URL itself is the secret), ``login`` (a token, or e-mail address and
password), ``account`` (a token), ``admin`` (an admin's token), a permission on the app that the path names, or the sight of
the pipeline that it names, or the right to change that."""

T = TypeVar("T")
TWO_FACTOR_HEADER = "Heroku-Two-Factor-Code"


class ChangedMeanwhile(DavitError):
    """What is to be changed is not what the caller has read (If-Match; RFC 9110, 13.1.1)."""

    id, status = "precondition_failed", 412


@dataclass(frozen=True)
class Operation:
    """A served endpoint.

    Attributes:
        needs: see :data:`Needs`.
        writes: whether its view works in a write transaction.
        summary: the first line of the view's docstring, for ``GET /schema`` and docs/api.md.
        ours: whether it is Davit's own rather than the Platform API's.
        takes: the fields of its body.
        gives: what a call that succeeds is answered with.
        form: whether its body is an HTML form's rather than JSON.
        raw: whether its view reads the body itself, as bytes of any number.
        scope: what the caller's token must be for; see :mod:`state.scopes`.
    """

    method: str
    path: str
    needs: Needs
    writes: bool
    summary: str
    ours: bool
    takes: Fields
    gives: Shape
    form: bool = False
    scope: Scope = "global"
    raw: bool = False

    @property
    def free(self) -> bool:
        """Whether a call does not count: asking how many are left does not, as on Heroku."""
        return self.path == "/account/rate-limits"

    @property
    def on_pipeline(self) -> bool:
        """Whether it takes a right on a pipeline."""
        return self.needs.startswith("pipeline-")

    @property
    def on_app(self) -> bool:
        """Whether it takes a permission on an app."""
        return self.needs in apps.PERMISSIONS


@dataclass
class Reply:
    """What a view answers: a JSON value, a status and further headers."""

    value: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A request whose caller may make it.

    ``account``, ``app`` raise when the route's declaration does not promise them: a mistake of ours, never of the caller's.
    """

    session: Session
    body: body.Body
    identity: Identity | None
    found: App | None = None
    found_pipeline: Pipeline | None = None
    _renewed: Callable[[Session], Call] | None = None

    def within(self, session: Session) -> Call:
        """This call in a further transaction, for a view that could not keep one open: all that was demanded is demanded again.

        Raises:
            Unauthorized, Forbidden, NotFound: the caller may not do it any more, or the app has gone.
            ChangedMeanwhile: If-Match does not hold any more.
        """
        if self._renewed is not None:
            return self._renewed(session)
        identity = self.identity.within(session) if self.identity else None
        found = session.get(App, self.found.id) if self.found else None
        if self.found is not None and found is None:
            raise NotFound(apps.NOT_FOUND, resource="app")
        return Call(session, self.body, identity, found)

    @property
    def account(self) -> Account:
        """Who calls."""
        assert self.identity is not None
        return self.identity.account

    @property
    def token(self) -> Token | None:
        """The token that the caller showed; None after a login by password."""
        return self.identity.token if self.identity else None

    @property
    def app(self) -> App:
        """The app that the path names."""
        assert self.found is not None
        return self.found

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that the path names."""
        assert self.found_pipeline is not None
        return self.found_pipeline

    @property
    def code(self) -> str | None:
        """The two-factor code that came along."""
        return request.headers.get(TWO_FACTOR_HEADER)

    def need(self, permission: str) -> None:
        """Where a field takes more than the route does: demand another permission on the app.

        Raises:
            Forbidden: the caller does not have it.
        """
        apps.find(self.session, self.account, self.app.id, permission)

    def guard(self, app: App | None = None) -> None:
        """Before an act that the two-factor guard is for, on the app of the path or another; see :mod:`state.guard`.

        Raises:
            TwoFactorRequired, Forbidden: it takes a code.
        """
        guard.demand(self.session, self.account, self.token, app or self.app, self.code)

    def check_code(self) -> None:
        """Where the caller has a second factor: take a code.

        Raises:
            TwoFactorRequired: it is missing or wrong.
        """
        two_factor.check(self.session, self.account, self.code)

    @cached_property
    def _allowed(self) -> frozenset[str]:
        return apps.permissions(self.session, self.account, self.app)

    def may(self, permission: str) -> bool:
        """Whether the caller has a further permission on the app that the path names; looked up once, however many rows ask."""
        return permission in self._allowed

    def window(self, order: ranges.Order) -> Window:
        """The part of a list that the caller asks for."""
        return ranges.parse(request.headers.get("Range"), order)

    def listing(self, page: Page[T], order: ranges.Order, window: Window, render: Callable[[T], Any]) -> Reply:
        """A page of a list: 206 when it goes on."""
        return Reply([render(item) for item in page.items], 206 if page.more else 200, ranges.headers(page, order, window))

    def short_listing(
        self, rows: Sequence[T], order: ranges.Order, render: Callable[[T], Any], *, as_it_is: bool = False
    ) -> Reply:
        """:meth:`listing` for a list that is in memory anyway.

        Args:
            as_it_is: whether it is given as it is to who does not ask for a part of it: its own order means something.
        """
        if as_it_is and "Range" not in request.headers:
            return Reply([render(row) for row in rows], headers={"Accept-Ranges": ", ".join(order.attributes)})
        window = self.window(order)
        return self.listing(ranges.cut(rows, order, window), order, window, render)


View = Callable[..., Any]


class Resource(Blueprint):
    """A resource's routes; as a Flask blueprint, but with :meth:`on` as the only way to add one.

    Args:
        reads, writes: the scope that its GETs, and its other methods, take of a token. Without, what concerns an app takes
            ``read-protected`` and ``write-protected``, and everything else ``global``.
    """

    def __init__(self, name: str, *, reads: Scope | None = None, writes: Scope | None = None) -> None:
        super().__init__(name, __name__)
        self.operations: list[Operation] = []
        self._shown: dict[str, tuple[Operation, View]] = {}
        self._reads, self._writes = reads, writes

    def on(
        self, method: str, path: str, *, needs: Needs, gives: Shape, takes: Fields = fields.NONE, writes: bool | None = None,
        ours: bool = False, form: bool = False, scope: Scope | None = None, raw: bool = False,
    ) -> Callable[[View], View]:
        """Serve ``method path``.

        Args:
            needs: who may; a permission on an app takes ``<app>`` in the path.
            gives: what a call that succeeds is answered with.
            takes: the fields of its body, which is checked against them before the view runs.
            writes: in a write transaction; every method but GET by default.
            ours: Davit's own endpoint, not the Platform API's.
            form: its body is an HTML form's.
            raw: its view reads the body itself.
            scope: what it takes of a token, where that is not what the resource says.
        """

        def register(view: View) -> View:
            changes = method != "GET" if writes is None else writes
            summary = (view.__doc__ or "").strip().split("\n")[0]
            granted = self._scope(method, needs, scope)
            operation = Operation(method, path, needs, changes, summary, ours, takes, gives, form, granted, raw)
            if operation.on_app != ("<app>" in path):
                raise TypeError(f"{method} {path}: a permission on an app and <app> in the path go together.")
            if operation.on_pipeline != ("<pipeline>" in path):
                raise TypeError(f"{method} {path}: a right on a pipeline and <pipeline> in the path go together.")
            self.operations.append(operation)
            if method == "GET":
                self._shown[path] = operation, view
            served = _serve(operation, view, lambda: self._shown.get(path))
            endpoint = f"{len(self.operations)}-{view.__name__}"
            self.add_url_rule(path, endpoint, served, methods=[method], provide_automatic_options=False)
            return view

        return register

    def _scope(self, method: str, needs: Needs, given: Scope | None) -> Scope:
        of_resource = self._reads if method == "GET" else self._writes
        if given or of_resource:
            return given or of_resource or "global"
        if needs not in apps.PERMISSIONS:
            return "global"
        return "read-protected" if method == "GET" else "write-protected"


Shown = Callable[[], tuple[Operation, View] | None]
"""How what an endpoint changes is read, if it can be: the GET of the same path."""


def _serve(operation: Operation, view: View, shown: Shown) -> Callable[..., Response]:
    def served(**places: str) -> Response:
        if any("\x00" in value for value in places.values()):
            raise NotFound("There is nothing with a NUL character in its name.")
        if any("\x00" in part for pair in request.args.items(multi=True) for part in pair):
            raise BadRequest("What follows the “?” of an address may hold no NUL character.")
        sent = _body(operation)
        with snapshot() as session:
            identity = _admit(session, operation)
            if not operation.writes:
                return _answer(session, operation, view, shown, sent, identity, places)
        if identity is None:
            limits.strangers.take(limits.caller())  # a writer keeps the others waiting, whatever comes of it

        def change() -> Response:
            with transaction() as session:
                return _answer(session, operation, view, shown, sent, identity, places)

        return passwords.apart(change)

    served.operation = operation  # type: ignore[attr-defined]
    return served


_FOUND = frozenset(("app", "pipeline"))
"""Places of a path that a view is given as what they name."""


def _body(operation: Operation) -> dict[str, Any]:
    if operation.method == "GET" or operation.raw:
        return {}
    if operation.form:
        sent = request.form.to_dict()
        if any("\x00" in part for pair in sent.items() for part in pair):
            raise BadRequest("A form may hold no NUL character.")
        return sent
    if request.content_length is None:  # what comes in chunks is read up to there, and one byte tells that there is more
        request.max_content_length = body.LIMIT + 1
    raw = request.get_data(cache=False)
    if len(raw) > body.LIMIT:
        raise RequestEntityTooLarge
    return body.parse(raw)


def _admit(session: Session, operation: Operation) -> Identity | None:
    if operation.needs == "nothing":
        return None
    identity = identify(session, request.headers.get("Authorization"), by_password=operation.needs == "login")
    g.rate_limit = limits.buckets.left(identity.account.id)
    if not operation.free:
        g.rate_limit = limits.buckets.take(identity.account.id)
    _demand(identity, operation)
    return identity


def _demand(identity: Identity, operation: Operation) -> None:
    if identity.token is not None:
        scopes.demand(identity.token.scope, operation.scope)
    if operation.needs == "admin" and not identity.account.is_admin:
        raise Forbidden("That takes an admin's account.")


def _answer(
    session: Session, operation: Operation, view: View, shown: Shown, sent: dict[str, Any], identity: Identity | None,
    places: dict[str, str],
) -> Response:
    call = _called(session, operation, shown, identity, places)
    if identity and identity.token is None:
        logins.finish(session, identity.account.id, call.code)
    call.body = operation.takes.read(sent)
    call._renewed = lambda later: replace(_called(later, operation, shown, identity, places), body=call.body)
    rest = {name: value for name, value in places.items() if name not in _FOUND}
    answer = view(call, **rest)
    _warn(call.body)
    return answer if isinstance(answer, Response) else _response(answer)


def _called(session: Session, operation: Operation, shown: Shown, identity: Identity | None, places: dict[str, str]) -> Call:
    """The call in this transaction: its caller may make it, and what it changes is as the caller says."""
    call = Call(session, fields.NONE.read({}), identity.within(session) if identity else None)
    if call.identity is not None:
        _demand(call.identity, operation)
    if operation.on_app:
        call.found = apps.find(session, call.account, places["app"], operation.needs)
    if operation.on_pipeline:
        change = operation.needs == "pipeline-manage"
        call.found_pipeline = pipelines.find(session, call.account, places["pipeline"], manage=change)
    if operation.method in ("PATCH", "PUT", "DELETE") and "If-Match" in request.headers:
        _demand_unchanged(call, shown(), {name: value for name, value in places.items() if name not in _FOUND})
    return call


def _response(answer: Any) -> Response:
    reply = answer if isinstance(answer, Reply) else Reply(answer)
    response = jsonify(reply.value)
    response.status_code = reply.status
    response.headers.update(reply.headers)
    return response


def _demand_unchanged(call: Call, shown: tuple[Operation, View] | None, places: dict[str, str]) -> None:
    """If-Match: what is to be changed still has the ETag that the caller got with it; in the transaction that changes it.

    Our ETags are weak because answers may be compressed; they change with every value that is shown, so they do.
    """
    if request.if_match.star_tag:
        return
    tag = None
    if shown and shown[0].gives.media_type == "application/json":  # a stream has no ETag, and takes a slot when it is begun
        operation, view = shown
        if operation.on_app:
            call.need(operation.needs)
        now = _response(view(call, **places))
        now.add_etag(weak=True)
        tag = now.get_etag()[0]
    if tag is None or not request.if_match.contains_weak(tag):
        raise ChangedMeanwhile("This has changed since you read it, or If-Match is not its ETag; read it again, then decide.")


_HABITS = frozenset(("silent", "generation"))
"""Fields that clients send by habit and that mean nothing here."""
_OFF = frozenset(("internal_routing", "locked", "personal"))
"""Fields that ask for nothing here where they are false: it is so anyway."""
_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")


def _warn(sent: body.Body) -> None:
    """Have the answer say which fields were not understood; clients show it (Warning-Message)."""
    unknown = [name for name in sent.unknown() if name not in _HABITS and not (name in _OFF and sent.values[name] is False)]
    if unknown:
        name = next((name for name in unknown if _PLAIN.fullmatch(name)), "with an odd name")
        g.warning = f"Field {name} is not known here and was ignored."


def check(flask: Flask) -> None:
    """Refuse to start when a route has no declaration, or two answer the same: only one would be asked, and only one checked.

    Raises:
        TypeError: there is one; its path is named.
    """
    taken: set[tuple[str, str]] = set()
    for rule in flask.url_map.iter_rules():
        ways = {(method, rule.rule) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
        if again := ways & taken:
            raise TypeError(f"{' '.join(min(again))} is served twice.")
        taken |= ways
        if not isinstance(getattr(flask.view_functions[rule.endpoint], "operation", None), Operation):
            raise TypeError(f"{rule.rule} does not say who may call it; serve it with Resource.on.")
