"""Operations on what is true, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from cli.host import home
from foundation.authority import Authority
from foundation.clock import now
from foundation.errors import Conflict, Forbidden, InvalidParams, NotFound, Unauthorized
from foundation.settings import settings
from state import accounts, apps, builds, config, db, domains, formation, health, own_names, releases, sleep, vault, web_sessions
from state.models import Account, App, AuditEvent, Domain, Release, Slug
from tests.e2e.errors_page import assert_says
from tests.state.waiting import until_one_waits

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJv0h0bZKkXqT8i0S7m0m1y2oO5yY3m0n5m1y2oO5yY3 ann@laptop"


def deploy(session: Session, app: App, owner: Account, digest: str = "sha256:aa", **types: str) -> Release:
    """A release with code, as the builder makes it, brought up as the runtime does."""
    slug = Slug(app_id=app.id, digest=digest, size=1, stack=app.stack, process_types=types or {"web": "serve"})
    session.add(slug)
    session.flush()
    release = releases.create(session, app, owner, kind="deploy", description="Deploy abc1234", slug=slug)
    session.flush()
    session.refresh(release)
    releases.succeed(session, release)
    return release


def test_a_new_app_has_a_first_release_and_a_domain(session: Session, owner: Account) -> None:
    app = apps.create(session, owner, "bright-bay")
    first = releases.current(session, app.id)
    assert first is not None and (first.version, first.description, first.status) == (1, "Initial release", "succeeded")
    assert [domain.hostname for domain in domains.all_of(session, app)] == ["bright-bay.localhost"]


@pytest.mark.parametrize("name", ["", "ab", "Upper", "1abc", "abc-", "a" * 31, "a b", "a/b", "a\n", "www"])
def test_an_impossible_app_name_is_refused_with_the_rule(session: Session, owner: Account, name: str) -> None:
    with pytest.raises(InvalidParams, match="Name"):
        apps.create(session, owner, name)


def test_a_taken_name_is_refused(session: Session, owner: Account, stranger: Account) -> None:
    apps.create(session, owner, "bright-bay")
    with pytest.raises(Conflict, match="already taken"):
        apps.create(session, stranger, "bright-bay")


def test_an_absent_and_a_foreign_app_are_the_same_to_a_stranger(session: Session, owner: Account, stranger: Account) -> None:
    apps.create(session, owner, "bright-bay")
    with pytest.raises(NotFound) as foreign:
        apps.find(session, stranger, "bright-bay")
    with pytest.raises(NotFound) as absent:
        apps.find(session, stranger, "no-such-app")
    assert foreign.value.message == absent.value.message


def test_a_collaborator_may_do_what_was_granted_and_no_more(session: Session, owner: Account, stranger: Account) -> None:
    app = apps.create(session, owner, "bright-bay")
    apps.add_collaborator(session, owner, app, stranger.email, ["view", "deploy"])
    assert apps.find(session, stranger, "bright-bay", "deploy").id == app.id
    with pytest.raises(Forbidden):
        apps.find(session, stranger, "bright-bay", "manage")
    apps.remove_collaborator(session, owner, app, stranger.email)
    with pytest.raises(NotFound):
        apps.find(session, stranger, "bright-bay")


def test_a_token_works_until_it_expires(session: Session, owner: Account) -> None:
    text, _ = accounts.issue_token(session, owner, "laptop", lifetime=timedelta(hours=1))
    assert accounts.authenticate_token(session, text).id == owner.id
    with pytest.raises(Unauthorized):
        accounts.find_token(session, text, at=now() + timedelta(hours=2))
    with pytest.raises(Unauthorized):
        accounts.authenticate_token(session, text + "x")


def test_a_token_is_not_in_the_database(session: Session, owner: Account) -> None:
    text, token = accounts.issue_token(session, owner, "laptop")
    assert text not in (token.sha256, token.description, token.id)


def test_an_ssh_key_belongs_to_one_account(session: Session, owner: Account, stranger: Account) -> None:
    accounts.add_key(session, owner, KEY)
    found = accounts.authenticate_key(session, KEY.rsplit(" ", 1)[0])
    assert found is not None and found.id == owner.id
    with pytest.raises(Conflict):
        accounts.add_key(session, stranger, KEY)
    accounts.remove_key(session, owner, "ann@laptop")
    assert accounts.authenticate_key(session, KEY) is None


@pytest.mark.parametrize(
    "text", ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 !!!", "-----BEGIN OPENSSH PRIVATE KEY-----"]
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidParams, match="SSH public key"):
        accounts.parse_key(text)


def test_every_config_change_is_a_release_and_no_change_is_none(session: Session, owner: Account) -> None:
    app = apps.create(session, owner, "bright-bay")
    release = config.change(session, owner, app, {"A": "1", "B": "two"})
    assert release is not None and (release.version, release.description) == (2, "Set A, B config vars")
    assert config.change(session, owner, app, {"A": "1"}) is None
    removed = config.change(session, owner, app, {"A": None, "C": "3"})
    assert removed is not None and removed.description == "Set C config vars, Remove A config vars"
    assert config.read(app) == {"B": "two", "C": "3"}


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "Ä", "PORT", "DYNO", "../x"])
def test_an_impossible_config_var_name_is_refused(session: Session, owner: Account, name: str) -> None:
    app = apps.create(session, owner)
    with pytest.raises(InvalidParams, match="Config var"):
        config.change(session, owner, app, {name: "x"})


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # on SQLite a writer waits before it reads anything
def test_a_release_has_the_config_vars_that_others_set_since_its_app_was_loaded(database: str) -> None:
    with db.transaction() as session:
        owner = accounts.create(session, None, "ann@example.com")
        app = apps.create(session, owner, "bright-bay")
        config.change(session, owner, app, {"LEAKED": "1"})
    with db.transaction() as session:
        loaded = session.get_one(App, app.id)
        with db.transaction() as other:
            config.change(other, owner, other.get_one(App, app.id), {"NEW": "1", "LEAKED": None})
        release = releases.create(session, loaded, owner, kind="deploy", description="Deploy abc1234")
        assert (release.version, releases.config_of(release)) == (4, {"NEW": "1"})


def test_config_vars_have_a_size_limit(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    config.change(session, owner, app, {"A": "x" * (config.LIMIT - 1)})
    with pytest.raises(InvalidParams, match="64 KB"):
        config.change(session, owner, app, {"B": "y"})


def test_config_vars_are_not_readable_in_the_database(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    config.change(session, owner, app, {"SECRET": "hunter2hunter2"})
    events = [str(event.details) for event in session.scalars(select(AuditEvent))]
    assert b"hunter2" not in app.config and not any("hunter2" in event for event in events)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    values=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True), st.text().filter(lambda v: "\x00" not in v))
)
def test_config_vars_come_back_as_they_were_set(database: str, values: dict[str, str]) -> None:
    values = {k: v for k, v in values.items() if k not in ("PORT", "DYNO") and v.encode(errors="ignore").decode() == v}
    assert vault.reveal(vault.seal(values)) == values


def test_a_rollback_is_a_new_release_with_code_config_and_types_of_then(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    config.change(session, owner, app, {"A": "then"})
    then = deploy(session, app, owner, "sha256:aa", web="old", worker="work")
    config.change(session, owner, app, {"A": "now"})
    for pending in session.scalars(select(Release).where(Release.status == "pending")):
        releases.succeed(session, pending)
    deploy(session, app, owner, "sha256:bb", web="new")
    back = releases.rollback(session, owner, app, then)
    assert back.description == f"Rollback to v{then.version}" and back.version == 6
    assert back.slug_id == then.slug_id and back.process_types == {"web": "old", "worker": "work"}
    assert releases.config_of(back) == {"A": "then"} and config.read(app) == {"A": "now"}
    releases.succeed(session, back)
    assert config.read(app) == {"A": "then"}


def rolled_back(session: Session, owner: Account) -> tuple[App, Release]:
    """An app whose v2 had A=then, and which has A=now and B=new since; with the rollback to v2 that waits."""
    app = apps.create(session, owner)
    config.change(session, owner, app, {"A": "then"})
    then = deploy(session, app, owner, "sha256:aa")
    changed = config.change(session, owner, app, {"A": "now", "B": "new"})
    assert changed is not None
    releases.succeed(session, changed)
    return app, releases.rollback(session, owner, app, then)


def test_a_rollback_that_fails_leaves_the_config_vars_as_they_are(session: Session, owner: Account) -> None:
    app, back = rolled_back(session, owner)
    releases.fail(session, back, "app did not start", "web.1 ended")
    assert config.read(app) == {"A": "now", "B": "new"}
    assert releases.config_of(deploy(session, app, owner, "sha256:bb")) == {"A": "now", "B": "new"}


def test_what_was_set_after_a_rollback_was_asked_for_is_newer_than_it(session: Session, owner: Account) -> None:
    app, back = rolled_back(session, owner)
    change = config.change(session, owner, app, {"C": "newer", "B": "newer"})
    assert change is not None
    slug = Slug(app_id=app.id, digest="sha256:cc", size=1, stack=app.stack, process_types={"web": "serve"})
    session.add(slug)
    push = releases.create(session, app, owner, kind="deploy", description="Deploy def5678", slug=slug)
    releases.succeed(session, back)
    for late in (change, push):
        assert releases.config_of(late) == {"A": "then", "B": "newer", "C": "newer"}
    releases.fail(session, change, "app did not start", "web.1 ended")
    assert config.read(app) == {"A": "then", "B": "newer", "C": "newer"}


def test_what_was_unset_after_a_rollback_was_asked_for_stays_unset(session: Session, owner: Account) -> None:
    app, back = rolled_back(session, owner)
    config.change(session, owner, app, {"A": None})
    releases.succeed(session, back)
    assert config.read(app) == {}


def test_of_two_rollbacks_the_later_counts_whatever_became_of_the_first(session: Session, owner: Account) -> None:
    for first_succeeds in (True, False):
        app, first = rolled_back(session, owner)
        second = releases.rollback(session, owner, app, releases.find(session, app, "v4"))
        between = config.change(session, owner, app, {"C": "newer"})
        if first_succeeds:
            releases.succeed(session, first)
        else:
            releases.fail(session, first, "app did not start", "web.1 ended")
        releases.succeed(session, second)
        assert config.read(app) == {"A": "now", "B": "new", "C": "newer"}
        assert between is not None and releases.config_of(between) == {"A": "now", "B": "new", "C": "newer"}


def test_there_is_no_rollback_to_a_release_without_code(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    with pytest.raises(InvalidParams, match="no code"):
        releases.rollback(session, owner, app, releases.find(session, app, "v1"))
    with pytest.raises(InvalidParams, match="no earlier release"):
        releases.last_good_before(session, app)
    with pytest.raises(NotFound):
        releases.find(session, app, "v7")


def test_a_config_release_takes_the_code_of_a_deploy_that_finished_before_its_turn(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    deploy(session, app, owner, "sha256:aa")
    late = config.change(session, owner, app, {"A": "1"})
    newer = deploy(session, app, owner, "sha256:bb", web="newer")
    assert late is not None
    releases.rebase(session, late)
    assert late.slug_id == newer.slug_id and late.process_types == {"web": "newer"}


def test_a_first_deploy_gets_one_web_dyno_and_no_others(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    deploy(session, app, owner, web="serve", worker="work")
    assert {row.type: row.quantity for row in formation.all_of(session, app)} == {"web": 1, "worker": 0}


@pytest.mark.parametrize(
    ("quantity", "result"),
    [(2, 2), ("3", 3), ("+1", 2), ("-1", 0), (0, 0), ("abc", None), ("10000", None),
     (-1, None), ("-2", None), (True, None), (1.5, None)],
)  # fmt: skip
def test_scaling(session: Session, owner: Account, quantity: object, result: int | None) -> None:
    app = apps.create(session, owner)
    deploy(session, app, owner)
    if result is None:
        with pytest.raises(InvalidParams, match="web="):
            formation.scale(session, owner, app, [{"type": "web", "quantity": quantity}])
    else:
        formation.scale(session, owner, app, [{"type": "web", "quantity": quantity, "size": "Standard-2X"}])
        row = formation.find(session, app, "web")
        assert (row.quantity, row.size) == (result, "standard-2x")


def test_scaling_an_unknown_type_lists_those_there_are(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    deploy(session, app, owner, web="a", clock="b")
    with pytest.raises(NotFound, match="clock, web"):
        formation.scale(session, owner, app, [{"type": "wrker", "quantity": 1}])


@pytest.mark.parametrize(
    "hostname", ["", "*.example.com", "a", "a b.com", "-a.com", "a..com", "x.localhost", "1.2.3.4", "a" * 64 + ".com", None, 7]
)
def test_an_impossible_domain_is_refused(session: Session, owner: Account, hostname: object) -> None:
    with pytest.raises(InvalidParams, match="Domain"):
        domains.add(session, owner, apps.create(session, owner), hostname)


def test_apps_own_names_follow_the_domain_of_this_davit(
    session: Session, owner: Account, stranger: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, both, other = (apps.create(session, owner, name) for name in ("plain", "both", "other"))
    same = domains.add(session, owner, both, "both.apps.example.com")
    foreign = domains.add(session, owner, both, "other.apps.example.com")
    coming = domains.add(session, owner, both, "shop.apps.example.com")
    monkeypatch.setenv("DAVIT_DOMAIN", "Apps.example.com")
    settings.cache_clear()
    domains.follow(session)
    assert _hostnames(session, plain) == ["plain.apps.example.com"]
    assert _hostnames(session, both) == ["both.apps.example.com", "other.apps.example.com", "shop.apps.example.com"]
    assert domains.find(session, both, "both.apps.example.com").kind == "heroku" and same.hostname == "both.apps.example.com"
    assert _hostnames(session, other) == ["other.localhost"], "its new name is a custom domain of another app's"
    (point,) = health.names(session)
    assert point.name == "other.apps.example.com" and "domains:remove -a both other.apps.example.com" in point.words
    for attempt in (lambda: apps.create(session, owner, "shop"), lambda: apps.rename(session, owner, plain, "shop")):
        with pytest.raises(Conflict, match=r"Name shop is already taken: shop\.apps\.example\.com is a domain of some app"):
            attempt()
    for domain in (foreign, coming):
        domains.remove(session, owner, both, domain.hostname)
    session.flush()
    domains.follow(session)
    assert _hostnames(session, other) == ["other.apps.example.com"] and not list(health.names(session))
    apps.rename(session, owner, plain, "shop")
    assert _hostnames(session, plain) == ["shop.apps.example.com"]


def test_no_own_name_follows_to_where_people_sign_in(
    session: Session, owner: Account, stranger: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = accounts.create(session, None, "root@example.com", admin=True)
    panel, console, shop = (apps.create(session, stranger, name) for name in ("panel", "console", "shop"))
    web_sessions.start(session, admin, "Firefox", "console.example.com")
    signed_in, _ = web_sessions.start(session, owner, "Firefox", "shop.example.com")
    monkeypatch.setenv("DAVIT_DOMAIN", "example.com")
    monkeypatch.setenv("DAVIT_NAMES", "panel.example.com")
    settings.cache_clear()
    domains.follow(session)
    assert [_hostnames(session, app) for app in (panel, console, shop)] == [
        ["panel.localhost"], ["console.localhost"], ["shop.example.com"],
    ]  # fmt: skip
    with pytest.raises(Unauthorized):
        web_sessions.find(session, signed_in)
    told = {point.name: point.words for point in health.names(session)}
    assert set(told) == {"panel.example.com", "console.example.com"}
    assert "davit apps:rename -a panel NEW-NAME" in told["panel.example.com"]


def _hostnames(session: Session, app: App) -> list[str]:
    return [domain.hostname for domain in domains.all_of(session, app)]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # on SQLite the second looks when the first is done
@pytest.mark.parametrize(
    ("take", "sentence"),
    [
        (lambda session, owner, app: apps.create(session, owner, "shop"), "Name shop is already taken."),
        (lambda session, owner, app: apps.rename(session, owner, app, "shop"), "Name shop is already taken."),
        (lambda session, owner, app: domains.add(session, owner, app, "a.example.com"), "a.example.com is currently in use"),
        (lambda session, owner, app: apps.add_collaborator(session, owner, app, "eve@example.com"), "in the same moment"),
    ],
)  # fmt: skip
def test_who_takes_what_another_takes_in_the_same_moment_is_told_so(
    database: str, take: Callable[[Session, Account, App], object], sentence: str
) -> None:
    with db.transaction() as session:
        owner = accounts.create(session, None, "ann@example.com")
        accounts.create(session, None, "eve@example.com")
        app, second = apps.create(session, owner, "bright-bay"), apps.create(session, owner, "calm-cove")
    if "moment" in sentence:
        second = app

    def other() -> None:
        with pytest.raises(Conflict, match=sentence), db.transaction() as session:
            take(session, owner, session.get_one(App, second.id))

    with ThreadPoolExecutor(1) as pool:
        with db.transaction() as session:
            take(session, owner, session.get_one(App, app.id))
            session.flush()
            done = pool.submit(other)
            until_one_waits()
        done.result(60)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # on SQLite nobody writes between reading and changing
def test_who_changes_what_another_removes_in_the_same_moment_is_told_so(database: str) -> None:
    with db.transaction() as session:
        owner = accounts.create(session, None, "ann@example.com")
        domain = domains.add(session, owner, apps.create(session, owner, "bright-bay"), "a.example.com")
    with pytest.raises(Conflict, match="removed in the same moment"), db.transaction() as session:
        loaded = session.get_one(Domain, domain.id)
        with db.transaction() as other:
            other.delete(other.get_one(Domain, domain.id))
        loaded.hostname = "b.example.com"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_start_has_apps_own_names_follow(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.transaction() as session:
        app = apps.create(session, accounts.create(session, None, "ann@example.com"), "bright-bay")
    monkeypatch.setenv("DAVIT_DOMAIN", "apps.example.com")
    settings.cache_clear()
    home.prepare(settings())
    with db.snapshot() as session:
        assert _hostnames(session, app) == ["bright-bay.apps.example.com"]



def test_a_domain_belongs_to_one_app(session: Session, owner: Account) -> None:
    one, two = apps.create(session, owner), apps.create(session, owner)
    assert domains.add(session, owner, one, "WWW.Bücher.example.").hostname == "www.xn--bcher-kva.example"
    with pytest.raises(Conflict, match="in use"):
        domains.add(session, owner, two, "www.xn--bcher-kva.example")
    domains.remove(session, owner, one, "WWW.Bücher.example.")
    domains.add(session, owner, two, "www.xn--bcher-kva.example")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DAVIT_NAMES has two names."""
    monkeypatch.setenv("DAVIT_NAMES", "Davit.example.com, quiet-cove.localhost")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.row("domain-davits")
