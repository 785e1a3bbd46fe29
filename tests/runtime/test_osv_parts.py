"""The parts of the OSv driver that need no machine: QEMU's command line, OSv's REST answers, its cloud-init, the image cache."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from foundation.errors import InvalidParams
from runtime.images import Images
from runtime.osv import images, machine, management, memory, signals
from runtime.osv.driver import OsvDriver
from runtime.osv.images import OsvImages, TooLargeForMemory
from runtime.osv.machine import Machine, Network
from slugs import osvimage, rofs
from tests.slugs.osv_parsers import loader_words

MIB = 1 << 20


# -- QEMU's command line


def test_disks_come_in_the_order_that_the_loader_is_told() -> None:
    words = machine.command("qemu", Machine("a,b/web.1", 128 * MIB, mac="02:da:71:00:00:05"))
    drives = [word for word in words if word.startswith("virtio-blk-pci")]
    assert drives == ["virtio-blk-pci,drive=root", "virtio-blk-pci,drive=slug", "virtio-blk-pci,drive=config"]
    assert [word for word in words if word.startswith("driver=file") and "read-only=on" not in word] == []
    assert words[words.index("-name") + 1] == "a,,b/web.1"
    options = dict(
        option.decode()[2:].partition("=")[::2] for option in loader_words(" ".join(machine.options(None, True)).encode())[0]
    )
    assert options["mount-fs"] == "rofs,/dev/vblk2,/etc/davit" and options["cwd"] == "/app" and "ip" not in options


def test_the_kernels_line_is_not_on_it_and_the_guest_waits_for_it() -> None:
    words = machine.command("qemu", Machine("x", 128 * MIB))
    assert {"dump-guest-core=off", "mem-merge=off"} <= set(words[words.index("-M") + 1].split(","))
    assert "--preconfig" in words and "-append" not in words and not any("virtio-net" in word for word in words)
    assert words[words.index("-accel") + 1].startswith("tcg")
    assert machine.command("qemu", Machine("x", 128 * MIB, kvm=True))[words.index("-accel") + 1] == "kvm"


def test_the_network_is_told_as_the_loader_reads_it() -> None:
    words = machine.options(Network("198.18.0.5", "255.255.240.0", "198.18.0.1", "9.9.9.9"), False)
    assert "--ip=eth0,198.18.0.5,255.255.240.0" in words and "--nameserver=9.9.9.9" in words
    assert "--mount-fs=rofs,/dev/vblk1,/etc/davit" in words, "without a slug the configuration is the second disk"


# -- what it uses

SMAPS = """\
7f41d0800000-7f41d8800000 r--p 00000000 fe:00 1556558                    /data/kernel
Size:             131072 kB
Rss:               51200 kB
7f41d9e00000-7f41e1e00000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:               83968 kB
Pss:               83968 kB
7f41e8021000-7f41ec000000 ---p 00000000 00:00 0
Rss:                   8 kB
"""


def test_of_qemus_memory_only_the_guests_is_counted(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/smaps").write_text(SMAPS)
    assert memory.touched(7, 128 * MIB, tmp_path) == 82 * MIB
    assert memory.touched(7, 64 * MIB, tmp_path) is None
    assert memory.touched(8, 128 * MIB, tmp_path) is None


# -- OSv's REST server


class FakeOsv(BaseHTTPRequestHandler):
    """Says it is OSv's server: the answers are those that the real one was seen to give."""

    answers = {
        "/os/memory/total": 134217728,
        "/os/memory/free": 100000000,
        "/os/uptime": 12,
        "/os/threads": {"list": [{}, {}, {}]},
    }
    hostname = ""
    broken = False

    def do_GET(self) -> None:
        body = b"not json" if FakeOsv.broken else json.dumps(self.answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        FakeOsv.hostname = parse_qs(urlsplit(self.path).query)["name"][0]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def fake_osv() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeOsv)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    FakeOsv.broken = False
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_osvs_figures_are_read(fake_osv: int) -> None:
    assert asyncio.run(management.figures("127.0.0.1", 30, fake_osv)) == management.Figures(134217728, 100000000, 12.0, 3)
    assert asyncio.run(management.set_hostname("127.0.0.1", "web-1 ü", 30, fake_osv))
    assert FakeOsv.hostname == "web-1 ü"


def test_answers_that_are_none_are_no_figures(fake_osv: int) -> None:
    FakeOsv.broken = True
    assert asyncio.run(management.figures("127.0.0.1", 30, fake_osv)) is None
    assert asyncio.run(management.figures("127.0.0.1", 5, 1)) is None
    assert not asyncio.run(management.set_hostname("127.0.0.1", "x", 5, 1))


# -- OSv's cloud-init


