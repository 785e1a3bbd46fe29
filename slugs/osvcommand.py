"""From a Procfile line to what an OSv unikernel can start: one program and its arguments (pure, but for looking at files).

There is no shell, no fork and no second process in a unikernel. What people write for a shell and that needs none (variables,
quotes, ``exec``, assignments before the command) is worked out here; what needs one is refused, with a sentence that names it.
Servers that fork workers are replaced by one process that serves the same application, and the person is told.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foundation.errors import DavitError
from slugs import osvline
from slugs.elf import X86_64
from slugs.view import View

SHIMS = "/etc/davit/python"
"""Where the guest finds Davit's Python modules: on the disk of its configuration, never in the slug."""
NODE_SHIM = "/etc/davit/node/davit_signals.cjs"
LOADER = "/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

_PLACES = ("/app/.heroku/python/bin", "/app/.heroku/node/bin", "/app/.jdk/bin", "/app/node_modules/.bin", "/app/bin")
"""Where buildpacks put programs."""
_JAVA_MODES = frozenset(("-Xint", "-Xmixed", "-Xcomp"))
_ADVICE = "run this process type as microvm (`davit ps:isolation TYPE=microvm`)"
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^{}$`]*))?\})")
_OPERATORS = (
    ("&&", "joins commands with &&"), ("||", "joins commands with ||"), ("|", "pipes one program into another with |"),
    (";", "joins commands with ;"), ("&", "starts something in the background with &"), (">", "redirects output with >"),
    ("<", "redirects input with <"), ("`", "runs a command in backquotes"), ("(", "opens a subshell with ("),
    (")", "closes a subshell with )"), ("\n", "has more than one line"),
)  # fmt: skip
_PATTERNS = "*?["
_BRACES = re.compile(r"\{[^\s{}'\"$]*(,|\.\.)[^\s{}'\"]*\}")
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "busybox", "fish"}
_BUILTINS = {
    "cd",
    "source",
    ".",
    "export",
    "trap",
    "eval",
    "set",
    "ulimit",
    "wait",
    "if",
    "for",
    "while",
    "case",
    "{",
    "[",
    "test",
}
_SPAWNERS = {
    "honcho", "foreman", "supervisord", "circusd", "pm2", "nodemon", "concurrently", "make", "timeout", "nohup", "xargs",
    "bundle", "rails", "puma", "unicorn", "nginx", "apache2", "httpd", "php-fpm", "uwsgi", "newrelic-admin", "ddtrace-run",
    "opentelemetry-instrument", "bin/start-nginx", "heroku-php-apache2", "heroku-php-nginx",
}  # fmt: skip
_PYTHON = re.compile(r"python(3(\.\d+)?)?$")
_PACKAGE_RUNNERS = {"npm", "yarn", "pnpm"}
_NODE_FORKS = {"npx", "pnpx", "bunx", "bun", "deno"}

_GUNICORN = (
    "gunicorn forks workers, which OSv cannot: the application is served by one process with threads instead"
    " (its options for binding, threads and configuration files are obeyed as far as they make sense)."
)


class CommandRefused(DavitError):
    """The command cannot run in a unikernel."""

    id, status = "osv_command_refused", 422


@dataclass(frozen=True)
class Launch:
    """What the unikernel starts.

    Attributes:
        runtime: ``python``, ``node``, ``java`` or ``native``: which base image it needs.
        argv: path and arguments.
        environment: set besides, and above, the dyno's own.
        notes: sentences for the person who deploys.
    """

    runtime: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def translate(line: str, environment: Mapping[str, str], view: View) -> Launch:
    """What a Procfile line becomes.

    Args:
        line: the command as people write it.
        environment: the dyno's; variables in the line are taken from it.
        view: the dyno's files.

    Raises:
        CommandRefused: it needs what a unikernel has not; the sentence says what.
    """
    return _Translation(environment, view).line(line)


def split(line: str, environment: Mapping[str, str]) -> list[str]:
    """The words of a line as a shell makes them, variables replaced.

    Raises:
        CommandRefused: it uses a shell for more than words.
    """
    return _Words(line, environment).split()


