r"""Low rank plus diagonal: Gaussian and Student-t joints of many features, each pattern by Woodbury's identity."""

import math

from collections.abc import Mapping
from typing import Self

import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.arrays import Array
from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.elliptical.base import Elliptical, NormalRadius, StudentRadius, moments
from pyro_ar.elliptical.dense import NotPositiveDefinite, covariance_from
from pyro_ar.elliptical.em_low_rank import fit_incomplete_low_rank
from pyro_ar.elliptical.factor_analysis import identity_like, low_rank_of
from pyro_ar.elliptical.patterns import distinct, is_shared, pairs, without_batch
from pyro_ar.elliptical.student_t import check_df
from pyro_ar.elliptical.units import column_units, in_values
from pyro_ar.elliptical.woodbury import alone, by_factor, cholesky, sums, together
from pyro_ar.transforms import transforms_active
from pyro_ar.visible import training_rows

__all__ = ["LowRankGaussian", "LowRankStudentT"]

FEW_ROWS = 4  # with fewer rows per pattern, the factors themselves are the cost


class _LowRank(Elliptical):
    r"""Elliptical joint of :math:`\Sigma = F F^\top + \mathrm{diag}(d)`.

    With :math:`C = I + F_v^\top D_v^{-1} F_v` and :math:`b = F_v^\top D_v^{-1} e_v`: :math:`q = e_v^\top D_v^{-1} e_v - b^\top C^{-1} b`
    and :math:`|\Sigma_{vv}| = |C| \prod_v d`. C and b are sums over the visible cells, so for many rows they are
    matrix products of the patterns themselves.
    """

    cov_factor: Tensor
    cov_diag: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], event_dims: Mapping[str, int], *,
                 validate_args: bool | None = None) -> None:
        loc, factor, diag = (tensors[name] for name in ("loc", "cov_factor", "cov_diag"))
        D = loc.shape[-1:]
        fits = (loc.ndim >= 1 and factor.ndim >= 2 and loc.is_floating_point() and factor.shape[-2:-1] == D
                and diag.shape[-1:] == D and factor.shape[-1] >= 1)
        require(fits, f"{type(self).__name__} wants loc (*B, D), cov_factor (*B, D, r) and cov_diag (*B, D), floating",
                loc, factor, diag)
        super().__init__(tensors, event_dims, validate_args=validate_args)

    def _check_tensors(self) -> None:
        if not bool((self.cov_diag > 0).all()):
            bad = (self.cov_diag <= 0).any(-1).nonzero().tolist()
            raise NotPositiveDefinite("cov_diag must be positive (constant features need shrinkage)", map(tuple, bad))
        if not bool(self.cov_factor.isfinite().all() & self.cov_diag.isfinite().all()):
            raise NotPositiveDefinite("cov_factor and cov_diag must be finite")

    def _particulars(self) -> list[str]:
        return [f"rank {self.rank}"]

    @property
    def rank(self) -> int:
        """Columns of the factor."""
        return self.cov_factor.shape[-1]

    def _noise(self, shape: Size) -> Tensor:
        def draw(*size: int) -> Tensor:
            return torch.randn(*shape, *size, dtype=self.dtype, device=self.device)

        return torch.einsum("...ij,...j->...i", self.cov_factor, draw(self.rank)) + self.cov_diag.sqrt() * draw(*self.event_shape)

    def whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        F, d = self.cov_factor, self.cov_diag
        factor = cholesky(identity_like(F) + F.mT @ (F / d.unsqueeze(-1)))
        half = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + d.log().sum(-1) / 2
        whitening = torch.linalg.solve_triangular(factor, (F / d.unsqueeze(-1)).mT, upper=False)  # (*B, r, D)

        def length(x: Tensor) -> Tensor:
            error = x - self.loc
            return (error.square() / d).sum(-1) - torch.einsum("...ij,...j->...i", whitening, error).square().sum(-1)

        step = at_once(math.prod(torch.broadcast_shapes(x.shape[1:], self.loc.shape)))
        if x.ndim <= len(self._own_batch_shape) + 1 or len(x) <= step:
            return length(x), half
        return torch.cat([length(part) for part in x.split(step)]), half

    def _whiten(self, error: Tensor) -> tuple[Tensor, Tensor]:
        # The chain is a Kalman filter for the factors, one variable after the other.
        F, d = self.cov_factor, self.cov_diag
        mean, cov = torch.zeros_like(F[..., 0, :]), identity_like(F)
        errors, scales = [], []
        for i in range(F.shape[-2]):
            f = F[..., i, :]
            gain = torch.einsum("...ij,...j->...i", cov, f)
            variance = d[..., i] + (f * gain).sum(-1)
            surprise = error[..., i] - (f * mean).sum(-1)
            mean = mean + gain * (surprise / variance).unsqueeze(-1)
            cov = cov - gain.unsqueeze(-1) * gain.unsqueeze(-2) / variance[..., None, None]
            errors.append(surprise / variance.sqrt())
            scales.append(variance.log() / 2)
        return torch.stack(errors, -1), torch.stack(scales, -1)

    def _regress(self, error: Tensor, visible: Tensor) -> Tensor:
        own, D = self._own_batch_shape, self.event_shape[0]
        left = torch.broadcast_shapes(error.shape[:-1], own)
        F, d, entry = self._flat(own, left)
        seen, rows = (t.expand(*left, D).reshape(-1, D) for t in (visible, error))
        means = []
        for turn in torch.arange(len(rows), device=rows.device).split(self._rows_per_turn()):
            f = F[entry[turn]]
            C, b = sums(rows[turn], seen[turn], f, d[entry[turn]])
            means.append((f @ torch.cholesky_solve(b.unsqueeze(-1), cholesky(C))).squeeze(-1))
        # At a visible cell the answer is the error itself.
        answer = torch.cat(means).reshape(*left, D) if means else rows.reshape(*left, D)
        return torch.where(visible, error, answer)

    def _unexplained(self, visible: Tensor) -> Tensor:
        own, D = self._own_batch_shape, self.event_shape[0]
        left = torch.broadcast_shapes(visible.shape[:-1], own)
        F, d, _ = self._flat(own, own)
        found = pairs(visible.expand(*left, D), own)
        spreads = []
        for turn in torch.arange(len(found.patterns), device=self.device).split(self._rows_per_turn()):
            f, mine = F[found.entry[turn]], d[found.entry[turn]]
            C, _ = sums(torch.zeros_like(mine), found.patterns[turn], f, mine)
            spreads.append(torch.linalg.solve_triangular(cholesky(C), f.mT, upper=False).square().sum(-2) + mine)
        return torch.cat(spreads)[found.which].reshape(*left, D) if spreads else self.loc.new_zeros(*left, D)

    def _part(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        own, D = self._own_batch_shape, self.event_shape[0]
        left = torch.broadcast_shapes(x.shape[:-1], visible.shape[:-1], own)
        wide = [t.expand(*left, D) for t in (x, visible)]
        grouped = not transforms_active() and math.prod(left) > 0
        if grouped and left[len(left) - len(own):] == own and all(is_shared(t, own) for t in wide):
            rows, seen = (without_batch(t, own) for t in wide)
            return tuple(t.reshape(left) for t in self._part_of_rows(rows, seen))  # type: ignore[return-value]
        F, d, entry = self._flat(own, left)
        error, seen = (wide[0] - self.loc).reshape(-1, D), wide[1].reshape(-1, D)
        q, half = [], []
        for turn in torch.arange(len(error), device=error.device).split(self._rows_per_turn()):
            e, v, mine = error[turn], seen[turn], d[entry[turn]]
            C, b = sums(e, v, F[entry[turn]], mine)
            factor = cholesky(C)
            z = torch.linalg.solve_triangular(factor, b.unsqueeze(-1), upper=False).squeeze(-1)
            q.append(torch.where(v, e.square() / mine, 0).sum(-1) - z.square().sum(-1))
            half.append(factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + torch.where(v, mine.log(), 0).sum(-1) / 2)
        if not q:
            return error.new_zeros(left), error.new_zeros(left)
        return torch.cat(q).reshape(left), torch.cat(half).reshape(left)

    def _rows_per_turn(self) -> int:
        return at_once(self.event_shape[0] * self.rank)

    def _flat(self, own: Size, left: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Factors `(E, D, r)` and diagonals `(E, D)` of all entries, and the entry of each row."""
        D = self.event_shape[0]
        entry = torch.arange(math.prod(own), device=self.device).reshape(own).expand(left).reshape(-1)
        F = self.cov_factor.expand(*own, D, self.rank).reshape(-1, D, self.rank)
        return F, self.cov_diag.expand(*own, D).reshape(-1, D), entry

    # Rows whose values and patterns serve all entries: products of matrices.

    def _part_of_rows(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths q and half log determinants `(R, E)` of rows and patterns `(R, D)`."""
        own, D = self._own_batch_shape, self.event_shape[0]
        F, d, _ = self._flat(own, own)
        loc = self.loc.expand(*own, D).reshape(-1, D)
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self._tensors.values()))
        patterns, which = distinct(visible)
        each = not needs_gradient and len(visible) < FEW_ROWS * len(patterns)
        centre = loc.detach().mean(0)  # differences of squares lose fewer digits around it
        x, loc = torch.where(visible, x - centre, 0), loc - centre
        some = at_once(4 * D * self.rank)
        answers = []
        for e in torch.arange(len(d), device=d.device).split(some):
            f, inverse, m = F[e], 1 / d[e], loc[e]
            v = visible.to(x.dtype)
            square = x.square() @ inverse.T - 2 * x @ (m * inverse).T + v @ (m.square() * inverse).T
            logs = v @ d[e].log().T / 2
            b = by_factor(x, f * inverse[..., None]) - by_factor(v, f * (m * inverse)[..., None])
            less, half = alone(v, f, inverse, b) if each else together(patterns, which, f, inverse, b)
            answers.append((square - less, half + logs))
        q, half = (torch.cat(t, -1) for t in zip(*answers, strict=True))
        return q.clamp(min=0), half


