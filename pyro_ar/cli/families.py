"""`pyro-ar families`: all neural families on the same rows."""

import sys

from pathlib import Path
from typing import Annotated

import torch
import typer

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from pyro_ar import data
from pyro_ar.cli.options import KeepOld, names_of, numbers_of
from pyro_ar.experiments.families import Plan, draw, run, table
from pyro_ar.experiments.store import Results

__all__ = ["families"]


def families(
    dataset: Annotated[str, typer.Option("--data", help="Rows of states: digits, a set under PYRO_AR_DATA, or a file.")] = "digits",
    label: Annotated[str | None, typer.Option(help="A column of the file that is no variable, by name or number.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")] = Path("families"),
    models: Annotated[str | None, typer.Option(help="Names of families and tables.", show_default="all")] = None,
    levels: Annotated[str | None, typer.Option(help="Numbers of states.", show_default="2 and those of the data")] = None,
    rows: Annotated[int | None, typer.Option(help="Use the first rows only.", show_default="all")] = None,
    steps: Annotated[float, typer.Option(help="Epochs, as a share of the usual ones.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the split, of training and of draws.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of the computation.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, overwriting what the folder holds.")] = False,
    keep_old_results: KeepOld = False,
) -> int:
    """Train every neural family briefly, and compare held-out nats, bits, parameters, seconds and draws."""
    states = None if levels is None else numbers_of("--levels", levels)
    plan = Plan(data.load(dataset, label=label).head(rows), names_of(models), states, steps=steps, seed=seed)
    results = Results.open(out / "results.json", plan.settings(), fresh=fresh, keep_old_results=keep_old_results)
    torch.set_num_threads(threads)
    units = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    try:
        with threadpool_limits(threads), Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(plan.units[0][1], total=len(plan.units))
            for unit, (_, following) in zip(run(plan, results), [*plan.units[1:], (0, "done")], strict=True):
                units.append(unit)
                progress.update(task, advance=1, description=following)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished families are kept in {out}/; the same command goes on from there.", file=sys.stderr)
        return 130
    written = draw(plan, units, out)
    screen = Console()
    screen.print(f"{plan.data}\n{table(units)}", highlight=False, soft_wrap=True)
    screen.print(f"Written to {out}/: {', '.join(path.name for path in written)}", highlight=False, soft_wrap=True)
    return 0
