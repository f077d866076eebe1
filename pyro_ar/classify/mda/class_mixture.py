r"""The mixtures of each class from complete rows, in closed form: clusters, and covariances with priors."""

import math

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sklearn.cluster import KMeans
from torch import Tensor

from pyro_ar.elliptical import LowRankStudentT, StudentT
from pyro_ar.elliptical.factor_analysis import low_rank_of
from pyro_ar.mixture import Mixture

__all__ = ["CENTRE_ROWS", "SHIFT_WEIGHT", "WEIGHT_ROWS", "Recipe", "covariance_around", "fit_complete"]

CENTRE_ROWS = 3.0  # how many rows the centre of its class is worth to a component
WEIGHT_ROWS = 0.5  # and to its weight
WITHIN = 0.8  # components are expected to be so much narrower than their class, in variance
SHIFT_WEIGHT = 0.1  # of the images moved by one pixel, in the scatter of a component


@dataclass(frozen=True)
class Recipe:
    """Settings of `MixtureDiscriminantAnalysis`, checked; `rank` 0: full matrices."""

    numbers: Sequence[int]
    df: float
    shrinkage: float
    pooling: float
    prior_rows: float
    rank: int
    em_steps: int | None

    @property
    def to_scale(self) -> float:
        """Scale matrix of the Student-t from its covariance."""
        return (self.df - 2) / self.df

    def joint(self, *form: Tensor) -> StudentT | LowRankStudentT:
        """From centres and scale matrices, or centres, factors and diagonals."""
        return StudentT(self.df, *form) if len(form) == 2 else LowRankStudentT(self.df, *form)

    def targets(self, covariances: Tensor, share: Tensor) -> Tensor:
        """Covariances of the classes `(C, D, D)`, partly pooled."""
        pooled = torch.einsum("c,cij->ij", share, covariances)
        return (1 - self.pooling) * covariances + self.pooling * pooled

    def prior(self, target: Tensor) -> Tensor:
        """What the target of its class adds to the scatter of a component."""
        return self.prior_rows * WITHIN * self.to_scale * target

    def shares(self, z: Tensor, weights: Tensor, random: np.random.RandomState) -> list[Tensor]:
        """Ones and zeros `(N, k)`: the clusters of the rows, for each number of components."""
        different = len(z.unique(dim=0))
        return [torch.nn.functional.one_hot(_clusters(z, weights, min(k, different), random), k).to(z) for k in self.numbers]


def fit_complete(recipe: Recipe, scores: list[Tensor], weights: list[Tensor], moved: Callable[[int], Tensor],
                 random: np.random.RandomState) -> Mixture:
    """Mixture of batch shape `(C,)`.

    Args:
        recipe: Settings.
        scores: Rows of each class, `(N, D)`.
        weights: What each of them counts, `(N,)`.
        moved: Copies `(M, N, D)` of the rows of a class that widen its components.
        random: Of k-means.
    """
    covariances = torch.stack([covariance_around(z, w @ z / w.sum(), w) for z, w in zip(scores, weights, strict=True)])
    share = torch.stack([w.sum() for w in weights])
    targets = recipe.targets(covariances, share / share.sum())
    parts = [_fit_class(recipe, z, w, moved(c), target, random) for c, (z, w, target) in enumerate(zip(scores, weights, targets, strict=True))]
    log_weights, *form = (torch.stack(t) for t in zip(*parts, strict=True))
    return Mixture(log_weights, recipe.joint(*form))


def _fit_class(recipe: Recipe, z: Tensor, w: Tensor, moved: Tensor, target: Tensor, random: np.random.RandomState) -> list[Tensor]:
    """Log weights `(K,)`, centres and scale matrices (or their factors and diagonals) of all mixtures of one class."""
    found = []
    centre = w @ z / w.sum()
    for share in recipe.shares(z, w, random):
        own = share * w[:, None]
        weights, *form = _components(recipe, z, centre, moved, target, own, own)
        for _ in range(recipe.em_steps or 0):
            own, pull = (w[:, None] * t for t in _expect(recipe, z, weights, *form))
            weights, *form = _components(recipe, z, centre, moved, target, own, pull)
        found.append((weights.log() - math.log(len(recipe.numbers)), *form))
    return [torch.cat(t) for t in zip(*found, strict=True)]


def _expect(recipe: Recipe, z: Tensor, weights: Tensor, *form: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the rows in the components `(N, k)`, and those pulled in where a row lies far out."""
    joint = recipe.joint(*form)
    q, half = joint.whitened(z[:, None])
    own = (joint.radial(q, z.shape[1]) - half + weights.log()).softmax(-1)
    return own, own * (recipe.df + z.shape[1]) / (recipe.df + q)


def _components(recipe: Recipe, z: Tensor, centre: Tensor, moved: Tensor, target: Tensor, own: Tensor, pull: Tensor) -> tuple[Tensor, ...]:
    """Weights `(k,)`, centres `(k, D)` and scale matrices `(k, D, D)` (or factors, diagonals) from shares `(N, k)`, weighted."""
    n, matrices = own.sum(0), []
    loc = (pull.T @ z + CENTRE_ROWS * centre) / (pull.sum(0) + CENTRE_ROWS)[:, None]
    # EM estimates the scale matrix; the closed form a covariance, which is df / (df - 2) times it.
    of_rows = recipe.to_scale if pull is own else 1.0
    for k in range(own.shape[1]):
        mine = pull[:, k] > 0
        rows, share = z[mine], pull[mine, k] * of_rows
        if len(moved):  # one product for the rows and their moved copies
            weight = share.new_tensor([1 - SHIFT_WEIGHT] + len(moved) * [SHIFT_WEIGHT / len(moved)])
            rows = torch.cat([rows, *moved[:, mine]])
            share = (weight[:, None] * share).flatten()
        error = rows - loc[k]
        V = ((error * share[:, None]).T @ error + recipe.prior(target)) / (n[k] + recipe.prior_rows)
        V = _towards_identity(V, recipe.shrinkage)
        matrices.append(low_rank_of(V, recipe.rank) if recipe.rank else (V,))
    weights = (n + WEIGHT_ROWS) / (n.sum() + WEIGHT_ROWS * len(n))
    return weights, loc, *(torch.stack(t) for t in zip(*matrices, strict=True))


def _clusters(z: Tensor, w: Tensor, k: int, random: np.random.RandomState) -> Tensor:
    """Numbers of the clusters `(N,)`; the same whether a row is repeated or weighs more, in whatever order rows come."""
    if k == 1:
        return torch.zeros(len(z), dtype=torch.long, device=z.device)
    k_means = KMeans(k, n_init=2, random_state=random.randint(2**31))
    rows, which = z.round(decimals=9).unique(dim=0, return_inverse=True)  # what EM expects of equal rows differs by rounding
    if len(rows) == len(z) and bool((w == 1).all()):
        found = k_means.fit_predict(z.cpu().numpy())
    else:
        counts = torch.zeros(len(rows), dtype=torch.float64, device=z.device).index_add(0, which, w.double())
        found = k_means.fit_predict(rows.cpu().numpy(), sample_weight=counts.cpu().numpy())[which.cpu().numpy()]
    return torch.from_numpy(found).long().to(z.device)


def covariance_around(rows: Tensor, centre: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the squared errors, `(D, D)`."""
    error = rows - centre
    return (error * weights[:, None]).T @ error / weights.sum()


def _towards_identity(V: Tensor, shrinkage: float) -> Tensor:
    spread = V.diagonal().mean()
    return (1 - shrinkage) * V + shrinkage * spread * torch.eye(len(V), dtype=V.dtype, device=V.device)
