r"""What classifiers do with rows that are images: their shape, copies moved by a pixel, and random parts to train under."""

import math

from collections.abc import Sequence

import torch

from torch import Generator, Tensor

from pyro_ar.checks import require

__all__ = ["image_shape_of", "random_parts", "shifted"]

BOXES = 0.25  # share of the rows whose pattern is a box, hidden or shown
LEAST_SHOWN = 0.03  # probability of a pixel to be visible, at least


def image_shape_of(given: Sequence[int] | None, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """`(height, width)`, with channels before where there are some; `()` where rows are no images.

    Args:
        given: What the user said; None: the rows' own shape, where they are not flat.
        event_shape: Of one row.

    Raises:
        ValueError: A shape that is no image's or does not fit the rows.
    """
    if given is None:
        return event_shape if len(event_shape) in (2, 3) else ()
    shape = tuple(given) if isinstance(given, Sequence) else (given,)
    cells = math.prod(event_shape)
    fits = len(shape) in (2, 3) and min(shape) >= 1 and math.prod(shape) == cells
    require(not shape or fits, f"image_shape must be (height, width) or (channels, height, width) of {cells} cells", given)
    return shape


def random_parts(shape: Sequence[int], rows: int, *, generator: Generator | None = None) -> Tensor:
    r"""Random patterns to train under, `(rows, *shape)` bool, a kind for each row by chance.

    Three quarters of the rows show each pixel with a probability :math:`0.03 + 0.97 u^2`, u uniform from 0 to 1: what is hard is most of what is
    learnt, but nothing is wasted on rows that show next to nothing. An eighth hide a box of random corners, and an eighth show
    nothing but one. Channels of a pixel go together.

    Args:
        shape: `(height, width)` or `(channels, height, width)`.
        rows: How many.
        generator: Of the draws.
    """
    height, width = shape[-2:]

    def uniform(*size: int) -> Tensor:
        return torch.rand(rows, *size, generator=generator)

    def between(size: int) -> Tensor:
        ends = (uniform(2) * size).sort(-1).values
        at = torch.arange(size)
        return (at >= ends[:, :1].floor()) & (at < ends[:, 1:].ceil())

    scattered = uniform(height, width) < LEAST_SHOWN + (1 - LEAST_SHOWN) * uniform(1, 1).square()
    box = between(height)[:, :, None] & between(width)[:, None, :]
    kind = uniform(1, 1)
    visible = torch.where(kind >= BOXES, scattered, torch.where(kind < BOXES / 2, ~box, box))
    return visible if len(shape) == 2 else visible[:, None].expand(rows, *shape)


def shifted(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The images moved by one pixel up, down, left and right, the edge repeated, `(4, N, n)`; of no images, none."""
    if len(shape) < 2:
        return rows.new_zeros(0, *rows.shape)
    images = rows.reshape(len(rows), *shape)
    moved = []
    for dim in (-2, -1):
        size = images.shape[dim]
        for step in (-1, 1):
            at = (torch.arange(size, device=rows.device) + step).clamp(0, size - 1)
            moved.append(images.index_select(dim, at).reshape(rows.shape))
    return torch.stack(moved)
