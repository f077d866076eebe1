"""Is what is hidden never read, and what is impossible refused?"""

import math

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch

from pyro import poutine
from torch import Tensor

from pyro_ar.testing.oracles import (
    NotApplicable,
    agree,
    all_completions,
    all_values,
    answered_patterns,
    cells,
    check,
    device_of,
    holds,
    per_row,
    refuses,
    shaped,
    size_of,
    values_and_patterns,
)
from pyro_ar.testing.rebuilding import gradients, rebuilt

__all__ = ["hidden_cells_are_never_read", "hidden_cells_are_never_read_in_pyro", "impossible_evidence_is_refused"]


@check
def impossible_evidence_is_refused(joint: Any) -> None:
    """Where visible cells have probability zero, `marginal` is minus infinity, `given` raises, and gradients stay finite."""
    values = all_values(joint)
    one = rebuilt(joint, leaves=True)
    log_p = one.log_prob(values).detach()
    if not bool((log_p == -math.inf).any()):
        raise NotApplicable("every value of the joint has positive probability")
    found = (log_p == -math.inf).nonzero()[0]
    impossible = values[found[0]].expand(one.batch_shape + one.event_shape)
    entry = tuple(found[1:])
    patterns = answered_patterns(one, one.sample(), count=8)
    for v in patterns:
        completions = all_completions(one, impossible, v)
        if completions is None:
            continue
        expected = one.log_prob(completions).detach().logsumexp(0)
        marginal = one.marginal(shaped(v, one))
        agree(marginal.log_prob(impossible), expected, "marginal of impossible evidence")
        if expected[entry] == -math.inf:
            refuses(partial(one.given, impossible, shaped(v, one)), "evidence of probability zero", "probability")
    possible = one.sample((len(patterns),))
    both = torch.cat([possible, impossible.expand(possible.shape)])
    answers = one.marginal(per_row(patterns, one).repeat(2, *[1] * (both.ndim - 1))).log_prob(both)
    for name, g in gradients(one, answers[answers > -math.inf].sum()):
        holds(not g.isnan().any(), f"the gradient by {name} of possible rows beside impossible ones is NaN")


def _garbage(joint: Any, x: Tensor, visible: Tensor) -> list[Tensor]:
    """`x` with what must never be read under its hidden cells."""
    return [torch.where(visible, x, bad) for bad in (math.nan, math.inf, -7.5, 1e30)]


@check
def hidden_cells_are_never_read(joint: Any) -> None:
    """What stands under a hidden cell (NaN, infinity, nonsense) changes neither value nor gradient, by tensors or by x."""
    one = rebuilt(joint, leaves=True)
    x, patterns = values_and_patterns(one)
    visible = per_row(patterns, one).expand(x.shape)
    asks: dict[str, Callable[[Tensor], Tensor]] = {
        "marginal": lambda value: one.marginal(visible).log_prob(value),
        "given": lambda value: one.given(value, visible).log_prob(x),
        "log_evidence of given": lambda value: one.given(value, visible).log_evidence,
    }
    for what, ask in asks.items():
        found = []
        for value in [x, *_garbage(one, x, visible)]:
            leaf = value.clone().requires_grad_()
            answer = ask(leaf)
            found.append((answer.detach(), dict(gradients(one, answer.sum(), leaf))))
        for answer, grads in found:
            agree(answer, found[0][0], f"{what} with nonsense where hidden", exactly=True)
            for name, g in grads.items():
                holds(bool(g.isfinite().all()), f"the gradient of {what} by {name} is not finite")
                agree(g, found[0][1][name], f"gradient of {what} by {name} with nonsense where hidden")
            holds(bool((grads["value 0"][~visible] == 0).all()), f"{what} has a gradient by hidden cells")
    draws = []
    for value in [x, *_garbage(one, x, visible)]:
        torch.manual_seed(1)
        draws.append(one.given(value, visible).sample((3,)))
        agree(draws[-1], draws[0], "given.sample with nonsense where hidden", exactly=True)


@check
def hidden_cells_are_never_read_in_pyro(joint: Any) -> None:
    """`pyro.sample("x", joint.marginal(visible), obs=x_with_nan)` in plates, with validation on: value and gradient."""
    one = rebuilt(joint, leaves=True)
    x, patterns = values_and_patterns(one)
    visible = per_row(patterns, one).expand(x.shape)

    def model(value: Tensor) -> None:
        with pyro.plate_stack("plates", (len(x), *one.batch_shape)):
            pyro.sample("x", one.marginal(visible), obs=value)

    found = []
    for value in (x, torch.where(visible, x, math.nan)):
        total = torch.as_tensor(poutine.trace(model).get_trace(value).log_prob_sum())
        found.append((total.detach(), dict(gradients(one, total))))
    agree(found[0][0], one.marginal(visible).log_prob(x).sum().detach(), "log_prob_sum of the marginal's site", loosely=10)
    agree(found[1][0], found[0][0], "log_prob_sum with NaN where hidden")
    for name, g in found[1][1].items():
        holds(bool(g.isfinite().all()), f"the gradient by {name} with NaN where hidden is not finite")
        agree(g, found[0][1][name], f"gradient by {name} with NaN where hidden")
    if size_of(joint) and patterns.any():
        i = int(patterns.any(0).nonzero()[0])
        bad = cells(x, joint).clone()
        bad[..., i] = math.nan
        if joint._validate_args:
            refuses(lambda: poutine.trace(model).get_trace(shaped(bad, joint)).compute_log_prob(), "NaN where visible", "site")
    holds(device_of(one) == x.device, "samples must lie on the joint's device")
