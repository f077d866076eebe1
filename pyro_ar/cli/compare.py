"""`pyro-ar compare`: factorisations on the same data."""

import sys

from pathlib import Path
from typing import Annotated

import torch
import typer

from threadpoolctl import threadpool_limits

from pyro_ar.cli.options import KeepOld, names_of, numbers_of
from pyro_ar.experiments.compare.report import run_compare
from pyro_ar.experiments.compare.run import MODELS as COMPARED

__all__ = ["compare"]


def compare(
    dataset: Annotated[str, typer.Option("--data", help="A set under PYRO_AR_DATA such as debd/nltcs, or a file of states.")],
    label: Annotated[str | None, typer.Option(help="A column of the file that is no variable, by name or number.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")] = Path("compare"),
    sizes: Annotated[str | None, typer.Option(help="Numbers of training rows.", show_default="25,100,400,...,all")] = None,
    models: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(COMPARED)}.", show_default="all that fit the data")] = None,
    rows: Annotated[int | None, typer.Option(help="Use the first rows of the training part only.", show_default="all")] = None,
    test_share: Annotated[float, typer.Option(help="Of the rows, held out where the set has no test part.")] = 0.2,
    steps: Annotated[int, typer.Option(help="Of training of each neural model, at most.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of the order of the rows, and of the neural models.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="The matrices are small, and one is the fastest.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, overwriting what the folder holds.")] = False,
    keep_old_results: KeepOld = False,
    full: Annotated[bool, typer.Option("--full", help="Show all tables, which are in report.txt too.")] = False,
) -> int:
    """Compare factorisations of discrete data: held-out nats per row against training rows, evidence and parameters."""
    torch.set_num_threads(threads)
    counts = None if sizes is None else numbers_of("--sizes", sizes)
    try:
        with threadpool_limits(threads):
            run_compare(dataset, label=label, out=out, sizes=counts, models=names_of(models), rows=rows, test_share=test_share,
                        steps=steps, seed=seed, fresh=fresh, keep_old_results=keep_old_results, full=full)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished fits are kept in {out}/; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0
