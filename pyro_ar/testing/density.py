"""Is it a distribution: normalised, causal, and sampled as it is scored?"""

import math

from functools import partial
from typing import Any

import torch

from torch import Tensor

from pyro_ar.testing.goodness import FALSE_ALARM, fits, p_value, ranks, uniform_p_value
from pyro_ar.testing.oracles import (
    MAX_STATES,
    agree,
    all_values,
    cells,
    check,
    code_of,
    conditionals,
    first_order_of,
    holds,
    in_total,
    is_small,
    own_values,
    shaped,
)

__all__ = ["conditionals_normalise", "enumeration_is_sane", "is_causal", "normalises", "samples_follow_log_prob"]


@check
def normalises(joint: Any) -> None:
    """The probabilities of all values sum to one (discrete, up to 4096 joint states)."""
    log_p = joint.log_prob(all_values(joint))
    agree(log_p.logsumexp(0), log_p.new_zeros(joint.batch_shape), "log of the sum of all probabilities")


@check
def conditionals_normalise(joint: Any) -> None:
    """Each conditional sums to one over the states of its own variable, or integrates to one on a wide grid."""
    x = joint.sample((2,))
    conditionals(joint, x)
    for i in _some_variables(joint):
        values, log_weight = own_values(joint, x, i)
        total = in_total(conditionals(joint, values)[..., i], log_weight)
        agree(total, torch.zeros_like(total), f"log of the total of the conditional of variable {i}", loosely=10)


@check
def is_causal(joint: Any) -> None:
    """No conditional sees its own variable or a later one of `joint.order`: bit for bit."""
    x, other = joint.sample((16,)), joint.sample((16,))
    reference = conditionals(joint, x)
    before, places = cells(x, joint), joint.order.argsort(-1)  # `(n,)`, or `(*O, n)` where the batch has several orders
    for place in range(places.shape[-1] - 1):
        later = places > place
        changed = torch.where(later, cells(other, joint), before)
        seen = torch.where(later, 0, conditionals(joint, shaped(changed, joint)))
        agree(seen, torch.where(later, 0, reference),
              f"conditionals of the first {place + 1} variables after changing those later in the order", exactly=True)
    conditionals_normalise(joint)  # a conditional that sees its own value does not


@check
def samples_follow_log_prob(joint: Any, *, num_samples: int = 4000, false_alarm: float = FALSE_ALARM) -> None:
    """Draws fit the density, by Pearson's test of all joint states, or of each variable's conditional ranks.

    Options: `num_samples`; `false_alarm`, the chance that a right sampler fails (over all tests together).
    """
    if is_small(joint):
        values = all_values(joint)
        probs = joint.log_prob(values).exp().reshape(len(values), -1).detach().cpu()
        codes = code_of(joint.sample((num_samples,)), joint).reshape(num_samples, -1).cpu()
        p_values = [p_value(p, torch.bincount(c, minlength=len(p))) for p, c in zip(probs.T, codes.T, strict=True)]
    else:
        x = joint.sample((min(num_samples, 1000),))
        p_values = [
            uniform_p_value(u)
            for i in _some_variables(joint)
            for u in ranks(joint, x, i, partial(_conditional, joint, i)).reshape(len(x), -1).T
        ]
    fits(p_values, "samples against log_prob", false_alarm)


def _conditional(joint: Any, i: int, x: Tensor) -> Tensor:
    return conditionals(joint, x)[..., i]


def _some_variables(joint: Any, most: int = 6) -> list[int]:
    """All variables in their order, or a few of many: the first, the last, and some between."""
    order = first_order_of(joint)
    step = (len(order) - 1) / max(min(most, len(order)) - 1, 1)
    return [order[round(k * step)] for k in range(min(most, len(order)))]


@check
def enumeration_is_sane(joint: Any) -> None:
    """`has_enumerate_support` only up to 4096 values; then `enumerate_support` lists each once, shaped as Pyro wants."""
    batch, event = joint.batch_shape, joint.event_shape
    if not joint.has_enumerate_support:
        try:
            joint.enumerate_support()
        except NotImplementedError:
            return
        raise AssertionError("enumerate_support must raise NotImplementedError where has_enumerate_support is false")
    holds(joint.num_states is not None, "a continuous joint has no enumerable support")
    many = math.prod(joint.num_states)
    holds(many <= MAX_STATES, f"Pyro would enumerate {many:.3g} values at every such site: more than {MAX_STATES}")
    for one in (joint, joint.expand([2, *batch])):
        thin, full = one.enumerate_support(expand=False), one.enumerate_support(expand=True)
        left = one.batch_shape
        holds(thin.shape == (many, *[1] * len(left), *event), f"enumerate_support(expand=False) has shape {tuple(thin.shape)}")
        holds(full.shape == (many, *left, *event), f"enumerate_support(expand=True) has shape {tuple(full.shape)}")
        agree(full, thin.expand(full.shape), "enumerate_support expanded and not", exactly=True)
        codes = code_of(thin.reshape(many, *event), joint)
        agree(codes.sort().values, torch.arange(many, device=codes.device), "numbers of the enumerated values", exactly=True)
        log_p = one.log_prob(thin)
        agree(log_p.logsumexp(0), log_p.new_zeros(left), "log of the sum over enumerate_support")
    holds(joint.batch_shape == batch, "expand must leave the joint as it is")
