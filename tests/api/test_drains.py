"""Log drains, certificates and domains through the API."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from api import streams
from foundation import outbound
from foundation.authority import Authority
from foundation.clock import now
from logs.drains import read_database
from state import db, rotation
from state.models import App, LogDrain
from tests.api.conftest import Api
from tests.e2e.errors_page import assert_says

DRAIN = "https://user:tEllNoOne@203.0.113.9/logs"


def test_drains_are_added_listed_and_removed_by_any_name(api: Api) -> None:
    made = api.post("/apps/timely/log-drains", {"url": DRAIN})
    assert made.status_code == 201 and made.json["url"] == DRAIN and made.json["token"].startswith("d.")
    assert api.get("/apps/timely/log-drains").json == [made.json]
    for identity in (made.json["id"], made.json["token"], quote(DRAIN, safe="")):
        assert api.get(f"/apps/timely/log-drains/{identity}").json["id"] == made.json["id"]
    assert api.get("/apps/timely/log-drains", as_="viewer").status_code == 403, "its URL may hold a password"
    assert api.delete(f"/apps/timely/log-drains/{quote(DRAIN, safe='')}").status_code == 200
    assert api.delete(f"/apps/timely/log-drains/{made.json['id']}").status_code == 404


def test_who_waits_for_name_servers_is_counted_and_holds_nothing_of_the_database(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    monkeypatch.setattr("foundation.outbound.check", lambda place: held.append(db.engine().pool.checkedout()))  # type: ignore[attr-defined]
    hook = {"url": "https://example.com/", "include": ["api:app"], "level": "notify"}
    made = api.post("/apps/timely/webhooks", hook).json["id"]
    calls = (
        ("POST", "/apps/timely/log-drains", {"url": "https://example.com/x"}), ("POST", "/apps/timely/webhooks", hook),
        ("PATCH", f"/apps/timely/webhooks/{made}", {"level": "sync"}),
        ("POST", "/app-setups", {"source_blob": {"url": "https://example.com/x.tgz"}}),
    )  # fmt: skip
    with db.snapshot() as session:
        owner = session.get_one(App, api.app_id).owner_id
    taken = [streams.lookups.take(owner) for _ in range(streams.LOOKUPS_EACH)]
    for method, path, body in calls:
        answer = api.call(method, path, body)
        assert (answer.status_code, answer.json["id"]) == (503, "too_many_streams"), path
    for give_back in taken:
        give_back()
    held.clear()
    assert [api.call(method, path, body).status_code for method, path, body in calls] == [201, 201, 200, 202]
    assert held == [0, 0, 0, 0] and streams.lookups._taken.total() == 0


def test_a_drains_password_is_not_in_the_database_and_survives_new_keys(api: Api) -> None:
    api.post("/apps/timely/log-drains", {"url": DRAIN})
    assert b"tEllNoOne" not in (api.home / "davit.db").read_bytes() + (api.home / "davit.db-wal").read_bytes()
    assert rotation.rotate(lambda line: None) > 0
    assert api.get("/apps/timely/log-drains").json[0]["url"] == DRAIN
    with db.snapshot() as session:
        assert session.query(LogDrain).count() == 1


@pytest.mark.row("drain-refused")
@pytest.mark.parametrize("url", ["https://127.0.0.1:5000/", "http://localhost/x", "syslog://10.0.0.1:514", "https://169.254.169.254/", "syslog+tls://[::1]"])
def test_a_drain_at_davit_itself_the_host_or_a_private_network_is_refused(api: Api, url: str) -> None:
    answer = api.post("/apps/timely/log-drains", {"url": url})
    assert (answer.status_code, answer.json["id"]) == (422, "destination_refused")
    assert_says("drain-refused", answer.json["message"])


@pytest.fixture
def leading(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Where names lead to; the public address of a Davit behind NAT, unless something else is said of one."""
    elsewhere: dict[str, str] = {}

    def answer(host: str, port: int, *_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (elsewhere.get(host, "203.0.113.9"), port))]

    outbound._addresses.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", answer)
        yield elsewhere
    outbound._addresses.cache_clear()


