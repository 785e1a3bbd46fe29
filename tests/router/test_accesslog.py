"""Access lines: what a client can choose must not break the log."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.accesslog import read

BASE = {
    "route": "b0/app-id/shop/shop.localhost", "server": "web.1.abc", "ending": "----", "status": "200", "size": "12",
    "queued": "0", "connect": "1", "total": "6", "method": "GET", "began": "1763917200023", "lasted": "100",
    "request_id": "r" * 20, "client": "203.0.113.7", "code": "-", "tls": "-", "path": "/x?y=1", "said": "-",
}  # fmt: skip
SHAPE = re.compile(
    r'(sock=\w+ )?at=\w+( code=H\d\d desc="[^"]+")? method=[^ "]* path="[^" ]*" host=[^ "]+ request_id=[^ "]+ fwd="[^"]+" '
    r"dyno=[^ ]* connect=\S* service=\S* status=\d+ bytes=\d+ protocol=https?( tls_version=\S+)?"
)


def line(**values: str) -> str:
    return "\t".join({**BASE, **values}.values())


def test_an_ordinary_line() -> None:
    access = read(line())
    assert access and access.app_id == "app-id" and access.at.isoformat() == "2025-11-23T17:00:00.123000+00:00"
    assert access.text == (
        'at=info method=GET path="/x?y=1" host=shop.localhost request_id=rrrrrrrrrrrrrrrrrrrr fwd="203.0.113.7" dyno=web.1 '
        "connect=1ms service=5ms status=200 bytes=12 protocol=http"
    )


@pytest.mark.parametrize(
    ("values", "begins", "status"),
    [
        ({"ending": "SC--", "status": "503", "code": "H19"}, 'at=error code=H21 desc="Backend connection refused"', "503"),
        ({"ending": "sC--", "status": "503", "code": "H21"}, 'at=error code=H19 desc="Backend connection timeout"', "503"),
        ({"ending": "SH--", "status": "503", "code": "H12"}, 'at=error code=H12 desc="Request timeout"', "503"),
        ({"ending": "PH--", "status": "503", "code": "H13"}, 'at=error code=H17 desc="Poorly formatted HTTP response"', "503"),
        ({"ending": "PH--", "status": "400", "code": "H26"}, 'at=error code=H26 desc="Request Error"', "400"),
        ({"ending": "CH--", "status": "400", "code": "H26"}, 'sock=client at=warning code=H27 desc="Client Request Interrupted"', "499"),
        ({"ending": "cH--", "status": "400", "code": "H26"}, 'sock=client at=warning code=H28 desc="Client Connection Idle"', "499"),
        ({"ending": "SD--"}, 'sock=backend at=error code=H18 desc="Server Request Interrupted"', "503"),
        ({"ending": "sD--"}, 'at=error code=H15 desc="Idle connection"', "503"),
        ({"ending": "CD--"}, 'sock=client at=warning code=H27 desc="Client Request Interrupted"', "499"),
        ({"ending": "CH--", "status": "-1"}, 'sock=client at=warning code=H27 desc="Client Request Interrupted"', "499"),
        ({"ending": "cD--", "status": "-1"}, 'sock=client at=warning code=H28 desc="Client Connection Idle"', "499"),
        ({"ending": "CD--", "status": "101"}, "at=info method=", "101"),
        ({"ending": "LR--", "status": "503", "code": "H80"}, 'at=info code=H80 desc="Maintenance mode"', "503"),
        ({"ending": "LR--", "status": "417", "code": "417"}, "at=error method=", "417"),
    ],
)
def test_how_a_request_ended(values: dict[str, str], begins: str, status: str) -> None:
    access = read(line(**values))
    assert access and access.text.startswith(begins) and f" status={status} " in access.text


def test_tls_is_named() -> None:
    access = read(line(tls="TLSv1.3"))
    assert access and access.text.endswith("protocol=https tls_version=tls1.3")


@pytest.mark.parametrize(
    "target, path",
    [("http://shop.localhost/a?b=c", "/a?b=c"), ("https://shop.localhost?b", "/?b"), ("HTTP://shop.localhost", "/"), ("*", "*")],
)
def test_a_target_in_absolute_form_is_logged_as_its_path(target: str, path: str) -> None:
    access = read(line(path=target))
    assert access and f' path="{path}" ' in access.text


@pytest.mark.parametrize(
    "text", ["", "\t" * 16, "no tabs", line(route="refuse///"), line(route="-"), line(began="x"), line()[:30]]
)
def test_lines_that_belong_to_no_app_are_left_out(text: str) -> None:
    assert read(text) is None


@given(st.text(max_size=200))
def test_any_text_can_come(text: str) -> None:
    read(text)


NO_TAB = st.text(st.characters(exclude_characters="\t"), max_size=60)


@given(NO_TAB, NO_TAB, st.text(max_size=60), NO_TAB)
def test_what_a_client_chooses_cannot_break_the_shape(method: str, path: str, said: str, total: str) -> None:
    access = read(line(method=method, path=path, said=said, total=total))
    assert access and SHAPE.fullmatch(access.text), access
    assert access.text.isascii() and access.text.isprintable()
