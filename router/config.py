"""HAProxy's configuration, composed from settings and routes. Pure: text in, text out.

Each app has a backend from a pool (``b0``, ``b1``, …). ``hosts.map`` leads from a host name to ``bN/APP_ID/APP_NAME/HOST``;
``states.map`` has an entry for a backend only while its app cannot answer. Both maps and the servers change at run time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from router import pages
from router.routes import BLANK, CRASHED, GONE, MAINTENANCE, NO_WEB, Route, Target


@dataclass(frozen=True)
class Timeouts:
    """Heroku's times, in seconds. Tests pass shorter ones."""

    connect: float = 5
    first_byte: float = 30
    idle: float = 55
    hold: float = 75
    keep_alive: float = 60
    headers: float = 30


@dataclass(frozen=True)
class Listener:
    """A listening socket that HAProxy inherits."""

    fd: int
    port: int
    tls: bool


@dataclass(frozen=True)
class Frame:
    """Everything in the configuration but the routes.

    Attributes:
        directory: the generation's own directory; its files are named after :data:`FILES`.
        certificates: PEM files and directories, the default certificate first; only read when a listener has TLS.
        certificate_list: a crt-list of further certificates, each for the names that it says.
        user: the account that HAProxy becomes, when it starts as root.
        jail: a directory with nothing in it but the inner socket, by which a generation reaches its successor.
        chroot: whether HAProxy locks itself in there; only root can.
    """

    directory: Path
    listeners: tuple[Listener, ...]
    certificates: tuple[Path, ...] = ()
    certificate_list: Path | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    threads: int = 2
    maxconn: int = 8000
    user: str | None = None
    jail: Path = Path("/")
    chroot: bool = False
    version: tuple[int, int] = (2, 6)


LOG_FORMAT = (
    "%[var(txn.route)]\\t%s\\t%tsc\\t%ST\\t%B\\t%Tw\\t%Tc\\t%Ta\\t%HM\\t%Ts%ms\\t%Tt\\t%ID\\t%[var(sess.ip)]\\t%[var(txn.code)]"
    "\\t%sslv\\t%HU\\t%[var(txn.said)]"
)
"""Fields of an access line, parted by tabs; :mod:`router.accesslog` reads them. Last what a client chooses freely."""

LOG_LINE = 4000
"""Bytes of an access line at the most: below PIPE_BUF, so that lines of several threads never mix."""

RETRIES = 3

_SCRIPTS = ("hold.lua", "chain.lua", "lean.lua")

INNER = "inner.sock"
"""The name of the socket on which a generation takes requests from older ones; always the newest's."""

SERVER_OPTIONS = "pool-purge-delay 1s"
"""Idle connections to dynos are closed soon: before the app's own server closes them in the middle of a reuse."""


def backend(slot: int) -> str:
    """The name of a backend of the pool."""
    return f"b{slot}"


def map_value(slot: int, app_id: str, name: str, host: str) -> str:
    """What hosts.map holds for a host of this app."""
    return f"{backend(slot)}/{app_id}/{name}/{host}"


NOWHERE = "refuse///"
"""What a host that is no app's leads to."""


def server_address(target: Target) -> str:
    """ADDRESS:PORT as HAProxy reads it."""
    return f"[{target.address}]:{target.port}" if ":" in target.address else f"{target.address}:{target.port}"


def hosts_map(placed: Iterable[tuple[int, Route]]) -> str:
    """The file hosts.map."""
    lines = ((host, map_value(slot, route.app_id, route.name, host)) for slot, route in placed for host in sorted(route.hosts))
    return "".join(f"{host} {value}\n" for host, value in lines)


def states_map(placed: Iterable[tuple[int, Route]]) -> str:
    """The file states.map."""
    return "".join(f"{backend(slot)} {route.state}\n" for slot, route in placed if route.state)