@pytest.mark.usefixtures("named")
def test_no_app_gets_a_name_of_davits_own(session: Session, owner: Account) -> None:
    app = apps.create(session, owner)
    certified = settings().home / "keys" / "api.pem"
    certified.write_bytes(Authority(settings().home / "keys" / "ca.pem").issue(("panel.example.com", "*.example.org")))
    for hostname in ("davit.example.com", "DAVIT.example.com.", "panel.example.com"):
        with pytest.raises(InvalidParams) as refused:
            domains.add(session, owner, app, hostname)
        assert_says("domain-davits", refused.value.message)
    with pytest.raises(InvalidParams, match="Davit's own"):
        apps.create(session, owner, "quiet-cove")
    with pytest.raises(InvalidParams, match="Davit's own"):
        apps.rename(session, owner, app, "quiet-cove")
    domains.add(session, owner, app, "www.example.org")


def test_a_name_at_which_people_are_signed_in_gives_no_app_their_sessions(
    session: Session, owner: Account, stranger: Account
) -> None:
    app, admin = apps.create(session, stranger), accounts.create(session, None, "root@example.com", admin=True)
    web_sessions.start(session, admin, "Firefox", "davit.example.com")
    taken, _ = web_sessions.start(session, owner, "Firefox", "panel.example.com")
    kept, _ = web_sessions.start(session, owner, "Firefox", "davit.example.com")
    with pytest.raises(InvalidParams, match="Davit's own"):
        domains.add(session, stranger, app, "davit.example.com")
    domains.add(session, stranger, app, "panel.example.com")
    assert web_sessions.find(session, kept)
    with pytest.raises(Unauthorized):
        web_sessions.find(session, taken)


