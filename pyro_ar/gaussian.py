r"""The multivariate Gaussian as a joint: every marginal and conditional in closed form."""

import math

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

from pyro.distributions import MultivariateNormal, constraints
from torch import Size, Tensor

from pyro_ar.checks import require
from pyro_ar.joint import Joint

__all__ = ["Gaussian"]

MAX_WORK = 2**23  # numbers in the gathered sub-blocks of one turn: 64 MiB in float64


class Gaussian(Joint):
    r"""Normal distribution with full covariance.

    .. math:: \log p(x_v) = -\tfrac12 \left( |v| \log 2\pi + \log |\Sigma_{vv}|
              + (x_v - \mu_v)^\top \Sigma_{vv}^{-1} (x_v - \mu_v) \right)

    A marginal is the sub-block of the visible cells, so each pattern costs one Cholesky
    factor, shared by the rows that have it. :math:`D + D (D + 1) / 2` free parameters.

    Shapes:
        - `loc` `(*B, D)`, `covariance_matrix` `(*B, D, D)`; `*B` broadcast.
        - `batch_shape` `B`, `event_shape` `(D,)`; values are finite reals.

    Raises:
        ValueError: Wrong shapes, or a covariance that is not symmetric positive definite.

    Source:
        Bishop (2006), *Pattern Recognition and Machine Learning*, section 2.3.

    Example:
        >>> joint = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> seen = torch.tensor([True, False])
        >>> joint.marginal(seen).log_prob(torch.tensor([0.0, math.nan]))  # -log(2 pi) / 2
        tensor(-0.9189)
        >>> joint.given(torch.tensor([1.0, math.nan]), seen).mode
        tensor([1.0000, 0.5000])
    """

    arg_constraints = {"loc": constraints.real_vector, "covariance_matrix": constraints.positive_definite}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, covariance_matrix: Tensor, *, validate_args: bool | None = None) -> None:
        fits = (loc.ndim >= 1 and covariance_matrix.ndim >= 2 and loc.is_floating_point()
                and covariance_matrix.shape[-2:] == (loc.shape[-1], loc.shape[-1]))
        require(fits, "Gaussian wants loc (*B, D) and covariance_matrix (*B, D, D), floating", loc, covariance_matrix)
        try:
            self._own_batch_shape = torch.broadcast_shapes(loc.shape[:-1], covariance_matrix.shape[:-2])
        except RuntimeError:
            require(False, "the batch dimensions of loc and covariance_matrix must broadcast", loc, covariance_matrix)
        self.loc, self.covariance_matrix = loc, covariance_matrix
        if validate_args is not False:
            self._cholesky()
        super().__init__({"loc": loc, "covariance_matrix": covariance_matrix}, self._own_batch_shape,
                         loc.shape[-1:], validate_args=validate_args)

    @classmethod
    def count_parameters(cls, num_features: int) -> int:
        """D + D (D + 1) / 2; allocates nothing."""
        return num_features + num_features * (num_features + 1) // 2

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self.event_shape[0])

    @classmethod
    def from_data(cls, x: Tensor, *, weights: Tensor | None = None, shrinkage: float = 0.0) -> Self:
        r"""Maximum likelihood mean and covariance S, shrunk to :math:`(1-a) S + a\,\mathrm{tr}(S)/D\; I`.

        Args:
            x: `(N, D)`.
            weights: `(*B, N)`, 0 or more: one joint per batch entry.
            shrinkage: a, from 0 to 1; more than 0 is needed with constant features or few rows.

        Raises:
            ValueError: Wrong shapes, NaN, no weight, or a covariance that is singular without shrinkage.
        """
        require(isinstance(x, Tensor) and x.ndim == 2 and x.numel() > 0, "data must be rows of shape (N, D)", x)
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        require(bool(x.isfinite().all()), "data must be finite: without NaN", x)
        require(0 <= shrinkage <= 1, "shrinkage must lie between 0 and 1", shrinkage)
        weights = x.new_ones(len(x)) if weights is None else weights.to(x)
        require(weights.ndim >= 1 and weights.shape[-1] == len(x), f"weights must end in ({len(x)},)", weights)
        require(bool((weights >= 0).all()) and bool((weights.sum(-1) > 0).all()),
                "weights must be 0 or more, with a positive sum in each batch entry", weights)
        locs, covariances = [], []
        for w in weights.reshape(-1, len(x)):
            w = w / w.sum()
            loc = w @ x
            centred = x - loc
            covariance = (centred * w[:, None]).T @ centred
            spread = covariance.diagonal().mean()
            covariances.append((1 - shrinkage) * covariance + shrinkage * spread * torch.eye(x.shape[1]).to(x))
            locs.append(loc)
        batch = weights.shape[:-1]
        return cls(torch.stack(locs).reshape(*batch, -1), torch.stack(covariances).reshape(*batch, x.shape[1], x.shape[1]))

    def _cholesky(self) -> Tensor:
        """Lower factor of each covariance, `(*B, D, D)`."""
        covariance = self.covariance_matrix
        scale = covariance.detach().diagonal(dim1=-2, dim2=-1).abs().amax() if covariance.numel() else 1
        symmetric = torch.allclose(covariance, covariance.mT, rtol=1e-4, atol=float(1e-5 * scale))
        factor, info = torch.linalg.cholesky_ex(covariance)
        bad = int((info != 0).sum())
        require(symmetric and bad == 0, "covariance_matrix must be symmetric positive definite (constant or dependent "
                "features need shrinkage)", f"{bad} of {info.numel()} that are not" if symmetric else covariance)
        return factor

    def _check_support(self, x: Tensor, visible: Tensor | None) -> None:
        good = x.isfinite() if visible is None else x.isfinite() | ~visible
        if not bool(good.all()):
            index = tuple(int(i) for i in (~good).nonzero()[0])
            where = "finite values where visible" if visible is not None else "finite values, without NaN"
            require(False, f"Gaussian wants {where}", float(x[index]), f"at index {index}")

    def _log_prob(self, x: Tensor) -> Tensor:
        return MultivariateNormal(self.loc, scale_tril=self._cholesky(), validate_args=False).log_prob(x)

    def conditional_log_prob(self, x: Tensor) -> Tensor:
        x = self._check_value(x)
        factor = self._cholesky()
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        z = torch.einsum("...ij,...j->...i", inverse, x - self.loc)
        scale = factor.diagonal(dim1=-2, dim2=-1)
        terms = -0.5 * (z.square() + math.log(2 * math.pi)) - scale.log()
        return terms.expand(torch.broadcast_shapes(terms.shape, self.batch_shape + self.event_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self._sample(Size(sample_shape) + self.batch_shape)

    def _sample(self, shape: Size) -> Tensor:
        noise = torch.randn(shape + self.event_shape, dtype=self.dtype, device=self.device)
        return self.loc + torch.einsum("...ij,...j->...i", self._cholesky(), noise)

    def _method(self, visible: Tensor) -> np.ndarray:
        return np.full(tuple(visible.shape[:-1]), "closed form")

    def _log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        def score(factor: Tensor, residual: Tensor, index: Tensor) -> Tensor:
            z = torch.linalg.solve_triangular(factor, residual, upper=False)
            half = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
            return -0.5 * (z.square().sum(-2) + index.shape[-1] * math.log(2 * math.pi)) - half

        return self._by_pattern(score, x, visible, ())

    def _most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        return torch.where(visible, x, self.loc + self._shift(x - self.loc, visible))

    def _complete(self, x: Tensor, visible: Tensor) -> Tensor:
        # Matheron's rule: a draw of the joint, corrected by what its visible cells are wrong by.
        draw = self._sample(x.shape[:-1])
        return torch.where(visible, x, draw + self._shift(torch.where(visible, x - draw, 0), visible))

    def _shift(self, error: Tensor, visible: Tensor) -> Tensor:
        """Sigma[:, v] Sigma[v, v]^-1 error[v], of the shape of `error`."""
        def weigh(factor: Tensor, residual: Tensor, index: Tensor) -> Tensor:
            w = torch.cholesky_solve(residual, factor)
            index = index.unsqueeze(-1).expand(w.shape)
            return w.new_zeros(*w.shape[:-2], self.event_shape[0], w.shape[-1]).scatter(-2, index, w).movedim(-2, -1)

        centred = torch.where(visible, error, 0) + self.loc
        weights = self._by_pattern(weigh, centred, visible, self.event_shape)
        return torch.einsum("...i,...ij->...j", weights, self.covariance_matrix)

    def _by_pattern(self, answer: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, visible: Tensor,
                    shape: tuple[int, ...]) -> Tensor:
        """Apply `answer` to the visible sub-blocks, one Cholesky factor per pattern and batch entry.

        `answer(factor (U, m, m), residual (U, m, rows), index (U, m))` gives `(U, rows, *shape)`.
        """
        own, D = self._own_batch_shape, self.event_shape[0]
        left = torch.broadcast_shapes(x.shape[:-1], own)
        entries = torch.arange(math.prod(own), device=x.device).reshape(own).expand(left).reshape(-1)
        loc = self.loc.expand(*own, D).reshape(-1, D)
        covariance = self.covariance_matrix.expand(*own, D, D).reshape(-1, D, D)
        residual = x.expand(*left, D).reshape(-1, D) - loc[entries]
        patterns, entry, which = _distinct(visible.expand(*left, D).reshape(-1, D), entries)
        count = patterns.sum(-1)
        answers, rows_done = [], []
        for m in count.unique().tolist():
            for group in (count == m).nonzero().squeeze(-1).split(max(1, MAX_WORK // max(m * m, 1))):
                index = patterns[group].nonzero()[:, 1].reshape(len(group), m)
                block = covariance[entry[group][:, None, None], index[:, :, None], index[:, None, :]]
                factor = torch.linalg.cholesky(block)
                for u, rows in _shared_rows(which, group, m):
                    r = residual[rows[..., None], index[u][:, None, :]].mT  # (U, m, rows)
                    answers.append(answer(factor[u], r, index[u]).reshape(-1, *shape))
                    rows_done.append(rows.reshape(-1))
        if not answers:
            return residual.new_zeros(*left, *shape)
        back = torch.cat(rows_done).argsort()
        return torch.cat(answers)[back].reshape(*left, *shape)


def _distinct(visible: Tensor, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct pairs of pattern and batch entry: `(U, D)`, `(U,)`, and each row's pair `(rows,)`."""
    packed = np.packbits(visible.cpu().numpy(), axis=1)
    key = np.concatenate([entries.cpu().numpy().astype(np.int64)[:, None].view(np.uint8), packed], axis=1)
    raw = np.ascontiguousarray(key).view(np.dtype((np.void, key.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    first_row = torch.from_numpy(first).to(visible.device)
    return visible[first_row], entries[first_row], torch.from_numpy(inverse.reshape(-1)).to(visible.device)


def _shared_rows(which: Tensor, group: Tensor, m: int) -> list[tuple[Tensor, Tensor]]:
    """The rows of each pattern of `group`: `(patterns (U,), rows (U, r))`, patterns with equally many together."""
    local = torch.full((int(which.max()) + 1,), -1, device=which.device)
    local[group] = torch.arange(len(group), device=which.device)
    mine = local[which]
    rows = (mine >= 0).nonzero().squeeze(-1)
    rows = rows[mine[rows].argsort(stable=True)]
    counts = torch.bincount(mine[rows], minlength=len(group))
    starts = counts.cumsum(0) - counts
    shared = []
    for r in counts.unique().tolist():
        u = (counts == r).nonzero().squeeze(-1)
        shared.append((u, rows[starts[u][:, None] + torch.arange(r, device=which.device)]))
    return shared