def compose(frame: Frame, pool: int, placed: Iterable[tuple[int, Route]]) -> dict[str, str]:
    """All files of a generation, by name.

    Args:
        pool: how many backends there are.
        placed: the routes and the backend that each has.
    """
    routes = dict(placed)
    files = {
        "hosts.map": hosts_map(routes.items()),
        "states.map": states_map(routes.items()),
        "pages.map": pages.page_map(),
        "accept.map": f"{_ASKS_JSON} json\n",
        "late.map": "late H12\n",  # an upload is no “late” but a “late1”: the first byte's time does not end it
        **{name: Path(__file__).with_name(name).read_text() for name in _SCRIPTS},
        **{f"{status}.http": pages.raw(code) for status, code in pages.RAW.items()},
    }
    sections = [
        _global(frame),
        _defaults(frame),
        _section("defaults doors from http", ["option abortonclose"]),  # a client that goes while hold.lua has its request
        *(_frontend(frame, one) for one in frame.listeners),
        _inner(frame),
        _elsewhere(frame),
        _refuse(frame),
    ]
    sections += [_backend(slot, routes[slot].targets if slot in routes else (), frame) for slot in range(pool)]
    files["haproxy.cfg"] = "\n".join(sections)
    return files


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([title, *(f"    {line}" for line in lines), ""])


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _global(frame: Frame) -> str:
    directory = frame.directory
    lines = [
        f"stats socket {directory}/control.sock mode 600 level admin",
        "stats timeout 20d",
        f"log stdout len {LOG_LINE} format raw local0",
        f"maxconn {frame.maxconn}",
        f"nbthread {frame.threads}",
        "hard-stop-after 24h",
        "tune.bufsize 32768",
        "tune.http.logurilen 2048",
        "tune.lua.maxmem 64",
        "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
        f"setenv DAVIT_STATES {directory}/states.map",
        f"setenv DAVIT_HOLD_MS {_ms(frame.timeouts.hold)}",
        *(f"lua-load {directory}/{name}" for name in _SCRIPTS),
        f"lua-load-per-thread {directory}/lean.lua",
    ]
    if frame.user:
        lines += [f"user {frame.user}", f"group {frame.user}"]
    if frame.chroot:
        lines.append(f"chroot {frame.jail}")
    return _section("global", lines)


_ASKS_JSON = "application/json"

_ID = "unique-id,concat(/,txn.id),word(-1,/)"
"""The request's id: the client's own, which is in txn.id, or the one made here."""


def _page(directory: Path, code: str) -> str:
    """A log-format string that yields the page of the code that the expression ``code`` evaluates to.

    Nothing of this is worked out before there is an error: what the client accepts is looked up first (and leaves no text;
    there is no second field). The code stays in txn.code and the id in txn.id, from which the rest of the page, its headers
    and the access line take them.
    """
    pages_map = f"map_str({directory}/pages.map)"
    return (
        f'"%[capture.req.hdr(0),map_sub({directory}/accept.map),set-var(txn.json),field(2,/)]'
        f"%[{code},set-var(txn.code),concat(,txn.json),{pages_map}]%[var(txn.route),field(3,/)]"
        f'%[var(txn.code),concat(>,txn.json),{pages_map}]%[{_ID},set-var(txn.id)]%[var(txn.code),concat(>>,txn.json),{pages_map}]"'
    )


def _defaults(frame: Frame) -> str:
    times, directory = frame.timeouts, frame.directory
    since = "date(0,ms),sub(txn.t)"
    late = f"{since},div({max(1, _ms(times.first_byte) - 5)}),bool,iif(late,early)"
    gateway = _page(directory, f"{late},concat(,txn.upload),map_str({directory}/late.map,H13)")
    connect = _page(directory, f"{since},div({max(1, _ms(times.connect) - 5)}),bool,iif(H19,H21)")
    html = 'content-type "text/html; charset=utf-8"'
    return _section(
        "defaults http",
        [
            "mode http",
            f"timeout connect {_ms(times.connect)}",
            # later than the server's: when both fall silent it is the dyno that stalls (HAProxy 3 would blame the client)
            f"timeout client {_ms(times.idle + 0.5)}",
            f"timeout server {_ms(times.idle)}",
            f"timeout tunnel {_ms(times.idle)}",
            f"timeout client-fin {_ms(min(10, times.idle))}",
            f"timeout queue {_ms(times.hold)}",
            f"timeout http-request {_ms(times.headers)}",
            f"timeout http-keep-alive {_ms(times.keep_alive)}",
            "option idle-close-on-response",
            "option dontlognull",
            "option redispatch 1",
            f"retries {RETRIES}",
            "balance roundrobin",
            f"errorfile 408 {directory}/408.http",
            f"http-error status 400 {html} lf-string {_page(directory, 'str(H26)')}",
            f"http-error status 502 {html} lf-string {gateway}",
            f"http-error status 503 {html} lf-string {connect}",
            f"http-error status 504 {html} lf-string {_page(directory, 'str(H12)')}",
        ],
    )


