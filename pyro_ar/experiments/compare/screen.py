r"""The last screen of `pyro-ar compare`: what won, by how much, the scores at every number of rows, and where the rest is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_ar.experiments.compare.report import Summary

__all__ = ["LINES", "WIDTH", "aligned", "fitting_columns", "screen", "verdict"]

LINES, WIDTH = 40, 100


def verdict(found: "Sequence[Summary]") -> str:
    """Which model is first with the most rows, and by how much."""
    rows = max(s.rows for s in found)
    first, *others = sorted((s for s in found if s.rows == rows), key=lambda s: s.nats)
    text = f"{first.model} is first with {rows:,} training rows: {first.nats:.4f} ± {first.error:.4f} nats per row"
    if not others:
        return text
    gap = others[0].worse_by
    level = ": no more than two standard errors" if gap.mean <= 2 * gap.error else ""
    return f"{text}\n{others[0].model} is {gap.mean:.4f} ± {gap.error:.4f} behind{level}"


def screen(found: "Sequence[Summary]", tested: int, out: Path, written: Sequence[str]) -> str:
    """At most `LINES` lines of `WIDTH` letters, but for a long folder.

    Args:
        found: Of `summarise`.
        tested: Test rows.
        out: The folder of the results.
        written: What lies in it.
    """
    sizes = sorted({s.rows for s in found})
    by = {(s.model, s.rows): s for s in found}
    names = [s.model for s in sorted((s for s in found if s.rows == sizes[-1]), key=lambda s: s.nats)]
    head = ["model", "parameters", *(f"{rows:,}" for rows in sizes)]
    best = {rows: min((s for s in found if s.rows == rows), key=lambda s: s.nats).model for rows in sizes}
    lines = [head]
    for name in names:
        cells = [f"{by[name, rows].nats:.4f}" + ("*" if best[rows] == name else " ") for rows in sizes]
        lines.append([name, f"{by[name, sizes[-1]].parameters:,}", *cells])
    table, dropped = fitting_columns(lines, fixed=2)
    rest = [f"({dropped} smaller numbers of rows are in report.txt)"] if dropped else []
    last = [["", "se", "behind the first", "log evidence", "p(table)"]]
    for name in names:
        s = by[name, sizes[-1]]
        gap = "-" if name == names[0] else f"{s.worse_by.mean:.4f} ± {s.worse_by.error:.4f}"
        last.append([name, f"{s.error:.4f}", gap, "-" if s.log_evidence is None else f"{s.log_evidence:.1f}",
                     "-" if s.probability is None else f"{s.probability:.3f}"])
    return "\n".join([
        "", verdict(found), "", f"Held-out nats per row by training rows, lower is better, * the best ({tested:,} test rows)", *aligned(table), *rest,
        "", f"With {sizes[-1]:,} training rows: standard error, paired difference, evidence of the training rows", *aligned(last),
        "", f"All tables are in report.txt; --full shows them here. Written to {out}/:", f"  {', '.join(written)}"])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns flush right, the first one flush left."""
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, wide, strict=True))).rstrip() for line in lines]


def fitting_columns(lines: Sequence[Sequence[str]], *, fixed: int) -> tuple[list[list[str]], int]:
    """The first `fixed` columns and as many of the last ones as fit on the screen; and how many do not."""
    wide = [max(len(line[i]) for line in lines) + 2 for i in range(len(lines[0]))]
    dropped = 0
    while sum(wide[:fixed]) + sum(wide[fixed + dropped:]) > WIDTH and fixed + dropped < len(wide) - 1:
        dropped += 1
    return [[*line[:fixed], *line[fixed + dropped:]] for line in lines], dropped
