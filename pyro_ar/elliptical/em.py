r"""Gaussians and Student-t joints from rows with hidden cells: expectation-maximisation.

With e the errors of the visible cells of a row and P the inverse of their block of Sigma, spread out with zeros, the row is expected at
:math:`\hat x = \mu + \Sigma P e`, and its hidden cells vary by :math:`\Sigma - \Sigma P \Sigma`. Only the weighted sum of the P is needed, so a pattern
costs one Cholesky factor, whatever its rows.
"""

import math

from typing import NamedTuple

import numpy as np
import torch

from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.checks import EntryError, require
from pyro_ar.elliptical.dense import NotPositiveDefinite
from pyro_ar.elliptical.patterns import Pairs, shared_rows
from pyro_ar.rising import log_rising_over_power

__all__ = ["TOLERANCE", "Expected", "available", "expect", "fit_incomplete", "pairs_of", "radial"]

TOLERANCE = 1e-6  # nats per row


class Expected(NamedTuple):
    """What is expected of R rows, each under the joint of one of E entries.

    Attributes:
        rows: Hidden cells at their conditional means, `(R, D)`.
        q: Squared length of the whitened visible cells, `(R,)`.
        half: Half the log determinant of the visible block, `(R,)`.
        spread: Conditional covariances of the rows of each entry, weighted and summed, `(E, D, D)`.
    """

    rows: Tensor
    q: Tensor
    half: Tensor
    spread: Tensor


