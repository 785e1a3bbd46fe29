"""Requests to addresses that users name: webhooks, log drains, anything else that Davit calls for somebody.

A URL of a stranger's must not make Davit speak to itself, to this host or to the networks behind it. So a URL is checked
when it is given, for a clear answer, and its addresses again at every connection, because names change where they lead:

    place = outbound.parse(url, ("https", "http"), field="url")   # pure; InvalidParams says what is wrong
    place = domains.marked(place)      # of state: whether an app says that it is its own name
    outbound.check(place)              # resolves the name; Blocked when it leads where it must not. Takes as long as DNS
                                       # does: never inside a write transaction (serve such a route with writes=False)
    answer = outbound.exchange("POST", place, body=b"…", headers={…}, timeout=5)   # one request; no redirects
    with outbound.Http(place, timeout=5) as line: line.request(…)                  # several over one connection
    plain = outbound.connect(place, timeout=5)                                     # a socket, for other protocols
    outbound.Bounded(plain, deadline, timeout=5)                   # which is read to a deadline, however the other side dribbles

What may be reached all the same is the setting DAVIT_OUTBOUND_ALLOW.
"""

from __future__ import annotations

import contextlib
import functools
import io
import ipaddress
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import h11

from foundation.errors import DavitError, InvalidParams
from foundation.settings import Allowed, settings

PRIVATE = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
"""IANA's special-purpose registry (RFC 6890): not the internet. Its documentation networks are left out: no host is there
but where somebody put one as "the internet" on purpose; the host's own addresses are refused whatever their numbers."""

PORTS = {"http": 80, "https": 443, "syslog": 514, "syslog+tls": 6514}
"""The schemes' usual ports (RFC 9110; RFC 6587 names none for syslog over TCP, 514 is usual; RFC 5425)."""
ENCRYPTED = frozenset(("https", "syslog+tls"))

ANSWER_LIMIT = 64 << 10
"""Bytes of an answer that are kept; the rest is not read."""

NAMES_SECONDS = 60.0
"""How long it is believed where Davit's own names lead."""

_PRIVATE = [ipaddress.ip_network(text) for text in PRIVATE]
_INTERNET_6 = ipaddress.IPv6Network("2000::/3")
_TUNNELS_6 = [ipaddress.IPv6Network("2001::/32"), ipaddress.IPv6Network("2002::/16")]  # an IPv4 address is inside
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LABEL = "[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class Blocked(InvalidParams):
    """An address leads to Davit itself, this host or a private network."""

    id = "destination_refused"


class Unreached(DavitError):
    """The other side could not be reached, or its answer was none."""

    id, status = "destination_unreachable", 502


@dataclass(frozen=True)
class Place:
    """Where a URL leads.

    Attributes:
        url: as it was given, user and password included: a secret.
        path: path and query, as a request line has them.
        user, password: from the URL's userinfo; empty when there is none.
        field: what the URL is called in the request, for sentences.
        ours: whether an app says that the host's name is its own; who has the database says so (``state.domains.marked``).
            It is refused where it leads to Davit: anybody may say so of any name.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    port: int
    path: str
    user: str = ""
    password: str = field(default="", repr=False)
    field: str = "url"
    ours: bool = False

    @property
    def encrypted(self) -> bool:
        """Whether TLS is spoken there."""
        return self.scheme in ENCRYPTED

    @property
    def authority(self) -> str:
        """HOST[:PORT] as an HTTP Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL as logs and sentences may have it: without user, password, path and query."""
        return f"{self.scheme}://{self.authority}"


def parse(url: str, schemes: Sequence[str], *, field: str = "url", credentials: bool = True) -> Place:
    """Read a URL that a user gave; pure.

    Args:
        schemes: those that are taken; keys of :data:`PORTS`.
        field: what the URL is called in the request.
        credentials: whether ``user:password@`` is taken.

    Raises:
        InvalidParams: it cannot be used; the sentence names the field.
    """
    wanted = f"Field {field} must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    if len(url) > 2000 or re.search(r"[\x00-\x20\x7f]", url) or not url.isascii():
        raise InvalidParams(f"{wanted}, of at most 2,000 ASCII characters without spaces.")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
    except ValueError:
        raise InvalidParams(f"{wanted}; what was given cannot be read.") from None
    if "%" in host:  # RFC 6874; getaddrinfo would not know what is percent-encoded here, and a name without address passes
        raise InvalidParams(f"{wanted}; an address with a zone (%) leads to a network of this host's own.")
    if parts.scheme not in schemes or not (_HOST.fullmatch(host) or _literal(host)) or port == 0:
        raise InvalidParams(f"{wanted}, with a host.")
    if not credentials and (parts.username is not None or parts.password is not None):
        raise InvalidParams(f"Field {field} must not have a user name or password in it.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Place(url, parts.scheme, host, port or PORTS[parts.scheme], path, user, password, field)


def _literal(host: str) -> Ip | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check(place: Place) -> None:
    """Refuse what leads where it must not. A name that cannot be resolved now passes: connections check again.

    Raises:
        Blocked: one of its addresses is refused.
    """
    try:
        addresses = _resolve(place)
    except Unreached:
        return
    for address in addresses:
        _judge(place, address)


def _resolve(place: Place) -> list[Ip]:
    try:
        return _look_up(place.host, place.port)
    except (OSError, UnicodeError):
        raise Unreached(f"The host name {place.host} cannot be resolved.") from None


def _look_up(host: str, port: int) -> list[Ip]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [ipaddress.ip_address(text) for text in texts]


def _judge(place: Place, address: Ip) -> None:
    allowed = settings().outbound_allow
    reason = refusal(address, place.port, allowed)
    own = _is_davits(place.host) or _is_davits(str(address)) or (place.ours and address in _public())
    if reason is None and own and not _holds(allowed, address, place.port):
        reason = "this Davit itself"
    if reason:
        where = f"{place.host}" if str(address) == place.host else f"{place.host} ({address})"
        raise Blocked(
            f"Field {place.field}: {where} is {reason}, which Davit does not call for anybody; "
            "who runs this Davit can allow it with DAVIT_OUTBOUND_ALLOW."
        )


def _is_davits(host: str) -> bool:
    """Whether a host name, or an address as DAVIT_NAMES may have it, is Davit's or below DAVIT_DOMAIN. Where addresses are
    translated on the way here (NAT), none of this host's own tells."""
    name, domain = host.rstrip(".").lower(), settings().domain.lower()
    own = {domain, *settings().names, settings().api.reachable.host.lower()}
    return name in own or name.endswith(f".{domain}")


