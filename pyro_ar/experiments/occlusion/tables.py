r"""What the occlusion experiment shows in a terminal: scores, paired differences, costs, and footnotes."""

import math

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pyro_ar.experiments.occlusion import occlusions
from pyro_ar.experiments.occlusion.lineup import MODELS, REFERENCE, note_of
from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.scoring import (
    BINS,
    FLOOR,
    METRICS,
    Cell,
    Summary,
    Units,
    differences,
    merge_reasons,
    summarise,
)

__all__ = ["DIGITS", "SCALE", "Cost", "costs", "notes", "pooling", "spread", "tables", "used"]

TITLES = {"accuracy": "Accuracy, %: higher is better", "log_score": "Log score, -log p(true class), in nats: lower is better",
          "calibration": "Calibration error, % (in brackets: by chance, were the answers calibrated): lower is better"}
PAIRED = {"accuracy": "Accuracy minus that of {}, points",
          "log_score": "Log score minus that of {}, nats: above 0 is worse"}
SCALE = {"accuracy": 100.0, "log_score": 1.0, "calibration": 100.0}
DIGITS = {"accuracy": 1, "log_score": 2, "calibration": 1}


class Cost(NamedTuple):
    """What a model costs, over the splits; CPU time, so that a busy machine changes it little.

    Attributes:
        parameters: Free parameters, or stored numbers where that is what the model has; None: never fitted.
        fit_seconds: Mean CPU seconds of a fit.
        ms_per_row: Mean CPU milliseconds of an answer, over all occlusions that it answers.
        chosen: Settings chosen on inner rows, one per split, or one per split and share of hidden cells.
    """

    parameters: int | None
    fit_seconds: float
    ms_per_row: float
    chosen: dict[str, list[Any]]


def costs(units: Units, model: str) -> Cost:
    """The cost of one model."""
    mine = [unit for unit in units if unit["model"] == model]
    fitted = [unit for unit in mine if unit["parameters"] is not None]
    answered = sum(unit["rows"] * sum("reason" not in cell for cell in unit["cells"].values()) for unit in fitted)
    chosen: dict[str, list[Any]] = {}
    for name, value in (item for unit in fitted for item in unit.get("chosen", {}).items()):
        chosen.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return Cost(
        round(float(np.mean([unit["parameters"] for unit in fitted]))) if fitted else None,
        float(np.mean([unit["fit_seconds"] for unit in mine])),
        1000 * sum(unit["answer_seconds"] for unit in fitted) / answered if answered else math.nan,
        dict(sorted(chosen.items())),
    )


def tables(plan: Plan, units: Units, *, reference: str = REFERENCE) -> RenderableType:
    """For each metric a table of the random levels and one of the shapes, paired differences, costs, and footnotes."""
    summary = summarise(units)
    reasons = _reasons(summary)
    parts: list[RenderableType] = []
    for metric in METRICS:
        parts += _tables_of(summary, metric, TITLES[metric], reasons)
    if compared := differences(units, reference):
        for metric, title in PAIRED.items():
            some = _tables_of(compared, metric, title.format(reference), (), signed=True)
            parts += some if metric == "accuracy" else some[:2]  # of the shapes it would be too wide; it is in the files
    return Group(*parts, Text("\nCosts", style="bold"), _cost_table(units, list(summary)), *_footnotes(plan, summary, reasons))


def used(summary: Summary) -> list[str]:
    """The occlusions of a summary, in the order of `OCCLUSIONS`."""
    names = {name for row in summary.values() for name in row}
    return [name for name in OCCLUSIONS if name in names]


def _reasons(summary: Summary) -> list[str]:
    """The footnotes: one for all that differ in their numbers alone."""
    return merge_reasons([cell.reason for row in summary.values() for cell in row.values() if cell.reason])


def _tables_of(summary: Summary, metric: str, title: str, reasons: Sequence[str], *, signed: bool = False) -> list[RenderableType]:
    names = used(summary)
    parts: list[RenderableType] = []
    for some, what in ((occlusions.levels(names), "hidden at random"), (occlusions.shapes(names), "hidden shapes")):
        if some:
            parts += [Text(f"\n{title} ({what})", style="bold"), _table(summary, some, metric, reasons, signed)]
    return parts