def pairs_of(visible: Tensor, entry: Tensor) -> Pairs:
    """Distinct pairs of a pattern `(R, D)` and an entry `(R,)`."""
    packed = np.packbits(visible.cpu().numpy(), axis=1)
    key = np.concatenate([entry.cpu().numpy().astype(np.int64)[:, None].view(np.uint8), packed], axis=1)
    void = np.ascontiguousarray(key).view(np.dtype((np.void, key.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(void, return_index=True, return_inverse=True)
    at = torch.from_numpy(first).to(visible.device)
    return Pairs(visible[at], entry[at], torch.from_numpy(inverse.reshape(-1)).to(visible.device))


def expect(loc: Tensor, matrix: Tensor, x: Tensor, visible: Tensor, entry: Tensor, weights: Tensor, found: Pairs) -> Expected:
    """The expectation step.

    Args:
        loc: `(E, D)`.
        matrix: Covariances, or scale matrices of a Student-t, `(E, D, D)`.
        x: `(R, D)`, zeros where hidden.
        visible: `(R, D)`.
        entry: Of each row, `(R,)`.
        weights: `(R,)`.
        found: `pairs_of(visible, entry)`.

    Raises:
        ValueError: A block of a matrix is not positive definite.
    """
    E, D = loc.shape
    matrix = matrix.contiguous()
    flat = matrix.reshape(-1)
    residual, filled = x - loc[entry], loc[entry]
    q, half = (x.new_zeros(len(x)) for _ in range(2))
    each = x.new_zeros(len(found.patterns)).index_add(0, found.which, weights)
    inner = x.new_zeros(E * D * D)
    count = found.patterns.sum(-1)
    for m in count.unique().tolist():
        for group in (count == m).nonzero().squeeze(-1).split(at_once(m * D)):
            if m == 0:
                continue
            index, of = found.patterns[group].nonzero()[:, 1].reshape(len(group), m), found.entry[group]
            where = ((of[:, None, None] * D + index[:, :, None]) * D + index[:, None, :]).reshape(-1)
            factor, info = torch.linalg.cholesky_ex(flat.index_select(0, where).reshape(len(group), m, m))
            if bool((info != 0).any()):
                raise NotPositiveDefinite("EM over hidden cells lost a positive definite covariance (constant or dependent "
                                          "features, or fewer rows than features, need shrinkage)", [(int(e),) for e in of[info != 0]])
            inverse = torch.cholesky_inverse(factor)
            inner.index_add_(0, where, (each[group, None, None] * inverse).reshape(-1))
            log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            cross = matrix.reshape(E * D, D).index_select(0, (of[:, None] * D + index).reshape(-1)).reshape(len(group), m, D)
            for u, rows in shared_rows(found.which, group):
                e = residual[rows[..., None], index[u][:, None, :]]  # (U, rows, m)
                weighed = e @ inverse[u]
                q[rows] = (weighed * e).sum(-1)
                half[rows] = log_scale[u][:, None].expand(rows.shape)
                filled[rows] += weighed @ cross[u]
    total = x.new_zeros(E).index_add(0, entry, weights)
    spread = total[:, None, None] * matrix - matrix @ inner.reshape(E, D, D) @ matrix
    return Expected(torch.where(visible, x, filled), q, half, (spread + spread.mT) / 2)


def fit_incomplete(x: Tensor, visible: Tensor, weights: Tensor, *, shrinkage: float, em_steps: int, df: float | None = None,
                   pooling: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""Centres `(*B, D)` and matrices `(*B, D, D)` of Gaussians, or of Student-t joints with `df` degrees of freedom.

    The matrix is :math:`(1-a) S + a \tau I`, where S has the hidden cells in expectation and tau is the mean over the cells of the
    variance of the visible values, kept fixed: no step lowers the mean log-likelihood of the visible cells less
    :math:`\frac{a}{2(1-a)} (\log|\Sigma| + \tau\, \mathrm{tr}\, \Sigma^{-1})`. The start has the means and variances of the visible values.

    Args:
        x: `(N, D)`, zeros where hidden.
        visible: `(N, D)`.
        weights: `(*B, N)`, 0 or more.
        shrinkage: a, from 0 to 1.
        em_steps: Most steps; fewer where the rows gain less than 1e-6 nats each.
        df: Of the Student-t; None: Gaussian.
        pooling: b of :math:`(1-b) S + b\, S_{pooled}` over the entries: 1 gives one matrix for all. Between 0 and 1 a step may lower the
            likelihood, and is then the last.

    Raises:
        ValueError: Bad arguments, or a cell that no row of an entry shows.
    """
    require(0 <= shrinkage <= 1, "shrinkage must lie between 0 and 1", shrinkage)
    require(em_steps >= 0, "em_steps must be 0 or more", em_steps)
    batch, dtype = weights.shape[:-1], x.dtype
    x, w = x.double(), weights.double().reshape(-1, len(x))
    entry, row = (w > 0).nonzero().unbind(1)
    x, seen, w, total = x[row], visible[row], w[entry, row], w.sum(-1)
    if shrinkage == 0:
        groups = [entry >= 0] if pooling else [entry == e for e in range(len(total))]
        counts = [distinct_rows(x[mine], seen[mine]) for mine in groups]
        if min(counts) <= x.shape[1]:  # the likelihood has no maximum, and EM would creep towards a singular matrix
            raise NotPositiveDefinite(f"fewer different rows than features need shrinkage; got {min(counts)} rows of {x.shape[1]} features",
                                      [(e,) for e, count in enumerate(counts) if count <= x.shape[1] and pooling == 0])
    loc, variance = available(x, seen, entry, w, len(total))
    scale = 1.0 if df is None else (df - 2) / df
    share = total / total.sum()
    tau = scale * variance.mean(-1)
    variance, tau = (1 - pooling) * variance + pooling * share @ variance, (1 - pooling) * tau + pooling * share @ tau
    ridge = shrinkage * tau[:, None, None] * torch.eye(x.shape[1]).to(x)
    matrix = (1 - shrinkage) * torch.diag_embed(scale * variance) + ridge
    found, m, best = pairs_of(seen, entry), seen.sum(-1).to(x), -math.inf
    for _ in range(em_steps):
        expected = expect(loc, matrix, x, seen, entry, w, found)
        score = float((w * (radial(expected.q, m, df) - expected.half)).sum() / total.sum())
        score -= _penalty(matrix, share, tau, shrinkage)
        if score - best <= TOLERANCE:
            break
        best = score
        pull = w if df is None else w * (df + m) / (df + expected.q)
        loc, S = moments(expected, entry, pull, total)
        S = (1 - pooling) * S + pooling * torch.einsum("e,eij->ij", share, S)
        matrix = (1 - shrinkage) * S + ridge
    D = x.shape[1]
    return loc.to(dtype).reshape(*batch, D), matrix.to(dtype).reshape(*batch, D, D)


def distinct_rows(x: Tensor, visible: Tensor) -> int:
    """How many rows differ in what they show: repeating one does not bound a likelihood."""
    return len(torch.cat([x, visible.to(x)], 1).unique(dim=0))


def available(x: Tensor, visible: Tensor, entry: Tensor, weights: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """Means and variances of the visible values, `(E, D)`."""
    zeros = x.new_zeros(entries, x.shape[1])
    share = weights[:, None] * visible
    mass = zeros.index_add(0, entry, share)
    bad = (mass == 0).nonzero()
    if len(bad):
        raise EntryError("every cell must be visible in at least one row of each class or batch entry (leave out a cell that is "
                         f"never seen); got cell {int(bad[0, 1])} hidden in all rows of entry {int(bad[0, 0])}", [(int(bad[0, 0]),)])
    loc = zeros.index_add(0, entry, share * x) / mass
    index = entry[:, None].expand(x.shape)
    low, high = (torch.full_like(zeros, end).scatter_reduce(0, index, torch.where(visible, x, end), kind)
                 for end, kind in ((math.inf, "amin"), (-math.inf, "amax")))
    loc = torch.where(low == high, low, loc)  # the mean of a constant is not quite the constant: rounding must not pass for variance
    error = x - loc[entry]
    return loc, zeros.index_add(0, entry, share * error.square()) / mass


def moments(expected: Expected, entry: Tensor, pull: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Centres, and scatter around them per unit of weight."""
    zeros = expected.rows.new_zeros(len(total), expected.rows.shape[1])
    loc = zeros.index_add(0, entry, pull[:, None] * expected.rows) / zeros[:, 0].index_add(0, entry, pull)[:, None]
    scatter = expected.spread.clone()
    for e in range(len(total)):
        mine = entry == e
        error = expected.rows[mine] - loc[e]
        scatter[e] += (error * pull[mine, None]).T @ error
    return loc, scatter / total[:, None, None]


def radial(q: Tensor, m: Tensor, df: float | None) -> Tensor:
    """Log density of m whitened cells of squared length q."""
    if df is None:
        return -0.5 * (q + m * math.log(2 * math.pi))
    front = log_rising_over_power(q.new_tensor(df / 2), m / 2) - m * (math.log(2 * math.pi) / 2)
    return front - (df + m) / 2 * torch.log1p(q / df)


def _penalty(matrix: Tensor, share: Tensor, tau: Tensor, shrinkage: float) -> float:
    """What the fixed target of the shrinkage costs, in nats per row."""
    if shrinkage in (0, 1):  # with 1 the matrices are the target
        return 0.0
    factor = torch.linalg.cholesky(matrix)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).sum(-1)
    return shrinkage / (1 - shrinkage) / 2 * float(share @ (log_det + tau * trace))
