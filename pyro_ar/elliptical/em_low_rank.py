r"""Low rank plus diagonal from rows with hidden cells: expectation-maximisation for factor analysis, cell by cell.

A row is :math:`x = \mu + F u + \varepsilon`, its factors u standard normal and its errors of variance d. Only the factors are unknown: a
cell of a row that hides it takes no part, so that the row and column of each cell are a regression on the expected factors, over the rows
that show it. The factors may then have another covariance than I, which goes into F (parameter expansion: as long as errors are small,
plain EM would hardly move). With N rows a step costs :math:`N D r^2`, and no D x D matrix per row.
"""

import math

from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.elliptical.dense import NotPositiveDefinite
from pyro_ar.elliptical.em import TOLERANCE, available, distinct_rows, radial
from pyro_ar.elliptical.factor_analysis import identity_like, low_rank_of
from pyro_ar.elliptical.woodbury import cholesky

__all__ = ["FLOOR", "Form", "Sums", "expect_complete", "expect_rows", "expect_scatter", "fit_incomplete_low_rank", "maximise", "price"]

FLOOR = 1e-6  # of its variance is left to each cell as error, as in `low_rank_of`
SPREAD = 0.5  # at least so much of it at the start: from next to nothing it would hardly grow
NEARLY_ONE = 1 - 1e-9  # a shrinkage that is worth finitely many rows


class Form(NamedTuple):
    """Centre `(D,)`, factor `(D, r)` and diagonal `(D,)` of one joint."""

    loc: Tensor
    factor: Tensor
    diag: Tensor


class Sums(NamedTuple):
    """What the maximisation needs of rows: sums over those that show a cell, of its errors e around the centre and of v = (u, 1).

    Attributes:
        second: Of v v', `(D, r+1, r+1)`; 1 in place of D: equal for all cells.
        cross: Of e v, `(D, r+1)`.
        square: Of e e, `(D,)`.
        shown: Rows, `(D,)`.
        factors: Of u u' over all rows, `(r, r)`.
        rows: All rows, `()`.
    """

    second: Tensor
    cross: Tensor
    square: Tensor
    shown: Tensor
    factors: Tensor
    rows: Tensor

    def plus(self, other: "Sums") -> "Sums":
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def expect_rows(form: Form, x: Tensor, visible: Tensor, share: Tensor, df: float | None = None) -> tuple[Sums, Tensor, Tensor]:
    """The expectation step over rows; also their squared lengths q and half log determinants, `(R,)`.

    Args:
        form: The joint so far.
        x: `(R, D)`, zeros where hidden.
        visible: `(R, D)`.
        share: What each row counts, `(R,)`.
        df: Of a Student-t, whose rows pull less the farther out they lie.
    """
    D, r = form.factor.shape
    (i, j), (a, b) = torch.tril_indices(r, r), torch.tril_indices(r + 1, r + 1)
    scaled = form.factor / form.diag[:, None]
    products = form.factor[:, i] * scaled[:, j]  # the sums over visible cells are products of matrices, of half a matrix per row
    second, cross, square, count = (x.new_zeros(D, *more) for more in ([len(a)], [r + 1], [], []))
    factors, lengths, halves = x.new_zeros(r, r), [x.new_zeros(0)], [x.new_zeros(0)]
    for turn in torch.arange(len(x), device=x.device).split(at_once(4 * D + 4 * (r + 1)**2)):
        seen, s = visible[turn].to(x.dtype), share[turn]
        error = seen * (x[turn] - form.loc)
        C = x.new_zeros(len(turn), r, r)
        C[:, i, j] = seen @ products
        root = cholesky(C + identity_like(form.factor))
        left, along = torch.cholesky_inverse(root), error @ scaled
        u = (left @ along.unsqueeze(-1)).squeeze(-1)
        q = (error.square() @ (1 / form.diag) - (along * u).sum(-1)).clamp(min=0)
        lengths.append(q)
        halves.append(root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + seen @ form.diag.log() / 2)
        pull = s if df is None else s * (df + seen.sum(-1)) / (df + q)
        v = torch.cat([u, u.new_ones(len(u), 1)], -1)
        moment = pull[:, None, None] * v[:, :, None] * v[:, None, :]
        moment[:, :r, :r] += s[:, None, None] * left
        second += seen.mT @ moment[:, a, b]
        cross += error.mT @ (pull[:, None] * v)
        square += pull @ error.square()
        count += s @ seen
        factors += moment[:, :r, :r].sum(0)
    full = x.new_zeros(D, r + 1, r + 1)
    full[:, a, b], full[:, b, a] = second, second
    return Sums(full, cross, square, count, factors, share.sum()), torch.cat(lengths), torch.cat(halves)


