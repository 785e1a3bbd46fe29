"""The console of a unikernel: what is the app's, what is the kernel's, how it ended. The recordings are OSv's own words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.driver import Exit
from runtime.osv.console import LONGEST, Console, outcome

PRELUDE = b"""OSv v0.57.0-300-g0e34e4dc\r
eth0: 198.18.0.5\r
Booted up in 312.41 ms\r
Cmdline: runscript "/etc/davit/run"\r
runscript expand fn='/etc/davit/run' line=0 '"--env=SECRET=s3cret" "--env=.dyno=id-1" /app/server'\r
Setting in environment: SECRET=s3cret\r
second line of the s3cret\r
Setting in environment: .dyno=id-1\r
"""
END = b"VFS: unmounting /dev\r\nVFS: unmounting /proc\r\nROFS: spent 1.20 ms reading from disk\r\nPowering off.\r\n"


def read(data: bytes, piece: int = 1 << 20, booted: bool = False) -> tuple[str, Console]:
    console = Console("id-1", booted)
    passed = b"".join(console.feed(data[start : start + piece]) for start in range(0, len(data), piece))
    return (passed + console.end()).decode(errors="replace"), console


def test_the_apps_lines_and_nothing_else_are_passed_on() -> None:
    noise = (
        b"random: <Software, Yarrow> initialized\r\nrandom: blocking on read.\r\nsyscall(): unimplemented system call 334\r\nVFS: mounting rofs at /app\r\n"
    )
    text, console = read(PRELUDE + noise + b"Listening\r\n[info] VFS: mine\r\nlast without end" + b"\r\n" + END)
    assert text == "Listening\n[info] VFS: mine\nlast without end\n"
    assert console.booted and console.banner == "OSv v0.57.0-300-g0e34e4dc"
    assert outcome(console, 0, None) == Exit(0)


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_it_does_not_matter_in_which_pieces_it_comes(piece: int) -> None:
    data = PRELUDE + b"a\r\nprogram exited with status 7\r\n" + END
    text, console = read(data, piece)
    assert (text, outcome(console, 0, None)) == ("a\n", Exit(7))


@given(st.binary(max_size=400), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_nothing_before_the_marker_is_ever_passed_on(secret: bytes, piece: int) -> None:
    """Whatever bytes a value holds, and cut off as the kernel cuts what is longer than 511 bytes."""
    shown = b"Setting in environment: SECRET=" + secret
    text, console = read(
        PRELUDE.split(b"Setting")[0] + shown + b"Setting in environment: .dyno=id-1\r\n" + b"out\r\n", piece
    )
    assert console.booted and text == "out\n"


def test_a_secret_that_imitates_the_kernel_ends_the_secret_keeping_of_its_own_app_only() -> None:
    other = PRELUDE.replace(b"s3cret\r\nsecond", b"x\r\nSetting in environment: .dyno=id-2\r\nsecond")
    text, console = read(other + b"out\r\n")
    assert text == "out\n" and console.booted


@given(st.binary(max_size=3000), st.integers(1, 500))
@settings(max_examples=150, deadline=None)
def test_hostile_output_is_passed_on_and_breaks_nothing(data: bytes, piece: int) -> None:
    text, console = read(PRELUDE + data, piece)
    expected = data.replace(b"\r\n", b"\n").decode(errors="replace")
    if not any(word in data for word in (b"VFS", b"ROFS", b"program ", b"\r")):
        assert text.rstrip("\n") == expected.rstrip("\n")
    outcome(console, 0, None)


def test_a_line_without_end_does_not_stay_in_memory() -> None:
    console = Console("id-1", booted=True)
    passed = sum(len(console.feed(b"x" * 10_000)) for _ in range(100))
    assert passed > 1_000_000 - 2 * LONGEST and len(console._rest) <= LONGEST
    assert console.feed(b"y\r\nVFS: unmounting /\r\nz\r\n").endswith(b"y\nz\n")


def test_a_flood_before_the_marker_does_not_stay_in_memory() -> None:
    console = Console("id-1")
    for _ in range(200):
        assert console.feed(b"x" * 10_000) == b""
    assert len(console._rest) < 4 * LONGEST


@pytest.mark.parametrize(
    ("words", "exit"),
    [
        (b"program exited with status 0\r\n", Exit(0)),
        (b"program exited with status 42\r\n", Exit(42)),
        (b"program /app/server returned 3\r\n", Exit(3)),
        (b"program /app/server returned 3\r\nRest API server running on port 8000\r\n", Exit(3)),
        (b"program exited with status -1\r\n", Exit(255)),
        (b'Uncaught signal 15 ("Terminated"). Powering off.\r\n', Exit(143)),
        (b"Aborted\r\n\n[backtrace]\r\n0x000000004021 <abort+19>\r\n", Exit(134)),
        (b"Assertion failed: x (a.cc: f: 3)\r\n", Exit(134)),
        (b"page fault outside application, addr: 0x0000000000000010\r\n[registers]\r\n", Exit(139)),
        (b"/usr/bin/python3: failed looking up symbol sem_clockwait\r\n\r\n[backtrace]\r\n", Exit(134)),
        (b"Out of memory: could not reclaim any further. Current memory: 123 Kb\r\n[backtrace]\r\n", Exit(137, oom=True)),
        (b"", Exit(0)),
    ],
)
def test_how_it_ended(words: bytes, exit: Exit) -> None:
    _, console = read(PRELUDE + b"hello\r\n" + words + END)
    assert outcome(console, 0, None) == exit


@pytest.mark.parametrize(
    ("words", "exit"),
    [
        (b"program exited with status 3\r\n", Exit(3)),
        (b"program /app/server returned 3\r\n", Exit(3)),
        (b'Uncaught signal 6 ("Aborted"). Powering off.\r\n', Exit(134)),
        (b"page fault outside application, addr: 0x0000000000000010\r\n[registers]\r\n\r\n[backtrace]\r\n", Exit(139)),
        (b"Out of memory: could not reclaim any further. Current memory: 123 Kb\r\n[backtrace]\r\n", Exit(137, oom=True)),
        (b"", Exit(0)),
    ],
)
def test_how_it_ended_is_read_behind_a_line_without_an_end(words: bytes, exit: Exit) -> None:
    text, console = read(PRELUDE + b"the program failed: no" + words + END, 9)
    assert outcome(console, 0, None) == exit
    told = words.replace(b"\r", b"").decode() if exit.status and exit.status > 3 else ""
    assert text == f"the program failed: no{told}"


def test_a_line_that_the_kernel_interrupts_is_one() -> None:
    for words in (b"random: device unblocked.", b"syscall(): unimplemented system call 334", b"random: <Yarrow> initialized"):
        for begun in (b"begun", b"x" * 40_000):
            text, _ = read(PRELUDE + begun + words + b"\r\n" + words + b"\r\n and ended\r\nnext\r\n" + END, 4096)
            assert text == f"{begun.decode()} and ended\nnext\n"


def test_an_app_that_says_the_kernels_words_and_goes_on_has_not_ended() -> None:
    text, console = read(PRELUDE + b"program exited with status 9\r\nstill here\r\n" + END)
    assert text == "program exited with status 9\nstill here\n"
    assert outcome(console, 0, None) == Exit(0)
    text, console = read(PRELUDE + b"the program exited with status 9\r\nstill here\r\n" + END)
    assert text == "the program exited with status 9\nstill here\n"
    assert outcome(console, 0, None) == Exit(0)


CRASH = b"page fault outside application, addr: 0x0000000000000010\r\n[registers]\r\nRIP: 0x0000000000000000 <???+0>\r\n"
REPORT = b"RAX: 0x0000000000000001  RBX: 0x0000000000000002\r\nR8:  0x0000000000000001\r\nAborted\r\n\r\n[backtrace]\r\n"
FRAMES = b"0x000000004021a3b4 <abort+19>\r\n0x0000000040219fff <???+1075945471>\r\n"


def test_the_kernels_report_of_a_crash_is_no_line_of_the_apps() -> None:
    _, console = read(PRELUDE + b"hello\r\n" + CRASH + REPORT + FRAMES, 7)
    assert (console.crash, console.reported) == (11, True)
    assert outcome(console, 0, None) == Exit(139)


@pytest.mark.parametrize("words", [b"Assertion failed: what a visitor typed", b"Aborted", b"x: failed looking up symbol y"])
def test_an_app_that_says_a_crashs_words_and_goes_on_has_not_crashed(words: bytes) -> None:
    text, console = read(PRELUDE + words + b"\r\nstill here\r\n")
    assert text == f"{words.decode()}\nstill here\n"
    assert (console.crash, outcome(console, 0, None)) == (None, Exit(0))
    _, console = read(PRELUDE + words + b"\r\nprogram exited with status 0\r\n" + END)
    assert outcome(console, 0, None) == Exit(0)


def test_a_kernel_that_crashes_at_boot_says_so_and_no_secret() -> None:
    _, console = read(b"OSv v0.57.0\r\ntrying to execute or access missing symbol\r\n\r\n[backtrace]\r\n" + FRAMES)
    assert console.failure == "trying to execute or access missing symbol"
    _, console = read(b"OSv v0.57.0\r\nno memory for x\r\n\r\n[backtrace]\r\n" + FRAMES)
    assert console.failure == "its kernel crashed before it started the app (no memory for x)"
    _, console = read(PRELUDE.split(b"Setting in environment: .dyno")[0] + b"\r\n[backtrace]\r\n" + FRAMES)
    assert console.failure == "its kernel crashed before it started the app"


def test_a_machine_that_was_ended_from_outside() -> None:
    _, console = read(PRELUDE + b"hello\r\n")
    assert outcome(console, 137, None) == Exit(137)
    assert outcome(console, 0, 15) == Exit(143)
    assert outcome(console, 0, 9) == Exit(137)
    assert outcome(console, None, None) == Exit(None)


@pytest.mark.parametrize(
    "words",
    [
        "Failed to load object: /app/nothing. Powering off.",
        "Could not mount rofs root filesystem.",
        "unrecognized option: nonsense",
        "Out of memory: could not reclaim any further. Current memory: 12 Kb",
    ],
)
def test_why_nothing_was_started(words: str) -> None:
    _, console = read(b"OSv v0.57.0\r\n" + words.encode() + b"\r\n")
    assert console.failure == words and not console.booted
    assert outcome(console, 0, None).status in (127, 137)
    _, console = read(PRELUDE + words.encode() + b"\r\n") if words.startswith("Failed") else ("", console)
    assert console.failure == words


def test_one_that_is_found_again_needs_no_marker() -> None:
    text, console = read(b"more\r\nprogram exited with status 2\r\n", booted=True)
    assert (text, outcome(console, None, None)) == ("more\n", Exit(2))
