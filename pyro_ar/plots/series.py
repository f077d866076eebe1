"""Curves, dots and reliability diagrams."""

import math

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pyro_ar.checks import require
from pyro_ar.plots.style import Series, finish, is_lone, legend_below, line_styles, row_of_axes

__all__ = ["curves", "dots", "reliability_panels"]


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
    figure, axes = row_of_axes(panels, title, height=4.9 + 0.12 * max(0, many - 4))
    for axis, (label, series) in zip(axes, panels.items(), strict=True):
        lone = [name for name, line in series.items() if is_lone(line)]
        for style, (name, line) in zip(line_styles(), series.items(), strict=False):
            require(len(line.values) == len(line.errors) == len(x), f"{name} wants one value per position", len(line.values), len(x))
            beside = 0.022 * (max(x) - min(x)) * (lone.index(name) + 1) if name in lone else 0.0
            axis.errorbar(np.subtract(x, beside), line.values, line.errors, capsize=2, linewidth=1.6, markersize=5.5, **style)
        axis.set_xlabel(x_label)
        axis.set_xticks(list(x))
        finish(axis, label)
        if limits is not None:
            axis.set_ylim(*limits[label])
            axis.axhline(0, color="0.3", linewidth=1, zorder=0)
    legend_below(figure, next(iter(panels.values())), note)
    return figure


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
    figure, axes = row_of_axes(panels, title, height=2.3 + max(0.5, 0.085 * len(next(iter(panels.values()), ()))) * len(categories))
    rows = np.arange(len(categories))
    for axis, (label, series) in zip(axes, panels.items(), strict=True):
        offsets = np.linspace(-0.3, 0.3, len(series)) if len(series) > 1 else [0.0]
        for style, offset, (name, line) in zip(line_styles(), offsets, series.items(), strict=False):
            require(len(line.values) == len(line.errors) == len(rows), f"{name} wants one value per category", len(line.values), len(rows))
            axis.errorbar(line.values, rows + offset, xerr=line.errors, capsize=2, markersize=5.5, **style | {"linestyle": "none"})
        for row in rows[1:]:
            axis.axhline(row - 0.5, color="0.85", linewidth=0.8, zorder=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(rows, categories if axis is axes[0] else [""] * len(rows))
        axis.tick_params(axis="y", length=0)
        finish(axis, label, horizontal=True)
    axes[0].set_ylabel(y_label)
    legend_below(figure, next(iter(panels.values())), note, lines=False)
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
    styles = dict(zip(names, line_styles(), strict=False))
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
