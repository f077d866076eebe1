"""The command line, `pyro-ar`: options in, one clear line out where something is wrong."""

import itertools
import json
import math
import os
import sys

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from pyro_ar import data
from pyro_ar.checks import IntractableError, require
from pyro_ar.experiments import report
from pyro_ar.experiments.comparison import MODELS as COMPARED
from pyro_ar.experiments.comparison_report import run_compare
from pyro_ar.experiments.distances import TRUTHS, run_distances
from pyro_ar.experiments.lineup import MODELS, REFERENCE, fitting, is_large
from pyro_ar.experiments.occlusion import run
from pyro_ar.experiments.occlusions import OCCLUSIONS
from pyro_ar.experiments.parameters import Row, parameter_table, parse_shape
from pyro_ar.experiments.plan import Plan
from pyro_ar.experiments.store import Results

__all__ = ["app", "main"]

app = typer.Typer(help="Exact autoregressive joints, and the classifiers they make.", pretty_exceptions_enable=False)
KeepOld = Annotated[bool, typer.Option("--keep-old-results", help="Go on with results that other code of this library wrote, which is refused without it.")]
UsageError: Any = typer.BadParameter.__base__  # of all that typer finds wrong with a command line; it has no public name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line; by default those of this process.

    Returns:
        0; 2 after bad input, with one line on standard error; 130 after Ctrl-C.
    """
    try:
        result = app(None if arguments is None else list(arguments), standalone_mode=False, prog_name="pyro-ar")
    except UsageError as error:
        return _refuse(error.format_message())
    except BrokenPipeError:  # the reader of our output has gone, as in `pyro-ar ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, IntractableError, OSError) as error:
        return _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        return 130
    return result if isinstance(result, int) else 0


def _refuse(message: str) -> int:
    print("pyro-ar:", " ".join(message.split()), file=sys.stderr)
    return 2


@app.callback(invoke_without_command=True)
def _start(context: typer.Context, show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if show_version:
        print(version("pyro-ar"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def occlusion(
    dataset: Annotated[str, typer.Option("--data", help="digits, a set under PYRO_AR_DATA, or a file with labels.")] = "digits",
    label: Annotated[str | None, typer.Option(help="Column of the labels in a .csv or .amat file, by name or number.")] = None,
    rows: Annotated[int | None, typer.Option(help="Use the first rows only, of an official test part too.", show_default="all")] = None,
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
    """Train classifiers on whole images or rows, hide pixels or cells, and see how p(class | what is visible) holds up."""
    require(reference in MODELS, f"--reference must be one of {', '.join(MODELS)}", reference)
    loaded, test_rows = _load(dataset, label, rows, binary, official=folds is None)
    shuffles = (1,) if test_rows else (1, 2)
    plan = Plan(loaded, shuffles if seeds is None else _numbers("--seeds", seeds), folds if folds is not None else 1 if test_rows else 5,
                fitting(loaded) if models == "all" else _names(models), _names(occlusions), test_rows)
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
    if not chosen:
        return
    unfit = {name: reason for name, reason in plan.unfit_models.items() if reason and MODELS[name].usual(plan.data)}
    for reason in dict.fromkeys(unfit.values()):
        screen.print(f"without {', '.join(name for name in unfit if unfit[name] == reason)}: {reason}", highlight=False, soft_wrap=True)
    others = [name for name in fitting(plan.data) if name not in (plan.models or ())]
    if others:
        screen.print(f"without {', '.join(others)}: they take longer; --models all runs them too", highlight=False, soft_wrap=True)


def _load(name: str, label: str | None, rows: int | None, binary: bool, *, official: bool) -> tuple[data.Dataset, int]:
    """The rows, and how many of the last ones are an official test part."""
    train, test = data.load_parts(name, label=label) if official else (data.load(name, label=label), None)
    train, test = train.head(rows), None if test is None else test.head(rows)
    loaded = train if test is None else train.followed_by(test, name)
    return replace(loaded.binarise(), name=f"{loaded.name} (binary)") if binary else loaded, 0 if test is None else len(test.x)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    require(all(part.strip().isdecimal() for part in text.split(",")), f"{option} must be whole numbers, such as 1,2,3", text)
    return tuple(int(part) for part in text.split(","))


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


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


@app.command()
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
    counts = None if sizes is None else _numbers("--sizes", sizes)
    try:
        with threadpool_limits(threads):
            run_compare(dataset, label=label, out=out, sizes=counts, models=_names(models), rows=rows, test_share=test_share,
                        steps=steps, seed=seed, fresh=fresh, keep_old_results=keep_old_results, full=full)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished fits are kept in {out}/; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


@app.command()
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
            run_distances(truth, variables=variables, sizes=_numbers("--sizes", sizes), repeats=repeats, seed=seed, out=out, fresh=fresh,
                          keep_old_results=keep_old_results, progress=True)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished models are kept in {out}/; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


@app.command()
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
    sides: tuple[Literal["left", "right"], ...] = ("left", "left", "right")
    for group, some in itertools.groupby(counted, lambda row: row.group):
        table = Table(title=f"\n{group}", title_justify="left", box=None, padding=(0, 1, 0, 0), show_header=False)
        for width, justify in zip(widths, sides, strict=True):
            table.add_column(min_width=width, justify=justify)
        for row in some:
            table.add_row(row.name, row.formula, str(row.count))
        screen.print(table, highlight=False)


def _as_json(row: Row) -> dict[str, Any]:
    logarithm = row.count.log10
    return {"group": row.group, "name": row.name, "formula": row.formula, "value": row.count.value, "text": str(row.count),
            "log10": round(logarithm, 6) if math.isfinite(logarithm) else None}


if __name__ == "__main__":
    sys.exit(main())
