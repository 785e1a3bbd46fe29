"""heroku3, the Python client of the Platform API, against an API that answers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import heroku3
import pytest
from heroku3.rendezvous import Rendezvous
from sqlalchemy import select

from logs import stream
from state import db
from state.db import upgrade
from state.models import Dyno, new_id
from tests.api.conftest import use_home
from tests.api.lived_in import KEY
from tests.cli.living import Davit, serving


@pytest.fixture(scope="module")
def davit(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Davit]:
    home = Path(tempfile.mkdtemp(prefix="dvh", dir="/tmp"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            use_home(home, patch, REDIS_URL=redis_server)
            upgrade()
            with serving(home, tmp_path_factory.mktemp("work"), redis_server) as living:
                yield living
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def client(davit: Davit, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("heroku3.api.HEROKU_URL", davit.url)
    return heroku3.from_key((davit.home / "owner-token").read_text().strip())


def test_an_app_lives_from_its_creation_to_its_end(davit: Davit, client: Any) -> None:
    assert client.account().email == "owner@localhost"
    app = client.create_app(name="pythonic", stack_id_or_name="cedar")
    assert app.name == "pythonic" and "pythonic" in {one.name for one in client.apps()}
    davit.has_code("pythonic", {"web": "python app.py", "worker": "python work.py"})
    app.config()["A"] = "1"
    app.update_config({"B": "2"})
    assert app.config().to_dict() == {"A": "1", "B": "2"}
    app.scale_formation_process("worker", 2)
    assert app.process_formation()["worker"].quantity == 2
    versions = [release.version for release in app.releases(order_by="version", limit=2, sort="desc")]
    assert versions == sorted(versions, reverse=True)
    app.rollback("v2")
    assert [row.hostname for row in app.domains()] == ["pythonic.localhost"]
    app.enable_maintenance_mode()
    assert client.app("pythonic").maintenance
    app.disable_maintenance_mode()
    assert [one.user.email for one in app.collaborators()] == ["owner@localhost"]
    started = app.run_command_detached("sleep 600")
    assert [(dyno.name, dyno.command, dyno.state) for dyno in app.dynos()] == [(started.name, "sleep 600", "up")]
    with db.transaction() as session:
        session.add(Dyno(id=new_id(), app_id=str(app.id), name="web.1", type="web", size="basic", command="python app.py", state="up"))
    app.restart()
    with db.snapshot() as session:
        asked = {dyno.name: dyno.restart_requested for dyno in session.scalars(select(Dyno).where(Dyno.app_id == str(app.id)))}
    assert asked == {started.name: False, "web.1": True}
    told = stream.connect(davit.env["REDIS_URL"])
    _say(told, app, "web.1", "hello")
    assert app.get_log(lines=50).endswith("app[web.1]: hello\n")
    app.delete()
    assert "pythonic" not in {one.name for one in client.apps()}


def test_builds_features_keys_and_a_log_that_is_followed(davit: Davit, client: Any) -> None:
    app = client.create_app(name="further")
    davit.has_code("further", {"web": "python app.py"})
    build = app.create_build("https://203.0.113.9/code.tgz", version="v1", buildpack_urls=["https://example.com/pack.git"])
    assert build.status == "pending"
    assert [one.id for one in app.builds()] == [build.id]
    assert not app.features()["runtime-dyno-metadata"].enabled
    app.enable_feature("runtime-dyno-metadata")
    assert app.features()["runtime-dyno-metadata"].enabled
    app.disable_feature("runtime-dyno-metadata")
    assert not app.features()["runtime-dyno-metadata"].enabled
    assert {one.name for one in client.features()}
    client._http_resource("POST", ("account", "keys"), data=json.dumps({"public_key": KEY})).raise_for_status()
    (key,) = client.keys()
    assert key.comment == "me@laptop"
    key.delete()
    assert not client.keys()
    told = stream.connect(davit.env["REDIS_URL"])
    _say(told, app, "web.1", "before")
    lines = app.stream_log(dyno="web.1", lines=1, timeout=60)
    assert _said(lines) == "before"
    for word in ("first", "second"):  # each line when it is said, however short, and no other dyno's
        _say(told, app, "worker.1", "another's")
        _say(told, app, "web.1", word)
        assert _said(lines) == word
    assert [line.split(": ")[1] for line in app.get_log(dyno="web.1", lines=2).splitlines()] == ["first", "second"]
    assert "another's" not in app.get_log(source="app", dyno="web") and "web.1" not in app.get_log(source="heroku")
    app.delete()


def _say(told: Any, app: Any, process: str, text: str) -> None:
    stream.emit(told, str(app.id), [stream.Line(datetime.now(timezone.utc), "app", process, text)], wait=5)


def _said(lines: Iterator[bytes]) -> str:
    return next(lines).decode().split(": ", 1)[1]


def test_a_command_is_run_attached_though_its_secret_ends_without_a_line_end(
    davit: Davit, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trusting(Rendezvous):  # type: ignore[misc]
        """With Davit's authority in the place of Heroku's, which the library brings along."""

        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            self.cert = str(davit.home / "keys" / "ca.pem")

    monkeypatch.setattr("heroku3.models.app.Rendezvous", Trusting)
    app = client.create_app(name="attached")
    davit.has_code("attached", {"web": "python app.py"})
    said, dyno = app.run_command("echo from the dyno", printout=False)
    assert said.replace("\r\n", "\n") == "from the dyno\n" and dyno.command == "echo from the dyno"
    app.delete()