def outlook(line: str, environment: Mapping[str, str]) -> str | None:
    """What can be said of a line before there is a slug to look into: why a unikernel will refuse it, or what it will do
    otherwise; None when nothing is known to stand in its way.

    Args:
        environment: config vars; PORT need not be among them.
    """
    try:
        words = [word for word in split(line, {"PORT": "8080", **environment}) if not _ASSIGNMENT.match(word) and word != "exec"]
    except CommandRefused as refused:
        return refused.message
    name = words[0].rsplit("/", 1)[-1] if words else ""
    if name in _SHELLS:
        return _refused(f"The command starts the shell {name}").message
    if name in _BUILTINS:
        return _refused(f"“{name}” is a shell's own command").message
    if name in _SPAWNERS | _NODE_FORKS:
        return _refused(f"“{name}” starts further processes, and a unikernel has one").message
    return _GUNICORN if name == "gunicorn" else None


class _Words:
    def __init__(self, line: str, environment: Mapping[str, str]) -> None:
        self._line, self._environment = line.lstrip(), environment
        self._place = 0

    def split(self) -> list[str]:
        words: list[str] = []
        while self._skip_blanks():
            word, quoted = self._word()
            if word or quoted:
                words.append(word)
        return words

    def _skip_blanks(self) -> bool:
        while self._line[self._place : self._place + 1] in (" ", "\t"):
            self._place += 1
        return self._place < len(self._line) and self._line[self._place] != "#"

    def _word(self) -> tuple[str, bool]:
        word, quoted = "", False
        while self._place < len(self._line) and (character := self._line[self._place]) not in " \t":
            if character == "'":
                word += self._single()
                quoted = True
            elif character == '"':
                word += self._double()
                quoted = True
            elif character == "\\":
                word += self._line[self._place + 1 : self._place + 2] or "\\"
                self._place += 2
            elif character == "$":
                word += self._variable(quoted=False)
            else:
                self._refuse_operator(word)
                word += character
                self._place += 1
        return word, quoted

    def _refuse_operator(self, word: str) -> None:
        rest = self._line[self._place :]
        for sign, what in _OPERATORS:
            if rest.startswith(sign):
                raise _refused(f"The command {what}, which needs a shell")
        if rest[0] in _PATTERNS and not word.startswith("-"):
            raise _refused(f"The command has a file pattern ({rest[0]}), which needs a shell")
        if rest[0] == "{" and _BRACES.match(rest):
            raise _refused("The command has alternatives in braces ({…,…}), which needs a shell")
        if rest[0] == "~" and (not word or (_ASSIGNMENT.match(word) and word[-1] in "=:")):
            raise _refused("The command has a ~, which needs a shell")

    def _single(self) -> str:
        end = self._line.find("'", self._place + 1)
        if end < 0:
            raise CommandRefused("The command has a quote ' without its end.")
        text, self._place = self._line[self._place + 1 : end], end + 1
        return text

    def _double(self) -> str:
        text = ""
        self._place += 1
        while self._place < len(self._line):
            character = self._line[self._place]
            if character == '"':
                self._place += 1
                return text
            if character == "`":
                raise _refused("The command runs a command in backquotes, which needs a shell")
            if character == "\\" and self._line[self._place + 1 : self._place + 2] in ("$", "`", '"', "\\"):
                text += self._line[self._place + 1]
                self._place += 2
            elif character == "$":
                text += self._variable(quoted=True)
            else:
                text += character
                self._place += 1
        raise CommandRefused('The command has a quote " without its end.')

    def _variable(self, quoted: bool) -> str:
        rest = self._line[self._place :]
        match = _VARIABLE.match(rest)
        if match is None:
            if rest.startswith("$("):
                raise _refused("The command runs a command in $(…), which needs a shell")
            if len(rest) > 1 and rest[1] in ("{@*#?$!-0123456789" if quoted else "{@*#?$!-0123456789'\""):
                raise _refused(f"The command has {rest[:12]}, which needs a shell")
            self._place += 1
            return "$"
        self._place += match.end()
        value = self._value(match)
        if not quoted and re.search(r"[\s*?\[]", value):
            name = match[1] or match[2]
            raise _refused(
                f"The command has ${name} without quotes around it and its value has blanks or patterns that a shell would split"
            )
        return value

    def _value(self, match: re.Match[str]) -> str:
        value = self._environment.get(match[1] or match[2])
        how, other = match[3] or "", match[4] or ""
        missing = value is None or (how.startswith(":") and not value)
        if how.endswith("-"):
            return other if missing else value or ""
        if how.endswith("+"):
            return "" if missing else other
        if how.endswith("?") and missing:
            raise CommandRefused(f"The command wants {match[2]}, which is not set{': ' + other if other else ''}.")
        return value or ""


