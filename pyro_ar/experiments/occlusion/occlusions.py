r"""The ways to hide cells in the occlusion experiment: random levels, and shapes.

An occlusion joins by one entry in `OCCLUSIONS`. All of them can be asked for by name; `usual` says which ones a data set gets
unless told otherwise: 0, 25, 50, 75 and 90 % of small images, 0, 50, 80, 90 and 95 % of large ones, of which few cells say much.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Generator, Tensor

from pyro_ar import visible

__all__ = ["HOLES", "OCCLUSIONS", "Occlusion", "hidden", "labels", "levels", "shapes", "usual"]

LARGE = 400  # cells of an image
LEVELS = (0.0, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95)
HOLES = ("random-0", "random-30", "random-60")  # of tables whose training rows have holes too
USUAL = {False: (0.0, 0.25, 0.5, 0.75, 0.9), True: (0.0, 0.5, 0.8, 0.9, 0.95)}  # by whether the images are large


class Occlusion(NamedTuple):
    """A way to hide cells.

    Attributes:
        make: `(event_shape, rows, generator)` to a pattern `(rows or 1, *event_shape)`.
        label: What is hidden, in words.
        level: Share of hidden cells where it is a random level.
    """

    make: Callable[[tuple[int, ...], int, Generator], Tensor]
    label: str
    level: float | None = None


def _random(level: float) -> Occlusion:
    def make(event: tuple[int, ...], rows: int, generator: Generator) -> Tensor:
        return visible.random(event, level, rows, generator=generator)

    return Occlusion(make, f"{100 * level:.0f} % at random", level)


def _shape(make: Callable[[tuple[int, ...]], Tensor], label: str) -> Occlusion:
    return Occlusion(lambda event, rows, generator: make(event).unsqueeze(0), label)


OCCLUSIONS: dict[str, Occlusion] = {
    **{f"random-{100 * level:.0f}": _random(level) for level in LEVELS},
    "left": _shape(lambda event: visible.half(event, "left"), "left half"),
    "right": _shape(lambda event: visible.half(event, "right"), "right half"),
    "top": _shape(lambda event: visible.half(event, "top"), "top half"),
    "bottom": _shape(lambda event: visible.half(event, "bottom"), "bottom half"),
    "centre": _shape(visible.patch, "centre patch"),
    "border": _shape(lambda event: visible.border(event, max(1, min(event[-2:]) // 4)), "border"),
    "stripes": _shape(visible.stripes, "stripes"),
}


def usual(image_shape: tuple[int, ...] | None, cells: int) -> tuple[str, ...]:
    """The names that a data set gets unless told otherwise."""
    some = USUAL[cells >= LARGE]
    return tuple(name for name, o in OCCLUSIONS.items() if (image_shape is not None if o.level is None else o.level in some))


def hidden(name: str, event: tuple[int, ...]) -> int:
    """How many cells it hides of a row."""
    return int((~OCCLUSIONS[name].make(event, 1, Generator())).sum())


def levels(names: Sequence[str]) -> list[str]:
    """The random ones of these."""
    return [name for name in names if OCCLUSIONS[name].level is not None]


def shapes(names: Sequence[str]) -> list[str]:
    """The other ones."""
    return [name for name in names if OCCLUSIONS[name].level is None]


def labels(names: Sequence[str]) -> list[str]:
    """Short labels, for the heads of columns."""
    short = [OCCLUSIONS[name].label for name in names]
    for end in (" at random", " half", " patch"):
        short = [label.removesuffix(end) for label in short]
    return short
