"""The images of a unikernel: what is in them, read by the reader that believes nothing; and Davit's Python modules at work."""

from __future__ import annotations

import importlib.util
import io
import os
import py_compile
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from slugs import osvimage, rofs
from tests.conftest import wait_until
from tests.ports import free_port

SHIMS = Path(osvimage.__file__).with_name("osvshims")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of the fewest files."""
    stack = tmp_path_factory.mktemp("stack")
    for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
        put(stack / LIBRARIES.relative_to("/") / name, (LIBRARIES / name).read_bytes())
    put(stack / "usr/lib/x86_64-linux-gnu/gconv/x.so", b"not needed")
    put(stack / "usr/bin/python3.13", b"python")
    put(stack / "usr/lib/python3.13/os.py", b"# os")
    put(stack / "usr/lib/python3.13/test/x.py", b"not needed")
    put(stack / "etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
    (stack / "etc/group").symlink_to("/etc/shadow")
    return stack


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_the_root_is_a_disk_whose_second_partition_osv_finds(stack: Path, tmp_path: Path) -> None:
    put(tmp_path / "ca", b"certificates")
    written = osvimage.write_root(osvimage.base(stack, "python", tmp_path / "ca"), tmp_path / "root.img")
    with (tmp_path / "root.img").open("rb") as disk:
        partition = osvimage.partition_of(disk)
        assert partition == osvimage.Partition(512, written.size)
        assert os.fstat(disk.fileno()).st_size == 512 + written.size
    image = rofs.Image(io.BytesIO((tmp_path / "root.img").read_bytes()), 512)
    paths = set(image.paths())
    assert {b"/dev", b"/proc", b"/tmp", b"/app", b"/etc/davit", b"/etc/fstab", b"/usr/lib/python3.13/os.py"} <= paths
    assert image.target(b"/lib64/ld-linux-x86-64.so.2") == b"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    assert image.read(b"/usr/lib/x86_64-linux-gnu/libc.so.6") == (LIBRARIES / "libc.so.6").read_bytes()
    assert image.read(b"/etc/ssl/certs/ca-certificates.crt") == b"certificates"
    assert not {path for path in paths if b"gconv" in path or b"/test/" in path}
    assert b"/etc/group" not in paths, "a symlink out of the stack shows nothing of this host"
    osvimage.write_root(osvimage.base(stack, "python", tmp_path / "ca"), tmp_path / "again.img")
    assert (tmp_path / "again.img").read_bytes() == (tmp_path / "root.img").read_bytes()


def test_the_stacks_java_comes_with_its_settings(stack: Path, tmp_path: Path) -> None:
    """Debian's has them in /etc, and symlinks to there."""
    put(tmp_path / "stack/usr/lib/jvm/java-21/bin/java", b"java")
    put(tmp_path / "stack/etc/java-21/security/java.security", b"settings")
    put(tmp_path / "stack/etc/ssl/certs/java/cacerts", b"certificates")
    (tmp_path / "stack/usr/lib/jvm/java-21/conf").symlink_to("/etc/java-21")
    (tmp_path / "stack/etc/java-out").symlink_to("/etc")
    for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
        put(tmp_path / "stack" / LIBRARIES.relative_to("/") / name, (LIBRARIES / name).read_bytes())
    osvimage.write_root(osvimage.base(tmp_path / "stack", "java"), tmp_path / "root.img")
    image = rofs.Image(io.BytesIO((tmp_path / "root.img").read_bytes()), 512)
    assert image.target(b"/usr/lib/jvm/java-21/conf") == b"/etc/java-21"
    assert image.read(b"/etc/java-21/security/java.security") == b"settings"
    assert image.read(b"/etc/ssl/certs/java/cacerts") == b"certificates"
    assert b"/etc/java-out" not in image.paths()


