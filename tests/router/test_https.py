"""HTTPS: the own authority, the default certificate, others by name, HTTP/2 by ALPN."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundation.authority import Authority
from foundation.settings import from_environment
from router import certificates
from router.certificates import Bound
from tests.conftest import wait_until
from tests.ports import free_port
from tests.router.apps import Client, TinyApp
from tests.router.conftest import Davit

Make = Callable[[], TinyApp]


@pytest.fixture(scope="module")
def secure() -> Iterator[tuple[Davit, int]]:
    home = Path(tempfile.mkdtemp(prefix="dvr", dir="/tmp"))
    port = free_port()
    # a certificate that somebody put there for a domain of their own
    other = from_environment({"DAVIT_HOME": str(home / "other"), "DAVIT_DOMAIN": "shop.example"})
    (home / "keys/tls.d").mkdir(parents=True)
    certificates.ensure(other)
    shutil.copy(home / "other/keys/tls.pem", home / "keys/tls.d/shop.pem")
    davit = Davit(home, DAVIT_HTTPS=f"127.0.0.1:{port}", DAVIT_DOMAIN="apps.example")
    try:
        davit.start()
        yield davit, port
    finally:
        davit.close()
        shutil.rmtree(home, ignore_errors=True)


def curl(home: Path, port: int, host: str, *options: str, authority: str = "keys/ca.pem") -> str:
    words = ["curl", "-sS", "--cacert", str(home / authority), "--connect-to", f"{host}:443:127.0.0.1:{port}", "-o", "/dev/null"]
    done = subprocess.run(
        [*words, "-w", "%{http_code} %{http_version}", *options, f"https://{host}/tls"], capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_https_with_http2_and_http1(secure: tuple[Davit, int], tiny: Make) -> None:
    davit, port = secure
    app = tiny()
    davit.app("safe", app.dyno())
    home = davit.settings.home
    assert curl(home, port, "safe.apps.example") == "200 2"
    assert "x-forwarded-proto: https" in app.seen[-1].lower() and f"x-forwarded-port: {port}\r\n" in app.seen[-1].lower()
    assert curl(home, port, "safe.apps.example", "--http1.1") == "200 1.1"
    assert davit.log("safe", "protocol=https").endswith("protocol=https tls_version=tls1.3")
    assert Client(davit.port, "safe.apps.example").get().status == 200


def test_another_certificate_is_chosen_by_name(secure: tuple[Davit, int], tiny: Make) -> None:
    davit, port = secure
    davit.app("shop", tiny().dyno(), domains=["www.shop.example"])
    home = davit.settings.home
    assert curl(home, port, "www.shop.example", authority="other/keys/ca.pem") == "200 2"
    assert "certificate" in curl(home, port, "www.shop.example")


def test_old_tls_is_refused(secure: tuple[Davit, int]) -> None:
    davit, port = secure
    assert "200" not in curl(davit.settings.home, port, "safe.apps.example", "--tls-max", "1.1")


def test_keys_are_secret_and_stay_the_same(home: Path) -> None:
    settings = from_environment({"DAVIT_HOME": str(home), "DAVIT_HTTPS": "127.0.0.1:0"})
    (default,) = certificates.ensure(settings)
    before = default.read_bytes()
    for name in ("tls.pem", "ca.pem"):
        assert stat.S_IMODE((home / "keys" / name).stat().st_mode) == 0o600
    stamp = certificates.stamp(settings)
    certificates.ensure(settings)
    assert default.read_bytes() == before and certificates.stamp(settings) == stamp
    assert ssl.PEM_cert_to_DER_cert(before.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----")


def test_a_https_request_keeps_its_scheme_over_a_reload(secure: tuple[Davit, int], tiny: Make) -> None:
    import http.client

    davit, port = secure
    app = tiny()
    davit.app("renew", app.dyno())
    context = ssl.create_default_context(cafile=str(davit.settings.home / "keys/ca.pem"))
    kept = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    context.check_hostname = False
    for path in ("/before", "/over"):
        kept.request("GET", path, headers={"Host": "renew.apps.example"})
        assert kept.getresponse().read()
        assert "x-forwarded-proto: https" in app.seen[-1].lower()
        if path == "/before":
            davit.reload()
    assert "protocol=https" in davit.log("renew", "/over")
    kept.close()


def test_an_uploaded_certificate_serves_its_domain_and_no_other_and_changes_without_a_lost_request(
    secure: tuple[Davit, int], tiny: Make
) -> None:
    davit, port = secure
    home = davit.settings.home
    davit.app("victim", tiny().dyno())
    davit.app("theirs", tiny().dyno(), domains=["www.theirs.example"])
    theirs = Authority(home / "theirs-ca.pem")

    def upload(*names: str, id: str = "one") -> None:
        chain, mark, key = theirs.issue(names).decode().partition("-----BEGIN PRIVATE")
        davit.bound = [Bound(id, chain, mark + key, ("www.theirs.example",))]
        davit.sync("theirs")

    pids, failures, stop = set(), [], threading.Event()

    def visit() -> None:
        while not stop.is_set():
            said = curl(home, port, "victim.apps.example")
            if said != "200 2":
                failures.append(said)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        for names in (("www.theirs.example", "victim.apps.example"), ("www.theirs.example", "more.theirs.example")):
            upload(*names)
            pids.add(davit.router.status()["haproxy"])
            # the worker of before may take a connection more in the moment of the change
            wait_until(lambda: curl(home, port, "www.theirs.example", authority="theirs-ca.pem") == "200 2", "the new certificate")
            assert curl(home, port, "victim.apps.example") == "200 2", "a name that the certificate merely claims"
        davit.bound = [Bound("bad", "no certificate", "no key", ("www.theirs.example",))]
        davit.sync("theirs")  # HAProxy would not start with it
        wait_until(lambda: "certificate" in curl(home, port, "www.theirs.example", authority="theirs-ca.pem"), "it is gone")
    finally:
        stop.set()
        visitor.join()
    assert len(pids) == 2 and not failures
    assert sorted(path.name for path in (home / "keys/endpoints").iterdir()) == []
