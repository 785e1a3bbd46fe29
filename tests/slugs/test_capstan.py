"""Capstan's packages and OSv's upload protocol, each taken apart by a reader of its own."""

from __future__ import annotations

import io
import socket
import stat
import tarfile
import threading
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slugs import capstan, cpio, rofs
from slugs.capstan import Package
from slugs.osvcommand import LIBRARIES, LOADER, Launch
from slugs.osvimage import ImageFailed
from tests.slugs import osv_parsers

LAUNCH = Launch(
    "python",
    (LOADER, "--library-path", LIBRARIES, "/usr/bin/python3.13", "-m", "davit_launch", "a b.py"),
    {"PYTHONHOME": "/usr", "EMPTY": ""},
)


def tree() -> rofs.Folder:
    folder = rofs.Folder()
    folder.add("app/app.py", rofs.text("print(1)\n"))
    folder.add("app/empty", rofs.Folder())
    folder.add("lib", rofs.Link(b"/usr/lib"))
    folder.add("usr/lib/odd.so", rofs.data(b"12345"))
    return folder


def packed(package: Package) -> bytes:
    stream = io.BytesIO()
    capstan.write_package(package, tree(), stream)
    return stream.getvalue()


def test_the_buildpacks_config_vars_are_in_every_configuration() -> None:
    own = Launch("native", ("/app/worker",), {"LANG": "C"})
    package = Package("davit.web", "web v3", "Davit", "3", {"web": LAUNCH, "worker": own}, {"NODE_ENV": "production", "LANG": "x"})
    sets = yaml.safe_load(capstan.run_yaml(package, 8080))["config_set"]
    assert [(one["env"]["NODE_ENV"], one["env"]["LANG"]) for one in sets.values()] == [("production", "x"), ("production", "C")]


def test_a_package_is_the_root_with_its_two_descriptions() -> None:
    package = Package("davit.web", "web v3", "Davit", "3", {"web": LAUNCH, "worker": Launch("native", ("/app/worker",))})
    with tarfile.open(fileobj=io.BytesIO(packed(package)), mode="r:gz") as archive:
        names = archive.getnames()
        assert names == [
            "meta/package.yaml",
            "meta/run.yaml",
            "app",
            "app/app.py",
            "app/empty",
            "lib",
            "usr",
            "usr/lib",
            "usr/lib/odd.so",
        ]
        described = yaml.safe_load(archive.extractfile("meta/package.yaml"))  # type: ignore[arg-type]
        run = yaml.safe_load(archive.extractfile("meta/run.yaml"))  # type: ignore[arg-type]
        assert archive.getmember("lib").linkname == "/usr/lib" and archive.getmember("app/empty").isdir()
        assert archive.extractfile("usr/lib/odd.so").read() == b"12345"  # type: ignore[union-attr]
    assert (described["name"], described["title"], described["author"]) == ("davit.web", "web v3", "Davit")
    assert run["runtime"] == "native" and run["config_set_default"] == "web" and list(run["config_set"]) == ["web", "worker"]
    web = run["config_set"]["web"]
    assert web["env"] == {"PORT": "8080", "HOME": "/app", "PYTHONHOME": "/usr"}
    assert osv_parsers.commands(web["bootcmd"].encode()) == [[*(word.encode() for word in LAUNCH.argv), b""]]
    assert packed(package) == packed(package)


def test_what_capstan_cannot_say_is_refused() -> None:
    for launch, why in (
        (Launch("native", ("/app/x", "cost $5")), "cannot be written as a boot command"),
        *((Launch("native", ("/app/x",), {"A": f"a{odd}b"}), "which Capstan cannot pass on") for odd in " \n\t$\"'\\;&!\x7fä"),
    ):
        with pytest.raises(ImageFailed, match=why):
            capstan.run_yaml(Package("n", "t", "a", "1", {"web": launch}), 8080)


@given(st.text(st.one_of(st.sampled_from(" \n\t$\"'\\;&!?=-nä"), st.characters(max_codepoint=0x7F))))
@settings(deadline=None)
def test_what_a_package_holds_arrives(value: str) -> None:
    """Capstan puts ``--env=NAME?=VALUE`` before the command (``PrependEnvsPrefix`` in its runtime.go)."""
    if capstan.can_hold(value):
        files = {b"/run/web": f"--env=A?={value} /app/x".encode()}
        commands, environment, _ = osv_parsers.boot(b"runscript /run/web", files)
        assert (environment, commands[0][0]) == ({b"A": value.encode()}, b"/app/x")


