"""Every setting, read from the environment in this one place; docs/settings.md lists the same and a test compares."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from foundation.errors import DavitError


class SettingError(DavitError):
    """An environment variable holds a value that Davit cannot use."""

    id, status = "invalid_setting", 500


@dataclass(frozen=True)
class Address:
    """A TCP address: ``host`` (no brackets) and ``port`` (0 to 65535)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def reachable(self) -> Address:
        """The address that a client on this machine uses: a wildcard address becomes the loopback."""
        return Address({"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host), self.port)


@dataclass(frozen=True)
class Allowed:
    """Addresses of a network, at one port or (None) at all, that may be called though they are private."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None = None

    def __str__(self) -> str:
        where = str(self.network.network_address if self.network.num_addresses == 1 else self.network)
        if self.port is None:
            return where
        return f"[{where}]:{self.port}" if self.network.version == 6 else f"{where}:{self.port}"

    def holds(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
        """Whether ``address`` at ``port`` is among them."""
        return address in self.network and self.port in (None, port)


def _setting(variable: str, default: str | None, meaning: str) -> Any:
    return field(metadata={"variable": variable, "default": default, "meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """The settings of one Davit, parsed. Build one with :func:`from_environment`; processes use :func:`settings`."""

    home: Path = _setting("DAVIT_HOME", "/var/lib/davit", "everything that Davit keeps on this host")
    domain: str = _setting("DAVIT_DOMAIN", "localhost", "apps answer at NAME.DOMAIN")
    http: Address = _setting("DAVIT_HTTP", "127.0.0.1:8080", "the router's HTTP address")
    https: Address | None = _setting("DAVIT_HTTPS", None, "the router's HTTPS address; off when unset")
    api: Address = _setting("DAVIT_API", "127.0.0.1:5000", "the web process: API, git over HTTP")
    names: tuple[str, ...] = _setting(
        "DAVIT_NAMES", None,
        "host names at which the API and the dashboard are opened, parted by commas (davit.example.com): no app gets them",
    )  # fmt: skip
    ssh: Address = _setting("DAVIT_SSH", "127.0.0.1:2222", "git over SSH")
    exec: Address | None = _setting(
        "DAVIT_EXEC", None, "where `heroku ps:exec` finds SSH: 127.0.0.2:80, say (it knows no port but 80); off when unset"
    )
    database_url: str = _setting("DATABASE_URL", None, "the database; SQLite under DAVIT_HOME when unset, or postgresql://…")
    redis_url: str | None = _setting("REDIS_URL", None, "Redis; an own redis-server under DAVIT_HOME when unset, or redis://…")
    slugs: str = _setting("DAVIT_SLUGS", "file", "where slugs are kept: `file` is a directory under DAVIT_HOME")
    engine: str = _setting("DAVIT_ENGINE", "local", "what places dynos on hosts: `local` is this machine")
    stacks: Path = _setting(
        "DAVIT_STACKS", None, "where built stacks are kept; DAVIT_HOME/stacks when unset; several Davits may share it"
    )
    network: str | None = _setting(
        "DAVIT_NETWORK", None, "the dynos' IPv4 network, e.g. 10.77.0.0/20; a free part of 198.18.0.0/15 when unset"
    )
    mirror: str | None = _setting(
        "DAVIT_MIRROR", None, "the Debian mirror that stacks are built from; the distribution's default when unset"
    )
    build_slots: int = _setting("DAVIT_BUILD_SLOTS", None, "builds in their sandbox at the same time; one per core when unset")
    build_timeout: int = _setting("DAVIT_BUILD_TIMEOUT", "1500", "seconds that a build may take")
    build_memory: int = _setting("DAVIT_BUILD_MEMORY", "2048", "MiB of memory that a build may use")
    build_disk: int = _setting("DAVIT_BUILD_DISK", "8192", "MiB of disk that a build may use")
    slug_limit: int = _setting("DAVIT_SLUG_LIMIT", "1024", "MiB that a slug may have, compressed")
    boot_timeout: int = _setting(
        "DAVIT_BOOT_TIMEOUT", "60", "seconds that a web dyno has to listen on $PORT; longer for apps that are slow to start"
    )
    push_limit: int = _setting("DAVIT_PUSH_LIMIT", "1024", "MiB that one git push may send")
    source_quota: int = _setting(
        "DAVIT_SOURCE_QUOTA", "4096",
        "MiB that one account's uploaded tarballs of a day may take; those that have been built make room for others",
    )  # fmt: skip
    repository_limit: int = _setting("DAVIT_REPOSITORY_LIMIT", "4096", "MiB that the git repository of one app may take")
    repository_refs: int = _setting("DAVIT_REPOSITORY_REFS", "2000", "branches and tags that one app's git repository may have")
    releases_kept: int = _setting(
        "DAVIT_RELEASES_KEPT", "50", "releases per app that can be rolled back to; older slugs are collected"
    )
    web_threads: int = _setting(
        "DAVIT_WEB_THREADS", "64",
        "requests that the web process works on at once, git's not counted; half of them may be logs and runs, and "
        "a quarter uploads",
    )  # fmt: skip
    pushes: int = _setting(
        "DAVIT_PUSHES", "48",
        "pushes that build or wait for their turn at once, and as many clones and fetches, over HTTP and again over SSH; one "
        "account may have two thirds",
    )  # fmt: skip
    outbound_allow: tuple[Allowed, ...] = _setting(
        "DAVIT_OUTBOUND_ALLOW", None,
        "private addresses that drains and webhooks may call all the same: networks, with a port or without, parted by commas "
        "(10.1.0.0/16, 127.0.0.1:9000)",
    )  # fmt: skip
    dynos_allow: tuple[Allowed, ...] = _setting(
        "DAVIT_DYNOS_ALLOW", None,
        "private addresses that the dynos of all apps may reach all the same, a database's say: IPv4 networks, with a port or "
        "without, parted by commas (10.1.0.5:5432, 10.2.0.0/24)",
    )  # fmt: skip
    rate_limit: int = _setting("DAVIT_RATE_LIMIT", "4500", "API calls that an account may make in an hour")
    osv_kernel: Path | None = _setting("DAVIT_OSV_KERNEL", None, "path of an OSv loader ELF, which unikernels boot")
    osv_modules: Path | None = _setting(
        "DAVIT_OSV_MODULES", None, "a directory of OSv's own modules (REST server, cloud-init), laid into every unikernel's root"
    )
    sleep_after: int = _setting(
        "DAVIT_SLEEP_AFTER", "1800", "seconds without a request after which an app that may sleep is stopped"
    )

    @property
    def run(self) -> Path:
        """Sockets, pid files and dyno directories: valid until the next boot."""
        return self.home / "run"

    @property
    def effective_redis_url(self) -> str:
        """REDIS_URL, or the embedded server's unix socket."""
        return self.redis_url or f"unix://{self.run / 'redis.sock'}"

    def app_url(self, name: str) -> str:
        """The public URL of the app NAME, with the port only where it is not the scheme's own."""
        scheme, address, usual = ("https", self.https, 443) if self.https else ("http", self.http, 80)
        assert address is not None
        port = "" if address.port == usual else f":{address.port}"
        return f"{scheme}://{name}.{self.domain}{port}/"

    @property
    def api_url(self) -> str:
        """The API's base URL as clients on this machine reach it."""
        return f"http://{self.api.reachable}"


_NUMBERS = (
    "build_timeout", "build_memory", "build_disk", "slug_limit", "boot_timeout", "push_limit", "source_quota",
    "repository_limit", "repository_refs", "releases_kept", "web_threads", "pushes", "rate_limit", "sleep_after",
)  # fmt: skip


def _address(variable: str, text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise SettingError(f"{variable} is “{text}”; it must be HOST:PORT, for example 127.0.0.1:8080.")
    return Address(host.strip("[]"), int(port))


def _number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise SettingError(f"{variable} is “{text}”; it must be a whole number of at least 1.")
    return int(text)


def _absolute(variable: str, text: str) -> Path:
    if not text.startswith("/"):
        raise SettingError(f"{variable} is “{text}”; it must be an absolute path.")
    return Path(text)


def _hostname(variable: str, text: str) -> str:
    try:
        name = text if text.isascii() else text.encode("idna").decode()  # as browsers send it
    except UnicodeError:
        name = ""
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", name):
        raise SettingError(f"{variable} has “{text}”; it must be host names without scheme and port: davit.example.com.")
    return name.lower().rstrip(".")


def _allowed(variable: str, text: str) -> Allowed:
    network, port = text, ""
    if text.startswith("["):
        network, _, port = text[1:].partition("]:")
        network = network.removesuffix("]")
    elif text.count(":") == 1:
        network, _, port = text.partition(":")
    try:
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
            raise ValueError
        return Allowed(ipaddress.ip_network(network, strict=False), int(port) if port else None)
    except ValueError:
        raise SettingError(
            f"{variable} has “{text}”; it must be networks, with a port or without: 10.1.0.0/16, 127.0.0.1:9000, [fd00::/8]:514."
        ) from None


def _allowed_to_dynos(text: str) -> Allowed:
    found = _allowed("DAVIT_DYNOS_ALLOW", text)
    if found.network.version != 4:
        raise SettingError(f"DAVIT_DYNOS_ALLOW has “{text}”; dynos have IPv4 only: name the IPv4 address.")
    if found.network.is_loopback:
        raise SettingError(
            f"DAVIT_DYNOS_ALLOW has “{text}”; that is each dyno's own loopback. Have the service listen on an address of this "
            "host, and name that with its port."
        )
    if found.network.prefixlen < 8:
        raise SettingError(f"DAVIT_DYNOS_ALLOW has “{text}”; no network larger than a /8 is opened.")
    return found


def _listed(text: str | None) -> list[str]:
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def from_environment(environ: Mapping[str, str]) -> Settings:
    """Parse the settings.

    Args:
        environ: environment variables; an empty value counts as unset.

    Raises:
        SettingError: a value cannot be used; the sentence names the variable and an example.
    """
    raw = {f.name: environ.get(f.metadata["variable"]) or f.metadata["default"] for f in fields(Settings)}
    names = {f.name: f.metadata["variable"] for f in fields(Settings)}
    home = _absolute("DAVIT_HOME", raw["home"] or "")
    values: dict[str, Any] = dict(raw, home=home)
    for name in ("http", "https", "api", "ssh", "exec"):
        values[name] = _address(names[name], raw[name]) if raw[name] else None
    for name in _NUMBERS:
        values[name] = _number(names[name], raw[name] or "")
    values["build_slots"] = _number("DAVIT_BUILD_SLOTS", raw["build_slots"] or str(os.cpu_count() or 1))
    values["stacks"] = _absolute("DAVIT_STACKS", raw["stacks"]) if raw["stacks"] else home / "stacks"
    values["outbound_allow"] = tuple(_allowed("DAVIT_OUTBOUND_ALLOW", text) for text in _listed(raw["outbound_allow"]))
    values["dynos_allow"] = tuple(map(_allowed_to_dynos, _listed(raw["dynos_allow"])))
    values["names"] = tuple(_hostname("DAVIT_NAMES", text) for text in _listed(raw["names"]))
    for name in ("osv_kernel", "osv_modules"):
        values[name] = _absolute(names[name], raw[name]) if raw[name] else None
    values["database_url"] = raw["database_url"] or f"sqlite:///{home / 'davit.db'}"
    if values["slugs"] != "file":
        raise SettingError(f"DAVIT_SLUGS is “{raw['slugs']}”; this version knows only `file`.")
    if values["engine"] != "local":
        raise SettingError(f"DAVIT_ENGINE is “{raw['engine']}”; this version knows only `local`.")
    return Settings(**values)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read from its environment once."""
    return from_environment(os.environ)