def test_what_osv_knows_is_passed_on_and_the_host_name_goes_another_way() -> None:
    wanted = management.cloud_init("hostname: web\nfiles:\n  /tmp/a: b\nrun:\n- PUT: /app/\n  command: /x\n")
    assert wanted.hostname == "web"
    assert wanted.document is not None and b"hostname" not in wanted.document and b"/tmp/a: b" in wanted.document
    assert management.cloud_init("hostname: web").document is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("runcmd: []", "has the key “runcmd”; OSv knows run, mounts, hostname, files"),
        ("files: 3", "“files” has the wrong type"),
        ("hostname: [a]", "“hostname” has the wrong type"),
        ("- a", "must be a mapping"),
        ("a: [", r"is no YAML \(line"),
        ("hostname: 2020-13-45", r"is no YAML \(line 1: “2020-13-45” cannot be read as timestamp\)"),
        ("run: " + "[" * 400 + "]" * 400, r"is no YAML \(line 1: it is nested too deeply\)"),
    ],
)
def test_what_osv_would_pass_over_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidParams, match=why):
        management.cloud_init(text)


# -- images


@pytest.fixture
def cache(tmp_path: Path) -> OsvImages:
    """A cache whose “sealed images” are directories: nothing needs to be mounted."""
    stack, slug = tmp_path / "stack", tmp_path / "slug"
    libraries = stack / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "ld-linux-x86-64.so.2").write_bytes(b"loader")
    (stack / "usr/bin").mkdir()
    (stack / "usr/bin/true").write_bytes(Path("/bin/true").read_bytes())
    (stack / "usr/bin/true").chmod(0o755)
    (slug / "app").mkdir(parents=True)
    (slug / "app/file").write_bytes(b"x" * 100_000)
    (tmp_path / "modules/usr").mkdir(parents=True)
    (tmp_path / "modules/libhttpserver-api.so").write_bytes(b"module")
    (tmp_path / "modules/usr/more").write_bytes(b"more")
    (tmp_path / "work").mkdir()

    def mount(image: Path, point: Path) -> None:
        point.rmdir()
        point.symlink_to(image)

    mounted = Images(tmp_path / "work", mount, lambda point: point.unlink())
    return OsvImages(tmp_path / "osv", mounted, tmp_path / "slugs", tmp_path / "modules")


def test_images_are_made_once_and_again_when_their_sources_change(cache: OsvImages, tmp_path: Path) -> None:
    cache.prepare()
    first = cache.sources(tmp_path / "stack", tmp_path / "slug", "true $X", {"X": "1"}, 64 * MIB)
    assert first.slug is not None and first.launch.argv[-2:] == ("/usr/bin/true", "1")
    stamp = first.slug.stat().st_ino, first.root.stat().st_ino
    again = cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 64 * MIB)
    assert again.slug is not None and (again.slug.stat().st_ino, again.root.stat().st_ino) == stamp
    root = rofs.Image(io.BytesIO(first.root.read_bytes()), osvimage.SECTOR)
    assert root.read(b"/libhttpserver-api.so") == b"module" and root.read(b"/usr/more") == b"more"
    assert cache.has_module("libhttpserver-api.so") and not cache.has_module("libcloud-init.so")
    (tmp_path / "modules/usr/more").write_bytes(b"newer")
    assert cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 64 * MIB).root != first.root
    assert cache.sources(tmp_path / "stack", None, "true", {}, 64 * MIB).slug is None


def test_an_image_that_another_version_has_made_is_made_anew(
    cache: OsvImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Path:
        found = cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 64 * MIB).slug
        assert found is not None
        return found

    def killed(path: Path, data: bytes) -> None:
        assert not image.exists(), "a version is written down before the other's images are gone"
        raise KeyboardInterrupt

    cache.prepare()
    image = made()
    cache.prepare()
    assert image.exists()
    monkeypatch.setattr(images, "VERSION", "another")
    with monkeypatch.context() as ends, pytest.raises(KeyboardInterrupt):
        ends.setattr("foundation.disk.write", killed)
        cache.prepare()
    image.write_bytes(b"of the version before")  # which was started once more
    cache.prepare()
    assert not image.exists()
    made()
    cache.prepare()
    assert image.exists()