def test_a_stack_without_a_loader_or_python_is_refused(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(osvimage.ImageFailed, match="needs its loader"):
        osvimage.base(tmp_path, "native")
    for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
        put(tmp_path / LIBRARIES.relative_to("/") / name, b"")
    with pytest.raises(osvimage.ImageFailed, match="no Python"):
        osvimage.base(tmp_path, "python")


def test_compiled_python_is_fresh_for_good_or_left_out(tmp_path: Path) -> None:
    for name in ("fresh", "stale", "orphan"):
        put(tmp_path / f"app/{name}.py", f"VALUE = {name!r}\n".encode())
        py_compile.compile(str(tmp_path / f"app/{name}.py"))
    put(tmp_path / "app/stale.py", b"VALUE = 'changed since'\n")
    (tmp_path / "app/orphan.py").unlink()
    put(tmp_path / "app/__pycache__/rubbish.pyc", b"x" * 40)
    osvimage.write_plain(osvimage.slug(tmp_path / "app"), tmp_path / "slug.img")
    with (tmp_path / "slug.img").open("rb") as file:
        image = rofs.Image(file)
        tag = sys.implementation.cache_tag.encode()
        assert b"/__pycache__/stale." + tag + b".pyc" not in image.paths()
        assert b"/__pycache__/orphan." + tag + b".pyc" not in image.paths()
        pyc = image.read(b"/__pycache__/fresh." + tag + b".pyc")
    assert pyc[:4] == importlib.util.MAGIC_NUMBER and struct.unpack("<I", pyc[4:8]) == (1,)
    put(tmp_path / f"run/__pycache__/fresh.{tag.decode()}.pyc", pyc)
    put(tmp_path / "run/fresh.py", b"raise SystemExit('the source was read')")
    done = subprocess.run(
        [sys.executable, "-c", "import fresh; print(fresh.VALUE)"], cwd=tmp_path / "run", capture_output=True, text=True
    )
    assert done.stdout == "fresh\n", done.stderr


def test_the_configuration_is_private_and_whole(tmp_path: Path) -> None:
    osvimage.write_plain(osvimage.configuration(b"run me\n", {"/etc/x.conf": b"x"}), tmp_path / "c.img", mode=0o600)
    assert (tmp_path / "c.img").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "c.img").open("rb") as file:
        image = rofs.Image(file)
        assert image.read(b"/run") == b"run me\n" and image.read(b"/files/etc/x.conf") == b"x"
        assert image.read(b"/python/sitecustomize.py") == (SHIMS / "sitecustomize.py").read_bytes()


def test_a_disk_that_boots_by_itself_has_capstans_layout(stack: Path, tmp_path: Path) -> None:
    loader = bytearray(os.urandom(3 << 20))
    loader[510:512] = b"\x55\xaa"
    put(tmp_path / "loader.img", bytes(loader))
    written = osvimage.write_bootable(
        tmp_path / "loader.img", b"--rootfs=rofs /app", osvimage.base(stack, "native"), tmp_path / "disk.img"
    )
    data = (tmp_path / "disk.img").read_bytes()
    assert data[512 : 512 + 19] == b"--rootfs=rofs /app\0"
    assert data[:462] == bytes(loader[:462]) and data[531 : 3 << 20] == bytes(loader[531:])
    assert osvimage.partition_of(io.BytesIO(data)) == osvimage.Partition(4 << 20, written.size)
    assert b"/usr/lib/x86_64-linux-gnu/libc.so.6" in rofs.Image(io.BytesIO(data), 4 << 20).paths()


def test_what_is_no_boot_disk_and_a_line_too_long_are_refused(stack: Path, tmp_path: Path) -> None:
    put(tmp_path / "elf", Path("/bin/true").read_bytes())
    with pytest.raises(osvimage.ImageFailed, match="is no boot disk"):
        osvimage.write_bootable(tmp_path / "elf", b"x", rofs.Folder(), tmp_path / "disk")
    with pytest.raises(osvimage.ImageFailed, match="holds 1023"):
        osvimage.write_bootable(tmp_path / "elf", b"x" * 2000, rofs.Folder(), tmp_path / "disk")
    assert not (tmp_path / "disk").exists() and list(tmp_path.glob(".disk*")) == []


