"""What every bench prints: a table for people, and its figures for ``python -m bench``, which puts them side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FIGURES = "DAVIT_BENCH_FIGURES"
"""Names the file that figures are appended to, one JSON object a line."""


@dataclass(frozen=True)
class Figure:
    """One measured thing.

    Attributes:
        subject: the bench, for example ``push``.
        what: what was measured.
        value: with its unit.
        beside: what it was compared with in the same run, with its unit; empty when with nothing.
        ratio: value ÷ what it was compared with.
        goal: what is wanted, in words; empty when nothing is promised.
        met: whether it was reached; None when nothing is promised, or only in words.
    """

    subject: str
    what: str
    value: str
    beside: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        """Its line of the table."""
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return [self.what, self.value, self.beside, ratio, self.goal, verdict]


HEAD = ("what", "Davit", "beside it", "ratio", "goal", "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal, too."""
    lines = [list(map(str, row)) for row in rows]
    widths = [max(len(line[n]) for line in [list(head), *lines]) for n in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, lines)])


def report(figures: Sequence[Figure]) -> None:
    """Print the figures, and hand them to ``python -m bench`` where that asked for them."""
    print(f"\n{table(HEAD, [figure.cells() for figure in figures])}", flush=True)
    hand_over(figures)


def hand_over(figures: Sequence[Figure]) -> None:
    """Only what :func:`report` does besides printing: for benches with a table of their own."""
    if path := os.environ.get(FIGURES):
        with Path(path).open("a") as file:
            file.writelines(json.dumps(asdict(figure)) + "\n" for figure in figures)


def read(path: Path) -> list[Figure]:
    """The figures that were handed over."""
    return [Figure(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def ms(seconds: float) -> str:
    """``12.3 ms`` below a second, ``1.23 s`` from there."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def mib(size: float) -> str:
    """Bytes as ``12.3 MiB``."""
    return f"{size / 2**20:.1f} MiB"
