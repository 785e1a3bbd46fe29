"""Settings are parsed once, and what cannot be used is told with an example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.settings import Address, SettingError, from_environment


def test_the_defaults_make_a_whole_davit() -> None:
    chosen = from_environment({})
    assert str(chosen.home) == "/var/lib/davit" and str(chosen.http) == "127.0.0.1:8080"
    assert chosen.database_url == "sqlite:////var/lib/davit/davit.db"
    assert chosen.effective_redis_url == "unix:///var/lib/davit/run/redis.sock"
    assert chosen.app_url("hello") == "http://hello.localhost:8080/"


def test_an_empty_variable_counts_as_unset() -> None:
    assert from_environment({"DAVIT_HTTP": "", "REDIS_URL": ""}) == from_environment({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DAVIT_HOME", "relative/path"), ("DAVIT_HTTP", "8080"), ("DAVIT_HTTP", "127.0.0.1:99999"), ("DAVIT_API", "host:http"),
        ("DAVIT_BUILD_TIMEOUT", "soon"), ("DAVIT_BUILD_SLOTS", "0"), ("DAVIT_STACKS", "stacks"), ("DAVIT_SLUGS", "s3://bucket"),
        ("DAVIT_ENGINE", "cluster"), ("DAVIT_NAMES", "https://davit.example.com"), ("DAVIT_NAMES", "bücher..example"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingError, match=variable):
        from_environment({variable: value})


def test_davits_names_are_written_as_browsers_send_them() -> None:
    named = from_environment({"DAVIT_NAMES": "Davit.example.com., bücher.example"}).names
    assert named == ("davit.example.com", "xn--bcher-kva.example")


def test_the_usual_port_is_not_in_an_apps_url() -> None:
    assert from_environment({"DAVIT_HTTP": "0.0.0.0:80", "DAVIT_DOMAIN": "example.com"}).app_url("a") == "http://a.example.com/"
    https = {"DAVIT_HTTPS": "0.0.0.0:443", "DAVIT_DOMAIN": "example.com"}
    assert from_environment(https).app_url("a") == "https://a.example.com/"


@given(st.ip_addresses(v=6), st.integers(0, 65535))
def test_an_ipv6_address_comes_back_as_it_was_written(ip: object, port: int) -> None:
    chosen = from_environment({"DAVIT_HTTP": f"[{ip}]:{port}"}).http
    assert chosen == Address(str(ip), port) and str(chosen) == f"[{ip}]:{port}"


def test_a_wildcard_is_reached_by_the_loopback() -> None:
    assert str(Address("0.0.0.0", 5000).reachable) == "127.0.0.1:5000" and str(Address("::", 5000).reachable) == "[::1]:5000"