def test_a_slug_beyond_the_guests_memory_is_refused(cache: OsvImages, tmp_path: Path) -> None:
    cache.prepare()
    with pytest.raises(TooLargeForMemory, match="more than the dyno's 0 MB of memory"):
        cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 50_000)
    assert list((cache.directory / "slugs").iterdir()) == [], "nothing of what was refused stays on the disk"
    assert cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 64 * MIB).slug is not None
    with pytest.raises(TooLargeForMemory, match=r"holds \d MB of files, more than the dyno's 0 MB"):
        cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 50_000)
    for path in (cache.directory / "slugs").glob("*.rofs"):
        path.unlink()
    (tmp_path / "slug/app/many").mkdir()
    for number in range(3000):
        (tmp_path / "slug/app/many" / f"an-empty-file-{number}").touch()
    with pytest.raises(TooLargeForMemory, match="their names alone"):
        cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 400_000)
    assert list((cache.directory / "slugs").glob("*.rofs")) == []
    assert cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 64 * MIB).slug is not None
    with pytest.raises(TooLargeForMemory, match="their names alone"):  # made for a larger dyno
        cache.sources(tmp_path / "stack", tmp_path / "slug", "true", {}, 400_000)
    assert len(list((cache.directory / "slugs").glob("*.rofs"))) == 1, "the larger dyno's is still there"


def test_an_image_that_cannot_be_made_is_tried_again_by_one_at_a_time_and_nothing_is_kept_of_it(
    cache: OsvImages, tmp_path: Path
) -> None:
    """Of those that waited for one that failed, and one that comes then, each has its turn."""
    working, most, go = [0], [0], threading.Event()

    def make() -> None:
        working[0] += 1
        most[0] = max(most[0], working[0])
        try:
            assert go.wait(60)
            raise OSError("full")
        finally:
            working[0] -= 1

    def want() -> None:
        with suppress(OSError):
            cache._once(tmp_path / "image", make)

    wanting = [threading.Thread(target=want) for _ in range(3)]
    for one in wanting:
        one.start()
    go.set()
    for one in wanting:
        one.join(60)
    assert most == [1] and cache._making == {}


def test_the_agent_is_built_once_beside_everything_else_and_again_some_time_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host that is given has no threads: none of the few that all dynos' starts share is taken."""
    (tmp_path / "build.img").touch()
    host: Any = SimpleNamespace(settings=SimpleNamespace(home=tmp_path, osv_modules=None), images=None)
    driver = OsvDriver(host, kvm=False)
    spec: Any = SimpleNamespace(stack=tmp_path / "run.img", network=True)
    native: Any = SimpleNamespace(launch=SimpleNamespace(runtime="native"))
    agents, go, asked = [None, tmp_path / "agent.so"], threading.Event(), []

    def build(stack: Path, directory: Path) -> Path | None:
        asked.append(stack)
        assert go.wait(60)
        return agents.pop(0)

    async def starts(count: int) -> list[Path | BaseException | None]:
        go.clear()
        waiting = [asyncio.ensure_future(driver._agent(spec, native)) for _ in range(count)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # who gives up ends it for nobody else
        asyncio.get_running_loop().call_soon(go.set)
        return (await asyncio.gather(*waiting, return_exceptions=True))[1:]

    monkeypatch.setattr("runtime.osv.signals.build", build)
    assert asyncio.run(starts(5)) == [None] * 4 and len(asked) == 1
    assert asyncio.run(starts(2)) == [None] and len(asked) == 1, "it is not tried for each dyno"
    driver._agents._again.clear()  # as when AGAIN_SECONDS have passed
    assert asyncio.run(starts(5)) == [tmp_path / "agent.so"] * 4
    assert asyncio.run(starts(2)) == [tmp_path / "agent.so"] and len(asked) == 2


def test_an_agent_that_cannot_be_kept_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.osv.signals._compile", lambda stack, directory: b"\x7fELF")
    assert signals.build(tmp_path / "build.img", tmp_path) is not None
    assert signals.build(tmp_path / "build.img", tmp_path / "nowhere") is None  # as on a full disk


def test_a_collected_slugs_image_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "osv/slugs").mkdir(parents=True)
    for name in ("a" * 64, "b" * 64):
        (tmp_path / "osv/slugs" / f"{name}.rofs").touch()
    images.forget(tmp_path, ["sha256:" + "a" * 64, "sha256:" + "c" * 64])
    assert [path.stem for path in (tmp_path / "osv/slugs").iterdir()] == ["b" * 64]


def test_what_nobody_needs_any_more_goes(cache: OsvImages, tmp_path: Path) -> None:
    cache.prepare()
    (tmp_path / "slugs").mkdir()
    (tmp_path / "slugs" / ("a" * 64 + ".erofs")).touch()
    for name in ("a" * 64 + ".rofs", "b" * 64 + ".rofs", ".draft"):
        (cache.directory / "slugs" / name).touch()
    for number in range(20):
        path = cache.directory / "base" / f"python-{number}.img"
        path.touch()
        os.utime(path, (number, number))
    cache.tidy()
    assert [path.name for path in (cache.directory / "slugs").iterdir()] == ["a" * 64 + ".rofs"]
    assert len(list((cache.directory / "base").iterdir())) == 16 and not (cache.directory / "base/python-0.img").exists()