def expect_complete(form: Form, x: Tensor, share: Tensor, df: float | None = None, *, pull: Tensor | None = None) -> tuple[Sums, Tensor]:
    """The same for complete rows, without the determinants. `pull`, `(R,)`, may differ from what the rows count."""
    root, weights = _regression(form)
    r, error = len(root), x - form.loc
    u = error @ weights.mT
    q = ((error - u @ form.factor.mT) * error) @ (1 / form.diag)
    if pull is None:
        pull = share if df is None else share * (df + x.shape[1]) / (df + q)
    v = torch.cat([u, u.new_ones(len(u), 1)], -1)
    second = (pull[:, None] * v).mT @ v
    second[:r, :r] += share.sum() * torch.cholesky_inverse(root)
    count = share.sum()
    cross, square = error.mT @ (pull[:, None] * v), pull @ error.square()
    return Sums(second[None], cross, square, count.expand(x.shape[1]), second[:r, :r], count), q


def expect_scatter(form: Form, scatter: Tensor, rows: Tensor | float) -> Sums:
    """The same for complete rows around the centre, of which only their scatter `(D, D)` is known and how many there are."""
    root, weights = _regression(form)
    cross = scatter @ weights.mT
    second = rows * torch.cholesky_inverse(root) + weights @ cross
    pad, count = torch.nn.functional.pad, torch.as_tensor(rows, dtype=scatter.dtype, device=scatter.device)
    return Sums(pad(second, (0, 1, 0, 1))[None], pad(cross, (0, 1)), scatter.diagonal(), count.expand(len(scatter)), second, count)


def maximise(form: Form, sums: Sums, floor: Tensor) -> Form:
    """The maximisation step, errors of variance `floor` `(D,)` or more."""
    r = form.factor.shape[1]
    slopes = torch.cholesky_solve(sums.cross.unsqueeze(-1), cholesky(sums.second)).squeeze(-1)
    diag = (sums.square - (slopes * sums.cross).sum(-1)) / sums.shown
    spread = cholesky((sums.factors + sums.factors.mT) / (2 * sums.rows))
    return Form(form.loc + slopes[:, r], slopes[:, :r] @ spread, torch.maximum(diag, floor))


def price(form: Form, scatter: Tensor, rows: Tensor | float) -> Tensor:
    r"""What complete rows of this scatter cost, :math:`\tfrac12 (n \log|\Sigma| + \mathrm{tr}\, S \Sigma^{-1})`."""
    root, weights = _regression(form)
    log_det = 2 * root.diagonal().log().sum() + form.diag.log().sum()
    trace = ((scatter.diagonal() - ((scatter @ weights.mT) * form.factor).sum(-1)) / form.diag).sum()
    return (rows * log_det + trace) / 2


