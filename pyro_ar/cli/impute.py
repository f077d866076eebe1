"""`pyro-ar impute`: a table with holes, completed."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from pyro_ar.checks import require
from pyro_ar.experiments.completion import complete_table
from pyro_ar.imputation.recipes import RECIPES

__all__ = ["impute"]


def impute(
    table: Annotated[Path, typer.Argument(help="A CSV file with empty cells (or NA, NaN, ?, null, none, -).")],
    out: Annotated[Path, typer.Option(help="Folder of the completed tables and the report.")] = Path("completed"),
    tables: Annotated[int, typer.Option(min=0, help="Completed tables drawn besides, for multiple imputation.")] = 0,
    joint: Annotated[str | None, typer.Option(help=f"One of: {', '.join(RECIPES)}.", show_default="a pool, by cells hidden on purpose")] = None,
    kinds: Annotated[str | None, typer.Option(help="Kinds of columns where they are not as found, such as zip=categorical,age=real.")] = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> int:
    """Fill the empty cells of a table: means and most probable values, and draws for multiple imputation."""
    torch.set_num_threads(1)
    pairs = [part.split("=") for part in kinds.split(",")] if kinds else []
    require(all(len(pair) == 2 for pair in pairs), "--kinds must be pairs such as age=real,zip=categorical", kinds)
    with threadpool_limits(1):
        imputer, report, written = complete_table(table, out, tables=tables, joint=joint, kinds={a.strip(): b.strip() for a, b in pairs}, seed=seed)
    screen = Console()
    chosen = "joints: " + ", ".join(f"{many} of '{name}'" for name, many in imputer.chosen_.items())
    if imputer.scores_:
        ranked = sorted(imputer.scores_.items(), key=lambda item: -item[1])
        chosen += "; by itself, minus the CRPS of cells hidden on purpose: " + ", ".join(f"{name} {score:.3f}" for name, score in ranked)
    screen.print(chosen, highlight=False, soft_wrap=True)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for name, justify in (("column", "left"), ("kind", "left"), ("filled", "right"), ("how unsure", "right")):
        shown.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in report:
        shown.add_row(row.name, row.kind, str(row.holes), "" if row.unsure is None else f"{row.unsure:.3f}")
    screen.print(shown, highlight=False)
    screen.print("how unsure: of numbers the standard deviation of a filled cell over that of its column, of other columns the chance of another value",
                 highlight=False, soft_wrap=True)
    screen.print(f"Written to {out}/: {', '.join(path.name for path in written)}", highlight=False, soft_wrap=True)
    return 0
