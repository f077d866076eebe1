r"""Scores on rows that a joint has not seen, and their differences with paired errors."""

import math

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.comparison.pointwise import pointwise_log_likelihood
from pyro_ar.comparison.recipes import TableModel, fit_recipe
from pyro_ar.joint import Joint
from pyro_ar.mixture import Mixture
from pyro_ar.tables.counts import check_data
from pyro_ar.visible import read_rows

__all__ = ["Difference", "average", "cross_validate", "folds_of", "held_out_score", "paired_difference", "share_states", "stacking_weights"]


class Difference(NamedTuple):
    """Mean of the differences per row, in nats, and its standard error."""

    mean: float
    error: float


def held_out_score(joint: Joint, x: Array, visible: Array | None = None, *, what: str = "the joint") -> Tensor:
    r"""Log p of each row, `(N,)`, in nats; `x` must be rows that the joint was not fitted to.

    Raises:
        ValueError: The joint has batch dimensions (make a `Mixture` of them), or as `pointwise_log_likelihood`.
    """
    require(joint.batch_shape == (), f"{what} must be one joint; draws become one as Mixture(torch.zeros(draws), joint)", tuple(joint.batch_shape))
    return pointwise_log_likelihood(joint, x, visible, what=what).double()


def folds_of(rows: int, folds: int, seed: int = 0) -> Tensor:
    """The fold of each row, `(N,)`: equal sizes, at random.

    Raises:
        ValueError: Fewer than 2 folds, or fewer rows than folds.
    """
    require(isinstance(folds, int) and folds >= 2, "folds must be 2 or more", folds)
    require(rows >= folds, f"{folds} folds want at least {folds} rows", rows)
    return torch.randperm(rows, generator=Generator().manual_seed(seed)) % folds


def cross_validate(recipes: Mapping[str, Any], x: Array, *, folds: int = 5, seed: int = 0, progress: bool = False) -> dict[str, Tensor]:
    r"""Log p(x_i | the rows of the other folds) of each row, `(N,)` in nats, by recipe; all meet the same folds.

    Args:
        recipes: By name; see `recipes`.
        x: `(N, *E)`, complete rows.
        folds: How many.
        seed: Of the folds.
        progress: Show a bar.

    Raises:
        ValueError: No recipes, bad folds, or a recipe that cannot be fitted or scored.
    """
    require(len(recipes) > 0, "cross_validate wants at least one recipe")
    x, seen = read_rows(x)
    require(isinstance(x, Tensor) and x.ndim >= 2, "data must be rows of shape (N, *event)", x)
    require(seen is None, "recipes are fitted to whole rows, without NaN", x)
    fold = folds_of(len(x), folds, seed)
    recipes = share_states(recipes, x)
    scores = {name: torch.empty(len(x), dtype=torch.float64) for name in recipes}
    with tqdm(total=folds * len(recipes), disable=not progress, desc="cross-validation") as bar:
        for k in range(folds):
            for name, recipe in recipes.items():
                bar.set_postfix_str(name)
                joint = fit_recipe(name, recipe, x[fold != k])
                scores[name][fold == k] = held_out_score(joint, x[fold == k], what=name)
                bar.update()
    return scores


def share_states(recipes: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """Table models that do not name their states get those of all rows, so that no fold lacks one."""
    if not any(isinstance(r, TableModel) and r.num_states is None for r in recipes.values()):
        return dict(recipes)
    sizes = check_data(x, None)[1]
    return {name: r.with_states(sizes) if isinstance(r, TableModel) else r for name, r in recipes.items()}


def paired_difference(a: Tensor, b: Tensor) -> Difference:
    r"""Mean of `a - b` over the same rows, with the standard error of the *differences*.

    Rows are taken for independent draws. After cross-validation they share training rows, so the error is a guide to the noise
    and no confidence interval.

    Raises:
        ValueError: Different rows, fewer than 2, or scores that are not finite.

    Source:
        Vehtari, Gelman, Gabry (2017), *Practical Bayesian model evaluation*, section 5.
    """
    require(isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.ndim == 1, "paired scores must be of the same rows, (N,) each", a, b)
    require(len(a) >= 2, "paired scores want 2 rows or more", len(a))
    require(bool(a.isfinite().all()) and bool(b.isfinite().all()), "paired scores must be finite", a, b)
    gap = a.double() - b.double()
    return Difference(gap.mean().item(), (gap.std() / math.sqrt(len(gap))).item())


def stacking_weights(scores: Mapping[str, Tensor], *, iterations: int = 10_000, tolerance: float = 1e-10) -> dict[str, float]:
    r"""Weights of the mixture whose mean log score is best: arg max of :math:`\sum_i \log \sum_m w_m e^{s_{im}}`.

    In logs, so that rows of many variables do not underflow (ArviZ's own exponentiates the scores; both agree where it does not).

    Args:
        scores: `(N,)` per model, of rows that the model has not seen.
        iterations: At most so many steps of expectation-maximisation.
        tolerance: Stop when the mean score gains less.

    Raises:
        ValueError: No scores, scores of different rows, not one per row, or not finite.

    Source:
        Yao, Vehtari, Simpson, Gelman (2018), *Using stacking to average Bayesian predictive distributions*.
    """
    require(isinstance(scores, Mapping) and len(scores) > 0, "stacking wants scores by name", scores)
    for name, s in scores.items():
        require(isinstance(s, Tensor) and s.ndim == 1 and len(s) > 0, f"stacking wants one score per row; {name} must be (N,), N 1 or more", s)
        require(bool(s.isfinite().all()), f"stacking wants finite scores; some of {name} are not", s)
    require(len({len(s) for s in scores.values()}) == 1, "stacking wants scores of the same rows", {name: len(s) for name, s in scores.items()})
    table = torch.stack([s.double() for s in scores.values()], -1)
    log_w = torch.full(table.shape[-1:], -math.log(table.shape[-1]), dtype=torch.float64)
    best = -math.inf
    for _ in range(iterations):
        joint = table + log_w
        total = joint.logsumexp(-1)
        if total.mean().item() - best < tolerance:
            break
        best = total.mean().item()
        log_w = (joint - total[:, None]).logsumexp(0) - math.log(len(table))
    return dict(zip(scores, log_w.softmax(0).tolist(), strict=True))


def average(joints: Mapping[str, Joint], weights: Mapping[str, float]) -> Mixture:
    """The weighted mixture of fitted joints, again a joint; weights as of `stacking_weights` or `StructurePosterior.probs`.

    Raises:
        ValueError: Other names in one than in the other, or weights that are negative or all zero.
    """
    require(set(joints) == set(weights), "joints and weights must have the same names", sorted(joints), sorted(weights))
    values = torch.tensor([float(weights[name]) for name in joints], dtype=torch.float64)
    require(bool((values >= 0).all()) and bool(values.sum() > 0) and bool(values.isfinite().all()),
            "weights must be 0 or more and not all 0", values.tolist())
    parts: Sequence[Joint] = [j for j, v in zip(joints.values(), values, strict=True) if v > 0]
    return Mixture(values[values > 0].log().to(parts[0].dtype), parts)
