"""HAProxy's configuration, composed from settings and routes. Pure: text in, text out.

Each app has a backend from a pool (``b0``, ``b1``, …). ``hosts.map`` leads from a host name to ``bN/APP_ID/APP_NAME``;
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
    tls: bool


@dataclass(frozen=True)
class Frame:
    """Everything in the configuration but the routes.

    Attributes:
        directory: the generation's own directory; its files are named after :data:`FILES`.
        certificates: PEM files and directories, the default certificate first; only read when a listener has TLS.
        user: the account that HAProxy becomes, when it starts as root.
    """

    directory: Path
    listeners: tuple[Listener, ...]
    certificates: tuple[Path, ...] = ()
    timeouts: Timeouts = field(default_factory=Timeouts)
    threads: int = 2
    maxconn: int = 8000
    user: str | None = None
    jail: Path | None = None
    version: tuple[int, int] = (2, 6)


LOG_FORMAT = (
    "%[var(txn.route)]\\t%s\\t%tsc\\t%ST\\t%B\\t%Tw\\t%Tc\\t%Tr\\t%Ta\\t%HM\\t%[date(0,ms)]\\t%[var(txn.id)]\\t%ci\\t%[var(txn.code)]"
    "\\t%sslv\\t%HV\\t%[var(txn.host)]\\t%HU\\t%[var(txn.xff)]"
)
"""Fields of an access line, parted by tabs; :mod:`router.accesslog` reads them. Last what a client chooses freely."""

LOG_LINE = 4000
"""Bytes of an access line at the most: below PIPE_BUF, so that lines of several threads never mix."""

RETRIES = 3

SERVER_OPTIONS = "pool-purge-delay 1s"
"""Idle connections to dynos are closed soon: before the app's own server closes them in the middle of a reuse."""


def backend(slot: int) -> str:
    """The name of a backend of the pool."""
    return f"b{slot}"


def map_value(slot: int, app_id: str, name: str) -> str:
    """What hosts.map holds for a host of this app."""
    return f"{backend(slot)}/{app_id}/{name}"


def server_address(target: Target) -> str:
    """ADDRESS:PORT as HAProxy reads it."""
    return f"[{target.address}]:{target.port}" if ":" in target.address else f"{target.address}:{target.port}"


def hosts_map(placed: Iterable[tuple[int, Route]]) -> str:
    """The file hosts.map."""
    lines = ((host, map_value(slot, route.app_id, route.name)) for slot, route in placed for host in sorted(route.hosts))
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
        "hold.lua": Path(__file__).with_name("hold.lua").read_text(),
        **{f"{status}.http": pages.raw(code) for status, code in pages.RAW.items()},
    }
    sections = [_global(frame), _defaults(frame), _frontend(frame), _refuse(frame)]
    sections += [_backend(frame, slot, routes[slot].targets if slot in routes else ()) for slot in range(pool)]
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
        f"lua-load {directory}/hold.lua",
    ]
    if frame.user:
        lines += [f"user {frame.user}", f"group {frame.user}"]
    if frame.jail:
        lines.append(f"chroot {frame.jail}")
    return _section("global", lines)


def _page(directory: Path, code: str) -> str:
    """A log-format string that yields the page of the code that the expression ``code`` evaluates to.

    The expression's value stays in txn.code, from which the rest of the page and the access line take it.
    """
    pages_map = f"map_str({directory}/pages.map)"
    return (
        f'"%[{code},set-var(txn.code),concat(,txn.json),{pages_map}]%[var(txn.route),field(3,/)]'
        f'%[var(txn.code),concat(>,txn.json),{pages_map}]%[var(txn.id)]%[var(txn.code),concat(>>,txn.json),{pages_map}]"'
    )


def _defaults(frame: Frame) -> str:
    times, directory = frame.timeouts, frame.directory
    since = "date(0,ms),sub(txn.t)"
    gateway = _page(directory, f"{since},div({max(1, _ms(times.first_byte) - 5)}),bool,iif(H12,H13)")
    connect = _page(directory, f"{since},div({max(1, _ms(times.connect) - 5)}),bool,iif(H19,H21)")
    html = 'content-type "text/html; charset=utf-8"'
    return _section(
        "defaults http",
        [
            "mode http",
            f"timeout connect {_ms(times.connect)}",
            f"timeout client {_ms(times.idle)}",
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
            f"errorfile 400 {directory}/400.http",
            f"errorfile 408 {directory}/408.http",
            f"http-error status 502 {html} lf-string {gateway}",
            f"http-error status 503 {html} lf-string {connect}",
            f"http-error status 504 {html} lf-string {_page(directory, 'str(H12)')}",
        ],
    )


_OWN_ID = "{ req.fhdr_cnt(x-request-id) eq 1 } { req.fhdr(x-request-id) -m reg ^[A-Za-z0-9-]{20,200}$ }"