def _table(summary: Summary, names: Sequence[str], metric: str, reasons: Sequence[str], signed: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("model")  # where the screen is narrow, long names break, and numbers do not
    for label in occlusions.labels(names):
        table.add_column(label, justify="right", no_wrap=True)
    best = {name: None if signed else _best(summary, name, metric) for name in names}
    for model, cells in summary.items():
        table.add_row(model, *(_text(cells.get(name), metric, reasons, best[name] == model, signed) for name in names))
    return table


def _best(summary: Summary, name: str, metric: str) -> str | None:
    sign = -1 if metric == "accuracy" else 1
    known = {model: sign * cells[name].mean[metric] for model, cells in summary.items() if name in cells and cells[name].mean}
    return min(known, key=lambda model: known[model]) if len(known) > 1 else None


def _text(cell: Cell | None, metric: str, reasons: Sequence[str], best: bool, signed: bool) -> Text:
    if cell is None:
        return Text("-")
    if cell.reason:
        number = next(i for i, reason in enumerate(reasons, 1) if len(merge_reasons([reason, cell.reason])) == 1)
        return Text(f"none ({number})", style="italic")
    digits, scale = DIGITS[metric], SCALE[metric]
    text = f"{scale * cell.mean[metric]:{'+' if signed else ''}.{digits}f}"
    # The leading zero of the error goes, so that seven columns fit into 80 characters.
    if metric in cell.error:
        error = scale * cell.error[metric]
        text += f"±{error:.{digits}f}".replace("±0.", "±.") if math.isfinite(error) else ""
    elif math.isfinite(cell.floor):
        text += f"({scale * cell.floor:.{digits}f})".replace("(0.", "(.")
    return Text(f"~{text}" if math.isfinite(cell.estimate_error) else text, style="bold" if best else "")


def _cost_table(units: Units, models: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("model")
    for head in ("parameters", "fit, s", "answer, ms/row"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("chosen on inner rows")
    for model in models:
        cost = costs(units, model)
        table.add_row(model, "-" if cost.parameters is None else f"{cost.parameters:,}", f"{cost.fit_seconds:.2f}",
                      f"{cost.ms_per_row:.2f}" if math.isfinite(cost.ms_per_row) else "-",
                      ", ".join(f"{name} {_range(values)}" for name, values in cost.chosen.items()))
    return table


def _range(values: Sequence[Any]) -> str:
    if any(isinstance(value, str) for value in values):
        return " or ".join(sorted(map(str, set(values))))
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def spread(plan: Plan, summary: Summary) -> str:
    """What ± means."""
    splits = max((cell.splits for row in summary.values() for cell in row.values()), default=0)
    if plan.folds > 1:
        return (f"Mean ± standard error over {splits} splits, corrected for the rows that they share (Nadeau and Bengio 2003): "
                "it covers other training and test rows.")
    return f"± is the standard error over the {plan.test_rows} test rows (binomial for the accuracy); it leaves out other training rows."


def pooling(plan: Plan) -> str:
    """What the calibration error is, and the number beside it."""
    rows = f"the {plan.test_rows} test rows" if plan.folds == 1 else "all rows, each answered once" + (", mean of the shuffles" if len(plan.seeds) > 1 else "")
    return f"Calibration error: over {rows}, in {BINS} bins; in brackets what answers with these confidences would show by chance if they were calibrated."


def _footnotes(plan: Plan, summary: Summary, reasons: Sequence[str]) -> Iterable[Text]:
    cells = [cell for row in summary.values() for cell in row.values()]
    yield Text(f"\n{spread(plan, summary)} {pooling(plan)} In a terminal the best of each column is bold. The same cells are hidden for all models. "
               "Costs are CPU seconds of one fit, and CPU milliseconds of an answer, mean over all that is answered.")
    if text := notes(plan, summary):
        yield Text(text)
    if errors := [cell.estimate_error for cell in cells if math.isfinite(cell.estimate_error)]:
        yield Text(f"~: an estimate by sequential Monte Carlo; the standard error of the probability of the true class is {np.mean(errors):.3f} in the mean, "
                   f"{max(errors):.3f} at most over models and occlusions.")
    floored = sum(cell.floored for cell in cells)
    if floored:
        yield Text(f"In the log score a row counts for at most {FLOOR:g} nats; {floored} answers were worse.")
    for number, reason in enumerate(reasons, 1):
        yield Text(f"none ({number}): {reason}")


def notes(plan: Plan, summary: Mapping[str, Any]) -> str:
    """What a reader must know about the models."""
    said = {name: note_of(name, plan.data, holes=plan.holes) for name in summary if name in MODELS}
    return "; ".join(f"{name}: {note}" for name, note in said.items() if note)
