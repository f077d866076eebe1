r"""The unit of each column: what a fit shrinks must not depend on whether a length is told in metres or in miles.

Half the range of a column is 1 in its unit. Ranges rather than standard deviations: a column that hardly ever moves is then not blown up, and columns
of one scale, such as pixels, keep it (`benchmarks/shrinkage.py` measures both). Where all columns are known to share a unit they may keep it: `units_by`.
"""

import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["SCALES", "column_units", "in_values", "units_by"]

SCALES = ("columns", "common")


def column_units(x: Tensor, visible: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Half the range of each column over the rows that count, `(D,)`; 1 where it is constant.

    Args:
        x: `(N, D)`.
        visible: `(N, D)`; None: all is seen.
        weights: `(*B, N)`; rows that weigh nothing in all entries do not count. None: all count.

    Source:
        Milligan, Cooper (1988), *A study of standardization of variables in cluster analysis*, Journal of Classification 5; that the
        target of a shrinkage wants standardised columns: Friedman (1989), *Regularized discriminant analysis*, JASA 84.
    """
    half = _half_ranges(x, visible, weights)
    return torch.where(half > 0, half, 1)


def units_by(scale: str, x: Tensor) -> Tensor:
    """What the columns of `(N, D)` are divided by, `(D,)`: 'columns', `column_units`; 'common', half the widest range, 1 where no value differs.

    Raises:
        ValueError: Neither of the two.
    """
    require(scale in SCALES, f"scale must be one of {', '.join(map(repr, SCALES))}", scale)
    if scale == "columns":
        return column_units(x)
    widest = _half_ranges(x, None, None).amax()
    return torch.where(widest > 0, widest, 1).expand(x.shape[1])


def _half_ranges(x: Tensor, visible: Tensor | None, weights: Tensor | None) -> Tensor:
    counts = torch.ones_like(x, dtype=torch.bool) if visible is None else visible
    if weights is not None:
        counts = counts & (weights.reshape(-1, len(x)) > 0).any(0)[:, None]
    lowest, highest = (torch.where(counts, x / 2, end) for end in (torch.inf, -torch.inf))  # halves: no range overflows
    half = highest.amax(0) - lowest.amin(0)
    return torch.where(half.isfinite(), half, 0)


def in_values(unit: Tensor, loc: Tensor, *matrix: Tensor) -> tuple[Tensor, ...]:
    """Centres `(*B, D)` and matrices `(*B, D, D)`, or factors `(*B, D, r)` and diagonals `(*B, D)`, out of the units of the columns."""
    if len(matrix) == 1:
        return loc * unit, matrix[0] * (unit[:, None] * unit)
    factor, diag = matrix
    return loc * unit, factor * unit[:, None], diag * unit.square()
