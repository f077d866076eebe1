r"""What the occlusion experiment shows to people: tables, a CSV file, and four pictures."""

import io
import math

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pyro_ar.experiments.occlusion import (
    FLOOR,
    METRICS,
    MODELS,
    OCCLUSIONS,
    Cell,
    Plan,
    completed,
    examples,
    merge_reasons,
)
from pyro_ar.experiments.store import write_atomically, write_csv
from pyro_ar.plots import Series, Tile, curves, dots, image_rows, posterior_panel

__all__ = ["csv_rows", "draw", "tables", "write"]

Summary = Mapping[str, Mapping[str, Cell]]
SEEN = "what is seen"

TITLES = {"accuracy": "Accuracy, %: higher is better", "log_score": "Log score, -log p(true class), in nats: lower is better",
          "calibration": "Calibration error, %: lower is better"}
AXES = {"accuracy": "Accuracy (%)\nhigher is better", "log_score": "Log score: mean -log p(true class), nats\nlower is better",
        "calibration": "Calibration error (%)\nlower is better"}
SCALE = {"accuracy": 100.0, "log_score": 1.0, "calibration": 100.0}
DIGITS = {"accuracy": 1, "log_score": 2, "calibration": 1}


def write(plan: Plan, units: Sequence[Mapping[str, Any]], summary: Summary, folder: Path) -> list[Path]:
    """`results.csv` and the pictures; returns what was written."""
    write_csv(folder / "results.csv", csv_rows(summary))
    paths = [folder / "results.csv"]
    for name, figure in draw(plan, units, summary).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(folder / name, buffer.getvalue())
        paths.append(folder / name)
    return paths


