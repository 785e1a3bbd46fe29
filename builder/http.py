"""Git over HTTP: a WSGI application for ``/NAME.git/…``, mounted by the web process.

Smart HTTP only (gitprotocol-http(5)): ``info/refs?service=…``, ``git-receive-pack`` and ``git-upload-pack``, behind Basic
auth with an API token. Pushes are served here by :mod:`builder.receive`; clones by C git's upload-pack, which streams.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import re
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from dulwich.errors import GitProtocolError
from dulwich.protocol import pkt_line

from builder import git, pushes
from builder.platform import Davit, Platform, Pusher, Target
from builder.pushes import TooManyFetches, TooManyPushes
from builder.receive import PusherGone, ReceivePack
from builder.repositories import Bounds, Repositories
from foundation import pace
from foundation.errors import BadRequest, DavitError, NotFound, Unauthorized
from foundation.pace import TooSlow
from foundation.settings import Settings, settings

log = logging.getLogger("builder.http")

CHUNK = 65536
FETCH_REQUEST = 32 << 20
"""Bytes, unpacked, that a clone's or fetch's request may have (what the client has and wants)."""
DRAIN = 8
"""How many times the push limit is read on after a refusal, so that the client gets to read it."""

PIECE = 1 << 20
"""Bytes that git sends in one request before it sends in parts (http.postBuffer)."""

_PATH = re.compile(r"/(?P<name>[^/]+)\.git/(?P<what>info/refs|git-receive-pack|git-upload-pack)")
_SERVICES = ("git-receive-pack", "git-upload-pack")
_VERSION = re.compile(r"version=[0-2]")
_NO_CACHE = [
    ("Expires", "Fri, 01 Jan 1980 00:00:00 GMT"),
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache, max-age=0, must-revalidate"),
]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class HttpDoor:
    """The WSGI application.

    Args:
        repositories, platform: where things are kept, and the rest of Davit.
        limit: bytes that the pack of one push may have.
        otherwise: answers every path that is not git's; 404 when there is none.
        most: pushes that may be under way at once, and clones and fetches as many.
    """

    def __init__(
        self, repositories: Repositories, platform: Platform, limit: int, otherwise: Application | None = None, *, most: int = 48
    ) -> None:
        self.pushes, self.fetches, self.overtaken = pushes.places(most), pushes.for_fetches(most), pushes.for_overtaken()
        self.repositories = repositories
        self.platform = platform
        self.limit = limit
        self.otherwise = otherwise

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        found = _PATH.fullmatch(environ.get("PATH_INFO", ""))
        if found is None and self.otherwise:
            return self.otherwise(environ, start_response)
        try:
            if found is None:
                raise NotFound("Couldn't find that page.")
            pusher = self._authenticate(environ)
            service = self._service(environ, found["what"])
            target = self.platform.app(pusher, found["name"])
            if found["what"] == "info/refs":
                return self._advertise(environ, start_response, service, pusher, target)
            if service == "git-receive-pack":
                return self._receive(environ, start_response, pusher, target)
            return self._fetch(environ, start_response, pusher, target)
        except DavitError as error:
            return _refuse(start_response, error)

    # Who and what

    def _authenticate(self, environ: Environ) -> Pusher:
        """The account: an API token as the password of Basic auth (or as its user name, or as a bearer).

        Raises:
            Unauthorized: nothing came along, or no token did.
        """
        scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        tokens: list[str] = []
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
                tokens = [password, user]
            except (binascii.Error, UnicodeDecodeError):
                pass
        elif scheme.lower() == "bearer":
            tokens = [value.strip()]
        for token in filter(None, tokens):
            try:
                return self.platform.by_token(token)
            except Unauthorized:
                continue
        raise Unauthorized("Invalid credentials: give an API token as the password. On the host itself, davit git:remote does.")

    def _service(self, environ: Environ, what: str) -> str:
        method: str = environ["REQUEST_METHOD"]
        if what != "info/refs":
            if method != "POST":
                raise BadRequest("Git posts here.", status=405)
            # The exact type, as git http-backend: no browser can send it to another site without asking first.
            if environ.get("CONTENT_TYPE") != f"application/x-{what}-request":
                raise BadRequest("That is not a request of git's.", status=415)
            return what
        service: str = (parse_qs(environ.get("QUERY_STRING", "")).get("service") or [""])[0]
        if method != "GET" or service not in _SERVICES:
            raise BadRequest("This address is for git: clone it or push to it.", status=403)
        return service

    # What git asks for

    def _advertise(
        self, environ: Environ, start_response: StartResponse, service: str, pusher: Pusher, target: Target
    ) -> list[bytes]:
        parts = [pkt_line(f"# service={service}\n".encode()), b"0000"]
        if service == "git-receive-pack":
            self.pushes.demand(pusher.account_id)  # git shows this answer's text; of what follows it would name the status only
            self._handler(pusher, target, Body(environ, self.limit), parts.append, advertise_refs=True).handle()
        else:
            repository = self.repositories.ensure(target.app_id)
            env = _upload_environment(self.repositories, target, environ)
            if env.get("GIT_PROTOCOL") == "version=2":
                parts.clear()
            parts.append(git.run(env, "upload-pack", "--stateless-rpc", "--advertise-refs", "--strict", str(repository)).stdout)
        body = b"".join(parts)
        start_response("200 OK", [*_headers(f"application/x-{service}-advertisement"), ("Content-Length", str(len(body)))])
        return [body]

    def _receive(self, environ: Environ, start_response: StartResponse, pusher: Pusher, target: Target) -> list[bytes]:
        try:
            give_back = self.pushes.take(pusher.account_id)
        except TooManyPushes as error:  # others were faster since the advertisement
            return self._turn_away(environ, start_response, pusher, target, error)
        try:
            with pace.demanded(environ.get("gunicorn.socket")):
                return self._take_push(environ, start_response, pusher, target)
        finally:
            give_back()

    def _take_push(self, environ: Environ, start_response: StartResponse, pusher: Pusher, target: Target) -> list[bytes]:
        body = Body(environ, self.limit)
        answer = _Answer(start_response, "application/x-git-receive-pack-result")
        try:
            self._handler(pusher, target, body, answer.write).handle()
            body.drain()
        except PusherGone:
            log.info("the pusher is gone; the build goes on", extra={"app": target.name})
        except (GitProtocolError, DavitError) as error:
            if not answer.started:
                raise error if isinstance(error, TooSlow) else BadRequest("Git's request cannot be read.") from error
            log.warning("a push ended early", extra={"app": target.name, "why": str(error)})
        answer.start()
        return []

    def _turn_away(
        self, environ: Environ, start_response: StartResponse, pusher: Pusher, target: Target, error: DavitError
    ) -> list[bytes]:
        """Refuse in git's own words, and take no pack: no more is read than what git sends in one piece.

        Raises:
            DavitError: ``error``: so many are being refused that this one is not read at all.
        """
        try:
            give_back = self.overtaken.take(pusher.account_id)
        except TooManyPushes:
            raise error from None
        body = Body(environ, PIECE)
        answer = _Answer(start_response, "application/x-git-receive-pack-result")
        try:
            with contextlib.suppress(GitProtocolError, DavitError):
                self._handler(pusher, target, body, answer.write).refuse(error)
                body.drain(PIECE)
            answer.start()
        finally:
            give_back()
        return []

    def _handler(
        self, pusher: Pusher, target: Target, body: Body, write: Callable[[bytes], object], advertise_refs: bool = False
    ) -> ReceivePack:
        return ReceivePack(
            self.repositories, self.platform, pusher, target, body, write,
            limit=self.limit, stateless_rpc=True, advertise_refs=advertise_refs,
        )  # fmt: skip

    def _fetch(self, environ: Environ, start_response: StartResponse, pusher: Pusher, target: Target) -> Iterable[bytes]:
        try:
            give_back = self.fetches.take(pusher.account_id)
        except TooManyFetches as error:
            answer = _Answer(start_response, "application/x-git-upload-pack-result")
            answer.write(pkt_line(b"ERR " + error.message.encode()))  # git prints it as "remote error: …", of a 503 no text
            return []
        try:
            with pace.demanded(environ.get("gunicorn.socket")):
                return self._upload(environ, start_response, target)
        finally:
            give_back()

    def _upload(self, environ: Environ, start_response: StartResponse, target: Target) -> Iterable[bytes]:
        repository = self.repositories.ensure(target.app_id)
        body = Body(environ, FETCH_REQUEST)
        answer = _Answer(start_response, "application/x-git-upload-pack-result")
        env = _upload_environment(self.repositories, target, environ)
        with git.running(
            env, "upload-pack", "--stateless-rpc", "--strict", f"--timeout={round(pace.WINDOW_SECONDS)}", str(repository),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            asking = threading.Thread(target=_feed, args=(body, process), daemon=True)
            asking.start()  # it may answer before it has read everything: neither side may wait for the other
            try:
                while data := process.stdout.read1(CHUNK):  # type: ignore[attr-defined]
                    answer.write(data)
            except OSError:
                process.kill()  # the client is gone
            asking.join(60)
        answer.start()
        return []


def _upload_environment(repositories: Repositories, target: Target, environ: Environ) -> dict[str, str]:
    env = git.environment(repositories.path(target.app_id))
    version = environ.get("HTTP_GIT_PROTOCOL", "")
    if _VERSION.fullmatch(version):
        env["GIT_PROTOCOL"] = version
    return env


def _feed(body: Body, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    try:
        while data := body.read(CHUNK):
            process.stdin.write(data)
        process.stdin.close()
    except (DavitError, OSError, ValueError):
        process.kill()


def _headers(content_type: str) -> list[tuple[str, str]]:
    return [("Content-Type", content_type), *_NO_CACHE]


def _refuse(start_response: StartResponse, error: DavitError) -> list[bytes]:
    """An error's answer; git shows a plain-text body to the person as "remote: …"."""
    body = f"{error.message}\n".encode()
    headers = [*_headers("text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    if error.status == 401:
        headers.append(("WWW-Authenticate", 'Basic realm="Davit", charset="UTF-8"'))
    start_response(f"{error.status} {HTTPStatus(error.status).phrase}", headers)
    return [body]


class _Answer:
    """A streamed answer: the status goes out with the first bytes."""

    def __init__(self, start_response: StartResponse, content_type: str) -> None:
        self._start_response = start_response
        self._content_type = content_type
        self._write: Callable[[bytes], object] | None = None

    @property
    def started(self) -> bool:
        return self._write is not None

    def start(self) -> Callable[[bytes], object]:
        if self._write is None:
            self._write = self._start_response("200 OK", _headers(self._content_type))
        return self._write

    def write(self, data: bytes) -> None:
        self.start()(data)


class Body:
    """A request's body, unpacked when it is gzipped (git does that to fetches); never more than a chunk in memory.

    The server has taken care of Transfer-Encoding; what is read here is the body itself.

    Args:
        limit: bytes, unpacked, after which nothing more is taken; with room for the commands before the pack.

    Raises:
        BadRequest: (from every method) it is larger, or not what it says it is.
    """

    def __init__(self, environ: Environ, limit: int) -> None:
        length = environ.get("CONTENT_LENGTH") or ""
        self._left = int(length) if length.isdigit() else None
        self.declared = self._left if environ.get("HTTP_CONTENT_ENCODING", "") in ("", "identity") else None
        self._input = environ["wsgi.input"]
        encoding = environ.get("HTTP_CONTENT_ENCODING", "").lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise BadRequest(f"The encoding {encoding[:40]!r} is not understood; git sends gzip.", status=415)
        self._unzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding.endswith("gzip") else None
        self._taken = 0
        self._limit = limit
        self._drained = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        data = self._raw(size) if self._unzip is None else self._unzipped(size)
        self._taken += len(data)
        if self._taken > self._limit + (64 << 20):  # the pack's own limit answers first, with a sentence
            raise BadRequest("The request is too large.", status=413)
        return data

    def exactly(self, size: int) -> bytes:
        """``size`` bytes, fewer only at the end."""
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data

    def pack(self) -> Callable[[int], bytes]:
        """Where the pack comes from."""
        return self.read

    def waited(self, seconds: float) -> None:
        """The connection itself knows how long it waits (:func:`foundation.pace.demanded`)."""

    def drain(self, most: int | None = None) -> None:
        """Read what is left (bounded) and forget it: a client that is still sending does not read its answer."""
        try:
            while self._drained < (DRAIN * self._limit if most is None else most) + CHUNK and (data := self._raw(CHUNK)):
                self._drained += len(data)
        except Exception as error:  # whatever the server thinks of a connection that broke
            log.debug("draining ended: %s", error)

    def _raw(self, size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
        if size == 0:
            return b""
        data: bytes = self._input.read(size)
        if self._left is not None:
            self._left -= len(data)
        return data

    def _unzipped(self, size: int) -> bytes:
        assert self._unzip is not None
        try:
            while not self._unzip.eof:
                source = self._unzip.unconsumed_tail or self._raw(CHUNK)
                data = self._unzip.decompress(source, size)
                if data or not source:
                    return data
        except zlib.error:
            raise BadRequest("The request says that it is gzipped and is not.") from None
        return b""


def application(otherwise: Application | None = None, configuration: Settings | None = None) -> HttpDoor:
    """The door for this process's Davit, in front of another WSGI application."""
    chosen = configuration or settings()
    repositories = Repositories(chosen.home / "repos", Bounds.of(chosen))
    return HttpDoor(repositories, Davit(), chosen.push_limit << 20, otherwise, most=chosen.pushes)
