"""`pyro-ar parameters`: free parameters by formula."""

import itertools
import json
import math

from typing import Annotated, Any, Literal

import typer

from rich.console import Console
from rich.table import Table

from pyro_ar.experiments.parameters import Row, parameter_table, parse_shape

__all__ = ["parameters"]


def parameters(
    shape: Annotated[str, typer.Option(help="Of the variables: 28x28, 3x32x32 or 784.")] = "28x28",
    states: Annotated[int, typer.Option(help="K, of each variable.")] = 2,
    classes: Annotated[int | None, typer.Option(help="C: add the classifiers of as many classes.", show_default="none")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """Count the free parameters of every factorisation, by formula: nothing is allocated."""
    counted = parameter_table(parse_shape(shape), states, classes)
    if as_json:
        print(json.dumps([_as_json(row) for row in counted], indent=1))
        return
    title = f"Free parameters: n = {math.prod(parse_shape(shape)):,} variables ({shape}), K = {states} states"
    screen = Console()
    screen.print(title + (f", C = {classes} classes" if classes else ""), style="bold", highlight=False)
    columns = [(row.name, row.formula, str(row.count)) for row in counted]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    widths[1] = max(12, min(widths[1], screen.width - widths[0] - widths[2] - 6))  # a long formula takes two lines, so that no count is cut
    sides: tuple[Literal["left", "right"], ...] = ("left", "left", "right")
    for group, some in itertools.groupby(counted, lambda row: row.group):
        table = Table(title=f"\n{group}", title_justify="left", box=None, padding=(0, 1, 0, 0), show_header=False)
        for i, (width, justify) in enumerate(zip(widths, sides, strict=True)):
            table.add_column(width=width, justify=justify, no_wrap=i != 1)
        for row in some:
            table.add_row(row.name, row.formula, str(row.count))
        screen.print(table, highlight=False)


def _as_json(row: Row) -> dict[str, Any]:
    logarithm = row.count.log10
    return {"group": row.group, "name": row.name, "formula": row.formula, "value": row.count.value, "text": str(row.count),
            "log10": round(logarithm, 6) if math.isfinite(logarithm) else None}
