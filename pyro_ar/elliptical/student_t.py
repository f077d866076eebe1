r"""The multivariate Student-t as a joint: the Gaussian's exact marginals with heavier tails."""

from typing import Self

import torch

from pyro.distributions import constraints
from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.elliptical.base import StudentRadius, moments
from pyro_ar.elliptical.dense import Dense, covariance_from
from pyro_ar.elliptical.em import fit_incomplete
from pyro_ar.elliptical.units import column_units, in_values
from pyro_ar.transforms import is_mapped
from pyro_ar.visible import training_rows

__all__ = ["StudentT"]


class StudentT(StudentRadius, Dense):
    r"""Student-t distribution of a vector.

    .. math:: p(x_v) = \frac{\Gamma((\nu + |v|)/2)}{\Gamma(\nu/2)\,(\nu\pi)^{|v|/2}\,|\Sigma_{vv}|^{1/2}}
              \left(1 + q/\nu\right)^{-(\nu + |v|)/2}, \quad q = (x_v - \mu_v)^\top \Sigma_{vv}^{-1} (x_v - \mu_v)

    A marginal is the sub-block of the visible cells with the same :math:`\nu`. The hidden cells given the visible ones are
    Student-t again, with :math:`\nu + |v|` degrees of freedom and the Gaussian's conditional, stretched by
    :math:`(\nu + q)/(\nu + |v|)`: their mode is the Gaussian's. :math:`1 + D + D (D + 1) / 2` free parameters.

    Shapes:
        - `df` `(*B)` or a number, more than 0; `loc` `(*B, D)`; `scale_matrix` `(*B, D, D)`; `*B` broadcast.
        - `batch_shape` `B`, `event_shape` `(D,)`; values are finite reals.

    Args:
        df: Degrees of freedom; a Gaussian as they grow.
        loc: Centre.
        scale_matrix: Symmetric positive definite; for `df` above 2 the covariance is df / (df - 2) times it.

    Raises:
        ValueError: Wrong shapes, tensors of different dtypes, `df` not positive, or a matrix that is not symmetric positive definite.

    Source:
        Kotz, Nadarajah (2004), *Multivariate t distributions and their applications*; for the conditionals, Ding (2016),
        *On the conditional distribution of the multivariate t distribution*, The American Statistician 70.

    Example:
        >>> import math
        >>> joint = StudentT(1.0, torch.zeros(2), torch.eye(2))
        >>> joint.marginal(torch.tensor([True, False])).log_prob(torch.tensor([0.0, math.nan]))  # Cauchy: -log(pi)
        tensor(-1.1447)
    """

    arg_constraints = {"df": constraints.positive, "loc": constraints.real_vector,
                       "scale_matrix": constraints.positive_definite}
    scale_matrix: Tensor

    def __init__(self, df: Tensor | float, loc: Tensor, scale_matrix: Tensor, *,
                 validate_args: bool | None = None) -> None:
        df = check_df(df, loc)
        super().__init__({"df": df, "loc": loc, "scale_matrix": scale_matrix}, {"df": 0, "loc": 1, "scale_matrix": 2},
                         validate_args=validate_args)

    @classmethod
    def count_parameters(cls, num_features: int) -> int:
        """1 + D + D (D + 1) / 2; allocates nothing."""
        return 1 + num_features + num_features * (num_features + 1) // 2

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self.event_shape[0])

    @classmethod
    def from_data(cls, x: Array, *, df: float = 10.0, weights: Array | None = None, shrinkage: float = 0.0,
                  visible: Array | None = None, em_steps: int | None = None) -> Self:
        r"""Mean, and scale matrix :math:`(\nu - 2)/\nu` times the shrunk covariance S; then EM where asked.

        The closed form matches the first two moments. Each EM step weighs row i by :math:`(\nu + D)/(\nu + q_i)`, so
        that outliers count less, and raises the likelihood (without shrinkage).

        Hidden cells are integrated out by the same EM, with :math:`(\nu + |v|)/(\nu + q_v)` of what a row shows. Its :math:`\tau` is
        that of the start, the variances of the visible values: no step lowers the log-likelihood, penalised by the shrinkage.

        Args:
            x: `(N, D)`; a tensor, an array or a data frame.
            df: Degrees of freedom, kept; more than 2 for the closed form.
            weights: `(*B, N)`, 0 or more: one joint per batch entry. A row of weight 2 is two equal rows, but their scale does not matter.
            shrinkage: a of :math:`(1-a) S + a \tau\, \mathrm{diag}(u^2)`, from 0 to 1, as in `Gaussian.from_data`.
            visible: bool, broadcastable to `x`; True = seen. What is stored under a hidden cell is never read. None: NaN hides a cell.
            em_steps: Steps of EM after the closed form, 0 or more. None: none for complete rows; with hidden cells
                at most 100, fewer where the rows gain less than 1e-6 nats each.

        Raises:
            ValueError: Wrong shapes, NaN, no weight, a cell without visible values, or a covariance that is singular
                without shrinkage.

        Source:
            Liu, Rubin (1995), *ML estimation of the t distribution using EM and its extensions*, Statistica Sinica 5.
        """
        require(df > 2, "df must be more than 2, for a covariance to match", df)
        require(em_steps is None or em_steps >= 0, "em_steps must be 0 or more", em_steps)
        x, seen, weights = training_rows(x, visible, weights)
        x, weights = moments(x, weights)
        unit = column_units(x, seen, weights)
        x = x / unit
        if seen is not None:
            steps = 100 if em_steps is None else em_steps
            return cls(df, *in_values(unit, *fit_incomplete(x, seen, weights, shrinkage=shrinkage, em_steps=steps, df=df)))
        loc, covariance = covariance_from(x, weights, shrinkage)
        joint = cls(df, loc, covariance * ((df - 2) / df))
        for _ in range(em_steps or 0):
            q, _ = joint.whitened(x.reshape(len(x), *[1] * (weights.ndim - 1), x.shape[1]))
            pull = weights * ((df + x.shape[1]) / (df + q)).movedim(0, -1)
            loc, scale = covariance_from(x, pull / pull.sum(-1, keepdim=True), shrinkage)
            joint = cls(df, loc, scale * pull.sum(-1)[..., None, None])
        return cls(df, *in_values(unit, joint.loc, joint.scale_matrix))


def check_df(df: Tensor | float, loc: Tensor) -> Tensor:
    """Degrees of freedom as a tensor like `loc`, all positive and finite."""
    df = df if isinstance(df, Tensor) else torch.tensor(float(df), dtype=loc.dtype, device=loc.device)
    if not is_mapped(df):
        require(bool(((df > 0) & df.isfinite()).all()), "df must be positive and finite (infinitely many degrees of freedom are a Gaussian)",
                df if df.ndim else float(df.detach()))
    return df