def shimmed(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Python with Davit's modules, as in the guest (but on this kernel, which needs them not)."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{SHIMS}:{cwd}", "OSV_VERSION": "0", "PYTHONUNBUFFERED": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "davit_launch", *words],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_scripts_modules_and_code_run_as_python_would_run_them(tmp_path: Path) -> None:
    put(tmp_path / "bin/x.py", b"import sys, helper; print(sys.argv, __name__, helper.__name__)")
    put(tmp_path / "bin/helper.py", b"")
    put(tmp_path / "mod.py", b"import sys; print(sys.argv[1:], __name__)")
    assert shimmed("bin/x.py", "a b", cwd=tmp_path).communicate()[0] == "['bin/x.py', 'a b'] __main__ helper\n"
    assert shimmed("-m", "mod", "c", cwd=tmp_path).communicate()[0] == "['c'] __main__\n"
    assert shimmed("-c", "import sys; print(sys.argv)", "d", cwd=tmp_path).communicate()[0] == "['-c', 'd']\n"
    paths = "import sys; print(sys.path[0])"
    assert shimmed("-c", paths, cwd=tmp_path, PYTHONSAFEPATH="1").communicate()[0] == f"{SHIMS}\n", "as with Python's -P"
    failing = shimmed("-c", "raise SystemExit(3)", cwd=tmp_path)
    assert (failing.communicate()[0], failing.returncode) == ("", 3)


def test_the_shims_keep_what_they_replace(tmp_path: Path) -> None:
    code = """
import asyncio, os, signal, socket, time
assert time.sleep.__module__ == socket.socketpair.__module__ == 'sitecustomize'
began = time.monotonic(); time.sleep(0.05); assert time.monotonic() - began >= 0.05
a, b = socket.socketpair(); a.sendall(b'x'); assert b.recv(1) == b'x'
r, w = os.pipe(); os.set_blocking(r, False); assert not os.get_blocking(r)
async def main():
    loop = asyncio.get_running_loop(); got = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, got.set_result, 'signal')
    os.kill(os.getpid(), signal.SIGTERM)
    return await asyncio.wait_for(got, 20)
assert not [name for name in os.environ if name.startswith('.')]
assert {name: value for name, value in os.environ.items() if name.startswith('DAVIT_')} == {
    'DAVIT_W0': 'mine', 'DAVIT_WEBHOOK_SECRET': 's', 'DAVIT_SITE': '/x', 'DAVIT_SIGNALS': 'many'}
print(asyncio.run(main()))
"""
    davits = {".0": "carried", ".site": str(tmp_path), ".dyno": "web.1"}
    theirs = {"DAVIT_W0": "mine", "DAVIT_WEBHOOK_SECRET": "s", "DAVIT_SITE": "/x", "DAVIT_SIGNALS": "many"}
    assert shimmed("-c", code, cwd=tmp_path, **davits, **theirs).communicate()[0] == "signal\n"


def test_signals_come_over_tcp_to_pythons_own_handlers(tmp_path: Path) -> None:
    port = free_port()

    def send(number: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(f"{number}\n".encode())
            return connection.recv(9)

    code = "import signal, time\ndef stop(*_): print('told', flush=True); raise SystemExit(9)\nsignal.signal(15, stop); print('up', flush=True); time.sleep(600)"
    handled = shimmed("-c", code, cwd=tmp_path, **{".signals": str(port)})
    assert handled.stdout is not None and handled.stdout.readline() == "up\n"
    assert send(15) == b"ok\n"
    assert (handled.communicate(timeout=60)[0], handled.returncode) == ("told\n", 9)
    unhandled = shimmed("-c", "import time; print('up', flush=True); time.sleep(600)", cwd=tmp_path, **{".signals": str(port)})
    assert unhandled.stdout is not None and unhandled.stdout.readline() == "up\n"
    assert send(15) == b"ok\n"
    unhandled.communicate(timeout=60)
    assert unhandled.returncode == -signal.SIGTERM


def test_signals_come_over_tcp_to_nodes_own_handlers(tmp_path: Path) -> None:
    port = free_port()

    def run(code: str) -> tuple[str, int]:
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "NODE_OPTIONS": f"--require={SHIMS / 'davit_signals.cjs'}",
            ".signals": str(port),
        }
        node = subprocess.Popen(["node", "-e", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert node.stdout is not None
        line = node.stdout.readline()
        assert line == "up undefined\n", line + node.stdout.read()
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(b"15\n")
            assert connection.recv(9) == b"ok\n"
        return node.communicate(timeout=120)[0], node.returncode

    wait = "setTimeout(() => console.log('up', process.env['.signals']), 50); setInterval(() => {}, 1000);"
    assert run(f"process.on('SIGTERM', () => {{ console.log('told'); process.exit(9); }}); {wait}") == ("told\n", 9)
    assert run(wait) == ("", 143)


@pytest.mark.parametrize("served", ["one process, 3 threads", "waitress, one process, 4 threads"])
def test_gunicorns_command_is_served_by_one_process_that_lets_requests_end(tmp_path: Path, served: str) -> None:
    if "waitress" in served:
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "pip", "install", "--quiet", "--target", tmp_path, "waitress==3.0.2"], check=True)
    port = free_port()
    put(tmp_path / "gunicorn.conf.py", b"threads = 3\nraw_env = []\n")
    put(
        tmp_path / "web.py",
        b"""
import time
def create_app(greeting):
    def app(environ, start):
        word = greeting
        if environ['PATH_INFO'] == '/slow':
            open('slow', 'w').close(); time.sleep(1); word = '.' * (16 << 20) + word
        body = f"{word} {environ['wsgi.url_scheme']} for {environ.get('HTTP_X_FORWARDED_FOR')}".encode()
        start('200 OK', [('Content-Length', str(len(body)))])
        return [body]
    return app
""",
    )
    server = shimmed(
        "-m", "davit_wsgi", "web:create_app('hi')", "--workers", "4", "--bind", "0.0.0.0:1", cwd=tmp_path, PORT=str(port)
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line == f"Listening at http://0.0.0.0:{port} ({served})\n", line + server.stdout.read()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "9.8.7.6"})
        assert urllib.request.urlopen(request, timeout=20).read() == b"hi https for 9.8.7.6"
        with socket.create_connection(("127.0.0.1", port), 20) as upload, socket.create_connection(("127.0.0.1", port), 20) as slow:
            if "waitress" in served:  # which asks the app only when it has all of it
                upload.sendall(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\na")
            slow.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            wait_until((tmp_path / "slow").exists, "the slow request")
            server.send_signal(signal.SIGTERM)
            answer = slow.makefile("rb").read()
            assert answer.endswith(b"hi http for None") and len(answer) > 16 << 20
            if "waitress" in served:
                upload.sendall(b"b")
                assert upload.makefile("rb").read().endswith(b"hi http for None")
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.communicate()
