r"""The multivariate Gaussian as a joint: every marginal and conditional in closed form."""

from typing import Self

from pyro.distributions import constraints
from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.elliptical.base import NormalRadius, moments
from pyro_ar.elliptical.dense import Dense, covariance_from
from pyro_ar.elliptical.em import fit_incomplete
from pyro_ar.elliptical.units import column_units, in_values
from pyro_ar.visible import training_rows

__all__ = ["Gaussian"]


class Gaussian(NormalRadius, Dense):
    r"""Normal distribution with full covariance.

    .. math:: \log p(x_v) = -\tfrac12 \left( |v| \log 2\pi + \log |\Sigma_{vv}|
              + (x_v - \mu_v)^\top \Sigma_{vv}^{-1} (x_v - \mu_v) \right)

    A marginal is the sub-block of the visible cells, so each pattern costs one Cholesky
    factor, shared by the rows that have it. :math:`D + D (D + 1) / 2` free parameters.

    Shapes:
        - `loc` `(*B, D)`, `covariance_matrix` `(*B, D, D)`; `*B` broadcast.
        - `batch_shape` `B`, `event_shape` `(D,)`; values are finite reals.

    Raises:
        ValueError: Wrong shapes, tensors of different dtypes, or a covariance that is not symmetric positive definite.

    Source:
        Bishop (2006), *Pattern Recognition and Machine Learning*, section 2.3.

    Example:
        >>> import math, torch
        >>> joint = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> seen = torch.tensor([True, False])
        >>> joint.marginal(seen).log_prob(torch.tensor([0.0, math.nan]))  # -log(2 pi) / 2
        tensor(-0.9189)
        >>> joint.given(torch.tensor([1.0, math.nan]), seen).mode
        tensor([1.0000, 0.5000])
    """

    arg_constraints = {"loc": constraints.real_vector, "covariance_matrix": constraints.positive_definite}
    _matrix_name = "covariance_matrix"
    covariance_matrix: Tensor

    def __init__(self, loc: Tensor, covariance_matrix: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__({"loc": loc, "covariance_matrix": covariance_matrix}, {"loc": 1, "covariance_matrix": 2},
                         validate_args=validate_args)

    @classmethod
    def count_parameters(cls, num_features: int) -> int:
        """D + D (D + 1) / 2; allocates nothing."""
        return num_features + num_features * (num_features + 1) // 2

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self.event_shape[0])

    @classmethod
    def from_data(cls, x: Array, *, weights: Array | None = None, shrinkage: float = 0.0, visible: Array | None = None,
                  em_steps: int = 100) -> Self:
        r"""Maximum likelihood mean and covariance S, shrunk to :math:`(1-a) S + a \tau\, \mathrm{diag}(u^2)`.

        u is half the range of each cell over all rows (1 where it is constant), and :math:`\tau = \frac1D \sum_d S_{dd}/u_d^2`: in cells that are
        scaled to equal ranges the target is a multiple of the identity, so the units of the cells do not matter.

        Hidden cells are integrated out by EM, in which :math:`\tau` comes from the variances of the visible values: no step lowers
        the log-likelihood of the visible cells, penalised by the shrinkage. Cells must be hidden at random (given what is visible).

        Args:
            x: `(N, D)`; a tensor, an array or a data frame.
            weights: `(*B, N)`, 0 or more: one joint per batch entry. A row of weight 2 is two equal rows, but their scale does not matter.
            shrinkage: a, from 0 to 1; more than 0 is needed with constant features or few rows.
            visible: bool, broadcastable to `x`; True = seen. What is stored under a hidden cell is never read. None: NaN hides a cell.
            em_steps: Most steps of EM; fewer where the rows gain less than 1e-6 nats each. 0: the means and variances of the visible
                values, cells uncorrelated.

        Raises:
            ValueError: Wrong shapes, NaN, no weight, a cell without visible values, or a covariance that is singular
                without shrinkage.

        Source:
            Friedman (1989), *Regularized discriminant analysis*, JASA 84, of standardised cells; hidden cells: Little, Rubin (2019),
            *Statistical Analysis with Missing Data*, section 11.2.
        """
        x, seen, weights = training_rows(x, visible, weights)
        x, weights = moments(x, weights)
        unit = column_units(x, seen, weights)
        if seen is None:
            return cls(*in_values(unit, *covariance_from(x / unit, weights, shrinkage)))
        return cls(*in_values(unit, *fit_incomplete(x / unit, seen, weights, shrinkage=shrinkage, em_steps=em_steps)))