class LowRankGaussian(NormalRadius, _LowRank):
    r"""Normal distribution with covariance :math:`F F^\top + \mathrm{diag}(d)`: factor analysis, and its exact marginals.

    :math:`2D + D r - r (r - 1) / 2` free parameters (the factor turns freely), never more than a full covariance has.

    Shapes:
        - `loc` `(*B, D)`, `cov_factor` `(*B, D, r)`, `cov_diag` `(*B, D)`, positive; `*B` broadcast.
        - `batch_shape` `B`, `event_shape` `(D,)`; values are finite reals.

    Raises:
        ValueError: Wrong shapes, tensors of different dtypes, or `cov_diag` that is not positive.

    Source:
        Bishop (2006), *Pattern Recognition and Machine Learning*, section 12.2.4.

    Example:
        >>> joint = LowRankGaussian(torch.zeros(2), torch.tensor([[1.0], [1.0]]), torch.ones(2))
        >>> joint.given(torch.tensor([1.0, math.nan]), torch.tensor([True, False])).mode
        tensor([1.0000, 0.5000])
    """

    arg_constraints = {"loc": constraints.real_vector, "cov_factor": constraints.independent(constraints.real, 2),
                       "cov_diag": constraints.independent(constraints.positive, 1)}

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__({"loc": loc, "cov_factor": cov_factor, "cov_diag": cov_diag},
                         {"loc": 1, "cov_factor": 2, "cov_diag": 1}, validate_args=validate_args)

    @classmethod
    def count_parameters(cls, num_features: int, rank: int) -> int:
        """D for the centre, and D + D r - r (r - 1) / 2 or less for the covariance; allocates nothing."""
        return num_features + _count(num_features, rank)

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self.event_shape[0], self.rank)

    @classmethod
    def from_data(cls, x: Array, *, rank: int, weights: Array | None = None, shrinkage: float = 0.0, em_steps: int | None = None,
                  visible: Array | None = None) -> Self:
        r"""The leading eigenvectors of the shrunk covariance S, and a diagonal that keeps the variance of each cell.

        Eigenvectors and shrinkage are those of cells scaled to equal ranges, so that their units do not matter.

        Hidden cells are integrated out by EM, in which :math:`\tau` comes from the variances of the visible values: no step lowers
        the log-likelihood of the visible cells, penalised by the shrinkage. Cells must be hidden at random (given what is visible).

        Args:
            x: `(N, D)`; a tensor, an array or a data frame.
            rank: r, from 1 to D.
            weights: `(*B, N)`, 0 or more: one joint per batch entry. A row of weight 2 is two equal rows, but their scale does not matter.
            shrinkage: a of :math:`(1-a) S + a \tau\, \mathrm{diag}(u^2)`, from 0 to 1, as in `Gaussian.from_data`.
            em_steps: Steps of EM for factor analysis after the closed form; each raises the likelihood (without shrinkage). None: none for
                complete rows; with hidden cells at most 100, fewer where the rows gain less than 1e-6 nats each.
            visible: bool, broadcastable to `x`; True = seen. What is stored under a hidden cell is never read. None: NaN hides a cell.

        Raises:
            ValueError: Wrong shapes, NaN, no weight, a cell without visible values, constant cells without shrinkage, or hidden cells in
                so few rows (rank + 1) that they need it.

        Source:
            Tipping, Bishop (1999), *Probabilistic principal component analysis*, JRSS B 61; EM: Rubin, Thayer (1982).
        """
        return cls(*_fit(x, visible, weights, rank, shrinkage, em_steps, None))