_OWN_ID = "{ req.fhdr(x-request-id,-2) -m reg ^[A-Za-z0-9-]{20,200}$ }"
_CLAIMS = (
    "connection|forwarded|x.(re(quest.|al.ip|write.url)|s(cheme|sl)|url.scheme|original.url)|expect|proxy|front.end|script.name|path.info"
)
"""In the names of headers by which a client says something that is to be taken out, checked or continued."""

_TAKEN_OUT = (
    "^x[^a-z0-9]forwarded[^a-z0-9]|^forwarded$"
    "|^(front[^a-z0-9]end[^a-z0-9]https|x[^a-z0-9](real[^a-z0-9]ip|scheme|ssl|url[^a-z0-9]scheme|(original|rewrite)[^a-z0-9]url))$"
    "|^(script[^a-z0-9]name|path[^a-z0-9]info|proxy)$"
    "|^x([^a-z0-9-]request[^a-z0-9]|[^a-z0-9]request[^a-z0-9-])(id|start)$"
)
"""Names that only a proxy has a right to. We set X-Forwarded-For, -Proto and -Port; by the others an application would believe a
client who it is and how and what it asked: Rack takes Forwarded, X-Forwarded-Ssl and -Scheme before ours, Spring and Werkzeug's
ProxyFix -Prefix, ASP.NET and Symfony the path of X-Original-URL, gunicorn SCRIPT_NAME and PATH_INFO.

Marks other than a dash make no other name where names become variables, as CGI's do: X_Forwarded_For (WEBrick, WSGI servers) and
X.Forwarded.For (PHP) end as HTTP_X_FORWARDED_FOR, too.
"""