def test_a_drain_or_webhook_to_an_apps_custom_domain_is_refused_where_that_leads_to_davit(
    either_api: Api, leading: dict[str, str]
) -> None:
    """As behind NAT: the router's public address is on no interface of this host, and each line that is sent there makes another."""
    api = either_api
    for name in ("www.example.com", "hooks.example.com"):  # anybody may say so of any name
        assert api.post("/apps/timely/domains", {"hostname": name}).status_code == 201
    leading["hooks.example.com"] = "203.0.113.77"

    def calls(host: str) -> list[tuple[str, object]]:
        hook = {"url": f"https://{host}/", "include": ["api:app"], "level": "notify"}
        setup = {"source_blob": {"url": f"https://{host}/x.tgz"}}
        return [("/apps/timely/log-drains", {"url": f"https://{host}/logs"}), ("/apps/timely/webhooks", hook), ("/app-setups", setup)]

    for path, body in calls("WWW.example.com."):
        answer = api.post(path, body)
        assert (answer.status_code, answer.json["id"]) == (422, "destination_refused"), path
        assert "(203.0.113.9) is this Davit itself" in answer.json["message"]
    for path, body in calls("hooks.example.com"):
        assert api.post(path, body).status_code in (201, 202), "what leads elsewhere is called, whoever calls it theirs"
    api.post("/apps/timely/log-drains", {"url": "https://later.example.com/"})
    assert sorted(one.ours for one in read_database()) == [False, True]
    api.post("/apps/timely/domains", {"hostname": "later.example.com"})
    assert [one.ours for one in read_database()] == [True, True], "the process that sends looks again"


@pytest.mark.row("drain-invalid")
@pytest.mark.parametrize("url", ["", "ftp://example.com", "https://", "no url", "https://a b", 3, None])
def test_what_is_no_drain_is_refused(api: Api, url: object) -> None:
    answer = api.post("/apps/timely/log-drains", {"url": url})
    assert answer.status_code == 422 and "Field url" in answer.json["message"]
    if isinstance(url, str) and url:
        assert_says("drain-invalid", answer.json["message"])


def test_an_app_has_five_drains_at_the_most_and_none_twice(api: Api) -> None:
    for n in range(5):
        assert api.post("/apps/timely/log-drains", {"url": f"syslog://203.0.113.9:{n + 1}"}).status_code == 201
    assert "already" in api.post("/apps/timely/log-drains", {"url": "syslog://203.0.113.9:1"}).json["message"]
    assert "at most 5" in api.post("/apps/timely/log-drains", {"url": "syslog://203.0.113.9:9"}).json["message"]


# certificates

