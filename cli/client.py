"""The API as the command calls it.

Built on http.client: a command that prints three lines must not wait for a larger library to load (httpx: 0.12 s).
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from foundation.errors import DavitError, Unavailable

ACCEPT = "application/vnd.heroku+json; version=3"
TIMEOUT = 120.0
PAGE = 1000
TWO_FACTOR_HEADER = "Heroku-Two-Factor-Code"


class ApiError(DavitError):
    """The API refused; ``id``, ``status`` and ``message`` are its own.

    Attributes:
        app: the app whose two-factor guard wants a code; None when no app does.
    """

    app: str | None = None


class Unreachable(Unavailable):
    """Nobody answers at the API's address."""


class Client:
    """Calls one Davit.

    Args:
        url: its base URL, ``http://127.0.0.1:5000``.
        token: an API token; None to call as nobody.
        why_not: tells why nobody answers there, where that can be known: at this machine's own Davit.
        ask_code: asks the person for a two-factor code, where there is one to be asked.
    """

    def __init__(
        self, url: str, token: str | None, *, why_not: Callable[[], str] | None = None, ask_code: Callable[[], str] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._why_not, self._ask_code = why_not, ask_code
        try:
            self._parts = urlsplit(self.url)
            usable = self._parts.scheme in ("http", "https") and bool(self._parts.hostname) and self._parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise DavitError(f"“{url}” is not the URL of a Davit; it looks like http://127.0.0.1:5000.")

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Any:
        """The JSON value at ``path``; a list with all of its pages, unless a Range asks for a part of it."""
        sent = dict(headers or {})
        asks_for_a_part = "Range" in sent
        answer, value = self._called("GET", path, None, headers=sent, **options)
        while not asks_for_a_part and (further := answer.headers.get("Next-Range")):
            answer, more = self._called("GET", path, None, headers={**sent, "Range": further}, **options)
            value += more
        return value

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        """Create something; its JSON value."""
        return self.call("POST", path, body if body is not None else {}, **options)

    def answer(self, method: str, path: str, body: Any = None) -> tuple[http.client.HTTPMessage, Any]:
        """Call; the answer's headers and its JSON value, for what is told in a header alone."""
        answer, value = self._exchange(method, path, body, {})
        return answer.headers, value

    def patch(self, path: str, body: Any) -> Any:
        """Change something."""
        return self.call("PATCH", path, body)

    def put(self, path: str, body: Any) -> Any:
        """Replace something."""
        return self.call("PUT", path, body)

    def delete(self, path: str) -> Any:
        """Remove something."""
        return self.call("DELETE", path)

    def all(self, path: str, sort: str) -> list[Any]:
        """A whole list, page by page.

        Args:
            sort: the attribute to sort by.
        """
        rows: list[Any] = []
        window: str | None = f"{sort} ..; max={PAGE}"
        while window:
            answer, value = self._exchange("GET", path, None, {"Range": window})
            rows += value
            window = answer.headers.get("Next-Range")
        return rows

    def call(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None, timeout: float = TIMEOUT,
    ) -> Any:  # fmt: skip
        """Call and return the JSON value.

        Args:
            basic: e-mail address and password instead of the token.
            timeout: seconds that the answer may take.

        Raises:
            ApiError: the API refused.
            Unreachable: nobody answers.
        """
        return self._called(method, path, body, headers=headers, basic=basic, timeout=timeout)[1]

    def _called(
        self, method: str, path: str, body: Any, *, headers: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None, timeout: float = TIMEOUT,
    ) -> tuple[http.client.HTTPResponse, Any]:  # fmt: skip
        sent = dict(headers or {})
        if basic:
            sent["Authorization"] = "Basic " + b64encode(":".join(basic).encode()).decode()
        try:
            return self._exchange(method, path, body, sent, timeout)
        except ApiError as refused:
            if refused.id != "two_factor" or self._ask_code is None or TWO_FACTOR_HEADER in sent:
                raise
            guarded = refused.app
        code = {TWO_FACTOR_HEADER: self._ask_code()}
        if guarded is None:
            return self._exchange(method, path, body, sent | code, timeout)
        self._exchange("PUT", f"/apps/{quote(guarded, safe='')}/pre-authorizations", {}, sent | code)  # a code opens once
        return self._exchange(method, path, body, sent, timeout)

    def _exchange(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], timeout: float = TIMEOUT
    ) -> tuple[http.client.HTTPResponse, Any]:
        connection, answer = self._ask(method, path, body, headers, timeout)
        try:
            return answer, _value(answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
        """A response that goes on for long; reading it may wait for as long as the server is silent.

        ``path`` may be a URL that the API gave: only its path is used, so that the token never goes anywhere else.
        """
        parts = urlsplit(path)
        connection, answer = self._ask("GET", parts.path, None, headers or {}, None)
        try:
            yield answer
        finally:
            connection.close()

    def connect(self, timeout: float | None = TIMEOUT) -> socket.socket:
        """A plain connection to the server (TLS where its URL says so)."""
        host = self._parts.hostname or ""
        try:
            plain = socket.create_connection((host, self._parts.port or (443 if self._secure else 80)), timeout)
            return ssl.create_default_context().wrap_socket(plain, server_hostname=host) if self._secure else plain
        except OSError as error:
            raise self._unreachable(error) from None

    @property
    def authority(self) -> str:
        """HOST:PORT of the server."""
        return self._parts.netloc

    @property
    def _secure(self) -> bool:
        return self._parts.scheme == "https"

    def _ask(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], timeout: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=timeout)
        sent = {"Accept": ACCEPT, "User-Agent": "davit"}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        data = None
        if body is not None:
            sent["Content-Type"], data = "application/json", json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**sent, **headers})
            answer = connection.getresponse()
            if answer.status >= 300:
                raise _refusal(answer, path)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from None
        except BaseException:
            connection.close()
            raise
        return connection, answer

    def _unreachable(self, error: Exception) -> Unreachable:
        if self._why_not and isinstance(error, ConnectionRefusedError):
            return Unreachable(self._why_not())
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Unreachable(f"Davit at {self.url} cannot be reached: {reason}.")


def _value(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        raise DavitError("The server's answer is not JSON; is that really a Davit?") from None


def _refusal(answer: http.client.HTTPResponse, path: str) -> ApiError:
    try:
        said = json.loads(answer.read(1 << 20))
        error = ApiError(_named(str(said["message"]), path), id=str(said["id"]), status=answer.status)
        error.app = str(said["app"]["name"]) if said.get("app") else None
        return error
    except (ValueError, KeyError, TypeError):
        return ApiError(f"HTTP error {answer.status} for {path}.", id="http_error", status=answer.status)


def _named(message: str, path: str) -> str:
    """Heroku's sentences do not say which app, release or build was not found; the call's path does."""
    match = re.fullmatch(r"Couldn't find that (app|release|build)\.", message)
    _, found, rest = path.partition(f"/{match[1]}s/") if match else ("", "", "")
    if match is None or not found:
        return message
    name = unquote(rest.partition("/")[0].partition("?")[0])
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return f"Couldn't find that {match[1]} ({shown[:60] + '…' if len(shown) > 60 else shown})."