def _frontend(frame: Frame, listener: Listener) -> str:
    """A door. Every rule down to ``allow`` is paid by every request: bench/router.py says what they cost together.

    An ordinary request (GET or HEAD, none of the headers of :data:`_CLAIMS`, to an app that answers) gets its headers and goes.
    Any other goes through the rules below, too, which put right what was added to it on the assumption that it is ordinary.
    """
    tls = listener.tls
    certificates = " ".join(f"crt {path}" for path in frame.certificates)
    if frame.certificate_list:
        certificates += f" crt-list {frame.certificate_list}"
    origin = {"X-Forwarded-Proto": "https" if tls else "http", "X-Forwarded-Port": str(listener.port)}
    origin["X-Request-Start"] = "%[var(txn.t)]"
    return _section(
        f"frontend {'https' if tls else 'http'} from doors",
        [
            f"bind fd@{listener.fd}" + (f" ssl {certificates} alpn h2,http/1.1" if tls else ""),
            f'log-format "{LOG_FORMAT}"',
            *_session(),
            # a UUID is a costly thing to make: a connection has one, whose last group counts its requests
            "tcp-request session set-var(sess.id) uuid(),bytes(0,24)",
            "tcp-request session set-var(sess.count) int(0)",
            "unique-id-format %[var(sess.id)]%[var(sess.count),hex,bytes(4,12),lower]",
            "http-request set-var(sess.count) var(sess.count),add(1)",
            f"http-request set-var(txn.claims) bool(true) if {{ req.hdr_names -m reg {_CLAIMS} }}",
            *_find(frame),
            "http-request add-header X-Forwarded-For %[var(sess.ip)]",
            *(f"http-request add-header {name} {value}" for name, value in origin.items()),
            "http-request add-header X-Request-ID %[unique-id]",
            'http-request add-header Via "%[req.ver] davit"',
            f"http-request allow if METH_GET !{{ var(txn.claims) -m found }} !{{ {_state(frame)} -m found }} !{{ stopping }}",
            # what the client says about its origin is kept as a chain and never believed; ours is the last line of each name
            "http-request lua.chain if { req.fhdr_cnt(x-forwarded-for) gt 1 }",
            "http-request set-var(txn.for) req.fhdr(x-forwarded-for)",
            f"http-request del-header {_TAKEN_OUT} -m reg if {{ var(txn.claims) -m found }}",
            "http-request set-header X-Forwarded-For %[var(txn.for)] if { var(txn.claims) -m found }",
            *(f"http-request set-header {name} {value}" for name, value in origin.items()),
            # by Connection a client would have the next server drop headers, ours too; keep-alive and close HAProxy has taken out
            "http-request set-header Connection Upgrade if { req.hdr(connection) -m str -i upgrade }",
            "http-request del-header Connection if !{ req.hdr(connection) -m str -i upgrade }",
            f"http-request set-var(txn.id) req.fhdr(x-request-id,-2) if {_OWN_ID}",
            f"http-request set-var(txn.id) {_ID}",
            "http-request set-header X-Request-ID %[var(txn.id)]",
            "http-request set-var(txn.said) var(txn.id),concat(/,txn.chain)",
            *_upload(),
            f"http-request set-var(txn.state) {_state(frame)}",
            "http-request set-var(txn.state) str(405) if METH_CONNECT",
            "http-request set-var(txn.state) str(417) "
            "if { req.hdr(expect) -m found } !{ req.hdr(expect) -m str -i 100-continue }",
            "http-request set-var(txn.state) str(elsewhere) if { stopping }",
            *_divert(),
            *_GO,
            'http-after-response add-header Via "1.1 davit"',
            *_own_answers(),
        ],
    )


def _inner(frame: Frame) -> str:
    """The door for requests that an older generation hands over: what it did is not done again."""
    user = f" user {frame.user}" if frame.user else ""
    return _section(
        "frontend inner from doors",
        [
            f"bind {frame.jail}/{INNER} mode 600{user} accept-proxy",
            f'log-format "{LOG_FORMAT.replace("%sslv", "%[var(txn.tls)]")}"',
            *_session(),
            "unique-id-format %[req.fhdr(x-request-id)]",
            "http-request set-var(txn.tls) str(TLS) if { req.hdr(x-forwarded-proto) https }",
            *_find(frame),
            *_upload(),
            f"http-request set-var(txn.state) {_state(frame)}",
            *_divert(),
            *_GO,
            *_own_answers(),
        ],
    )


def _elsewhere(frame: Frame) -> str:
    """Leads to the generation that has come after this one.

    A HAProxy that stops keeps its connections until their next answer, but its servers cannot be changed any more; so what
    still comes in by those connections goes to its successor, which knows the present routes, and writes the log.
    """
    times = frame.timeouts
    path = f"/{INNER}" if frame.chroot else f"{frame.jail}/{INNER}"
    return _section(
        "backend elsewhere from http",
        [
            "http-request set-log-level silent",
            f"timeout server {_ms(times.hold + times.first_byte + times.idle)}",
            f"server successor unix@{path} send-proxy-v2",
        ],
    )


def _session() -> list[str]:
    """What is settled once for a connection, and what is kept of a request's headers."""
    return [
        "log global",
        "capture request header Accept len 500",
        # the address as text: it is needed twice for every request
        "tcp-request session set-var(sess.ip) src,concat()",
    ]


