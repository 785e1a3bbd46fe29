"""Writes the generated parts of docs/: ``make docs``. A test fails when they are not what this would write."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from foundation.settings import Settings

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


def with_generated(text: str, generated: str) -> str:
    """``text`` with what stands between the markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def main() -> None:
    """Rewrite docs/settings.md."""
    page = CHECKOUT / "docs" / "settings.md"
    page.write_text(with_generated(page.read_text(), settings_table()))


if __name__ == "__main__":
    main()
