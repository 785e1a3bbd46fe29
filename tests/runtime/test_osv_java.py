"""Java on a real OSv kernel: a small runtime in /app/.jdk, where Heroku's JVM buildpack puts one, made by this host's own JDK."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from runtime import stacks
from runtime.driver import Exit
from tests.runtime import rootfs
from tests.runtime.bench_of_driver import MIB
from tests.runtime.test_osv_kernel import LIMITS, STACKS, KernelBench

pytestmark = [pytest.mark.root, pytest.mark.osv, pytest.mark.timeout(900)]
ROOMY = replace(LIMITS, memory=512 * MIB, memory_max=1024 * MIB)

WEB = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class Web {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", Integer.parseInt(System.getenv("PORT"))), 0);
        server.createContext("/", exchange -> {
            byte[] body = ("Hello from " + System.getProperty("user.dir")).getBytes();
            exchange.sendResponseHeaders(200, exchange.getRequestMethod().equals("HEAD") ? -1 : body.length);
            if (!exchange.getRequestMethod().equals("HEAD")) exchange.getResponseBody().write(body);
            exchange.close();
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("told to end")));
        server.start();
        System.out.println("listening");
    }
}
"""
TRAPS = """
import java.util.ArrayList;
public class Traps {
    static int deep(int depth) { return deep(depth + 1) + 1; }
    static int length(String text) { return text.length(); }
    public static void main(String[] arguments) {
        int caught = 0;
        for (int round = 0; round < 20000; round++)
            try { length(round % 1000 == 0 ? null : "abc"); } catch (NullPointerException error) { caught++; }
        System.out.println("no object " + caught);
        try { deep(0); } catch (StackOverflowError error) { System.out.println("no stack"); }
        ArrayList<byte[]> held = new ArrayList<>();
        try { while (true) held.add(new byte[1 << 20]); } catch (OutOfMemoryError error) { held.clear(); System.out.println("no memory"); }
        System.exit(5);
    }
}
"""


@pytest.fixture(scope="module")
def java(loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelBench]:
    if shutil.which("javac") is None or shutil.which("jlink") is None:
        pytest.skip("there is no JDK on this host (javac, jlink): nothing of Java was tried on OSv")
    directory = tmp_path_factory.mktemp("java")
    tree = directory / "slug/app"
    tree.mkdir(parents=True)
    modules = "java.base,java.logging,jdk.httpserver"
    subprocess.run(["jlink", "--add-modules", modules, "--strip-debug", "--output", tree / ".jdk"], check=True)
    for name, text in (("Web", WEB), ("Traps", TRAPS)):
        (directory / f"{name}.java").write_text(text)
        subprocess.run(["javac", "-d", tree, directory / f"{name}.java"], check=True)
    bench = KernelBench(
        loop, stacks.current(STACKS).run, rootfs.app_image(directory, {}), DAVIT_OSV_KERNEL=os.environ["DAVIT_OSV_KERNEL"]
    )
    bench.open()
    yield bench
    bench.close()
    assert bench.leftovers_on_host() == []


def test_a_server_answers_and_its_shutdown_hooks_run(java: KernelBench) -> None:
    dyno = java.started("java Web", port=8080, limits=ROOMY)
    java.ready(dyno)
    assert urllib.request.urlopen(f"http://{dyno.address}:8080/", timeout=30).read() == b"Hello from /app"
    java.run(dyno.signal(signal.SIGTERM), 30)
    assert java.run(dyno.wait(), 60) == Exit(143)
    assert java.output(dyno) == "listening\ntold to end\n"
    java.remove_all()


def test_what_java_learns_by_traps_of_the_processor_is_an_exception(java: KernelBench) -> None:
    dyno = java.started("java -Xmixed Traps", limits=ROOMY)
    assert java.run(dyno.wait(), 180) == Exit(5)
    assert java.output(dyno) == "no object 20\nno stack\nno memory\n"
    java.remove_all()