@pytest.mark.parametrize("over", [{"last_seen_at": timedelta(days=8)}, {"expires_at": timedelta(seconds=1)}])
def test_a_session_that_is_over_keeps_no_name_from_apps(session: Session, owner: Account, over: dict[str, timedelta]) -> None:
    admin = accounts.create(session, None, "root@example.com", admin=True)
    _, row = web_sessions.start(session, admin, "Firefox", "example.com")
    for name, since in over.items():
        setattr(row, name, now() - since)
    session.flush()
    assert domains.add(session, owner, apps.create(session, owner), "example.com").hostname == "example.com"


@pytest.mark.parametrize(
    ("host", "is_an_apps"),
    [
        ("timely.localhost:5000", True), ("evil.localhost", True), ("a.b.localhost", True), ("WWW.example.com.:5000", True),
        ("localhost:5000", False), ("127.0.0.1:5000", False), ("[::1]:5000", False), ("davit.localhost", False),
        ("other.example.com", False), ("[", False), ("davit.timely.localhost", True),
    ],
)  # fmt: skip
def test_which_names_are_for_apps(session: Session, owner: Account, host: str, is_an_apps: bool) -> None:
    domains.add(session, owner, apps.create(session, owner, "timely"), "www.example.com")
    assert own_names.is_an_apps(session, own_names.host_of(host)) == is_an_apps


