r"""Visible patterns: one way to check them, and the occlusions of the experiments.

A pattern is a bool tensor, True where a cell is seen. It broadcasts to
`sample + batch + event`, so one pattern may serve all rows, or each row may have its own.

A generator is named after what it **hides**: `half((8, 8), "left")` hides the left half. All accept
an `event_shape` such as `(8, 8)` or `64`; those with a geometry take the last two dimensions
as `(height, width)`, and repeat the pattern over any dimension before them (channels). A
pattern of images serves rows of flattened images as `pattern.flatten(-2)`.
"""

import math

from collections.abc import Sequence
from typing import Any

import torch

from torch import Generator, Size, Tensor

from pyro_ar.arrays import as_tensor
from pyro_ar.checks import require

__all__ = [
    "border", "check_visible", "half", "partly_seen", "patch", "random", "read_rows", "stripes",
    "training_rows",
]


def check_visible(visible: Any, event_shape: Size) -> Tensor:
    """The pattern, a tensor or an array, with its event dimensions written out, `(*left, *event_shape)`.

    Raises:
        ValueError: Not bool, or its right dimensions do not broadcast to the event.
    """
    wanted = f"visible must be a bool tensor (True = seen) that broadcasts to the event shape {tuple(event_shape)}"
    visible = as_tensor(visible)
    require(isinstance(visible, Tensor) and visible.dtype == torch.bool, wanted, visible)
    left = visible.shape[: max(visible.ndim - len(event_shape), 0)]
    right = visible.shape[len(left):]
    fits = all(a in (1, b) for a, b in zip(reversed(right), reversed(event_shape), strict=False))
    require(fits, wanted, visible)
    return visible.expand(left + event_shape)


def read_rows(x: Any, visible: Any = None) -> tuple[Tensor, Tensor | None]:
    """Rows and their pattern as tensors; where no pattern is given, NaN is the word for a hidden cell.

    With a pattern, NaN under a visible cell stays what it is, an error of whoever reads it. All that takes rows, and patterns
    beside them, reads both by this.

    Returns:
        The rows, and the pattern; None where nothing is hidden.

    Example:
        >>> read_rows(torch.tensor([[0.5, math.nan]]))[1]
        tensor([[ True, False]])
    """
    x = as_tensor(x)
    if visible is not None:
        return x, as_tensor(visible)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x, None
    hidden = x.isnan()
    return x, ~hidden if bool(hidden.any()) else None


def partly_seen(x: Any, visible: Any) -> tuple[Tensor, Tensor | None]:
    """Rows `(N, *event)` with zeros where hidden, and their patterns written out; None where nothing is hidden.

    Raises:
        ValueError: `x` holds no rows, or `visible` does not broadcast to them.
    """
    x, visible = read_rows(x, visible)
    if visible is None:
        return x, None
    require(isinstance(x, Tensor) and x.ndim >= 2 and x.numel() > 0, "data must be rows of shape (N, *event)", x)
    seen = check_visible(visible, x.shape[1:])
    left = seen.shape[:seen.ndim - x.ndim + 1]
    require(left in ((), (1,), (len(x),)), f"visible must have one pattern, or one for each of the {len(x)} rows", visible)
    seen = seen.to(x.device).expand(x.shape)
    return (x, None) if bool(seen.all()) else (torch.where(seen, x, 0), seen)


