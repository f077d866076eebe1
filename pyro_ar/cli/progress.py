"""A bar on standard error while units come in."""

import os

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["gathered", "workers_or_cores"]


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
