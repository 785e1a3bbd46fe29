"""What a host is to be, as whoever makes one says it; checked before anything is written."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509

from foundation.errors import InvalidParams
from foundation.settings import SettingError, Settings, from_environment

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" [A-Za-z0-9+/=]{40,2000}( [^\r\n]{0,200})?\Z"
)
_SUM = re.compile(r"[0-9a-f]{64}\Z")
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}\Z")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_URL = re.compile(r"https?://[^\s'\"\\]{1,2000}\Z")
_GIT = re.compile(r"(https?|git|ssh)://[^\s'\"\\]{1,2000}\Z")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}\Z")
_SECRET_PARAMETER = re.compile(
    r"token|secret|passw|passphrase|(?<!by)pass$|signature|hmac|credential|auth(?!ors?(?![a-z]))|jwt|key(?!word|board)"
    r"|^(sig|code|pwd?)$",
    re.I,
)
"""What a parameter of an address is called that lets whoever has it fetch something."""
_SETTINGS = frozenset(one.metadata["variable"] for one in fields(Settings))
SECRETS = frozenset(("DATABASE_URL", "REDIS_URL"))
"""Settings that may hold a password."""


STACKS = "/var/cache/davit/stacks"
SSH_PORT = 22
"""Of the host's own SSH server."""
LISTENING = ("http", "https", "api", "ssh", "exec")
"""Settings that say where Davit listens."""


@dataclass(frozen=True)
class Download:
    """A file to fetch: its URL, and its SHA-256 (hex), without which it is not used."""

    url: str
    sha256: str


@dataclass(frozen=True)
class Host:
    """A Davit host.

    Attributes:
        domain: apps answer at NAME.DOMAIN.
        admin_keys: SSH public keys that may log in as ``admin``.
        release: Davit itself: an archive (tar) with its checksum, or ``git`` with ``ref``.
        git, ref: a repository, and the branch, tag or commit to take.
        stack: a ready stack image (``davit stack:export``); built on the host when None.
        hostname: the host's name; the cloud's choice when None.
        swap: MiB of swap.
        settings: further settings of Davit (docs/settings.md) by variable.
        secrets: whether settings that may hold a password, and addresses that hold one, may be in it: user-data can be read by
            everything on the host.
        certificates: PEM texts of further authorities that the host trusts (a company's proxy).
        mirror: the Debian or Ubuntu mirror that packages come from; the image's own when None.
    """

    domain: str
    admin_keys: tuple[str, ...] = ()
    release: Download | None = None
    git: str | None = None
    ref: str = "main"
    stack: Download | None = None
    hostname: str | None = None
    swap: int = 2048
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: bool = False
    certificates: tuple[str, ...] = ()
    mirror: str | None = None

    def check(self) -> None:
        """See that it can be made.

        Raises:
            InvalidParams: something cannot be; the sentence names it and what it must be.
        """
        for name, value, such in (("domain", self.domain, "apps.example.com"), ("hostname", self.hostname, "davit-1")):
            if value is not None and not _NAME.match(value):
                raise InvalidParams(f"The {name} “{value}” is no host name; give one such as {such}.")
        if _ADDRESS.match(self.domain):
            raise InvalidParams(
                f"The domain “{self.domain}” is no host name but an address, and apps answer at NAME.DOMAIN; give one such as "
                "apps.example.com."
            )
        for key in self.admin_keys:
            _check_key(key.strip())
        if (self.release is None) == (self.git is None):
            raise InvalidParams("Say where Davit comes from: an archive (--archive, --sha256) or a repository (--git).")
        for what, download in (("archive", self.release), ("stack", self.stack)):
            if download is not None:
                _check_download(what, download)
        if self.git is not None and not _GIT.match(self.git):
            raise InvalidParams(
                f"“{self.git}” is no repository's address; give one such as https://HOST/REPO or ssh://git@HOST/REPO."
            )
        if not _REF.match(self.ref):
            raise InvalidParams(f"The version “{self.ref}” is no branch, tag or commit.")
        if not 0 <= self.swap <= 65536:
            raise InvalidParams(f"Swap is {self.swap} MiB; it must be between 0 and 65536.")
        if self.mirror is not None and not _URL.match(self.mirror):
            raise InvalidParams(f"The mirror “{self.mirror}” is no HTTP address.")
        for text in self.certificates:
            _check_certificate(text)
        self._check_secrets()
        self._check_settings()

    @property
    def authorities(self) -> list[str]:
        """The certificates one by one, without whatever else is in their files (a private key, for instance)."""
        return [found for text in self.certificates for found in _PEM.findall(text)]

    @property
    def environment(self) -> dict[str, str]:
        """The settings of the host's Davit, by variable."""
        chosen = {
            "DAVIT_DOMAIN": self.domain,
            "DAVIT_HTTP": "0.0.0.0:80",
            "DAVIT_HTTPS": "0.0.0.0:443",
            "DAVIT_API": "0.0.0.0:5000",
            "DAVIT_SSH": "0.0.0.0:2222",
            **self.settings,
        }
        return {**chosen, "DAVIT_STACKS": chosen.get("DAVIT_STACKS") or STACKS}  # the set-up needs to know where

    def _check_secrets(self) -> None:
        if self.secrets:
            return
        for what, url in self._addresses():
            if _holds_secret(url):
                raise InvalidParams(
                    f"The {what}'s address holds a password or token, and user-data can be read by every program on the host and "
                    "by whoever manages the cloud; let the host fetch it without, or allow it by --with-secrets."
                )

    def _addresses(self) -> Iterator[tuple[str, str]]:
        downloads = (("archive", self.release), ("stack", self.stack))
        yield from ((what, download.url) for what, download in downloads if download is not None)
        yield from ((what, url) for what, url in (("repository", self.git), ("mirror", self.mirror)) if url is not None)

    def _check_settings(self) -> None:
        for name, value in self.settings.items():
            if name == "DAVIT_DOMAIN":
                raise InvalidParams("The domain is set twice, by --domain and by --set DAVIT_DOMAIN; leave the latter out.")
            if name not in _SETTINGS:
                near = difflib.get_close_matches(name, _SETTINGS, 1)
                meant = f"did you mean {near[0]}?" if near else "docs/settings.md lists them."
                raise InvalidParams(f"{name} is no setting of Davit's; {meant}")
            if not value.isprintable():
                raise InvalidParams(f"The value of {name} has control characters in it.")
            if name in SECRETS and not self.secrets:
                raise InvalidParams(
                    f"{name} may hold a password, and user-data can be read by every program on the host and by whoever manages "
                    "the cloud; write it to /etc/davit/davit.env on the host, or allow it by --with-secrets."
                )
            if _holds_secret(value) and not self.secrets:
                raise InvalidParams(
                    f"The value of {name} holds a password or token, and user-data can be read by every program on the host and "
                    "by whoever manages the cloud; write it to /etc/davit/davit.env on the host, or allow it by --with-secrets."
                )
        try:
            settings = from_environment(self.environment)
        except SettingError as error:
            raise InvalidParams(error.message) from None
        for name in LISTENING:
            if (address := getattr(settings, name)) is not None and address.port == SSH_PORT:
                raise InvalidParams(
                    f"DAVIT_{name.upper()} is “{address}”; it must be another port than {SSH_PORT}, where its own SSH server is."
                )
        if settings.stacks.is_relative_to(settings.home):
            raise InvalidParams(
                f"DAVIT_STACKS is “{settings.stacks}”; it must be outside of {settings.home}, which would be root's when the"
                f" stack is put there before Davit is: leave it out for {STACKS}."
            )