def _refused(what: str) -> CommandRefused:
    return CommandRefused(f"{what}; a unikernel runs one program without one. Name the program itself, or {_ADVICE}.")


class _Translation:
    def __init__(self, environment: Mapping[str, str], view: View) -> None:
        self._given, self._view = environment, view
        self._own: dict[str, str] = {}
        self._notes: list[str] = []
        self._depth = 0

    @property
    def _environment(self) -> dict[str, str]:
        return {**self._given, **self._own}

    def line(self, line: str) -> Launch:
        self._set_paths()
        self._say_what_is_left_out()
        launch = self._words(split(line, self._environment))
        return Launch(launch.runtime, launch.argv, {**self._own, **launch.environment}, tuple(dict.fromkeys(self._notes)))

    def _set_paths(self) -> None:
        """What the buildpacks' .profile.d scripts set for a shell."""
        places = [
            place
            for place in _PLACES
            if self._view.directory(place)
        ]
        if places and "PATH" not in self._given:
            self._own["PATH"] = ":".join([*places, SYSTEM_PATH])
        elif places:
            self._own["PATH"] = ":".join([*places, self._given["PATH"]])
        self._own["WEB_CONCURRENCY"] = "1"

    def _say_what_is_left_out(self) -> None:
        scripts = [name for name in self._view.directory("/app/.profile.d") if name not in ("python.sh", "nodejs.sh")]
        if self._view.file("/app/.profile"):
            scripts.append("../.profile")
        if scripts:
            self._notes.append(
                f"OSv has no shell: {', '.join(f'.profile.d/{name}' for name in scripts[:5])} is not run;"
                " what it sets has to be a config var."
            )

    def _words(self, words: Sequence[str]) -> Launch:
        self._depth += 1
        if self._depth > 5:
            raise CommandRefused("The command leads in a circle from one script to the next.")
        words = self._without_prefixes(list(words))
        if not words:
            raise CommandRefused("The command names no program.")
        name = words[0].rsplit("/", 1)[-1]
        if name in _SHELLS:
            raise _refused(f"The command starts the shell {name}")
        if name in _BUILTINS:
            raise _refused(f"“{name}” is a shell's own command")
        if name in _PACKAGE_RUNNERS:
            return self._package_script(name, words[1:])
        if name in _SPAWNERS | _NODE_FORKS:
            raise _refused(f"“{name}” starts further processes, and a unikernel has one")
        found = self._view.program(words[0], self._environment.get("PATH", SYSTEM_PATH))
        if words[0] == ".heroku/static/serve" or found == "/app/.heroku/static/serve":
            return self._static_site()
        if _PYTHON.fullmatch(name):
            return self._python(words[1:])
        special = {"gunicorn": self._gunicorn, "uvicorn": self._uvicorn, "celery": self._celery, "java": self._java}
        if name in special and (found is not None or name != "java"):
            return special[name](words[1:])
        if found is None:
            raise CommandRefused(f"There is no program “{words[0]}” in the slug or on the stack.")
        return self._program(found, words[1:])

    def _without_prefixes(self, words: list[str]) -> list[str]:
        """``A=b exec env C=d program`` → ``program``, with what it sets."""
        while words:
            if _ASSIGNMENT.match(words[0]):
                name, _, value = words.pop(0).partition("=")
                self._own[name] = value
            elif words[0] in ("exec", "env", "/usr/bin/env") and len(words) > 1 and not words[1].startswith("-"):
                words.pop(0)
            else:
                break
        return words

    # -- programs

    def _program(self, path: str, arguments: Sequence[str]) -> Launch:
        """A file: a script of an interpreter that can run here, or a native program."""
        interpreter = self._view.interpreter(path)
        if interpreter:
            words = [word for word in interpreter if word not in ("/usr/bin/env", "-S")]
            name = words[0].rsplit("/", 1)[-1] if words else ""
            if _PYTHON.fullmatch(name):
                return self._python([path, *arguments])
            if name == "node":
                return self._words(["node", *words[1:], path, *arguments])
            raise _refused(f"{_shown(path)} is a script of {name or 'nothing'}")
        elf = self._view.elf(path)
        if elf is None or not elf.executable:
            raise CommandRefused(
                f"{_shown(path)} is no program that OSv could start: neither ELF nor a Python or Node.js script."
            )
        if elf.machine != X86_64:
            raise CommandRefused(f"{_shown(path)} is not built for x86-64.")
        if elf.interpreter:
            runtime = "node" if path.rsplit("/", 1)[-1] == "node" else "native"
            if elf.interpreter != LOADER and "musl" not in elf.interpreter:
                raise CommandRefused(f"{_shown(path)} wants the loader {elf.interpreter[:80]}, which a unikernel has not.")
            if "musl" in elf.interpreter:
                return Launch("native", (path, *arguments))
            if runtime == "node":
                options = self._environment.get("NODE_OPTIONS", "")
                self._own["NODE_OPTIONS"] = f"--require={NODE_SHIM} {options}".strip()
                self._own.setdefault("NODE_ENV", self._given.get("NODE_ENV", "production"))
            return Launch(runtime, (*_by_loader(self._libraries()), path, *arguments))
        if elf.go:
            raise CommandRefused(
                f"{_shown(path)} is a static Go program, which hangs on OSv. Build it with CGO_ENABLED=1 and"
                f" -buildmode=pie, or {_ADVICE}."
            )
        return Launch("native", (path, *arguments))

    def _libraries(self) -> str:
        given = self._environment.get("LD_LIBRARY_PATH", "")
        if given:
            self._own["LD_LIBRARY_PATH"] = (
                ""  # the loader is told; with it in the environment some programs start themselves anew
            )
        return ":".join([*(place for place in given.split(":") if place.startswith("/")), LIBRARIES])

    def _java(self, arguments: Sequence[str]) -> Launch:
        found = self._view.program("java", self._environment.get("PATH", SYSTEM_PATH))
        real = self._view.file(found or "/")
        if real is None:
            raise CommandRefused("There is no java in the slug or on the stack.")
        home = real.rsplit("/bin/", 1)[0]
        libraries = f"{home}/lib/server:{home}/lib:{self._libraries()}"
        options = ["-XX:-UsePerfData"]
        if not _JAVA_MODES.intersection(arguments):
            options.insert(0, "-Xint")
            self._notes.append(
                "Java runs interpreted (-Xint), which starts in half the time where the processor is emulated; with -Xmixed in"
                " the command it compiles what is often run."
            )
        return Launch("java", (*_by_loader(libraries), real, *options, *arguments), {"JAVA_HOME": home})

    def _package_script(self, manager: str, words: Sequence[str]) -> Launch:
        """``npm start`` → what package.json says that is."""
        words = [word for word in words if word not in ("-s", "--silent", "--prefix=.")]
        name = words[1] if len(words) > 1 and words[0] in ("run", "run-script") else words[0] if words else ""
        rest = words[2:] if words[:1] in (["run"], ["run-script"]) else words[1:]
        if not name or name.startswith("-") or (manager == "npm" and words[0] not in ("start", "run", "run-script")):
            raise _refused(f"“{manager}” starts further processes, and a unikernel has one")
        script = self._script(name)
        self._notes.append(f"`{manager} {name}` would start a shell: its command, `{script[:200]}`, is started without one.")
        if self._has_script(f"pre{name}") or self._has_script(f"post{name}"):
            self._notes.append(f"The scripts pre{name} and post{name} of package.json are not run.")
        more = list(rest[1:]) if rest[:1] == ["--"] else list(rest)
        return self._words([*split(script, self._environment), *more])

    def _scripts(self) -> Mapping[str, object]:
        try:
            scripts = json.loads(self._view.read("/app/package.json", 1 << 20) or b"{}").get("scripts", {})
        except (ValueError, AttributeError):
            scripts = {}
        return scripts if isinstance(scripts, dict) else {}

    def _has_script(self, name: str) -> bool:
        return isinstance(self._scripts().get(name), str)

    def _script(self, name: str) -> str:
        script = self._scripts().get(name)
        if isinstance(script, str):
            return script
        if name == "start" and self._view.file("/app/server.js"):
            return "node server.js"
        raise CommandRefused(f"package.json has no script “{name}”.")

    # -- Python

    def _python(self, arguments: Sequence[str], module: str | None = None) -> Launch:
        """Python starts through Davit's launcher, which runs the script or module as Python itself would."""
        options, rest = ([], list(arguments)) if module else _python_options(arguments)
        if not rest and module is None:
            raise CommandRefused("The command starts Python without a script; a unikernel has no terminal to type into.")
        python = self._interpreter()
        home, version = python.rsplit("/bin/", 1)[0], re.sub(r"^.*python", "", python)
        environment = {
            "PYTHONHOME": home,
            "PYTHONPATH": ":".join(dict.fromkeys([SHIMS, *self._python_path()])),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHON_COLORS": "0",  # every file says that it is a terminal
            osvline.SITE: self._site(version),
            "LANG": self._environment.get("LANG") or "C.UTF-8",
        }
        words = ["-m", module, *rest] if module else list(rest)
        return Launch("python", (*_by_loader(self._libraries()), python, *options, "-m", "davit_launch", *words), environment)

    def _python_path(self) -> list[str]:
        """PYTHONPATH as seen from /app, for Capstan starts Python elsewhere; without one it is the buildpack's."""
        path = self._environment.get("PYTHONPATH") or "/app"
        return [posixpath.normpath(posixpath.join("/app", place)) for place in path.split(":")]

    def _interpreter(self) -> str:
        for name in ("python3", "python"):
            found = self._view.program(name, self._environment.get("PATH", SYSTEM_PATH))
            real = self._view.file(found) if found else None
            if real is not None and self._view.elf(real) is not None and re.search(r"/bin/python3\.\d+$", real):
                return real
        raise CommandRefused("There is no Python in the slug or on the stack.")

    def _site(self, version: str) -> str:
        place = f"/app/.heroku/python/lib/python{version}/site-packages"
        return place if self._view.directory(place) else ""

    def _has_module(self, name: str) -> bool:
        return any(self._view.directory(f"{place}/{name}") for place in self._sites())

    def _sites(self) -> list[str]:
        python = re.sub(r"^.*python", "", self._interpreter())
        return [place for place in (self._site(python), *self._python_path()) if place]

    def _gunicorn(self, arguments: Sequence[str]) -> Launch:
        """gunicorn forks its workers; here one process serves the application with threads."""
        options, positional = _gunicorn_options(arguments)
        if any("uvicorn" in kind for kind in (options.get("-k", ""), options.get("--worker-class", ""))):
            application = positional[-1] if positional else ""
            application += "" if ":" in application or not application else ":application"
            if not application or not self._has_module("uvicorn"):
                raise CommandRefused("The command asks gunicorn for uvicorn's workers, and uvicorn is not in the slug.")
            self._notes.append("gunicorn forks, which OSv cannot: uvicorn serves the application in one process.")
            return self._uvicorn([application, "--host", "0.0.0.0"])
        self._notes.append(_GUNICORN)
        return self._python(arguments, "davit_wsgi")

    def _uvicorn(self, arguments: Sequence[str]) -> Launch:
        words, dropped = _without_options(arguments, {"--workers": True, "--reload": False})
        words, loops = _without_options(words, {"--loop": True})
        if dropped:
            self._notes.append(f"uvicorn's {', '.join(dropped)} is left out: OSv has one process.")
        if loops:
            self._notes.append("uvicorn's --loop is left out: on OSv it runs on Python's own event loop, asyncio.")
        if "--port" not in words and "PORT" in self._given:
            words += ["--port", self._given["PORT"]]
        return self._python([*words, "--loop", "asyncio"], "uvicorn")

    def _celery(self, arguments: Sequence[str]) -> Launch:
        pools = {"solo", "threads", "gevent", "eventlet"}
        if "worker" in arguments and not any(word.rpartition("=")[2] in pools for word in arguments):
            raise _refused("celery's workers fork (give it --pool=threads or --pool=solo)")
        return self._python(arguments, "celery")

    def _static_site(self) -> Launch:
        self._own["PYTHONPATH"] = "/app/.heroku/static/packages:/app/.heroku/static"
        return self._gunicorn(["site_server:application"])


