"""Colours that colour-blind readers tell apart, axes and legends: what all figures share."""

import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from pyro_ar.checks import require

__all__ = ["COLOURS", "DASHES", "HIDDEN", "MARKERS", "TINTED", "Series", "draw_image", "finish", "is_lone", "legend_below", "line_styles", "row_of_axes"]


# Okabe and Ito's colours without yellow, which is too faint on white; shape and dash tell series apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#E69F00")


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")


DASHES = ("-", "--", ":", "-.")


HIDDEN = "#9FC6E7"


TINTED = LinearSegmentedColormap.from_list("tinted", ["#E4F0FA", "#000000"])  # black stays black


@dataclass(frozen=True)
class Series:
    """One line: a value at each position, with its standard error; NaN leaves a gap."""

    values: Sequence[float]
    errors: Sequence[float]


def draw_image(axis: Axes, image: np.ndarray, visible: np.ndarray, title: str, top: float | None = None) -> None:
    """An image with its hidden part tinted."""
    top = max(float(image.max()) if top is None else top, 1e-9)
    axis.imshow(np.where(visible, image, np.nan), cmap="gray_r", vmin=0, vmax=top, interpolation="nearest")
    if not visible.all():  # one patch for all hidden cells: one each would take seconds per image
        squares = Path.make_compound_path(*(Path.unit_rectangle().transformed(Affine2D().translate(column - 0.5, row - 0.5))
                                            for row, column in np.argwhere(~visible)))
        axis.add_patch(PathPatch(squares, facecolor=HIDDEN, edgecolor="white", linewidth=0, hatch="////"))
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def row_of_axes(panels: Mapping[str, Any], title: str, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one axis per panel."""
    require(len(panels) > 0, "a figure wants at least one panel")
    figure = Figure(figsize=(4.3 * len(panels) + 0.6, height), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure, list(figure.subplots(1, len(panels), squeeze=False)[0])


def line_styles() -> list[dict[str, Any]]:
    """Colour, marker and dash of one series after the other."""
    return [{"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
             "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]} for i in range(len(COLOURS) * len(DASHES))]


def finish(axis: Axes, label: str, *, horizontal: bool = False) -> None:
    """Grid, label and ticks of an axis."""
    axis.set_title(label, fontsize=10)
    axis.grid(visible=True, axis="x" if horizontal else "both", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    # All the metrics start at 0: a cut axis would make small differences look large.
    (axis.set_xlim if horizontal else axis.set_ylim)(0, None)


def legend_below(figure: Figure, series: Mapping[str, Series], note: str, *, lines: bool = True) -> None:
    """One legend for all axes, and the note."""
    handles = [Line2D([], [], label=name, **style | ({} if lines and not is_lone(line) else {"linestyle": "none"}))
               for style, (name, line) in zip(line_styles(), series.items(), strict=False)]
    rows = math.ceil(len(handles) / 6)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / rows), frameon=False,
                           title=note, title_fontsize=9)
    legend.get_title().set_multialignment("center")


def is_lone(line: Series) -> bool:
    """One value is known, others are not."""
    return len(line.values) > 1 and int(np.isfinite(line.values).sum()) == 1
