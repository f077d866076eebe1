"""Rows that do not belong: a class that no fit has seen, and ordinary rows made strange."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from torch import Generator, Tensor

from pyro_ar.experiments.complete.spaces import Space

__all__ = ["KINDS", "Kind", "shuffle_columns"]

CORRUPTED = 0.1  # of the cells

Make = Callable[[Tensor, Space, Generator], Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of strange rows.

    Attributes:
        label: In words.
        make: From ordinary rows `(N, n)`.
        images: It is of images only.
    """

    label: str
    make: Make
    images: bool = False


def _corrupted(x: Tensor, space: Space, generator: Generator) -> Tensor:
    """A tenth of the cells of each row, one at least, at values drawn evenly from those of all cells (of real values: from the range of each column)."""
    n = x.shape[1]
    chosen = torch.rand(x.shape, generator=generator).argsort(1) < max(1, round(CORRUPTED * n))
    drawn = torch.rand(x.shape, generator=generator)
    if space.num_states:
        return torch.where(chosen, (drawn * space.num_states).floor(), x)
    low, high = space.train.min(0).values, space.train.max(0).values
    return torch.where(chosen, low + drawn.to(x.dtype) * (high - low), x)


def _shuffled(x: Tensor, space: Space, generator: Generator) -> Tensor:
    return x.gather(1, torch.rand(x.shape, generator=generator).argsort(1))


def _inverted(x: Tensor, space: Space, generator: Generator) -> Tensor:
    return space.num_states - 1 - x


def _smoothed(x: Tensor, space: Space, generator: Generator) -> Tensor:
    """Each pixel the mean of the 3x3 about it, rounded."""
    images = x.reshape(-1, *space.event_shape)
    return torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1).round().reshape(x.shape)


def _blank(x: Tensor, space: Space, generator: Generator) -> Tensor:
    return torch.zeros_like(x[:1])


KINDS: Mapping[str, Kind] = {
    "corrupted": Kind("a tenth of the cells at values drawn evenly", _corrupted),
    "shuffled": Kind("the cells of each row in random places", _shuffled),
    "inverted": Kind("white on black", _inverted, images=True),
    "smoothed": Kind("each pixel the mean of the 3x3 about it", _smoothed, images=True),
    "blank": Kind("an empty image", _blank, images=True),
}


def shuffle_columns(x: Tensor, generator: Generator) -> Tensor:
    """Each column in an order of its own: its values are ordinary, how they go together is not. What rivals are tuned against, for want of strange rows."""
    return x.gather(0, torch.rand(x.shape, generator=generator).argsort(0))
