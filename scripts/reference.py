"""Writes the generated parts of docs/: ``make docs``. A test fails when they are not what this would write."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from foundation.settings import Settings
from router.codes import CODES

CHECKOUT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- generated: make docs -->", "<!-- end of the generated part -->"


def settings_table() -> str:
    """The settings as a Markdown table, in the order of :class:`Settings`."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for setting in fields(Settings):
        default = setting.metadata["default"]
        shown = f"`{default}`" if default is not None else "unset"
        rows.append(f"| `{setting.metadata['variable']}` | {shown} | {setting.metadata['meaning']} |")
    return "\n".join(rows)


REMEDIES = {
    "R10": "listen on the port in the environment variable `PORT`; the next line says where the process listens instead",
    "R12": "end on SIGTERM: every process of the dyno gets it, and has to end (with `trap '' TERM` a script ignores it)",
    "R14": "find the leak, or a larger size: `davit ps:scale web=1:standard-2x`",
    "R15": "the same; the dyno is started again",
    "R99": "Davit's own fault or the host's: the line says which; `davit doctor` checks the host",
    "L10": "lines were lost on their way into the log or to a drain: print less, or look at the drain's server",
    "L11": "whoever follows the log reads too slowly: follow fewer lines (`--dyno`, `--source`)",
    "L12": "Redis was away or full for a while, and took no lines: `davit status` and `davit doctor` say which",
    "L13": "a drain cannot be reached or refuses; the line says why, and it is tried again",
    "L14": "a drain's certificate is not valid for its name; give it one that this host trusts",
}
"""What to do about what Davit's processes write into apps' logs, by its code. The names are where the lines are written."""

_WRITTEN = re.compile(r"\b([RL]\d\d) \(([A-Za-z ]+)\)")


def written_codes() -> dict[str, str]:
    """The codes of dynos (R) and of the log (L) that the rooms write into apps' logs, with their names: ``R10``: Boot timeout."""
    found: dict[str, str] = {}
    for room in ("runtime", "logs", "router", "api"):
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            found.update(_WRITTEN.findall(path.read_text()))
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != "R", item[0])))


def codes_tables() -> str:
    """What apps' logs have codes for, as Markdown tables: the router's, then those of dynos and of the log."""
    rows = ["| code | what the log says | status | id in JSON | what to do |", "|---|---|---|---|---|"]
    rows += [
        f"| {code.code} | {code.desc} | {code.status} | `{code.id}` | {code.developer.removesuffix('.')} |"
        for code in CODES.values()
    ]
    rows += ["", "| code | what the log says | what to do |", "|---|---|---|"]
    rows += [f"| {code} | Error {code} ({name}) | {REMEDIES[code]} |" for code, name in written_codes().items()]
    return "\n".join(rows)


def with_generated(text: str, generated: str) -> str:
    """``text`` with what stands between the markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def main() -> None:
    """Rewrite docs/settings.md and docs/errors.md."""
    for name, generated in (("settings.md", settings_table()), ("errors.md", codes_tables())):
        page = CHECKOUT / "docs" / name
        page.write_text(with_generated(page.read_text(), generated))


if __name__ == "__main__":
    main()