def _regression(form: Form) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of C of complete rows, and their factors from their errors, `(r, D)`."""
    scaled = form.factor / form.diag[:, None]
    root = cholesky(identity_like(form.factor) + form.factor.mT @ scaled)
    return root, torch.cholesky_solve(scaled.mT, root)


def fit_incomplete_low_rank(x: Tensor, visible: Tensor, weights: Tensor, *, rank: int, shrinkage: float, em_steps: int,
                            df: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    r"""Centres `(*B, D)`, factors `(*B, D, r)` and diagonals `(*B, D)` of Gaussians, or of Student-t joints with `df` degrees of freedom.

    No step lowers the mean log-likelihood of the visible cells less :math:`\frac{a}{2(1-a)} (\log|\Sigma| + \tau\, \mathrm{tr}\,
    \Sigma^{-1})`, the penalty of `fit_incomplete`: as many further rows, complete, with covariance tau I, where tau is the mean over the cells
    of the variance of the visible values. Each cell keeps a millionth of its variance as error. The start has the means and variances of the
    visible values, and leading eigenvectors with hidden cells at the means.

    Args:
        x: `(N, D)`, zeros where hidden.
        visible: `(N, D)`.
        weights: `(*B, N)`, 0 or more; each entry is fitted by itself.
        rank: r, from 1 to D.
        shrinkage: a, from 0 to 1.
        em_steps: Most steps; fewer where the rows gain less than 1e-6 nats each.
        df: Of the Student-t; None: Gaussian.

    Raises:
        ValueError: Bad arguments, or a cell that no row of an entry shows.

    Source:
        Rubin, Thayer (1982), *EM algorithms for ML factor analysis*, Psychometrika 47; Liu, Rubin, Wu (1998), *Parameter expansion to
        accelerate EM: the PX-EM algorithm*, Biometrika 85.
    """
    require(0 <= shrinkage <= 1, "shrinkage must lie between 0 and 1", shrinkage)
    require(em_steps >= 0, "em_steps must be 0 or more", em_steps)
    require(1 <= rank <= x.shape[1], f"rank must be from 1 to the {x.shape[1]} features", rank)
    batch, flat = weights.shape[:-1], weights.double().reshape(-1, len(x))
    entry, row = (flat > 0).nonzero().unbind(1)
    loc, variance = available(x.double()[row], visible[row], entry, flat[entry, row], len(flat))
    forms = []
    for e, (w, m, v) in enumerate(zip(flat, loc, variance, strict=True)):
        mine, few = w > 0, min(rank + 1, x.shape[1])
        if shrinkage == 0 and (rows := distinct_rows(x[mine], visible[mine])) <= few:  # the likelihood has no maximum
            raise NotPositiveDefinite(f"{few} different rows or fewer of {x.shape[1]} features need shrinkage at rank {rank}; got {rows} rows", [(e,)])
        if shrinkage == 0 and not bool((v > 0).all()):
            raise NotPositiveDefinite(f"constant features need shrinkage; got {int((v == 0).sum())} whose visible values are all equal", [(e,)])
        forms.append(_fit_one(x[mine].double(), visible[mine], w[mine] / w.sum(), m, v, rank, min(shrinkage, NEARLY_ONE), em_steps, df))
    return tuple(torch.stack(t).to(x.dtype).reshape(*batch, *t[0].shape) for t in zip(*forms, strict=True))  # type: ignore[return-value]


def _fit_one(x: Tensor, visible: Tensor, w: Tensor, loc: Tensor, variance: Tensor, rank: int, shrinkage: float, em_steps: int,
             df: float | None) -> Form:
    variance = variance if df is None else variance * (df - 2) / df
    extra = shrinkage / (1 - shrinkage)  # rows, where the others count 1 together
    target = extra * variance.mean() * torch.eye(len(loc)).to(x)
    form = _start(x, visible, w, loc, variance, target, extra, rank)
    m, best = visible.sum(-1).to(x), -math.inf
    for _ in range(em_steps):
        sums, q, half = expect_rows(form, x, visible, w, df)
        score = float(w @ (radial(q, m, df) - half) - price(form, target, extra))
        if score - best <= TOLERANCE:
            break
        best = score
        form = maximise(form, sums.plus(expect_scatter(form, target, extra)), FLOOR * variance)
    return form


def _start(x: Tensor, visible: Tensor, w: Tensor, loc: Tensor, variance: Tensor, target: Tensor, extra: float, rank: int) -> Form:
    error = torch.where(visible, x - loc, 0)
    scatter = error.mT @ (w[:, None] * error)
    scale = (variance / scatter.diagonal()).nan_to_num(0, 0, 0).sqrt()  # as if the rows that show a cell were all
    wanted = (scale[:, None] * scatter * scale + target) / (1 + extra)
    factor, _ = low_rank_of(wanted, rank)
    total, common = wanted.diagonal(), factor.square().sum(-1)
    factor = factor * (SPREAD * total / common).nan_to_num(1).clamp(max=1).sqrt()[:, None]
    return Form(loc, factor, total - factor.square().sum(-1))
