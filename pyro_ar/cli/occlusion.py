"""`pyro-ar occlusion`: classify when part of the input is hidden."""

import os
import sys

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from pyro_ar import data
from pyro_ar.checks import require
from pyro_ar.cli.options import KeepOld, names_of, numbers_of
from pyro_ar.experiments.occlusion import report
from pyro_ar.experiments.occlusion.lineup import MODELS, REFERENCE, fitting, is_large, usual
from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.run import run
from pyro_ar.experiments.store import Results

__all__ = ["occlusion"]


def occlusion(
    dataset: Annotated[str, typer.Option("--data", help="digits, a set under PYRO_AR_DATA, or a file with labels.")] = "digits",
    label: Annotated[str | None, typer.Option(help="Column of the labels in a .csv or .amat file, by name or number.")] = None,
    rows: Annotated[int | None, typer.Option(help="Use the first rows only, of an official test part too.", show_default="all")] = None,
    holes: Annotated[bool, typer.Option("--holes", help="A table with holes: hide as many cells of the training rows as of the test rows.")] = False,
    binary: Annotated[bool, typer.Option("--binary", help="Two levels: 1 from half of the levels on.")] = False,
    seeds: Annotated[str | None, typer.Option(help="One shuffle of the rows each.", show_default="1,2; of an official test part 1")] = None,
    folds: Annotated[int | None, typer.Option(help="Splits of each shuffle.", show_default="5; or the official test part")] = None,
    models: Annotated[str | None, typer.Option(help=f"'all', or some of: {', '.join(map(repr, MODELS))}.",
                                               show_default="the quicker ones that fit the data")] = None,
    occlusions: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(OCCLUSIONS)}.",
                                                   show_default="those usual for the size of the images")] = None,
    reference: Annotated[str, typer.Option(help="The model that the others are compared with, pair by pair.")] = REFERENCE,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")] = Path("occlusion"),
    threads: Annotated[int, typer.Option(min=1, help="Of each worker; the matrices are small, and one is the fastest.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that work at the same time; the results are the same.",
                                                show_default="one per core, 4 at most")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, overwriting what the folder holds.")] = False,
    keep_old_results: KeepOld = False,
    full: Annotated[bool, typer.Option("--full", help="Show all tables, which are in report.txt too.")] = False,
) -> int:
    """Train classifiers on whole images or rows, hide pixels or cells, and see how p(class | what is visible) holds up; --holes hides them in training too."""
    require(reference in MODELS, f"--reference must be one of {', '.join(MODELS)}", reference)
    loaded, test_rows = _load(dataset, label, rows, binary, official=folds is None)
    shuffles = (1,) if test_rows else (1, 2)
    plan = Plan(loaded, shuffles if seeds is None else numbers_of("--seeds", seeds), folds if folds is not None else 1 if test_rows else 5,
                fitting(loaded, holes=holes) if models == "all" else names_of(models), names_of(occlusions), test_rows, holes)
    results = Results.open(out / "results.json", plan.settings(), fresh=fresh, keep_old_results=keep_old_results)
    screen = Console()
    if results.note:
        screen.print(results.note, highlight=False, soft_wrap=True)
    _say_plan(screen, plan, out, models is None)
    before = len(results.units)
    try:
        torch.set_num_threads(threads)
        with threadpool_limits(threads):  # of the linear algebra behind numpy, which spins on idle cores
            units = _work(plan, results, _workers(plan, len(plan.units) - before) if workers is None else workers, threads)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {len(results.units)} of {len(plan.units)} units are done and kept in {results.path}; "
              "the same command goes on from there.", file=sys.stderr)
        return 130
    written = report.write(plan, units, out, reference=reference)
    if full:
        screen.print(report.tables(plan, units, reference=reference), highlight=False)
    if before:
        screen.print(f"{before} of {len(units)} units were there from an earlier run; --fresh starts over.", highlight=False)
    screen.print()
    screen.print(report.screen(plan, units, [results.path, *written], width=screen.width), highlight=False)
    return 0


def _say_plan(screen: Console, plan: Plan, out: Path, chosen: bool) -> None:
    splits = f"{len(plan.seeds) * plan.folds} splits" if plan.folds > 1 else f"the last {plan.test_rows} rows are the test part"
    screen.print(f"{plan.data}\n{len(plan.models or ())} models, {splits}, {len(plan.occlusions or ())} occlusions; results go to {out}/",
                 highlight=False, soft_wrap=True)
    for note in filter(None, (*plan.data.notes, plan.data.hidden_cells)):
        screen.print(note, highlight=False, soft_wrap=True)
    for reason in plan.dropped.values():
        screen.print(f"left out: {reason}", highlight=False, soft_wrap=True)
    if plan.data.image_shape is None and plan.hidden_counts:
        screen.print(f"of the {plan.data.x.shape[1]} cells {', '.join(map(str, plan.hidden_counts))} are hidden at random", highlight=False, soft_wrap=True)
    if plan.holes:
        screen.print("as many cells of the training rows are hidden; every occlusion has fits of its own", highlight=False, soft_wrap=True)
    if not chosen:
        return
    unfit = {name: reason for name, reason in plan.unfit_models.items() if reason and name in usual(plan.data, holes=plan.holes)}
    for reason in dict.fromkeys(unfit.values()):
        screen.print(f"without {', '.join(name for name in unfit if unfit[name] == reason)}: {reason}", highlight=False, soft_wrap=True)
    others = [name for name in fitting(plan.data, holes=plan.holes) if name not in (plan.models or ())]
    if others:
        screen.print(f"without {', '.join(others)}: they take longer; --models all runs them too", highlight=False, soft_wrap=True)


def _load(name: str, label: str | None, rows: int | None, binary: bool, *, official: bool) -> tuple[data.Dataset, int]:
    """The rows, and how many of the last ones are an official test part."""
    train, test = data.load_parts(name, label=label) if official else (data.load(name, label=label), None)
    train, test = train.head(rows), None if test is None else test.head(rows)
    loaded = train if test is None else train.followed_by(test, name)
    return replace(loaded.binarise(), name=f"{loaded.name} (binary)") if binary else loaded, 0 if test is None else len(test.x)


def _workers(plan: Plan, units: int) -> int:
    """One per core; it takes seconds to start one, which ten units of small data should be worth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 4, units if is_large(plan.data) else units // 10))


def _work(plan: Plan, results: Results, workers: int, threads: int) -> list[dict[str, Any]]:
    """All units, with a progress bar on standard error."""
    names = [f"{model}, seed {seed}, split {fold + 1} of {plan.folds}" for seed, fold, model in plan.units]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
               TextColumn("{task.description}"))
    units = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(names[0], total=len(names))
        for unit, following in zip(run(plan, results, workers=workers, threads=threads), [*names[1:], "done"], strict=True):
            units.append(unit)
            progress.update(task, advance=1, description=following)
    return units
