"""Buildpacks that hang or mean harm: the build ends with a sentence, the old release serves on, nothing else notices."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.errors_page import assert_says
from tests.e2e.residue import assert_nothing_left
from tests.e2e.together import Together
from tests.e2e.world import TINY, App, Davit, tiny

scene = Together(at_once=3)


def serve_first(app: App) -> None:
    """What the app is before the harm."""
    app.deploy(tiny("first"))
    app.assert_serves("first")


def harm(app: App, compile: str) -> str:
    """Push a change that is built by this script; it is refused and “first” serves on. Returns what the pusher saw."""
    serve_first(app)
    app.use_buildpack(compile)
    app.commit(tiny("second"))
    push = app.push_refused()
    assert "(build failed)" in push.output and "inside Davit" not in push.output, push.output
    app.assert_serves("first")
    return push.output


@scene
@pytest.mark.row("build-hangs")
def a_buildpack_that_hangs(app: App) -> None:
    output = harm(app, "echo waiting; trap '' TERM HUP INT; sleep 600 & sleep 600")
    assert_says("build-hangs", output)
    assert "bin/compile" in output


@scene
@pytest.mark.row("build-forks")
def a_buildpack_that_forks_a_bomb(app: App) -> None:
    assert_says("build-forks", harm(app, "bomb() { bomb | bomb & }; bomb; sleep 60"))


@scene
@pytest.mark.row("build-memory")
def a_buildpack_that_takes_all_memory(app: App) -> None:
    assert_says("build-memory", harm(app, "exec /usr/bin/python3 -c 'x = [bytearray(1 << 20) for _ in range(4000)]'"))


@scene
@pytest.mark.row("build-fills-disk")
def a_buildpack_that_fills_the_disk(app: App) -> None:
    assert_says("build-fills-disk", harm(app, 'head -c 400000000 /dev/zero > "$1/big"'))


@scene
@pytest.mark.row("build-killed-itself")
def a_buildpack_that_kills_its_process_group(app: App) -> None:
    assert_says("build-killed-itself", harm(app, "kill -9 0"))
    app.use_buildpack("kill -9 -1; sleep 60")
    app.commit(tiny("third"))
    assert_says("build-killed-itself", app.push_refused().output)
    app.assert_serves("first")


@scene
@pytest.mark.row("build-fails")
def a_buildpack_that_fails(app: App) -> None:
    assert_says("build-fails", harm(app, "echo 'cannot do it' >&2; exit 9"))


@scene
@pytest.mark.row("buildpack-unusable", "buildpack-unknown")
def a_buildpack_that_is_none(app: App) -> None:
    serve_first(app)
    app.commit(tiny("second"))
    for buildpack in ("http://127.0.0.1:9/pack.tgz", "http://127.0.0.1:9/pack.git", f"file://{app.davit.home}/keys"):
        app.cli("buildpacks:set", buildpack)
        app.commit()
        assert_says("buildpack-unusable", app.push_refused().output)
    assert_says("buildpack-unknown", app.cli("buildpacks:set", "no-such-buildpack", check=False).stderr)
    app.cli("buildpacks:clear")
    app.cli("config:set", "BUILDPACK_URL=no-such-buildpack")
    app.commit()
    assert_says("buildpack-unknown", app.push_refused().output)
    app.assert_serves("first")


@scene
@pytest.mark.row("build-prints-much")
def a_buildpack_that_prints_a_gigabyte(app: App) -> None:
    """No harm: the build goes on, what is too much is not kept."""
    app.use_buildpack("yes 'a line of output' | head -c 1000000000; echo the end")
    app.commit(tiny("first"))
    push = app.push()
    assert push.accepted, push.output[-2000:]
    assert_says("build-prints-much", push.output)
    assert len(push.output) < 40 << 20
    app.assert_serves("first")
    sizes = list(kept_output(app.davit))
    assert sizes and max(sizes) < 11 << 20


def kept_output(davit: Davit) -> Iterator[int]:
    """Bytes of each build's output; the builds of other scenes' apps come and go."""
    for path in glob.glob(f"{davit.home}/builds/*/output"):
        with suppress(FileNotFoundError):
            yield Path(path).stat().st_size


@scene
@pytest.mark.row("build-reaches-out")
def a_buildpack_that_tries_to_reach_everything(app: App) -> None:
    davit = app.davit
    with davit.client() as client:
        client.post("/apps", json={"name": f"{app.name}-b"[:30].rstrip("-")}).raise_for_status()
    other = App(davit, f"{app.name}-b"[:30].rstrip("-"), app.checkout.parent / "other")
    try:
        other.checkout.mkdir()
        other.deploy(tiny("other"))
        address = neighbour(davit, other)
        targets = [("127.0.0.1", 6379), ("169.254.169.254", 80), ("10.0.0.1", 80), ("192.168.0.1", 80), (address, 8080)]
        targets += [(host, port) for host in ("127.0.0.1", "$gateway", "$host") for port in (davit.api, davit.http, davit.ssh, 22)]
        tries = "\n".join(f"try {host} {port}" for host, port in targets)
        script = f"""
            gateway=$(ip route | awk '/^default/ {{print $3}}'); host={host_address()}
            try() {{ if timeout 2 bash -c "echo > /dev/tcp/$1/$2" 2>/tmp/why; then echo "REACHED $1:$2"; else tail -n1 /tmp/why; fi; }}
            {tries}
            for file in {shlex.quote(str(davit.home))}/run/*.sock {shlex.quote(str(davit.home))}/owner-token /run/davit; do
                test -e "$file" && echo "FOUND $file"; done
            env | grep -iE '^(redis|database|davit)' && echo FOUND environment
            grep -qE '^CapEff:\\s*0000000000000000$' /proc/self/status || echo FOUND capabilities
            mount -t tmpfs none /mnt 2>/dev/null && echo FOUND mount
            exit 9
        """
        output = harm(app, script)
        assert "REACHED" not in output and "FOUND" not in output, output
        assert_says("build-reaches-out", output)
        other.assert_serves("other")
    finally:
        other.cli("apps:destroy", "--confirm", other.name)


def neighbour(davit: Davit, app: App) -> str:
    """The address of the app's web dyno."""
    return app.cli("run", "--", "true") and _address_in_log(davit, app)


def _address_in_log(davit: Davit, app: App) -> str:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(f"file:{davit.home}/davit.db?mode=ro", uri=True)) as connection:
        (address,) = connection.execute(
            "SELECT dynos.address FROM dynos JOIN apps ON apps.id = dynos.app_id WHERE apps.name = ? AND dynos.type = 'web'", (app.name,)
        ).fetchone()
    assert re.fullmatch(r"[\d.]+", address)
    return str(address)


def host_address() -> str:
    """An address of this host on its own network."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; only asks for the way
        return str(probe.getsockname()[0])


@pytest.fixture(scope="module")
def played(strict: Davit) -> Iterator[dict[str, Future[None]]]:
    threads, futures = scene.begin(strict)
    with threads:
        yield futures


@pytest.mark.parametrize("name", scene.parameters())
def test_harm_in_a_build_changes_nothing(played: dict[str, Future[None]], name: str) -> None:
    played[name].result()


def test_the_next_build_is_as_if_nothing_had_been(played: dict[str, Future[None]], strict: Davit) -> None:
    for future in played.values():
        future.exception()
    assert_nothing_left(strict)
    app = strict.create()
    app.deploy(TINY)
    app.assert_serves("first")
    app.cli("apps:destroy", "--confirm", app.name)
