"""Images with hidden parts, beside what models say of them."""

import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from pyro_ar.checks import require
from pyro_ar.plots.style import COLOURS, HIDDEN, TINTED, draw_image

__all__ = ["Tile", "image_rows", "posterior_panel"]


@dataclass(frozen=True)
class Tile:
    """One example of `posterior_panel`.

    Attributes:
        title: What was hidden.
        image: `(height, width)`, 0 is white.
        visible: `(height, width)`, True = seen.
        label: Position of the true class.
        posteriors: p(class | visible) by model; None where there is no exact answer.
    """

    title: str
    image: np.ndarray
    visible: np.ndarray
    label: int
    posteriors: Mapping[str, Sequence[float] | None] = field(default_factory=dict)


def posterior_panel(tiles: Sequence[Tile], classes: Sequence[Any], *, title: str = "", note: str = "", columns: int = 2) -> Figure:
    """Example images: as they are, as they were seen, and what each model makes of them.

    Each posterior is a row of cells, one per class, the darker the more probable; the column of the true class is
    framed, and the most probable class of each model carries its percentage.

    Args:
        tiles: The examples.
        classes: Names of the classes.
        title: Above all.
        note: Below all, small.
        columns: Examples side by side.

    Raises:
        ValueError: No tiles.
    """
    require(len(tiles) > 0, "posterior_panel wants at least one example")
    models = max(len(tile.posteriors) for tile in tiles)
    rows = math.ceil(len(tiles) / columns)
    height = max(1.75, 0.3 + 0.23 * models)
    wide = 0.34 * len(classes) + 1.2
    figure = Figure(figsize=(columns * (3.0 + wide), rows * (height + 0.42) + 1.3), dpi=130, layout="constrained")
    grid = figure.subplots(rows, 4 * columns - 1, squeeze=False, width_ratios=([1, 1, wide / 1.45, 0.1] * columns)[:-1])
    for axis in [*grid[:, 3::4].flat, *grid[-1, 4 * ((len(tiles) - 1) % columns + 1):]]:  # gaps, and places without a tile
        axis.set_axis_off()
    for i, tile in enumerate(tiles):
        left, middle, right = grid[i // columns, 4 * (i % columns):4 * (i % columns) + 3]
        draw_image(left, tile.image, np.ones_like(tile.visible), f"true class {classes[tile.label]}")
        draw_image(middle, tile.image, tile.visible, f"{tile.title} hidden")
        _posteriors(right, tile, classes)
    figure.suptitle(title, fontsize=13)
    hidden = Patch(facecolor=HIDDEN, hatch="////", edgecolor="white", label="hidden from the models")
    true = Patch(facecolor="none", edgecolor=COLOURS[1], linewidth=2, label="true class")
    chosen = Line2D([], [], linestyle="none", marker="$87$", markersize=11, color="black", label="the model's choice, its probability in % (bold: right)")
    legend = figure.legend(handles=[hidden, true, chosen], loc="outside lower center", ncols=3, frameon=False,
                           title=note, title_fontsize=9)
    legend.get_title().set_multialignment("center")
    return figure


def image_rows(rows: Mapping[str, Sequence[np.ndarray]], *, hidden: np.ndarray | None = None, unseen: str = "", title: str = "",
               note: str = "") -> Figure:
    """Images side by side, one row per model or source.

    Args:
        rows: `(height, width)` images by the name of their row, 0 is white; all rows share the grey of the first one.
        hidden: `(height, width)`, True where a model had to fill in: shaded in every row but the first.
        unseen: Name of a row that shows the hidden cells as hidden, not filled in.
        title: Above all.
        note: Below all, small.

    Raises:
        ValueError: No images, or rows that have not equally many.
    """
    lengths = {len(images) for images in rows.values()}
    require(len(lengths) == 1 and min(lengths) > 0, "image_rows wants rows of equally many images, at least one", sorted(lengths))
    columns = lengths.pop()
    figure = Figure(figsize=(2.3 + 0.72 * columns, 1.1 + 0.74 * len(rows)), dpi=130, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    top = max(float(np.max(image)) for image in next(iter(rows.values())))
    for i, (line, (name, images)) in enumerate(zip(grid, rows.items(), strict=True)):
        for axis, image in zip(line, images, strict=True):
            draw_image(axis, image, np.ones_like(image, dtype=bool) if name != unseen or hidden is None else ~hidden, "", top=top)
            if hidden is not None and i > 0 and name != unseen:
                axis.imshow(np.where(hidden, image, np.nan), cmap=TINTED, vmin=0, vmax=max(top, 1e-9), interpolation="nearest")
            axis.spines[:].set_color("0.8")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=11)
    if hidden is not None:
        handles = [Patch(facecolor=TINTED(0), label="drawn by the model"),
                   Patch(facecolor=HIDDEN, hatch="////", edgecolor="white", label="hidden from the models")]
        figure.legend(handles=handles[:1 + (unseen in rows)], loc="outside lower center", ncols=2, frameon=False, fontsize=8, title=note, title_fontsize=8)
    else:
        figure.supxlabel(note, fontsize=8)
    return figure


def _posteriors(axis: Axes, tile: Tile, classes: Sequence[Any]) -> None:
    names = list(tile.posteriors)
    known = [tile.posteriors[name] for name in names]
    table = np.array([[np.nan] * len(classes) if p is None else p for p in known], dtype=float)
    shades = ListedColormap([str(1 - 0.62 * (i / 255) ** 0.8) for i in range(256)])
    axis.imshow(table, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for row, p in enumerate(known):
        if p is None:
            axis.text((len(classes) - 1) / 2, row, "no exact answer", ha="center", va="center", fontsize=8, style="italic",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
            continue
        best = int(np.argmax(p))
        weight = "bold" if best == tile.label else "normal"
        axis.text(best, row, f"{100 * p[best]:.0f}", ha="center", va="center", fontsize=8, color="black", weight=weight)
    axis.set_xticks(range(len(classes)), [str(c) for c in classes], fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    axis.set_title("p(class | what is seen)", fontsize=9)
    axis.add_patch(Rectangle((tile.label - 0.5, -0.5), 1, len(names), fill=False, edgecolor=COLOURS[1], linewidth=2, clip_on=False))