def _frontend(frame: Frame) -> str:
    directory = frame.directory
    certificates = " ".join(f"crt {path}" for path in frame.certificates)
    own = "if { var(txn.code) -m found }"
    binds = [f"bind fd@{one.fd}" + (f" ssl {certificates} alpn h2,http/1.1" if one.tls else "") for one in frame.listeners]
    return _section(
        "frontend web from http",
        [
            *binds,
            "log global",
            f'log-format "{LOG_FORMAT}"',
            f"http-request set-var(txn.id) req.fhdr(x-request-id) if {_OWN_ID}",
            "http-request set-var(txn.id) uuid() if !{ var(txn.id) -m found }",
            "http-request set-var(txn.t) date(0,ms)",
            "http-request set-var(txn.json) str(json) if { req.hdr(accept) -m sub application/json }",
            "http-request set-var(txn.host) req.hdr(host),lower,field(1,:),rtrim(.)",
            f"http-request set-var(txn.route) var(txn.host),map_str({directory}/hosts.map)",
            "http-request set-var(txn.slot) var(txn.route),field(1,/)",
            f"http-request set-var(txn.state) var(txn.slot),map_str({directory}/states.map)",
            # forwarded headers: what the client says is kept as a chain and never believed
            "http-request set-var(txn.xff) req.fhdr(x-forwarded-for) if { req.fhdr_cnt(x-forwarded-for) gt 0 }",
            'http-request set-header X-Forwarded-For "%[var(txn.xff)], %[src]" if { var(txn.xff) -m found }',
            "http-request set-header X-Forwarded-For %[src] if !{ var(txn.xff) -m found }",
            "http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]",
            "http-request set-header X-Forwarded-Port %[dst_port]",
            "http-request set-header X-Request-ID %[var(txn.id)]",
            "http-request set-header X-Request-Start %[var(txn.t)]",
            'http-request add-header Via "%[req.ver] davit"',
            "http-request del-header X-Forwarded-Host",
            "http-request del-header Proxy",
            "http-request del-header Proxy-Connection",
            # an upload may take longer than the first byte's time: it has the rolling time only
            "http-request set-var(txn.upload) bool(true) if !METH_GET { req.hdr_cnt(transfer-encoding) gt 0 }",
            "http-request set-var(txn.upload) bool(true) if { req.hdr(content-length) -m int gt 16384 }",
            "http-request set-var(txn.code) str(405) if METH_CONNECT",
            "http-request set-var(txn.code) str(417) if { req.hdr(expect) -m found } !{ req.hdr(expect) -m str -i 100-continue }",
            "http-request lua.hold if { var(txn.state) -m beg starting }",
            'http-after-response add-header Via "1.1 davit"',
            "http-after-response set-status 503 if { status 502 504 } { var(txn.code) -m found }",
            f"http-after-response set-header Content-Type application/json {own} {{ var(txn.json) -m found }}",
            f"http-after-response set-header Cache-Control no-store {own}",
            f"http-after-response set-header X-Request-ID %[var(txn.id)] {own}",
            "use_backend refuse if { var(txn.state) -m found } || { var(txn.code) -m found } || !{ var(txn.slot) -m found }",
            "use_backend %[var(txn.slot)]",
        ],
    )


_STATES = {GONE: "404", CRASHED: "H10", "full": "H11", NO_WEB: "H14", "timeout": "H20", MAINTENANCE: "H80", BLANK: "H81"}
"""States (of states.map, and the two that hold.lua adds) and the code that each is answered with."""


def _refuse(frame: Frame) -> str:
    page = f'content-type "text/html; charset=utf-8" lf-string {_page(frame.directory, "var(txn.code)")}'
    unless = "if !{ var(txn.code) -m found }"
    return _section(
        "backend refuse from http",
        [
            f"http-request set-var(txn.code) str(404) {unless} !{{ var(txn.slot) -m found }}",
            *(f"http-request set-var(txn.code) str({code}) {unless} {{ var(txn.state) -m str {why} }}" for why, code in _STATES.items()),
            *(f"http-request return status {status} {page} if {{ var(txn.code) -m str {status} }}" for status in (404, 405, 417)),
            f"http-request return status 503 {page}",
        ],
    )


def _backend(frame: Frame, slot: int, targets: Iterable[Target]) -> str:
    # HAProxy 2.6 has one server timeout, not one until the first byte and another after it: inspection of the response
    # makes the first. In the defaults section it would not be switched on, so every backend has it.
    return _section(
        f"backend {backend(slot)} from http",
        [
            f"tcp-response inspect-delay {_ms(frame.timeouts.first_byte)}",
            "tcp-response content accept if { status gt 0 } || { var(txn.upload) -m found }",
            "tcp-response content close",
            *(
                f"server {one.server} {server_address(one)} {SERVER_OPTIONS}"
                for one in sorted(targets, key=lambda one: one.server)
            ),
        ],
    )
