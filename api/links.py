"""URLs that are secrets: whoever has one may read one stream until it expires. Signed, so nothing has to be remembered."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from flask import request

from foundation.errors import DavitError, NotFound
from foundation.settings import settings
from state import apps
from state.db import snapshot
from state.models import Account
from state.signatures import read, sign

__all__ = ["base_url", "build_output", "read", "release_output", "sign"]

LOG_SECONDS = 3600
OUTPUT_SECONDS = 12 * 3600
SOURCE_SECONDS = 24 * 3600


_BASE = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]{1,300}")


def base_url() -> str:
    """The API's base URL as this caller reached it; as this machine reaches it where what the caller says cannot be read."""
    given = request.headers.get("Davit-Base", "")  # a forwarder on the caller's machine says where it stands
    if _BASE.fullmatch(given) and _names_a_host(given):
        return given
    return _by_host() or settings().api_url


def own_host() -> str | None:
    """The name or address by which the caller asked for this machine (Host); None when it cannot be read."""
    return urlsplit(_by_host()).hostname


def _by_host() -> str:
    try:
        url = request.host_url.rstrip("/")
    except ValueError:  # what looks like an IPv6 address and is none
        return ""
    return url if _names_a_host(url) else ""


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def authority() -> str:
    """HOST:PORT of the API as this caller reached it."""
    parts = urlsplit(base_url())
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def build_output(build_id: str, reader: str) -> str:
    """Where a build's output is read, for as long as the account ``reader`` may see its app."""
    what = {"build": build_id, "reader": reader}
    return f"{base_url()}/streams/builds/{sign('build', what, OUTPUT_SECONDS, steady=True)}"


def release_output(release_id: str, reader: str) -> str:
    """Where the output of a release's command is read, for as long as the account ``reader`` may see its app."""
    what = {"release": release_id, "reader": reader}
    return f"{base_url()}/streams/releases/{sign('release', what, OUTPUT_SECONDS, steady=True)}"


def source(source_id: str, reader: str, app_id: str | None) -> str:
    """Where an uploaded source is read, for as long as the account ``reader`` may deploy the app that it is for; nothing can be
    put there. Without an app: for as long as there is the account.
    """
    what = {"source": source_id, "account": reader, "app": app_id}
    return f"{base_url()}/streams/sources/{sign('source', what, SOURCE_SECONDS, steady=True)}"


def source_upload(source_id: str, uploader: str, app_id: str | None) -> str:
    """Where a source is put, for as long as :func:`source` could be read."""
    what = {"source": source_id, "account": uploader, "app": app_id}
    return f"{base_url()}/streams/sources/{sign('source upload', what, SOURCE_SECONDS)}"


def read_source(purpose: Literal["source", "source upload"], secret: str) -> tuple[str, str]:
    """The source that a secret URL leads to, and the account that it was made for.

    Raises:
        NotFound: it is not ours, has expired, or the account that it was made for may not (any more).
    """
    what = read(purpose, secret)
    account_id, app_id = str(what.get("account", "")), what.get("app")
    if not (may(account_id, app_id, "deploy") if app_id else _is_there(account_id)):
        raise NotFound("There is no such stream.")
    return str(what["source"]), account_id


def source_of(url: str) -> str | None:
    """The source that a URL of this Davit's names, however its host is called; None for any other URL."""
    try:
        _, found, secret = urlsplit(url).path.rpartition("/streams/sources/")
    except ValueError:  # whoever goes there says what is wrong with it
        return None
    try:
        return read_source("source", secret)[0] if found else None
    except NotFound:
        return None


def _is_there(account_id: str) -> bool:
    with snapshot() as session:
        return session.get(Account, account_id) is not None


def slug(slug_id: str, reader: str) -> str:
    """Where a slug's tarball is read, for as long as the account ``reader`` may deploy its app."""
    return f"{base_url()}/streams/slugs/{sign('slug', {'slug': slug_id, 'reader': reader}, OUTPUT_SECONDS, steady=True)}"


def slug_upload(slug_id: str, uploader: str, checksum: str | None) -> str:
    """Where a slug's own tarball is put, for as long as the account ``uploader`` may deploy its app."""
    what = {"slug": slug_id, "uploader": uploader, "checksum": checksum}
    return f"{base_url()}/streams/slugs/{sign('slug upload', what, SOURCE_SECONDS)}"


def may(reader: str, app_id: str | None, permission: str = "view") -> bool:
    """Whether the account that a secret URL was made for still has the permission on the app."""
    with snapshot() as session:
        account = session.get(Account, reader)
        try:
            return bool(account and app_id and apps.find(session, account, app_id, permission))
        except DavitError:
            return False