def test_builds_of_an_app_take_turns_in_order(session: Session, owner: Account) -> None:
    app, other = apps.create(session, owner), apps.create(session, owner)
    first = builds.create(session, app, owner, commit="a" * 40)
    second = builds.create(session, app, owner, commit="b" * 40)
    elsewhere = builds.create(session, other, owner, commit="c" * 40)
    assert builds.next_turn(session, app.id) is first
    session.flush()
    assert builds.next_turn(session, app.id) is None
    assert builds.next_turn(session, other.id) is elsewhere
    ahead = builds.ahead(session, second)
    assert ahead is not None and ahead.id == first.id
    builds.fail(session, first.id, "build failed", "It failed.")
    session.flush()
    assert builds.next_turn(session, app.id) is second


def test_apps_that_may_be_put_to_sleep_are_found_with_one_query_however_many_there_are(session: Session, owner: Account) -> None:
    one, other, changing, awake, stopped, eco = (apps.create(session, owner, f"bright-bay-{number}") for number in range(6))
    for app in (one, other, changing, awake, stopped, eco):
        deploy(session, app, owner)
        app.sleep = "on"
    deploy(session, changing, owner).status = "pending"
    awake.sleep, eco.sleep = "off", "auto"
    formation.find(session, stopped, "web").quantity = 0
    formation.find(session, eco, "web").size = "eco"
    session.flush()
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(session.connection(), "before_cursor_execute", note)
    assert sorted(sleep.candidates(session)) == sorted(app.id for app in (one, other, eco))
    assert len(asked) == 1, asked