def test_a_script_is_named_by_its_whole_path_for_capstan_starts_it_elsewhere() -> None:
    files = {"/app/server.js", "/app/build/app.jar", "/app/start"}.__contains__
    for runtime, argv, made in (
        ("node", ("/app/node", "--trace", "./server.js", "start"), ("/app/node", "--trace", "/app/server.js", "start")),
        ("java", ("/app/java", "-jar", "build/app.jar"), ("/app/java", "-jar", "/app/build/app.jar")),
        ("python", ("/usr/bin/python3", "start"), ("/usr/bin/python3", "start")),
        ("native", ("/app/server", "start"), ("/app/server", "start")),
    ):
        launch = capstan.from_anywhere(Launch(runtime, argv), files)
        assert (launch.argv, capstan.needs_its_directory(launch)) == (made, runtime in ("java", "native"))


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("build", "/app/build"),
        (".", "/app"),
        ("dist/ start", "/app/dist start"),
        ("/app/server.js start", "/app/server.js start"),
        ("--import ./x.mjs --trace-warnings server start", "--import ./x.mjs --trace-warnings /app/server start"),
        ("--conditions x --title=y -r ./x.js -- ../app/server.js", "--conditions x --title=y -r ./x.js -- /app/server.js"),
        ("-e code start", "-e code start"),
        ("-r", "-r"),
    ],
)
def test_nodes_script_is_named_by_its_whole_path_whatever_it_is(words: str, made: str) -> None:
    begin = (LOADER, "--library-path", LIBRARIES, "/app/.heroku/node/bin/node")
    launch = capstan.from_anywhere(Launch("node", (*begin, *words.split())), {"/app/start", "/app/x.mjs"}.__contains__)
    assert launch.argv == (*begin, *made.split())


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        ("-r dotenv/config server.js", True), ("--require=dotenv/config server.js", True), ("-r ./x.js -r tracing .", True),
        ("--env-file .env server.js", True), ("--env-file-if-exists=.env server.js", True), ("--env-file=/app/.env server.js", False),
        ("-r ./x.js --import tracing server.js", False), ("server.js -r x --env-file .env", False),
    ],
)  # fmt: skip
def test_node_needs_its_directory_for_what_it_reads_before_any_module(words: str, needs: bool) -> None:
    """Seen with Node.js 20: ``--import``, and paths of ``-r``, are looked up after Davit's module has gone to /app."""
    assert capstan.needs_its_directory(Launch("node", (LOADER, "/usr/bin/node", *words.split()))) is needs


class FakeUploadServer:
    """Says it is one: reads cpio "newc" as cpio(5) describes it, and hangs up when it has all."""

    def __init__(self, answer: bytes = b"") -> None:
        self.found: dict[str, tuple[int, bytes]] = {}
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.after_the_trailer: bytes | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            self.found = unpacked(stream)
            self.after_the_trailer = stream.read()
            connection.sendall(self._answer)

    def close(self) -> None:
        self._thread.join(20)
        self._listener.close()


def unpacked(stream: Any) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        head = stream.read(110)
        assert head[:6] == b"070701" and len(head) == 110
        fields = [int(head[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = stream.read(length)
        assert name.endswith(b"\0")
        assert stream.read(-(110 + length) % 4).strip(b"\0") == b""
        content = stream.read(size)
        assert stream.read(-size % 4).strip(b"\0") == b""
        if name == b"TRAILER!!!\0":
            return found
        found[name[:-1].decode()] = (stat.S_IFMT(mode), content)


def upload(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        return cpio.upload(tree(), connection, 20)


def test_files_are_sent_as_the_server_reads_them() -> None:
    server = FakeUploadServer()
    try:
        assert upload(server.port) == 7
    finally:
        server.close()
    assert server.found == {
        "app": (stat.S_IFDIR, b""), "app/app.py": (stat.S_IFREG, b"print(1)\n"), "app/empty": (stat.S_IFDIR, b""),
        "lib": (stat.S_IFLNK, b"/usr/lib"), "usr": (stat.S_IFDIR, b""), "usr/lib": (stat.S_IFDIR, b""), "usr/lib/odd.so": (stat.S_IFREG, b"12345"),
    }  # fmt: skip
    assert server.after_the_trailer == b"", "the sender ends its half"


@given(st.dictionaries(st.from_regex(r"[a-z.é ]{1,9}[a-z]", fullmatch=True), st.binary(max_size=300), max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_names_and_contents_arrive(files: dict[str, bytes]) -> None:
    folder, stream = rofs.Folder(), io.BytesIO()
    for name, content in files.items():
        folder.add(name, rofs.data(content))
    cpio.write(folder, stream.write)
    stream.seek(0)
    assert unpacked(stream) == {name: (stat.S_IFREG, content) for name, content in files.items()}


def test_a_server_that_hangs_up_or_speaks_is_told() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(cpio.UploadFailed, match="could not be sent"):
        cpio.upload(tree(), ours, 5)
    server = FakeUploadServer(answer=b"no room")
    try:
        with pytest.raises(cpio.UploadFailed, match="should not: b'no room'"):
            upload(server.port)
    finally:
        server.close()