Make = Callable[..., tuple[str, str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Certificates of one authority: (chain, key)."""
    authority = Authority(tmp_path / "ca.pem")

    def issue(*names: str) -> tuple[str, str]:
        text = authority.issue(names).decode()
        at = text.index("-----BEGIN PRIVATE")
        return text[:at], text[at:]

    return issue


def _upload(api: Api, chain: str, key: str, **options: object) -> object:
    return api.post("/apps/timely/sni-endpoints", {"certificate_chain": chain, "private_key": key}, **options)


def test_a_certificate_serves_the_domains_that_are_bound_to_it(api: Api, make: Make) -> None:
    api.post("/apps/timely/domains", {"hostname": "www.example.com", "sni_endpoint": None})
    made = _upload(api, *make("www.example.com", "*.shop.example.com"))
    assert made.status_code == 201
    said = made.json["ssl_cert"]
    assert said["cert_domains"] == ["www.example.com", "*.shop.example.com"] and said["ca_signed?"] and not said["self_signed?"]
    assert "PRIVATE" not in made.text and "private_key" not in made.json
    name = made.json["name"]
    bound = api.patch("/apps/timely/domains/www.example.com", {"sni_endpoint": name})
    assert bound.json["sni_endpoint"]["name"] == name
    assert api.get(f"/apps/timely/sni-endpoints/{name}").json["domains"] == [bound.json["id"]]
    assert api.post("/apps/timely/domains", {"hostname": "a.shop.example.com", "sni_endpoint": name}).json["sni_endpoint"]["name"] == name
    assert "still serves" in api.delete(f"/apps/timely/sni-endpoints/{name}").json["message"]
    for host in ("www.example.com", "a.shop.example.com"):
        assert api.patch(f"/apps/timely/domains/{host}", {"sni_endpoint": None}).json["sni_endpoint"] is None
    assert api.delete(f"/apps/timely/sni-endpoints/{name}").status_code == 200
    assert api.get("/apps/timely/sni-endpoints").json == []


def test_a_chain_in_any_order_is_put_in_order(api: Api, make: Make) -> None:
    chain, key = make("www.example.com")
    first, second = (part + "-----END CERTIFICATE-----\n" for part in chain.split("-----END CERTIFICATE-----\n")[:2])
    assert _upload(api, second + first, key).json["certificate_chain"] == chain


@pytest.mark.row("certificate-unusable")
def test_certificates_that_cannot_serve_are_refused_with_the_reason(api: Api, make: Make, tmp_path: Path) -> None:
    chain, key = make("www.example.com")
    other_chain, other_key = make("other.example.com")
    stranger = Authority(tmp_path / "stranger.pem").pem.decode()
    leaf = chain.split("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n"
    small = rsa.generate_private_key(65537, 1024)
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(*pem, serialization.BestAvailableEncryption(b"x")).decode()
    for sent, words in [
        ((chain, other_key), "does not belong to the certificate"), ((leaf + stranger, key), "chain is broken"), (("no", key), "holds no PEM"),
        ((chain, "no"), "no PEM private key"), ((chain, locked), "encrypted with a passphrase"),
        ((chain, small.private_bytes(*pem, serialization.NoEncryption()).decode()), "RSA key of 1024 bits"), (_ended(), "the certificate ended on"),
    ]:  # fmt: skip
        answer = _upload(api, *sent)
        assert answer.status_code == 422 and words in answer.json["message"], answer.json
        assert_says("certificate-unusable", answer.json["message"])
        assert "PRIVATE" not in answer.text
    assert other_chain


def _ended() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "www.example.com")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    ended = builder.not_valid_before(now() - timedelta(days=9)).not_valid_after(now() - timedelta(days=1)).sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ended.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def test_a_certificate_serves_only_domains_that_it_names(api: Api, make: Make) -> None:
    name = _upload(api, *make("www.example.com")).json["name"]
    api.post("/apps/timely/domains", {"hostname": "other.example.com"})
    answer = api.patch("/apps/timely/domains/other.example.com", {"sni_endpoint": name})
    assert answer.status_code == 422 and "is not for other.example.com" in answer.json["message"]
    assert "Davit's certificate" in api.patch("/apps/timely/domains/timely.localhost", {"sni_endpoint": name}).json["message"]
    api.post("/apps/timely/domains", {"hostname": "www.example.com", "sni_endpoint": name})
    chain, key = make("other.example.com")
    assert api.patch(f"/apps/timely/sni-endpoints/{name}", {"certificate_chain": chain, "private_key": key}).status_code == 422
    chain, key = make("www.example.com", "more.example.com")
    updated = api.patch(f"/apps/timely/sni-endpoints/{name}", {"certificate_chain": chain, "private_key": key})
    assert updated.json["name"] == name and "more.example.com" in updated.json["ssl_cert"]["cert_domains"]


def test_automatic_certificates_are_said_to_come_later(api: Api) -> None:
    for answer in (api.post("/apps/timely/acm", {}), api.patch("/apps/timely/acm", {"acm_refresh": True}), api.delete("/apps/timely/acm")):
        assert (answer.status_code, answer.json["id"]) == (501, "not_implemented") and "certs:add" in answer.json["message"]
