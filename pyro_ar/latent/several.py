r"""Several latent trees at once: the components of a mixture, and those of classes, which may share strength."""

import math

from typing import Any

import torch

from torch import Generator, Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.latent.learner import Learner, Rows
from pyro_ar.latent.learning import Recipe, Schedule, lean, learn, read_fit
from pyro_ar.latent.parameters import Parameters
from pyro_ar.latent.start import alone, at_random, tree_of

__all__ = ["fit_mixture"]

WARM = 5  # epochs of each component alone, on the rows nearest its centre


def fit_mixture(x: Array, visible: Array | None, sample_weight: Array | None, held_out: Any, num_components: int, recipe: Recipe,
                schedule: Schedule) -> tuple[Tensor, list[Parameters], torch.dtype]:
    """Log weights and components of `LatentTree.mixture_from_data`, and the precision of the rows."""
    require(isinstance(num_components, int) and num_components >= 1, "num_components must be 1 or more", num_components)
    fit = read_fit(x, visible, sample_weight, held_out, recipe, schedule)
    rows = fit.rows
    require(len(rows.x) >= num_components, "a mixture needs as many rows as components", len(rows.x), num_components)
    which = _nearest(rows, num_components, schedule.generator)
    learners = []
    warm = Schedule(WARM, schedule.batch_size, schedule.patience, False, schedule.generator)
    for m in range(num_components):
        mine = rows.take(which == m)
        tree = tree_of(recipe.structure, recipe.nodes, mine, fit.output)
        own = alone(mine, fit.output, tree, recipe.num_hidden, torch.float64)
        learner = Learner(at_random(own, schedule.generator), own, recipe.smoothing, fit.work)
        learn([learner], lean(mine, fit), None, warm)
        learners.append(learner)
    weight = torch.ones(len(which), dtype=torch.float64) if rows.weights is None else rows.weights.double()
    logs = torch.zeros(num_components, dtype=torch.float64).index_add(0, which, weight).clamp(min=1e-10).log()
    held = None if fit.held_out is None else lean(fit.held_out, fit)
    fitted, logs, _ = learn(learners, lean(rows, fit), held, schedule, logs)
    return logs, [each.parameters() for each in fitted], fit.dtype


def _nearest(rows: Rows, many: int, generator: Generator | None) -> Tensor:
    """The nearest of so many centres of each row, `(N)`, by k-means on cells of unit variance; hidden cells at their column's mean."""
    from sklearn.cluster import KMeans

    x, seen = rows.x.double(), rows.seen
    seen = torch.ones_like(x, dtype=torch.bool) if seen is None else seen
    x = torch.where(seen, x, math.nan)
    x = x - x.nanmean(0)
    x = x / x.square().nanmean(0).sqrt().clamp(min=1e-12)
    seed = int(torch.randint(2**31, (), generator=generator))
    found = KMeans(many, n_init=1, random_state=seed).fit_predict(x.nan_to_num(0.0).numpy(), sample_weight=rows.weights)
    which = torch.from_numpy(found).long()
    for m in range(many):  # a centre that lost its rows takes one
        if not bool((which == m).any()):
            which[int(torch.randint(len(which), (), generator=generator))] = m
    return which
