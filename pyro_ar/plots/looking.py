r"""Pictures of looking and of abstaining: risk-coverage curves, and digits revealed cell by cell.

As in `plots`, each function returns a `matplotlib.figure.Figure` without global state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyro_ar.checks import require
from pyro_ar.plots.style import COLOURS, draw_image, finish, line_styles, row_of_axes

__all__ = ["Revealed", "reveal_panel", "risk_curves"]


@dataclass(frozen=True)
class Revealed:
    """One image of `reveal_panel`, of which k cells were looked at; arrays of numpy.

    Attributes:
        title: What is shown, such as the true class.
        image: `(height, width)`, 0 is white.
        cells: Positions in the flattened image, in the order of the looks, `(k,)`.
        posteriors: p(class | seen), before the first look and after each, `(k + 1, C)`.
        gains: Information of every cell before each look, in nats, `(k, height, width)` or `(k, cells)`; None: not shown.
        label: Position of the true class; None: not known.
    """

    title: str
    image: np.ndarray
    cells: np.ndarray
    posteriors: np.ndarray
    gains: np.ndarray | None = None
    label: int | None = None


def risk_curves(panels: Mapping[str, Mapping[str, Any]], *, title: str = "", note: str = "") -> Figure:
    """One panel per situation, one line per rule of abstention: error among the answers against the share answered.

    Args:
        panels: By the title of the panel, curves by name: what `risk_coverage` returns.
        title: Above all.
        note: Below the legend, small.

    Raises:
        ValueError: No panels.
    """
    figure, axes = row_of_axes(panels, title, height=4.6)
    for axis, (label, curves) in zip(axes, panels.items(), strict=True):
        for style, (name, curve) in zip(line_styles(), curves.items(), strict=False):
            style["label"] = f"{name} ({100 * curve.area:.1f})"
            every = max(1, len(curve.coverage) // 6)
            axis.plot(100 * curve.coverage, 100 * curve.risk, linewidth=1.6, markersize=5.5, markevery=every, **style)
        axis.legend(fontsize=8, frameon=False, loc="upper left", title="mean height of the line in brackets", title_fontsize=7)
        axis.set_xlabel("rows answered, the surest first (%)")
        finish(axis, label)
        axis.set_xlim(0, 100)
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # room for the legend
    axes[0].set_ylabel("wrong among the answers (%)")
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure


def reveal_panel(shown: Sequence[Revealed], classes: Sequence[Any], *, maps: Sequence[int] = (0, 2, 5), title: str = "",
                 note: str = "") -> Figure:
    """One row per image: which cells were looked at and in what order, how the posterior moved, and what each cell would have told.

    The posterior has one line of cells per look, the darker the more probable, the true class framed. On the maps
    the next look is framed.

    Args:
        shown: The images.
        classes: Names of the classes.
        maps: Before which looks to show the map of information: 0 is the first.
        title: Above all.
        note: Below all, small.

    Raises:
        ValueError: No images, or a map of a look that there was not.
    """
    require(len(shown) > 0, "reveal_panel wants at least one image")
    with_maps = [at for at in maps if any(one.gains is not None for one in shown)]
    for one in shown:
        require(one.gains is None or all(0 <= at < len(one.gains) for at in with_maps), "maps must be of looks that there were",
                list(maps), None if one.gains is None else len(one.gains))
        require(len(one.posteriors) == len(one.cells) + 1, "there must be one posterior more than looks", len(one.posteriors), len(one.cells))
    columns = 2 + len(with_maps)
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.9 * len(shown) + 0.9), dpi=130, layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False, width_ratios=[1, 1.25, *[1] * len(with_maps)])
    for line, one in zip(grid, shown, strict=True):
        _looked_at(line[0], one)
        _moving(line[1], one, classes)
        for axis, at in zip(line[2:], with_maps, strict=True):
            _map(axis, one, at)
    figure.suptitle(title, fontsize=13)
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure


def _place(one: Revealed, cell: int) -> tuple[int, int]:
    row, column = divmod(int(cell), one.image.shape[1])
    return row, column


def _looked_at(axis: Axes, one: Revealed) -> None:
    visible = np.zeros(one.image.size, dtype=bool)
    visible[one.cells] = True
    draw_image(axis, one.image, visible.reshape(one.image.shape), f"{one.title}: looks in order", top=float(one.image.max()))
    top = max(float(one.image.max()), 1e-9)
    for number, cell in enumerate(one.cells, 1):
        row, column = _place(one, cell)
        colour = "white" if one.image[row, column] > 0.5 * top else "black"
        axis.text(column, row, str(number), ha="center", va="center", fontsize=8, color=colour)


def _moving(axis: Axes, one: Revealed, classes: Sequence[Any]) -> None:
    table = one.posteriors
    axis.imshow(table, cmap="Greys", vmin=0, vmax=1.6, aspect="auto", interpolation="nearest")
    for step, p in enumerate(table):
        best = int(np.argmax(p))
        right = one.label is None or best == one.label
        axis.text(best, step, f"{100 * p[best]:.0f}", ha="center", va="center", fontsize=7, weight="bold" if right else "normal")
    axis.set_xticks(range(len(classes)), [str(c) for c in classes], fontsize=8)
    axis.set_yticks(range(0, len(table), max(1, len(table) // 8)))
    axis.tick_params(length=0, labelsize=8)
    axis.set_ylabel("looks", fontsize=8)
    axis.set_title("p(class | looks) in %", fontsize=9)
    if one.label is not None:
        axis.add_patch(Rectangle((one.label - 0.5, -0.5), 1, len(table), fill=False, edgecolor=COLOURS[1], linewidth=2, clip_on=False))


def _map(axis: Axes, one: Revealed, at: int) -> None:
    if one.gains is None:
        axis.set_axis_off()
        return
    gains = np.reshape(one.gains[at], one.image.shape)
    image = axis.imshow(gains, cmap="Blues", vmin=0, vmax=max(float(gains.max()), 1e-3), interpolation="nearest")
    row, column = _place(one, one.cells[at])
    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(f"information after {at} look{'' if at == 1 else 's'} (nats)", fontsize=9)
    axis.figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
