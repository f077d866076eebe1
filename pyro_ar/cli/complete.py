"""`pyro-ar complete`: images completed, looked at and scored."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rich.console import Console

from pyro_ar import data
from pyro_ar.cli.options import KeepOld, names_of
from pyro_ar.cli.progress import done_or_kept
from pyro_ar.experiments.complete import report
from pyro_ar.experiments.complete.lineup import FILLS, MODELS
from pyro_ar.experiments.complete.run import Plan, run
from pyro_ar.experiments.complete.tasks import TASKS
from pyro_ar.experiments.store import Results

__all__ = ["complete"]


def complete(
    dataset: Annotated[str, typer.Option("--data", help="Images of levels: digits, a set under PYRO_AR_DATA, or a file.")] = "digits",
    task: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(TASKS)}.", show_default="all that fit the images")] = None,
    models: Annotated[str | None, typer.Option(help=f"'all', or some of: {', '.join((*MODELS, *FILLS))}.", show_default="the quicker ones")] = None,
    binary: Annotated[bool, typer.Option("--binary", help="Two levels: 1 from half of the levels on.")] = False,
    rows: Annotated[int | None, typer.Option(help="Use the first images only.", show_default="all")] = None,
    completed: Annotated[int, typer.Option(help="Held-out images that are completed, at most.")] = 100,
    draws: Annotated[int, typer.Option(help="Completions of each.")] = 30,
    particles: Annotated[int, typer.Option(help="Of the estimates where a chain has no exact answer.")] = 512,
    steps: Annotated[float, typer.Option(help="Epochs, as a share of the usual ones.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the split, of patterns, of training and of draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")] = Path("complete"),
    threads: Annotated[int, typer.Option(min=1, help="Of each worker; the matrices are small, and one is the fastest.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that work at the same time; the results are the same.",
                                                show_default="one per core, 4 at most")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, overwriting what the folder holds.")] = False,
    keep_old_results: KeepOld = False,
    full: Annotated[bool, typer.Option("--full", help="Show the table of every task, which are in report.txt too.")] = False,
) -> int:
    """Complete images whose pixels, details or colours are hidden: draws to look at, and log p of what was hidden."""
    chosen = (*MODELS, *FILLS) if models == "all" else names_of(models)
    images = data.load(dataset).head(rows)
    plan = Plan(images.binarise() if binary else images, names_of(task), chosen, completed, draws, particles, steps=steps, seed=seed)
    results = Results.open(out / "results.json", plan.settings(), fresh=fresh, keep_old_results=keep_old_results)
    console = Console()
    if results.note:
        console.print(results.note, highlight=False, soft_wrap=True)
    names = [f"{model} of {space}" for space, model in plan.units]
    units = done_or_kept(partial(run, plan, results), results, names, workers, threads)
    if units is None:
        return 130
    written = report.write(plan, units, out)
    if full and len(plan.tasks or ()) > 2:
        console.print(report.tables(plan, units), highlight=False)
    console.print(report.screen(plan, units, written), highlight=False)
    return 0
