r"""The pictures of the occlusion experiment: scores over levels and shapes, reliability, examples, and completions."""

import math
import textwrap

from collections.abc import Mapping, Sequence

import numpy as np

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ar.experiments.occlusion import occlusions
from pyro_ar.experiments.occlusion.lineup import REFERENCE
from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.scoring import METRICS, Cell, Summary, Units, differences, reliability, summarise
from pyro_ar.experiments.occlusion.shown import completed, examples
from pyro_ar.experiments.occlusion.tables import SCALE, notes, spread, used
from pyro_ar.plots.images import Tile, image_rows, posterior_panel
from pyro_ar.plots.series import curves, dots, reliability_panels
from pyro_ar.plots.style import Series

__all__ = ["draw"]

SEEN = "what is seen"
GREY = "0.88"
CHANCE = "Grey: the calibration error that calibrated answers would show by chance, from model to model."
NOTE_WIDTH = 190  # letters of a line of notes
RELIABLE = 3  # levels in the reliability diagram: the hardest ones

AXES = {"accuracy": "Accuracy (%)\nhigher is better", "log_score": "Log score: mean -log p(true class), nats\nlower is better",
        "calibration": "Calibration error (%)\nlower is better"}
AWAY = {"accuracy": "Accuracy minus that of {} (points)\nabove the line is better", "log_score": "Log score minus that of {} (nats)\nbelow the line is better"}
NEAR = ((-12.0, 3.0), (0.5, -0.15))  # worse and better than the reference, as far as is shown


def draw(plan: Plan, units: Units, *, reference: str = REFERENCE) -> dict[str, Figure]:
    """The pictures by file name, as far as there is something to show."""
    what = f"{plan.data.name}, {plan.data.num_states} levels" if plan.data.num_states else plan.data.name
    return _scores(plan, units, what) | _differences(plan, units, what, reference) | _reliability(units, what) | _images(plan, units, what)


def _words(plan: Plan) -> tuple[str, str]:
    """What rows and their cells are called."""
    return ("images", "pixels") if plan.data.image_shape else ("rows", "cells")


def _scores(plan: Plan, units: Units, what: str) -> dict[str, Figure]:
    """`levels.png` and `shapes.png`."""
    summary = summarise(units)
    names, (things, cells) = used(summary), _words(plan)
    said = (f"{spread(plan, summary)} The same {cells} are hidden for all models. {CHANCE}", _missing(summary), notes(plan, summary))
    note = "\n".join(textwrap.fill(text, NOTE_WIDTH) for text in said if text)
    figures = {}
    levels, shapes = occlusions.levels(names), occlusions.shapes(names)
    if len(levels) > 1:
        x = [100 * (OCCLUSIONS[name].level or 0) for name in levels]
        figures["levels.png"] = curves(_panels(summary, levels), x, x_label=f"{cells} hidden at random (%)",
                                       title=f"Classifying {things} with hidden {cells} ({what})", note=note)
        low, high = _chance(summary, levels)
        _calibration_axis(figures["levels.png"]).fill_between(x, low, high, color=GREY, linewidth=0, zorder=0)
    if shapes:
        figures["shapes.png"] = dots(_panels(summary, shapes), [OCCLUSIONS[name].label for name in shapes], y_label="what is hidden",
                                     title=f"Classifying {things} with a part hidden ({what})", note=note)
        low, high = _chance(summary, shapes)
        _calibration_axis(figures["shapes.png"]).barh(range(len(shapes)), np.subtract(high, low), left=low, height=0.8, color=GREY, zorder=0)
    return figures


