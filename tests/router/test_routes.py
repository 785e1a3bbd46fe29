"""From rows to routes: pure, and read from both kinds of rows' sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from router.routes import AppRows, DynoRow, dyno_name, normal_host, read_rows, route, server_name
from state import models


def dyno(**values: object) -> DynoRow:
    usual: dict[str, object] = {
        "id": "d1", "name": "web.1", "state": "up", "routed": True, "leaving": False, "address": "198.18.0.5", "port": 5000,
    }  # fmt: skip
    return DynoRow(**{**usual, **values})  # type: ignore[arg-type]


def rows(*dynos: DynoRow, **values: object) -> AppRows:
    usual: dict[str, object] = {"web_quantity": 2, "process_types": {"web": "serve"}}
    return AppRows("a1", "shop", dynos=list(dynos), **{**usual, **values})  # type: ignore[arg-type]


STARTING, CRASHED = dyno(state="starting", routed=False, address=None), dyno(id="d2", state="crashed", routed=False)


@pytest.mark.parametrize(
    ("given", "state"),
    [
        (rows(dyno()), None),
        (rows(dyno(), CRASHED), None),
        (rows(dyno(), maintenance=True), "maintenance"),
        (rows(process_types=None), "blank"),
        (rows(process_types=None, web_quantity=0), "blank"),
        (rows(web_quantity=0), "noweb"),
        (rows(process_types={"worker": "x"}), "noweb"),
        (rows(), "starting:100"),
        (rows(STARTING), "starting:100"),
        (rows(STARTING, CRASHED), "starting:100"),
        (rows(CRASHED), "crashed"),
        (rows(dyno(routed=False, held=True)), "starting:2000"),  # it moves
        (rows(dyno(routed=False)), "starting:100"),  # it is up, and about to be routed to
        (rows(CRASHED, dyno(routed=False, held=True, state="crashed")), "crashed"),
        (rows(CRASHED, dyno(routed=False, held=True, leaving=True)), "crashed"),
        (rows(CRASHED, dyno(routed=False, leaving=True)), "crashed"),
        (rows(dyno(address=None)), "starting:100"),
        (rows(dyno(address="not an address")), "starting:100"),
    ],
)
def test_why_an_app_answers_or_not(given: AppRows, state: str | None) -> None:
    assert route(given, "localhost").state == state


def test_only_routed_dynos_get_requests() -> None:
    made = route(rows(dyno(), dyno(id="d3", name="web.2", routed=False), dyno(id="d4", leaving=True)), "localhost")
    assert {target.server for target in made.targets} == {"web.1.d1", "web.1.d4"}


def test_impossible_domains_are_left_out() -> None:
    made = route(rows(domains=["Good.Example.", "bad host", "", "a b;set server", "x\ny", "*.wild.example"]), "Apps.Example")
    assert made.hosts == {"shop.apps.example", "good.example"}


@given(st.text(max_size=300))
def test_a_normal_host_is_harmless_and_stays_normal(text: str) -> None:
    host = normal_host(text)
    if host is not None:
        assert normal_host(host) == host
        assert host == host.lower() and not set(host) & set(" :;/\n\t\\#'\"")


@given(st.from_regex(r"[A-Za-z0-9-]{1,40}(\.[A-Za-z0-9-]{1,20}){0,3}", fullmatch=True), st.sampled_from(["", ".", ":80", ".:80"]))
def test_case_port_and_trailing_dot_make_no_difference(host: str, after: str) -> None:
    assert normal_host(host.upper() + after) == normal_host(host)


@given(st.uuids(), st.from_regex(r"[a-z]{1,10}\.[0-9]{1,4}", fullmatch=True))
def test_a_servers_name_tells_the_dynos(id: object, name: str) -> None:
    assert dyno_name(server_name(str(id), name)) == name


def test_the_database_is_read() -> None:
    engine = create_engine("sqlite://")
    models.Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(models.Account(id="u", email="u@example.com"))
        for name in ("one", "two", "new", "going"):
            session.add(
                models.App(id=name, name=name, owner_id="u", config=b"", destroying=name == "going", maintenance=name == "two")
            )
        session.add(models.Slug(id="s", app_id="one", stack="davit-13"))
        common = {"app_id": "one", "account_id": "u", "config": b"", "description": ""}
        session.add(
            models.Release(
                id="r1", version=1, current=False, status="succeeded", slug_id="s", process_types={"old": "x"}, **common
            )
        )
        session.add(
            models.Release(
                id="r2", version=2, current=True, status="succeeded", slug_id="s", process_types={"web": "x"}, **common
            )
        )
        session.add(models.Release(id="r3", version=3, status="pending", slug_id="s", process_types={"next": "x"}, **common))
        session.add(models.Formation(app_id="one", type="web", quantity=3))
        session.add(models.Formation(app_id="one", type="worker", quantity=7))
        session.add(models.Domain(app_id="one", hostname="www.example.com"))
        usual = {"app_id": "one", "size": "basic", "command": "x", "address": "198.18.0.2", "port": 5000}
        session.add(models.Dyno(id="d1", name="web.1", type="web", state="up", routed=True, held=True, **usual))
        session.add(models.Dyno(id="d2", name="worker.1", type="worker", state="up", **usual))
        session.add(models.Dyno(id="d3", name="run.1234", type="web", state="up", one_off=True, **usual))
        session.commit()
        read = {one.app_id: one for one in read_rows(session)}
        assert set(read) == {"one", "two", "new"}
        one = read["one"]
        assert one.process_types == {"web": "x"}
        assert (one.web_quantity, one.domains, [(row.id, row.held) for row in one.dynos]) == (3, ["www.example.com"], [("d1", True)])
        assert read["two"].maintenance and read["new"].process_types is None
        assert read_rows(session, ["one", "going", "nobody"]) == [one]