def _public() -> frozenset[Ip]:
    """Where Davit's own names lead to: behind NAT these addresses are on no interface of this host."""
    names = (f"davit-outbound.{settings().domain}", *settings().names)
    return _addresses(names, int(time.monotonic() // NAMES_SECONDS))


@functools.lru_cache(maxsize=1)
def _addresses(names: tuple[str, ...], _period: int) -> frozenset[Ip]:
    found = set[Ip]()
    for name in names:
        with contextlib.suppress(OSError, UnicodeError):
            found.update(_look_up(name, PORTS["https"]))
    return frozenset(found)


def _holds(allowed: Sequence[Allowed], address: Ip, port: int) -> bool:
    plain = _embedded(address)
    return any(one.holds(plain, port) for one in allowed)


def refusal(address: Ip, port: int, allowed: Sequence[Allowed] = ()) -> str | None:
    """What an address is that makes it refused ("a private address"); None when it may be called."""
    plain = _embedded(address)
    if _holds(allowed, address, port):
        return None
    if plain.version == 4:
        if any(plain in network for network in _PRIVATE):
            return "this host itself" if plain.is_loopback or plain.is_unspecified else "a private or special address"
    elif plain.is_loopback or plain.is_unspecified:
        return "this host itself"
    elif plain not in _INTERNET_6 or any(plain in network for network in _TUNNELS_6):
        return "a private or special address"
    return "this host itself" if _is_own(plain) else None


def _embedded(address: Ip) -> Ip:
    """The IPv4 address that an IPv6 address stands for (mapped: RFC 4291; NAT64: RFC 6052), else the address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_own(address: Ip) -> bool:
    """Whether this host has the address: only then a socket can be bound to it (ip(7))."""
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def connect(place: Place, timeout: float, *, context: ssl.SSLContext | None = None) -> socket.socket:
    """A connection to ``place``, with TLS where its scheme says so; its addresses are checked, and only those are used.

    Args:
        timeout: seconds for the whole of it (resolving apart); also the socket's timeout afterwards.
        context: for TLS; the system's authorities by default.

    Raises:
        Blocked: an address is refused.
        Unreached: nobody answers there, or the certificate is not the host's; the sentence says which.
    """
    addresses = _resolve(place)
    for address in addresses:
        _judge(place, address)
    deadline = time.monotonic() + timeout
    failure: OSError | None = None
    for address in addresses:
        try:
            plain = socket.create_connection((str(address), place.port), max(0.1, deadline - time.monotonic()))
        except OSError as error:
            failure = error
            continue
        try:
            plain.settimeout(max(0.1, deadline - time.monotonic()))
            line = _encrypt(place, plain, context) if place.encrypted else plain
            line.settimeout(timeout)
            return line
        except BaseException:
            plain.close()
            raise
    reason = (failure.strerror or "it takes too long") if failure else "it has no address"
    raise Unreached(f"{place.shown} cannot be reached: {reason}.")


def _encrypt(place: Place, plain: socket.socket, context: ssl.SSLContext | None) -> socket.socket:
    try:
        return (context or ssl.create_default_context()).wrap_socket(plain, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        raise BadCertificate(f"The certificate of {place.shown} is not valid for it: {error.verify_message}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it takes too long"
        raise Unreached(f"{place.shown} does not speak TLS: {reason}.") from None


class Bounded(io.RawIOBase):
    """What comes over a connection, until a deadline: a socket's own timeout begins anew with each byte.

    Args:
        line: the connection; closing this leaves it open.
        deadline: of ``time.monotonic()``; from then on reading raises TimeoutError.
        timeout: seconds that the other side may be silent.
    """

    def __init__(self, line: socket.socket, deadline: float, timeout: float) -> None:
        self._line, self._deadline, self._timeout = line, deadline, timeout
        self._bytes = line.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """As io has it."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As io has it."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._line.settimeout(min(left, self._timeout))
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        """As io has it."""
        self._bytes.close()
        super().close()


class BadCertificate(Unreached):
    """The other side's certificate is not valid for its name."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: ``headers`` have lower-case names; ``body`` is at most :data:`ANSWER_LIMIT` bytes of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http:
    """Requests over one connection, opened with the first and again when the server has closed it.

    Args:
        place: where to; its user and password become Basic authorization.
        timeout: seconds for one whole request, however slowly the other side dribbles.
        context: for TLS.
    """

    def __init__(self, place: Place, timeout: float, *, context: ssl.SSLContext | None = None) -> None:
        self.place, self.timeout, self.context = place, timeout, context
        self._line: socket.socket | None = None
        self._protocol = h11.Connection(h11.CLIENT)

    def __enter__(self) -> Http:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._line:
            self._line.close()
            self._line = None

    def request(self, method: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request to the place's path and read the answer.

        Raises:
            Blocked, Unreached: as :func:`connect`; Unreached also when the answer did not come whole and in time.
        """
        deadline = time.monotonic() + self.timeout
        if self._line is None or self._stale():
            self._open()
        try:
            self._send(method, body, headers or {}, deadline)
            return self._receive(deadline)
        except (OSError, h11.ProtocolError) as error:
            self.close()
            late = isinstance(error, TimeoutError)
            reason = "no answer in time" if late else getattr(error, "strerror", None) or "its answer cannot be read"
            raise Unreached(f"{self.place.shown} did not take the request: {reason}.") from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.close()
        self._line = connect(self.place, self.timeout, context=self.context)
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=32 << 10)

    def _stale(self) -> bool:
        """Whether the idle connection has been closed meanwhile (or says something unasked)."""
        assert self._line is not None
        if self._protocol.our_state is not h11.IDLE:
            return True
        self._line.setblocking(False)
        try:
            self._line.recv(1)
            return True
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True

    def _send(self, method: str, body: bytes, headers: Mapping[str, str], deadline: float) -> None:
        place = self.place
        sent = {"Host": place.authority, "Content-Length": str(len(body)), **headers}
        if place.user or place.password:
            sent.setdefault("Authorization", "Basic " + b64encode(f"{place.user}:{place.password}".encode()).decode())
        request = h11.Request(method=method, target=place.path, headers=list(sent.items()))
        data = self._protocol.send(request) or b""
        if body:
            data += self._protocol.send(h11.Data(data=body)) or b""
        self._timed(deadline).sendall(data + (self._protocol.send(h11.EndOfMessage()) or b""))

    def _receive(self, deadline: float) -> Answer:
        status, headers, body = 0, {}, b""
        while True:
            event: Any = self._protocol.next_event()
            if event is h11.NEED_DATA:
                self._protocol.receive_data(self._timed(deadline).recv(65536))
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
                if len(body) > ANSWER_LIMIT:
                    self.close()
                    return Answer(status, headers, body[:ANSWER_LIMIT])
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed before the answer was whole")
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
        else:
            self.close()
        return Answer(status, headers, body)

    def _timed(self, deadline: float) -> socket.socket:
        assert self._line is not None
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._line.settimeout(left)
        return self._line


def exchange(
    method: str, place: Place, *, body: bytes = b"", headers: Mapping[str, str] | None = None, timeout: float = 5,
    context: ssl.SSLContext | None = None,
) -> Answer:  # fmt: skip
    """One HTTP request over a connection of its own; a redirect is an answer like any other.

    Raises:
        Blocked, Unreached: as :meth:`Http.request`.
    """
    with Http(place, timeout, context=context) as line:
        return line.request(method, body=body, headers={"Connection": "close", **(headers or {})})