class LowRankStudentT(StudentRadius, _LowRank):
    r"""`StudentT` with scale matrix :math:`F F^\top + \mathrm{diag}(d)`.

    :math:`1 + 2D + D r - r (r - 1) / 2` free parameters, never more than a full scale matrix has.

    Shapes:
        - `df` `(*B)` or a number; `loc` `(*B, D)`, `cov_factor` `(*B, D, r)`, `cov_diag` `(*B, D)`, positive; `*B` broadcast.
        - `batch_shape` `B`, `event_shape` `(D,)`; values are finite reals.

    Raises:
        ValueError: Wrong shapes, tensors of different dtypes, or `df` or `cov_diag` that are not positive.

    Example:
        >>> joint = LowRankStudentT(1.0, torch.zeros(2), torch.tensor([[1.0], [1.0]]), torch.ones(2))
        >>> joint.given(torch.tensor([1.0, math.nan]), torch.tensor([True, False])).mode
        tensor([1.0000, 0.5000])
    """

    arg_constraints = {"df": constraints.positive, **LowRankGaussian.arg_constraints}

    def __init__(self, df: Tensor | float, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, *,
                 validate_args: bool | None = None) -> None:
        super().__init__({"df": check_df(df, loc), "loc": loc, "cov_factor": cov_factor, "cov_diag": cov_diag},
                         {"df": 0, "loc": 1, "cov_factor": 2, "cov_diag": 1}, validate_args=validate_args)

    @classmethod
    def count_parameters(cls, num_features: int, rank: int) -> int:
        """One more than `LowRankGaussian`; allocates nothing."""
        return 1 + LowRankGaussian.count_parameters(num_features, rank)

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self.event_shape[0], self.rank)

    @classmethod
    def from_data(cls, x: Array, *, rank: int, df: float = 10.0, weights: Array | None = None, shrinkage: float = 0.0,
                  em_steps: int | None = None, visible: Array | None = None) -> Self:
        r"""As `LowRankGaussian.from_data`, times :math:`(\nu - 2)/\nu`, so that the covariance is matched; hidden cells by EM for the Student-t.

        Raises:
            ValueError: As there; or `df` not more than 2.
        """
        require(df > 2, "df must be more than 2, for a covariance to match", df)
        return cls(df, *_fit(x, visible, weights, rank, shrinkage, em_steps, df))


def _fit(x: Array, visible: Array | None, weights: Array | None, rank: int, shrinkage: float, em_steps: int | None,
         df: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, factors and diagonals."""
    require(em_steps is None or em_steps >= 0, "em_steps must be 0 or more", em_steps)
    x, seen, weights = training_rows(x, visible, weights)
    x, weights = moments(x, weights)
    unit = column_units(x, seen, weights)
    x = x / unit
    if seen is not None:
        steps = 100 if em_steps is None else em_steps
        form = fit_incomplete_low_rank(x, seen, weights, rank=rank, shrinkage=shrinkage, em_steps=steps, df=df)
    else:
        loc, covariance = covariance_from(x, weights, shrinkage)
        form = loc, *low_rank_of(covariance * (1.0 if df is None else (df - 2) / df), rank, em_steps=em_steps or 0)
    return in_values(unit, *form)  # type: ignore[return-value]


def _count(num_features: int, rank: int) -> int:
    full = num_features * (num_features + 1) // 2
    return min(full, num_features + num_features * rank - rank * (rank - 1) // 2)
