"""Images above maps of how surprising their pixels are."""

from collections.abc import Mapping, Sequence

import numpy as np

from matplotlib.figure import Figure

from pyro_ar.checks import require
from pyro_ar.plots.style import draw_image

__all__ = ["surprise_maps"]


def surprise_maps(images: Sequence[np.ndarray], maps: Mapping[str, Sequence[np.ndarray]], captions: Sequence[str] = (), *, title: str = "",
                  note: str = "") -> Figure:
    """A column for each image: above it its caption, below it its maps, all on one scale.

    Args:
        images: `(height, width)`, 0 is white.
        maps: By the name of their row, nats at each pixel of each image.
        captions: One for each image, or none.
        title: Above all.
        note: Below all, small.

    Raises:
        ValueError: No images, or rows that have not equally many.
    """
    many = len(images)
    counts = [len(row) for row in maps.values()] + ([len(captions)] if captions else [])
    require(many > 0 and len(maps) > 0 and set(counts) == {many}, "surprise_maps wants images, and as many of every map", many, counts)
    figure = Figure(figsize=(1.15 * many + 2.4, 1.2 * (1 + len(maps)) + 1.0), dpi=130, layout="constrained")
    grid = figure.subplots(1 + len(maps), many, squeeze=False)
    top = max(float(np.max(image)) for image in images)
    for axis, image, caption in zip(grid[0], images, captions or [""] * many, strict=True):
        draw_image(axis, image, np.ones_like(image, dtype=bool), caption, top=top)
    highest = max(float(np.max(one)) for row in maps.values() for one in row)
    for line, (name, row) in zip(grid[1:], maps.items(), strict=True):
        for axis, one in zip(line, row, strict=True):
            shades = axis.imshow(one, cmap="magma_r", vmin=0, vmax=max(highest, 1e-9), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_color("0.8")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.colorbar(shades, ax=list(grid[1:, -1]), label="nats", fraction=0.15, pad=0.08)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(note, fontsize=8)
    return figure
