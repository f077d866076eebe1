r"""Pictures over numbers of training rows: many models side by side, each with a colour and a mark of its own in every picture."""

import itertools
import math

from collections.abc import Mapping, Sequence

import numpy as np

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from pyro_ar.checks import require
from pyro_ar.experiments.compare.run import MODELS
from pyro_ar.plots.style import COLOURS, DASHES, MARKERS, Series

__all__ = ["by_size", "style_of"]

SPREAD = 0.5  # of the gap between two sizes, over which the models lie side by side


def style_of(model: str) -> dict[str, str]:
    """Colour, mark and dash of a model: the same in every picture, whichever models are in it."""
    at = MODELS.index(model) if model in MODELS else len(MODELS) + sum(map(ord, model)) % len(COLOURS)
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "linestyle": DASHES[at // len(COLOURS) % len(DASHES)]}


def by_size(panels: Mapping[str, Mapping[str, Series]], sizes: Sequence[int], labels: Mapping[str, str], *, title: str = "", note: str = "",
            scales: Mapping[str, str] | None = None) -> Figure:
    """One panel per quantity; every point with its whole bar is inside, and the bars of one size stand side by side.

    Args:
        panels: Series by model, by the label of the vertical axis.
        sizes: Numbers of training rows.
        labels: What the legend calls each model.
        title: Above all.
        note: Below the legend, small.
        scales: Of the vertical axes by label: 'linear' (else), 'log', or 'from zero': logarithmic beyond the smallest bars, so that a model
            far behind does not press the others together.

    Raises:
        ValueError: A series that has not one value per size.
    """
    models = list(dict.fromkeys(name for series in panels.values() for name in series))
    figure = Figure(figsize=(6.3 * len(panels) + 0.6, 5.2 + 0.22 * math.ceil(len(models) / 3)), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=13)
    for axis, (label, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        gap = min((math.log(b / a) for a, b in itertools.pairwise(sizes)), default=1.0)
        for i, model in enumerate(models):
            line = series[model]
            require(len(line.values) == len(line.errors) == len(sizes), f"{model} wants one value per size", len(line.values), len(sizes))
            beside = math.exp(SPREAD * gap * ((i + 0.5) / len(models) - 0.5))
            axis.errorbar(np.multiply(sizes, beside), line.values, line.errors, capsize=2, linewidth=1.1, elinewidth=1.1, markersize=5, **style_of(model))
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("training rows")
        axis.set_xscale("log")
        axis.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(sizes[0] * math.exp(-0.6 * gap), sizes[-1] * math.exp(0.6 * gap))
        _set_limits(axis, series, (scales or {}).get(label, "linear"))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(visible=True, color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], label=labels[model], **style_of(model)) for model in models]  # type: ignore[arg-type]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False, title=note, title_fontsize=9)
    legend.get_title().set_multialignment("center")
    return figure


def _set_limits(axis: Axes, series: Mapping[str, Series], scale: str) -> None:
    values = np.array([line.values for line in series.values()], dtype=float)
    errors = np.array([line.errors for line in series.values()], dtype=float)
    low, high = np.nanmin(values - errors), np.nanmax(values + errors)
    if scale == "log" and values.min() > 0:
        axis.set_yscale("log")
        bars = (values - errors)[values > errors]
        axis.set_ylim(0.8 * min(values.min(), bars.min() if bars.size else values.min()), 1.25 * high)
        return
    if scale == "from zero":
        known = np.abs(values[values != 0])
        least = float(np.quantile(known, 0.1)) if known.size else 1.0
        axis.set_yscale("symlog", linthresh=least, linscale=0.7)
        axis.set_ylim(min(low, 0) - 0.3 * least, 1.4 * max(high, least))
        return
    room = 0.04 * (high - low) or 0.1
    axis.set_ylim(low - room, high + room)