def _find(frame: Frame) -> list[str]:
    """Look the app up."""
    hosts = f"{frame.directory}/hosts.map"
    return [
        "http-request set-var(txn.t) date(0,ms)",
        f"http-request set-var(txn.route) req.fhdr(host),lower,field(1,:),rtrim(.),map_str({hosts},{NOWHERE})",
    ]


def _state(frame: Frame) -> str:
    """The expression that tells why the app cannot answer; there is no value when it can."""
    return f"var(txn.route),field(1,/),map_str({frame.directory}/states.map)"


def _upload() -> list[str]:
    """An upload may take longer than the first byte's time; it has the rolling time only."""
    return [
        "acl upload req.hdr(content-length) -m int gt 16384",
        "acl upload req.hdr_cnt(transfer-encoding) gt 0",
        "http-request set-var(txn.upload) bool(true) if !METH_GET upload",
    ]


def _divert() -> list[str]:
    """Lead a request elsewhere than to its app, where the app's state or the request's asks for it."""
    return [
        "http-request lua.hold if { var(txn.state) -m beg starting asleep }",
        "http-request set-var(txn.route) var(txn.route),regsub(^[^/]+,elsewhere) if { var(txn.state) -m str elsewhere }",
        "http-request set-var(txn.route) var(txn.route),regsub(^[^/]+,refuse) "
        "if { var(txn.state) -m found } !{ var(txn.state) -m str elsewhere }",
    ]


_GO = ("use_backend %[var(txn.route),field(1,/)]", "default_backend refuse")
"""Lead a request to its app; without a Host header it has no route, so it is nobody's."""


def _own_answers() -> list[str]:
    """Finish the answers that are ours: those with a code."""
    return [
        "http-after-response allow if { status lt 400 }",
        "http-after-response allow if !{ var(txn.code) -m found }",
        "http-after-response set-status 503 if { status 502 504 }",
        "http-after-response set-header Content-Type application/json if { var(txn.json) -m found }",
        "http-after-response set-header Cache-Control no-store",
        "http-after-response set-header X-Request-ID %[var(txn.id)]",
    ]


_STATES = {
    "405": "405",
    "417": "417",
    GONE: "404",
    CRASHED: "H10",
    "full": "H11",
    NO_WEB: "H14",
    "timeout": "H20",
    MAINTENANCE: "H80",
    BLANK: "H81",
}
"""States (of states.map, hold.lua and the frontend) and the code that each is answered with."""


def _refuse(frame: Frame) -> str:
    page = f'content-type "text/html; charset=utf-8" lf-string {_page(frame.directory, "var(txn.code)")}'
    return _section(
        "backend refuse from http",
        [
            *(
                f"http-request set-var(txn.code) str({code}) if {{ var(txn.state) -m str {why} }}"
                for why, code in _STATES.items()
            ),
            # who still waits here has gone, and HAProxy has ended its wait
            "http-request set-var(txn.code) str(H27) if { var(txn.state) -m beg starting asleep }",
            "http-request set-var(txn.code) str(404) if !{ var(txn.code) -m found }",
            *(f"http-request return status {status} {page} if {{ var(txn.code) -m str {status} }}" for status in (404, 405, 417)),
            f"http-request return status 503 {page}",
        ],
    )


def _backend(slot: int, targets: Iterable[Target], frame: Frame) -> str:
    """An app's backend.

    HAProxy has one server timeout, not one until the first byte and another one after it (http-response set-timeout came
    with 3.0). The inspection of the response makes the first: it waits for a status, and closes when the delay is over.

    Only a rule of the backend's own can wait: when one of a defaults section (possible since 2.5) has no status to look at
    yet, HAProxy goes on behind that section when it looks again, so the rule has no say when the time is over.
    """
    ordered = sorted(targets, key=lambda one: one.server)
    return _section(
        f"backend {backend(slot)} from http",
        [
            f"tcp-response inspect-delay {_ms(frame.timeouts.first_byte)}",
            "tcp-response content close if !{ status -m found } !{ var(txn.upload) -m found }",
            *(f"server {one.server} {server_address(one)} {SERVER_OPTIONS}" for one in ordered),
        ],
    )
