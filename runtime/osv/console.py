"""What comes out of a unikernel's serial port: the kernel's words, and between them the app's output (pure).

The kernel shows every environment variable while it reads them (measured: ``runscript expand …``, ``Setting in environment:``),
so nothing is passed on before it has shown the last one, a variable of ours with a value that no other has. After that all is
the app's but for a few sentences that only the kernel says; how the app ended is one of them, and counts only when nothing
follows. So it is with the words of a crash: after them comes the kernel's report of it (a backtrace, registers) and nothing
more. An app can say such a sentence, too: it can lie about itself and about nobody else.
"""

from __future__ import annotations

import re
from signal import SIGABRT, SIGKILL, SIGSEGV

from runtime.driver import Exit
from slugs.osvline import OWN

MARKER = f"{OWN}dyno"
"""The variable that is set last."""
LONGEST = 16384
"""Bytes of a line that are passed on before its end is seen."""

_SHOWN = "Setting in environment: {}={}"
_KERNEL = re.compile(
    rb"VFS: (mounting|unmounting|initialized) .*|ROFS: (spent|read|allocated|hit ratio) .*"
    rb"|random: (<.*> initialized|device unblocked\.|blocking on read\.|.* registered as a source\.)"
    rb"|syscall\(\): unimplemented system call \d+|Requested termination of .*, waiting\.\.\."
    rb"|Powering off\.|Chdir to: .*|chdir done"
    rb"|Rest API server running on port \d+"  # it listens before it says so, and a short program may be over meanwhile
)
_AMIDST = re.compile(
    rb"(?:VFS: unmounting /\S*|random: (?:<[^<>]*> initialized|device unblocked\.|blocking on read\.)"
    rb"|syscall\(\): unimplemented system call \d+)\Z"
)
"""What the kernel says at any time, be the app's line at its end or not."""
_STATUS = re.compile(rb"program (?:exited with status|.{1,4096} returned) (-?\d{1,20})")
_BACKTRACE = b"[backtrace]"
_REPORT = re.compile(rb"|\[backtrace\]|\[registers\]|0x[0-9a-f]{8,16}( <.*>)?|[A-Z][A-Z0-9]{1,2}: +0x[0-9a-f]{16}( .*)?")
"""What follows the words of a crash: lines of the kernel's report, empty ones among them."""
_CRASHES = (
    (re.compile(rb"Aborted"), SIGABRT),
    (re.compile(rb"\[backtrace\]"), SIGABRT),
    (re.compile(rb"trying to execute or access missing symbol"), SIGABRT),
    (re.compile(rb"Assertion failed: .*"), SIGABRT),
    (re.compile(rb".*: failed looking up symbol .*"), SIGABRT),
    (re.compile(rb".*page fault outside application, addr: 0x[0-9a-f]+"), SIGSEGV),
    (re.compile(rb".*Out of memory: could not reclaim any further\..*"), SIGKILL),
)
_UNCAUGHT = re.compile(rb'Uncaught signal (\d{1,2}) \("[^"]{1,40}"\)\. Powering off\.\Z')
_FAILURES = re.compile(
    rb"Failed to load object: .{1,300}|Could not mount rofs root filesystem\.|unrecognized option: [\w-]{1,80}"
    rb"|Failed to parse command line\."
    rb"|Failed to open runscript file .{1,200}|This image has an empty command line\. Nothing to run\."
    rb"|Neither paravirtual clock nor HPET is available\.|Unknown console:.{1,80}|incorrect parameter on --ip"
)
_BANNER = re.compile(rb"OSv (v[\w.+-]{1,80})?")
_SECRETS = re.compile(rb"Cmdline: |runscript expand |Setting in environment: ")
_CRASHED_AT_BOOT = "its kernel crashed before it started the app"


