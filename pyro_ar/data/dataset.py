r"""Rows of data with what is known about them, and the embedded digits."""

import math

from dataclasses import dataclass, replace

import numpy as np
import torch

from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.data.files import shortened

__all__ = ["Dataset", "as_dataset", "as_labels", "as_rows", "digits"]


@dataclass(frozen=True)
class Dataset:
    r"""Rows of data, with labels where there are any.

    Attributes:
        name: Where it came from.
        x: `(N, n)` values, floating; NaN is a hidden cell.
        y: `(N,)` labels as they were given, integer; None without labels.
        num_states: States of every variable, 0 to `num_states - 1`; None where they are real numbers.
        image_shape: `(height, width)` of a row; None where it is no image.
        columns: What the variables are called in the file; None where nothing is known.
        notes: What was done to the file on the way, for the user to read.
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    num_states: int | None = None
    image_shape: tuple[int, int] | None = None
    columns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.x.ndim == 2 and len(self.x) > 0, f"{self.name}: wanted rows of values", self.x)
        n = self.x.shape[1]
        require(self.y is None or self.y.shape == (len(self.x),), f"{self.name}: wanted one label per row", self.y)
        require(self.image_shape is None or math.prod(self.image_shape) == n,
                f"{self.name}: wanted an image shape of {n} cells", self.image_shape)
        require(self.columns is None or len(self.columns) == n, f"{self.name}: wanted the names of {n} columns", self.columns)

    def __repr__(self) -> str:
        return f"Dataset({self})"

    def __str__(self) -> str:
        shape = "x".join(map(str, self.image_shape or ())) or "no image"
        states = f"{self.num_states} states" if self.num_states else "real values"
        labels = "no labels" if self.y is None else f"{len(self.y.unique())} classes"
        hidden = "" if self.visible is None else f", {int((~self.visible).sum())} cells hidden"
        return f"{self.name}: {len(self.x)} rows of {self.x.shape[1]} variables ({shape}), {states}, {labels}{hidden}"

    @property
    def visible(self) -> Tensor | None:
        """What is seen of the rows, bool `(N, n)`; None where all is."""
        seen = ~self.x.isnan()
        return None if bool(seen.all()) else seen

    @property
    def hidden_cells(self) -> str:
        """How many cells are hidden in which columns, in words; empty where none is."""
        if self.visible is None:
            return ""
        counts = (~self.visible).sum(0).tolist()
        names = self.columns or tuple(map(str, range(len(counts))))
        some = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count]
        return f"{sum(counts)} empty cells are hidden cells, in {len(some)} column{'s' * (len(some) > 1)}: {shortened(some)}"

    def binarise(self, threshold: float | None = None) -> "Dataset":
        """Two states: 1 where a value reaches the threshold, by default half of the states.

        Raises:
            ValueError: There is no threshold, and the values have no states.
        """
        if threshold is None:
            require(self.num_states is not None, f"{self.name}: real values need a threshold to be binarised")
            threshold = (self.num_states or 0) // 2
        return replace(self, x=torch.where(self.x.isnan(), self.x, (self.x >= threshold).to(self.x.dtype)), num_states=2)

    def followed_by(self, other: "Dataset", name: str) -> "Dataset":
        """The rows of both, under a new name.

        Raises:
            ValueError: Rows of another kind, or labels in one alone.
        """
        alike = self.x.shape[1:] == other.x.shape[1:] and self.num_states == other.num_states and self.image_shape == other.image_shape
        require(alike and (self.y is None) == (other.y is None), f"{self.name} and {other.name} must have rows of one kind", str(self), str(other))
        y = None if self.y is None or other.y is None else torch.cat([self.y, other.y])
        return replace(self, name=name, x=torch.cat([self.x, other.x]), y=y)

    def head(self, rows: int | None) -> "Dataset":
        """The first rows only."""
        require(rows is None or rows >= 1, "rows must be 1 or more", rows)
        return replace(self, x=self.x[:rows], y=None if self.y is None else self.y[:rows])


def digits(binary: bool = False) -> Dataset:
    """The handwritten digits that scikit-learn embeds: 1797 images, 8x8, 17 grey levels.

    Args:
        binary: Two levels instead, 1 from grey level 8 on.

    Source:
        E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI (its test set).

    Example:
        >>> digits()
        Dataset(digits: 1797 rows of 64 variables (8x8), 17 states, 10 classes)
    """
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    bunch = load_digits()
    data = Dataset("digits", as_rows(bunch.data), torch.as_tensor(bunch.target).long(), 17, (8, 8))
    return data.binarise() if binary else data


def as_dataset(name: str, x: np.ndarray, y: np.ndarray | None, columns: tuple[str, ...] | None = None, notes: tuple[str, ...] = ()) -> Dataset:
    """Rows out of an array of any rank, NaN where hidden; states where all values are small whole numbers."""
    require(x.ndim >= 2 and x.size > 0, f"{name}: wanted rows of values", f"an array of shape {x.shape}")
    image = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    rows = as_rows(x.reshape(len(x), -1))
    require(not bool(rows.isinf().any()), f"{name}: wanted finite numbers, came infinity")
    require(image is None or not bool(rows.isnan().any()), f"{name}: wanted images without hidden cells, came NaN")
    known = rows[~rows.isnan()]
    require(len(known) > 0, f"{name}: wanted values, every cell is empty")
    states = None
    if bool(((known >= 0) & (known < 256) & (known == known.round())).all()):
        # Bytes that fill most of their range are grey levels, whether or not the whitest one occurs.
        states = 256 if x.dtype == np.uint8 and x.max() >= 128 else max(int(known.max()) + 1, 2)
    return Dataset(name, rows, None if y is None else as_labels(name, y), states, image, columns, notes)


def as_rows(x: np.ndarray) -> Tensor:
    """Floating, of the default kind."""
    return torch.as_tensor(x).to(torch.get_default_dtype())


def as_labels(name: str, y: np.ndarray) -> Tensor:
    """Whole numbers, or `ValueError`."""
    y = np.asarray(y).reshape(-1)
    if y.dtype.kind == "f" and np.isnan(y).any():
        require(False, f"{name}: wanted a label in every row, {int(np.isnan(y).sum())} have none, the first is row {int(np.isnan(y).argmax()) + 1}")
    whole = bool(np.isfinite(y).all() and (y == np.round(y)).all())
    require(whole, f"{name}: wanted whole numbers as labels")
    return torch.as_tensor(y.astype(np.int64))