def _holds_secret(url: str) -> bool:
    """Whether there is a password in it; of HTTP also a name alone, which may be a token, and a parameter that is called so, or
    that has no name."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return parts.password is not None
        if any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query)):
            return True
        return any("=" not in word for word in parts.query.split("&") if word) or bool(parts.username or parts.password)
    except ValueError:
        return "@" in url


def _check_download(what: str, download: Download) -> None:
    if not _URL.match(download.url):
        raise InvalidParams(f"The {what}'s address “{download.url}” is no HTTP address.")
    if not _SUM.match(download.sha256):
        raise InvalidParams(
            f"The {what}'s checksum must be its SHA-256 in 64 hexadecimal digits, as `sha256sum` prints it "
            f"(--{'sha256' if what == 'archive' else 'stack-sha256'})."
        )


def _check_key(key: str) -> None:
    """Source: RFC 4253, section 6.6: a key is strings, each after its length in four bytes; the first one is the kind."""
    if "PRIVATE KEY" in key:
        raise InvalidParams("A private key is no SSH public key, and yours alone; give the file beside it that ends in .pub.")
    if not _KEY.match(key):
        shown = key.split("\n")[0][:40]
        raise InvalidParams(f"“{shown}” is no SSH public key; give the line of a .pub file, or the file.")
    kind, body = key.split()[:2]
    try:
        data, parts = base64.b64decode(body, validate=True), list[bytes]()
    except ValueError:
        data, parts = b"\0", []
    while len(data) >= 4 and len(data) >= 4 + (length := int.from_bytes(data[:4], "big")):
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    if data or len(parts) < 2 or parts[0] != kind.encode():
        raise InvalidParams(f"“{kind} {body[:20]}…” is no SSH public key: a part of it is missing or has been changed.")


def _check_certificate(text: str) -> None:
    try:
        found = [x509.load_pem_x509_certificate(one.encode()) for one in _PEM.findall(text)]
    except ValueError:
        found = []
    if not found:
        raise InvalidParams("A certificate must be PEM text, whole from -----BEGIN CERTIFICATE----- to -----END.")
