"""A bar on standard error while units come in."""

import os
import sys

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from pyro_ar.experiments.store import Results

__all__ = ["done_or_kept", "gathered", "workers_or_cores"]


def done_or_kept(work: Callable[..., Iterable[dict[str, Any]]], results: Results, names: Sequence[str], workers: int | None,
                 threads: int) -> list[dict[str, Any]] | None:
    """All units of `work(workers=, threads=)` with a bar; None where it was interrupted, and where to go on is said."""
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            return gathered(work(workers=workers_or_cores(workers), threads=threads), names)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {len(results.units)} of {len(names)} units are done and kept in {results.path}; the same command goes on from there.",
              file=sys.stderr)
        return None


def gathered(units: Iterable[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """All units, the name of the next one beside the bar."""
    found = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(names[0], total=len(names))
        for unit, following in zip(units, [*names[1:], "done"], strict=True):
            found.append(unit)
            progress.update(bar, advance=1, description=following)
    return found


def workers_or_cores(workers: int | None) -> int:
    """As asked for; None: one per core, four at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4) if workers is None else workers
