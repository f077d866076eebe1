r"""A full scale matrix: every pattern of visible cells costs one Cholesky factor, shared by the rows that have it."""

import math

from collections.abc import Callable, Mapping

import torch

from torch import Size, Tensor

from pyro_ar.budget import TURN, at_once
from pyro_ar.checks import EntryError, require
from pyro_ar.elliptical.base import Elliptical
from pyro_ar.elliptical.columns import squared_lengths
from pyro_ar.elliptical.patterns import Pairs, distinct, is_shared, pairs, shared_rows, without_batch
from pyro_ar.transforms import is_mapped, transforms_active

__all__ = ["Dense", "NotPositiveDefinite", "covariance_from"]

FEW_ROWS = 4  # with fewer rows per pattern, the factors themselves are the cost
MAX_INFLATION = 1e5  # the precision matrix loses about twice as many digits as this number has


class NotPositiveDefinite(EntryError, RuntimeError):
    """A matrix is not symmetric positive definite: wrong data to a user, a step too far to NUTS."""

    def __str__(self) -> str:
        # Pyro's integrator takes a RuntimeError with these words for a divergence, and goes on.
        return f"{super().__str__()} (input is not positive-definite)"


class Dense(Elliptical):
    """Elliptical joint of a full matrix, `(*B, D, D)`; `_matrix_name` says which of its tensors that is."""

    _matrix_name = "scale_matrix"

    def __init__(self, tensors: Mapping[str, Tensor], event_dims: Mapping[str, int], *,
                 validate_args: bool | None = None) -> None:
        name, loc, matrix = self._matrix_name, tensors["loc"], tensors[self._matrix_name]
        fits = (loc.ndim >= 1 and matrix.ndim >= 2 and loc.is_floating_point()
                and matrix.shape[-2:] == (loc.shape[-1], loc.shape[-1]))
        require(fits, f"{type(self).__name__} wants loc (*B, D) and {name} (*B, D, D), floating", loc, matrix)
        super().__init__(tensors, event_dims, validate_args=validate_args)

    def _check_tensors(self) -> None:
        matrix = self.matrix.detach()
        if matrix.numel():
            uneven, scale = (matrix - matrix.mT).abs().amax(), matrix.diagonal(dim1=-2, dim2=-1).abs().amax()
            if not bool(uneven <= 1e-4 * scale):
                raise NotPositiveDefinite(f"{self._matrix_name} must be symmetric positive definite; got one that is not "
                                          f"symmetric (or not finite), of shape {tuple(matrix.shape)}")
        self._cholesky()

    @property
    def matrix(self) -> Tensor:
        return getattr(self, self._matrix_name)

    def _cholesky(self) -> Tensor:
        """Lower factor of each matrix, `(*B, D, D)`."""
        if is_mapped(self.matrix):
            return torch.linalg.cholesky(self.matrix)  # torch can tell what is under a vmap
        factor, info = torch.linalg.cholesky_ex(self.matrix)
        bad = (info != 0).nonzero().tolist()
        if bad:
            raise NotPositiveDefinite(f"{self._matrix_name} must be symmetric positive definite (constant or dependent features "
                                      f"need shrinkage, and some feature must vary); got {len(bad)} of {info.numel()} that are not",
                                      map(tuple, bad))
        return factor

    def _whitening(self) -> tuple[Tensor, Tensor]:
        """Inverse Cholesky factors and the logs of the factors' diagonals."""
        factor = self._cholesky()
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, eye, upper=False), factor.diagonal(dim1=-2, dim2=-1).log()

    def _whiten(self, error: Tensor) -> tuple[Tensor, Tensor]:
        inverse, log_scale = self._whitening()
        return torch.einsum("...ij,...j->...i", inverse, error), log_scale

    def whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = at_once(math.prod(torch.broadcast_shapes(x.shape[1:], self.loc.shape)))
        inverse, log_scale = self._whitening()

        def length(x: Tensor) -> Tensor:
            return torch.einsum("...ij,...j->...i", inverse, x - self.loc).square().sum(-1)

        if x.ndim <= len(self._own_batch_shape) + 1 or len(x) <= step:
            return length(x), log_scale.sum(-1)
        return torch.cat([length(part) for part in x.split(step)]), log_scale.sum(-1)

    def _noise(self, shape: Size) -> Tensor:
        noise = torch.randn(shape + self.event_shape, dtype=self.dtype, device=self.device)
        return torch.einsum("...ij,...j->...i", self._cholesky(), noise)

    def _part(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        if transforms_active():
            factor = self._masked_cholesky(visible)
            return (_solve(factor, torch.where(visible, x - self.loc, 0)).square().sum(-1),
                    factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))
        fast = self._part_by_columns(x, visible)
        if fast is not None:
            return fast

        def lengths(factor: Tensor, residual: Tensor, index: Tensor) -> Tensor:
            z = torch.linalg.solve_triangular(factor, residual, upper=False)
            half = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
            q = z.square().sum(-2)
            return torch.stack([q, half.expand(q.shape)], -1)

        answer = self._by_pattern(lengths, x, visible, (2,))
        return answer[..., 0], answer[..., 1]

    def _regress(self, error: Tensor, visible: Tensor) -> Tensor:
        if transforms_active():
            weights = torch.cholesky_solve(torch.where(visible, error, 0).unsqueeze(-1), self._masked_cholesky(visible))
            return torch.einsum("...i,...ij->...j", weights.squeeze(-1), self.matrix)

        def weigh(factor: Tensor, residual: Tensor, index: Tensor) -> Tensor:
            w = torch.cholesky_solve(residual, factor)
            index = index.unsqueeze(-1).expand(w.shape)
            return w.new_zeros(*w.shape[:-2], self.event_shape[0], w.shape[-1]).scatter(-2, index, w).movedim(-2, -1)

        weights = self._by_pattern(weigh, error + self.loc, visible, self.event_shape)
        return torch.einsum("...i,...ij->...j", weights, self.matrix)

    def _masked_cholesky(self, visible: Tensor) -> Tensor:
        """Factors of whole matrices that are the identity at hidden cells: no grouping, so that `torch.func` may look on."""
        both = visible.unsqueeze(-1) & visible.unsqueeze(-2)
        eye = torch.eye(self.event_shape[0], dtype=self.dtype, device=self.device)
        return torch.linalg.cholesky(torch.where(both, self.matrix, eye))

    def _unexplained(self, visible: Tensor) -> Tensor:
        if transforms_active():
            return _rest(self.matrix, visible, self._masked_cholesky(visible))
        own, D = self._own_batch_shape, self.event_shape[0]
        left = torch.broadcast_shapes(visible.shape[:-1], own)
        found = pairs(visible.expand(*left, D), own)
        both = found.patterns.unsqueeze(-1) & found.patterns.unsqueeze(-2)
        matrix = self.matrix.expand(*own, D, D).reshape(-1, D, D)[found.entry]
        factor = torch.linalg.cholesky(torch.where(both, matrix, torch.eye(D, dtype=self.dtype, device=self.device)))
        return _rest(matrix, found.patterns, factor)[found.which].reshape(*left, D)

    def _by_pattern(self, answer: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, visible: Tensor,
                    shape: tuple[int, ...]) -> Tensor:
        """Apply `answer` to the visible sub-blocks, one Cholesky factor per pattern and batch entry.

        `answer(factor (U, m, m), residual (U, m, rows), index (U, m))` gives `(U, rows, *shape)`.
        """
        own, D = self._own_batch_shape, self.event_shape[0]
        left = torch.broadcast_shapes(x.shape[:-1], own)
        loc = self.loc.expand(*own, D)
        matrix = self.matrix.expand(*own, D, D).reshape(-1, D, D)
        residual = (x - loc).expand(*left, D).reshape(-1, D)
        if not len(residual):
            return residual.sum(-1).reshape(*left, *[1] * len(shape)).expand(*left, *shape)
        found: Pairs = pairs(visible.expand(*left, D), own)
        count = found.patterns.sum(-1)
        answers, rows_done = [], []
        for m in count.unique().tolist():
            for group in (count == m).nonzero().squeeze(-1).split(at_once(m * m, 2 * TURN)):
                index = found.patterns[group].nonzero()[:, 1].reshape(len(group), m)
                block = matrix[found.entry[group][:, None, None], index[:, :, None], index[:, None, :]]
                factor = torch.linalg.cholesky(block)
                for u, rows in shared_rows(found.which, group):
                    r = residual[rows[..., None], index[u][:, None, :]].mT  # (U, m, rows)
                    answers.append(answer(factor[u], r, index[u]).reshape(-1, *shape))
                    rows_done.append(rows.reshape(-1))
        back = torch.cat(rows_done).argsort()
        return torch.cat(answers)[back].reshape(*left, *shape)

    # The fast way: many patterns, each for all entries of the batch, and no gradient.

    def _part_by_columns(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor] | None:
        own, D = self._own_batch_shape, self.event_shape[0]
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self._tensors.values()))
        left = torch.broadcast_shapes(x.shape[:-1], visible.shape[:-1], own)
        if needs_gradient or math.prod(left) == 0 or left[len(left) - len(own):] != own or not is_shared(visible.expand(*left, D), own):
            return None
        patterns, which = distinct(without_batch(visible.expand(*left, D), own))
        if len(which) >= FEW_ROWS * len(patterns):
            return None
        wide = x.expand(*left, D)
        rows = without_batch(wide, own)[:, None] if is_shared(wide, own) else wide.reshape(-1, math.prod(own), D)
        q, half = self._lengths_of_rows(rows, patterns[which])
        return q.reshape(left), half.reshape(left)

    def _lengths_of_rows(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths q and half log determinants `(R, E)` of rows `(R, E or 1, D)` with patterns `(R, D)`."""
        own, D = self._own_batch_shape, self.event_shape[0]
        loc = self.loc.expand(*own, D).reshape(-1, D)
        matrix = self.matrix.expand(*own, D, D).reshape(-1, D, D)
        count = visible.sum(-1)
        inverse = self._precision(matrix) if bool((2 * count > D).any()) else None
        innermost = [None if t is None else t.movedim(0, -1).contiguous() for t in (matrix, inverse)]
        q, half = (x.new_zeros(len(x), len(loc)).to(loc) for _ in range(2))
        for m in count.unique().tolist():
            rows = (count == m).nonzero().squeeze(-1)
            for turn in rows.split(at_once(len(loc) * D)):
                if m == 0:
                    continue
                if inverse is not None and innermost[1] is not None and 2 * m > D:
                    answer = _by_hidden(x[turn] - loc, visible[turn], self._half_log_det(matrix), inverse, innermost[1])
                else:
                    index = visible[turn].nonzero()[:, 1].reshape(len(turn), m)
                    residual = _pick(x[turn], index) - loc[:, index].movedim(0, 1)
                    answer = squared_lengths(_not_none(innermost[0]), index, residual)
                q[turn], half[turn] = answer
        require(bool(half.isfinite().all()), f"{self._matrix_name} must be positive definite in every sub-block (more "
                "shrinkage, or float64)")
        return q, half

    def _half_log_det(self, matrix: Tensor) -> Tensor:
        return torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _precision(self, matrix: Tensor) -> Tensor | None:
        """Inverse matrices `(E, D, D)`, or None where they would lose too many digits."""
        if matrix.dtype != torch.float64:
            return None
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        inflation = matrix.diagonal(dim1=-2, dim2=-1) * inverse.diagonal(dim1=-2, dim2=-1)
        return inverse if float(inflation.max()) <= MAX_INFLATION else None


def _solve(factor: Tensor, error: Tensor) -> Tensor:
    """The whitened error, `(*left, D)`."""
    left = torch.broadcast_shapes(factor.shape[:-1], error.shape)
    factor = factor.expand(*left, left[-1])
    return torch.linalg.solve_triangular(factor, error.expand(left).unsqueeze(-1), upper=False).squeeze(-1)


def _rest(matrix: Tensor, visible: Tensor, factor: Tensor) -> Tensor:
    """What the visible cells leave of each variance, by the factor of the matrix that is the identity at hidden cells."""
    white = torch.linalg.solve_triangular(factor, torch.where(visible.unsqueeze(-1), matrix, 0), upper=False)
    return matrix.diagonal(dim1=-2, dim2=-1) - white.square().sum(-2)


def _not_none(t: Tensor | None) -> Tensor:
    require(t is not None, "no matrix")
    return t  # type: ignore[return-value]


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Cells `index` `(R, m)` of rows `(R, E, D)`: `(R, E, m)`."""
    return x.gather(-1, index[:, None].expand(-1, x.shape[1], -1))


def _by_hidden(error: Tensor, visible: Tensor, half_log_det: Tensor, inverse: Tensor,
               inverses: Tensor) -> tuple[Tensor, Tensor]:
    r"""The lengths when most is visible, from the smaller block of what is hidden.

    With :math:`\Lambda = \Sigma^{-1}`, e zero where hidden and :math:`g = \Lambda e`:
    :math:`q = e^\top g - g_h^\top \Lambda_{hh}^{-1} g_h` and :math:`|\Sigma_{vv}| = |\Sigma| |\Lambda_{hh}|`.
    """
    error = torch.where(visible[:, None], error, 0)
    g = torch.bmm(error.movedim(1, 0), inverse).movedim(0, 1)  # (R, E, D)
    whole = (g * error).sum(-1)
    hidden = (~visible[0]).sum()
    if int(hidden) == 0:
        return whole, half_log_det.expand(whole.shape)
    index = (~visible).nonzero()[:, 1].reshape(len(visible), -1)
    less, half = squared_lengths(inverses, index, _pick(g, index))
    return (whole - less).clamp(min=0), half_log_det + half


def covariance_from(x: Tensor, weights: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    r"""Weighted means and covariances S, shrunk to :math:`(1-a) S + a\,\mathrm{tr}(S)/D\; I`, of cells in `column_units`."""
    require(0 <= shrinkage <= 1, "shrinkage must lie between 0 and 1", shrinkage)
    locs, covariances = [], []
    for w in weights.reshape(-1, len(x)):
        loc = w @ x
        counted = x[w > 0]
        # The mean of a constant is not quite the constant: rounding must not pass for variance.
        loc = torch.where(counted.amin(0) == counted.amax(0), counted[0], loc)
        centred = x - loc
        covariance = (centred * w[:, None]).T @ centred
        covariance = (covariance + covariance.mT) / 2  # rounding of a product of single precision is not symmetric
        spread = covariance.diagonal().mean()
        covariances.append((1 - shrinkage) * covariance + shrinkage * spread * torch.eye(x.shape[1]).to(x))
        locs.append(loc)
    batch, D = weights.shape[:-1], x.shape[1]
    return torch.stack(locs).reshape(*batch, D), torch.stack(covariances).reshape(*batch, D, D)
