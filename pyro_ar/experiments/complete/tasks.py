"""The tasks: of which variables, and which of them are visible."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from torch import Generator, Tensor

from pyro_ar import visible as patterns
from pyro_ar.experiments.complete.spaces import Space

__all__ = ["TASKS", "Task", "affected"]


@dataclass(frozen=True)
class Task:
    """One kind of completion.

    Attributes:
        label: What is hidden, in words.
        short: At the head of a column.
        space: Of which variables: 'pixels', 'blocks' or 'colours'.
        pattern: Visible variables by event shape, number of rows and generator: `(*event)`, or `(rows, *event)`.
    """

    label: str
    short: str
    space: str
    pattern: Callable[[tuple[int, int, int], int, Generator], Tensor]

    def visible(self, space: Space, rows: int, seed: int) -> Tensor:
        """bool, `(rows, n)`, True = seen; the same for every model."""
        seen = self.pattern(space.event_shape, rows, Generator().manual_seed(seed))
        return seen.expand(rows, *space.event_shape).flatten(1)


def _first_plane(event: tuple[int, int, int], rows: int, generator: Generator) -> Tensor:
    return (torch.arange(event[0]) == 0).reshape(-1, 1, 1).expand(event)


def _sub_grid(event: tuple[int, int, int], rows: int, generator: Generator) -> Tensor:
    return ((torch.arange(event[1]) % 2 == 0)[:, None] & (torch.arange(event[2]) % 2 == 0)).expand(event)


TASKS: Mapping[str, Task] = {
    "inpainting": Task("a patch of half the height and width, in the middle", "patch", "pixels", lambda e, n, g: patterns.patch(e)),
    "uncropping": Task("all but the middle: a border of a quarter of the smaller side", "border", "pixels",
                       lambda e, n, g: patterns.border(e, max(1, min(e[1:]) // 4))),
    "lower-half": Task("the lower half", "lower", "pixels", lambda e, n, g: patterns.half(e, "bottom")),
    "upper-half": Task("the upper half", "upper", "pixels", lambda e, n, g: patterns.half(e, "top")),
    "restoration": Task("half of the pixels, at random, other ones in each image", "random", "pixels", lambda e, n, g: patterns.random(e, 0.5, n, generator=g)),
    "sub-grid": Task("all but every second pixel of every second row", "grid", "pixels", _sub_grid),
    "super-resolution": Task("what the means of 2x2 pixels do not say, p(high | low)", "super", "blocks", _first_plane),
    "colourisation": Task("what grey levels do not say, p(RGB | grey), of patches of photographs", "colour", "colours", _first_plane),
}


def affected(space: Space, visible: Tensor) -> Tensor:
    """Which pixels of the images are not told by the visible variables, `(rows, *image)`: all of them, where pixels are not the variables."""
    if space.name == "pixels":
        return ~visible.reshape(-1, *space.event_shape[1:])
    return torch.ones_like(space.images(visible.float()), dtype=torch.bool)
