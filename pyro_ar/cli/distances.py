"""`pyro-ar distances`: how far families end from a known truth."""

import sys

from pathlib import Path
from typing import Annotated

import torch
import typer

from threadpoolctl import threadpool_limits

from pyro_ar.cli.options import KeepOld, numbers_of
from pyro_ar.experiments.distances import TRUTHS, run_distances

__all__ = ["distances"]


def distances(
    truth: Annotated[str, typer.Option(help=f"What the rows are drawn from: {', '.join(TRUTHS)}.")] = "mixture",
    variables: Annotated[int, typer.Option(help="Of the truth, binary: 2 to 10.")] = 6,
    sizes: Annotated[str, typer.Option(help="Numbers of rows.")] = "20,100,500,2500",
    repeats: Annotated[int, typer.Option(help="Draws of rows, for an error.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the truth and of the rows.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")] = Path("distances"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, overwriting what the folder holds.")] = False,
    keep_old_results: KeepOld = False,
) -> int:
    """How far families end from a known truth: what no data closes beside what is not closed yet."""
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            run_distances(truth, variables=variables, sizes=numbers_of("--sizes", sizes), repeats=repeats, seed=seed, out=out, fresh=fresh,
                          keep_old_results=keep_old_results, progress=True)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished models are kept in {out}/; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0
