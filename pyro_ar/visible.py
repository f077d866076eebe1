"""Visible patterns: one way to check them, and the occlusions of the experiments.

A pattern is a bool tensor, True where a cell is seen. It broadcasts to
`sample + batch + event`, so one pattern may serve all rows, or each row may have its own.
The generators return a `(height, width)` pattern, or `(rows, *event_shape)` where each row is
random; all accept an `event_shape` such as `(8, 8)` or `64`.
"""

import math

from collections.abc import Sequence

import torch

from torch import Generator, Size, Tensor

from pyro_ar.checks import require

__all__ = [
    "border", "check_visible", "half", "patch", "random", "stripes",
]


def check_visible(visible: Tensor, event_shape: Size) -> Tensor:
    """The pattern with its event dimensions written out, `(*left, *event_shape)`.

    Raises:
        ValueError: Not a bool tensor, or its right dimensions do not broadcast to the event.
    """
    wanted = f"visible must be a bool tensor (True = seen) that broadcasts to the event shape {tuple(event_shape)}"
    require(isinstance(visible, Tensor) and visible.dtype == torch.bool, wanted, visible)
    left = visible.shape[: max(visible.ndim - len(event_shape), 0)]
    right = visible.shape[len(left):]
    fits = all(a in (1, b) for a, b in zip(reversed(right), reversed(event_shape), strict=False))
    require(fits, wanted, visible)
    return visible.expand(left + event_shape)
