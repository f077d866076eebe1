"""Joints for tables with holes: how each is made from encoded rows, and the shares of each in a pool, by what they say of cells hidden on purpose."""

import math

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from scipy.optimize import minimize
from torch import Generator, Tensor

from pyro_ar.changes import RankNormal, Transformed
from pyro_ar.checks import IntractableError, require
from pyro_ar.classify import MixtureDiscriminantAnalysis
from pyro_ar.elliptical import Gaussian, StudentT
from pyro_ar.imputation.columns import Column
from pyro_ar.joint import Joint
from pyro_ar.latent import LatentTree
from pyro_ar.outputs import Bernoulli, Categorical, Normal, Output, PerVariable

__all__ = ["NUMBERS_ONLY", "RECIPES", "Pool", "apportioned", "choose", "fitting", "in_states"]

SHRINKAGE = 0.02  # of a covariance of as many columns as rows; columns may nearly be copies of each other, and much of it would part them
SMOOTHING = 0.1  # of ranks
MIXED: dict[str, Any] = {"num_components": 3, "shrinkage": 0.005, "pooling": 0.0, "em_steps": 20, "num_classes": 1}
MOST_ROWS = 3000  # that a choice is made on
HIDDEN = 0.3  # of the visible cells of held-out rows, on purpose
PATTERNS = 4  # of each held-out row: they cost no fit, and few hidden cells choose by chance
DRAWS = 60  # of each cell hidden on purpose
FAILURES = (ValueError, ArithmeticError, RuntimeError)

Recipe = Callable[[Tensor, Sequence[Column], Tensor, Generator], Joint]


def _shrinkage(x: Tensor) -> float:
    return SHRINKAGE * min(1.0, x.shape[1] / len(x))


def _ranks(x: Tensor, weights: Tensor, make: Callable[[Tensor], Joint]) -> Joint:
    ranks = RankNormal.from_data(x, visible=~x.isnan(), weights=weights, smoothing=SMOOTHING)
    scores = torch.where(x.isnan(), math.nan, ranks.inv(x.nan_to_num(0.0)))
    return Transformed(make(scores), ranks)


def _gaussian(x: Tensor, columns: Sequence[Column], weights: Tensor, generator: Generator) -> Joint:
    return Gaussian.from_data(x, visible=~x.isnan(), weights=weights, shrinkage=_shrinkage(x))


def _rank_gaussian(x: Tensor, columns: Sequence[Column], weights: Tensor, generator: Generator) -> Joint:
    return _ranks(x, weights, lambda z: _gaussian(z, columns, weights, generator))


def _rank_student(x: Tensor, columns: Sequence[Column], weights: Tensor, generator: Generator) -> Joint:
    return _ranks(x, weights, lambda z: StudentT.from_data(z, visible=~z.isnan(), weights=weights, shrinkage=_shrinkage(x)))


def _students(transform: str | None) -> Recipe:
    """A mixture of Student-t joints: mixture discriminant analysis of one class."""
    def make(x: Tensor, columns: Sequence[Column], weights: Tensor, generator: Generator) -> Joint:
        mixture = MixtureDiscriminantAnalysis(feature_transform=transform, **MIXED)
        return mixture.fit(x, torch.zeros(len(x), dtype=torch.long), sample_weight=weights).likelihood_

    return make


def _tree(structure: str, states: int) -> Recipe:
    def make(x: Tensor, columns: Sequence[Column], weights: Tensor, generator: Generator) -> Joint:
        outputs: list[Output] = [Normal() if c.is_number else Bernoulli() if c.kind == "binary" else Categorical(len(c.values)) for c in columns]
        return LatentTree.from_data(x, num_hidden=states, structure=structure, output=PerVariable(tuple(outputs)), smoothing=1.0, epochs=100,
                                    sample_weight=weights, held_out=0.1 if len(x) >= 50 else None, batch_size=None if len(x) <= 2000 else 1000,
                                    generator=generator)

    return make


RECIPES: dict[str, Recipe] = {
    "gaussian": _gaussian,
    "rank-normal gaussian": _rank_gaussian,
    "rank-normal student-t": _rank_student,
    "mixture of 3 student-t": _students(None),
    "rank-normal mixture of 3 student-t": _students("rank-normal"),
    "mixture of 4": _tree("star", 4),
    "mixture of 16": _tree("star", 16),
    "latent tree": _tree("chow-liu", 6),
}
NUMBERS_ONLY = tuple(name for name in RECIPES if name not in ("mixture of 4", "mixture of 16", "latent tree"))


def fitting(columns: Sequence[Column]) -> dict[str, Recipe]:
    """Those that hold columns of these kinds; joints over real numbers hold two values as the numbers 0 and 1, and draws are rounded."""
    numbers = all(c.is_number or c.kind == "binary" for c in columns)
    return {name: recipe for name, recipe in RECIPES.items() if name not in NUMBERS_ONLY or numbers}


def in_states(drawn: Tensor, columns: Sequence[Column]) -> Tensor:
    """Draws whose states are states: the nearest, where the joint is over real numbers."""
    last = torch.tensor([math.inf if c.is_number else len(c.values) - 1.0 for c in columns], dtype=drawn.dtype)
    return torch.where(last.isinf(), drawn, drawn.round().clamp(min=0.0).minimum(last))


