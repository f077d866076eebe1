"""`pyro-ar anomaly`: rows ranked by log p(x), and how well that finds what does not belong."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rich.console import Console

from pyro_ar import data
from pyro_ar.cli.options import KeepOld, names_of, numbers_of
from pyro_ar.cli.progress import done_or_kept
from pyro_ar.experiments.anomaly import report
from pyro_ar.experiments.anomaly.detectors import JOINTS, RIVALS
from pyro_ar.experiments.anomaly.run import Plan, run
from pyro_ar.experiments.store import Results

__all__ = ["anomaly"]


def anomaly(
    dataset: Annotated[str, typer.Option("--data", help="Complete rows: digits, a set under PYRO_AR_DATA, or a file.")] = "digits",
    label: Annotated[str | None, typer.Option(help="Column of the labels in a .csv or .amat file, by name or number.")] = None,
    models: Annotated[str | None, typer.Option(help=f"Some of: {', '.join((*JOINTS, *RIVALS))}.", show_default="the quicker ones that fit the rows")] = None,
    classes: Annotated[str | None, typer.Option(help="Labels that are left out of training in turn.", show_default="all")] = None,
    rank_by: Annotated[str | None, typer.Option(help="The joint of the ranking.", show_default="latent tree; of real values Student-t")] = None,
    rows: Annotated[int | None, typer.Option(help="Use the first rows only.", show_default="all")] = None,
    steps: Annotated[float, typer.Option(help="Epochs, as a share of the usual ones.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")] = Path("anomaly"),
    threads: Annotated[int, typer.Option(min=1, help="Of each worker; the matrices are small, and one is the fastest.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that work at the same time; the results are the same.",
                                                show_default="one per core, 4 at most")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, overwriting what the folder holds.")] = False,
    keep_old_results: KeepOld = False,
) -> int:
    """Rank rows by log p(x), and measure what that finds: AUROC of joints beside isolation forest, one-class SVM and local outlier factor."""
    plan = Plan(data.load(dataset, label=label).head(rows), names_of(models), None if classes is None else numbers_of("--classes", classes), rank_by,
                steps=steps, seed=seed)
    results = Results.open(out / "results.json", plan.settings(), fresh=fresh, keep_old_results=keep_old_results)
    console = Console()
    if results.note:
        console.print(results.note, highlight=False, soft_wrap=True)
    names = [unit["part"] if unit["part"] == "ranking" else f"{unit['model']}" + (f" without class {unit['class']}" if plan.classes else "")
             for unit in plan.units]
    units = done_or_kept(partial(run, plan, results), results, names, workers, threads)
    if units is None:
        return 130
    written = report.write(plan, units, out)
    console.print(report.screen(plan, units, written), highlight=False)
    return 0