class Console:
    """One unikernel's serial port.

    Args:
        dyno: the value of :data:`MARKER`.
        booted: whether the marker was seen already (of a dyno that is found again).

    Attributes:
        banner: the kernel's first words (``OSv v…``).
        booted: the app has been started, or is about to be.
        crash: the signal that its crash would be on Linux; None while the last words are not a crash's.
        reported: the kernel's backtrace followed them.
        oom: memory ran out.
        failure: why nothing could be started, in the kernel's words.
    """

    def __init__(self, dyno: str, booted: bool = False) -> None:
        self._marker = _SHOWN.format(MARKER, dyno).encode()
        self.booted = booted
        self.banner = ""
        self.crash: int | None = None
        self.reported = False
        self.oom = False
        self.failure = ""
        self._secret = False
        self._last = b""
        self._rest = b""
        self._held: list[tuple[bytes, int]] = []

    def feed(self, data: bytes) -> bytes:
        """Take what came; give what of it is the app's, whole lines mostly."""
        self._rest += data
        if not self.booted and not self._find_marker():
            return b""
        *lines, self._rest = self._rest.split(b"\n")
        passed = b"".join(self._line(line) for line in lines)
        if len(self._rest) > LONGEST:
            self._not_crashed()
            passed += self._release() + self._rest
            self._rest = b""
        return passed

    def end(self) -> bytes:
        """The port is closed: what is left of the app's output."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        if not self.booted:
            self._look_for_failure(rest)
            return b""
        passed = self._line(rest) if rest else b""
        return passed.removesuffix(b"\n")

    @property
    def status(self) -> int | None:
        """What the app returned, as far as the kernel has told."""
        return self._held[-1][1] & 0xFF if self._held else None

    def _find_marker(self) -> bool:
        """Drop what came before the marker; look only for what the kernel says of itself."""
        found = self._rest.find(self._marker)
        end = self._rest.find(b"\n", found + len(self._marker)) if found >= 0 else -1
        before = self._rest[:found] if end >= 0 else self._rest
        complete = before.rfind(b"\n") + 1
        for line in before[:complete].split(b"\n"):
            self._look_for_failure(line.rstrip(b"\r"))
        if end >= 0:
            self.booted, self._rest = True, self._rest[end + 1 :]
            return True
        keep = before[complete:]
        self._rest = keep[-(len(self._marker) + 2 * LONGEST) :]
        return False

    def _look_for_failure(self, line: bytes) -> None:
        if not self.banner and (found := _BANNER.search(line)):  # a kernel built outside of git knows no version
            self.banner = found[0].decode().strip()
        self._secret = self._secret or _SECRETS.match(line) is not None
        if line == _BACKTRACE:  # what it says before it may be a setting's value from here on
            self.failure = self.failure or self._words_of_a_crash()
        if self._crashed(line) or _FAILURES.match(line):
            self.failure = self.failure or line[:300].decode(errors="replace")
        self._last = line or self._last

    def _words_of_a_crash(self) -> str:
        if self._secret or not self._last or _BANNER.match(self._last):
            return _CRASHED_AT_BOOT
        return f"{_CRASHED_AT_BOOT} ({self._last[:200].decode(errors='replace')})"

    def _line(self, line: bytes) -> bytes:
        line = line.removesuffix(b"\r")
        if _KERNEL.fullmatch(line):
            return b""
        if interrupted := _AMIDST.search(line):
            self._not_crashed()
            return self._release() + line[: interrupted.start()]  # what follows is the rest of that line
        if told := _status(line):
            self._not_crashed()
            before = line[: told.start()]
            passed = self._release() + before if before else b""
            self._held.append((told[0], int(told[1])))
            return passed
        if _FAILURES.match(line) and line.startswith(b"Failed to load object"):
            self.failure = self.failure or line[:300].decode(errors="replace")
        if not self._crashed(line) and not _REPORT.fullmatch(line):
            self._not_crashed()
        return self._release() + line + b"\n"

    def _not_crashed(self) -> None:
        """The app goes on, so what looked like its crash was its own words."""
        self.crash, self.reported, self.oom = None, False, False

    def _release(self) -> bytes:
        """Something follows, so what looked like the end was the app's own words."""
        held, self._held = self._held, []
        return b"".join(line + b"\n" for line, _ in held)

    def _crashed(self, line: bytes) -> bool:
        self.reported = self.reported or line == _BACKTRACE
        if told := _UNCAUGHT.search(line):
            self.crash = int(told[1])
            return True
        for pattern, number in _CRASHES:
            if pattern.fullmatch(line):
                self.crash = self.crash or number
                self.oom = self.oom or number == SIGKILL
                return True
        return False


def _status(line: bytes) -> re.Match[bytes] | None:
    """How the app ended, when ``line`` says it; a line that the app left without its end may stand before."""
    last = line.rfind(b"program ")
    return (_STATUS.fullmatch(line, last) if last > 0 else None) or _STATUS.fullmatch(line)


def outcome(console: Console, qemu: int | None, asked: int | None) -> Exit:
    """How a unikernel ended that has ended.

    Args:
        qemu: QEMU's own status: 0 however the app fared; None when nobody could know.
        asked: the signal by which it was told to end, if it was.
    """
    if console.crash is not None:
        return Exit(128 + console.crash, oom=console.oom)
    if console.status is not None:
        return Exit(console.status)
    if asked is not None and qemu in (0, None):  # it went by its power button
        return Exit(128 + asked)
    if qemu == 0:
        return Exit(127 if console.failure or not console.booted else 0)
    return Exit(qemu)