def training_rows(x: Any, visible: Any, weights: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`partly_seen`, and the weights `(*B, N)`, of the rows that count in some batch entry: what has weight zero is as if it were not there.

    Raises:
        ValueError: As `partly_seen`. Weights are checked by whoever knows what they mean.
    """
    x, seen = partly_seen(x, visible)
    weights = None if weights is None else as_tensor(weights, x.device)
    if not isinstance(weights, Tensor) or weights.ndim == 0 or weights.shape[-1] != len(x):
        return x, seen, weights
    counts = (weights != 0).reshape(-1, len(x)).any(0)
    if bool(counts.all()) or not bool(counts.any()):
        return x, seen, weights
    x, weights = x[counts], weights[..., counts]
    seen = None if seen is None or bool(seen[counts].all()) else seen[counts]
    return x, seen, weights


def random(event_shape: int | Sequence[int], fraction: float, rows: int | None = None,
           *, generator: Generator | None = None) -> Tensor:
    r"""Hide an exact fraction of the cells, chosen at random, in each row its own.

    Generators in the same state hide nested cells: what 25 % hides, 50 % hides too.

    Shapes:
        `(rows, *event_shape)`, or `(*event_shape)` without `rows`.

    Args:
        event_shape: An int or a tuple.
        fraction: Of the cells to hide, 0 to 1; rounded to whole cells.
        rows: How many patterns to draw.
        generator: Source of the draws; the global one by default.

    Raises:
        ValueError: `fraction` is not in [0, 1], or a size is not positive.

    Example:
        >>> random((8, 8), 0.25, rows=3).sum((-1, -2))
        tensor([48, 48, 48])
    """
    event = _event(event_shape)
    require(isinstance(fraction, int | float) and 0 <= fraction <= 1, "the hidden fraction must be in [0, 1]", fraction)
    require(rows is None or rows >= 0, "rows must be 0 or more", rows)
    cells = math.prod(event)
    left = () if rows is None else (rows,)
    # float64: in float32 two of 2^24 equal draws would be ordered by position
    device = generator.device if generator is not None else None
    noise = torch.rand(*left, cells, dtype=torch.float64, generator=generator, device=device)
    rank = noise.argsort(-1).argsort(-1)
    return (rank >= round(fraction * cells)).reshape(*left, *event)


def half(event_shape: int | Sequence[int], side: str) -> Tensor:
    r"""Hide the `left`, `right`, `top` or `bottom` half; the smaller half where the size is odd.

    Of a vector, `left` hides the first half and `right` the second one.

    Raises:
        ValueError: No such side, or the top or bottom of a vector.

    Example:
        >>> half((2, 4), "left").int()
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    event = _event(event_shape)
    require(side in ("left", "right", "top", "bottom"), "side must be 'left', 'right', 'top' or 'bottom'", side)
    vertical = side in ("top", "bottom")
    require(len(event) >= 2 or not vertical, f"the {side} half needs an event shape (height, width)", event)
    size = event[-2] if vertical else event[-1]
    first = torch.arange(size) < size // 2
    hidden = first if side in ("left", "top") else first.flip(0)
    seen = ~(hidden[:, None] if vertical else hidden)
    return seen.expand(event).clone()


def patch(event_shape: Sequence[int], size: int | tuple[int, int] | None = None,
          position: tuple[int, int] | None = None) -> Tensor:
    r"""Hide a rectangle, in the centre unless a position is given.

    Args:
        event_shape: Ends in `(height, width)`.
        size: Of the rectangle, one number or `(height, width)`; by default half of each side.
        position: Row and column of its upper left cell.

    Raises:
        ValueError: The rectangle does not fit into the image.

    Example:
        >>> patch((4, 4)).int()
        tensor([[1, 1, 1, 1],
                [1, 0, 0, 1],
                [1, 0, 0, 1],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    event, height, width = _image(event_shape)
    h, w = (height // 2, width // 2) if size is None else (size, size) if isinstance(size, int) else size
    require(0 <= h <= height and 0 <= w <= width, f"the patch must fit into {height}x{width}", (h, w))
    top, left = ((height - h) // 2, (width - w) // 2) if position is None else position
    require(0 <= top <= height - h and 0 <= left <= width - w,
            f"a {h}x{w} patch must lie inside {height}x{width}", (top, left))
    visible = torch.ones(event, dtype=torch.bool)
    visible[..., top:top + h, left:left + w] = False
    return visible


def border(event_shape: Sequence[int], width: int = 1) -> Tensor:
    r"""Hide a frame of `width` cells along the four edges.

    Raises:
        ValueError: `width` is negative.

    Example:
        >>> border((3, 4)).int()
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    event, rows, columns = _image(event_shape)
    require(width >= 0, "the width of the border must be 0 or more", width)
    visible = torch.zeros(event, dtype=torch.bool)
    visible[..., width:rows - width, width:columns - width] = True
    return visible


def stripes(event_shape: int | Sequence[int], width: int = 1, *, vertical: bool = False) -> Tensor:
    r"""Hide every second stripe of `width` rows (columns if `vertical`); the first stripe is seen.

    Raises:
        ValueError: `width` is not positive, or horizontal stripes of a vector.

    Example:
        >>> stripes((3, 2)).int()
        tensor([[1, 1],
                [0, 0],
                [1, 1]], dtype=torch.int32)
    """
    event = _event(event_shape)
    require(width >= 1, "the width of the stripes must be 1 or more", width)
    require(len(event) >= 2 or vertical, "horizontal stripes need an event shape (height, width)", event)
    seen = torch.arange(event[-1] if vertical else event[-2]) // width % 2 == 0
    return (seen if vertical else seen[:, None]).expand(event).clone()


def _event(event_shape: int | Sequence[int]) -> tuple[int, ...]:
    event = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    require(len(event) >= 1 and all(isinstance(n, int) and n >= 1 for n in event),
            "event_shape must be a positive int or a tuple of them", event_shape)
    return event


def _image(event_shape: Sequence[int]) -> tuple[tuple[int, ...], int, int]:
    event = _event(event_shape)
    require(len(event) >= 2, "event_shape must end in (height, width)", event_shape)
    return event, event[-2], event[-1]
