"""Goodness of fit, as p-values whose false-alarm rate is what it says."""

from collections.abc import Callable
from typing import Any

import torch

from torch import Tensor

from pyro_ar.testing.oracles import cells, holds, left_of, own_values

__all__ = ["FALSE_ALARM", "fits", "p_value", "ranks", "uniform_p_value"]

FALSE_ALARM = 1e-5
"""Chance that a right sampler fails one of the goodness-of-fit checks, over all its tests together."""


def ranks(joint: Any, x: Tensor, i: int, log_p: Callable[[Tensor], Tensor]) -> Tensor:
    """How much of the density `log_p` of cell `i` lies below its value in `x`: uniform if `x` was drawn from it.

    Ties of discrete cells are broken by chance; on a grid the last step is shared in proportion.
    """
    values, log_weight = own_values(joint, x, i, points=601)
    mass, width = (log_p(values) + log_weight).exp(), log_weight.exp()
    share = torch.rand(left_of(x, joint), dtype=x.dtype, device=x.device) if joint.num_states else 0.5
    inside = (cells(x, joint)[..., i] - cells(values, joint)[..., i]) / width + share
    return torch.where(mass > 0, mass * inside.clamp(0, 1), 0).sum(0)




def p_value(probs: Tensor, counts: Tensor, *, least: float = 10.0) -> float:
    """Pearson's test, cells that expect fewer than `least` merged into one.

    Not `pyro.distributions.testing.gof`, which it otherwise follows: Pyro 1.9.2 divides by N p (1 - p) at k - 1
    degrees of freedom, which doubles the statistic of a coin, and its `chi2sf(500, 7)` is 1.0, so that the
    worst samplers pass.
    """
    total = counts.sum()
    if bool((counts[probs <= 0] > 0).any()):
        return 0.0
    expected = probs.double() * total
    order = expected.argsort(descending=True)
    expected, counts = expected[order], counts[order].double()
    many = int((expected >= least).sum())
    rest, rest_counts = expected[many:].sum(), counts[many:].sum()
    expected, counts = expected[:many].clone(), counts[:many].clone()
    if rest >= least:
        expected, counts = torch.cat([expected, rest[None]]), torch.cat([counts, rest_counts[None]])
    elif many:
        expected[-1] += rest
        counts[-1] += rest_counts
    if len(expected) < 2:
        return 1.0
    expected = expected * (total / expected.sum())
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = statistic.new_tensor(len(expected) - 1.0)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def uniform_p_value(u: Tensor, *, bins: int = 20) -> float:
    """Pearson's test that the numbers are uniform on the unit interval."""
    counts = torch.bincount((u.clamp(0, 1) * bins).long().clamp(max=bins - 1).reshape(-1), minlength=bins)
    return p_value(torch.full((bins,), 1 / bins), counts.cpu())


def fits(p_values: list[float], what: str, false_alarm: float) -> None:
    """Fail if the smallest of the p-values is below its share of the false alarms."""
    worst = min(p_values, default=1.0)
    holds(worst > false_alarm / max(len(p_values), 1),
          f"{what}: p-value {worst:.2g} in the worst of {len(p_values)} tests (false alarm rate {false_alarm:g})")