class Pool(NamedTuple):
    """What cells hidden on purpose say of joints.

    Attributes:
        scores: Mean score of each by itself, by name, higher is better; minus infinity for one that failed.
        shares: Of each in the pool of the best score, by name; together 1.
    """

    scores: dict[str, float]
    shares: dict[str, float]


def apportioned(shares: Mapping[str, float], many: int) -> list[str]:
    """So many names, each as often as its share says, and so in every beginning of the list: by the method of Sainte-Laguë."""
    found: list[str] = []
    for _ in range(many):
        found.append(max(shares, key=lambda name: shares[name] / (2 * found.count(name) + 1)))
    return found


def choose(x: Tensor, columns: Sequence[Column], recipes: Mapping[str, Recipe], folds: int, generator: Generator) -> Pool:
    r"""Scores of cells hidden on purpose given the others, of each joint and of the best pool of them all.

    Each part of the rows is held out once, three tenths of its visible cells are hidden, four times anew, and draws D, D' of them are scored by

    .. math:: \tfrac12 E\, d(D, D') - E\, d(D, x)

    with d the absolute difference of numbers, over the standard deviation of their column (minus the CRPS), and of states whether they differ (minus half
    the Brier score): strictly proper, and on one scale for all columns, which log scores of densities and of probabilities are not. A pool that draws from
    joint k with chance w_k has the score :math:`\tfrac12 w^\top B w - a^\top w`, with B the mean d between draws of two joints and a that from draws to x: the
    shares are those of its maximum.

    Args:
        x: Encoded rows `(N, n)`, NaN where missing.
        columns: Of them.
        recipes: By name.
        folds: Parts.
        generator: Of parts, hidden cells and fits.

    Source:
        Gneiting, Raftery (2007), *Strictly proper scoring rules, prediction, and estimation*, JASA 102, section 5.1; linear pools: Ranjan, Gneiting (2010),
        *Combining probability forecasts*, JRSS B 72.
    """
    some = torch.randperm(len(x), generator=generator)[:MOST_ROWS]
    require(len(some) >= folds, f"a choice between joints wants {folds} rows or more; name one as `joint`", len(some))
    held = [x[part].repeat(PATTERNS, 1) for part in some.chunk(folds)]
    hide = [(torch.rand(part.shape, generator=generator) < HIDDEN) & ~part.isnan() for part in held]
    drawn = {}
    with torch.random.fork_rng(devices=[]):
        for name, recipe in recipes.items():
            torch.manual_seed(0)
            try:
                drawn[name] = _drawn(recipe, columns, held, hide, generator)
            except (*FAILURES, IntractableError):
                continue
    scores, shares = dict.fromkeys(recipes, -math.inf), dict.fromkeys(recipes, 0.0)
    if drawn:
        from_truth, between = _distances(list(drawn.values()), columns, held, hide)
        scores |= dict(zip(drawn, (between.diagonal() / 2 - from_truth).tolist(), strict=True))
        shares |= dict(zip(drawn, _best_shares(from_truth, between).tolist(), strict=True))
    return Pool(scores, shares)


def _drawn(recipe: Recipe, columns: Sequence[Column], held: Sequence[Tensor], hide: Sequence[Tensor], generator: Generator) -> Tensor:
    """Draws of the cells hidden on purpose, `(DRAWS, cells)`."""
    found = []
    for k, (rows, hidden) in enumerate(zip(held, hide, strict=True)):
        others = torch.cat([part[:len(part) // PATTERNS] for i, part in enumerate(held) if i != k])
        joint = recipe(others, columns, torch.ones(len(others), dtype=others.dtype), generator)
        with torch.no_grad():
            drawn = joint.given(rows, ~rows.isnan() & ~hidden).sample((DRAWS,)).to(rows)
        found.append(in_states(drawn, columns)[:, hidden])
    return torch.cat(found, 1)


def _distances(drawn: Sequence[Tensor], columns: Sequence[Column], held: Sequence[Tensor], hide: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean d from draws to the truth, `(K,)`, and between draws of two joints, `(K, K)`, of one joint with itself between different draws."""
    truth = torch.cat([rows[hidden] for rows, hidden in zip(held, hide, strict=True)])
    kinds = torch.tensor([not column.is_number for column in columns])
    states = torch.cat([kinds.expand(hidden.shape)[hidden] for hidden in hide])

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(states, (a != b).to(a.dtype), (a - b).abs()).sum() / (max(len(truth), 1) * len(a))

    between = torch.stack([torch.stack([apart(a[1:], b[:-1]) for b in drawn]) for a in drawn])
    return torch.stack([apart(a, truth) for a in drawn]), (between + between.T) / 2


def _best_shares(from_truth: Tensor, between: Tensor) -> Tensor:
    a, b = from_truth.double().numpy(), between.double().numpy()
    found = minimize(lambda w: (a @ w - w @ b @ w / 2, a - b @ w), np.full(len(a), 1 / len(a)), jac=True, method="SLSQP", bounds=[(0.0, 1.0)] * len(a),
                     constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}, options={"ftol": 1e-12, "maxiter": 1000})
    shares = found.x.clip(1e-9)
    return torch.from_numpy(shares / shares.sum())