def csv_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per model and occlusion; shares, not percentages."""
    rows = []
    for model, cells in summary.items():
        for name, cell in cells.items():
            row: dict[str, Any] = {"model": model, "occlusion": name, "hidden": OCCLUSIONS[name].label, "splits": cell.splits}
            for metric in METRICS:
                row[metric] = _rounded(cell.mean.get(metric, math.nan))
                row[f"{metric}_se"] = _rounded(cell.error.get(metric, math.nan))
            rows.append(row | {"floored_rows": cell.floored, "no_exact_answer": cell.reason})
    return rows


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


# Tables.


def tables(summary: Summary) -> RenderableType:
    """For each metric a table of the random levels and one of the shapes, with footnotes."""
    names = _occlusions(summary)
    reasons = _reasons(summary)
    parts: list[RenderableType] = []
    for metric in METRICS:
        levels = [name for name in names if OCCLUSIONS[name].level is not None]
        shapes = [name for name in names if OCCLUSIONS[name].level is None]
        for some, what in ((levels, "hidden at random"), (shapes, "hidden shapes")):
            if some:
                parts += [Text(f"\n{TITLES[metric]} ({what})", style="bold"), _table(summary, some, metric, reasons)]
    return Group(*parts, *_footnotes(summary, reasons))


def _reasons(summary: Summary) -> list[str]:
    """The footnotes: one for all that differ in their numbers alone."""
    return merge_reasons([cell.reason for row in summary.values() for cell in row.values() if cell.reason])


def _table(summary: Summary, names: Sequence[str], metric: str, reasons: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("model")  # where the screen is narrow, long names break, and numbers do not
    for name in names:
        label = OCCLUSIONS[name].label.removesuffix(" at random").removesuffix(" half").removesuffix(" patch")
        table.add_column(label, justify="right", no_wrap=True)
    best = {name: _best(summary, name, metric) for name in names}
    for model, cells in summary.items():
        table.add_row(model, *(_text(cells.get(name), metric, reasons, best[name] == model) for name in names))
    return table


def _best(summary: Summary, name: str, metric: str) -> str | None:
    sign = -1 if metric == "accuracy" else 1
    known = {model: sign * cells[name].mean[metric] for model, cells in summary.items() if name in cells and cells[name].mean}
    return min(known, key=lambda model: known[model]) if len(known) > 1 else None


def _text(cell: Cell | None, metric: str, reasons: Sequence[str], best: bool) -> Text:
    if cell is None:
        return Text("-")
    if cell.reason:
        number = next(i for i, reason in enumerate(reasons, 1) if len(merge_reasons([reason, cell.reason])) == 1)
        return Text(f"none ({number})", style="italic")
    digits, scale = DIGITS[metric], SCALE[metric]
    text = f"{scale * cell.mean[metric]:.{digits}f}"
    error = scale * cell.error[metric]
    # The leading zero of the error goes, so that seven columns fit into 80 characters.
    text += f"±{error:.{digits}f}".replace("±0.", "±.") if math.isfinite(error) else ""
    return Text(text, style="bold" if best else "")


def _footnotes(summary: Summary, reasons: Sequence[str]) -> Iterable[Text]:
    cells = [cell for row in summary.values() for cell in row.values()]
    splits = max(cell.splits for cell in cells)
    yield Text(f"\nMean ± standard error over {splits} splits. In a terminal the best of each column is bold. The same cells are hidden for all models.")
    if notes := _notes(summary):
        yield Text(notes)
    floored = sum(cell.floored for cell in cells)
    if floored:
        yield Text(f"In the log score a row counts for at most {FLOOR:g} nats; {floored} answers were worse.")
    for number, reason in enumerate(reasons, 1):
        yield Text(f"none ({number}): no exact answer. {reason[:1].upper()}{reason[1:]}")


def _missing(summary: Summary) -> str:
    """Which models lack points, for the pictures."""
    names = [model for model, cells in summary.items() if any(cell.reason for cell in cells.values())]
    return f"{', '.join(names)}: only where there is an exact answer." if names else ""


def _notes(summary: Summary) -> str:
    """What a reader must know about the models."""
    return "; ".join(f"{name}: {MODELS[name].note}" for name in summary if name in MODELS and MODELS[name].note)


def _occlusions(summary: Summary) -> list[str]:
    used = {name for row in summary.values() for name in row}
    return [name for name in OCCLUSIONS if name in used]


# Pictures.


def draw(plan: Plan, units: Sequence[Mapping[str, Any]], summary: Summary) -> dict[str, Figure]:
    """The pictures by file name: `levels.png`, `shapes.png`, `examples.png`, `completions.png`, as far as there is something to show."""
    names = _occlusions(summary)
    splits = max((cell.splits for row in summary.values() for cell in row.values()), default=0)
    what = f"{plan.data.name}, {plan.data.num_states} levels" if plan.data.num_states else plan.data.name
    note = "\n".join(filter(None, (f"Mean and standard error over {splits} splits; the same cells are hidden for all models.",
                                   _missing(summary), _notes(summary))))
    figures = {}
    levels = [name for name in names if OCCLUSIONS[name].level is not None]
    if len(levels) > 1:
        x = [100 * (OCCLUSIONS[name].level or 0) for name in levels]
        figures["levels.png"] = curves(_panels(summary, levels), x, x_label="pixels hidden at random (%)",
                                       title=f"Classifying images with hidden pixels ({what})", note=note)
    shapes = [name for name in names if OCCLUSIONS[name].level is None]
    if shapes:
        figures["shapes.png"] = dots(_panels(summary, shapes), [OCCLUSIONS[name].label for name in shapes], y_label="what is hidden",
                                     title=f"Classifying images with a part hidden ({what})", note=note)
    tiles = _tiles(plan, units)
    if tiles:
        figures["examples.png"] = posterior_panel(tiles, np.unique(plan.labels).tolist(), title=f"What the models make of what is seen ({what})",
                                                  note="The darker, the more probable. Shown is the first test image of each class: a rule, not a choice.")
    rows = _completions(plan, units)
    if rows:
        figures["completions.png"] = image_rows(
            rows, hidden=~completed(plan)[0].visible.reshape(rows[SEEN][0].shape).numpy(), unseen=SEEN,
            title=f"The lower half, drawn by each model given the upper half ({what})",
            note="One draw of given(x, visible) per model and digit, not a choice of several; first test image of each class.")
    return figures


def _panels(summary: Summary, names: Sequence[str]) -> dict[str, dict[str, Series]]:
    def line(cells: Mapping[str, Cell], metric: str) -> Series:
        known = [cells.get(name, Cell({}, {}, 0)) for name in names]
        values = [SCALE[metric] * cell.mean.get(metric, math.nan) for cell in known]
        errors = [SCALE[metric] * cell.error.get(metric, math.nan) for cell in known]
        return Series(values, [0.0 if math.isnan(e) else e for e in errors])

    return {AXES[metric]: {model: line(cells, metric) for model, cells in summary.items()} for metric in METRICS}


def _tiles(plan: Plan, units: Sequence[Mapping[str, Any]]) -> list[Tile]:
    shape = plan.data.image_shape
    answers = {unit["model"]: unit["examples"] for unit in units if "examples" in unit}
    if shape is None or not answers:
        return []
    classes = np.unique(plan.labels)
    return [Tile(OCCLUSIONS[example.occlusion].label.removesuffix(" at random"), plan.data.x[example.row].reshape(shape).numpy(),
                 example.visible.reshape(shape).numpy(), int(np.searchsorted(classes, example.label)),
                 {model: answer.get(example.occlusion) for model, answer in answers.items()})
            for example in examples(plan)]


def _completions(plan: Plan, units: Sequence[Mapping[str, Any]]) -> dict[str, list[np.ndarray]]:
    """Rows of images by name: the digits, what is seen of them, and the draw of each model."""
    shape, shown = plan.data.image_shape, completed(plan)
    draws = {unit["model"]: [np.array(draw).reshape(shape) for draw in unit["completions"]] for unit in units if "completions" in unit}
    if shape is None or len(shape) != 2 or not draws:
        return {}
    true = [plan.data.x[example.row].reshape(shape).numpy() for example in shown]
    return {"the image": true, SEEN: true, **draws}