def _by_loader(libraries: str) -> tuple[str, ...]:
    return LOADER, "--library-path", libraries


def _shown(path: str) -> str:
    return path.removeprefix("/app/")[:120]


def _python_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Python's own options, each for itself, and what follows them: a script, or -m or -c with what belongs to it.

    Raises:
        CommandRefused: an option lacks its value, or would keep Davit's modules from Python.
    """
    options: list[str] = []
    rest = list(arguments)

    def value(option: str, attached: str = "") -> str:
        if not attached and not rest:
            raise CommandRefused(f"Python's option {option} has no value.")
        return attached or rest.pop(0)

    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            options += [word, value(word)] if word == "--check-hash-based-pycs" else [word]
            continue
        for place, letter in enumerate(word[1:], 2):
            if letter in "cm":
                return options, [f"-{letter}", value(f"-{letter}", word[place:]), *rest]
            if letter in "WX":
                options += [f"-{letter}", value(f"-{letter}", word[place:])]
                break
            if letter in "EIS":
                raise CommandRefused(
                    f"Python's option -{letter} keeps Davit's modules from it, without which it does not run in a unikernel."
                    f" Leave it out, or {_ADVICE}."
                )
            if letter not in "iu":
                options.append(f"-{letter}")
    if rest[:1] == ["-"]:
        raise CommandRefused("The command feeds Python a script by its standard input, which a unikernel has not.")
    return options, rest


_GUNICORN_FLAGS = {
    "--reload", "--preload", "--daemon", "-D", "--check-config", "--print-config", "--spew", "--no-sendfile", "--capture-output",
    "--enable-stdio-inheritance", "--log-syslog", "--disable-redirect-access-to-syslog", "--initgroups", "--reuse-port", "-R",
    "--proxy-protocol", "--do-handshake-on-connect", "--strip-header-spaces", "--permit-obsolete-folding",
    "--permit-unconventional-http-method", "--permit-unconventional-http-version", "--casefold-http-method", "--http2",
}  # fmt: skip
"""gunicorn's options that no value follows."""


def _gunicorn_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """gunicorn's options with their values, and what is none: the application."""
    options: dict[str, str] = {}
    positional: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            positional.append(word)
        elif not word.startswith("--") and len(word) > 2:  # -w4
            options[word[:2]] = word[2:].removeprefix("=")
        else:
            options[name] = value if equals or name in _GUNICORN_FLAGS else next(words, "")
    return options, positional


def _without_options(arguments: Sequence[str], unwanted: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Arguments without these options (name → whether a value follows), and which there were."""
    kept: list[str] = []
    dropped: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in unwanted:
            kept.append(word)
            continue
        dropped.append(name)
        if unwanted[name] and not equals:
            next(words, None)
    return kept, dropped
