"""Columns of a table: what kind each is, and cells as numbers and back."""

import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torch import Tensor

from pyro_ar.arrays import is_missing
from pyro_ar.checks import require

__all__ = ["KINDS", "Column", "decoded", "encoded", "read_columns"]

KINDS = ("real", "count", "binary", "categorical", "constant")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: In messages and in frames.
        kind: 'real', 'count' (whole numbers), 'binary', 'categorical', or 'constant' (one value, which fills its holes).
        values: Of the states, in their order, where there are states.
        center: Mean of the numbers.
        scale: Their standard deviation.
        least: The smallest number seen.
        most: The largest.
    """

    name: str
    kind: str
    values: tuple[Any, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    least: float = 0.0
    most: float = 0.0

    @property
    def is_number(self) -> bool:
        """A real number or a count."""
        return self.kind in ("real", "count")


def read_columns(cells: Sequence[np.ndarray], names: Sequence[str], kinds: Mapping[str, str], *,
                 two_numbers: str = "binary") -> tuple[Column, ...]:
    """The kind of each column, from its visible cells.

    Numbers of two values are binary, other whole numbers counts, and the rest real; words, bools and categories are binary or categorical.

    Args:
        cells: Each column as an array of objects or numbers, holes as NaN or None.
        names: Of the columns.
        kinds: By name, where the user knows better.
        two_numbers: What numbers of two values are.

    Raises:
        ValueError: A column without visible cells, of mixed types, or with an unknown or unfit kind.
    """
    unknown = set(kinds) - set(names)
    require(not unknown, f"kinds must be of columns there are ({', '.join(names)})", sorted(unknown))
    return tuple(_read(column, name, kinds.get(name), two_numbers) for column, name in zip(cells, names, strict=True))


def _read(column: np.ndarray, name: str, asked: str | None, two_numbers: str) -> Column:
    require(asked is None or asked in KINDS, f"the kind of a column must be one of {', '.join(KINDS)}", asked)
    seen = [v for v in column.tolist() if not _is_hole(v)]
    require(len(seen) > 0, f"column {name} is all missing: leave it out", len(column))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in seen)
    words = all(isinstance(v, str | bool) for v in seen)
    require(numbers or words, f"column {name} must hold numbers or words, not both", {type(v).__name__ for v in seen})
    values = tuple(sorted(set(seen)))
    if (len(values) == 1 and asked is None) or asked == "constant":
        require(len(values) == 1, f"column {name} is no constant", values[:3])
        return Column(name, "constant", values)
    whole = numbers and all(float(v).is_integer() for v in seen)
    found = two_numbers if numbers and len(values) == 2 else "binary" if len(values) == 2 else "categorical" if words else "count" if whole else "real"
    kind = found if asked is None else asked
    require(kind not in ("real", "count") or numbers, f"column {name} holds words, and cannot be {kind}", values[:3])
    require(kind != "count" or whole, f"column {name} holds other than whole numbers, and cannot be counts", values[:3])
    require(kind != "binary" or len(values) == 2, f"column {name} has {len(values)} values, and cannot be binary", values[:3])
    if kind in ("binary", "categorical"):
        return Column(name, kind, values)
    array = np.asarray(seen, float)
    require(bool(np.isfinite(array).all()), f"column {name} must hold finite numbers", array[~np.isfinite(array)][:3].tolist())
    return Column(name, kind, (), float(array.mean()), float(array.std()) or 1.0, float(array.min()), float(array.max()))


def _is_hole(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, float) and math.isnan(value))


def encoded(cells: Sequence[np.ndarray], columns: Sequence[Column]) -> Tensor:
    """Numbers standardised, states by their position, NaN where missing, `(N, n)` in double precision; of constant columns zero.

    Raises:
        ValueError: A value that the column did not have when it was read.
    """
    found = [torch.from_numpy(_codes(column, about)) for column, about in zip(cells, columns, strict=True)]
    return torch.stack(found, 1)


def _codes(column: np.ndarray, about: Column) -> np.ndarray:
    holes = np.array([_is_hole(v) for v in column.tolist()], bool)
    if about.is_number:
        try:
            numbers = np.where(holes, np.nan, column).astype(float)
        except (TypeError, ValueError):
            raise ValueError(f"column {about.name} must hold numbers, as it did in fit") from None
        require(bool(np.isfinite(numbers[~holes]).all()), f"column {about.name} must hold finite numbers", numbers[~holes & ~np.isfinite(numbers)][:3])
        return (numbers - about.center) / about.scale
    place = {value: float(i) for i, value in enumerate(about.values)}
    new = {v for v, hole in zip(column.tolist(), holes, strict=True) if not hole and v not in place}
    require(not new, f"column {about.name} holds what it never held in fit ({', '.join(map(repr, about.values[:5]))})", *sorted(map(str, new))[:3])
    return np.array([np.nan if hole else place[v] for v, hole in zip(column.tolist(), holes, strict=True)])


def decoded(codes: np.ndarray, about: Column, *, draw: bool) -> np.ndarray:
    """Cells from numbers or positions; a draw of a count is a whole number within what was seen."""
    if not about.is_number:
        return np.array(about.values, dtype=None if not isinstance(about.values[0], str) else object)[codes.astype(int)]
    numbers = codes * about.scale + about.center
    return np.clip(np.rint(numbers), about.least, about.most) + 0.0 if draw and about.kind == "count" else numbers  # -0 is 0
