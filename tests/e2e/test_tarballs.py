"""Deploys without git: a tarball is uploaded, built, and serves; what was made can be downloaded."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time

import httpx

from tests.e2e.world import App, Davit, eventually, tiny


def _tarball(files: dict[str, str], top: str = "project/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _build(client: httpx.Client, app: str, data: bytes, checksum: str) -> str:
    """Upload, build, and follow the output to its end; returns it."""
    blob = client.post("/sources", json={}).json()["source_blob"]
    assert httpx.put(blob["put_url"], content=data, timeout=60, trust_env=False).status_code == 200
    made = client.post(f"/apps/{app}/builds", json={"source_blob": {"url": blob["get_url"], "checksum": checksum, "version": "v7"}})
    assert made.status_code == 201, made.text
    return httpx.get(made.json()["output_stream_url"], timeout=240, trust_env=False).text


def test_a_tarball_is_a_deploy(davit: Davit) -> None:
    app = davit.create()
    data = _tarball(tiny("first"))
    with davit.client() as client:
        said = _build(client, app.name, data, f"SHA256:{hashlib.sha256(data).hexdigest()}")
        assert "Released v" in said, said
        app.assert_serves("first")
        assert "checksum" in _build(client, app.name, data, "0" * 64)
        app.assert_serves("first")
        [deploy] = [release for release in app.releases() if release["description"] == "Deploy v7"]
        slug = client.get(f"/apps/{app.name}/slugs/{deploy['slug']['id']}").json()
        tar = httpx.get(slug["blob"]["url"], timeout=120, trust_env=False).content
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        assert "./app/Procfile" in opened.getnames()


def test_a_slug_of_ones_own_is_released_without_a_build(davit: Davit) -> None:
    app = davit.create()
    files = tiny("own")
    command = files.pop("Procfile").partition("web:")[2].strip()
    with davit.client() as client:
        slug = client.post(f"/apps/{app.name}/slugs", json={"process_types": {"web": command}}).json()
        put = httpx.put(slug["blob"]["url"], content=_tarball(files, "./app/"), timeout=240, trust_env=False)
        assert put.status_code == 200, put.text
        made = client.post(f"/apps/{app.name}/releases", json={"slug": slug["id"]})
        assert made.status_code == 201, made.text
        deadline = time.monotonic() + 120
        while (release := client.get(f"/apps/{app.name}/releases/{made.json()['id']}").json())["status"] == "pending":
            assert time.monotonic() < deadline, release
            time.sleep(0.2)
    assert release["status"] == "succeeded", release
    app.assert_serves("own")


APP_JSON = """
{
  "env": {"GREETING": {"value": "well met"}, "SECRET": {"generator": "secret"}, "WANTED": {"required": true}},
  "formation": {"web": {"quantity": 2}},
  "scripts": {"postdeploy": "echo $WANTED ${#SECRET} after $DYNO"}
}
"""


def test_an_app_json_sets_an_app_up(davit: Davit) -> None:
    with davit.client() as client:
        blob = client.post("/sources", json={}).json()["source_blob"]
        data = _tarball({**tiny("set-up"), "app.json": APP_JSON})
        assert httpx.put(blob["put_url"], content=data, timeout=60, trust_env=False).status_code == 200
        asked = {"source_blob": {"url": blob["get_url"]}, "overrides": {"env": {"WANTED": "this"}}}
        made = client.post("/app-setups", json=asked)
        assert made.status_code == 202, made.text
        deadline = time.monotonic() + 240
        while (setup := client.get(f"/app-setups/{made.json()['id']}").json())["status"] == "pending":
            assert time.monotonic() < deadline, setup
            time.sleep(0.2)
        assert setup["status"] == "succeeded", setup
        config = client.get(f"/apps/{setup['app']['name']}/config-vars").json()
    assert config["WANTED"] == "this" and config["GREETING"] == "well met" and len(config["SECRET"]) == 64
    assert setup["postdeploy"] == {"exit_code": 0, "output": setup["postdeploy"]["output"]}
    assert setup["postdeploy"]["output"].startswith("this 64 after ")
    app = App(davit, setup["app"]["name"], davit.home)
    eventually(lambda: sorted(dyno["state"] for dyno in app.dynos() if dyno["type"] == "web") == ["up", "up"], "two dynos")
    app.assert_serves("set-up well met")