def _chance(summary: Summary, names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Of each occlusion the least and the largest floor of the calibration error among the models, %."""
    floors = [[SCALE["calibration"] * cells[name].floor for cells in summary.values() if name in cells and not cells[name].reason] or [math.nan]
              for name in names]
    return [min(some) for some in floors], [max(some) for some in floors]


def _calibration_axis(figure: Figure) -> Axes:
    return figure.axes[METRICS.index("calibration")]


def _differences(plan: Plan, units: Units, what: str, reference: str) -> dict[str, Figure]:
    """`differences.png`: near the reference, where the curves of the scores themselves lie on top of each other."""
    compared = differences(units, reference)
    levels = occlusions.levels(used(compared))
    if len(levels) < 2:
        return {}
    x = [100 * (OCCLUSIONS[name].level or 0) for name in levels]
    itself = {name: Cell(dict.fromkeys(METRICS, 0.0), {}, 0) for name in levels}
    # The reference too, so that the marks are the same in all pictures.
    compared = {model: itself if model == reference else compared.get(model, {}) for model in summarise(units)}
    panels = {AWAY[metric].format(reference): series for metric, series in zip(AXES, _panels(compared, levels).values(), strict=True) if metric in AWAY}
    near = {label: _near(series, *line) for (label, series), line in zip(panels.items(), NEAR, strict=True)}
    cells = _words(plan)[1]
    note = (f"{spread(plan, compared)}\nDifferences on the same rows with the same {cells} hidden. "
            "Lines that leave the picture are far worse: the tables have their numbers.")
    return {"differences.png": curves(panels, x, x_label=f"{cells} hidden at random (%)", title=f"Compared with {reference} ({what})", note=note,
                                      limits=near)}


def _near(series: Mapping[str, Series], worst: float, best: float) -> tuple[float, float]:
    """Limits of the vertical axis: what is better than the reference is shown whole with its error, what is worse as far as `worst`."""
    sign = math.copysign(1.0, best)
    ends = np.concatenate([sign * np.array(line.values) + np.array(line.errors) for line in series.values()])
    best = sign * max(abs(best), 1.1 * float(np.nanmax(ends)))
    return min(worst, best), max(worst, best)


def _missing(summary: Summary) -> str:
    """Which models lack points."""
    names = [model for model, cells in summary.items() if any(cell.reason for cell in cells.values())]
    return f"{', '.join(names)}: only where there is an answer." if names else ""


def _panels(summary: Summary, names: Sequence[str]) -> dict[str, dict[str, Series]]:
    def line(cells: Mapping[str, Cell], metric: str) -> Series:
        known = [cells.get(name, Cell({}, {}, 0)) for name in names]
        values = [SCALE[metric] * cell.mean.get(metric, math.nan) for cell in known]
        errors = [SCALE[metric] * cell.error.get(metric, math.nan) for cell in known]
        return Series(values, [0.0 if math.isnan(e) else e for e in errors])

    return {AXES[metric]: {model: line(cells, metric) for model, cells in summary.items()} for metric in METRICS}


def _reliability(units: Units, what: str) -> dict[str, Figure]:
    """`reliability.png`: the models that answer the hardest random levels."""
    summary = summarise(units)
    levels = occlusions.levels(used(summary))[-RELIABLE:]
    panels = {model: {OCCLUSIONS[name].label: reliability(units, model, name) for name in levels if cells.get(name) and cells[name].mean}
              for model, cells in summary.items()}
    panels = {model: series for model, series in panels.items() if series}
    if not panels:
        return {}
    note = ("On the diagonal a model is right as often as it says; below it is overconfident. Below each diagram: the share of rows by confidence.\n"
            "Bins with fewer than 10 rows are left out of the lines.")
    return {"reliability.png": reliability_panels(panels, title=f"Is a confident answer right? ({what})", note=note)}


def _images(plan: Plan, units: Units, what: str) -> dict[str, Figure]:
    """`examples.png` and `completions.png`."""
    figures = {}
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


def _tiles(plan: Plan, units: Units) -> list[Tile]:
    shape = plan.data.image_shape
    answers = {unit["model"]: unit["examples"] for unit in units if "examples" in unit}
    if shape is None or not answers:
        return []
    classes = np.unique(plan.labels)
    return [Tile(OCCLUSIONS[example.occlusion].label.removesuffix(" at random"), plan.data.x[example.row].reshape(shape).numpy(),
                 example.visible.reshape(shape).numpy(), int(np.searchsorted(classes, example.label)),
                 {model: answer.get(example.occlusion) for model, answer in answers.items()})
            for example in examples(plan)]


def _completions(plan: Plan, units: Units) -> dict[str, list[np.ndarray]]:
    """Rows of images by name: the digits, what is seen of them, and the draw of each model."""
    shape, shown = plan.data.image_shape, completed(plan)
    draws = {unit["model"]: [np.array(draw).reshape(shape) for draw in unit["completions"]] for unit in units if "completions" in unit}
    if shape is None or len(shape) != 2 or not draws:
        return {}
    true = [plan.data.x[example.row].reshape(shape).numpy() for example in shown]
    return {"the image": true, SEEN: true, **draws}
