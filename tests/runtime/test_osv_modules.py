"""OSv's own modules in a real unikernel: what its REST server tells, and what its cloud-init does before the app starts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import stacks
from runtime.driver import Exit
from runtime.osv.dyno import Unikernel
from tests.runtime import rootfs
from tests.runtime.bench_of_driver import MIB
from tests.runtime.test_osv_kernel import BY_OSV, ENV, LIMITS, RETURNS, SAY, STACKS, KernelBench

pytestmark = [pytest.mark.root, pytest.mark.osv, pytest.mark.timeout(600)]
TELL = """
import os, signal, sys
def stop(*_):
    print("told to end", flush=True)
    os._exit(5)
signal.signal(signal.SIGTERM, stop)
print(open("/tmp/welcome").read().strip() if os.path.exists("/tmp/welcome") else "no file", flush=True)
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.uname().nodename.encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def bench(loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelBench]:
    kernel = Path(os.environ["DAVIT_OSV_KERNEL"])
    modules = Path(os.environ.get("DAVIT_OSV_MODULES") or kernel.with_name("modules"))
    if not (modules / "libhttpserver-api.so").is_file():
        pytest.skip(f"there are no OSv modules in {modules}: its REST server and cloud-init were not tried")
    directory = tmp_path_factory.mktemp("slug")
    (directory / "slug/app").mkdir(parents=True)
    for name, source, options in (("say", SAY, ["-pie", "-fPIE"]), ("returns", RETURNS, BY_OSV)):
        compiler = ["gcc", "-x", "c", "-O1", *options, "-o", str(directory / "slug/app" / name), "-"]
        subprocess.run(compiler, input=source, text=True, check=True)
    slug = rootfs.app_image(directory, {"tell.py": TELL})
    made = KernelBench(loop, stacks.current(STACKS).run, slug, DAVIT_OSV_KERNEL=str(kernel), DAVIT_OSV_MODULES=str(modules))
    made.open()
    yield made
    made.close()
    assert made.leftovers_on_host() == []


def get(dyno: Unikernel) -> str:
    with urllib.request.urlopen(f"http://{dyno.address}:8080/", timeout=20) as answer:
        return str(answer.read().decode())


def test_what_its_kernel_tells_and_what_cloud_init_did_before_the_app_began(bench: KernelBench) -> None:
    document = "hostname: here\nfiles: {/tmp/welcome: hello from cloud-init}\nrun: [{POST: /env/ADDED, val: 'yes'}]\n"
    dyno = bench.started("python3 tell.py", env={**ENV, "OSV_CLOUD_INIT": document}, port=8080)
    bench.ready(dyno)
    assert get(dyno) == "here"
    bench.until(lambda: dyno.figures is not None, "figures of its kernel's")
    assert dyno.figures is not None
    assert 200 * MIB < dyno.figures.memory_total <= LIMITS.memory and dyno.figures.threads > 5 and dyno.figures.uptime >= 1
    usage = dyno.stats()
    assert usage.memory == dyno.figures.memory_total - dyno.figures.memory_free and usage.uptime == dyno.figures.uptime
    bench.run(dyno.signal(signal.SIGTERM))
    assert bench.output(dyno).splitlines()[-2:] == ["hello from cloud-init", "told to end"]
    assert bench.run(dyno.wait()) == Exit(5)


def test_a_file_that_cannot_be_written_keeps_no_app_from_beginning(bench: KernelBench) -> None:
    document = "files: {/usr/none/at/all: x}\n"
    dyno = bench.started("python3 tell.py", env={**ENV, "OSV_CLOUD_INIT": document}, port=8080)
    bench.ready(dyno)
    bench.run(dyno.signal(signal.SIGTERM))
    assert "no file" in bench.output(dyno)


def test_a_native_program_beside_the_rest_server(bench: KernelBench) -> None:
    assert bench.printed(bench.started("./say one")).endswith("A6f6e65\n")


def test_the_rest_server_ends_with_a_program_whose_main_returns(bench: KernelBench) -> None:
    dyno = bench.started("./returns fail")
    ended, said = bench.run(dyno.wait(), 60), bench.output(dyno)
    assert ended == Exit(7) and "returning\n" in said, said
