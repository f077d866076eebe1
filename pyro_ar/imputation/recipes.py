"""Joints for tables with holes: how each is made from encoded rows, and the choice between them by what they say of cells hidden on purpose."""

import math

from collections.abc import Callable, Mapping, Sequence

import torch

from torch import Generator, Tensor

from pyro_ar.changes import RankNormal, Transformed
from pyro_ar.checks import IntractableError, require
from pyro_ar.elliptical import Gaussian, StudentT
from pyro_ar.imputation.columns import Column
from pyro_ar.joint import Joint
from pyro_ar.latent import LatentTree
from pyro_ar.outputs import Bernoulli, Categorical, Normal, Output, PerVariable

__all__ = ["NUMBERS_ONLY", "RECIPES", "choose", "fitting", "in_states"]

SHRINKAGE = 0.02  # of the covariance: columns may be copies of each other
MOST_ROWS = 3000  # that a choice is made on
HIDDEN = 0.3  # of the visible cells of held-out rows, on purpose
PATTERNS = 4  # of each held-out row: they cost no fit, and few hidden cells choose by chance
DRAWS = 60  # of each cell hidden on purpose
FAILURES = (ValueError, ArithmeticError, RuntimeError)

Recipe = Callable[[Tensor, Sequence[Column], Generator], Joint]


def _ranks(x: Tensor, make: Callable[[Tensor], Joint]) -> Joint:
    ranks = RankNormal.from_data(x, visible=~x.isnan())
    scores = torch.where(x.isnan(), math.nan, ranks.inv(x.nan_to_num(0.0)))
    return Transformed(make(scores), ranks)


def _gaussian(x: Tensor, columns: Sequence[Column], generator: Generator) -> Joint:
    return Gaussian.from_data(x, visible=~x.isnan(), shrinkage=SHRINKAGE)


def _rank_gaussian(x: Tensor, columns: Sequence[Column], generator: Generator) -> Joint:
    return _ranks(x, lambda z: Gaussian.from_data(z, visible=~z.isnan(), shrinkage=SHRINKAGE))


def _rank_student(x: Tensor, columns: Sequence[Column], generator: Generator) -> Joint:
    return _ranks(x, lambda z: StudentT.from_data(z, visible=~z.isnan(), shrinkage=SHRINKAGE))


def _tree(structure: str, states: int) -> Recipe:
    def make(x: Tensor, columns: Sequence[Column], generator: Generator) -> Joint:
        outputs: list[Output] = [Normal() if c.is_number else Bernoulli() if c.kind == "binary" else Categorical(len(c.values)) for c in columns]
        return LatentTree.from_data(x, num_hidden=states, structure=structure, output=PerVariable(tuple(outputs)), smoothing=1.0, epochs=100,
                                    held_out=0.1 if len(x) >= 50 else None, batch_size=None if len(x) <= 2000 else 1000, generator=generator)

    return make


RECIPES: dict[str, Recipe] = {
    "gaussian": _gaussian,
    "rank-normal gaussian": _rank_gaussian,
    "rank-normal student-t": _rank_student,
    "mixture of 4": _tree("star", 4),
    "mixture of 16": _tree("star", 16),
    "latent tree": _tree("chow-liu", 6),
}
NUMBERS_ONLY = ("gaussian", "rank-normal gaussian", "rank-normal student-t")


def fitting(columns: Sequence[Column]) -> dict[str, Recipe]:
    """Those that hold columns of these kinds; Gaussian and Student-t joints hold two values as the numbers 0 and 1, and draws are rounded."""
    numbers = all(c.is_number or c.kind == "binary" for c in columns) and any(c.is_number for c in columns)
    return {name: recipe for name, recipe in RECIPES.items() if name not in NUMBERS_ONLY or numbers}


def in_states(drawn: Tensor, columns: Sequence[Column]) -> Tensor:
    """Draws whose states are states: the nearest, where the joint is over real numbers."""
    last = torch.tensor([math.inf if c.is_number else len(c.values) - 1.0 for c in columns], dtype=drawn.dtype)
    return torch.where(last.isinf(), drawn, drawn.round().clamp(min=0.0).minimum(last))


def choose(x: Tensor, columns: Sequence[Column], recipes: Mapping[str, Recipe], folds: int, generator: Generator) -> dict[str, float]:
    r"""The mean score of cells hidden on purpose given the others, by name, higher is better; minus infinity for a recipe that fails.

    Each part of the rows is held out once, three tenths of its visible cells are hidden, four times anew, and draws D, D' of them are scored by

    .. math:: \tfrac12 E\, d(D, D') - E\, d(D, x)

    with d the absolute difference of numbers, over the standard deviation of their column (minus the CRPS), and of states whether they differ (minus half
    the Brier score): strictly proper, and on one scale for all columns, which log scores of densities and of probabilities are not.

    Args:
        x: Encoded rows `(N, n)`, NaN where missing.
        columns: Of them.
        recipes: By name.
        folds: Parts.
        generator: Of parts, hidden cells and fits.

    Source:
        Gneiting, Raftery (2007), *Strictly proper scoring rules, prediction, and estimation*, JASA 102, section 5.1.
    """
    some = torch.randperm(len(x), generator=generator)[:MOST_ROWS]
    require(len(some) >= folds, f"a choice between joints wants {folds} rows or more; name one as `joint`", len(some))
    held = [x[part].repeat(PATTERNS, 1) for part in some.chunk(folds)]
    hide = [torch.rand(part.shape, generator=generator) < HIDDEN for part in held]
    scores = {}
    with torch.random.fork_rng(devices=[]):
        for name, recipe in recipes.items():
            torch.manual_seed(0)
            try:
                scores[name] = _score(recipe, columns, held, hide, generator)
            except (*FAILURES, IntractableError):
                scores[name] = -math.inf
    return scores


def _score(recipe: Recipe, columns: Sequence[Column], held: Sequence[Tensor], hide: Sequence[Tensor], generator: Generator) -> float:
    states = torch.tensor([not column.is_number for column in columns])
    total, cells = 0.0, 0
    for k, (rows, hidden) in enumerate(zip(held, hide, strict=True)):
        joint = recipe(torch.cat([part[:len(part) // PATTERNS] for i, part in enumerate(held) if i != k]), columns, generator)
        seen = ~rows.isnan()
        with torch.no_grad():
            drawn = in_states(joint.given(rows, seen & ~hidden).sample((DRAWS,)).to(rows), columns)

        def apart(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(states, (a != b).to(a.dtype), (a - b).abs())

        score = apart(drawn[1:], drawn[:-1]).mean(0) / 2 - apart(drawn, rows).mean(0)
        total += float(score[seen & hidden].sum())
        cells += int((seen & hidden).sum())
    return total / max(cells, 1)
