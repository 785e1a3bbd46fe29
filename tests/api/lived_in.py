"""One of everything, all of it the owner's: the ids by the names that paths have for them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from state import builds, db, web_sessions
from state.models import Account, App, Dyno
from state.releases import current
from tests.api.conftest import Api, give_code

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG" + "A" * 42 + " me@laptop"
FRIEND = "friend@example.com"
"""Somebody who works on the app, too, and was offered it."""
SECOND = "second"
"""Another app of the owner's, in the same pipeline."""


def fill(api: Api) -> dict[str, str]:
    """Make it, through the API where that makes such things; the app is ``timely``, its pipeline ``the-line``."""
    slug = give_code(api.app_id).slug_id
    assert slug
    places = {"slug": slug, "user": "~", "build": _rows(api), "session": _browser()}
    hook = {"url": "https://203.0.113.9/", "include": ["api:app"], "level": "notify"}
    archive = {"source_blob": {"url": "https://203.0.113.9/x.tgz"}}
    made: dict[str, tuple[str, dict[str, object]]] = {
        "webhook": ("/apps/timely/webhooks", hook), "drain": ("/apps/timely/log-drains", {"url": "https://203.0.113.9/"}),
        "endpoint": ("/apps/timely/sni-endpoints", certificate(api.home, "www.example.com")), "authorization": ("/oauth/authorizations", {}),
        "token": ("/oauth/authorizations", {}), "client": ("/oauth/clients", {"name": "x", "redirect_uri": "https://example.com/"}),
        "key": ("/account/keys", {"public_key": KEY}), "setup": ("/app-setups", archive),
    }  # fmt: skip
    for name, (path, sent) in made.items():
        places[name] = _made(api, path, sent)
    _made(api, "/davit/accounts", {"email": FRIEND}, as_="admin")
    _made(api, "/apps/timely/collaborators", {"user": FRIEND})
    _made(api, "/apps", {"name": SECOND})
    _made(api, "/pipelines", {"name": "the-line"})
    places["coupling"] = _made(api, "/pipeline-couplings", {"pipeline": "the-line", "app": "timely", "stage": "staging"})
    _made(api, "/pipeline-couplings", {"pipeline": "the-line", "app": SECOND, "stage": "production"})
    promotion = {"pipeline": {"id": "the-line"}, "source": {"app": "timely"}, "targets": [{"app": SECOND}]}
    places["promotion"] = _made(api, "/pipeline-promotions", promotion)
    places["transfer"] = _made(api, "/account/app-transfers", {"app": "timely", "recipient": FRIEND})
    assert api.patch("/apps/timely", {"maintenance": True}).status_code == 200  # the webhook is told
    (event,) = api.get("/apps/timely/webhook-events").json
    (delivery,) = api.get("/apps/timely/webhook-deliveries").json
    return places | {"event": event["id"], "delivery": delivery["id"]}


def _made(api: Api, path: str, sent: dict[str, object], *, as_: str = "owner") -> str:
    answer = api.post(path, sent, as_=as_)
    assert answer.status_code in (201, 202), (path, answer.text)
    return str(answer.json["id"])


def _rows(api: Api) -> str:
    """A dyno that runs, and a build; gives the build's id."""
    with db.transaction() as session:
        app, release = session.get_one(App, api.app_id), current(session, api.app_id)
        assert release
        session.add(
            Dyno(app_id=app.id, release_id=release.id, release_version=release.version, name="web.1", type="web",
                 size="basic", command="python app.py", state="up")
        )  # fmt: skip
        return builds.create(session, app, app.owner, commit="ab" * 20, buildpacks=["heroku/python"]).id


def _browser() -> str:
    with db.transaction() as session:
        owner = session.query(Account).filter_by(email="owner@example.com").one()
        return web_sessions.start(session, owner, "Firefox on Linux")[1].id


def certificate(home: Path, host: str) -> dict[str, object]:
    """A new one for this host, as it is uploaded."""
    key, chain = home / "key.pem", home / "chain.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={host}"]
    subprocess.run([*words, "-keyout", key, "-out", chain], check=True, capture_output=True)
    return {"certificate_chain": chain.read_text(), "private_key": key.read_text()}
