r"""The last screen of the occlusion experiment: what won and by how much, and the accuracies; all else is in `report.txt`."""

import math

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pyro_ar.experiments.occlusion import occlusions
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.scoring import Cell, Overall, Summary, Units, differences, overall, summarise
from pyro_ar.experiments.occlusion.tables import spread, used

__all__ = ["screen"]

WITH_ERRORS = 6  # columns whose numbers have room for their errors
TOLD_APART = 2.0  # standard errors
NAMED = 3  # models that a sentence names


def screen(plan: Plan, units: Units, written: Sequence[Path], *, width: int = 100) -> RenderableType:
    """At most 40 lines, with up to 18 models.

    Args:
        plan: What was done.
        units: What came out.
        written: Files, in one folder.
        width: Of the screen, in letters: where it is too narrow for all occlusions, the random levels are shown.
    """
    summary = summarise(units)
    names, title = used(summary), "Accuracy, %"
    table = _accuracies(summary, units, names)
    if Console(width=1000).measure(table).maximum > width and occlusions.levels(names):
        table, title = _accuracies(summary, units, occlusions.levels(names)), "Accuracy, % (hidden at random; the shapes are in report.txt)"
    files = ", ".join(path.name for path in written)
    return Group(*(Text(line) for line in _verdict(units)), Text(f"\n{title}", style="bold"), table, Text(f"\n{spread(plan, summary)}"),
                 Text(f"Written to {written[0].parent}/: {files}. Errors, log scores, calibration, differences and costs "
                      "are in report.txt; --full shows them here."))


def _verdict(units: Units) -> Iterator[str]:
    """What won, by how much, and what cannot be told apart from it."""
    models = overall(units)
    count = len(units[0]["cells"])
    over = f"over {count} occlusions" if count > 1 else "under the one occlusion"
    if len(models) < 2:
        yield "Nothing to compare: fewer than two models have an answer under all occlusions."
        return
    ranked = sorted(models, key=lambda name: -models[name].mean("accuracy"))
    first, others = models[ranked[0]], {name: models[name].behind(models[ranked[0]], "accuracy") for name in ranked[1:]}
    level = {name: gap for name, gap in others.items() if not gap[0] > TOLD_APART * gap[1]}
    yield f"Most accurate: {ranked[0]}, {100 * first.mean('accuracy'):.1f} % right, mean {over}."
    if level:
        yield f"Not told apart from it (at most {TOLD_APART:g} standard errors behind): {_listed(level)}."
    if behind := {name: gap for name, gap in others.items() if name not in level}:
        yield f"Behind it: {_listed(behind)}."
    yield _best_probabilities(models)
    if without := [name for name in dict.fromkeys(unit["model"] for unit in units) if name not in models]:
        yield f"Not ranked, without an answer under some occlusions: {', '.join(without)}."


def _listed(gaps: Mapping[str, tuple[float, float]]) -> str:
    some = [f"{name} {100 * gap:.1f}±{100 * error:.1f}" for name, (gap, error) in list(gaps.items())[:NAMED]]
    return f"{', '.join(some)} points" + (f", and {len(gaps) - NAMED} more" if len(gaps) > NAMED else "")


def _best_probabilities(models: Mapping[str, Overall]) -> str:
    ranked = sorted(models, key=lambda name: models[name].mean("log_score"))
    gap, error = models[ranked[1]].behind(models[ranked[0]], "log_score")
    return (f"Best probabilities (log score): {ranked[0]}, {models[ranked[0]].mean('log_score'):.3f} nats; "
            f"next {ranked[1]}, {gap:.3f}±{error:.3f} behind.")


def _accuracies(summary: Summary, units: Units, names: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("model")
    for label in occlusions.labels(names):
        table.add_column(label, justify="right", no_wrap=True)
    ranked = {name: _ranked(summary, name) for name in names}
    for model, cells in summary.items():
        table.add_row(model, *(_text(cells.get(name), len(names), bold=ranked[name][:1] == [model]) for name in names))
    leads = [_lead(units, ranked[name], name) for name in names]
    if any(leads):
        table.add_row(Text("best minus next", style="dim"), *(f"{lead[0]:.1f}" if lead else "-" for lead in leads))
        table.add_row(Text("± of that", style="dim"), *(f"{lead[1]:.1f}" if lead and math.isfinite(lead[1]) else "-" for lead in leads))
    return table


def _ranked(summary: Summary, name: str) -> list[str]:
    """The models that answer under an occlusion, most accurate first."""
    known = [model for model, cells in summary.items() if name in cells and cells[name].mean]
    return sorted(known, key=lambda model: -summary[model][name].mean["accuracy"])


def _text(cell: Cell | None, columns: int, *, bold: bool) -> Text:
    if cell is None or cell.reason:
        return Text("none" if cell else "-", style="italic")
    error = 100 * cell.error["accuracy"]
    said = f"±{error:.1f}".replace("±0.", "±.") if columns <= WITH_ERRORS and math.isfinite(error) else ""
    return Text(f"{100 * cell.mean['accuracy']:.1f}{said}", style="bold" if bold else "")


def _lead(units: Units, ranked: Sequence[str], name: str) -> tuple[float, float] | None:
    """Of the best over the next one under an occlusion, in points, and its error."""
    if len(ranked) < 2:
        return None
    both = [{**unit, "cells": {name: unit["cells"][name]}} for unit in units if unit["model"] in ranked[:2]]
    cell = differences(both, ranked[1])[ranked[0]][name]
    return 100 * cell.mean["accuracy"], 100 * cell.error["accuracy"]