def test_a_destroyed_app_is_gone_at_once_and_its_name_is_free(session: Session, owner: Account) -> None:
    app = apps.create(session, owner, "bright-bay")
    deploy(session, app, owner)
    builds.create(session, app, owner, commit="a" * 40)
    apps.destroy(session, owner, app)
    session.flush()
    with pytest.raises(NotFound):
        apps.find(session, owner, "bright-bay")
    apps.create(session, owner, "bright-bay")
    apps.forget(session, app.id)
    assert session.get(App, app.id) is None
    assert session.scalar(select(AuditEvent).where(AuditEvent.action == "apps:destroy")) is not None


def test_what_a_rolled_back_transaction_was_to_tell_is_never_told(database: str) -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError), db.transaction() as session:
        db.after_commit(session, lambda: told.append("no"))
        raise RuntimeError
    with db.transaction() as session:
        db.after_commit(session, lambda: told.append("yes"))
        assert told == []
    assert told == ["yes"]


def test_a_snapshot_is_one_state_whatever_is_committed_meanwhile(database: str) -> None:
    with db.snapshot() as reading:
        assert accounts.count(reading) == 0
        with db.transaction() as session:
            accounts.create(session, None, "ann@example.com")
        assert accounts.count(reading) == 0
    with db.snapshot() as reading:
        assert accounts.count(reading) == 1


def test_the_owner_gets_an_account_and_a_token_that_works(database: str) -> None:
    for _ in range(2):
        with db.transaction() as session:
            accounts.ensure_owner(session)
    with db.snapshot() as session:
        account = accounts.authenticate_token(session, accounts.owner_token_file().read_text().strip())
        assert account.is_admin and accounts.count(session) == 1
    assert accounts.owner_token_file().stat().st_mode & 0o777 == 0o600
