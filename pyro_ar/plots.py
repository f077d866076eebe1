r"""Figures that a stranger understands at once; colours that colour-blind readers tell apart.

Each function returns a `matplotlib.figure.Figure`, made without global state: save it with
`figure.savefig(path)`, or show it in a notebook by returning it.
"""

import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from pyro_ar.checks import require

__all__ = ["Series", "Tile", "curves", "dots", "image_rows", "posterior_panel", "reliability_panels"]

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


def curves(panels: Mapping[str, Mapping[str, Series]], x: Sequence[float], *, x_label: str, title: str = "",
           note: str = "", limits: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """One panel per metric, one line per series, over a quantity; bars are one standard error.

    A series of which one value alone is known is a point, a little left of its position, where the lines do not hide it.

    Args:
        panels: Series by name, by the label of the vertical axis.
        x: Positions.
        x_label: What they are, with its unit.
        title: Above all.
        note: Below the legend, small.
        limits: Of the vertical axes, by label; otherwise from 0 on.

    Raises:
        ValueError: A series that has not one value per position.
    """
    many = max((len(series) for series in panels.values()), default=0)  # they need rows of the legend, and room between lines
    figure, axes = _row_of_axes(panels, title, height=4.9 + 0.12 * max(0, many - 4))
    for axis, (label, series) in zip(axes, panels.items(), strict=True):
        lone = [name for name, line in series.items() if _is_lone(line)]
        for style, (name, line) in zip(_styles(), series.items(), strict=False):
            require(len(line.values) == len(line.errors) == len(x), f"{name} wants one value per position", len(line.values), len(x))
            beside = 0.022 * (max(x) - min(x)) * (lone.index(name) + 1) if name in lone else 0.0
            axis.errorbar(np.subtract(x, beside), line.values, line.errors, capsize=2, linewidth=1.6, markersize=5.5, **style)
        axis.set_xlabel(x_label)
        axis.set_xticks(list(x))
        _finish(axis, label)
        if limits is not None:
            axis.set_ylim(*limits[label])
            axis.axhline(0, color="0.3", linewidth=1, zorder=0)
    _legend(figure, next(iter(panels.values())), note)
    return figure


def _is_lone(line: Series) -> bool:
    """One value is known, others are not."""
    return len(line.values) > 1 and int(np.isfinite(line.values).sum()) == 1


def dots(panels: Mapping[str, Mapping[str, Series]], categories: Sequence[str], *, y_label: str, title: str = "",
         note: str = "") -> Figure:
    """One panel per metric, one row per category, one marker per series; bars are one standard error.

    Args:
        panels: Series by name, by the label of the horizontal axis.
        categories: Names of the rows, first one on top.
        y_label: What they are.
        title: Above all.
        note: Below the legend, small.

    Raises:
        ValueError: A series that has not one value per category.
    """
    figure, axes = _row_of_axes(panels, title, height=2.3 + max(0.5, 0.085 * len(next(iter(panels.values()), ()))) * len(categories))
    rows = np.arange(len(categories))
    for axis, (label, series) in zip(axes, panels.items(), strict=True):
        offsets = np.linspace(-0.3, 0.3, len(series)) if len(series) > 1 else [0.0]
        for style, offset, (name, line) in zip(_styles(), offsets, series.items(), strict=False):
            require(len(line.values) == len(line.errors) == len(rows), f"{name} wants one value per category", len(line.values), len(rows))
            axis.errorbar(line.values, rows + offset, xerr=line.errors, capsize=2, markersize=5.5, **style | {"linestyle": "none"})
        for row in rows[1:]:
            axis.axhline(row - 0.5, color="0.85", linewidth=0.8, zorder=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(rows, categories if axis is axes[0] else [""] * len(rows))
        axis.tick_params(axis="y", length=0)
        _finish(axis, label, horizontal=True)
    axes[0].set_ylabel(y_label)
    _legend(figure, next(iter(panels.values())), note, lines=False)
    return figure


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
        _image(left, tile.image, np.ones_like(tile.visible), f"true class {classes[tile.label]}")
        _image(middle, tile.image, tile.visible, f"{tile.title} hidden")
        _posteriors(right, tile, classes)
    figure.suptitle(title, fontsize=13)
    hidden = Patch(facecolor=HIDDEN, hatch="////", edgecolor="white", label="hidden from the models")
    true = Patch(facecolor="none", edgecolor=COLOURS[1], linewidth=2, label="true class")
    chosen = Line2D([], [], linestyle="none", marker="$87$", markersize=11, color="black", label="the model's choice, its probability in % (bold: right)")
    legend = figure.legend(handles=[hidden, true, chosen], loc="outside lower center", ncols=3, frameon=False,
                           title=note, title_fontsize=9)
    legend.get_title().set_multialignment("center")
    return figure


def reliability_panels(panels: Mapping[str, Mapping[str, np.ndarray]], *, title: str = "", note: str = "", columns: int = 5,
                       fewest: int = 10) -> Figure:
    """Reliability diagrams: accuracy against confidence, one panel per model, one line per series; below it the share of rows.

    Args:
        panels: For each model and series an array `(bins, 3)`: rows, right ones and sum of confidence of each equal bin of confidence.
        title: Above all.
        note: Below all, small.
        columns: Panels side by side.
        fewest: Bins with fewer rows have no point: their accuracy is noise.

    Raises:
        ValueError: No panels.
    """
    require(len(panels) > 0, "reliability_panels wants at least one panel")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.5, 3.3 * rows + 1.2), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    styles = dict(zip(names, _styles(), strict=False))
    for i, (model, series) in enumerate(panels.items()):
        upper, lower = grid[2 * (i // columns):2 * (i // columns) + 2, i % columns]
        _reliability(upper, lower, {name: (bins, styles[name]) for name, bins in series.items()}, fewest)
        upper.set_title(model, fontsize=10)
        lower.set_xlabel("confidence" if i + columns >= len(panels) else "")
        upper.set_ylabel("accuracy" if i % columns == 0 else "")
        lower.set_ylabel("share" if i % columns == 0 else "")
    for i in range(len(panels), rows * columns):
        for axis in grid[2 * (i // columns):2 * (i // columns) + 2, i % columns]:
            axis.set_axis_off()
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, title=note, title_fontsize=9)
    legend.get_title().set_multialignment("center")
    return figure


def _reliability(upper: Axes, lower: Axes, series: Mapping[str, tuple[np.ndarray, dict[str, Any]]], fewest: int) -> None:
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
    for bins, style in series.values():
        count, right, confidence = np.asarray(bins, dtype=float).T
        known = count >= fewest
        upper.plot(confidence[known] / count[known], right[known] / count[known], markersize=4, linewidth=1.4, clip_on=False, **style)
        edges = np.linspace(0, 1, len(count) + 1)
        lower.stairs(count / max(count.sum(), 1), edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
    for axis in (upper, lower):
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"] if axis is lower else [""] * 3)
        axis.grid(visible=True, color="0.9", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    upper.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    lower.set_yticks([0, 1], ["0", "1"])


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
            _image(axis, image, np.ones_like(image, dtype=bool) if name != unseen or hidden is None else ~hidden, "", top=top)
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


def _image(axis: Axes, image: np.ndarray, visible: np.ndarray, title: str, top: float | None = None) -> None:
    top = max(float(image.max()) if top is None else top, 1e-9)
    axis.imshow(np.where(visible, image, np.nan), cmap="gray_r", vmin=0, vmax=top, interpolation="nearest")
    if not visible.all():  # one patch for all hidden cells: one each would take seconds per image
        squares = Path.make_compound_path(*(Path.unit_rectangle().transformed(Affine2D().translate(column - 0.5, row - 0.5))
                                            for row, column in np.argwhere(~visible)))
        axis.add_patch(PathPatch(squares, facecolor=HIDDEN, edgecolor="white", linewidth=0, hatch="////"))
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


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


def _row_of_axes(panels: Mapping[str, Any], title: str, height: float) -> tuple[Figure, list[Axes]]:
    require(len(panels) > 0, "a figure wants at least one panel")
    figure = Figure(figsize=(4.3 * len(panels) + 0.6, height), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure, list(figure.subplots(1, len(panels), squeeze=False)[0])


def _styles() -> list[dict[str, Any]]:
    return [{"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
             "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]} for i in range(len(COLOURS) * len(DASHES))]


def _finish(axis: Axes, label: str, *, horizontal: bool = False) -> None:
    axis.set_title(label, fontsize=10)
    axis.grid(visible=True, axis="x" if horizontal else "both", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    # All the metrics start at 0: a cut axis would make small differences look large.
    (axis.set_xlim if horizontal else axis.set_ylim)(0, None)


def _legend(figure: Figure, series: Mapping[str, Series], note: str, *, lines: bool = True) -> None:
    handles = [Line2D([], [], label=name, **style | ({} if lines and not _is_lone(line) else {"linestyle": "none"}))
               for style, (name, line) in zip(_styles(), series.items(), strict=False)]
    rows = math.ceil(len(handles) / 6)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / rows), frameon=False,
                           title=note, title_fontsize=9)
    legend.get_title().set_multialignment("center")
