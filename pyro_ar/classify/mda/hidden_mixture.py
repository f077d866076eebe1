r"""EM for the mixtures of one class, of Student-t joints, from rows with hidden cells."""

import abc
import math

from collections.abc import Sequence

import torch

from torch import Tensor

from pyro_ar.elliptical import LowRankStudentT, StudentT
from pyro_ar.elliptical.em import Expected, expect, pairs_of

__all__ = ["DenseHiddenMixture", "HiddenMixture"]

LEAST_SHARE = 1e-4  # of a row in a component; smaller ones are left out, which saves nearly all the work


class HiddenMixture(abc.ABC):
    r"""Mixtures over the same rows, each with an EM of its own, side by side as components `(K,)`.

    The hidden cells of a row are integrated out under each component. The target of the shrinkage is that of the first step: a scatter
    :math:`s \tau I` that counts as s rows, so every further step maximises, and no step lowers, the `objective`. Copies moved by a pixel
    are outside of that: they widen the components, with weights that follow the shares.

    Args:
        z: Scores `(N, D)`, zeros where hidden.
        visible: `(N, D)`.
        moved: Copies `(M, N, D)` of the rows, complete, or none of them.
        numbers: Components of each mixture.
        df: Degrees of freedom.
        centre: Of the class, `(D,)`, worth `centre_rows` rows.
        prior: Scatter `(D, D)` that is worth `prior_rows` rows, of scale matrices.
        shrinkage: Towards a multiple of the identity, from 0 to 1.
        shift_weight: Of the moved copies together.
        weight_rows: Added to the rows of each component.
        weights: What each row counts, `(N,)`; None: 1.
    """

    log_weights: Tensor
    form: tuple[Tensor, ...]

    def __init__(self, z: Tensor, visible: Tensor, moved: Tensor, numbers: Sequence[int], df: float, *, centre: Tensor,
                 centre_rows: float, prior: Tensor, prior_rows: float, shrinkage: float, shift_weight: float, weight_rows: float,
                 weights: Tensor | None = None) -> None:
        self.z, self.visible, self.moved, self.numbers, self.df = z, visible, moved, list(numbers), df
        self.weights = z.new_ones(len(z)) if weights is None else weights
        self.centre, self.centre_rows, self.prior, self.prior_rows = centre, centre_rows, prior, prior_rows
        self.shift_weight, self.weight_rows = shift_weight if len(moved) else 0.0, weight_rows
        self.shrinkage = min(shrinkage, 1 - 1e-9)  # worth finitely many rows
        self.target_rows = z.new_zeros(sum(self.numbers))
        self.spread = z.new_zeros(sum(self.numbers))  # tau of the target of each component

    @abc.abstractmethod
    def start(self, own: Tensor, *form: Tensor) -> None:
        """From shares `(N, K)`, hidden cells as the class's Gaussian expects them; covariances are matched, as with complete rows."""

    @abc.abstractmethod
    def step(self) -> None:
        """One step of EM."""

    @abc.abstractmethod
    def _joint(self) -> StudentT | LowRankStudentT:
        """The components, of batch shape `(K,)`."""

    @abc.abstractmethod
    def _price(self) -> float:
        """What the priors of centres and matrices cost."""

    def objective(self) -> float:
        """Log-likelihood of the visible cells under every mixture, and the log of the priors, up to a constant."""
        weights = [w.log_softmax(-1).sum() for w in self.log_weights.split(self.numbers)]
        return float((self.weights[:, None] * self._log_shares()[1]).sum()) + self.weight_rows * float(sum(weights)) - self._price()

    def _pairs(self, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and components that belong together, and the shares, weighted."""
        kept = [torch.where(part > LEAST_SHARE, part, 0) for part in own.split(self.numbers, -1)]
        own = torch.cat([part / part.sum(-1, keepdim=True) for part in kept], -1)
        row, entry = own.nonzero().unbind(1)
        return row, entry, own[row, entry] * self.weights[row]

    def _log_shares(self) -> tuple[Tensor, Tensor]:
        """Log shares `(N, K)`, and the log-likelihoods `(N, M)` of the rows under each mixture."""
        wide = (t[:, None].expand(-1, len(self.target_rows), -1) for t in (self.z, self.visible))
        scores = self._joint().log_marginal(*wide)
        parts = [(s + w.log_softmax(-1)) for s, w in zip(scores.split(self.numbers, -1), self.log_weights.split(self.numbers), strict=True)]
        return torch.cat([p.log_softmax(-1) for p in parts], -1), torch.stack([p.logsumexp(-1) for p in parts], -1)

    def _count(self, entry: Tensor, share: Tensor) -> Tensor:
        """Rows of each component; sets the weights."""
        n = torch.zeros_like(self.target_rows).index_add(0, entry, share)
        weights = [m + self.weight_rows for m in n.split(self.numbers)]
        self.log_weights = torch.cat([(w / w.sum()).log() - math.log(len(self.numbers)) for w in weights])
        return n

    def _set_target(self, n: Tensor) -> None:
        self.target_rows = self.shrinkage / (1 - self.shrinkage) * (n + self.prior_rows)


class DenseHiddenMixture(HiddenMixture):
    """With full scale matrices: `form` is centres `(K, D)` and matrices `(K, D, D)`."""

    def start(self, own: Tensor, *form: Tensor) -> None:
        row, entry, share = self._pairs(own)
        K = own.shape[1]
        loc, covariance = (t.expand(K, *t.shape) for t in form)
        expected = expect(loc, covariance, self.z[row], self.visible[row], entry, share, pairs_of(self.visible[row], entry))
        n = self._count(entry, share)
        loc, scatter = self.moments(expected, row, entry, share)
        V = (self.df - 2) / self.df * scatter + self.prior
        self._set_target(n)
        self.spread = V.diagonal(dim1=-2, dim2=-1).mean(-1) / (n + self.prior_rows)
        self.form = loc, self._shrunk(V, n)

    def step(self) -> None:
        row, entry, share = self._pairs(self._log_shares()[0].exp())
        seen = self.visible[row]
        loc, scale = self.form
        expected = expect(loc, scale, self.z[row], seen, entry, share, pairs_of(seen, entry))
        n = self._count(entry, share)
        loc, scatter = self.moments(expected, row, entry, share * (self.df + seen.sum(-1)) / (self.df + expected.q))
        away = loc - self.centre  # the prior of the centre, in units of the scale; the closed form knows no such term
        scatter += self.centre_rows * away[:, :, None] * away[:, None, :]
        self.form = loc, self._shrunk(scatter + self.prior, n)

    def _joint(self) -> StudentT:
        return StudentT(self.df, *self.form, validate_args=False)

    def _price(self) -> float:
        loc, scale = self.form
        factor = torch.linalg.cholesky(scale)
        pulled = torch.linalg.solve_triangular(factor, (loc - self.centre).unsqueeze(-1), upper=False).square().sum((-2, -1))
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        trace = (torch.cholesky_inverse(factor) * (self.prior + self._target())).sum((-2, -1))
        return 0.5 * float((self.centre_rows * pulled + (self.prior_rows + self.target_rows) * log_det + trace).sum())

    def _target(self) -> Tensor:
        return (self.target_rows * self.spread)[:, None, None] * torch.eye(self.z.shape[1]).to(self.z)

    def _shrunk(self, V: Tensor, n: Tensor) -> Tensor:
        return (V + self._target()) / (n + self.prior_rows + self.target_rows)[:, None, None]

    def moments(self, expected: Expected, row: Tensor, entry: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """Centres, and scatter around them."""
        zeros = self.z.new_zeros(len(self.target_rows), self.z.shape[1])
        mass = zeros[:, 0].index_add(0, entry, pull)
        loc = zeros.index_add(0, entry, pull[:, None] * expected.rows) + self.centre_rows * self.centre
        loc = loc / (mass + self.centre_rows)[:, None]
        scatter = expected.spread.clone()
        for k in range(len(loc)):
            mine = entry == k
            rows, share = expected.rows[mine], pull[mine]
            if len(self.moved):  # one product for the rows and their moved copies
                weight = share.new_tensor([1 - self.shift_weight] + len(self.moved) * [self.shift_weight / len(self.moved)])
                rows = torch.cat([rows, *self.moved[:, row[mine]]])
                share = (weight[:, None] * share).flatten()
            error = rows - loc[k]
            scatter[k] += (error * share[:, None]).T @ error
        return loc, scatter
