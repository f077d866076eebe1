"""Completed images: what was, what was seen, what was drawn, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_ar.checks import require
from pyro_ar.plots.style import HIDDEN, draw_image

__all__ = ["Completed", "completion_panel"]

GAP = 0.18  # between images, in heights of a row


@dataclass(frozen=True)
class Completed:
    """One image as one model completes it.

    Attributes:
        model: Its name.
        original: `(height, width)`, 0 is white; or `(height, width, 3)`, levels of red, green and blue, 0 is dark.
        seen: The same with NaN where nothing is seen, or another picture of what is: grey, coarser.
        draws: Completions, as `original`.
        mean: Of the completions.
        deviation: Their standard deviation at each pixel, `(height, width)`.
    """

    model: str
    original: np.ndarray
    seen: np.ndarray
    draws: Sequence[np.ndarray]
    mean: np.ndarray
    deviation: np.ndarray


def completion_panel(images: Sequence[Sequence[Completed]], levels: int, *, title: str = "", note: str = "") -> Figure:
    """A band for each image, a row for each model in it: original, what was seen, draws, mean and standard deviation.

    Args:
        images: For each image what each model makes of it; all have equally many draws.
        levels: Of a pixel: the highest is `levels - 1`.
        title: Above all.
        note: Below all, small.

    Raises:
        ValueError: No images, no models, or numbers of draws that differ.
    """
    rows = [one for group in images for one in group]
    require(len(rows) > 0 and all(len(group) > 0 for group in images), "completion_panel wants an image and a model or more", [len(g) for g in images])
    counts = {len(one.draws) for one in rows}
    require(len(counts) == 1, "all rows of a completion_panel must have equally many draws", sorted(counts))
    many = counts.pop()
    heads = ["original", "seen", *(f"draw {i + 1}" for i in range(many)), "mean", "std. dev."]
    longest = max(len(one.model) for one in rows)
    figure = Figure(figsize=(0.09 * longest + 0.95 * len(heads) + 0.9, 0.95 * len(rows) + 0.16 * len(images) + 1.25), dpi=130, layout="constrained")
    heights = [height for group in images for height in (*[1.0] * len(group), GAP)][:-1]
    grid = figure.subplots(len(heights), len(heads), squeeze=False, height_ratios=heights)
    top = max(max(float(one.deviation.max()) for one in rows), 1e-9)
    for axis in grid.flat:
        axis.set_axis_off()
    lines = iter(grid)
    for group in images:
        for k, one in enumerate(group):
            _show_row(next(lines), one, levels, top, whole=k == 0)
        next(lines, None)
    for axis, head in zip(grid[0], heads, strict=True):
        axis.set_title(head, fontsize=9)
    figure.colorbar(grid[0, -1].images[0], ax=list(grid[:, -1]), label="levels", location="right", fraction=0.2, pad=0.05, aspect=40)
    figure.suptitle(title, fontsize=11)
    if any(bool(np.isnan(one.seen).any()) for one in rows):
        handles = [Patch(facecolor=HIDDEN, hatch="////", edgecolor="white", label="hidden")]
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8, title=note, title_fontsize=8)
    else:
        figure.supxlabel(note, fontsize=8)
    return figure


def _show_row(line: np.ndarray, one: Completed, levels: int, top: float, *, whole: bool) -> None:
    """One model; the image itself and what was seen of it stand beside the first."""
    if whole:
        _show(line[0], one.original, levels)
        _show(line[1], one.seen, levels)
    for axis, image in zip(line[2:], [*one.draws, one.mean], strict=False):
        _show(axis, image, levels)
    line[-1].imshow(one.deviation, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    _bare(line[-1])
    line[2].set_ylabel(one.model, rotation=0, ha="right", va="center", fontsize=9)


def _show(axis: Axes, image: np.ndarray, levels: int) -> None:
    if image.ndim == 3:
        axis.imshow(np.clip(image / (levels - 1), 0, 1), interpolation="nearest")
    else:
        draw_image(axis, np.nan_to_num(image), ~np.isnan(image), "", top=levels - 1)
    _bare(axis)


def _bare(axis: Axes) -> None:
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("0.8")
