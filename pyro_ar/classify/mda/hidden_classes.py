r"""The mixtures of each class from rows with hidden cells: EM for one joint per class, clusters, then EM for the mixtures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torch import Tensor

from pyro_ar.classify.mda.class_mixture import CENTRE_ROWS, SHIFT_WEIGHT, WEIGHT_ROWS, Recipe, covariance_around
from pyro_ar.classify.mda.hidden_mixture import DenseHiddenMixture
from pyro_ar.classify.mda.hidden_mixture_low_rank import LowRankHiddenMixture
from pyro_ar.elliptical import LowRankGaussian
from pyro_ar.elliptical.em import expect, fit_incomplete, pairs_of
from pyro_ar.elliptical.em_low_rank import fit_incomplete_low_rank
from pyro_ar.mixture import Mixture

__all__ = ["fit_hidden"]

GAUSSIAN_STEPS, HIDDEN_STEPS = 10, 2  # of EM: the class Gaussians, then the mixtures; on digits more change nothing
FACTOR_STEPS, LOW_RANK_STEPS = 20, 0  # with factors; on MNIST steps of the mixtures lower the accuracy, with complete rows too


def fit_hidden(recipe: Recipe, z: Tensor, visible: Tensor, context: Tensor, moved: Callable[[Tensor], Tensor],
               random: np.random.RandomState) -> Mixture:
    """Mixture of batch shape `(C,)`.

    Args:
        recipe: Settings.
        z: Rows `(N, D)`, zeros where hidden.
        visible: `(N, D)`.
        context: What each row counts in its class, zero in the others, `(N, C)`.
        moved: Gives copies `(M, N, D)`, moved, of rows whose hidden cells are filled.
        random: Of k-means.
    """
    dtype, label = z.dtype, context.argmax(1)
    z, context = z.double(), context.double()
    gaussians = _low_rank_gaussians if recipe.rank else _full_gaussians
    filled, covariances, form = gaussians(recipe, z, visible, context, label)
    targets, weights = recipe.targets(covariances, context.sum(0) / context.sum()), context.sum(1)
    parts = []
    for c, target in enumerate(targets):
        mine = label == c
        own = torch.cat(recipe.shares(filled[mine], weights[mine], random), -1)
        options: dict[str, Any] = {
            "centre": form[0][c], "centre_rows": CENTRE_ROWS, "prior": recipe.prior(target), "prior_rows": recipe.prior_rows,
            "shrinkage": recipe.shrinkage, "shift_weight": SHIFT_WEIGHT, "weight_rows": WEIGHT_ROWS, "weights": weights[mine]}
        kind = LowRankHiddenMixture if recipe.rank else DenseHiddenMixture
        steps = LOW_RANK_STEPS if recipe.rank else HIDDEN_STEPS
        mixture = kind(z[mine], visible[mine], moved(filled[mine]), recipe.numbers, recipe.df, **options)
        mixture.start(own, *(t[c] for t in form))
        for _ in range(steps if recipe.em_steps is None else recipe.em_steps):
            mixture.step()
        parts.append((mixture.log_weights, *mixture.form))
    log_weights, *tensors = (torch.stack(t).to(dtype) for t in zip(*parts, strict=True))
    return Mixture(log_weights, recipe.joint(*tensors))


# What the mixtures start from: filled rows, covariances of the classes, and their Gaussians.
_Start = tuple[Tensor, Tensor, tuple[Tensor, ...]]


def _full_gaussians(recipe: Recipe, z: Tensor, visible: Tensor, context: Tensor, label: Tensor) -> _Start:
    loc, gaussians = fit_incomplete(z, visible, context.T, shrinkage=recipe.shrinkage, pooling=recipe.pooling, em_steps=GAUSSIAN_STEPS)
    weights = context.sum(1)
    expected = expect(loc, gaussians, z, visible, label, weights, pairs_of(visible, label))
    covariances = torch.stack([s / weights[label == c].sum() + covariance_around(expected.rows[label == c], loc[c], weights[label == c])
                               for c, s in enumerate(expected.spread)])
    return expected.rows, covariances, (loc, gaussians)


def _low_rank_gaussians(recipe: Recipe, z: Tensor, visible: Tensor, context: Tensor, label: Tensor) -> _Start:
    form = fit_incomplete_low_rank(z, visible, context.T, rank=recipe.rank, shrinkage=recipe.shrinkage, em_steps=FACTOR_STEPS)
    filled = torch.empty_like(z)
    for c, (loc, factor, diag) in enumerate(zip(*form, strict=True)):
        filled[label == c] = LowRankGaussian(loc, factor, diag).given(z[label == c], visible[label == c]).mode
    return filled, form[1] @ form[1].mT + torch.diag_embed(form[2]), form
